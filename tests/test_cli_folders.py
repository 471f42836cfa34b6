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


def test_all_in_which_two_models_differ_is_told_at_once(command: Command, tmp_path: Path) -> None:
    status, _, told = command("merge", "mini", "micro", "merged")
    assert status == 2
    assert told[0] == "error: mini and micro cannot be merged. Give two that agree in this:"
    for line in (
        "config.json: hidden_size is 96 in the first, 64 in the second.",
        "model.norm.weight: shape [96] in the first, [64] in the second.",
        "model.layers.3.mlp.up_proj.weight and 2 like it: only in the first.",
    ):
        assert f"error: {line}" in told
    assert list(tmp_path.iterdir()) == []
