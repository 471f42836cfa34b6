"""Callbacks: scoring changes nothing, seeds of batches, averaged weights, early stopping, loggers."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.studies import column, learn, same, sgd, study, trainer, weights
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, WeightAveraging
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from strategies import LoRA
from workbench.backbone import Backbone
from workbench.benchmark import Task
from workbench.config import parse
from workbench.errors import ConfigError
from workbench.results import RunFolder
from workbench.runtime.files import read_csv
from workbench.runtime.seeding import derived_seed
from workbench.strategy import ContinualStrategy
from workbench.study import Study
from workbench.testing.tiny import Stopped, StopsAfter, tiny_backbone, tiny_corpus, tiny_tasks
from workbench.train import ContinualDataModule, ContinualModule, ForgettingMonitor, learn_in_sequence, score_task
from workbench.train.callbacks import SeedBatches, combine_callbacks
from workbench.train.checkpoint import Intervals


class Restless(LoRA):
    """Draws from all random generators when it answers."""

    def answer(self, backbone: Backbone, task: Any, prompts: Any) -> list[str]:
        torch.rand(7), np.random.rand(7), random.random()
        return super().answer(backbone, task, prompts)


def learn_with(folder: Path, every_n_steps: int | None, monitored: bool = True) -> dict[str, Tensor]:
    """Train LoRA with dropout on two tasks of six steps, scored at their ends, within them, or not at all."""

    def extra(callbacks: list[Callback]) -> list[Callback]:
        for callback in callbacks:
            if isinstance(callback, ForgettingMonitor):
                callback.every_n_steps = every_n_steps
        return [one for one in callbacks if monitored or not isinstance(one, ForgettingMonitor)]

    return weights(learn(Restless(dropout=0.1), folder, extra=extra, max_epochs=2))


def test_weights_do_not_depend_on_scoring(tmp_path: Path) -> None:
    unseen = learn_with(tmp_path / "unseen", None, monitored=False)
    assert same(learn_with(tmp_path / "ends", None), unseen)
    assert same(learn_with(tmp_path / "within", 2), unseen)
    assert not (tmp_path / "unseen" / "predictions" / "1-task_0.jsonl").exists()
    within = tmp_path / "within" / "within.csv"
    assert column(within, "step") == ["0", "0", "2", "2", "4", "4", "6", "6", "8", "8", "10", "10", "12", "12"]
    assert column(within, "item") == ["task_0"] * 8 + ["task_1"] * 6
    assert column(within, "on") == ["task_0", "task_1"] * 7


def test_dropout_changes_the_weights(tmp_path: Path) -> None:
    dropped = weights(learn(LoRA(dropout=0.1), tmp_path / "dropped"))
    assert not same(dropped, weights(learn(LoRA(dropout=0.0), tmp_path / "whole")))


def test_mode_and_random_state_are_the_same_after_scoring(tmp_path: Path) -> None:
    strategy, backbone = Restless(), tiny_backbone()
    strategy.setup(backbone)
    backbone.eval()
    backbone.decoder.layers[1].train()
    module = ContinualModule(backbone, strategy, sgd)
    modes = [part.training for part in module.modules()]
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    kept = weights(backbone)
    results = RunFolder(tmp_path)
    ForgettingMonitor(ContinualDataModule(tiny_tasks()), results, 1).score(module)
    assert [part.training for part in module.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]
    assert same(weights(backbone), kept)
    assert results.has_row(1)


def test_costs_of_decoding_count_the_rows_own_answers(tmp_path: Path) -> None:
    """Answers within a task belong to no row and are not counted."""
    for name, every_n_steps in (("ends", None), ("within", 2)):
        learn_with(tmp_path / name, every_n_steps)
        backbone, costs = tiny_backbone(), tmp_path / name / "costs.csv"
        assert len(column(costs, "decoded_tokens")) == 2
        for after, decoded in enumerate(column(costs, "decoded_tokens"), start=1):
            files = [tmp_path / name / "predictions" / f"{after}-task_{task}.jsonl" for task in (0, 1)]
            rows = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
            assert len(rows) == 24
            assert int(decoded) == sum(len(backbone.encoder.answer(row["prediction"], 3)[0]) for row in rows)
        for decode, evaluation in zip(column(costs, "decode_seconds"), column(costs, "eval_seconds"), strict=True):
            assert 0 < float(decode) < float(evaluation)


def test_a_monitor_without_a_row_scores_nothing(tmp_path: Path) -> None:
    module = ContinualModule(tiny_backbone(), ContinualStrategy(), sgd)
    ForgettingMonitor(ContinualDataModule(tiny_tasks()), RunFolder(tmp_path / "run"), None).score(module)
    assert not (tmp_path / "run").exists()


class Breaks(ContinualStrategy):
    """Adds a penalty of NaN from the fifth batch on."""

    def __init__(self) -> None:
        super().__init__()
        self.batches = 0

    def penalties(self, backbone: Any, batch: Any, output: Any) -> dict[str, Tensor]:
        self.batches += 1
        return {"pull": torch.tensor(float("nan") if self.batches >= 5 else 0.0)}


def test_a_loss_that_is_not_finite_stops_the_run_with_task_and_step(tmp_path: Path) -> None:
    with pytest.raises(
        FloatingPointError,
        match=r"task_1: the loss is nan, pull nan at step 5 of the sequence, on rows \[1, 6, 9, 10\]",
    ):
        learn(Breaks(), tmp_path)
    assert column(tmp_path / "train.csv", "step") == ["1", "2", "3", "4"]  # what was learnt before is on the disk
    assert not RunFolder(tmp_path).has_row(2)
    assert not RunFolder(tmp_path).finished


class Draws(Callback):
    """Records a number drawn from each generator at the start of each batch."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float, float]] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append((torch.rand(1).item(), float(np.random.rand()), random.random()))


def drawn(folder: Path, strategy: ContinualStrategy) -> list[tuple[float, float, float]]:
    draws = Draws()
    learn(strategy, folder, extra=lambda callbacks: [*callbacks, draws], max_epochs=2)
    return draws.seen


def test_random_numbers_depend_on_the_batchs_position(tmp_path: Path) -> None:
    seen = drawn(tmp_path / "one", ContinualStrategy())
    assert len(seen) == len(set(seen)) == 12  # two tasks, two epochs, three batches
    generator = torch.Generator().manual_seed(derived_seed(0, "batch", 1, 1, 2, 0))
    assert seen[-1][0] == torch.rand(1, generator=generator).item()  # seed 0, task 1, epoch 1, batch 2, process 0
    assert drawn(tmp_path / "two", Restless(dropout=0.3)) == seen


def test_another_seed_or_task_gives_other_random_numbers() -> None:
    class At:
        current_epoch = 0
        global_rank = 0

    values = []
    for seed, position in ((0, 0), (0, 1), (1, 0), (0, 0)):
        SeedBatches(seed, position).on_train_batch_start(At(), None, None, 0)  # type: ignore[arg-type]
        values.append(torch.rand(1).item())
    assert values[0] == values[3]
    assert len(set(values)) == 3


AVERAGES = {"ema": lambda: EMAWeightAveraging(decay=0.5), "mean": WeightAveraging}


class Kept(ContinualStrategy):
    """Records the weights at the start of each step and at the end of each task."""

    def __init__(self) -> None:
        super().__init__()
        self.begins: list[dict[str, Tensor]] = []
        self.ends: list[dict[str, Tensor]] = []

    def edit_gradients(self, backbone: Backbone) -> None:
        self.begins.append(weights(backbone))

    def after_task(self, backbone: Backbone, task: Any, batches: Any) -> None:
        self.ends.append(weights(backbone))


class Raw(Callback):
    """Records the weights after each step, before they are averaged."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.seen.append(weights(module.backbone))


@pytest.mark.parametrize("kind", AVERAGES)
def test_averaged_weights_are_scored_saved_and_trained_further(tmp_path: Path, kind: str) -> None:
    strategy, raw = Kept(), Raw()
    learn(strategy, tmp_path, extra=lambda given: combine_callbacks(given, [raw, AVERAGES[kind]()]), max_epochs=2)
    average = {name: value.double() for name, value in raw.seen[0].items()}
    for count, step in enumerate(raw.seen[1:6], start=2):
        share = 0.5 if kind == "ema" else 1 / count
        average = {name: value + share * (step[name].double() - value) for name, value in average.items()}
    for name, value in average.items():
        assert torch.allclose(strategy.ends[0][name].double(), value, rtol=1e-6, atol=1e-8)
    assert not same(strategy.ends[0], raw.seen[5])
    assert same(strategy.begins[6], strategy.ends[0])  # the next task goes on from what was scored
    saved = Backbone.load(tmp_path / "model")
    assert same(weights(saved), strategy.ends[1])
    task = tiny_tasks()[0]
    told = next(row for row in read_csv(tmp_path / "nll.csv") if (row["after"], row["on"]) == ("2", "task_0"))
    assert score_task(saved, ContinualStrategy(), task).nats_per_token == pytest.approx(float(told["value"]), rel=1e-6)


@pytest.mark.parametrize("kind", AVERAGES)
def test_frozen_weights_stay_bitwise_the_same_under_weight_averaging(tmp_path: Path, kind: str) -> None:
    start = weights(tiny_backbone())
    end = learn(LoRA(rank=2), tmp_path, extra=lambda given: combine_callbacks(given, [AVERAGES[kind]()]), max_epochs=4)
    frozen = {
        name.replace(".base_layer", ""): value for name, value in end.model.state_dict().items() if "lora" not in name
    }
    assert frozen.keys() == start.keys()
    assert same(frozen, start)


@pytest.mark.parametrize("strategy", [ContinualStrategy, lambda: LoRA(rank=2)])
@pytest.mark.parametrize("kind", AVERAGES)
def test_weight_averaging_is_resumed_exactly(tmp_path: Path, kind: str, strategy: Any) -> None:
    def run(folder: str, *stops: int | None) -> dict[str, Tensor]:
        for stop in stops:
            others = [AVERAGES[kind](), StopsAfter(stop)]
            with suppress(Stopped):
                end = learn(
                    strategy(),
                    tmp_path / folder,
                    extra=partial(combine_callbacks, others=others),
                    intervals=Intervals(save_every_n_steps=1),
                    max_epochs=2,
                )
        return weights(end)

    assert same(run("stopped", 2, 2, 4, None), run("whole", None))


class Late(Callback):
    """Changes a weight after scoring."""

    def on_fit_end(self, trainer: Any, module: Any) -> None:
        next(module.parameters()).data.add_(1.0)


def test_changing_weights_after_scoring_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Late changed the weights after they were scored, in .* Use on_train_end"):
        learn(ContinualStrategy(), tmp_path, extra=lambda given: combine_callbacks(given, [Late()]))


def test_scores_within_a_task_are_those_of_the_average(tmp_path: Path) -> None:
    def extra(given: list[Callback]) -> list[Callback]:
        for callback in given:
            if isinstance(callback, ForgettingMonitor):
                callback.every_n_steps = 3
        return combine_callbacks(given, [WeightAveraging()])

    learn(ContinualStrategy(), tmp_path, extra=extra, tasks=[tiny_corpus()], max_epochs=3)
    within = [row["value"] for row in read_csv(tmp_path / "within.csv") if row["step"] == "3"]
    ends = [row["value"] for row in read_csv(tmp_path / "scores.csv") if row["after"] == "1"]
    assert len(within) == 1
    assert within == ends


@pytest.mark.parametrize(
    ("callback", "trainer", "told"),
    [
        ("StochasticWeightAveraging", {}, "trainer.callbacks.0: StochasticWeightAveraging adds an epoch"),
        ("EMAWeightAveraging", {"strategy": "fsdp"}, "EMAWeightAveraging cannot average sharded weights"),
        ("GradientAccumulationScheduler", {"accumulate_grad_batches": 2}, "both say how many batches make a step"),
    ],
)
def test_callbacks_that_do_not_fit_are_refused(make: Any, callback: str, trainer: Any, told: str) -> None:
    arguments = {"StochasticWeightAveraging": {"swa_lrs": 0.1}, "GradientAccumulationScheduler": {"scheduling": {0: 2}}}
    part = {"class_path": f"lightning.pytorch.callbacks.{callback}", "init_args": arguments.get(callback, {})}
    study = make(trainer={"max_epochs": 1, "accelerator": "cpu", **trainer, "callbacks": [part]})
    with pytest.raises(ConfigError, match=told):
        study.plan()


def test_an_accumulation_schedule_can_be_given_in_a_config(make: Any) -> None:
    part = {
        "class_path": "lightning.pytorch.callbacks.GradientAccumulationScheduler",
        "init_args": {"scheduling": {1: 2}},
    }
    small = make(trainer={"max_epochs": 2, "accelerator": "cpu", "callbacks": [part]})
    assert small.plan().estimates["seqft"].steps == 2 * (2 + 1)
    small.run()
    assert column(small.results(small.runs[0]).path / "costs.csv", "steps") == ["3", "3"]


def early(folder: Path, stop_after: int | None) -> tuple[dict[str, Tensor], list[dict[str, str]], list[float]]:
    """Two tasks with a plateau scheduler and early stopping, resumed until the run ends if it is killed.

    Returns:
        The weights, the rows of train.csv, and the rates that each attempt ended with.
    """
    rates: list[float] = []

    def optimizer(_: str, parameters: list[Any], __: Callable[[], int]) -> tuple[Any, Any]:
        made = torch.optim.SGD(parameters, lr=0.1)
        return made, ReduceLROnPlateau(made, factor=0.5, patience=0, threshold=0.02, threshold_mode="abs")

    class Rate(Callback):
        def on_train_end(self, trainer: Trainer, module: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    while True:
        stops = StopsAfter(stop_after)

        def make(_: Task, given: list[Callback], stops: Callback = stops) -> Trainer:
            stopping = EarlyStopping("train/loss", min_delta=0.01, patience=1)
            return trainer(folder, [*given, stopping, Rate(), stops], max_epochs=6)

        module = ContinualModule(tiny_backbone(), ContinualStrategy(), optimizer)
        data = ContinualDataModule(tiny_tasks(), batch_size=4, seed=0)
        with suppress(Stopped):
            results = RunFolder(folder)
            learn_in_sequence(module, data, make, results, intervals=Intervals(save_every_n_steps=1))
            return weights(module.backbone), read_csv(folder / "train.csv"), rates


def test_early_stopping_and_a_plateau_scheduler_are_resumed_bitwise(tmp_path: Path) -> None:
    whole, curve, rates = early(tmp_path / "whole", None)
    assert 2 * 3 < len(curve) < 2 * 6 * 3, "both tasks were stopped early, and after an epoch"
    assert len(rates) == 2
    assert max(rates) < 0.1
    parts, same_curve, same_rates = early(tmp_path / "parts", 2)
    assert same(whole, parts)
    assert same_curve == curve
    assert same_rates == rates


def test_a_plateau_scheduler_gets_the_loss_of_the_curve(tmp_path: Path) -> None:
    """Loss of each optimizer step: the mean over its accumulated batches."""
    heard: list[float] = []

    class Hears(ReduceLROnPlateau):
        def step(self, metrics: Any, epoch: int | None = None) -> None:
            heard.append(float(metrics))
            super().step(metrics, epoch)

    def optimizer(_: str, parameters: list[Any], __: Callable[[], int]) -> tuple[Any, Any]:
        made = torch.optim.SGD(parameters, lr=0.1)
        return made, Hears(made)

    seen: list[float] = []

    class Sees(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            seen.append(float(trainer.callback_metrics.get("train/loss", math.nan)))

    module = ContinualModule(tiny_backbone(), ContinualStrategy(), optimizer)
    learn(
        ContinualStrategy(),
        tmp_path,
        tasks=tiny_tasks(1),
        module=module,
        extra=lambda given: [*given, Sees()],
        max_epochs=2,
        accumulate_grad_batches=2,
    )
    losses = [float(loss) for loss in column(tmp_path / "train.csv", "loss")]
    assert heard == pytest.approx(losses, rel=1e-6)
    assert len(losses) == 4
    assert [seen[batch] for batch in (1, 2, 4, 5)] == pytest.approx(losses, rel=1e-6)


def run_with(logger: Any, model: Path, tasks: Path, output: Path) -> Path:
    """Two tasks of four steps each, every one logged; the run's folder."""
    trainer = {"max_epochs": 2, "accelerator": "cpu", "logger": logger}
    small = Study(parse(study(model, tasks, output, trainer=trainer)))
    small.run()
    return small.results(small.runs[0]).path


def test_tensorboard_has_one_step_axis_over_both_tasks(model_folder: Path, task_folder: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = tmp_path / "board"
    logger = {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": str(board)}}
    run = run_with(logger, model_folder, task_folder, tmp_path / "runs")
    events = accumulator.EventAccumulator(str(next(board.rglob("events.*")).parent))
    events.Reload()
    points = events.Scalars("train/loss")
    assert [point.step for point in points] == list(range(8))
    losses = [float(value) for value in column(run / "train.csv", "loss")]
    assert [point.value for point in points] == pytest.approx(losses, rel=1e-6)


def test_the_csv_logger_has_one_step_axis_over_both_tasks(
    model_folder: Path, task_folder: Path, tmp_path: Path
) -> None:
    place = {"save_dir": str(tmp_path), "name": "log"}
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": place}
    run = run_with(logger, model_folder, task_folder, tmp_path / "runs")
    rows = read_csv(tmp_path / "log" / "seqft-default-seed-0" / "metrics.csv")
    assert [int(row["step"]) for row in rows] == list(range(8))
    losses = [float(value) for value in column(run / "train.csv", "nats_per_token")]
    assert [float(row["train/nats_per_token"]) for row in rows] == pytest.approx(losses, rel=1e-6)


def test_a_logger_gets_the_loss_of_a_step_and_not_of_its_last_batch(
    model_folder: Path, task_folder: Path, tmp_path: Path
) -> None:
    place = {"save_dir": str(tmp_path), "name": "log"}
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": place}
    monitor = {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}
    trainer = {"max_epochs": 2, "accelerator": "cpu", "logger": logger, "accumulate_grad_batches": 2}
    small = Study(
        parse(study(model_folder, task_folder, tmp_path / "runs", trainer=trainer | {"callbacks": [monitor]}))
    )
    small.run()
    rows = read_csv(tmp_path / "log" / "seqft-default-seed-0" / "metrics.csv")
    logged = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    losses = [float(value) for value in column(small.results(small.runs[0]).path / "train.csv", "loss")]
    assert len(losses) == 4
    assert logged == pytest.approx(losses, rel=1e-6)
