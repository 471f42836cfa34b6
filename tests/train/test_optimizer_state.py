"""Carried optimizer state, compared with one optimizer in a plain loop, also after a stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.programs import output_of
from helpers.studies import QUIET, same, weights
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from strategies import BlockExpansion, LoRA, PerTaskFT, SeqFT
from workbench.backbone import Backbone
from workbench.errors import ConfigError
from workbench.results import RunFolder
from workbench.strategy import ContinualStrategy
from workbench.testing.tiny import Stopped, StopsAfter, tiny_backbone, tiny_tasks
from workbench.train import ContinualDataModule, ContinualModule, learn_in_sequence
from workbench.train.checkpoint import Intervals, StateFolder
from workbench.train.optimizer_state import Moments

STEPS = 3  # of each of the three tasks


def adam(_: str, parameters: list[Any], __: Callable[[], int]) -> tuple[torch.optim.Optimizer, None]:
    return torch.optim.AdamW(parameters, lr=0.01, betas=(0.9, 0.95)), None


class Watches(Callback):
    """Records the number of steps in each parameter's optimizer state when a task begins."""

    def __init__(self) -> None:
        self.seen: list[dict[str, int]] = []

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        state = trainer.optimizers[0].state
        named = module.backbone.trainable().items()  # type: ignore[union-attr, operator]
        self.seen.append({name: int(state[value]["step"]) if value in state else 0 for name, value in named})


def data() -> ContinualDataModule:
    return ContinualDataModule(tiny_tasks(3), batch_size=4, seed=0)


def learnt(
    strategy: ContinualStrategy, folder: Path, *, carried: bool = True, stop_after: int | None = None
) -> tuple[Backbone, list[dict[str, int]]]:
    """Train on three tasks of three steps each; a run that is stopped saves after each step."""
    watches, stops = Watches(), StopsAfter(stop_after)
    module = ContinualModule(tiny_backbone(), strategy, adam)
    module.carried = Moments() if carried else None

    def make_trainer(_: Any, callbacks: list[Callback]) -> Trainer:
        arguments = {"max_epochs": 1, "accelerator": "cpu", "default_root_dir": folder, **QUIET}
        return Trainer(**arguments, callbacks=[*callbacks, watches, stops])

    intervals = Intervals(save_every_n_steps=1)
    learn_in_sequence(module, data(), make_trainer, RunFolder(folder), intervals=intervals)
    return module.backbone, watches.seen


def in_parts(make: Callable[[], ContinualStrategy], folder: Path, stops: list[int]) -> Backbone:
    """The same run, stopped after each of these numbers of batches in turn."""
    for batches in stops:
        with pytest.raises(Stopped):
            learnt(make(), folder, stop_after=batches)
    return learnt(make(), folder)[0]


def counts(folder: Path) -> dict[str, dict[str, int]]:
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    return dict(environment["carried_optimizer_state"])


def test_the_weights_are_those_of_one_optimizer_in_a_bare_loop(tmp_path: Path) -> None:
    bare, rows = tiny_backbone(), data()
    optimizer = torch.optim.AdamW(bare.parameters(), lr=0.01, betas=(0.9, 0.95))
    for position, task in enumerate(rows.tasks):
        rows.begin(bare, position, task, task.train)
        for batch in rows.train_dataloader():
            optimizer.zero_grad()
            bare(batch).loss.backward()
            optimizer.step()
    carried, seen = learnt(SeqFT(), tmp_path / "carried")
    assert same(weights(carried), weights(bare))
    assert [set(steps.values()) for steps in seen] == [{0}, {STEPS}, {2 * STEPS}]
    anew, seen = learnt(SeqFT(), tmp_path / "anew", carried=False)
    assert [set(steps.values()) for steps in seen] == [{0}] * 3
    assert not same(weights(anew), weights(bare))


@pytest.mark.parametrize("stops", [[4], [3], [6, 2], [1, 2, 3]])
@pytest.mark.parametrize("make", [SeqFT, lambda: BlockExpansion(groups=2, each_task=True)])
def test_a_stopped_run_with_carried_state_ends_as_an_uninterrupted_one(
    make: Any, stops: list[int], tmp_path: Path
) -> None:
    """Stops within the second task, between two tasks (a begun batch is lost), and several times."""
    alone = learnt(make(), tmp_path / "alone")[0]
    assert same(weights(in_parts(make, tmp_path / "stopped", stops)), weights(alone))
    assert counts(tmp_path / "stopped") == counts(tmp_path / "alone")


class Gated(SeqFT):
    """Scales the last block's output by a parameter of its own, which trains."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.ones(()))

    def setup(self, backbone: Any) -> None:
        backbone.decoder.layers[-1].register_forward_hook(lambda _, given, made: made * self.gate)


def test_a_strategy_s_own_parameter_keeps_its_moments_too(tmp_path: Path) -> None:
    alone = learnt(Gated(), tmp_path / "alone")[0]
    stopped = in_parts(Gated, tmp_path / "stopped", [3, 2])  # between two tasks, and in the middle of one
    assert same(weights(stopped), weights(alone))
    parameters = len(list(alone.model.parameters()))
    assert counts(tmp_path / "alone")["task_1"] == {"kept": parameters + 1, "begun": 0, "dropped": 0}
    assert counts(tmp_path / "stopped") == counts(tmp_path / "alone")


class Fails(SeqFT):
    """Stops the run in `after_task` of the second task."""

    def after_task(self, backbone: Any, task: Any, batches: Any) -> None:
        if task.name == "task_1":
            raise Stopped


def test_a_run_that_stops_after_training_a_task_keeps_its_moments(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        learnt(Fails(), tmp_path / "stopped")
    saved = StateFolder(tmp_path / "stopped" / "checkpoint").latest()
    assert saved is not None
    assert saved.stamp.stage == "trained"
    assert {int(state["step"]) for state in saved.moments.values()} == {2 * STEPS}
    assert saved.moments.keys() == {f"backbone.model.{name}" for name in tiny_backbone().trainable()}
    again = learnt(SeqFT(), tmp_path / "stopped")[0]
    assert same(weights(again), weights(learnt(SeqFT(), tmp_path / "alone")[0]))


def test_a_parameter_keeps_its_state_where_it_moves_and_a_new_one_has_none(tmp_path: Path) -> None:
    """Each task inserts two blocks, so that the previous ones change their names."""
    _, seen = learnt(BlockExpansion(groups=2, each_task=True), tmp_path)
    first, second = ({name.split(".")[2] for name in steps} for steps in seen[:2])
    assert len(first) == 2
    assert first != second
    for item, steps in enumerate(seen):
        old = sum(count > 0 for count in steps.values())
        told = counts(tmp_path)[f"task_{item}"]
        assert (told["kept"], told["begun"]) == (old, len(steps) - old)


@pytest.mark.parametrize("make", [lambda: LoRA(rank=2, policy="merge"), PerTaskFT])
def test_a_parameter_that_replaces_another_starts_without_its_state(make: Any, tmp_path: Path) -> None:
    """A new adapter, or the model as loaded, has the old parameters' names but not their moments."""
    _, seen = learnt(make(), tmp_path)
    assert len({frozenset(steps) for steps in seen}) == 1
    assert [set(steps.values()) for steps in seen] == [{0}] * 3
    told = counts(tmp_path)["task_2"]
    assert told == {"kept": 0, "begun": len(seen[0]), "dropped": len(seen[0])}


class Alternates(SeqFT):
    """Trains only the head in the second task, and everything else in the others."""

    def before_task(self, backbone: Any, task: Any, batches: Any) -> None:
        for name, parameter in backbone.model.named_parameters():
            parameter.requires_grad = (task.name == "task_1") == name.startswith("lm_head")


def test_a_parameter_that_skips_a_task_starts_without_state(tmp_path: Path) -> None:
    _, seen = learnt(Alternates(), tmp_path)
    assert [set(steps.values()) for steps in seen] == [{0}] * 3
    assert counts(tmp_path)["task_1"] == {"kept": 0, "begun": 1, "dropped": len(seen[0])}


def test_moments_of_another_structure_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        learnt(SeqFT(), tmp_path, stop_after=STEPS)
    states = StateFolder(tmp_path / "checkpoint")
    (file,) = states.path.iterdir()
    content = torch.load(file, weights_only=True)
    content["moments"]["backbone.model.model.layers.9.weight"] = next(iter(content["moments"].values()))
    states.publish(lambda place: torch.save(content, place))
    with pytest.raises(ConfigError, match=r"backbone\.model\.model\.layers\.9\.weight does not fit the model"):
        learnt(SeqFT(), tmp_path)


@pytest.mark.slow  # half a minute; test_killing.py kills a study in each run of the tests
def test_a_killed_study_with_carried_state_ends_as_one_that_is_not() -> None:
    assert output_of("killing.py", "carried").count(", equal\n") == 3
