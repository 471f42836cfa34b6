"""The LightningModule: a language-model loss plus whatever the strategy adds."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from workbench.backbone import Backbone
from workbench.batch import Batch, Output
from workbench.processes import gathered, total, world
from workbench.strategy import ContinualStrategy


class OptimizerFactory(Protocol):
    """Builds the optimizer of one task, and its scheduler or None; `steps` are that task's optimizer steps."""

    def __call__(self, task: str, parameters: list[Any], steps: Callable[[], int]) -> tuple[Optimizer, Any]: ...


class ContinualModule(LightningModule):
    """One backbone, one strategy, and the loss of whatever task is being learnt.

    The optimizer is built anew for each task: Adam's moments belong to the task they were gathered on.

    Args:
        backbone: What learns.
        strategy: How.
        make_optimizer: Builds a task's optimizer over the parameters that train.

    Attributes:
        tokens: Of the last batch, over all processes.
        known_states: What stands in, while a batch is learnt, for layers whose states of it are known.
    """

    known_states: Callable[[Batch], AbstractContextManager[Any]] = nullcontext

    def __init__(self, backbone: Backbone, strategy: ContinualStrategy, make_optimizer: OptimizerFactory) -> None:
        super().__init__()
        self.backbone = backbone
        self.continual_strategy = strategy
        self.make_optimizer = make_optimizer
        self.task_name = ""
        self.steps_before = 0
        self.tokens: Tensor = torch.zeros((), dtype=torch.long)
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
        """The mean nats per labelled token plus the penalties, and each of them by name.

        Raises:
            FloatingPointError: The loss is not finite; the weights are those of the step before.
        """
        with self.known_states(batch):
            output = self.backbone(batch)
        penalties = self.continual_strategy.penalties(self.backbone, batch, output)
        shown, part = self._over_all_processes(batch, output, penalties)
        if not torch.isfinite(sum(shown.values(), torch.zeros(()))).all():
            raise FloatingPointError(self._not_finite(shown, batch))
        if self.trainer.loggers:
            logged = {"loss": sum(shown.values()), **shown}
            step = float(self.steps_before + self.trainer.global_step)
            self.log_dict({**{f"train/{name}": value for name, value in logged.items()}, "step": step})
        return {"loss": output.loss * part + sum(penalties.values()), **shown}

    def _over_all_processes(
        self, batch: Batch, output: Output, penalties: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], float | Tensor]:
        """Nats per labelled token and penalties of the whole batch, and the weight of this process's own mean.

        Processes' gradients are averaged. So a mean over the labelled tokens of all of them needs each one's own mean
        weighted by its share of the tokens, times the number of processes; a mean of their means would be another one
        wherever their shares are not alike. A penalty is the mean of theirs.
        """
        self.tokens = batch.attention_mask[batch.row >= 0].sum()
        shown = {"nats_per_token": output.loss.detach()}
        shown |= {name: value.detach() for name, value in penalties.items()}
        if world() == 1:
            return shown, 1.0
        own = [output.loss_sum.detach(), self.tokens, *(value / world() for value in list(shown.values())[1:])]
        count = torch.tensor(output.count, device=self.tokens.device)
        count, nats, self.tokens, *means = total(torch.stack([value.double() for value in (count, *own)]))
        count = count.clamp(min=1)
        means = [mean.float() for mean in (nats / count, *means)]
        return dict(zip(shown, means, strict=True)), (world() * output.count / count).float()

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
        parameters = list(self.backbone.trainable().values())
        if not parameters:
            raise ValueError(
                f"{type(self.continual_strategy).__name__} left nothing to train for {self.task_name!r}: "
                "every parameter is frozen. Leave some to train in `setup` or `before_task`."
            )
        optimizer, scheduler = self.make_optimizer(
            self.task_name, parameters, lambda: int(self.trainer.estimated_stepping_batches)
        )
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_index: int) -> Batch:
        """Moves the four tensors of a batch."""
        return batch.to(device)
