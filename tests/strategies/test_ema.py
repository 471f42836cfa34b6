"""The moving average against its closed form and against torch's own, and which weights are scored and go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.plain_models import TASKS, Linear
from helpers.studies import learn, same, weights
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from strategies import EMA, BlockExpansion, LoRA, SeqFT
from workbench.benchmark import Task
from workbench.strategy import Composition, ContinualStrategy
from workbench.testing.tiny import VARIANTS, tiny_backbone


def test_three_steps_by_hand() -> None:
    """It starts at the weights: 8, then 4, then 2 + 2 = 4, then 2 + 3 = 5."""
    backbone: Any = Linear(8.0)
    strategy = EMA(beta=0.5)
    strategy.before_task(backbone, TASKS[0], [])
    for value in (0.0, 4.0, 6.0):
        backbone.set([value])
        strategy.after_step(backbone)
    strategy.after_task(backbone, TASKS[0], [])
    assert backbone.values() == [5.0]


def test_a_task_begins_anew_and_a_sequence_goes_on() -> None:
    found = {}
    for scope in ("task", "sequence"):
        backbone: Any = Linear(8.0)
        strategy, begun = EMA(beta=0.5, scope=scope), []  # type: ignore[arg-type]
        for task, value in ((TASKS[0], 0.0), (TASKS[1], 16.0)):
            strategy.before_task(backbone, task, [])
            begun += backbone.values()
            backbone.set([value])
            strategy.after_step(backbone)
            strategy.after_task(backbone, task, [])
        found[scope] = begun, backbone.values()
    assert found["task"] == ([8.0, 4.0], [10.0])  # begins at 4, the mean of 8 and 0; then the mean of 4 and 16
    assert found["sequence"] == ([8.0, 0.0], [10.0])  # begins where training ended; the mean of 4 and 16


class Spy(ContinualStrategy):
    """Copies the trained weights at each point."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[dict[str, Tensor]] = []
        self.steps: list[list[dict[str, Tensor]]] = []

    def before_task(self, backbone: Any, task: Task, batches: Any) -> None:
        self.begun.append(weights(backbone))
        self.steps.append([])

    def after_step(self, backbone: Any) -> None:
        with backbone.merged():
            self.steps[-1].append(weights(backbone))


def run(folder: Path, *members: ContinualStrategy) -> tuple[dict[str, Tensor], Spy]:
    spy = Spy()
    return weights(learn(Composition([*members, spy]), folder)), spy


def closed_form(points: list[Tensor], beta: float) -> Tensor:
    """β^n θ_0 + (1 − β) Σ β^(n − k) θ_k, in float64."""
    n = len(points) - 1
    shares = [beta**n] + [(1 - beta) * beta ** (n - k) for k in range(1, n + 1)]
    return sum((share * point.double() for share, point in zip(shares, points, strict=True)), torch.zeros(()))


def test_the_average_of_a_task_is_scored_and_goes_on(tmp_path: Path) -> None:
    final, spy = run(tmp_path, EMA(beta=0.8))
    for name, value in final.items():
        averages = [
            closed_form([begun[name], *(step[name] for step in steps)], 0.8)
            for begun, steps in zip(spy.begun, spy.steps, strict=True)
        ]
        assert torch.allclose(spy.begun[1][name].double(), averages[0], rtol=0, atol=1e-6), name
        assert torch.allclose(value.double(), averages[1], rtol=0, atol=1e-6), name
    assert len(spy.steps[0]) == 3


def test_over_a_sequence_training_is_as_without_it(tmp_path: Path) -> None:
    plain, trained = run(tmp_path / "a", SeqFT())
    final, spy = run(tmp_path / "b", EMA(beta=0.8, scope="sequence"))
    assert same(spy.begun[1], trained.begun[1])
    assert same(spy.steps[1][-1], trained.steps[1][-1])
    assert same(plain, trained.steps[1][-1])
    for name, value in final.items():
        points = [spy.begun[0][name], *(step[name] for steps in spy.steps for step in steps)]
        assert torch.allclose(value.double(), closed_form(points, 0.8), rtol=0, atol=1e-6), name


def test_it_is_torchs_average_once_that_has_its_first_copy() -> None:
    backbone, strategy = tiny_backbone(num_hidden_layers=1), EMA(beta=0.9)
    torchs = AveragedModel(backbone.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    torchs.update_parameters(backbone.model)  # a copy
    strategy.before_task(backbone, TASKS[0], [])
    for _ in range(5):
        with torch.no_grad():
            for parameter in backbone.model.parameters():
                parameter.add_(torch.randn_like(parameter))
        strategy.after_step(backbone)
        torchs.update_parameters(backbone.model)
    strategy.after_task(backbone, TASKS[0], [])
    for (name, value), other in zip(backbone.model.named_parameters(), torchs.module.parameters(), strict=True):
        assert torch.allclose(value, other, atol=1e-6), name


def test_without_memory_it_is_plain_fine_tuning(tmp_path: Path) -> None:
    assert same(run(tmp_path / "a", EMA(beta=0))[0], run(tmp_path / "b", SeqFT())[0])


def test_half_precision_is_averaged_in_float32() -> None:
    """A thousandth of a step is less than bfloat16 resolves: a thousand of them would never move the average."""
    backbone, strategy = tiny_backbone(num_hidden_layers=1, **VARIANTS["bf16"]), EMA(beta=0.999)
    weight = backbone.model.lm_head.weight
    torch.nn.init.ones_(weight)
    strategy.before_task(backbone, TASKS[0], [])
    torch.nn.init.constant_(weight, 2.0)
    for _ in range(693):
        strategy.after_step(backbone)
    strategy.after_task(backbone, TASKS[0], [])
    assert weight.dtype == torch.bfloat16
    assert torch.allclose(weight.float(), torch.tensor(1.5), atol=2**-7)


def test_of_an_adapter_the_weights_are_averaged_and_not_the_factors(tmp_path: Path) -> None:
    spy = Spy()
    backbone = learn(Composition([LoRA(policy="merge"), spy, EMA(beta=0.5)]), tmp_path)
    final = weights(backbone)
    carriers = [name for name in spy.begun[1] if name.endswith("base_layer.weight")]
    assert len(carriers) == 8
    for name in carriers:
        expected = closed_form([spy.begun[1][name], *(step[name] for step in spy.steps[1])], 0.5)
        assert torch.allclose(final[name.replace(".base_layer", "")].double(), expected, rtol=0, atol=1e-6), name
    # The run's first task had moved the weights from which the second began.
    assert not same(final, weights(tiny_backbone()))


@pytest.mark.parametrize("policy", ["continue", "stack"])
def test_an_adapter_that_stays_apart_is_refused(policy: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"factors A and B cannot be averaged apart\. Put LoRA.policy='merge'. before"):
        learn(Composition([LoRA(policy=policy), EMA()]), tmp_path)


def test_new_blocks_each_task_have_an_average_each_and_not_one_over_all(tmp_path: Path) -> None:
    grown = BlockExpansion(groups=2, each_task=True)
    learn(Composition([grown, EMA(beta=0.5)]), tmp_path / "a")
    grown = BlockExpansion(groups=2, each_task=True)
    with pytest.raises(ValueError) as caught:
        learn(Composition([grown, EMA(scope="sequence")]), tmp_path / "b")
    assert "Choose scope='task', which begins a new average with each task." in str(caught.value)


def test_sharded_weights_are_refused(tmp_path: Path) -> None:
    backbone: Any = Linear(1.0, 2.0)
    strategy = EMA()
    strategy.before_task(backbone, TASKS[0], [])
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        weight = distribute_tensor(backbone.model.weight.data, init_device_mesh("cpu", (1,)))
        backbone.model.weight = nn.Parameter(weight)
        with pytest.raises(ValueError) as caught:
            strategy.after_step(backbone)
    finally:
        distributed.destroy_process_group()
    assert str(caught.value) == "EMA cannot average sharded weights. Give trainer.strategy=ddp instead of fsdp."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": 1}, "beta=1 is out of range; it has to be at least 0 and less than 1."),
        ({"beta": -0.1}, "beta=-0.1 is out of range; it has to be at least 0 and less than 1."),
        ({"beta": float("nan")}, "beta=nan is out of range; it has to be at least 0 and less than 1."),
        ({"scope": "run"}, "scope='run': choose 'task' or 'sequence'."),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        EMA(**arguments)
    assert str(caught.value) == message
