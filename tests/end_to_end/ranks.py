"""Execute a study with two processes, stop them in many ways, resume by the same command, and compare.

`python tests/end_to_end/ranks.py whole [SEED]` makes all trials and prints a line for each; `short` makes one of them.
`python tests/end_to_end/ranks.py run CONFIG [key=value ...]` is the command itself, which the trials start: one of its
processes kills itself where the variable KILL says so ("1|training|4": the second one, as it begins its fourth batch).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.studies import study, write_tasks
from killing import POINTS, STRATEGIES, intercept
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import OmegaConf
from safetensors.torch import load

from workbench.cli import app, guarded
from workbench.runtime.distributed import rank
from workbench.testing.tiny import tiny_backbone

OTHERS = {
    "joint": {"class_path": "strategies.Joint"},
    "alone": {"class_path": "strategies.PerTaskFT"},
    "solar": {"class_path": "strategies.DepthUpScaling", "init_args": {"dropped": 0}},
    "experts": {"class_path": "strategies.DownProjectionMoE"},
    "calm": {"class_path": "strategies.CALM", "init_args": {"augmenting": "model", "connections": 1}},
}
COMPARED = ("scores.csv", "predictions/*.jsonl", "model/*.safetensors", "model/adapters/*/*.safetensors")
POINTS["rendezvous"] = (DDPStrategy, "setup_environment")
PASSED_BY_ALL = ("rendezvous", "training", "scoring", "between tasks", "after a task", "between runs")
MOST_SECONDS = 15.0
"""From a kill to the end of the last process: Lightning looks every 5 s whether all are there."""
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
TWO = "trainer.devices=2"


@dataclass(frozen=True)
class Stop:
    """One way to stop a study: a process kills itself at a point, or is sent a signal after some seconds."""

    kill: str = ""
    number: int = 0
    to_all: bool = False
    seconds: float = 0.0


class Pair:
    """A study, and what two processes make of it.

    Args:
        folder: For everything.
        strategies: Of the study.
    """

    def __init__(self, folder: Path, strategies: dict[str, Any]) -> None:
        self.folder = folder
        tiny_backbone(num_hidden_layers=2).save(folder / "model")
        tasks = write_tasks(folder / "tasks", rows=21)
        for name in ("alpha", "beta"):  # neither five rows nor a last batch of one are shared evenly
            rows = json.loads((tasks / name / "train.json").read_text(encoding="utf-8"))
            (tasks / name / "test.json").write_text(json.dumps(rows[:5]), encoding="utf-8")
        raw = study(folder / "model", tasks, folder / "runs", strategies=strategies)
        raw |= {"trainer": {"max_epochs": 2, "accelerator": "cpu"}, "save_every_n_steps": 2}
        OmegaConf.save(OmegaConf.create(raw), folder / "small.yaml")

    def start(self, *arguments: str, kill: str = "", launcher: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Starts the command, in a group of processes of its own."""
        program = [sys.executable, *launcher, __file__, "run", str(self.folder / "small.yaml"), *arguments]
        given: dict[str, Any] = {"cwd": self.folder, "env": os.environ | {"KILL": kill, "OMP_NUM_THREADS": "1"}}
        with (self.folder / "errors.txt").open("wb") as errors:
            return subprocess.Popen(program, start_new_session=True, stdout=subprocess.DEVNULL, stderr=errors, **given)

    def end(self, name: str, *arguments: str, launcher: Sequence[str] = ()) -> dict[str, bytes]:
        """Runs the command to its end; the compared files of its study by their path in it."""
        if self.start(f"name={name}", *arguments, launcher=launcher).wait():
            raise RuntimeError((self.folder / "errors.txt").read_text(encoding="utf-8")[-2000:])
        root = self.folder / "runs" / name
        found = [file for pattern in COMPARED for file in root.glob(f"*/*/*/{pattern}")]
        return {str(file.relative_to(root)): file.read_bytes() for file in sorted(found)}

    def outcome(self, expected: dict[str, bytes], stop: Stop) -> str:
        """Stops a study of two processes, runs it to its end, and says what is otherwise than expected."""
        shutil.rmtree(self.folder / "runs" / "tried", ignore_errors=True)
        (self.folder / "killed").unlink(missing_ok=True)
        process = self.start("name=tried", TWO, kill=stop.kill)
        if stop.number:
            time.sleep(stop.seconds)
            (self.folder / "killed").touch()
            os.killpg(process.pid, stop.number) if stop.to_all else process.send_signal(stop.number)
        status = process.wait()
        while alive(process.pid):
            time.sleep(0.05)
        if not (self.folder / "killed").is_file():
            return f"ended with {status} before it was stopped: wrong"
        seconds = time.time() - (self.folder / "killed").stat().st_mtime
        told = f"ended with {status}, both processes within {seconds:.1f} s"
        if status == 0 or seconds > MOST_SECONDS:
            return f"{told}: wrong"
        made = self.end("tried", TWO)
        wrong = [file for file in {**expected, **made} if made.get(file) != expected.get(file)]
        return f"{told}, {f'differs in {wrong[:3]}' if wrong else 'equal'}"


def alive(group: int) -> bool:
    """Whether a process of a group runs."""
    states = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, number = file.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has just ended
            continue
        states += [state] if int(number) == group else []
    return any(state not in "ZX" for state in states)


def command() -> int:
    """The command, in one of the processes; it kills itself where it was told to."""
    place, _, rest = os.environ.get("KILL", "").partition("|")
    if place == str(rank()):
        point, _, number = rest.partition("|")
        passed = iter(range(1, 10**9))

        def count() -> None:
            if next(passed) == int(number):
                Path("killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)

        intercept(point, count)
    return guarded(app)


def difference(one: dict[str, bytes], two: dict[str, bytes]) -> float:
    """The largest between the weights of two studies."""
    pairs = [(load(one[file]), load(two[file])) for file in one if file.endswith("model/model.safetensors")]
    return max(float((first[name] - second[name]).abs().max()) for first, second in pairs for name in first)


def same_answers(one: dict[str, bytes], two: dict[str, bytes], rows: str = "") -> bool:
    """Whether two studies gave the same answers, in all rows of the matrix or in one."""
    files = [file for file in one if f"predictions/{rows}" in file]
    return bool(files) and all(one[file] == two[file] for file in files)


def stops(form: str, rng: random.Random) -> list[Stop]:
    """What is tried."""
    if form == "short":
        return [Stop("1|training|9")]
    made = [Stop(f"0|{point}|{rng.randint(1, 2)}") for point in POINTS if point != "rendezvous"]
    made += [Stop(f"1|{point}|{rng.randint(1, 9 if point == 'training' else 2)}") for point in PASSED_BY_ALL[1:]]
    made += [Stop(f"{place}|rendezvous|1") for place in range(2)]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        made += [Stop("", number, to_all, round(rng.uniform(6, 14), 1)) for to_all in (False, True)]
    return made


def main(form: str, seed: int) -> int:
    """Makes the trials of a form, and prints a line for each; the number that did not end as they should."""
    wrong = 0

    def told(line: str, good: bool) -> None:
        nonlocal wrong
        wrong += not good
        print(line, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        pair = Pair(Path(folder), {"lora": STRATEGIES["lora"]} if form == "short" else STRATEGIES | OTHERS)
        plain = ["trainer.max_steps=20", "trainer.max_epochs=4", "optimizer.init_args.lr=1e-3"]
        plain += ["benchmark.init_args.tasks=[alpha]", "strategies.lora.init_args.dropout=0.0"]
        one, two = pair.end("one", *plain), pair.end("two", TWO, *plain)
        most, same = difference(one, two), same_answers(one, two, "0-")
        told(f"one process and two: weights {most:.1e} apart after 20 steps, row 0 {same}", most < 1e-5 and same)
        expected = pair.end("expected", TWO)
        if form != "short":
            equal = pair.end("torchrun", TWO, launcher=TORCHRUN) == expected
            told(f"started by Lightning and by torchrun: {'equal' if equal else 'different'}", equal)
        for stop in stops(form, random.Random(seed)):
            outcome = pair.outcome(expected, stop)
            told(f"{stop}: {outcome}", outcome.endswith(", equal"))
    print(f"{wrong} trials went wrong")
    return min(wrong, 99)


if __name__ == "__main__":
    sys.exit(command() if sys.argv[1] == "run" else main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0))
