"""The LightningModule: language-model loss plus the strategy's penalties."""

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
    """Builds the optimizer of one task, and its scheduler or None; `steps()` is the task's number of steps."""

    def __call__(self, task: str, parameters: list[Any], steps: Callable[[], int]) -> tuple[Optimizer, Any]: ...


def accumulated_batches(trainer: Trainer, epoch: int) -> int:
    """Return how many batches are accumulated per optimizer step in an epoch."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            return callback.get_accumulate_grad_batches(epoch)
    return trainer.accumulate_grad_batches


def optimizer_steps(trainer: Trainer) -> float:
    """Return the total number of optimizer steps of a training; infinite if only time limits it.

    Lightning's own estimate assumes the same number of accumulated batches in all epochs.
    """
    estimated = trainer.estimated_stepping_batches  # also sets up the dataloader if it is not there yet
    epochs, batches = trainer.max_epochs or 0, trainer.num_training_batches
    if epochs < 0 or math.isinf(batches):
        return estimated
    steps = sum(math.ceil(batches / accumulated_batches(trainer, epoch)) for epoch in range(max(epochs, 1)))
    return min(steps, trainer.max_steps) if trainer.max_steps != -1 else steps


class ContinualModule(LightningModule):
    """A backbone trained by a continual-learning strategy, one task at a time.

    The loss of an optimizer step is the mean negative log-likelihood over all labelled tokens of the step, in nats per
    token, plus the strategy's penalties. It does not depend on how the step's rows are divided into batches
    (`trainer.accumulate_grad_batches`) or among processes.

    Each task gets a new optimizer: Adam's moments belong to the task they were computed on, unless they are `carried`.

    Args:
        backbone: The model and its tokenizer.
        strategy: The continual-learning method.
        make_optimizer: Builds a task's optimizer over the trainable parameters.
        carried: Optimizer state that parameters keep from task to task; None: each task starts without.

    Attributes:
        tokens: Scalar, tokens of the last batch over all processes, without padding.
        step_share: The last batch's share of the labelled tokens of its optimizer step, in [0, 1].
        known_states: Context manager within which a batch's cached states of frozen layers replace their computation.
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
        self.strict_loading = False  # a saved state holds only what may have changed
        self.scoring_context: Callable[[], AbstractContextManager[None]] = nullcontext

    def adopt_precision(self, trainer: Trainer) -> None:
        """Adopt the Trainer's precision, so that all rows of the score matrix, including row 0, are scored in it.

        Lightning itself converts the weights only when the first `fit` starts, and its autocast ends with the step.
        """
        trainer.precision_plugin.convert_module(self)
        self.scoring_context = trainer.precision_plugin.forward_context

    def begin(self, task: str, steps_before: int) -> None:
        """Start the next task.

        Args:
            task: Its name.
            steps_before: Optimizer steps of the sequence before it.
        """
        self.task_name = task
        self.steps_before = steps_before
        self.train()

    def training_step(self, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        """Compute this batch's part of the step's loss.

        Returns:
            "loss": scalar, weighted by the batch's share of the step. "nats_per_token" and each penalty by name:
            scalars in nats, unweighted.

        Raises:
            FloatingPointError: The loss is not finite; the weights are those after the previous step.
            HookError: The penalties are not a dict of scalars by name.
        """
        with self.known_states(batch):
            output = self.backbone(batch)
        penalties = self.continual_strategy.penalties(self.backbone, batch, output)
        penalties = checked_penalties(self.continual_strategy, penalties)
        parts, process_weight = self._over_all_processes(batch, output, penalties)
        self.step_share = self._share_of_step(batch_index)
        # Lightning divides by the number of batches in a full step and averages the gradients of all processes.
        weight = process_weight * (self.step_share * self.trainer.accumulate_grad_batches)
        if not torch.isfinite(sum(parts.values(), torch.zeros(()))).all():
            raise FloatingPointError(self._not_finite(parts, batch))
        return {"loss": (output.loss + sum(penalties.values())) * weight, **parts}

    def _over_all_processes(
        self, batch: Batch, output: Output, penalties: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], float | Tensor]:
        """Return loss and penalties of the batch over all processes, and the weight of this process's own loss.

        Gradients are averaged over P processes. For a mean over all n labelled tokens, process p with n_p of them
        needs the weight P n_p / n. Penalties get the same weight: one that does not depend on the rows counts once,
        and one that is a mean over labelled tokens becomes that of the whole batch.
        """
        self.tokens = batch.attention_mask[batch.row >= 0].sum()
        parts = {"nats_per_token": output.loss.detach()}
        parts |= {name: value.detach() for name, value in penalties.items()}
        if world() == 1:
            return parts, 1.0
        count = torch.tensor(float(output.count), dtype=torch.float64, device=self.tokens.device)
        addends = [count, self.tokens, *(value.double() * count for value in parts.values())]
        labelled, self.tokens, *sums = total(torch.stack([value.double() for value in addends]))
        if not labelled:  # in any process
            return parts, 1.0
        means = [(value / labelled).float() for value in sums]
        return dict(zip(parts, means, strict=True)), (world() * count / labelled).float()

    def _share_of_step(self, batch_index: int) -> float:
        """Return a batch's share, over all processes, of the labelled tokens of its optimizer step.

        Lightning accumulates `accumulate_grad_batches` batches per step, and the rest at the end of an epoch. Without
        a `ContinualDataModule` all batches of a step count equally.
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

    def _not_finite(self, parts: dict[str, Tensor], batch: Batch) -> str:
        step = self.steps_before + self.trainer.global_step + 1
        penalties = "".join(f", {name} {value.item()}" for name, value in parts.items() if name != "nats_per_token")
        loss = float(sum(parts.values()))
        rows = sorted(row for row in gathered(batch.row.tolist()) if row >= 0)
        return (
            f"{self.task_name}: the loss is {loss}{penalties} at step {step} of the sequence, on rows {rows} of its "
            "training data. Nothing was learnt from them; the last saved state is kept. Choose a lower learning rate, "
            "or look at these rows"
        )

    def configure_optimizers(self) -> Any:
        """Build the task's optimizer over the trainable parameters, and a scheduler that advances each step.

        The strategy's `after_step` follows each of its steps.

        Raises:
            ValueError: Nothing is trainable.
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
        optimizer.register_step_post_hook(lambda *_: self.continual_strategy.after_step(self.backbone))
        if scheduler is None:
            return optimizer
        each_step = {"scheduler": scheduler, "interval": "step", "reduce_on_plateau": False}
        return {"optimizer": optimizer, "lr_scheduler": each_step}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Advance a scheduler, except `ReduceLROnPlateau`, which `TrainingCurve` advances with each step's loss.

        Lightning would advance that one only after a state is saved, so that a resumed run would lose a step.
        """
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Complete a state for a callback that averages weights: the file lacks what a replay restores."""
        if "averaging_state" in checkpoint:
            replayed = self.state_dict()
            for key in ("state_dict", "current_model_state"):
                checkpoint[key] = {**replayed, **checkpoint[key]}

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_index: int) -> Batch:
        """Move the four tensors of a batch."""
        return batch.to(device)
