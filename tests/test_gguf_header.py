"""Headers of GGUF files: what is refused, with which remedy, before anything heavy is imported."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from workbench.backbone import Backbone
from workbench.gguf_header import read_gguf_header
from workbench.model_folder import check_folder

gguf = pytest.importorskip("gguf")
from helpers.gguf_files import model_of, tokenizer_of, write_gguf  # noqa: E402

UNQUANTISED = "Take the model's Hugging Face folder."
UPDATE = "Run: pip install -U gguf. Or take the model's Hugging Face folder."


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tokenizer = tokenizer_of("gpt-2")
    return write_gguf(tmp_path / "tiny.gguf", model_of("llama", len(tokenizer)), tokenizer)


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("another architecture", {"general.architecture": "gemma"}, "its architecture is 'gemma'; expected one of llama"),
    ("scaled", {"llama.rope.scaling.type": "yarn"}, "rotary frequencies are scaled for long texts"),
    ("partly rotated", {"llama.rope.dimension_count": 16}, "only 16 of the 32 dimensions of each head are rotated"),
    ("a window", {"llama.attention.sliding_window": 127}, "limited to a window (attention.sliding_window is 127)"),
    ("windows", {"llama.attention.sliding_window": [8, 0]}, "(attention.sliding_window differs by layer)"),
    ("experts", {"llama.expert_count": 8}, "mixture of experts; expected a dense model."),
    ("sentencepiece", {"tokenizer.ggml.model": "llama"}, "tokenizer is of the kind 'llama'; expected 'gpt2'"),
    ("another split", {"tokenizer.ggml.pre": "tekken"}, "splits text as 'tekken' (tokenizer.ggml.pre)"),
    ("no end", {"leave_out": ("tokenizer.ggml.eos_token_id",)}, "no end token (tokenizer.ggml.eos_token_id)"),
]


@pytest.mark.parametrize(("changes", "says"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_what_would_be_read_otherwise_is_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of("gpt-2")
    file = write_gguf(tmp_path / "bad.gguf", model_of("llama", len(tokenizer)), tokenizer, **changes)
    problems = check_folder(file)
    assert len(problems) == 1
    assert problems[0].startswith(f"{file}: ")
    assert says in problems[0]
    assert problems[0].endswith(UNQUANTISED)


def test_a_head_whose_size_is_not_stated_is_an_even_share(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("gpt-2")
    model = model_of("llama", len(tokenizer), head_dim=16)
    unstated = {"leave_out": ("llama.attention.key_length",), "llama.rope.dimension_count": 8}
    file = write_gguf(tmp_path / "bad.gguf", model, tokenizer, **unstated)
    says = "only 8 of the 16 dimensions of each head are rotated, which is not read from GGUF."
    assert check_folder(file) == [f"{file}: {says} {UNQUANTISED}"]


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_rotated_part_need_not_be_stated(family: str, tmp_path: Path) -> None:
    """Files of Qwen models say nothing of it."""
    tokenizer = tokenizer_of("qwen2")
    sizes = {"head_dim": None} if family == "qwen2" else {}
    file = write_gguf(tmp_path / "tiny.gguf", model_of(family, len(tokenizer), **sizes), tokenizer, "qwen2")
    assert "rope.dimension_count" not in " ".join(read_gguf_header(file).values)
    assert check_folder(file) == []


def test_a_window_that_limits_nothing_is_read(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("gpt-2")
    window = {"llama.attention.sliding_window": 128}
    assert check_folder(write_gguf(tmp_path / "w.gguf", model_of("llama", len(tokenizer)), tokenizer, **window)) == []


def test_a_file_of_a_split_model_is_refused(tmp_path: Path) -> None:
    """The first file has the metadata, the others have none of it."""
    tokenizer = tokenizer_of("gpt-2")
    model = model_of("llama", len(tokenizer))
    first = write_gguf(tmp_path / "tiny-00001-of-00002.gguf", model, tokenizer, **{"split.count": 2})
    other = tmp_path / "tiny-00002-of-00002.gguf"
    writer = gguf.GGUFWriter(other, "llama")
    writer.kv_data[0].clear()
    writer.add_uint16("split.count", 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    says = "it is one of the 2 files of a model that was split; expected one file."
    remedy = "Join them (llama-gguf-split --merge), or take the model's Hugging Face folder."
    for file in (first, other):
        assert check_folder(file) == [f"{file}: {says} {remedy}"]
    whole = write_gguf(tmp_path / "whole.gguf", model, tokenizer, **{"split.count": 1})
    assert check_folder(whole) == []


def with_type(file: Path, number: int) -> None:
    """Write another type for the vector of the last norm, which is the last entry of its kind in the table."""
    content = bytearray(file.read_bytes())
    place = content.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8  # one dimension
    assert content[place : place + 4] == bytes(4)
    content[place : place + 4] = number.to_bytes(4, "little")
    file.write_bytes(content)


def test_a_type_that_the_package_does_not_know_is_named(file: Path) -> None:
    with_type(file, 999)
    says = "output_norm.weight has a type of ggml (999) that the package gguf does not know."
    assert check_folder(file) == [f"{file}: {says} {UPDATE}"]


def test_a_type_that_the_package_cannot_dequantise_is_named(file: Path) -> None:
    with_type(file, gguf.GGMLQuantizationType.I8)
    says = "output_norm.weight is stored as I8, which the package gguf does not read."
    assert check_folder(file) == [f"{file}: {says} {UPDATE}"]


def test_a_header_is_read_again_only_when_its_file_changes(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = read_gguf_header(file)
    assert read_gguf_header(file) is header
    monkeypatch.chdir(tmp_path)
    assert read_gguf_header(Path("tiny.gguf")) is header
    os.utime(file, ns=(0, 0))
    assert read_gguf_header(file) is not header
    with pytest.raises(TypeError):
        header.values["general.architecture"] = "qwen2"  # type: ignore[index]


def test_a_file_that_is_cut_anywhere_is_refused(file: Path) -> None:
    whole = file.read_bytes()
    for size in (0, 2, 4, 7, 20, 40, 100, 3_000, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        assert len(problems := check_folder(file)) == 1
        assert "Copy it again." in problems[0] or "it is no GGUF file" in problems[0], size
        with pytest.raises(ValueError, match=r"tiny\.gguf"):
            Backbone.load(file)


def test_other_versions_and_other_files_are_refused(file: Path, tmp_path: Path) -> None:
    whole = bytearray(file.read_bytes())
    whole[4] = 1
    file.write_bytes(whole)
    assert check_folder(file) == [f"{file}: its GGUF version is 1; expected 2 or 3. Convert the model again."]
    assert check_folder(tmp_path / "none.gguf") == [
        f"{tmp_path}/none.gguf: there is no such file. Give a GGUF file, or a Hugging Face model folder."
    ]
    assert check_folder("some/none.gguf") == [
        "some/none.gguf: there is no such file. Give a GGUF file, or a Hugging Face model folder."
    ]
    renamed = file.rename(tmp_path / "tiny.bin")
    assert check_folder(renamed)[0].endswith("expected a folder or a GGUF file. Rename it to end with .gguf.")
    renamed.write_text("{}")
    assert check_folder(renamed)[0].endswith("expected a folder or a GGUF file. Give a Hugging Face model folder.")


def test_the_missing_package_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    problem = f"{file}: a GGUF file needs the package gguf to be read. Run: pip install 'continual-workbench[gguf]'."
    assert check_folder(file) == [f"{problem} Or give a Hugging Face folder."]
