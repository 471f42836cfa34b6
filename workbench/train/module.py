"""The LightningModule: a language-model loss plus whatever the strategy adds."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from workbench.backbone import Backbone, Batch, Output
from workbench.runtime.distributed import gathered, total, world
from workbench.strategy import ContinualStrategy, checked_penalties, trainable_parameters
from workbench.train.data import ContinualDataModule
from workbench.train.optimizer_state import Moments


class OptimizerFactory(Protocol):
    """Builds the optimizer of one task, and its scheduler or None; `steps` are that task's optimizer steps."""

    def __call__(self, task: str, parameters: list[Any], steps: Callable[[], int]) -> tuple[Optimizer, Any]: ...


def accumulated_batches(trainer: Trainer, epoch: int) -> int:
    """The batches whose gradients make one optimizer step in an epoch."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            return callback.get_accumulate_grad_batches(epoch)
    return trainer.accumulate_grad_batches


def optimizer_steps(trainer: Trainer) -> float:
    """The optimizer steps of a whole training; infinite where nothing but time ends it.

    Lightning's own estimate takes the number of accumulated batches for the same in all epochs.
    """
    estimated = trainer.estimated_stepping_batches  # this makes the batches, where nobody has asked for them yet
    epochs, batches = trainer.max_epochs or 0, trainer.num_training_batches
    if epochs < 0 or math.isinf(batches):
        return estimated
    steps = sum(math.ceil(batches / accumulated_batches(trainer, epoch)) for epoch in range(max(epochs, 1)))
    return min(steps, trainer.max_steps) if trainer.max_steps != -1 else steps


class ContinualModule(LightningModule):
    """One backbone, one strategy, and the loss of whatever task is being learnt.

    The loss of an optimizer step is the mean over all its labelled tokens, plus the penalties once. It does not depend
    on how the step's rows are divided into batches (`trainer.accumulate_grad_batches`) or among processes.

    The optimizer is built anew for each task: Adam's moments belong to the task they were gathered on, unless they are
    `carried`.

    Args:
        backbone: What learns.
        strategy: How.
        make_optimizer: Builds a task's optimizer over the parameters that train.
        carried: Optimizer state that parameters keep from task to task; None: each task begins without.

    Attributes:
        tokens: Of the last batch, over all processes.
        step_share: The last batch's share of the labelled tokens of its optimizer step, in [0, 1].
        known_states: What stands in, while a batch is learnt, for layers whose states of it are known.
    """

    known_states: Callable[[Batch], AbstractContextManager[Any]] = nullcontext

    def __init__(
        self,
        backbone: Backbone,
        strategy: ContinualStrategy,
        make_optimizer: OptimizerFactory,
        carried: Moments | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.continual_strategy = strategy
        self.make_optimizer = make_optimizer
        self.carried = carried
        self.task_name = ""
        self.steps_before = 0
        self.tokens: Tensor = torch.zeros((), dtype=torch.long)
        self.step_share = 1.0
        self.strict_loading = False  # a state holds what may have changed, and no more
        self.scoring_context: Callable[[], AbstractContextManager[None]] = nullcontext

    def adopt_precision(self, trainer: Trainer) -> None:
        """Takes on the precision that training will have, so that every row is scored in the same one, row 0 too.

        Lightning itself converts the weights only as the first task begins, and scores outside of its autocast.
        """
        trainer.precision_plugin.convert_module(self)
        self.scoring_context = trainer.precision_plugin.forward_context

    def begin(self, task: str, steps_before: int) -> None:
        """Names the task that comes next and where it starts on the step axis of the sequence."""
        self.task_name = task
        self.steps_before = steps_before
        self.train()

    def training_step(self, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        """This batch's part of the step's loss, and the batch's own nats per labelled token and penalties by name.

        Raises:
            FloatingPointError: The loss is not finite; the weights are those of the step before.
            HookError: The penalties are no scalars by name.
        """
        with self.known_states(batch):
            output = self.backbone(batch)
        penalties = self.continual_strategy.penalties(self.backbone, batch, output)
        penalties = checked_penalties(self.continual_strategy, penalties)
        shown, part = self._over_all_processes(batch, output, penalties)
        self.step_share = self._share_of_step(batch_index)
        # Lightning divides by the number of batches in a full step and averages the gradients of processes.
        weight = part * (self.step_share * self.trainer.accumulate_grad_batches)
        if not torch.isfinite(sum(shown.values(), torch.zeros(()))).all():
            raise FloatingPointError(self._not_finite(shown, batch))
        return {"loss": (output.loss + sum(penalties.values())) * weight, **shown}

    def _over_all_processes(
        self, batch: Batch, output: Output, penalties: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], float | Tensor]:
        """Nats per labelled token and penalties of the whole batch, and the weight of this process's own mean.

        Processes' gradients are averaged. So a mean over the labelled tokens of all of them needs each one's own mean
        weighted by its share of the tokens, times the number of processes; a mean of their means would be another one
        wherever their shares are not alike. Penalties are weighted alike: one that does not depend on the rows counts
        once, and one that is a mean over labelled tokens is that of the whole batch.
        """
        self.tokens = batch.attention_mask[batch.row >= 0].sum()
        shown = {"nats_per_token": output.loss.detach()}
        shown |= {name: value.detach() for name, value in penalties.items()}
        if world() == 1:
            return shown, 1.0
        count = torch.tensor(float(output.count), dtype=torch.float64, device=self.tokens.device)
        parts = [count, self.tokens, *(value.double() * count for value in shown.values())]
        whole, self.tokens, *sums = total(torch.stack([value.double() for value in parts]))
        if not whole:  # no label in any process
            return shown, 1.0
        means = [(value / whole).float() for value in sums]
        return dict(zip(shown, means, strict=True)), (world() * count / whole).float()

    def _share_of_step(self, batch_index: int) -> float:
        """The share that a batch, over all processes, has of the labelled tokens of its optimizer step.

        Lightning makes a step of every `accumulate_grad_batches` batches and of what is left at the end of an epoch.
        Batches that are not a `ContinualDataModule`'s count as much as one another.
        """
        trainer, data = self.trainer, getattr(self.trainer, "datamodule", None)
        size = trainer.accumulate_grad_batches
        if size == 1:
            return 1.0
        first = batch_index // size * size
        step = range(first, int(min(first + size, trainer.num_training_batches)))
        if not isinstance(data, ContinualDataModule):
            return 1 / len(step)
        counts = data.labelled_tokens(trainer.current_epoch)
        labelled = sum(counts[index] for index in step)
        return counts[batch_index] / labelled if labelled else 1 / len(step)

    def _not_finite(self, shown: dict[str, Tensor], batch: Batch) -> str:
        step = self.steps_before + self.trainer.global_step + 1
        added = "".join(f", {name} {value.item()}" for name, value in shown.items() if name != "nats_per_token")
        loss = float(sum(shown.values()))
        rows = sorted(row for row in gathered(batch.row.tolist()) if row >= 0)
        return (
            f"{self.task_name}: the loss is {loss}{added} at step {step} of the sequence, on rows {rows} of its "
            "training data. Nothing was learnt from them; the last saved state is kept. Choose a lower learning rate, "
            "or look at these rows"
        )

    def configure_optimizers(self) -> Any:
        """The task's own optimizer over what trains now; a scheduler steps with it.

        Raises:
            ValueError: Nothing trains.
        """
        parameters = list(trainable_parameters(self.backbone, self.continual_strategy).values())
        if not parameters:
            raise ValueError(
                f"{type(self.continual_strategy).__name__} left nothing to train for {self.task_name!r}: "
                "every parameter is frozen. Leave some to train in `setup` or `before_task`."
            )
        optimizer, scheduler = self.make_optimizer(
            self.task_name, parameters, lambda: int(optimizer_steps(self.trainer))
        )
        if self.carried is not None:
            self.carried.give(optimizer, dict(self.named_parameters()))
        if scheduler is None:
            return optimizer
        each_step = {"scheduler": scheduler, "interval": "step", "reduce_on_plateau": False}
        return {"optimizer": optimizer, "lr_scheduler": each_step}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Steps a scheduler; one that waits for a plateau gets the loss of each step from `TrainingCurve`.

        Lightning would step it only after a state has been saved, so that a resumed run would lose a step.
        """
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Completes a state for a callback that averages weights: what a replay gives is not in the file."""
        if "averaging_state" in checkpoint:
            own = self.state_dict()
            for key in ("state_dict", "current_model_state"):
                checkpoint[key] = {**own, **checkpoint[key]}

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_index: int) -> Batch:
        """Moves the four tensors of a batch."""
        return batch.to(device)
