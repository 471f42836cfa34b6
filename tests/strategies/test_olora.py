"""O-LoRA: what trains, both penalties and their gradients by hand, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from strategies import OLoRA
from workbench.backbone import Backbone, adapters
from workbench.testing.tiny import tiny_backbone, tiny_tasks

TASKS = tiny_tasks(3)
PLACES = [f"model.layers.{layer}.self_attn.{name}" for layer in range(4) for name in ("q_proj", "v_proj")]


def begun(strategy: OLoRA, tasks: int, **changes: Any) -> Backbone:
    """A backbone at the start of a task, with random factors."""
    backbone = tiny_backbone(**changes)
    strategy.setup(backbone)
    for task in TASKS[:tasks]:
        strategy.before_task(backbone, task, [])
    generator = torch.Generator().manual_seed(0)
    for name, weight in backbone.model.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn(weight.shape, generator=generator)
    return backbone


def factor(backbone: Backbone, place: str, kind: str, name: str) -> Tensor:
    return backbone.model.get_parameter(f"{place}.lora_{kind}.{name}.weight")


def penalties(strategy: OLoRA, backbone: Backbone) -> dict[str, Tensor]:
    return strategy.penalties(backbone, None, None)  # type: ignore[arg-type]


def test_by_hand_on_two_matrices() -> None:
    """A_1 = [[1, 2, 0], [0, 1, 0]] and A_2 = [[1, 0, 5], [−1, 1, 3]]: A_1 A_2ᵀ = [[1, 1], [0, 1]]."""
    old = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 0.0]])
    new = torch.tensor([[1.0, 0.0, 5.0], [-1.0, 1.0, 3.0]])
    assert OLoRA().overlap([(old, new)]) == 3
    assert OLoRA().overlap([(old, -new)]) == 3
    assert OLoRA().overlap([(old, 2 * new)]) == 6
    assert OLoRA(penalty="squared").overlap([(old, 2 * new)]) == 12
    assert OLoRA(penalty="squared", reduction="mean").overlap([(old, 2 * new)]) == 3
    assert OLoRA(reduction="mean").overlap([(old, new), (old, 2 * new)]) == 9 / 8


@pytest.mark.parametrize("penalty", ["absolute", "squared"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_penalty_of_a_model_and_its_gradient_are_those_of_the_formula(penalty: Any, reduction: Any) -> None:
    """d Σ|O| / dA_t = Σ_i sign(A_i A_tᵀ)ᵀ A_i and d Σ O² / dA_t = 2 Σ_i A_t A_iᵀ A_i, in float64."""
    strategy = OLoRA(rank=3, lambda_1=0.7, penalty=penalty, reduction=reduction)
    backbone = begun(strategy, 3)
    terms = penalties(strategy, backbone)
    assert list(terms) == ["olora_products"]
    terms["olora_products"].backward()
    total, entries = 0.0, len(PLACES) * 2 * 9
    scale = 0.7 / (entries if reduction == "mean" else 1)
    for place in PLACES:
        new = factor(backbone, place, "A", "task-3")
        gradient = torch.zeros(new.shape, dtype=torch.float64)
        for name in ("task-1", "task-2"):
            old = factor(backbone, place, "A", name)
            assert old.grad is None
            product = old.detach().double() @ new.detach().double().T
            absolute = penalty == "absolute"
            total += (product.abs() if absolute else product**2).sum().item()
            gradient += (product.sign() if absolute else 2 * product).T @ old.detach().double()
        torch.testing.assert_close(new.grad, (scale * gradient).float(), rtol=1e-5, atol=1e-4)
        assert factor(backbone, place, "B", "task-3").grad is None
    assert terms["olora_products"].item() == pytest.approx(scale * total, rel=1e-5)


def test_the_norms_of_both_new_factors() -> None:
    strategy = OLoRA(rank=3, lambda_1=0, lambda_2=0.3)
    backbone = begun(strategy, 2)
    terms = penalties(strategy, backbone)
    assert list(terms) == ["olora_norms"]
    values = [factor(backbone, place, kind, "task-2").detach().double() for place in PLACES for kind in "AB"]
    expected = 0.3 * sum(value.pow(2).sum().sqrt().item() for value in values)
    assert terms["olora_norms"].item() == pytest.approx(expected, rel=1e-6)
    terms["olora_norms"].backward()
    new = factor(backbone, PLACES[5], "B", "task-2")
    torch.testing.assert_close(new.grad, 0.3 * new.detach() / new.detach().norm())


def test_a_new_factor_b_of_zeros_has_a_finite_gradient() -> None:
    strategy = OLoRA(rank=2, lambda_2=0.1)
    backbone = tiny_backbone()
    strategy.setup(backbone)
    strategy.before_task(backbone, TASKS[0], [])
    penalties(strategy, backbone)["olora_norms"].backward()
    assert torch.equal(factor(backbone, PLACES[0], "B", "task-1").grad, torch.zeros(32, 2))  # type: ignore[arg-type]


def test_the_first_task_has_no_penalty() -> None:
    strategy = OLoRA()
    assert penalties(strategy, begun(strategy, 1)) == {}


def test_only_the_newest_adapter_trains_and_all_are_summed() -> None:
    strategy = OLoRA(rank=2, alpha=6, dropout=0.0)
    base = tiny_backbone().model.state_dict()
    backbone = begun(strategy, 3)
    assert set(backbone.trainable()) == {f"{place}.lora_{kind}.task-3.weight" for place in PLACES for kind in "AB"}
    with backbone.merged():
        folded = {name: value.clone() for name, value in adapters.plain_state_dict(backbone.model).items()}
    for place in PLACES:
        updates = [
            factor(backbone, place, "B", name) @ factor(backbone, place, "A", name)
            for name in ("task-1", "task-2", "task-3")
        ]
        expected = base[f"{place}.weight"] + 6 / 2 * torch.stack(updates).sum(0)
        torch.testing.assert_close(folded[f"{place}.weight"], expected, rtol=1e-4, atol=1e-4)


def test_fifty_steps_on_the_penalty_alone_make_the_new_subspace_orthogonal_to_the_old() -> None:
    strategy = OLoRA(rank=2, penalty="squared", lambda_1=1.0)
    backbone = begun(strategy, 2)
    optimizer = torch.optim.SGD(backbone.trainable().values(), lr=5e-3)
    first = penalties(strategy, backbone)["olora_products"].item()
    for _ in range(50):
        optimizer.zero_grad()
        penalties(strategy, backbone)["olora_products"].backward()
        optimizer.step()
    assert penalties(strategy, backbone)["olora_products"].item() < 1e-6 * first
    assert factor(backbone, PLACES[0], "A", "task-2").norm() > 1


def test_it_is_summed_in_float32_under_autocast_and_with_half_weights() -> None:
    strategy = OLoRA(rank=3)
    backbone = begun(strategy, 2)
    exact = penalties(strategy, backbone)["olora_products"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(penalties(strategy, backbone)["olora_products"], exact)
    backbone.model.to(torch.bfloat16)
    half = penalties(strategy, backbone)["olora_products"]
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(exact.item(), rel=1e-2)


def test_sharded_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = OLoRA()
    backbone = begun(strategy, 2)
    monkeypatch.setattr("strategies.olora.DTensor", torch.Tensor)
    assert DTensor is not torch.Tensor
    with pytest.raises(ValueError, match=r"OLoRA needs whole weights; .* Give trainer.strategy=ddp."):
        penalties(strategy, backbone)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lambda_1": -1}, "lambda_1=-1 is out of range; it has to be at least 0."),
        ({"lambda_2": float("nan")}, "lambda_2=nan is out of range; it has to be at least 0."),
        ({"rank": 0}, "rank=0 is out of range; it has to be at least 1."),
        ({"dropout": 1.0}, "dropout=1.0 is out of range; it has to be at least 0 and less than 1."),
        ({"alpha": 0}, "alpha=0 is out of range; it has to be more than 0."),
        ({"targets": []}, "targets is empty: no projection would get an adapter. Name one or more."),
        ({"penalty": "l1"}, "penalty='l1': choose 'absolute' or 'squared'."),
        ({"reduction": "none"}, "reduction='none': choose 'sum' or 'mean'."),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        OLoRA(**arguments)
    assert str(caught.value) == message


def test_a_projection_that_the_model_does_not_have() -> None:
    strategy, backbone = OLoRA(targets=["c_attn"]), tiny_backbone()
    strategy.setup(backbone)
    with pytest.raises(ValueError, match=r"the model has no 'c_attn'\. Choose from down_proj"):
        strategy.before_task(backbone, TASKS[0], [])
