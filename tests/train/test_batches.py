"""Batches within a number of tokens: each row once, the budget kept, as many in each epoch, little padding."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from helpers.programs import on_ranks
from helpers.studies import column, study

from workbench.config import parse
from workbench.study import Study
from workbench.testing.tiny import tiny_backbone, tiny_tasks
from workbench.train import ContinualDataModule
from workbench.train.data import EpochBatches, cut, halved

DRAWN = random.Random(3)
LENGTHS = [min(1024, max(8, int(DRAWN.lognormvariate(5.2, 0.8)))) for _ in range(1500)]  # like TRACE's prompts
UNEVEN = DRAWN.choices(range(10, 100), k=60)
BUDGET = 4096


def epoch_of(number: int, seed: int = 0, **changes: Any) -> list[list[int]]:
    batches = EpochBatches(**{"lengths": LENGTHS, "batch_size": 64, "seed": seed, "tokens": BUDGET, **changes})
    batches.set_epoch(number)
    found = list(batches)
    assert len(found) == len(batches)
    return found


def size(batch: Sequence[int], lengths: Sequence[int] = LENGTHS) -> int:
    """Tokens of a batch, padding among them."""
    return len(batch) * max(lengths[row] for row in batch)


def padding(batches: Sequence[Sequence[int]], lengths: Sequence[int] = LENGTHS) -> float:
    return 1 - sum(lengths) / sum(size(batch, lengths) for batch in batches)


def test_fifty_epochs_have_each_row_once_in_as_many_batches_within_the_budget() -> None:
    epochs = [epoch_of(number) for number in range(50)]
    for batches in epochs:
        assert sorted(row for batch in batches for row in batch) == list(range(len(LENGTHS)))
        assert max(size(batch) for batch in batches) <= BUDGET
        assert max(map(len, batches)) <= 64
    assert len({len(batches) for batches in epochs}) == 1
    assert len({tuple(map(tuple, batches)) for batches in epochs}) == 50


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    assert epoch_of(3, seed=1) == epoch_of(3, seed=1) != epoch_of(3, seed=2)
    moved = EpochBatches(LENGTHS, 64, 1, tokens=BUDGET)
    moved.set_epoch(7)
    list(moved)
    moved.set_epoch(3)
    assert list(moved) == epoch_of(3, seed=1)


def test_a_resumed_epoch_is_the_rest_of_the_uninterrupted_one() -> None:
    resumed = EpochBatches(LENGTHS, 64, 0, tokens=BUDGET)
    resumed.epoch, resumed.start = 2, 11
    assert list(resumed) == epoch_of(2)[11:]
    assert len(resumed) == len(epoch_of(2))
    resumed.set_epoch(3)
    assert list(resumed) == epoch_of(3)


def test_a_longer_row_is_alone() -> None:
    batches = epoch_of(1, lengths=[50, 4, 4, 4, 60, 4], tokens=16)
    assert sorted(map(len, batches)) == [1, 1, 2, 2]  # four short rows fit, and 2 % more batches than three are four
    assert {batch[0] for batch in batches if len(batch) == 1} == {0, 4}


def test_batches_by_hand() -> None:
    """[1, 2] takes 4 of 8 tokens, a third row of 3 would make it 9; [3, 4] takes 8, and is halved for 3 batches."""
    assert list(cut([0, 1, 2, 3], [1, 2, 3, 4], 9, 8)) == [[0, 1], [2, 3]]
    assert list(cut([3, 2, 1, 0], [1, 2, 3, 4], 9, 8)) == [[3, 2], [1, 0]]
    assert list(cut([0, 1, 2, 3], [1, 2, 3, 4], 1, 8)) == [[0], [1], [2], [3]]
    assert list(cut([0, 1, 2], [1, 1, 1], 2, None)) == [[0, 1], [2]]
    batches = epoch_of(0, lengths=[1, 2, 3, 4], tokens=8)
    assert sorted(batches) == [[0, 1], [2], [3]]
    assert padding(batches, [1, 2, 3, 4]) == pytest.approx(1 / 11)
    assert sorted(halved([[0, 1], [2, 3]], [1, 2, 3, 4], 4)) == [[0], [1], [2], [3]]


def test_little_is_padding() -> None:
    plain = padding(epoch_of(0, batch_size=16, tokens=None))
    assert plain > 0.6
    assert max(padding(epoch_of(number)) for number in range(5)) < 0.05


def fewest(order: Sequence[int], window: int, lengths: Sequence[int], most: int, tokens: int) -> int:
    """Batches that windows of an order need: counted, for each window, over all places of the last cut."""
    total = 0
    for start in range(0, len(order), window):
        long = sorted(lengths[row] for row in order[start : start + window])
        best = [0]
        for end in range(1, len(long) + 1):
            places = range(max(0, end - most), end)
            fit = [place for place in places if place == end - 1 or (end - place) * long[end - 1] <= tokens]
            best.append(1 + min(best[place] for place in fit))
        total += best[-1]
    return total


def test_an_epoch_that_needs_more_batches_gets_the_least_larger_budget() -> None:
    raised = 0
    for seed, number in product(range(8), range(10)):
        batches = EpochBatches(UNEVEN, 4, seed, bucket=2, tokens=200)
        batches.set_epoch(number)
        found = list(batches)
        assert len(found) == len(batches)
        assert sorted(row for batch in found for row in batch) == list(range(60))
        order = [row for window in batches._windows(batches._generator(number)) for row in window]
        needed = fewest(order, 8, UNEVEN, 4, 200)
        most = max(size(batch, UNEVEN) for batch in found)
        assert (most > 200) == (needed > len(batches))
        if most > 200:
            raised += 1
            assert number > 0
            assert fewest(order, 8, UNEVEN, 4, most - 1) > len(batches) >= fewest(order, 8, UNEVEN, 4, most)
    assert 0 < raised < 40


def of_each(_: Path) -> list[list[int]]:
    return list(EpochBatches(UNEVEN, 32, seed=1, tokens=400))


def test_each_process_gets_its_share_of_every_batch(tmp_path: Path) -> None:
    whole, parts = of_each(tmp_path), on_ranks(of_each, tmp_path, 2)
    for number, batch in enumerate(whole):
        assert [part[number] for part in parts] == [batch[0::2], batch[1::2]]


def test_a_strategys_batches_keep_the_budget_in_the_rows_order() -> None:
    backbone, task = tiny_backbone(), tiny_tasks()[0]
    data = ContinualDataModule([task], batch_size=5)
    data.batch_tokens = 3 * max(len(row) for row in backbone.encode(task.train, task.max_new_tokens)["input_ids"])
    data.begin(backbone, 0, task, task.train)
    found = [batch for batch in data.batches()]
    assert [row for batch in found for row in batch.row.tolist()] == list(range(12))
    assert all(batch.input_ids.numel() <= data.batch_tokens for batch in found)
    assert len(found) == len(data.batches()) <= 4


def test_the_plan_counts_the_steps_that_are_made(tmp_path: Path, model_folder: Path, task_folder: Path) -> None:
    """Two tasks of 8 rows; the plan sees them all."""
    data = {"batch_size": 8, "batch_tokens": 40, "max_length": 64}
    trainer = {"max_epochs": 2, "accumulate_grad_batches": 2, "accelerator": "cpu"}
    small = Study(parse(study(model_folder, task_folder, tmp_path / "runs", data=data, trainer=trainer)))
    planned = small.plan().estimates["seqft"]
    small.run()
    steps = column(small.results(small.runs[0]).path / "costs.csv", "steps")
    assert planned.steps == sum(map(int, steps)) > 4
