"""What a plan measures and what it carries over: activations of an item's longest rows, and seconds of all steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from workbench.backbone import unpadded
from workbench.benchmark import Task
from workbench.errors import ConfigError
from workbench.runtime.environment import PeakMemory
from workbench.study import Study, costs, measure
from workbench.study.costs import Costs, TrainRows
from workbench.study.dry_run import DryRun
from workbench.study.measure import Memory, choose_sample
from workbench.testing.tiny import tiny_backbone, tiny_tasks

Make = Callable[..., Study]


def begun(small: Study, strategy: str) -> tuple[DryRun, list[Task]]:
    """A dry run before its first item, and the items."""
    dry_run = DryRun(small.assembly, strategy)
    return dry_run, dry_run.setup()


def memory_of(dry_run: DryRun, position: int, task: Task, measured: Costs) -> Memory:
    """The memory of an item's step."""
    sample = choose_sample(dry_run.assembly, dry_run.name, task)
    dry_run.begin(position, task, sample.texts)
    assert dry_run.build_optimizer(task, 1) == []
    return measured.train(dry_run, task, sample)[1]


@pytest.fixture
def peaks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The peaks that are measured, in order; the first is 1,000 bytes above what is counted, each next one more."""
    found: list[int] = []

    class Peak(PeakMemory):
        def __init__(self, device: torch.device, model_bytes: int = 0, *, collect: bool = True) -> None:
            found.append(model_bytes + 1000 + len(found))

        def bytes(self) -> int | None:
            return found[-1]

    monkeypatch.setattr(costs, "PeakMemory", Peak)
    return found


def longer(task: Task, length: int) -> Task:
    """A task with one prompt of so many letters more."""
    rows = task.train.to_list()
    rows[-1]["prompt"] += " a" * length
    return replace(task, train=type(task.train).from_list(rows))


def test_activations_are_what_the_peak_has_beyond_what_is_counted(make: Make, peaks: list[int]) -> None:
    dry_run, (task, *_) = begun(make(), "seqft")
    memory = memory_of(dry_run, 0, longer(task, 5), Costs())
    assert memory.activations == 1000 + len(peaks) - 1  # the last one is that of the longest rows
    assert memory.gradients == sum(value.nbytes for value in dry_run.backbone.parameters())
    assert memory.total == peaks[-1]


def test_an_item_is_measured_where_it_may_take_more_than_one_before(make: Make, peaks: list[int]) -> None:
    dry_run, (task, *_) = begun(make(), "seqft")
    measured, counts = Costs(), []
    for position, item in enumerate([longer(task, 5), task, longer(task, 9), longer(task, 7)]):
        memory_of(dry_run, position, item, measured)
        counts.append(len(peaks))
    assert counts == [counts[0], counts[0], counts[0] + 1, counts[0] + 1]
    next(dry_run.backbone.parameters()).requires_grad_(False)
    memory_of(dry_run, 4, task, measured)
    assert len(peaks) > counts[-1]  # other parameters train


def test_the_measured_batch_is_as_long_as_the_longest_row(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest row is beyond those that the hooks get, and a batch of it has as many rows as the config says."""
    dry_run, (task, *_) = begun(make(data={"batch_size": 2, "max_length": 64}), "seqft")
    task = longer(task, 20)
    longest = max(map(len, dry_run.backbone.encode(task.train, task.max_new_tokens)["input_ids"]))
    shapes: list[list[int]] = []
    step = DryRun.step
    monkeypatch.setattr(
        DryRun, "step", lambda self, batch: (shapes.append(list(batch.labels.shape)), step(self, batch))[1]
    )
    memory_of(dry_run, 0, task, Costs())
    assert max(shapes, key=lambda shape: shape[0] * shape[1]) == [2, longest]
    shapes.clear()
    dry_run, _ = begun(make(data={"batch_size": 8, "max_length": 64, "batch_tokens": 2 * longest}), "seqft")
    memory_of(dry_run, 0, task, Costs())
    assert [2, longest] in shapes
    assert shapes[-1] == [2, longest]


@pytest.mark.parametrize(
    ("of_a_token", "as_gradients", "lengths"), [(10**6, False, 2), (10**4, True, 2), (10**4, True, 1)]
)
def test_a_long_step_is_carried_over_from_a_shorter_one(
    make: Make, monkeypatch: pytest.MonkeyPatch, of_a_token: int, as_gradients: bool, lengths: int
) -> None:
    """Activations grow with the tokens, and an optimizer's temporary tensors as large as the gradients do not."""
    sizes: list[int] = []
    temporary = 0

    class Peak(PeakMemory):
        """Bytes for each token, the logits of the labelled ones among them, and temporary ones."""

        def __init__(self, device: torch.device, model_bytes: int = 0, *, collect: bool = True) -> None:
            self.counted = model_bytes

        def bytes(self) -> int | None:
            return self.counted + temporary + of_a_token * sizes[-1]

    step = DryRun.step
    monkeypatch.setattr(costs, "PeakMemory", Peak)
    monkeypatch.setattr(costs, "AFFORDABLE_SECONDS", 0.0)
    if lengths == 1:  # of the typical batch no row more than the short one's is affordable
        monkeypatch.setattr(costs, "affordable_rows", lambda rows, seconds: rows[:1])
    monkeypatch.setattr(DryRun, "step", lambda self, batch: (sizes.append(batch.labels.numel()), step(self, batch))[1])
    dry_run, (task, *_) = begun(make(data={"batch_size": 4, "max_length": 64}), "seqft")
    task = longer(task, 20)
    temporary = as_gradients * sum(value.nbytes for value in dry_run.backbone.parameters())
    memory = memory_of(dry_run, 0, task, Costs())
    longest = len(TrainRows.of(dry_run.backbone, task).longest["input_ids"])
    assert max(sizes) < 4 * longest
    assert memory.activations == pytest.approx(temporary + of_a_token * 4 * longest, rel=0.1)


def test_seconds_grow_with_the_rows_of_a_batch(make: Make) -> None:
    """The same item in batches of one device, of two: half the rows take less, and no step is taken again."""
    dry_run, (task, *_) = begun(make(data={"batch_size": 8, "max_length": 64}), "seqft")
    measured, sample = Costs(), choose_sample(dry_run.assembly, "seqft", task)
    dry_run.begin(0, task, sample.texts)
    assert dry_run.build_optimizer(task, 1) == []
    whole, _ = measured.train(dry_run, task, sample)
    half, _ = measured.train(dry_run, task, sample._replace(share=4))
    many, _ = measured.train(dry_run, task, sample._replace(share=800))
    assert half < whole < many


def test_answers_that_are_learnt_are_shorter(make: Make) -> None:
    small = make()
    dry_run, _ = begun(small, "seqft")
    measured = Costs()
    dry_run.data.tasks = [replace(task, max_new_tokens=30) for task in dry_run.data.tasks]
    assert 0 < measured.score(dry_run, learnt=True) < measured.score(dry_run, learnt=False)


@pytest.mark.parametrize(("least", "tokens"), [(1, 6 + 2), (10_000, 2 * 6)])
def test_padding_counts_where_it_is_computed(monkeypatch: pytest.MonkeyPatch, least: int, tokens: int) -> None:
    """Rows of 6 and 2 tokens, in a model that is wide enough to skip their padding, or is not."""
    monkeypatch.setattr(unpadded, "LEAST_WIDTH", least)
    backbone = tiny_backbone()
    rows = [{"input_ids": [5] * size, "prompt_length": 1, "row": 0} for size in (6, 2)]
    assert costs._load(backbone.collate(rows), backbone) == (tokens, 5 + 1)


def test_of_measured_batches_that_cover_a_step_the_smallest_counts(make: Make, peaks: list[int]) -> None:
    dry_run, (task, *_) = begun(make(), "seqft")
    measured = Costs()
    memory_of(dry_run, 0, task, measured)
    structure = next(iter(measured._steps))
    measured._activations = {
        (structure, 10**6 + place, 10**6): size for place, size in enumerate([None, 900, 500, 700])
    }
    assert memory_of(dry_run, 0, task, measured).activations == 500
    measured._activations = {(structure, 10**6, 10**6): None}
    assert memory_of(dry_run, 0, task, measured).activations is None


def test_typical_rows_are_of_the_whole_task() -> None:
    """127 rows, of which 64 are taken: the second half is longer, and half of those taken is of it."""
    backbone, (task, *_) = tiny_backbone(), tiny_tasks()
    rows = [{"prompt": "a" + " a" * (9 * (place > 63)), "answer": "b"} for place in range(127)]
    typical = TrainRows.of(backbone, replace(task, train=type(task.train).from_list(rows))).typical
    lengths = [len(row["input_ids"]) for row in typical]
    assert len(lengths) == 64
    assert 28 <= sum(length > min(lengths) for length in lengths) <= 36


@pytest.mark.parametrize(("class_path", "fits"), [("torch.optim.AdamW", False), ("torch.optim.SGD", True)])
def test_a_first_step_without_room_for_gradients_and_moments_is_not_taken(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, class_path: str, fits: bool
) -> None:
    """As many bytes are free as two models have: enough for the gradients, and not for the moments too."""
    small = make(optimizer={"class_path": class_path, "init_args": {"lr": 0.01}})
    monkeypatch.setattr(measure, "MEMORY", tmp_path / "meminfo")
    size = measure.model_bytes(small.assembly.backbone)
    measure.MEMORY.write_text(f"MemAvailable: {2 * size // 1024} kB\n", encoding="ascii")
    taken, step = [], DryRun.step
    monkeypatch.setattr(DryRun, "step", lambda self, batch: (taken.append(batch), step(self, batch))[1])
    if fits:
        assert small.plan().estimates["seqft"].steps
        return
    told = r"^strategies\.seqft: a step needs more memory .*: gradients and the state of AdamW alone take .* Lower "
    with pytest.raises(ConfigError, match=told):
        small.plan()
    assert taken == []


def test_an_item_is_measured_in_eight_steps(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """One to warm up, three of a short batch, three of a batch as long as most, and one of the longest rows."""
    taken: list[tuple[int, ...]] = []
    step = DryRun.step
    monkeypatch.setattr(
        DryRun, "step", lambda self, batch: (taken.append(tuple(batch.labels.shape)), step(self, batch))[1]
    )
    dry_run, (task, *_) = begun(make(data={"batch_size": 4, "max_length": 64}), "seqft")
    rows = task.train.to_list()
    task = replace(longer(task, 40), train=type(task.train).from_list(rows * 9 + longer(task, 40).train.to_list()[-1:]))
    memory_of(dry_run, 0, task, Costs())
    assert [taken.count(shape) for shape in dict.fromkeys(taken)] == [4, 3, 1]
