"""Forecast the memory that a training step takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer

from workbench.backbone import Backbone, Batch
from workbench.backbone.batch import logits_held
from workbench.backbone.loading import blocks, is_checkpointed

MEMORY = Path("/proc/meminfo")
FLOAT = torch.float32.itemsize


@dataclass(frozen=True)
class Memory:
    """Bytes on one device while a task is trained; a sum of what is there at the end of a forward.

    Lightning clears the last step's gradients only after the forward, so that all four parts stand together then.
    What a strategy holds for itself, and what scoring takes, are not among them.

    Args:
        weights: And buffers, tied ones once.
        gradients: Of what trains.
        optimizer: Its state.
        activations: What the forward keeps for the gradients, and what the loss takes on its way back.
        frozen_states: What frozen layers make of the task's rows, where it is kept (`train.activation_cache`).
    """

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    frozen_states: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.frozen_states

    def __str__(self) -> str:
        size, unit = (1e9, "GB") if self.total >= 1e9 else (1e6, "MB")
        digits = 1 if unit == "GB" else 0
        named = {
            name.replace("_", " "): value for name, value in vars(self).items() if value or name != "frozen_states"
        }
        parts = ", ".join(f"{name} {value / size:.{digits}f}" for name, value in named.items())
        return f"{self.total / size:.{digits}f} {unit}: {parts}"

    def over(self, devices: int, sharded: bool) -> Memory:
        """One device's share; `activations` are its own already.

        Sharded training splits gradients and moments; the weights are whole on each device between its tasks. Where
        it is not sharded, each device has a second copy of the gradients, in which they are summed.
        """
        if devices == 1:
            return self
        if sharded:
            return Memory(self.weights, -(-self.gradients // devices), -(-self.optimizer // devices), self.activations)
        return Memory(self.weights, 2 * self.gradients, self.optimizer, self.activations)


def step_memory(backbone: Backbone, optimizer: Optimizer, row: Any, rows: int) -> Memory:
    """What a step on so many rows like a given one takes.

    Weights, gradients and optimizer are counted; activations are counted on one and on two rows, and are linear in
    their number: SDPA keeps no (time x time) scores, and what is kept once, such as weights cast by autocast, cancels.
    Logits alone stop growing, where they are made in parts.

    Args:
        backbone: As a strategy has set it up.
        optimizer: Of this task, after a step, so that its state is there.
        row: Encoded, as long as rows may be.
        rows: In a batch, on one device.
    """
    one, two = (_kept(backbone, backbone.collate([row] * count).to(backbone.device)) for count in (1, 2))
    many = _Kept(*(first + (second - first) * (rows - 1) for first, second in zip(one, two, strict=True)))
    return Memory(
        size_of([*backbone.parameters(), *backbone.buffers()]),
        size_of(parameter for group in optimizer.param_groups for parameter in group["params"]),
        size_of(value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)),
        _activations(backbone, many),
    )


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of some tensors, each counted once."""
    return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())


def kept_activations(backbone: Backbone, batch: Batch) -> int:
    """Bytes that a forward keeps for the gradients: each storage once, weights left out; and two times the logits.

    The gradient of the cross-entropy passes through two more tensors of the logits' size, in float32, while nothing
    is let go yet; where the logits are made in parts, all three are of one part. Checkpointed blocks keep
    their inputs, and one at a time is computed again in full.
    """
    return _activations(backbone, _kept(backbone, batch))


class _Kept(NamedTuple):
    """What a forward keeps, each linear in the rows: bytes, without the logits, and labelled tokens."""

    outside: int
    blocks: int
    largest_block: int
    inputs: int
    labelled: int


def _kept(backbone: Backbone, batch: Batch) -> _Kept:
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*backbone.parameters(), *backbone.buffers())}
    found: dict[int, tuple[int, nn.Module | None]] = {}
    inside: list[nn.Module | None] = [None]

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found.setdefault(storage.data_ptr(), (storage.nbytes(), inside[-1]))
        return tensor.detach()  # a node that kept its own output would never be let go

    with _watched(backbone, inside) as inputs, saved_tensors_hooks(keep, lambda tensor: tensor), torch.enable_grad():
        output = backbone(batch)
        loss = output.loss
    parts: dict[nn.Module | None, int] = {None: 0}
    for size, where in found.values():
        parts[where] = parts.get(where, 0) + size
    labelled = output.count
    del loss, output  # until here they have kept the storages apart
    held = _held(backbone, labelled)
    outside = parts.pop(None) - (held if held == labelled * _vocabulary(backbone) * FLOAT else 0)
    return _Kept(
        outside, sum(parts.values()), max(parts.values(), default=0), sum(inputs[block] for block in parts), labelled
    )


def _activations(backbone: Backbone, kept: _Kept) -> int:
    held = _held(backbone, kept.labelled)
    if not is_checkpointed(backbone):
        return kept.outside + kept.blocks + 3 * held
    return kept.outside + held + kept.inputs + max(2 * held, kept.largest_block)


def _held(backbone: Backbone, labelled: int) -> int:
    """Bytes of the logits that are there at once."""
    return logits_held(labelled, _vocabulary(backbone)) * FLOAT


def _vocabulary(backbone: Backbone) -> int:
    return int(backbone.model.get_input_embeddings().num_embeddings)


@contextmanager
def _watched(backbone: Backbone, inside: list[nn.Module | None]) -> Iterator[dict[nn.Module | None, int]]:
    """Keeps `inside[-1]` at the block that is at work, and gives the bytes of each one's input."""
    inputs: dict[nn.Module | None, int] = {}

    def enter(block: nn.Module, given: tuple[Any, ...]) -> None:
        inside.append(block)
        inputs[block] = given[0].nbytes

    def leave(block: nn.Module, given: Any, output: Any) -> None:
        inside.pop()

    handles = [block.register_forward_pre_hook(enter) for block in blocks(backbone)]
    handles += [block.register_forward_hook(leave) for block in blocks(backbone)]
    checkpointed = [block for block in blocks(backbone) if block.gradient_checkpointing]
    try:
        for block in checkpointed:  # it would hide what it computes
            block.gradient_checkpointing = False
        yield inputs
    finally:
        for block in checkpointed:
            block.gradient_checkpointing = True
        for handle in handles:
            handle.remove()


def free_memory(device: torch.device) -> int | None:
    """Bytes that a device has left for this process; None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device)
    try:
        lines = MEMORY.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
