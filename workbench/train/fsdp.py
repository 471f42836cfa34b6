"""Fully sharded training (FSDP2) of a model that is whole between its tasks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from workbench.backbone import Backbone
from workbench.backbone.loading import blocks

POLICIES = {
    "32-true": MixedPrecisionPolicy(),
    "64-true": MixedPrecisionPolicy(),
    "bf16-mixed": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32),
    "bf16-true": MixedPrecisionPolicy(reduce_dtype=torch.float32),
}
"""By Lightning's `precision`: what the blocks compute in, and what gradients are summed in over the devices."""


class Sharded(DDPStrategy):
    """Splits weights, gradients and optimizer state over the devices while a task is trained; `strategy: fsdp`.

    Each transformer block is a unit of its own, blocks that a method has inserted included; embeddings, final norm
    and head are one more. Between tasks, while scores are made and when a state is saved, each device holds the whole
    model: so the hooks that reshape it see an ordinary one, and processes need not make the same number of forwards
    when they score. Lightning's own `FSDPStrategy` wraps the module for good, needs a GPU, and cannot clip by norm.

    In `penalties` and `edit_gradients` weights and gradients are a device's own part (`DTensor`).

    Raises:
        ValueError: The Trainer's precision is none of `POLICIES`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._whole: Any = None  # the backbone as it is between tasks, without its weights while they are sharded
        self._scoring: Callable[[], AbstractContextManager[None]] | None = None
        self._saving = ExitStack()

    @property
    def precision_plugin(self) -> Precision:
        """How Lightning casts; the blocks follow `POLICIES`."""
        return super().precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, plugin: Precision | None) -> None:
        if plugin is not None and plugin.precision not in POLICIES:
            raise ValueError(
                f"precision={plugin.precision!r} is not sharded here. Choose one of {', '.join(POLICIES)}."
            )
        self._precision_plugin = plugin

    def setup(self, trainer: Trainer) -> None:
        """Also sees that the model is whole again before any other callback sees the end of the training."""
        trainer.callbacks.insert(0, _WholeAgain(self))  # type: ignore[attr-defined]
        super().setup(trainer)

    def configure_ddp(self) -> None:
        """Shards the backbone in the place where others are wrapped: before the optimizer is built."""
        module: Any = self.lightning_module
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        policy = POLICIES[self.precision_plugin.precision]
        self._whole, self._scoring = module.backbone, module.scoring_context
        module.backbone = sharded(module.backbone, mesh, policy)
        module.scoring_context = self._scoring_whole

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Has the module's backbone whole on every device for a while; what trains must not be changed."""
        module: Any = self.lightning_module
        shards, module.backbone = module.backbone, self._whole
        gather(self._whole, shards)
        try:
            yield
        finally:
            module.backbone = shards
            let_go(self._whole)

    def make_whole(self) -> None:
        """Ends the sharding: every device has all that was learnt."""
        gather(self._whole, self.lightning_module.backbone)  # type: ignore[union-attr, arg-type]
        self._end()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole weights; the module stays whole until the state, which looks at it, has been saved."""
        if self._whole is not None:
            self._saving.enter_context(self.whole())
        return super().lightning_module_state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Writes a whole state, such as any number of devices can go on with."""
        with self._saving:
            super().save_checkpoint(checkpoint, filepath, storage_options)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The whole moments, which all devices have to ask for."""
        return tree_map(_full, super().optimizer_state(optimizer))  # type: ignore[no-any-return]

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Splits whole moments as their weights are split."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state = {
                index: {name: split(value, parameters[index]) for name, value in moments.items()}
                for index, moments in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})

    def teardown(self) -> None:
        """Where a training failed, its shards are given up."""
        if self._whole is not None:
            self._end()
        super().teardown()

    def _end(self) -> None:
        module: Any = self.lightning_module
        module.backbone, module.scoring_context = self._whole, self._scoring
        self._whole = None

    @contextmanager
    def _scoring_whole(self) -> Iterator[None]:
        with self.whole(), self._scoring():  # type: ignore[misc]
            yield


class _WholeAgain(Callback):
    def __init__(self, strategy: Sharded) -> None:
        self.strategy = strategy

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.strategy.make_whole()


def chosen(strategy: Any) -> Any:
    """A Trainer's `strategy` as the config gives it, "fsdp" being `Sharded`.

    Raises:
        ValueError: It would wrap the module for good, and a sequence of tasks would end with the first.
    """
    if strategy == "fsdp":
        return Sharded()
    if isinstance(strategy, FSDPStrategy | ModelParallelStrategy) or str(strategy).startswith("fsdp"):
        name = strategy if isinstance(strategy, str) else type(strategy).__name__
        raise ValueError(f"strategy: {name} wraps the model for good. Give 'fsdp', or workbench.train.Sharded.")
    return strategy


def sharded(backbone: Backbone, mesh: DeviceMesh, policy: MixedPrecisionPolicy) -> Backbone:
    """A backbone of the same structure that holds each weight in parts over the devices; the given one is emptied.

    The structure is copied, because FSDP cannot be taken off again; the given modules and parameters wait meanwhile,
    so that between tasks they are the same objects.

    Args:
        backbone: Whole, on its device.
        mesh: The devices, in one dimension.
        policy: What is computed and summed in.
    """
    configs = [module.config for module in backbone.modules() if hasattr(module, "config")]
    shared = [*backbone.parameters(), *backbone.buffers(), *configs, backbone.tokenizer, backbone.encoder]
    copied = copy.deepcopy(backbone, {id(item): item for item in shared})
    for block in blocks(copied):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(copied, mesh=mesh, mp_policy=policy)
    let_go(backbone)
    return copied


@torch.no_grad()
def gather(whole: Backbone, shards: Backbone) -> None:
    """Fills a backbone with what its sharded copy holds; all devices have to."""
    parts = dict(shards.named_parameters())
    for name, parameter in whole.named_parameters():
        parameter.data = _full(parts[name].detach())


def let_go(backbone: Backbone) -> None:
    """Frees the weights; the parameters stay, without a value."""
    for parameter in backbone.parameters():
        parameter.data = parameter.data.new_empty(0)


def _full(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value


def split(value: Any, parameter: Tensor) -> Any:
    """Split a whole tensor as a parameter is split; anything else, and beside a whole parameter, stays as it is."""
    if not isinstance(value, Tensor) or not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
