"""Which optimizers take their fused kernel, and that it computes AdamW's formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.studies import column
from torch import nn

from workbench.study import Study

Make = Callable[..., Study]


def built(make: Make, parameters: list[Any] | None = None, **changes: Any) -> torch.optim.Optimizer:
    factory = make(**changes).assembly.optimizer_factory("seqft")
    return factory("alpha", parameters or [nn.Parameter(torch.ones(2, 3))], lambda: 1)[0]


@pytest.mark.parametrize(
    ("name", "settings", "trainer", "expected"),
    [
        ("AdamW", {}, {}, True),
        ("Adam", {}, {}, True),
        ("AdamW", {"fused": False}, {}, False),
        ("AdamW", {"foreach": True}, {}, None),
        ("AdamW", {}, {"precision": "bf16-true"}, True),
        ("AdamW", {}, {"precision": "bf16-mixed"}, None),
        ("AdamW", {}, {"precision": "16-mixed"}, None),
        ("AdamW", {}, {"precision": 16}, None),
        ("AdamW", {"fused": True}, {"precision": "bf16-mixed"}, True),
        ("SGD", {}, {}, None),
        ("Adagrad", {}, {}, None),
    ],
)
def test_adam_is_fused_where_nobody_said_otherwise(
    make: Make, name: str, settings: dict[str, Any], trainer: dict[str, Any], expected: bool | None
) -> None:
    optimizer = {"class_path": f"torch.optim.{name}", "init_args": {"lr": 0.1, **settings}}
    made = built(make, optimizer=optimizer, trainer={"accelerator": "cpu", **trainer})
    assert made.param_groups[0]["fused"] is expected


def test_parts_of_sharded_weights_are_not_fused(make: Make) -> None:
    class Part(torch.Tensor):
        """Stands for a weight that is no plain tensor."""

    part = nn.Parameter(torch.ones(2).as_subclass(Part))
    adam = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1}}
    assert built(make, [nn.Parameter(torch.ones(2)), part], optimizer=adam).param_groups[0]["fused"] is None


def test_the_fused_kernel_computes_the_formula(make: Make) -> None:
    """Loshchilov and Hutter, 2019, algorithm 2, in float64: three steps with gradients of very different sizes."""
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01, "weight_decay": 0.1}}
    weight = nn.Parameter(torch.linspace(-1, 1, 7))
    made = built(make, [weight], optimizer=optimizer)
    expected = weight.detach().double()
    first, second = torch.zeros(7, dtype=torch.float64), torch.zeros(7, dtype=torch.float64)
    for step in range(1, 4):
        gradient = torch.logspace(-6, 3, 7) * (-1) ** step
        weight.grad = gradient.clone()
        made.step()
        expected = expected * (1 - 0.01 * 0.1)
        first = 0.9 * first + 0.1 * gradient.double()
        second = 0.999 * second + 0.001 * gradient.double() ** 2
        moved = first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        expected = expected - 0.01 * moved
    assert torch.allclose(weight.detach().double(), expected, atol=1e-6, rtol=0)


def test_mixed_precision_still_clips(make: Make) -> None:
    """Lightning raises where a fused optimizer's gradients are to be clipped in mixed precision."""
    trainer = {"precision": "bf16-mixed", "gradient_clip_val": 0.5, "max_epochs": 1, "accelerator": "cpu"}
    small = make(optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1}}, trainer=trainer)
    small.run()
    assert column(small.results(small.runs[0]).path / "costs.csv", "steps") == ["2", "2"]
