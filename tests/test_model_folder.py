"""Loading, saving and restoring a model folder, and a clear message for each way in which one can be damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.studies import ROOT
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from strategies import CALM
from workbench.backbone import Backbone
from workbench.backbone.adapters import inject, save_adapters
from workbench.backbone.encoding import TextPolicy
from workbench.backbone.loading import refusing
from workbench.depth import PlannedLayer, restack
from workbench.model_folder import check_folder
from workbench.testing.tiny import tiny_backbone

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
TOKENS = torch.tensor([[1, 40, 7, 300, 12, 9, 15, 22]])
Damage = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model as a Hugging Face folder."""
    tiny_backbone().save(tmp_path / "model")
    return tmp_path / "model"


def edit_json(name: str, **changes: object) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / name
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return damage


def drop_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def only_a_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def stored(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    """Return a damage that changes the tensors in the file."""

    def damage(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def one_more_layer(weights: dict[str, torch.Tensor]) -> None:
    weights.update({name.replace(".3.", ".4."): value.clone() for name, value in weights.items() if ".3." in name})


def different_head(weights: dict[str, torch.Tensor]) -> None:
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1


def in_shards(damage: Damage) -> Damage:
    """Return the same damage for a folder whose weights are in two files."""

    def sharded(folder: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(folder)
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size=model.num_parameters() * 2)
        names = sorted(folder.glob("model-*.safetensors"))
        assert len(names) > 1
        names[-1].rename(folder / "model.safetensors")
        damage(folder)
        (folder / "model.safetensors").rename(names[-1])

    return sharded


def an_adapter_beside(folder: Path) -> None:
    """Write an adapter's files into the model's own folder, as training an adapter there does."""
    backbone = tiny_backbone()
    backbone.add_adapter("one", r=4, target_modules=["q_proj"], init_lora_weights=False)
    save_adapters(backbone.model, folder)
    for file in (folder / "one").iterdir():
        file.rename(folder / file.name)


def only_a_sentencepiece_model(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")


def reshape_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(7)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def forget_end_token(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    content = json.loads(file.read_text())
    del content["eos_token"]
    file.write_text(json.dumps(content))


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "there is no config.json, so it is not a Hugging"),
    "half a config": (lambda folder: (folder / "config.json").write_text('{"model_type":'), "not readable as JSON"),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "expected a JSON object, got list"),
    "gpt2": (
        edit_json("config.json", model_type="gpt2"),
        "model_type is 'gpt2'; expected one of llama, mistral, qwen2, qwen3.",
    ),
    "longrope": (
        edit_json("config.json", rope_scaling={"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}),
        "rope_type is 'longrope', whose numbers depend on the longest row of a batch.",
    ),
    "truncated": (cut_weights, "truncated or damaged. Copy it again."),
    "not safetensors": (lambda folder: (folder / "model.safetensors").write_bytes(b"hello"), "not a whole safetensors"),
    "a strange header": (
        lambda folder: (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]"),
        "its header is broken",
    ),
    "missing": (drop_weight, "1 weights are missing or of another shape, the first: model.layers.2.mlp.up_proj.weight"),
    "another shape": (reshape_weight, "1 weights are missing or of another shape, the first: model.norm.weight"),
    "pickle": (only_a_pickle, "there are no safetensors weights (other formats can run code and are not read)."),
    "end is null": (edit_json("tokenizer_config.json", eos_token=None), "the tokenizer has no end token (eos_token)"),
    "end is absent": (forget_end_token, "The tokenizer has no end token (eos_token)"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "there is no tokenizer (tokenizer.json"),
    "broken tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text("{"),
        "Copy its tokenizer's files again.",
    ),
    "odd config": (edit_json("config.json", hidden_size="many"), "its config.json cannot be loaded: "),
    "an adapter beside": (an_adapter_beside, "model holds a peft adapter (adapter_config.json)"),
    "a layer more": (
        stored(one_more_layer),
        "9 weights are stored that config.json has no place for, the first: model.layers.4.input_layernorm.weight. "
        "Fix config.json (num_hidden_layers, attention_bias), or copy it again.",
    ),
    "a layer more in shards": (
        in_shards(stored(one_more_layer)),
        "config.json has no place for, the first: model.layers.4",
    ),
    "biases": (
        stored(lambda weights: weights.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)})),
        "1 weights are stored that config.json has no place for, the first: model.layers.0.self_attn.q_proj.bias.",
    ),
    "a tied head with other values": (
        lambda folder: (edit_json("config.json", tie_word_embeddings=True)(folder), stored(different_head)(folder)),
        "Set tie_word_embeddings to false in config.json, or leave lm_head.weight out of the file.",
    ),
    "gptq": (
        edit_json("config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        "its weights are quantised (gptq), and do not train. Take the model as it was before it was quantised.",
    ),
    "int8": (
        stored(lambda weights: weights.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)})),
        "model.norm.weight is stored as I8; expected F64, F32, F16, BF16. Take the model as it was before",
    ),
    "fp8": (
        stored(lambda weights: weights.update({"model.norm.weight": torch.ones(32).to(torch.float8_e4m3fn)})),
        "model.norm.weight is stored as F8_E4M3; expected F64, F32, F16, BF16. Take the model as it was before",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_one_clear_message(name: str, folder: Path) -> None:
    damage, message = DAMAGES[name]
    damage(folder)
    with pytest.raises(ValueError) as caught:
        Backbone.load(folder)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_remedies_fit_the_problem(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copying the folder again, the remedy for damaged files, helps in none of these cases."""

    def message(**given: Any) -> str:
        with pytest.raises(ValueError) as caught:
            Backbone.load(given.pop("path", folder), **given)
        assert "again" not in str(caught.value)
        return str(caught.value)

    chat = "template: 'chat' needs a tokenizer with a chat template. Choose 'none' or 'alpaca'."
    assert message(text=TextPolicy(template="chat")) == f"{folder}: {chat}"
    end = "end_token='<no>' is not in the tokenizer's vocabulary of 1191 tokens. Choose one that is."
    assert message(end_token="<no>") == f"{folder}: {end}"
    assert message(dtype="float8_e4m3fn") == "dtype='float8_e4m3fn': choose 'float32', 'bfloat16' or 'float16'."
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("workbench.model_folder.getproxies", lambda: {"https": "some"})
    asked = message(path="some/model")
    assert asked.startswith("some/model: its config.json cannot be loaded: ")
    assert asked.endswith("or hf download some/model --local-dir FOLDER, and give that folder.")
    (folder / "config.json").write_text(
        (folder / "config.json").read_text().replace('"vocab_size": 1191', '"vocab_size": 1' + "0" * 14)
    )
    assert message().endswith("Free some memory, or give a smaller model or backbone.dtype=bfloat16.")


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (ImportError("tiktoken is required"), "Get the package that is missing."),
        (MemoryError(), "Free some memory, or give a smaller model or backbone.dtype=bfloat16."),
        (PermissionError("Permission denied: model.safetensors"), "Give yourself the right to read it."),
        (KeyError("model.norm.weight"), "Copy it again."),
    ],
)
def test_each_error_while_loading_has_a_remedy_of_its_own(error: Exception, remedy: str) -> None:
    with pytest.raises(ValueError) as caught, refusing(Path("folder"), "it cannot be loaded", "Copy it again."):
        raise error
    sentence = str(error) or "MemoryError"
    assert str(caught.value) == f"it cannot be loaded: {sentence}. {remedy}"


def test_a_tokenizer_that_needs_a_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_a_sentencepiece_model(folder)
    monkeypatch.setattr("workbench.model_folder.find_spec", lambda name: None)
    assert check_folder(folder) == [
        f"{folder}: its tokenizer is in tokenizer.model alone, which needs sentencepiece and protobuf to be read. "
        "Run: pip install sentencepiece protobuf. Or give a folder with tokenizer.json."
    ]
    monkeypatch.setattr("workbench.model_folder.find_spec", lambda name: name)
    assert check_folder(folder) == []


@pytest.mark.parametrize("stated", [None, {}, {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}])
def test_a_tokenizer_model_alone_makes_the_tokens_that_sentencepiece_makes(
    stated: dict[str, Any] | None, folder: Path, tmp_path: Path
) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    texts = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    lines = [line.strip() for line in texts if line.strip()][:200]  # transformers adds no space before a space

    def train(kind: str) -> Any:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_prefix=str(tmp_path / kind),
            vocab_size=700,
            model_type=kind,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,  # as LLaMA's
            minloglevel=2,
            **{"unk_id": 0, "bos_id": 1, "eos_id": 2},
        )
        shutil.copy(tmp_path / f"{kind}.model", folder / "tokenizer.model")
        return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))

    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    if stated is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(stated))
    processor = train("bpe")
    backbone = Backbone.load(folder)
    begin = [1] if (stated or {}).get("add_bos_token", True) else []
    expected = [begin + processor.encode(line) for line in lines]
    assert backbone.tokenizer(lines).input_ids == expected
    assert backbone.tokenizer.eos_token_id == 2
    backbone.save(tmp_path / "saved")
    assert Backbone.load(tmp_path / "saved").tokenizer(lines).input_ids == expected
    train("unigram")
    with pytest.raises(ValueError, match="splits text into other tokens than sentencepiece does"):
        Backbone.load(folder)


@pytest.mark.parametrize("tied", [True, False])
def test_stored_weights_that_transformers_rightly_ignores(tied: bool, tmp_path: Path) -> None:
    """Rotary frequencies of old checkpoints, and a tied head that is stored with the values of the embeddings."""
    backbone = tiny_backbone(tie_word_embeddings=tied)
    backbone.save(tmp_path / "model")
    stored(lambda weights: weights.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))(
        tmp_path / "model"
    )
    if tied:
        stored(lambda weights: weights.update({"lm_head.weight": weights["model.embed_tokens.weight"].clone()}))(
            tmp_path / "model"
        )
    loaded = Backbone.load(tmp_path / "model").model
    assert torch.equal(loaded.eval()(TOKENS).logits, backbone.model.eval()(TOKENS).logits)
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) is tied


def test_a_composition_with_more_weights_than_its_config_describes(tmp_path: Path) -> None:
    anchor = tiny_backbone()
    CALM(augmenting="mini", connections=1).setup(anchor)
    anchor.save(tmp_path / "model")
    assert check_folder(tmp_path / "model") == []
    edit_json("config.json", connections=[[]])(tmp_path / "model")
    with pytest.raises(
        ValueError, match=r"5 weights are stored that config.json has no place for, the first: model.conn"
    ):
        Backbone.load(tmp_path / "model")


def test_the_chosen_end_token_is_saved_and_ends_generation_in_plain_transformers(folder: Path, tmp_path: Path) -> None:
    plain, prompt = AutoModelForCausalLM.from_pretrained(folder).eval(), torch.tensor([[1, 9, 15, 22]])
    answer = plain.generate(prompt, max_new_tokens=6, do_sample=False)[0, 4:].tolist()
    end = answer[2]
    assert end not in answer[:2]
    backbone = Backbone.load(folder, end_token=AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(end))
    backbone.save(tmp_path / "out")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text())["eos_token_id"] == end
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert saved.generate(prompt, max_new_tokens=6, do_sample=False)[0, 4:].tolist() == answer[:3]


def test_special_tokens_that_agree_are_kept(folder: Path, tmp_path: Path) -> None:
    """Several end tokens, the tokenizer's among them, and a padding token that is not in the config."""
    edit_json("generation_config.json", eos_token_id=[5, 2], bos_token_id=7)(folder)
    edit_json("config.json", eos_token_id=[5, 2], bos_token_id=7)(folder)
    backbone = Backbone.load(folder)
    assert (backbone.tokenizer.eos_token_id, backbone.tokenizer.bos_token_id) == (2, 1)
    backbone.save(tmp_path / "out")
    for name in ("config.json", "generation_config.json"):
        content = json.loads((tmp_path / "out" / name).read_text())
        assert (content["eos_token_id"], content["bos_token_id"], content.get("pad_token_id")) == ([5, 2], 1, None)


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        Backbone.load(tmp_path / "nothing")
    assert str(caught.value) == (
        f"{tmp_path}/nothing: there is no such folder. Give a Hugging Face model folder, a GGUF file, a hub id, "
        "'mini', 'micro' or 'smollm2'."
    )


def test_a_tokenizer_with_more_tokens_than_the_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        tiny_backbone(vocab_size=700)
    assert str(caught.value) == (
        "The tokenizer has 1191 tokens and the model only 700 embeddings. "
        "Give the tokenizer of this model; a method adds tokens by Backbone.add_tokens."
    )


def test_an_unknown_dtype(folder: Path) -> None:
    for dtype in ("float99", "int8", "abs"):
        with pytest.raises(ValueError) as caught:
            Backbone.load(folder, dtype=dtype)
        assert str(caught.value) == f"dtype={dtype!r}: choose 'float32', 'bfloat16' or 'float16'."


def test_code_in_the_folder_is_never_run(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "was-run"
    code = f"open({str(marker)!r}, 'w').close()\nclass Model: ...\nclass Config: ...\nclass Tokenizer: ...\n"
    (folder / "own.py").write_text(code)
    edit_json(
        "config.json",
        auto_map={"AutoModelForCausalLM": "own.Model", "AutoConfig": "own.Config", "AutoTokenizer": "own.Tokenizer"},
    )(folder)
    edit_json("tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Tokenizer", None]})(folder)
    backbone = Backbone.load(folder)
    assert type(backbone.model).__name__ == "LlamaForCausalLM"
    assert not marker.exists()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_loads_with_plain_transformers(family: str, tied: bool, tmp_path: Path) -> None:
    backbone = tiny_backbone(family, tie_word_embeddings=tied)
    backbone.save(tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert torch.equal(plain(TOKENS).logits, backbone.model.eval()(TOKENS).logits)
    if family != "qwen2":  # transformers reads every qwen2 folder with Qwen2's own tokenizer class, which this is not
        assert tokenizer("the cat sat").input_ids == backbone.tokenizer("the cat sat").input_ids
        assert torch.equal(Backbone.load(tmp_path / "model").model.eval()(TOKENS).logits, plain(TOKENS).logits)


def test_a_save_that_fails_keeps_the_older_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    backbone = tiny_backbone(seed=1)

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(backbone.tokenizer, "save_pretrained", full_disk)
    with pytest.raises(OSError):
        backbone.save(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    fresh = folder.with_name("fresh")
    with pytest.raises(OSError):
        backbone.save(fresh)
    assert not fresh.exists()


def test_a_save_replaces_an_older_one_and_the_remains_of_one_that_was_stopped(folder: Path) -> None:
    (folder / "adapters").mkdir()
    partial = folder.with_name("model.partial")
    partial.mkdir()
    (partial / "left.txt").write_text("by a stopped save")
    backbone = tiny_backbone(seed=1)
    backbone.save(folder)
    assert torch.equal(Backbone.load(folder).model.eval()(TOKENS).logits, backbone.model.eval()(TOKENS).logits)
    assert not partial.exists()
    assert not (folder / "adapters").exists()
    assert not (folder / "left.txt").exists()


def test_half_precision_is_a_choice(folder: Path) -> None:
    def dtypes(backbone: Backbone) -> set[torch.dtype]:
        return {parameter.dtype for parameter in backbone.model.parameters()}

    half = Backbone.load(folder, dtype="bfloat16")
    assert dtypes(half) == {torch.bfloat16}
    half.save(folder)
    assert dtypes(Backbone.load(folder)) == {torch.float32}
    weight = Backbone.load(folder).model.lm_head.weight
    assert torch.equal(weight, tiny_backbone().model.lm_head.weight.bfloat16().float())


def test_restore_brings_back_every_bit_after_any_change(folder: Path) -> None:
    backbone = Backbone.load(folder)
    loaded = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    encoder = backbone.encoder
    restack(backbone.model, [PlannedLayer(3), PlannedLayer(0), PlannedLayer(0, identity=True)])
    inject(backbone.model, "first", {"target_modules": ["q_proj"]})
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            parameter.add_(1.0)
    backbone.eval()
    backbone.restore()
    now = backbone.model.state_dict()
    assert now.keys() == loaded.keys()
    assert all(torch.equal(now[name], loaded[name]) for name in loaded)
    assert backbone.model.config.num_hidden_layers == 4
    assert not hasattr(backbone.model.config, "layer_plan")
    assert backbone.adapter_names == []
    assert backbone.model.training
    assert len(backbone.trainable()) == len(list(backbone.model.parameters()))
    assert backbone.encoder is encoder


def test_a_hub_that_cannot_be_reached_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("workbench.model_folder.getproxies", dict)
    monkeypatch.setattr("workbench.model_folder.socket.create_connection", refuse)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")
    problem = "some/model: there is no such folder, and the hub (hub.example) cannot be reached: no route to host."
    assert check_folder("some/model") == [problem]
    monkeypatch.setattr("workbench.model_folder.socket.create_connection", lambda *_, **__: SimpleNamespace(close=bool))
    assert check_folder("some/model") == []
