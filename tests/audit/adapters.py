"""Audited claims about adapters: O-LoRA's penalty, and what of a task is kept by merging."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from audit_case import Case, Make
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from strategies import Adapter, OLoRA
from workbench.backbone import Backbone, Batch
from workbench.benchmark import Task
from workbench.strategy import ContinualStrategy
from workbench.testing import tiny_backbone, tiny_tasks

TOKENS = torch.tensor([[1, 40, 7, 300, 12, 9, 15, 22]])
Pairs = Sequence[tuple[Tensor, Tensor]]


def moved(backbone: Backbone) -> None:
    """Change all that trains, as a task's steps would."""
    generator = torch.Generator().manual_seed(0)
    for weight in backbone.trainable().values():
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator)


def begun(strategy: ContinualStrategy, tasks: int) -> Backbone:
    """A model at the start of a task, after others that left their adapters behind."""
    backbone = tiny_backbone()
    torch.manual_seed(0)
    strategy.setup(backbone)
    for task in tiny_tasks(tasks):
        strategy.before_task(backbone, task, [])
        moved(backbone)
    return backbone


def olora_gradient(make: Make) -> float:
    """Relative distance of the penalty's gradient, over all A of the third task, from Σ_i sign(A_i A_tᵀ)ᵀ A_i."""
    strategy = make()
    backbone = begun(strategy, 3)
    terms = strategy.penalties(backbone, None, None)  # type: ignore[arg-type]
    penalty = torch.stack([value for name, value in terms.items() if name != "olora_norms"]).sum()
    if penalty.requires_grad:
        penalty.backward()
    weights = dict(backbone.model.named_parameters())
    error, size = 0.0, 0.0
    for name, new in weights.items():
        if ".lora_A.task-3." not in name:
            continue
        right = torch.zeros(new.shape, dtype=torch.float64)
        for number in (1, 2):
            old = weights[name.replace("task-3", f"task-{number}")].detach().double()
            right += 0.5 * (old @ new.detach().double().T).sign().T @ old
        given = torch.zeros_like(right) if new.grad is None else new.grad.double()
        error, size = error + (given - right).pow(2).sum().item(), size + right.pow(2).sum().item()
    return (error / size) ** 0.5


def olora_paper(make: Make) -> float:
    """Relative distance of the paper's penalty from Σ_i ‖A_i A_tᵀ‖²_F in float64."""
    strategy = make()
    backbone = begun(strategy, 2)
    value = strategy.penalties(backbone, None, None)["olora_products"].item()  # type: ignore[arg-type]
    weights = {name: weight.detach().double() for name, weight in backbone.model.named_parameters()}
    right = sum(
        (weights[name.replace("task-2", "task-1")] @ new.T).pow(2).sum().item()
        for name, new in weights.items()
        if ".lora_A.task-2." in name
    )
    return abs(value / right - 1)


class Detached(OLoRA):
    """The penalty reads the weights' data."""

    def overlap(self, pairs: Pairs) -> Tensor:
        return super().overlap([(old, new.detach()) for old, new in pairs])


class WithItself(OLoRA):
    """The new A is compared with each A of its layer, itself included."""

    def overlap(self, pairs: Pairs) -> Tensor:
        return super().overlap([*pairs, *((new, new) for _, new in pairs)])


class Transposed(OLoRA):
    """The paper's A_iᵀ A_t with factors of shape (rank, inputs)."""

    def overlap(self, pairs: Pairs) -> Tensor:
        return super().overlap([(old.T, new.T) for old, new in pairs])


@torch.no_grad()
def kept(make: Make) -> float:
    """Largest difference of the logits between a task's last step and the next task's first."""
    strategy, (first, second) = make(), tiny_tasks(2)
    backbone = begun(strategy, 1)
    learnt = backbone.model.eval()(TOKENS).logits
    strategy.after_task(backbone, first, [])
    strategy.before_task(backbone, second, [])
    return float((backbone.model.eval()(TOKENS).logits - learnt).abs().max())


class Unloads(Adapter):
    """The adapter's layers are taken out between two tasks, without merging them."""

    def after_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        for path, module in list(backbone.model.named_modules()):
            if isinstance(module, BaseTunerLayer):
                parent, _, name = path.rpartition(".")
                setattr(backbone.model.get_submodule(parent), name, module.base_layer)
        del backbone.model.peft_config


def oft(kind: type[Adapter]) -> Make:
    return lambda: kind("OFT", {"oft_block_size": 8, "target_modules": ["q_proj", "v_proj"]}, policy="merge")


CASES: tuple[Case, ...] = (
    Case(
        "OLoRA",
        "the penalty moves the new A away from the old ones: its gradient is Σ sign(A_i A_tᵀ)ᵀ A_i",
        "the penalty reads `.data` and has no gradient, as EasyCL's EWC does",
        olora_gradient,
        1e-5,
        OLoRA,
        Detached,
    ),
    Case(
        "OLoRA",
        "only products with older tasks count",
        "a port for code classifiers compares the new A with itself as well, which shrinks it",
        olora_gradient,
        1e-5,
        OLoRA,
        WithItself,
    ),
    Case(
        "OLoRA",
        "the paper's A_iᵀ A_t is (rank, rank)",
        "taken literally with peft's A, which is the paper's transposed: (inputs, inputs). Easily made; not found in "
        "the code that was read",
        olora_paper,
        1e-5,
        lambda: OLoRA(lambda_1=1.0, penalty="squared"),
        lambda: Transposed(lambda_1=1.0, penalty="squared"),
    ),
    Case(
        "Adapter",
        "merging keeps what a task has learned",
        "peft's documented recipe for OSF calls unload() between tasks, which removes the adapter with its task",
        kept,
        1e-4,
        oft(Adapter),
        oft(Unloads),
    ),
)
