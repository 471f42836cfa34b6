"""Exponential moving average of the weights over the optimizer steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from workbench.backbone import SetAside, plain_parameters, plain_weights, wide, write_weights
from workbench.strategy import ContinualStrategy

if TYPE_CHECKING:
    from workbench.backbone import Backbone, Batch
    from workbench.benchmark import Task


class EMA(ContinualStrategy):
    """Score an exponential moving average of the weights instead of the last ones   (Polyak & Juditsky, 1992).

        θ̄ ← β θ̄ + (1 − β) θ after each optimizer step, and θ̄ = θ before the first one

    With scope "task" the average begins anew with each task; after the task it replaces the weights, is scored, and
    goes on to the next task. With scope "sequence" one slow average runs over all tasks; it is scored and saved, and
    the trained weights go on to the next task. Scores within a task are those of the trained weights.

    A weight's half-life is ln 2 / (1 − β) steps, 693 at β = 0.999: over a task that is much shorter, θ̄ hardly leaves
    its start. 1 − 10 / steps of a task is a milder choice.

    Weights are averaged, not factors: after `LoRA(policy="merge")` in a list, W + ΔW is averaged at each step. This
    needs the product B A once more, and w bytes for a moment. Adapters that stay apart are refused, because a mean of
    A and a mean of B are not the factors of the mean of ΔW. Weights that do not train keep their bits.

    With w the bytes of the weights that train, in float32, the average takes w on the device, and "sequence" w more on
    the CPU between two tasks; both are in a saved state. Every process computes the same average. Sharded weights
    (FSDP) are refused.

    Args:
        beta: β, in [0, 1).
        scope: "task" or "sequence".

    Raises:
        ValueError: A value is out of range, an adapter is apart from the weights, tasks of one "sequence" train
            different parameters, or the weights are sharded.
    """

    reference = "Polyak & Juditsky, 1992 (SIAM J. Control Optim. 30)"
    bibtex = """@article{polyak1992averaging,
  author = {Polyak, Boris T. and Juditsky, Anatoli B.},
  title = {Acceleration of Stochastic Approximation by Averaging},
  journal = {SIAM Journal on Control and Optimization},
  volume = {30},
  number = {4},
  pages = {838--855},
  year = {1992}
}"""

    def __init__(self, beta: float = 0.999, scope: Literal["task", "sequence"] = "task") -> None:
        super().__init__()
        if not 0 <= beta < 1:
            raise ValueError(f"beta={beta} is out of range; it has to be at least 0 and less than 1.")
        if scope not in ("task", "sequence"):
            raise ValueError(f"scope={scope!r}: choose 'task' or 'sequence'.")
        self.beta, self.scope = beta, scope
        self.average: dict[str, Tensor] = {}
        self.aside = SetAside()

    def before_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        """Begin the average at the weights ("task", or the first task), or put the trained weights back ("sequence").

        Raises:
            ValueError: The task trains other parameters than the tasks before, which one average cannot follow.
        """
        if self.scope == "task" or not self.average:
            self.average = {name: wide(value) for name, value in plain_weights(backbone).items()}
        elif list(self.average) != list(plain_parameters(backbone)):
            problem = f"{task.name} trains other parameters than the tasks before"
            raise ValueError(f"EMA: {problem}. Choose scope='task', which begins a new average with each task.")
        self.aside.bring_back(backbone)

    @torch.no_grad()
    def after_step(self, backbone: Backbone) -> None:
        """Take the weights after the step into the average.

        Raises:
            ValueError: The weights are sharded.
        """
        with backbone.merged():
            for name, parameter in plain_parameters(backbone).items():
                if isinstance(parameter, DTensor):
                    raise ValueError("EMA cannot average sharded weights. Give trainer.strategy=ddp instead of fsdp.")
                self.average[name] = self.average[name].to(parameter.device)
                self.average[name].lerp_(wide(parameter), 1 - self.beta)

    def after_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        """Write the average into the model; with scope "sequence" the trained weights wait for the next task.

        Raises:
            ValueError: An adapter is apart from the weights.
        """
        if backbone.adapter_names:
            problem = "EMA: an adapter is apart from the weights, and factors A and B cannot be averaged apart"
            raise ValueError(f"{problem}. Put LoRA(policy='merge') before EMA in the list.")
        if self.scope == "task":
            write_weights(backbone, self.average)
            self.average = {}
        else:
            self.aside.replace(backbone, self.average, plain_weights(backbone, self.average))

    def get_extra_state(self) -> dict[str, Any]:
        """Return the average and the weights that wait, for `state_dict`."""
        return {"average": dict(self.average), "aside": self.aside.state()}

    def set_extra_state(self, state: Any) -> None:
        """Restore the average from `load_state_dict`."""
        self.average = dict(state["average"])
        self.aside.load(state["aside"])
