"""PerTaskFT: each task is learnt from the model as loaded, whatever came before it, and nothing is dropped silently."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.studies import column, learn, same, weights
from torch import Tensor

from strategies import LoRA, PerTaskFT, Replay, SeqFT
from workbench.backbone import Backbone, Batch
from workbench.benchmark import Task
from workbench.errors import ConfigError
from workbench.results import RunFolder
from workbench.strategy import Composition, ContinualStrategy
from workbench.study import Study
from workbench.testing.tiny import tiny_backbone, tiny_tasks

ONE, TWO, THREE = tiny_tasks(3)


class Seen(PerTaskFT):
    """Keeps the model at each task's start and end, and the batches in between."""

    def __init__(self) -> None:
        super().__init__()
        self.starts: list[dict[str, Tensor]] = []
        self.ends: list[dict[str, Tensor]] = []
        self.batches: list[list[Batch]] = []
        self.trains: list[set[str]] = []

    def before_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        super().before_task(backbone, task, batches)
        self.starts.append(weights(backbone))
        self.trains.append(set(backbone.trainable()))
        self.batches.append([])

    def penalties(self, backbone: Any, batch: Any, output: Any) -> dict[str, Tensor]:
        self.batches[-1].append(batch)
        return {}

    def after_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        self.ends.append(weights(backbone))


def test_each_task_is_one_step_from_the_model_as_loaded(tmp_path: Path) -> None:
    """θ_t = θ_0 - 0.1 · 1/3 Σ ∇L(batch) over task t's three batches, at θ_0."""
    strategy = Seen()
    backbone = learn(strategy, tmp_path, tasks=[ONE, TWO, THREE], accumulate_grad_batches=3)
    names = set(dict(tiny_backbone().model.named_parameters()))
    for start, end, batches, trains in zip(
        strategy.starts, strategy.ends, strategy.batches, strategy.trains, strict=True
    ):
        loaded = tiny_backbone()
        assert same(start, weights(loaded))
        assert trains == names
        assert len(batches) == 3
        for batch in batches:
            (loaded(batch).loss / 3).backward()
        for name, value in loaded.model.named_parameters():
            torch.testing.assert_close(end[name], value.detach() - 0.1 * value.grad, rtol=1e-5, atol=1e-6, msg=name)
    assert same(weights(backbone), strategy.ends[-1])


def cells(folder: Path, after: str, on: str) -> list[tuple[str, str]]:
    """Every number that was measured in one cell of the matrix, the likelihood too."""
    return [
        (metric, value)
        for file in ("scores.csv", "nll.csv")
        for at, where, metric, value in zip(
            *(column(folder / file, name) for name in ("after", "on", "metric", "value")), strict=True
        )
        if (at, where) == (after, on)
    ]


def sequence(folder: Path, strategy: ContinualStrategy, tasks: Sequence[Task]) -> Path:
    learn(strategy, folder, tasks=tasks)
    return folder


def test_what_came_before_a_task_does_not_matter_and_in_a_sequence_it_does(tmp_path: Path) -> None:
    ends = []
    for name, first in (("one", ONE), ("three", THREE)):
        strategy = Seen()
        sequence(tmp_path / name, strategy, [first, TWO])
        sequence(tmp_path / f"seqft-{name}", SeqFT(), [first, TWO])
        ends.append(strategy.ends)
    assert same(ends[0][1], ends[1][1])
    assert not same(ends[0][0], ends[1][0])
    folders = [tmp_path / name for name in ("one", "three", "seqft-one", "seqft-three")]
    found = [cells(folder, "2", "task_1") for folder in folders]
    assert len(found[0]) == 2
    assert found[0] == found[1]
    assert found[2] != found[3]
    assert cells(folders[0], "1", "task_0") == cells(folders[2], "1", "task_0")  # the first task is fine-tuning


def test_every_cell_is_scored_and_each_task_trains_its_own_steps(tmp_path: Path) -> None:
    learn(PerTaskFT(), tmp_path, tasks=[ONE, TWO, THREE], max_epochs=2)
    assert not RunFolder(tmp_path).matrix().isnan().any()
    assert column(tmp_path / "costs.csv", "steps") == ["6", "6", "6"]
    assert column(tmp_path / "costs.csv", "added_parameters") == ["0", "0", "0"]


@pytest.mark.parametrize(("precision", "expected"), [("bf16-true", torch.bfloat16), ("bf16-mixed", torch.float32)])
def test_the_model_comes_back_in_the_precision_that_the_trainer_gave_it(
    tmp_path: Path, precision: str, expected: torch.dtype
) -> None:
    strategy = Seen()
    learn(strategy, tmp_path, precision=precision)
    wanted = {name: value.to(expected) for name, value in weights(tiny_backbone()).items()}
    assert len(strategy.starts) == 2
    assert all(same(start, wanted) for start in strategy.starts)
    assert not any(same(end, wanted) for end in strategy.ends)


def test_a_model_that_was_loaded_in_half_precision_comes_back_as_it_was(model_folder: Path) -> None:
    """Its rotary frequencies are float32, as transformers keeps them: a cast of the whole model would round them."""
    backbone = Backbone.load(model_folder, dtype="bfloat16")
    state, buffers = weights(backbone), dict(backbone.model.named_buffers())
    assert {value.dtype for value in buffers.values()} == {torch.float32}
    PerTaskFT().before_task(backbone, ONE, [])
    assert same(weights(backbone), state)
    assert same(dict(backbone.model.named_buffers()), buffers)


@pytest.mark.parametrize("other", [LoRA, Replay, SeqFT])
@pytest.mark.parametrize("first", [True, False])
def test_it_stands_alone(other: type[ContinualStrategy], first: bool) -> None:
    members = [PerTaskFT(), other()] if first else [other(), PerTaskFT()]
    with pytest.raises(ValueError, match=r"^PerTaskFT cannot be combined with other strategies\. Give it alone\.$"):
        Composition(members)
    assert Composition([PerTaskFT()]).members


def test_a_study_refuses_it_in_a_list_before_any_folder_is_made(
    tmp_path: Path,
) -> None:
    given = "strategies={x: [{class_path: strategies.LoRA}, {class_path: strategies.PerTaskFT}]}"
    with pytest.raises(ConfigError, match=r"strategies\.x: PerTaskFT cannot be combined"):
        Study("quickstart", [given, f"output={tmp_path / 'runs'}"]).run()
    assert list(tmp_path.iterdir()) == []
