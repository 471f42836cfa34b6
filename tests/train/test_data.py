"""Rows to batches: each row once, an order that only seed and epoch decide, little padding."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.optim import SGD

from workbench.benchmark import no_rows
from workbench.strategy import ContinualStrategy
from workbench.testing.tiny import tiny_backbone, tiny_tasks
from workbench.train import ContinualDataModule, ContinualModule
from workbench.train.data import EncodedRows, EpochBatches

LENGTHS = random.Random(7).choices(range(5, 201), k=1003)


def padded(lengths: list[int], batches: list[list[int]]) -> int:
    """Tokens that a pass over the batches computes in vain."""
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


def test_an_order_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    order(0, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_of_similar_length_save_most_of_the_padding() -> None:
    rows = random.Random(0).sample(range(1003), 1003)
    shuffled = [rows[start : start + 8] for start in range(0, 1003, 8)]
    assert padded(LENGTHS, order(0, 0)) < 0.1 * padded(LENGTHS, shuffled)
    assert padded(LENGTHS, order(0, 0, bucket=1)) == pytest.approx(padded(LENGTHS, shuffled), rel=0.1)


def test_one_batch_and_no_row() -> None:
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


def test_encoded_rows_follow_a_choice_of_rows() -> None:
    backbone, task = tiny_backbone(), tiny_tasks()[0]
    chosen = backbone.encode(task.train, task.max_new_tokens).select([5, 0, 7])
    rows = EncodedRows(chosen)
    assert [rows[index]["input_ids"].tolist() for index in range(3)] == chosen["input_ids"][:]
    assert [rows[index]["row"] for index in range(3)] == [5, 0, 7]
    none = EncodedRows(chosen.select([]))
    assert (len(none), none.lengths, none.prompts_cut) == (0, [], 0)


class Seen(Callback):
    """Keeps which rows each epoch's batches held."""

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


def test_lightning_moves_on_to_the_next_epochs_order(tmp_path: Path) -> None:
    epochs = seen_by_a_trainer(tmp_path, seed=0)
    assert list(epochs) == [0, 1, 2]
    for batches in epochs.values():
        assert sorted(row for batch in batches for row in batch) == list(range(40))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert seen_by_a_trainer(tmp_path, seed=0) == epochs
    assert seen_by_a_trainer(tmp_path, seed=1)[0] != epochs[0]


def test_a_strategys_batches_come_in_the_rows_order_as_often_as_wanted() -> None:
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


def test_no_rows_mean_no_batches_and_no_training() -> None:
    backbone, task = tiny_backbone(), tiny_tasks()[0]
    data = ContinualDataModule([task])
    data.begin(backbone, 0, task, no_rows())
    assert list(data.batches()) == []
    assert len(data.batches()) == 0
    assert data.cut_rows() == {"prompts": 0, "answers": 0}
    with pytest.raises(ValueError, match="nothing to train on"):
        data.train_dataloader()
