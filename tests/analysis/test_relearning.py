"""Relearning: how soon a finished run's model learns an earlier domain again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from workbench.analysis import Relearning
from workbench.analysis.relearning import StopAtTarget
from workbench.analysis.runner import FinishedRun
from workbench.report import compare, write_report
from workbench.results import RunFolder
from workbench.runtime.files import digest_of, read_csv
from workbench.strategy import ContinualStrategy
from workbench.testing.tiny import tiny_backbone
from workbench.train import ContinualDataModule, ContinualModule, score_task

Ask = Callable[..., list[str]]


def files(folder: Path) -> dict[str, str]:
    return {str(path): digest_of(path) for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"}


class StubTrainer:
    """A Trainer at a step."""

    def __init__(self) -> None:
        self.global_step, self.should_stop = 0, False


@pytest.mark.parametrize(("target", "steps"), [(0.5, [0, 4, 8, 10]), (0.3, [0, 4, 8]), (0.0, [0])])
def test_steps_are_counted_until_the_score_is_reached(target: float, steps: list[int]) -> None:
    """The toy gains 0.04 a step, so that 0.3 is reached in step 8; two batches make a step."""
    module, trainer = ContinualModule(tiny_backbone(), None, None), StubTrainer()  # type: ignore[arg-type]
    stop = StopAtTarget(lambda _: 0.04 * trainer.global_step, target, every=4, last=10)
    trainer.should_stop = stop.reached(module, 0)
    for batch in range(1, 21):
        if not trainer.should_stop:
            trainer.global_step = batch // 2
            stop.on_train_batch_end(trainer, module, None, None, batch)  # type: ignore[arg-type]
    assert [step for step, _ in stop.curve] == steps


def test_relearning_is_plain_training_until_the_score_is_reached(finished: Path) -> None:
    """A loop by hand over the same batches comes through the same scores; training rows are tested, so that it does."""
    run = FinishedRun(RunFolder(finished / "blocks" / "default" / "seed-0"))
    alpha = replace(run.tasks[0], validation=run.tasks[0].train)
    scored, backbone = replace(alpha, test=alpha.train), run.base()
    data = ContinualDataModule([alpha], batch_size=4, seed=0)
    data.begin(backbone, 0, alpha, alpha.train)
    optimizer = torch.optim.AdamW(backbone.model.parameters(), lr=0.01)
    by_hand = [score_task(backbone, ContinualStrategy(), scored).value]
    batches = data.train_dataloader()
    for epoch in range(10):
        batches.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        for batch in batches:
            optimizer.zero_grad()
            backbone(batch).loss.backward()
            optimizer.step()
            by_hand.append(score_task(backbone, ContinualStrategy(), scored).value)
    target = sorted(by_hand)[-1]
    assert by_hand[0] < target
    relearning = Relearning(every=3, max_steps=20)
    curve = relearning.curve(run, run.base(), alpha, target, lambda _: None)
    expected = [(step, by_hand[step]) for step in (0, 3, 6, 9, 12, 15, 18, 20)]
    reached = next((place for place, (_, score) in enumerate(expected) if score >= target), len(expected))
    assert curve == expected[: reached + 1]
    assert len({score for _, score in curve}) > 1


def test_relearning_stops_where_the_score_is_and_counts_the_same_steps_again(copied: Path, ask: Ask) -> None:
    runs = files(copied / "seqft")
    notes = ask(copied, relearning={"every": 2, "max_steps": 6, "tolerance": 0.0})
    rows = {row["strategy"]: row for row in read_csv(copied / "relearning.csv")}
    assert list(rows) == ["seqft", "blocks", "lora"]
    for row in rows.values():
        assert row["domain"] == "alpha"  # the last domain cannot have been forgotten
        assert row["rows"] == "4"
        assert row["optimizer"] == "torch.optim.AdamW(lr=0.01)"
        assert float(row["target"]) == float(row["learnt"])
        steps, untouched = float(row["steps"]), float(row["steps_untouched"])
        assert math.isnan(steps) or steps in (0, 2, 4, 6)
        assert math.isnan(untouched) or not untouched % 2
        expected = 1 - steps / untouched if untouched else math.nan
        expected = 1.0 if steps == 0 and math.isnan(untouched) else expected
        assert repr(expected) == row["savings"]
    assert files(copied / "seqft") == runs
    write_report(copied, compare([copied]))
    page = (copied / "report.html").read_text(encoding="utf-8")
    assert "by torch.optim.AdamW(lr=0.01) at a constant rate" in page
    assert "on 4 validation rows is the one recorded right after the domain was learnt, minus 0.0;" in page
    again = ask(copied, relearning={"every": 2, "max_steps": 6, "tolerance": 0.0})
    assert len(notes) > 3 == len(again)  # each run is named, and none is trained again
