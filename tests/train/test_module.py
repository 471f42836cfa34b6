"""Loss of an optimizer step however its rows are divided; a strategy's own parameters; precision."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers.programs import on_ranks
from helpers.studies import ROOT, learn, sgd, study, trainer, weights, write_tasks
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor, distributed, nn

from strategies import LoRA
from workbench.backbone import Backbone, Batch, Output
from workbench.benchmark import Task
from workbench.results import RunFolder
from workbench.runtime.files import read_csv
from workbench.scorers import ExactMatch
from workbench.strategy import Composition, ContinualStrategy
from workbench.testing.tiny import Stopped, StopsAfter, tiny_backbone, tiny_run, tiny_tasks
from workbench.train import ContinualDataModule, ContinualModule, learn_in_sequence, score_task
from workbench.train.callbacks import combine_callbacks
from workbench.train.checkpoint import Intervals
from workbench.train.module import optimizer_steps


def ragged(rows: int) -> Task:
    """A task whose answers have one to nine letters."""
    answers = ["abcdefghi"[: 1 + 4 * index % 9] for index in range(rows)]
    data = Dataset.from_dict({"prompt": [f"{index}: " for index in range(rows)], "answer": answers})
    return Task("ragged", test=data.select([0]), train=data, scorers={"accuracy": ExactMatch()}, max_new_tokens=12)


class Seen(ContinualStrategy):
    """Pulls all weights towards zero, and records the batches and the gradients of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[list[Batch]] = [[]]
        self.before: list[dict[str, Tensor]] = []
        self.gradients: list[dict[str, Tensor]] = []

    def penalties(self, backbone: Backbone, batch: Batch, output: Output) -> dict[str, Tensor]:
        self.steps[-1].append(batch)
        return {"pull": pull(backbone)}

    def edit_gradients(self, backbone: Backbone) -> None:
        self.before.append(weights(backbone))
        self.gradients.append({name: value.grad.clone() for name, value in backbone.trainable().items()})
        self.steps.append([])


def pull(backbone: Backbone) -> Tensor:
    return 0.01 * torch.stack([value.square().sum() for value in backbone.trainable().values()]).sum()


def run(
    folder: Path,
    rows: int,
    batch_size: int,
    make: Callable[..., Any] = torch.optim.SGD,
    callbacks: Callable[[], list[Any]] = list,
    **arguments: Any,
) -> tuple[Seen, Backbone]:
    strategy, backbone = Seen(), tiny_backbone()
    module = ContinualModule(backbone, strategy, lambda _, parameters, __: (make(parameters, lr=0.1), None))
    data = ContinualDataModule([ragged(rows)], batch_size=batch_size, seed=0)

    def make_trainer(_: Task, given: list[Callback]) -> Trainer:
        return trainer(folder, combine_callbacks(given, callbacks()), **arguments)

    learn_in_sequence(module, data, make_trainer, RunFolder(folder))
    return strategy, backbone


def by_hand(backbone: Backbone, before: dict[str, Tensor], batches: Iterable[Batch]) -> dict[str, Tensor]:
    """The gradient of the mean over all labelled tokens of some batches, plus the penalty once."""
    backbone.model.load_state_dict(before)
    backbone.model.zero_grad()
    outputs = [backbone(batch) for batch in batches]
    nats = torch.stack([output.loss_sum for output in outputs]).sum() / sum(output.count for output in outputs)
    (nats + pull(backbone)).backward()
    return {name: value.grad.clone() for name, value in backbone.trainable().items()}


def assert_steps(strategy: Seen, sizes: list[int]) -> None:
    backbone = tiny_backbone().to(next(iter(strategy.before[0].values())).dtype)
    assert [len(step) for step in strategy.steps[:-1]] == sizes
    for before, found, batches in zip(strategy.before, strategy.gradients, strategy.steps, strict=False):
        right = by_hand(backbone, before, batches)
        largest = max(value.abs().max() for value in right.values())
        assert max((found[name] - right[name]).abs().max() for name in right) <= 1e-6 * largest


@pytest.mark.parametrize(
    ("rows", "batch_size", "accumulated", "sizes"),
    [(8, 4, 2, [2]), (8, 1, 8, [8]), (12, 4, 2, [2, 1]), (4, 4, 16, [1]), (7, 2, 3, [3, 1])],
)
def test_a_step_is_the_mean_over_all_its_labelled_tokens(
    tmp_path: Path, rows: int, batch_size: int, accumulated: int, sizes: list[int]
) -> None:
    strategy, _ = run(tmp_path, rows, batch_size, accumulate_grad_batches=accumulated)
    assert_steps(strategy, sizes)


def test_with_an_accumulation_schedule_a_step_is_the_same_mean(tmp_path: Path) -> None:
    strategy, _ = run(tmp_path, 12, 2, callbacks=lambda: [GradientAccumulationScheduler({0: 2, 1: 4})], max_epochs=3)
    assert_steps(strategy, [2, 2, 2, 4, 2, 4, 2])
    assert len(read_csv(tmp_path / "train.csv")) == 7


def test_an_accumulation_schedule_is_resumed_exactly(tmp_path: Path) -> None:
    def end(folder: str, *stops: int | None) -> dict[str, Tensor]:
        for stop in stops:
            backbone, strategy = tiny_backbone(), ContinualStrategy()
            module = ContinualModule(backbone, strategy, sgd)
            data = ContinualDataModule([ragged(24)], batch_size=2, seed=0)
            others = [GradientAccumulationScheduler({0: 2, 1: 4}), StopsAfter(stop)]
            make = partial(trainer, tmp_path / folder, max_epochs=3)
            results, intervals = RunFolder(tmp_path / folder), Intervals(save_every_n_steps=1)
            with suppress(Stopped):
                learn_in_sequence(
                    module,
                    data,
                    lambda _, given, make=make, others=others: make(combine_callbacks(given, others)),
                    results,
                    intervals=intervals,
                )
        return weights(backbone)

    whole = end("whole", None)
    again = end("stopped", 18, 6, None)  # twice within an epoch whose steps are of four batches
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert len(read_csv(tmp_path / "stopped" / "train.csv")) == 6 + 3 + 3


def test_the_curve_of_a_ragged_step_is_its_mean_over_tokens(tmp_path: Path) -> None:
    strategy, _ = run(tmp_path, 8, 2, accumulate_grad_batches=4)
    backbone = tiny_backbone()
    backbone.model.load_state_dict(strategy.before[0])
    outputs = [backbone(batch) for batch in strategy.steps[0]]
    right = sum(float(output.loss_sum.detach()) for output in outputs) / sum(output.count for output in outputs)
    (row,) = read_csv(tmp_path / "train.csv")
    assert float(row["nats_per_token"]) == pytest.approx(right, rel=1e-6)
    assert float(row["pull"]) == pytest.approx(float(pull(backbone).detach()), rel=1e-6)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_eight_rows_are_the_same_step_in_any_division(tmp_path: Path, make: Any) -> None:
    start = weights(tiny_backbone())
    ends = {
        size: weights(
            run(tmp_path / str(size), 8, size, make, accumulate_grad_batches=8 // size, precision="64-true")[1]
        )
        for size in (8, 4, 1)
    }
    step = max((ends[8][name] - start[name]).abs().max() for name in start)
    for size in (4, 1):
        assert max((ends[8][name] - ends[size][name]).abs().max() for name in start) <= 1e-6 * step


def gradients_of_steps(folder: Path) -> list[dict[str, Tensor]]:
    """The gradient of each step of an epoch: seven ragged rows in batches of three, two batches a step."""
    backbone, task = tiny_backbone(), ragged(7)
    module = ContinualModule(backbone, Seen(), sgd)
    data = ContinualDataModule([task], batch_size=3, seed=0)
    data.begin(backbone, 0, task, task.train)
    module.trainer = trainer(folder, [], accumulate_grad_batches=2)
    module.trainer.datamodule, module.trainer.fit_loop.max_batches = data, 3  # type: ignore[attr-defined]
    found, count = [], distributed.get_world_size() if distributed.is_initialized() else 1
    for index, batch in enumerate(data.train_dataloader()):
        (module.training_step(batch, index)["loss"] / 2).backward()  # as Lightning divides it
        if index in (1, 2):
            found.append({name: value.grad.clone() / count for name, value in backbone.trainable().items()})
            backbone.model.zero_grad()
    if count > 1:
        for value in [value for step in found for value in step.values()]:
            distributed.all_reduce(value)
    return found


def test_two_processes_execute_the_steps_of_one(tmp_path: Path) -> None:
    alone = gradients_of_steps(tmp_path)
    assert len(alone) == 2
    for steps in on_ranks(gradients_of_steps, tmp_path, 2):
        for one, other in zip(alone, steps, strict=True):
            largest = max(value.abs().max() for value in one.values())
            assert max((one[name] - other[name]).abs().max() for name in one) <= 1e-6 * largest


@pytest.mark.slow
def test_a_study_in_two_processes_ends_as_in_one(tmp_path: Path) -> None:
    tiny_backbone(num_hidden_layers=2).save(tmp_path / "model")
    tasks = write_tasks(tmp_path / "tasks", ["alpha"])
    rows = [{"prompt": row["prompt"], "answer": row["answer"]} for row in ragged(7).train]
    (tasks / "alpha" / "train.json").write_text(json.dumps(rows), encoding="utf-8")
    raw = study(tmp_path / "model", tasks, tmp_path / "runs")
    raw["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
    raw["benchmark"]["init_args"]["max_new_tokens"] = 12
    raw["data"] |= {"batch_size": 2}
    raw["trainer"] |= {"accumulate_grad_batches": 2, "max_epochs": 2}
    OmegaConf.save(OmegaConf.create(raw), tmp_path / "two.yaml")
    ends = []
    for devices in (1, 2):
        changes = [f"trainer.devices={devices}", f"name=on_{devices}"]
        command = [sys.executable, "-m", "workbench", "run", str(tmp_path / "two.yaml"), *changes]
        paths = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, env=paths, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
        ends.append(load_file(tmp_path / f"runs/on_{devices}/seqft/default/seed-0/model/model.safetensors"))
    start = load_file(tmp_path / "model/model.safetensors")
    step = max((ends[0][name] - start[name]).abs().max() for name in start)
    assert step > 0.01
    assert max((ends[0][name] - ends[1][name]).abs().max() for name in start) <= 2e-6 * step


def test_the_steps_of_an_accumulation_schedule_are_counted(tmp_path: Path) -> None:
    counted: list[float] = []

    class Counts(GradientAccumulationScheduler):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            super().on_train_start(trainer, module)
            counted.append(optimizer_steps(trainer))

    strategy, _ = run(tmp_path, 12, 2, callbacks=lambda: [Counts({0: 2, 1: 4})], max_epochs=3)
    assert counted == [7] == [len(strategy.gradients)]


class Gate(ContinualStrategy):
    """Scales the last block's output by a learnt number."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.ones(()))

    def setup(self, backbone: Backbone) -> None:
        backbone.decoder.layers[-1].register_forward_hook(lambda _, given, made: made * self.gate)  # type: ignore[union-attr, operator, index]


class Prompt(ContinualStrategy):
    """Adds a learnt vector to the embedding of every token; nothing else trains."""

    def setup(self, backbone: Backbone) -> None:
        backbone.freeze()
        embeddings = backbone.model.get_input_embeddings()
        self.vector = nn.Parameter(torch.zeros(embeddings.weight.shape[1]))
        embeddings.register_forward_hook(lambda _, given, made: made + self.vector)


class Head(ContinualStrategy):
    """Predicts a target's parity from the state before it, with a head for each task."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList()

    def before_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        for head in self.heads:
            head.requires_grad_(False)
        width = backbone.model.config.hidden_size
        self.heads.append(nn.Linear(width, 2).to(backbone.device))

    def penalties(self, backbone: Backbone, batch: Batch, output: Output) -> dict[str, Tensor]:
        logits = self.heads[-1](output.hidden_states)
        return {"parity": nn.functional.cross_entropy(logits, output.targets % 2)}


OWN = {"gate": Gate, "prompt": Prompt, "head": Head, "listed": lambda: Composition([Gate(), Head()])}


@pytest.mark.parametrize("kind", OWN)
def test_a_strategy_s_own_parameters_train_and_are_resumed_exactly(tmp_path: Path, kind: str) -> None:
    whole, stopped = OWN[kind](), OWN[kind]()
    first = weights(tiny_run(whole, tmp_path / "whole"))
    for batches in (2, 2):
        with pytest.raises(Stopped):
            tiny_run(OWN[kind](), tmp_path / "stopped", stop_after=batches)
    second = weights(tiny_run(stopped, tmp_path / "stopped"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    ends, again = whole.state_dict(), stopped.state_dict()
    assert ends.keys() == again.keys()
    assert all(torch.equal(ends[name], again[name]) for name in ends)
    saved = load_file(tmp_path / "whole" / "model" / "strategy" / "model.safetensors")
    assert all(torch.equal(ends[name], saved[name]) for name in ends)
    fresh = {"gate": torch.ones(()), "vector": torch.zeros(1)}
    for name, value in ends.items():
        assert value.abs().sum() > 0
        assert not torch.equal(value, fresh.get(name.rpartition(".")[2], torch.tensor(torch.nan)).expand_as(value))


def test_the_gate_takes_the_step_of_its_gradient(tmp_path: Path) -> None:
    class Watched(Gate):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[tuple[float, float]] = []

        def edit_gradients(self, backbone: Backbone) -> None:
            self.seen.append((self.gate.item(), self.gate.grad.item()))

    strategy = Watched()
    learn(strategy, tmp_path)
    values = [value for value, _ in strategy.seen] + [strategy.gate.item()]
    for place, (value, gradient) in enumerate(strategy.seen):
        assert gradient != 0
        assert values[place + 1] == pytest.approx(value - 0.1 * gradient, abs=1e-7)


def test_own_parameters_are_clipped_with_the_others(tmp_path: Path) -> None:
    strategy = Prompt()
    learn(strategy, tmp_path, tasks=tiny_tasks(1), gradient_clip_val=1e-3)
    assert 0 < strategy.vector.norm() <= 3 * 0.1 * 1.001e-3  # three steps of 0.1 times at most the clip value


def test_own_parameters_are_counted(tmp_path: Path) -> None:
    learn(Head(), tmp_path)
    backbone = tiny_backbone()
    values = sum(value.numel() for value in backbone.model.parameters())
    head = 2 * backbone.model.config.hidden_size + 2
    costs = read_csv(tmp_path / "costs.csv")
    assert [int(row["trainable_parameters"]) for row in costs] == [values + head, values + head]
    assert [int(row["added_parameters"]) for row in costs] == [head, 2 * head]
    trainable = json.loads((tmp_path / "environment.json").read_text())["trainable"]
    assert [name for name in trainable["task_1"] if name.startswith("strategy.")] == [
        "strategy.heads.1.bias",
        "strategy.heads.1.weight",
    ]


class Listener(ContinualStrategy):
    """Records the dtype of a product of two weights while it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[torch.dtype] = []

    def answer(self, backbone: Backbone, task: Task, prompts: Sequence[str]) -> list[str]:
        weight = next(backbone.model.parameters())
        self.heard.append((weight @ weight.T).dtype)
        return super().answer(backbone, task, prompts)


@pytest.mark.parametrize(
    ("precision", "expected"),
    [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16), ("bf16-true", torch.bfloat16)],
)
def test_scores_have_the_precision_of_training(tmp_path: Path, precision: str, expected: torch.dtype) -> None:
    listener = Listener()
    learn(listener, tmp_path, precision=precision)
    assert listener.heard == [expected] * 6  # two tasks after 0, 1 and 2


def test_adapters_of_a_half_precision_model_are_float32(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    backbone.model.to(torch.bfloat16)
    LoRA(rank=2).setup(backbone)
    assert {parameter.dtype for parameter in backbone.trainable().values()} == {torch.float32}
    assert backbone.generate(["Task 0: t1 b\nAnswer:"], 2)
    with backbone.merged():
        backbone.generate(["Task 0: t1 b\nAnswer:"], 2)
    assert backbone.model.get_input_embeddings().weight.dtype == torch.bfloat16


@pytest.mark.parametrize("mixed", [True, False])
def test_adapters_score_in_half_precision_as_they_trained(mixed: bool) -> None:
    """W + ΔW would keep few bits of a small ΔW."""
    backbone, task = tiny_backbone(), tiny_tasks(1)[0]
    backbone.add_adapter("one", r=4, target_modules=["q_proj", "v_proj"])
    torch.manual_seed(0)
    for name, parameter in backbone.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    if not mixed:
        backbone.model.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        scored = score_task(backbone, ContinualStrategy(), task)
        encoded = backbone.encode(task.test, task.max_new_tokens)
        nats, tokens = backbone.generate_with_nats(encoded, task.max_new_tokens)[1]
        with backbone.merged():
            folded, _ = backbone.generate_with_nats(encoded, task.max_new_tokens)[1]
    assert scored.nats_per_token == float(nats.sum()) / int(tokens.sum())
    assert float(folded.sum()) != float(nats.sum())
