"""Encoded rows and batches: each row once per epoch, an order that depends on seed and epoch alone, little padding."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.programs import on_ranks
from helpers.studies import column, study
from lightning.pytorch import Callback, Trainer
from torch.optim import SGD

from workbench.benchmark import no_rows
from workbench.config import parse
from workbench.strategy import ContinualStrategy
from workbench.study import Study
from workbench.testing.tiny import tiny_backbone, tiny_tasks
from workbench.train import ContinualDataModule, ContinualModule
from workbench.train.data import EncodedRows, EpochBatches, cut, halved

LENGTHS = random.Random(7).choices(range(5, 201), k=1003)


def padded(lengths: list[int], batches: list[list[int]]) -> int:
    """Padding in a pass over the batches, in tokens."""
    return sum(
        len(batch) * max(lengths[row] for row in batch) - sum(lengths[row] for row in batch) for batch in batches
    )


def order(seed: int, epoch: int, bucket: int = 16) -> list[list[int]]:
    batches = EpochBatches(LENGTHS, 8, seed, bucket)
    batches.set_epoch(epoch)
    return list(batches)


@pytest.mark.parametrize("bucket", [1, 16, 1000])
def test_an_epoch_has_each_row_once(bucket: int) -> None:
    for epoch in range(3):
        batches = order(0, epoch, bucket)
        assert sorted(row for batch in batches for row in batch) == list(range(1003))
        assert sorted(map(len, batches)) == [3] + [8] * 125
    assert len(EpochBatches(LENGTHS, 8, 0)) == 126


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    batches = EpochBatches(LENGTHS, 8, 3, 16)
    torch.manual_seed(1)
    first = list(batches)
    torch.manual_seed(2)
    random.seed(2)
    assert list(batches) == first == order(3, 0)
    batches.set_epoch(1)
    assert list(batches) == order(3, 1) != first
    assert order(4, 0) != first
    batches.set_epoch(0)
    assert list(batches) == first


def test_the_order_does_not_use_the_global_random_state() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    order(0, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_of_similar_length_save_most_of_the_padding() -> None:
    rows = random.Random(0).sample(range(1003), 1003)
    shuffled = [rows[start : start + 8] for start in range(0, 1003, 8)]
    assert padded(LENGTHS, order(0, 0)) < 0.1 * padded(LENGTHS, shuffled)
    assert padded(LENGTHS, order(0, 0, bucket=1)) == pytest.approx(padded(LENGTHS, shuffled), rel=0.1)


def test_a_single_batch_and_no_rows() -> None:
    assert sorted(next(iter(EpochBatches([3, 1, 2], 8, 0)))) == [0, 1, 2]
    assert list(EpochBatches([], 8, 0)) == []


def test_encoded_rows_are_the_encoded_dataset() -> None:
    backbone, task = tiny_backbone(), tiny_tasks()[0]
    encoded = backbone.encode(task.train, task.max_new_tokens)
    rows = EncodedRows(encoded)
    assert len(rows) == len(encoded) == 12
    for index, expected in enumerate(encoded):
        found = rows[index]
        assert found["input_ids"].tolist() == expected["input_ids"]
        assert (found["prompt_length"], found["row"]) == (expected["prompt_length"], expected["row"])
    assert rows.lengths == [len(row) for row in encoded["input_ids"]]


def test_encoded_rows_of_a_selection() -> None:
    backbone, task = tiny_backbone(), tiny_tasks()[0]
    chosen = backbone.encode(task.train, task.max_new_tokens).select([5, 0, 7])
    rows = EncodedRows(chosen)
    assert [rows[index]["input_ids"].tolist() for index in range(3)] == chosen["input_ids"][:]
    assert [rows[index]["row"] for index in range(3)] == [5, 0, 7]
    none = EncodedRows(chosen.select([]))
    assert (len(none), none.lengths, none.prompts_cut) == (0, [], 0)


class Seen(Callback):
    """Records the rows of each epoch's batches."""

    def __init__(self) -> None:
        self.epochs: dict[int, list[list[int]]] = {}

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self.epochs.setdefault(trainer.current_epoch, []).append(batch.row.tolist())


def seen_by_a_trainer(tmp_path: Path, seed: int) -> dict[int, list[list[int]]]:
    backbone, seen = tiny_backbone(), Seen()
    task = tiny_tasks(1, rows=40)[0]
    data = ContinualDataModule([task], batch_size=4, seed=seed)
    data.begin(backbone, 0, task, task.train)
    module = ContinualModule(backbone, ContinualStrategy(), lambda _, parameters, __: (SGD(parameters, lr=0.0), None))
    module.begin(task.name, 0)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=[seen],
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **quiet,
    )
    trainer.fit(module, datamodule=data)
    return seen.epochs


def test_lightning_uses_another_order_in_each_epoch(tmp_path: Path) -> None:
    epochs = seen_by_a_trainer(tmp_path, seed=0)
    assert list(epochs) == [0, 1, 2]
    for batches in epochs.values():
        assert sorted(row for batch in batches for row in batch) == list(range(40))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert seen_by_a_trainer(tmp_path, seed=0) == epochs
    assert seen_by_a_trainer(tmp_path, seed=1)[0] != epochs[0]


def test_batches_for_a_strategy_are_in_order_and_repeatable() -> None:
    backbone, task = tiny_backbone(), tiny_tasks()[0]
    data = ContinualDataModule([task], batch_size=5)
    data.begin(backbone, 0, task, task.train)
    batches = data.batches()
    passes = [[batch.row.tolist() for batch in batches] for _ in range(2)]
    assert passes[0] == passes[1] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    assert len(batches) == 3
    first = next(iter(batches))
    expected = backbone.collate(backbone.encode(task.train, task.max_new_tokens).to_list()[:5])
    assert torch.equal(first.input_ids, expected.input_ids)
    assert torch.equal(first.labels, expected.labels)


def test_without_rows_there_are_no_batches_and_no_training() -> None:
    backbone, task = tiny_backbone(), tiny_tasks()[0]
    data = ContinualDataModule([task])
    data.begin(backbone, 0, task, no_rows())
    assert list(data.batches()) == []
    assert len(data.batches()) == 0
    assert data.cut_rows() == {"prompts": 0, "answers": 0}
    with pytest.raises(ValueError, match="nothing to train on"):
        data.train_dataloader()


DRAWN = random.Random(3)
PROMPT_LENGTHS = [min(1024, max(8, int(DRAWN.lognormvariate(5.2, 0.8)))) for _ in range(1500)]  # like TRACE's prompts
UNEVEN = DRAWN.choices(range(10, 100), k=60)
BUDGET = 4096


def epoch_of(number: int, seed: int = 0, **changes: Any) -> list[list[int]]:
    batches = EpochBatches(**{"lengths": PROMPT_LENGTHS, "batch_size": 64, "seed": seed, "tokens": BUDGET, **changes})
    batches.set_epoch(number)
    found = list(batches)
    assert len(found) == len(batches)
    return found


def size(batch: Sequence[int], lengths: Sequence[int] = PROMPT_LENGTHS) -> int:
    """Tokens of a batch, including padding."""
    return len(batch) * max(lengths[row] for row in batch)


def padding(batches: Sequence[Sequence[int]], lengths: Sequence[int] = PROMPT_LENGTHS) -> float:
    return 1 - sum(lengths) / sum(size(batch, lengths) for batch in batches)


def test_fifty_epochs_have_each_row_once_in_as_many_batches_within_the_budget() -> None:
    epochs = [epoch_of(number) for number in range(50)]
    for batches in epochs:
        assert sorted(row for batch in batches for row in batch) == list(range(len(PROMPT_LENGTHS)))
        assert max(size(batch) for batch in batches) <= BUDGET
        assert max(map(len, batches)) <= 64
    assert len({len(batches) for batches in epochs}) == 1
    assert len({tuple(map(tuple, batches)) for batches in epochs}) == 50


def test_with_a_budget_the_order_depends_on_seed_and_epoch_alone() -> None:
    assert epoch_of(3, seed=1) == epoch_of(3, seed=1) != epoch_of(3, seed=2)
    moved = EpochBatches(PROMPT_LENGTHS, 64, 1, tokens=BUDGET)
    moved.set_epoch(7)
    list(moved)
    moved.set_epoch(3)
    assert list(moved) == epoch_of(3, seed=1)


def test_a_resumed_epoch_continues_the_uninterrupted_one() -> None:
    resumed = EpochBatches(PROMPT_LENGTHS, 64, 0, tokens=BUDGET)
    resumed.epoch, resumed.start = 2, 11
    assert list(resumed) == epoch_of(2)[11:]
    assert len(resumed) == len(epoch_of(2))
    resumed.set_epoch(3)
    assert list(resumed) == epoch_of(3)


def test_a_row_above_the_budget_is_a_batch_of_its_own() -> None:
    batches = epoch_of(1, lengths=[50, 4, 4, 4, 60, 4], tokens=16)
    assert sorted(map(len, batches)) == [1, 1, 2, 2]  # four short rows fit, and 2 % more batches than three are four
    assert {batch[0] for batch in batches if len(batch) == 1} == {0, 4}


def test_batches_computed_by_hand() -> None:
    """[1, 2] takes 4 of 8 tokens, with a row of 3 it would be 9; [3, 4] takes 8 and is halved to give 3 batches."""
    assert list(cut([0, 1, 2, 3], [1, 2, 3, 4], 9, 8)) == [[0, 1], [2, 3]]
    assert list(cut([3, 2, 1, 0], [1, 2, 3, 4], 9, 8)) == [[3, 2], [1, 0]]
    assert list(cut([0, 1, 2, 3], [1, 2, 3, 4], 1, 8)) == [[0], [1], [2], [3]]
    assert list(cut([0, 1, 2], [1, 1, 1], 2, None)) == [[0, 1], [2]]
    batches = epoch_of(0, lengths=[1, 2, 3, 4], tokens=8)
    assert sorted(batches) == [[0, 1], [2], [3]]
    assert padding(batches, [1, 2, 3, 4]) == pytest.approx(1 / 11)
    assert sorted(halved([[0, 1], [2, 3]], [1, 2, 3, 4], 4)) == [[0], [1], [2], [3]]


def test_with_a_budget_little_is_padding() -> None:
    plain = padding(epoch_of(0, batch_size=16, tokens=None))
    assert plain > 0.6
    assert max(padding(epoch_of(number)) for number in range(5)) < 0.05


def fewest(order: Sequence[int], window: int, lengths: Sequence[int], most: int, tokens: int) -> int:
    """The minimum number of batches for the windows of an order, by dynamic programming over the last cut."""
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


def test_an_epoch_that_needs_more_batches_gets_the_smallest_larger_budget() -> None:
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


def test_batches_for_a_strategy_keep_the_budget_and_the_order_of_rows() -> None:
    backbone, task = tiny_backbone(), tiny_tasks()[0]
    data = ContinualDataModule([task], batch_size=5)
    data.batch_tokens = 3 * max(len(row) for row in backbone.encode(task.train, task.max_new_tokens)["input_ids"])
    data.begin(backbone, 0, task, task.train)
    found = [batch for batch in data.batches()]
    assert [row for batch in found for row in batch.row.tolist()] == list(range(12))
    assert all(batch.input_ids.numel() <= data.batch_tokens for batch in found)
    assert len(found) == len(data.batches()) <= 4


def test_the_plan_counts_the_steps_that_are_executed(tmp_path: Path, model_folder: Path, task_folder: Path) -> None:
    """Two tasks of 8 rows, all of which the plan reads."""
    data = {"batch_size": 8, "batch_tokens": 40, "max_length": 64}
    trainer = {"max_epochs": 2, "accumulate_grad_batches": 2, "accelerator": "cpu"}
    small = Study(parse(study(model_folder, task_folder, tmp_path / "runs", data=data, trainer=trainer)))
    planned = small.plan().estimates["seqft"]
    small.run()
    steps = column(small.results(small.runs[0]).path / "costs.csv", "steps")
    assert planned.steps == sum(map(int, steps)) > 4
