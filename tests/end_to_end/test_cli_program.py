"""The program as a shell sees it: how soon it answers, what it prints, and with which status it leaves."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.studies import ROOT, study
from omegaconf import OmegaConf
from torch import Tensor

import benchmarks
import strategies
from workbench import __version__
from workbench.cli import app, guarded, main
from workbench.config.loading import shipped_configs
from workbench.strategy import ContinualStrategy


def program(*arguments: str, cwd: Path) -> tuple[subprocess.CompletedProcess[str], float]:
    """A run of the program, and the seconds that it took."""
    started = time.monotonic()
    command = [sys.executable, "-m", "workbench", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    return done, time.monotonic() - started


def test_help_comes_at_once(tmp_path: Path) -> None:
    done, seconds = program("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("run", "list", "report"))
    assert seconds < 2


def test_a_config_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    done, seconds = program("run", "quickstrt", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: there is no file 'quickstrt', nor a shipped config. Did you mean 'quickstart'?"
    )
    assert "Traceback" not in done.stderr
    assert done.stdout == "reading the config quickstrt …\n"
    assert list(tmp_path.iterdir()) == []
    assert seconds < 2


def test_the_version(tmp_path: Path) -> None:
    done, seconds = program("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"continual-workbench {__version__}\n")
    assert seconds < 2


WITHOUT_TORCH = (
    "import sys\n"
    "from workbench.cli import app, guarded\n"
    "guarded(lambda: app(sys.argv[1:], standalone_mode=False))\n"
    "print([name for name in ('torch', 'lightning', 'transformers', 'datasets') if name in sys.modules])\n"
)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["list"], ["run", "--help"], ["run", "quickstrt"]])
def test_what_needs_no_torch_imports_none(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_first_line_comes_before_torch_and_each_stage_as_it_begins(tmp_path: Path) -> None:
    """Every stage is announced while what it is about is not there yet: the libraries, the model, the plan."""
    code = (
        "import builtins, sys\n"
        "told = builtins.print\n"
        "def spy(*given, **options):\n"
        "    told(*given, **options)\n"
        "    told('torch' in sys.modules, 'lightning.pytorch' in sys.modules, file=sys.stderr)\n"
        "builtins.print = spy\n"
        "from workbench.cli import app, guarded\n"
        "guarded(lambda: app(['run', 'quickstart', 'first_tasks=0'], standalone_mode=False))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[:2] == [
        "reading the config quickstart …",
        "loading torch, Lightning and transformers …",
    ]
    assert done.stderr.splitlines()[:1] == ["False False"]


def test_an_unknown_command_and_a_missing_argument(tmp_path: Path) -> None:
    for arguments in (["train"], ["run"], ["run", "quickstart", "--epochs"]):
        done, _ = program(*arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def test_a_wrong_key_is_told_without_a_traceback(tmp_path: Path) -> None:
    done, _ = program("run", "quickstart", "data.batchsize=8", "trainer.max_epochs=many", cwd=tmp_path)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[0] == "error: data.batchsize: data has no key 'batchsize'. Did you mean 'batch_size'?"
    assert lines[1].startswith("error: trainer.max_epochs: expected ")
    assert len(lines) == 2
    assert list(tmp_path.iterdir()) == []


def test_the_list_names_all_that_comes_along(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: app(["list"], standalone_mode=False)) == 0
    lines = capsys.readouterr().out.splitlines()
    entries = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if line.startswith("  ")}
    assert {"strategies.SeqFT", "strategies.LoRA", "strategies.BlockExpansion"} <= set(entries)
    assert {"benchmarks.Trace", "benchmarks.MiniTrace"} <= set(entries)
    assert set(shipped_configs()) <= set(entries)
    assert all(text.strip() for text in entries.values())
    for package in (strategies, benchmarks):
        for name in package.__all__:
            first = (getattr(package, name).__doc__ or "").strip().partition("\n")[0]
            assert entries[f"{package.__name__}.{name}"].strip() == first


class Stops(ContinualStrategy):
    """Does what a user or a cluster does, in the second task's first batch.

    Args:
        name: Of the signal.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.batches = 0

    def penalties(self, backbone: Any, batch: Any, output: Any) -> dict[str, Tensor]:
        self.batches += 1
        if self.batches == 3 and Path("runs").exists():  # the plan has made no folder yet
            os.kill(os.getpid(), getattr(signal, self.name))
        return {}


@pytest.fixture
def stopped(model_folder: Path, task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a study that is stopped by a signal; its second run is never begun."""
    monkeypatch.chdir(tmp_path)
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C

    def write(name: str) -> Path:
        first = {"class_path": "strategies.SeqFT"}
        second = {"class_path": "test_cli_program.Stops", "init_args": {"name": name}}
        raw = study(model_folder, task_folder, tmp_path / "runs", strategies={"seqft": first, "stops": second})
        OmegaConf.save(OmegaConf.create(raw), tmp_path / "small.yaml")
        return tmp_path / "runs" / "small"

    yield write
    signal.signal(signal.SIGINT, ignored)


def test_an_interrupt_ends_with_130_and_keeps_what_is_finished(
    stopped: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, before = stopped("SIGINT"), signal.getsignal(signal.SIGINT)
    assert guarded(lambda: app(["run", "small.yaml"])) == 130
    assert signal.getsignal(signal.SIGINT) is before
    told = capsys.readouterr()
    assert told.err.splitlines()[-1].startswith("interrupted. All that was measured and the last saved state are kept")
    assert (folder / "seqft" / "default" / "seed-0" / "model" / "config.json").is_file()
    assert not (folder / "stops" / "default" / "seed-0" / "model").exists()


def test_a_cluster_that_terminates_a_run_reads_143(stopped: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped("SIGTERM")
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["workbench", "run", "small.yaml"])
    try:
        with pytest.raises(SystemExit) as left:
            main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert left.value.code == 143


def test_a_pipe_gets_plain_lines(
    model_folder: Path, task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    OmegaConf.save(OmegaConf.create(study(model_folder, task_folder, tmp_path / "runs")), tmp_path / "small.yaml")
    assert guarded(lambda: app(["run", "small.yaml"], standalone_mode=False)) == 0
    text = capfd.readouterr().out
    assert "\x1b" not in text
    assert "\r" not in text
    lines = text.splitlines()
    assert "== run 1 of 1: seqft, order default, seed 0" in lines
    assert sum(line.startswith("  scores after ") for line in lines) == 3
    assert any(line.startswith("task 2 of 2 beta: training ") for line in lines)
    begun = [line.removesuffix(" …") for line in lines if line.endswith(" …")]
    assert begun == [
        "reading the config small.yaml",
        "loading torch, Lightning and transformers",
        "building the benchmark and the strategies",
        f"loading the model {model_folder}",
        "checking the scorers",
        "checking seqft (1 of 1)",
        "tokenising the test rows",
        "scoring the zero-shot model",
        "comparing the strategies",
        "writing the report",
    ]
    place = lines.index("tokenising the test rows …")
    assert lines[place + 1].startswith("Plan: 1 run of 2 tasks")
    assert any(re.fullmatch(r"In all about .+ on \d+ cores?; done near .*\d\d:\d\d\.", line) for line in lines)
    assert [line.split("  # ")[1] for line in lines[lines.index("Next:") + 1 :]] == [
        "Read the report",
        "See how soon what was forgotten is learnt again",
        "Add seeds, for intervals; finished runs are kept",
    ]


DROPPED = {
    "__del__": "class Last:\n    def __del__(self): drop()\nLast()\n",
    "no end": "class Last:\n    def __del__(self):\n        drop()\n        while True: time.sleep(0.01)\nLast()\n",
    "a callback": "class Last: ...\nlast = Last()\nheld = weakref.ref(last, lambda _: drop())\ndel last\n",
}


@pytest.mark.parametrize(("name", "status", "told"), [("SIGTERM", 143, "terminated"), ("SIGINT", 130, "interrupted")])
@pytest.mark.parametrize("place", DROPPED)
def test_a_signal_that_python_drops_comes_again(name: str, status: int, told: str, place: str) -> None:
    code = (
        "import os, signal, time, typer, weakref\n"
        "from workbench.cli import interruptible\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a shell's background job has not
        "def drop():\n"
        f"    os.kill(os.getpid(), signal.{name})\n"  # what the handler raises in here is dropped
        "try:\n"
        "    with interruptible():\n"
        + textwrap.indent(DROPPED[place], " " * 8)
        + "        print('goes on', flush=True)\n"
        "        time.sleep(30)\n"
        "except typer.Exit as left:\n"
        "    raise SystemExit(left.exit_code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (status, "goes on\n")
    assert f"{told}. All that was measured and the last saved state are kept" in done.stderr
    assert "Exception ignored" not in done.stderr
