"""Shares, sums and barriers of several processes, and a study in two of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.programs import on_ranks, output_of
from helpers.studies import sgd, trainer
from torch import distributed

from workbench.backbone.batch import IGNORED, collate
from workbench.runtime.distributed import barrier, broadcast, first_rank_first, gathered, is_first, rank, share, total
from workbench.strategy import ContinualStrategy
from workbench.testing.tiny import tiny_backbone, tiny_tasks
from workbench.train import ContinualModule, score_task
from workbench.train.data import EpochBatches

CPU = torch.device("cpu")


def shares_and_sums(folder: Path) -> dict[str, Any]:
    own = list(share(8))
    with first_rank_first():
        if is_first():
            (folder / "written").write_text("by the first")
        seen = (folder / "written").read_text()
    barrier()
    return {
        "own": own,
        "gathered": gathered([f"row {row}" for row in own]),
        "ragged": gathered([f"row {row}" for row in share(2)]),
        "total": total(torch.tensor([float(rank()), 1.0])).tolist(),
        "broadcast": broadcast(is_first(), CPU),
        "seen": seen,
    }


def test_rows_are_shared_and_come_together_in_their_order(tmp_path: Path) -> None:
    results = on_ranks(shares_and_sums, tmp_path)
    assert [result.pop("own") for result in results] == [[0, 3, 6], [1, 4, 7], [2, 5]]
    expected = {"gathered": [f"row {row}" for row in range(8)], "ragged": ["row 0", "row 1"]}
    assert all(
        result == {**expected, "total": [3.0, 3.0], "broadcast": True, "seen": "by the first"} for result in results
    )


def test_a_single_process_has_the_whole_share() -> None:
    assert (list(share(3)), gathered([1, 2]), broadcast(False, CPU), is_first()) == ([0, 1, 2], [1, 2], False, True)
    assert total(torch.tensor([2.0])).item() == 2.0


def batches_of_each(_: Path) -> list[list[int]]:
    return list(EpochBatches([5] * 7, batch_size=4, seed=1))


def test_each_batch_is_cut_without_losing_or_doubling_a_row(tmp_path: Path) -> None:
    whole = batches_of_each(tmp_path)
    parts = on_ranks(batches_of_each, tmp_path, 4)
    assert sorted(row for batch in whole for row in batch) == list(range(7))
    for number, batch in enumerate(whole):
        assert sorted(row for part in parts for row in part[number]) == sorted(batch)
    assert any(part[number] == [] for part in parts for number in range(2))  # three rows for four processes


def test_a_process_without_rows_gets_a_token_without_a_label() -> None:
    batch = collate([], pad_id=5)
    assert batch.input_ids.tolist() == [[5]]
    assert batch.labels.tolist() == [[IGNORED]]
    assert batch.row.tolist() == [-1]


class Shrinking(ContinualStrategy):
    """Adds the mean square of a weight, which is the same in every process."""

    def penalties(self, backbone: Any, batch: Any, output: Any) -> dict[str, torch.Tensor]:
        return {"size": backbone.model.lm_head.weight.square().mean()}


def gradients(folder: Path) -> dict[str, Any]:
    """Gradients of one batch of seven rows, averaged over the processes as in DDP."""
    module = ContinualModule(tiny_backbone(), Shrinking(), sgd)
    module.trainer = trainer(folder, [])
    task = tiny_tasks()[0]
    rows = module.backbone.encode(task.train.select(range(7)), task.max_new_tokens).to_list()
    answer = module.training_step(module.backbone.collate([rows[row] for row in share(7)]), 0)
    answer["loss"].backward()
    count = distributed.get_world_size() if distributed.is_initialized() else 1
    found = {name: value.grad / count for name, value in module.backbone.model.named_parameters()}
    if count > 1:
        for value in found.values():
            distributed.all_reduce(value)
    parts = {name: value.detach() for name, value in answer.items() if name != "loss"}
    return {"parts": parts, "tokens": int(module.tokens), "gradients": found}


@pytest.mark.parametrize("count", [2, 8])
def test_the_loss_is_a_mean_over_the_tokens_of_all(tmp_path: Path, count: int) -> None:
    alone = gradients(tmp_path)
    for result in on_ranks(gradients, tmp_path, count):  # of eight processes one has no row
        assert result["tokens"] == alone["tokens"]
        for part in ("parts", "gradients"):
            torch.testing.assert_close(result[part], alone[part], rtol=1e-5, atol=1e-6)


def scores(_: Path) -> list[Any]:
    task = tiny_tasks()[0]
    score = score_task(tiny_backbone(), ContinualStrategy(), task)
    return [score.predictions, score.metrics, score.nats_per_token, score.tokens, score.count]


def test_scores_of_shares_are_those_of_the_whole(tmp_path: Path) -> None:
    whole = scores(tmp_path)
    for result in on_ranks(scores, tmp_path):
        assert result[:2] == whole[:2]
        assert result[2:] == pytest.approx(whole[2:], rel=1e-6)


@pytest.mark.slow
def test_two_killed_processes_end_as_uninterrupted_ones() -> None:
    assert "0 trials went wrong" in output_of("ranks.py", "short")


@pytest.mark.slow
def test_all_ways_to_stop_two_processes() -> None:
    print(output_of("ranks.py", "whole"))
