"""Loading, saving and restoring a model's folder, and one clear message for each way in which it can be broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from workbench.adapters import inject
from workbench.backbone import Backbone
from workbench.depth import PlannedLayer, restack
from workbench.model_folder import check_folder
from workbench.testing import tiny_backbone

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
    "broken tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{"), "cannot be loaded: "),
    "odd config": (edit_json("config.json", hidden_size="many"), "cannot be loaded: "),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_one_clear_message(name: str, folder: Path) -> None:
    damage, message = DAMAGES[name]
    damage(folder)
    with pytest.raises(ValueError) as caught:
        Backbone.load(folder)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        Backbone.load(tmp_path / "nothing")
    assert str(caught.value) == (
        f"{tmp_path}/nothing: there is no such folder. Give a Hugging Face model folder, a hub id, 'mini' or 'micro'."
    )


def test_a_tokenizer_with_more_tokens_than_the_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        tiny_backbone(vocab_size=700)
    assert str(caught.value) == (
        "The tokenizer has 1191 tokens and the model only 700 embeddings. Give the tokenizer of this model."
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


def test_a_save_that_fails_leaves_the_older_folder_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_save_replaces_an_older_one_and_what_a_stopped_one_left(folder: Path) -> None:
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


def test_restore_brings_back_every_bit_whatever_was_done(folder: Path) -> None:
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


def test_a_hub_that_cannot_be_reached_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("workbench.model_folder.getproxies", dict)
    monkeypatch.setattr("workbench.model_folder.socket.create_connection", refuse)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")
    told = "some/model: there is no such folder, and the hub (hub.example) cannot be reached: no route to host."
    assert check_folder("some/model") == [told]
    monkeypatch.setattr("workbench.model_folder.socket.create_connection", lambda *_, **__: SimpleNamespace(close=bool))
    assert check_folder("some/model") == []
