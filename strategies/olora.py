"""O-LoRA: one low-rank adapter a task, kept apart from the subspaces of the older ones by a penalty."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from workbench.backbone import lora_settings, wide
from workbench.strategy import ContinualStrategy

if TYPE_CHECKING:
    from workbench.backbone import Backbone, Batch, Output
    from workbench.benchmark import Task

FACTOR_A = ".lora_A."
"""Marks a down-projection A, (rank, inputs), in the name of a weight."""
FACTORS = (FACTOR_A, ".lora_B.")


class OLoRA(ContinualStrategy):
    """Train one adapter a task, summed with the frozen older ones and orthogonal to them   (Wang et al., 2023).

    With A_t of shape (rank, inputs), over all adapted projections and all earlier tasks i:

        L = L_t + lambda_1 · Σ_i Σ |A_i A_tᵀ|  + lambda_2 · Σ ‖W‖₂      penalty="absolute", the official code
        L = L_t + lambda_1 · Σ_i ‖A_i A_tᵀ‖²_F + lambda_2 · Σ ‖W‖₂      penalty="squared", the paper (eq. 6 to 8)

    where W is each A and B of the new adapter. The paper writes A as (inputs, rank), so that its A_iᵀ A_t is this
    A_i A_tᵀ, (rank, rank). The defaults are the official ones for the orders of five tasks. On the orders of 15 tasks
    the authors set lambda_1 to 0, 0.5 or 5, and lambda_2 from 0 to 0.3, task by task.

    A new A is random, so that the sum starts at hundreds or thousands of nats beside a loss of a few.
    `reduction="mean"` divides it by its number of entries, which makes lambda_1 independent of the rank and of the
    number of projections and tasks.

    The model's size grows by one adapter a task, and so does the time of a step. The penalty itself needs
    rank² · inputs multiplications for each projection and earlier task, which is little at any size of model. Every
    process computes the whole penalty; sharded weights (FSDP) are refused.

    Args:
        rank: Rank of each update.
        alpha: Scale of each update, which is divided by the rank.
        dropout: Dropout probability of an adapter's inputs in training, in [0, 1).
        targets: One or several names of projections that get an adapter; "all-linear": all except the head; or a
            regular expression that matches full names.
        lambda_1: Weight of the products with older adapters, at least 0.
        lambda_2: Weight of the norms of the new adapter's factors, at least 0.
        penalty: "absolute": sum of absolute values, as in the code; "squared": sum of squares, as in the paper.
        reduction: "sum", as published, or "mean" over all entries of all products.

    Raises:
        ValueError: A number is out of range; in `setup`, the model has no projection of a name in `targets`; in
            `penalties`, the weights are sharded.
    """

    reference = "Wang et al., 2023 (arXiv 2310.14152)"
    bibtex = """@inproceedings{wang2023olora,
  author = {Wang, Xiao and others},
  title = {Orthogonal Subspace Learning for Language Model Continual Learning},
  year = {2023},
  booktitle = {Findings of the Association for Computational Linguistics: EMNLP 2023},
  eprint = {2310.14152},
  archivePrefix = {arXiv}
}"""

    def __init__(
        self,
        rank: int = 8,
        alpha: float = 32,
        dropout: float = 0.1,
        targets: Sequence[str] | str = ("q_proj", "v_proj"),
        lambda_1: float = 0.5,
        lambda_2: float = 0.0,
        penalty: Literal["absolute", "squared"] = "absolute",
        reduction: Literal["sum", "mean"] = "sum",
    ) -> None:
        super().__init__()
        for name, value in {"lambda_1": lambda_1, "lambda_2": lambda_2}.items():
            if not value >= 0:
                raise ValueError(f"{name}={value} is out of range; it has to be at least 0.")
        if penalty not in ("absolute", "squared"):
            raise ValueError(f"penalty={penalty!r}: choose 'absolute' or 'squared'.")
        if reduction not in ("sum", "mean"):
            raise ValueError(f"reduction={reduction!r}: choose 'sum' or 'mean'.")
        self.lambda_1, self.lambda_2 = lambda_1, lambda_2
        self.penalty, self.reduction = penalty, reduction
        self.settings = lora_settings(rank, alpha, dropout, targets)

    def setup(self, backbone: Backbone) -> None:
        """Freeze the model; the first adapter comes with the first task."""
        backbone.freeze()

    def before_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        """Add the task's adapter, which is the only one that trains from now on."""
        backbone.add_adapter(f"task-{len(backbone.adapter_names) + 1}", **self.settings)

    def penalties(self, backbone: Backbone, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return the weighted penalties of the new adapter.

        Returns:
            {"olora_products": scalar} where lambda_1 is not 0 and there is an older adapter, and
            {"olora_norms": scalar} where lambda_2 is not 0; in nats.
        """
        weights = dict(backbone.model.named_parameters())
        *older, newest = backbone.adapter_names
        new = {name: weight for name, weight in weights.items() if any(f"{kind}{newest}." in name for kind in FACTORS)}
        if any(isinstance(weight, DTensor) for weight in new.values()):
            raise ValueError("OLoRA needs whole weights; trainer.strategy=fsdp shards them. Give trainer.strategy=ddp.")
        terms: dict[str, Tensor] = {}
        with torch.autocast(backbone.device.type, enabled=False):  # in half precision the sums would be coarse
            if self.lambda_1 and older:
                pairs = [
                    (weights[name.replace(f"{FACTOR_A}{newest}.", f"{FACTOR_A}{old}.")], weight)
                    for name, weight in new.items()
                    if FACTOR_A in name
                    for old in older
                ]
                terms["olora_products"] = self.lambda_1 * self.overlap(pairs)
            if self.lambda_2:
                terms["olora_norms"] = self.lambda_2 * sum_of([wide(weight).norm() for weight in new.values()])
        return terms

    def overlap(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Return how far the row spaces of matrices overlap, as `penalty` and `reduction` say.

        Args:
            pairs: An older and the new A of one projection, (rank, inputs) each.

        Returns:
            Scalar.
        """
        products = [wide(old) @ wide(new).T for old, new in pairs]
        entries = [product.abs() if self.penalty == "absolute" else product**2 for product in products]
        total = sum_of([part.sum() for part in entries])
        return total if self.reduction == "sum" else total / sum(part.numel() for part in entries)


def sum_of(scalars: Sequence[Tensor]) -> Tensor:
    """Return the sum of scalars, at least one, as a scalar."""
    return torch.stack(list(scalars)).sum()
