"""GGUF files against the models that they were written from, and against transformers' own reader."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.studies import same, weights

from workbench.backbone import Backbone
from workbench.backbone.encoding import TextPolicy
from workbench.backbone.gguf import _shortest
from workbench.model_folder import dequantised_from
from workbench.study import Study
from workbench.surgery import grow

gguf = pytest.importorskip("gguf")
from helpers.gguf_files import TEXTS, model_of, rounded, tokenizer_of, write_gguf  # noqa: E402
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint  # noqa: E402

KINDS = gguf.GGMLQuantizationType
TOKENS = torch.tensor([[1, 40, 7, 300, 12, 9, 15, 22, 300, 2]])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tokenizer = tokenizer_of("smollm")
    return write_gguf(tmp_path / "tiny.gguf", model_of("llama", len(tokenizer)), tokenizer, "smollm")


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(TOKENS).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("family", "split"), [("llama", "smollm"), ("qwen2", "qwen2"), ("qwen3", "qwen2")])
def test_the_logits_are_those_of_the_model(family: str, split: str, tied: bool, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(split)
    sizes = {"head_dim": None} if family == "qwen2" else {}
    model = model_of(family, len(tokenizer), tie_word_embeddings=tied, **sizes)
    read = Backbone.load(write_gguf(tmp_path / "tiny.gguf", model, tokenizer, split))
    assert torch.equal(logits(read.model.eval()), logits(model))
    assert read.model.config.rms_norm_eps == 1e-5
    assert type(read.model.config) is type(model.config)
    assert read.model.config.tie_word_embeddings is tied


@pytest.mark.parametrize("kind", [KINDS.Q8_0, KINDS.Q4_1, KINDS.BF16, KINDS.F16])
def test_quantised_weights_are_those_of_the_quantised_model(kind: Any, tmp_path: Path) -> None:
    tokenizer = tokenizer_of("gpt-2")
    model = model_of("llama", len(tokenizer))
    before = logits(model)
    file = write_gguf(tmp_path / "tiny.gguf", model, tokenizer, kind=kind)
    rounded(model, kind)
    read = Backbone.load(file)
    assert torch.equal(logits(read.model.eval()), logits(model))
    assert not torch.equal(logits(model), before)
    assert dequantised_from(file) == {"file": "tiny.gguf", "tensors": {kind.name: 16, "F32": 5}}


def test_the_size_of_a_head_need_not_be_stated(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("gpt-2")
    model = model_of("llama", len(tokenizer), head_dim=16)
    file = write_gguf(tmp_path / "tiny.gguf", model, tokenizer, leave_out=("llama.attention.key_length",))
    assert torch.equal(logits(Backbone.load(file).model.eval()), logits(model))


def test_the_weights_are_those_of_transformers_own_reader(file: Path) -> None:
    read = Backbone.load(file)
    theirs = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=read.model)
    ours = read.model.state_dict()
    assert theirs["tensors"].keys() == ours.keys()
    assert all(torch.equal(weight, ours[name]) for name, weight in theirs["tensors"].items())


@pytest.mark.parametrize("split", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_the_tokens_are_those_of_the_tokenizer(split: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(split)
    read = Backbone.load(
        write_gguf(tmp_path / "tiny.gguf", model_of("llama", len(tokenizer)), tokenizer, split)
    ).tokenizer
    for text in [*TEXTS, "<|begin|>a<|end|> 2024"]:
        assert read(text).input_ids == tokenizer(text).input_ids
        assert read.decode(read(text).input_ids) == tokenizer.decode(tokenizer(text).input_ids)
    assert (read.bos_token, read.eos_token, read.model_max_length) == ("<|begin|>", "<|end|>", 128)
    assert (read("a").input_ids[0] == 0) is (split == "llama-bpe")


def test_a_tokenizer_beside_the_file_is_not_taken(file: Path) -> None:
    tokenizer_of("gpt-2").save_pretrained(file.parent)
    read = Backbone.load(file).tokenizer
    assert read("a  12").input_ids == tokenizer_of("smollm")("a  12").input_ids


def test_a_folder_may_be_named_like_a_file(file: Path, tmp_path: Path) -> None:
    Backbone.load(file).save(tmp_path / "folder.gguf")
    assert same(weights(Backbone.load(tmp_path / "folder.gguf")), weights(Backbone.load(file)))


def test_the_splits_differ_in_their_tokens() -> None:
    """Otherwise the test above would pass with any of them."""
    tokens = {split: tuple(tokenizer_of(split)(TEXTS[0], add_special_tokens=False).input_ids) for split in SPLITS}
    assert len(set(tokens.values())) == len(tokens)


SPLITS = ("gpt-2", "smollm", "llama-bpe", "qwen2")


def test_a_word_of_the_vocabulary_is_taken_unmerged(tmp_path: Path) -> None:
    """Llama 3's tokenizer has whole words that its merges do not reach."""
    tokenizer = tokenizer_of("llama-bpe")
    added = tokenizer.backend_tokenizer.to_str().replace('"vocab":{', f'"vocab":{{"Ġzqx":{len(tokenizer)},', 1)
    tokenizer._tokenizer = tokenizer.backend_tokenizer.from_str(added)
    model = model_of("llama", len(tokenizer))
    read = Backbone.load(write_gguf(tmp_path / "tiny.gguf", model, tokenizer, "llama-bpe")).tokenizer
    assert read(" zqx").input_ids == tokenizer(" zqx").input_ids == [0, len(tokenizer) - 1]


def test_a_saved_folder_is_the_same_model(file: Path, tmp_path: Path) -> None:
    read = Backbone.load(file, text=TextPolicy(template="chat"))
    read.save(tmp_path / "folder")
    again = Backbone.load(tmp_path / "folder", text=TextPolicy(template="chat"))
    assert same(weights(read), weights(again))
    assert again.model.config.to_dict().keys() == read.model.config.to_dict().keys()
    assert again.tokenizer("\n\n1 23").input_ids == read.tokenizer("\n\n1 23").input_ids
    assert again.generate(["a  12"], 4) == read.generate(["a  12"], 4)
    assert "model_name_or_path" not in (tmp_path / "folder" / "config.json").read_text()


def test_restore_reads_the_file_again(file: Path) -> None:
    read = Backbone.load(file, dtype="bfloat16")
    loaded = weights(read)
    assert {weight.dtype for weight in loaded.values()} == {torch.bfloat16}
    with torch.no_grad():
        read.model.get_input_embeddings().weight.add_(1)
    read.restore()
    assert same(weights(read), loaded)


def test_a_study_records_the_file_and_resumes(file: Path, make: Callable[..., Study], tmp_path: Path) -> None:
    study = make(backbone={"path": str(file)})
    study.run()
    run = study.runs[0]
    stated = (run.folder / "journal.jsonl").read_bytes()
    assert '"dequantised": {"file": "tiny.gguf", "tensors": {"F32": 21}}' in " ".join(
        (run.folder / "environment.json").read_text().split()
    ).replace("{ ", "{").replace(" }", "}")
    make(backbone={"path": str(file)}).run()
    moved = file.rename(tmp_path / "moved.gguf").rename(file.parent / "tiny.gguf")
    make(backbone={"path": str(moved)}).run()
    assert (run.folder / "journal.jsonl").read_bytes() == stated
    content = bytearray(file.read_bytes())
    content[-4:] = struct.pack("<f", 9.0)
    file.write_bytes(content)
    with pytest.raises(ValueError, match="another model"):
        make(backbone={"path": str(file)}).run()


def test_a_number_of_32_bits_is_written_as_it_was_meant() -> None:
    assert _shortest(struct.unpack("f", struct.pack("f", 1e-6))[0]) == 1e-6
    assert _shortest(500000.0) == 500000.0
    assert _shortest(32) == 32


def test_a_tensor_without_a_place_is_refused(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("gpt-2")
    model = model_of("llama", len(tokenizer), attention_bias=True)
    file = write_gguf(tmp_path / "biased.gguf", model, tokenizer)
    message = r"8 of its tensors have no place in a llama model, the first: blk.0.attn_q.bias. Take the model's"
    with pytest.raises(ValueError, match=message):
        Backbone.load(file)


def test_a_number_that_differs_by_layer_is_refused(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("gpt-2")
    heads = {"llama.attention.head_count_kv": [2, 2]}
    file = write_gguf(tmp_path / "layers.gguf", model_of("llama", len(tokenizer)), tokenizer, **heads)
    with pytest.raises(ValueError, match=r"num_key_value_heads differs by layer; expected one number. Take"):
        Backbone.load(file)


def test_surgery_on_disk_wants_a_folder(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a GGUF file; expected a model folder. Run Backbone.load\("):
        grow(file, tmp_path / "out", object())
