"""Commands in this process: bad input is refused with status 2 and a message, and folders are grown and merged."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.studies import study
from omegaconf import OmegaConf
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from workbench.cli import app, guarded
from workbench.config import loading
from workbench.study import study as study_module

Refuse = Callable[..., list[str]]
Command = Callable[..., tuple[int, list[str], list[str]]]
TOKENS = torch.tensor([[1, 40, 7, 300, 12, 9]])


# -- `lightning run` with something wrong: nothing is written


@pytest.fixture
def refuse(
    model_folder: Path,
    task_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Refuse:
    """Runs the small study with something wrong; the lines that a user reads."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides: str, **changes: Any) -> list[str]:
        raw = study(model_folder, task_folder, tmp_path / "runs", **changes)
        OmegaConf.save(OmegaConf.create(raw), tmp_path / "small.yaml")
        status = guarded(lambda: app(["run", "small.yaml", *overrides], standalone_mode=False))
        told = capsys.readouterr()
        assert status == 2, told.out + told.err
        assert "Traceback" not in told.err
        assert all(line.startswith(("error: ", "- ")) for line in told.err.splitlines()), told.err
        assert not (tmp_path / "runs").exists()
        return [line.removeprefix("error: ") for line in told.err.splitlines()]

    return run


def test_data_that_a_benchmark_makes_only_when_a_task_is_asked_for(refuse: Refuse) -> None:
    few = {"test_rows": 400, "expressions": {"keys": 20, "operands": [2]}}
    made = {"class_path": "benchmarks.key_value_arithmetic.KeyValueArithmetic", "init_args": few}
    (line,) = refuse(benchmark=made)
    assert line.startswith("benchmark: test: Only 128 different prompts were found where 400 are asked for.")


@pytest.mark.parametrize("name", ["../up", "/etc", "a/b", "..", "''", ".hidden"])
def test_a_name_that_leads_out_of_the_folder(refuse: Refuse, name: str) -> None:
    assert "is not a plain folder name" in refuse(f"name={name}")[0]
    component = {"class_path": "strategies.SeqFT"}
    assert "is not a plain folder name" in refuse(strategies={name.strip("'"): component})[0]


def test_a_folder_for_results_below_a_file(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (line,) = refuse("output=file/runs")
    assert line == f"output: {tmp_path}/file is a file; results need a folder. Choose another."


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_for_results_that_cannot_be_written_to(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    (line,) = refuse("output=locked/runs")
    assert line == f"output: {tmp_path}/locked cannot be written to. Choose another."


def test_all_that_is_wrong_is_told_at_once(refuse: Refuse) -> None:
    wrong = ("data.batch_size=many", "trainer.max_epochs=0", "optimizer.init_args.lrr=1", "backbone.path=absent")
    lines = refuse(
        *wrong, "sedes=[1]", "strategies.seqft.class_path=strategies.Seq", "benchmark.init_args.path=nowhere"
    )
    for key in (
        "data.batch_size",
        "trainer.max_epochs",
        "optimizer.init_args.lrr",
        "backbone.path",
        "sedes",
        "benchmark",
    ):
        assert sum(line.startswith(key) for line in lines) == 1, (key, lines)
    assert sum("has no class 'Seq'" in line for line in lines) == 1
    assert len(lines) == 7


def test_a_config_is_loaded_once_and_each_check_is_run_once(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(module: Any, name: str) -> None:
        original = getattr(module, name)

        def call(*given: Any) -> Any:
            calls.append(name)
            return original(*given)

        monkeypatch.setattr(module, name, call)

    for name in ("load", "check_surroundings", "check"):
        counted(loading, name)
    for name in ("check", "check_surroundings", "check_trainer", "built_problems"):
        counted(study_module, name)
    (line,) = refuse("orders=[nowhere]")
    assert line.startswith("orders: Trace has no order 'nowhere'.")
    assert calls == ["load", "check_surroundings", "check", "check_trainer", "built_problems"]


def test_an_override_that_is_none(refuse: Refuse) -> None:
    (line,) = refuse("epochs")
    assert line == "'epochs' is not an override. Write key=value, such as trainer.max_epochs=1."


# -- `lightning grow` and `lightning merge`


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
