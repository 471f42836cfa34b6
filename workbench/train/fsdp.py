"""Fully sharded training (FSDP2) of a model that is unsharded between tasks."""

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
"""For each `precision` of Lightning: the dtype of the blocks' computation, and of the gradients' reduction."""


class Sharded(DDPStrategy):
    """Shards weights, gradients and optimizer state over the devices while a task is trained; `strategy: fsdp`.

    Each transformer block is a unit, including blocks that a method has inserted; embeddings, final norm and head form
    one more. Between tasks, during scoring and when a state is saved, each device holds the whole model. So hooks that
    reshape it see an ordinary model, and processes need not execute the same number of forward passes when they score.
    Lightning's own `FSDPStrategy` wraps the module permanently, needs a GPU, and cannot clip gradients by norm.

    In `penalties`, `edit_gradients` and `after_step`, weights and gradients are the device's own shards (`DTensor`).

    Raises:
        ValueError: The Trainer's precision is none of `POLICIES`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._whole: Any = None  # the unsharded backbone, whose weights are empty while a task is trained
        self._scoring_context: Callable[[], AbstractContextManager[None]] | None = None
        self._while_saving = ExitStack()

    @property
    def precision_plugin(self) -> Precision:
        """Lightning's precision; the blocks follow `POLICIES`."""
        return super().precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, plugin: Precision | None) -> None:
        if plugin is not None and plugin.precision not in POLICIES:
            raise ValueError(
                f"precision={plugin.precision!r} is not sharded here. Choose one of {', '.join(POLICIES)}."
            )
        self._precision_plugin = plugin

    def setup(self, trainer: Trainer) -> None:
        """Set up, with a callback that unshards the model before any other callback's `on_train_end`."""
        trainer.callbacks.insert(0, _Unshard(self))  # type: ignore[attr-defined]
        super().setup(trainer)

    def configure_ddp(self) -> None:
        """Shard the backbone; Lightning calls this before the optimizer is built."""
        module: Any = self.lightning_module
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        policy = POLICIES[self.precision_plugin.precision]
        self._whole, self._scoring_context = module.backbone, module.scoring_context
        module.backbone = sharded(module.backbone, mesh, policy)
        module.scoring_context = self._whole_scoring_context

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Make the module's backbone whole on every device within the context; its weights must not be changed."""
        module: Any = self.lightning_module
        shards, module.backbone = module.backbone, self._whole
        gather(self._whole, shards)
        try:
            yield
        finally:
            module.backbone = shards
            free_weights(self._whole)

    def make_whole(self) -> None:
        """Unshard permanently: every device gets all trained weights."""
        gather(self._whole, self.lightning_module.backbone)  # type: ignore[union-attr, arg-type]
        self._end()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the unsharded weights; the module stays whole until `save_checkpoint` has written them."""
        if self._whole is not None:
            self._while_saving.enter_context(self.whole())
        return super().lightning_module_state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write an unsharded state, from which any number of devices can resume."""
        with self._while_saving:
            super().save_checkpoint(checkpoint, filepath, storage_options)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Return the unsharded optimizer state; all processes have to call this."""
        return tree_map(_full, super().optimizer_state(optimizer))  # type: ignore[no-any-return]

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load an unsharded optimizer state, sharded as its weights are."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state = {
                index: {name: split(value, parameters[index]) for name, value in moments.items()}
                for index, moments in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})

    def teardown(self) -> None:
        """Tear down; after a failed training, the shards are discarded."""
        if self._whole is not None:
            self._end()
        super().teardown()

    def _end(self) -> None:
        module: Any = self.lightning_module
        module.backbone, module.scoring_context = self._whole, self._scoring_context
        self._whole = None

    @contextmanager
    def _whole_scoring_context(self) -> Iterator[None]:
        with self.whole(), self._scoring_context():  # type: ignore[misc]
            yield


class _Unshard(Callback):
    def __init__(self, strategy: Sharded) -> None:
        self.strategy = strategy

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.strategy.make_whole()


def resolve_strategy(strategy: Any) -> Any:
    """Return a config's `trainer.strategy` for the Trainer, with "fsdp" replaced by `Sharded`.

    Raises:
        ValueError: It would wrap the module permanently, so that a sequence would end after its first task.
    """
    if strategy == "fsdp":
        return Sharded()
    if isinstance(strategy, FSDPStrategy | ModelParallelStrategy) or str(strategy).startswith("fsdp"):
        name = strategy if isinstance(strategy, str) else type(strategy).__name__
        raise ValueError(f"strategy: {name} wraps the model for good. Give 'fsdp', or workbench.train.Sharded.")
    return strategy


def sharded(backbone: Backbone, mesh: DeviceMesh, policy: MixedPrecisionPolicy) -> Backbone:
    """Return a sharded copy of a backbone, and free the weights of the given one.

    The structure is copied, because FSDP cannot be removed from a module. The given modules and parameters stay, so
    that they are the same objects before and after a task.

    Args:
        backbone: Unsharded, on its device.
        mesh: The devices, in one dimension.
        policy: Dtypes of computation and reduction.
    """
    configs = [module.config for module in backbone.modules() if hasattr(module, "config")]
    shared = [*backbone.parameters(), *backbone.buffers(), *configs, backbone.tokenizer, backbone.encoder]
    copied = copy.deepcopy(backbone, {id(item): item for item in shared})
    for block in blocks(copied):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(copied, mesh=mesh, mp_policy=policy)
    free_weights(backbone)
    return copied


@torch.no_grad()
def gather(whole: Backbone, shards: Backbone) -> None:
    """Fill a backbone with the weights of its sharded copy; all processes have to call this."""
    parameters = dict(shards.named_parameters())
    for name, parameter in whole.named_parameters():
        parameter.data = _full(parameters[name].detach())


def free_weights(backbone: Backbone) -> None:
    """Free the weights; the parameters stay, without values."""
    for parameter in backbone.parameters():
        parameter.data = parameter.data.new_empty(0)


def _full(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value


def split(value: Any, parameter: Tensor) -> Any:
    """Shard a tensor as a parameter of the same shape is sharded; return anything else as it is."""
    if not isinstance(value, Tensor) or not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
