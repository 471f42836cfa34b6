"""`lightning grow` and `lightning merge`: what they print, make and refuse; a refusal writes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from workbench.cli import app, guarded

Command = Callable[..., tuple[int, list[str], list[str]]]
TOKENS = torch.tensor([[1, 40, 7, 300, 12, 9]])


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the program; its status, and the lines on both its outputs."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, list[str], list[str]]:
        try:
            status = guarded(lambda: app([str(argument) for argument in arguments]))
        except SystemExit as left:
            status = int(str(left.code))
        told = capsys.readouterr()
        return status, told.out.splitlines(), told.err.splitlines()

    return run


def edited(model: Path, to: Path, **changes: Any) -> Path:
    """A copy of a model's folder with another config."""
    shutil.copytree(model, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | changes))
    return to


def test_a_folder_grows_and_answers_as_before(command: Command, tmp_path: Path) -> None:
    status, out, _ = command("grow", "mini", "grown", "strategies.BlockExpansion", "groups=3")
    size = sum(tensor.nbytes for tensor in load_file(tmp_path / "grown" / "model.safetensors").values())
    assert (status, out) == (
        0,
        [f"grown: 6 layers became 9, 3 of them identities; {size // 2:,} parameters, {size / 1e6:.1f} MB."],
    )
    grown = AutoModelForCausalLM.from_pretrained(tmp_path / "grown")
    status, _, _ = command("grow", "grown", "zero", "strategies.DepthUpScaling", "dropped=0", "again=true")
    assert status == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "zero").config.num_hidden_layers == 18
    command("grow", "mini", "same", "strategies.BlockExpansion", "position=[0,5]")
    same = AutoModelForCausalLM.from_pretrained(tmp_path / "same")
    assert torch.equal(grown(TOKENS).logits, same(TOKENS).logits)


def test_upscaling_names_no_identities(command: Command) -> None:
    _, out, _ = command("grow", "mini", "grown", "strategies.DepthUpScaling", "dropped=2")
    assert out[0].startswith("grown: 6 layers became 8; ")


def test_adapters_that_stay_behind_are_told(command: Command, model_folder: Path, tmp_path: Path) -> None:
    source = edited(model_folder, tmp_path / "source")
    (source / "adapters").mkdir()
    status, out, _ = command("grow", "source", "grown", "strategies.DepthUpScaling", "dropped=0")
    assert (status, out[1]) == (
        0,
        "source/adapters was left behind: they fit the layers as they were numbered before.",
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["strategies.BlockExpansion", "grops=3"], "BlockExpansion has no argument 'grops'. Did you mean 'groups'?"),
        (["strategies.BlockExpansoin"], "Did you mean 'BlockExpansion'?"),
        (["strategies.BlockExpansion", "groups=4"], "groups=4 does not divide the model's 6 layers. Choose one of"),
        (["strategies.BlockExpansion", "groups=0"], "groups=0 is out of range; it has to be at least 1."),
        (["strategies.DepthUpScaling", "dropped=3"], "dropped=3 is out of range for the model's 6 layers"),
        (["strategies.DepthUpScaling", "dropped=-1"], "dropped=-1 is out of range"),
        (["strategies.DepthUpScaling", "dropped=2", "interlock=3"], "interlock=3 does not divide the 4 layers"),
        (["strategies.SeqFT"], "SeqFT has no plan(depth), so there is no surgery to make. Give a strategy that"),
    ],
)
def test_a_growth_that_is_refused(arguments: list[str], expected: str, command: Command, tmp_path: Path) -> None:
    status, out, told = command("grow", "mini", "grown", *arguments)
    assert (status, out) == (2, [])
    assert len(told) == 1
    assert told[0].startswith("error: ")
    assert expected in told[0]
    assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot_grow(command: Command, model_folder: Path, tmp_path: Path) -> None:
    edited(model_folder, tmp_path / "gpt2", model_type="gpt2")
    edited(model_folder, tmp_path / "once", layer_plan=[[0, False], [0, True]])
    (edited(model_folder, tmp_path / "adapted") / "adapter_config.json").write_text("{}")
    messages = {
        "gpt2": "model_type is 'gpt2'; expected one of llama, mistral, qwen2, qwen3.",
        "once": "The model was grown before: its 2 layers come from 1, as `layer_plan` in its config records.",
        "adapted": "adapted holds a peft adapter, trained for a model's layers as they were numbered then",
        "absent": "absent: there is no such folder. Give a Hugging Face model folder, a hub id, 'mini' or 'micro'.",
        "some/model": "some/model: there is no such folder. A model on the hub is fetched first: hf download",
    }
    for source, message in messages.items():
        status, out, told = command("grow", source, "grown", "strategies.DepthUpScaling", "dropped=0")
        assert (status, out, len(told)) == (2, [], 1), source
        assert message in told[0]
        assert not (tmp_path / "grown").exists()


def test_nothing_is_overwritten(command: Command, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("a file")
    told = "error: there is there. Choose another name, or delete it."
    assert command("grow", "mini", "there", "strategies.DepthUpScaling", "dropped=0") == (2, [], [told])
    assert command("merge", "mini", "mini", "there") == (2, [], [told])
    assert (tmp_path / "there").read_text() == "a file"


def test_a_disk_that_fails_is_told_without_a_traceback(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status, out, told = command("grow", "mini", "file/grown", "strategies.DepthUpScaling", "dropped=0")
    assert (status, out, len(told)) == (1, [], 1)
    assert told[0].startswith("error: ")
    assert told[0].endswith("Nothing was written.")


def test_two_models_are_merged(command: Command, tmp_path: Path) -> None:
    assert command("merge", "mini", "mini", "merged", "method=slerp", "weight=0.4") == (
        *(0, ["merged: 56 tensors of mini and mini were merged."]),
        [],
    )
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["merged"] == {"first": "mini", "second": "mini", "method": "slerp", "weight": 0.4}
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    command("grow", "mini", "same", "strategies.BlockExpansion", "groups=1")
    same = AutoModelForCausalLM.from_pretrained(tmp_path / "same")
    assert torch.equal(merged(TOKENS).logits, same(TOKENS).logits)  # of a model with itself


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["mini", "methd=slerp"], "merge has no argument 'methd'. Did you mean 'method'?"),
        (["mini", "method=slrp"], "expected 'average' or 'slerp', got 'slrp' (str). Did you mean 'slerp'?"),
        (["mini", "weight=half"], "weight: expected float, got 'half' (str)."),
        (["mini", "weight=1.5"], "weight=1.5 is out of range; it has to be in [0, 1]"),
        (["mini", "out=elsewhere"], "this argument is filled in by the workbench. Leave it out."),
        (["mini", "half"], "'half' is no override. Write key=value"),
        (["absent"], "absent: there is no such folder."),
    ],
)
def test_a_merge_that_is_refused(arguments: list[str], expected: str, command: Command, tmp_path: Path) -> None:
    status, out, told = command("merge", "mini", arguments[0], "merged", *arguments[1:])
    assert (status, out, len(told)) == (2, [], 1)
    assert expected in told[0]
    assert list(tmp_path.iterdir()) == []


def test_all_in_which_two_models_differ_is_told_at_once(command: Command, tmp_path: Path) -> None:
    status, _, told = command("merge", "mini", "micro", "merged")
    assert status == 2
    assert told[0] == "error: mini and micro cannot be merged:"
    for line in (
        "config.json: hidden_size is 96 in the first, 64 in the second.",
        "model.norm.weight: shape [96] in the first, [64] in the second.",
        "model.layers.3.mlp.up_proj.weight and 2 like it: only in the first.",
    ):
        assert f"error: {line}" in told
    assert list(tmp_path.iterdir()) == []
