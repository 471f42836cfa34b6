"""What cannot change while a task is trained, and is computed once: the states that frozen layers make of its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from workbench.backbone import Backbone, Batch
from workbench.backbone.adapters import adapter_layers
from workbench.composition import CalmModel, visit


@dataclass(frozen=True)
class Part:
    """The layers of one stack that make the same states of a row for as long as a task lasts.

    Args:
        stack: Embeddings, `layers`, final norm.
        depth: How many of its layers, the lowest, need not run once their states are known.
        kept: The layers among them, in rising order, whose output something reads that can change.
    """

    stack: Any
    depth: int
    kept: tuple[int, ...]

    @property
    def modules(self) -> list[nn.Module]:
        """All that the states depend on."""
        return [*_around(self.stack), *(each for layer in self.stack.layers[: self.depth] for each in layer.modules())]

    def read(self, tokens: Tensor) -> Tensor:
        """How many positions the stack has for each of the model's tokens: one, unless it spells them in its own."""
        table = getattr(self.stack, "pieces", None)
        return torch.ones_like(tokens) if table is None else (table[tokens] >= 0).sum(-1)

    def size(self, tokens: Tensor) -> int:
        """Bytes of the states at these tokens."""
        state: int = self.stack.config.hidden_size * self.stack.embed_tokens.weight.itemsize
        return int(self.read(tokens).sum()) * len(self.kept) * state


class FrozenStates:
    """The constant states of a task's rows, which stand in for the layers that make them.

    What a GEMM gives depends in its last bits on the shape of the batch. So the states are computed before the first
    step, in batches that depend on the rows alone: a run that is resumed gets the very same ones.

    Args:
        backbone: Where the parts are.
        parts: `constant_parts` of it.
        batches: The task's rows, each at least once, in an order that training does not change.
    """

    def __init__(self, backbone: Backbone, parts: Sequence[Part], batches: Iterable[Batch]) -> None:
        self.parts = parts
        self._modules: list[Any] = [module for part in parts for module in part.modules] + _above(backbone)
        self._weights = [weight for module in self._modules for weight in module.parameters(recurse=False)]
        self._states: dict[bytes, list[Tensor]] = {}
        with torch.no_grad():
            for batch in batches:
                self._states |= zip(row_keys(batch), self._computed(backbone, batch), strict=True)
        self._made_with = self._marks()

    @contextmanager
    def standing_in(self, batch: Batch) -> Iterator[None]:
        """While the context lasts, the model's forward of this batch takes the states from here.

        Where a row is unknown, or somebody has since changed a weight or put a hook on a layer, everything is computed.
        """
        rows = [self._states.get(key, []) for key in row_keys(batch)]
        if not all(rows) or self._marks() != self._made_with:
            yield
            return
        columns = zip(*rows, strict=True)
        forwards = {layer: _passed for part in self.parts for layer in part.stack.layers[: part.depth]}
        forwards |= {
            part.stack.layers[index]: partial(_given, next(columns)) for part in self.parts for index in part.kept
        }
        with _instead(forwards):
            yield

    def _computed(self, backbone: Backbone, batch: Batch) -> list[list[Tensor]]:
        """For each row its states at every kept layer, in the order of the parts."""
        rows: list[list[Tensor]] = [[] for _ in batch.row]
        forwards: dict[nn.Module, Callable[..., Any]] = {}
        for part in self.parts:
            lengths = (part.read(batch.input_ids) * batch.attention_mask).sum(1).tolist()
            for index, layer in enumerate(part.stack.layers):
                if index in part.kept:
                    forwards[layer] = partial(_recorded, layer.forward, rows, lengths)
                elif index > part.kept[-1]:
                    forwards[layer] = _passed
        with _instead(forwards):
            backbone.decoder(input_ids=batch.input_ids, use_cache=False)
        return rows

    def _marks(self) -> list[int]:
        """What changes when somebody writes to a weight, or listens to a module that is to be skipped."""
        hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in self._modules]
        return hooks + [weight._version for weight in self._weights]


def constant_parts(backbone: Backbone) -> list[Part]:
    """Where nothing that trains, no dropout, no adapter and no strategy's hook has a say in the states.

    The lowest layers of a model, up to the first that can change; in a composition all of the augmenting models, and
    the anchor up to its first connection.
    """
    decoder: Any = backbone.decoder
    if not all(map(_plain, _above(backbone))):
        return []
    if not isinstance(backbone.decoder, CalmModel):
        return _lowest(decoder, None)
    pairs = decoder.config.connections
    parts = [
        Part(stack, len(stack.layers), tuple(sorted({lower for lower, _ in links})))
        for stack, links in zip(decoder.augmenting, pairs, strict=True)
    ]
    first = min(upper for links in pairs for _, upper in links)
    return [*(part for part in parts if all(map(_constant, part.modules))), *_lowest(decoder.anchor, first + 1)]


def states_size(parts: Sequence[Part], tokens: Tensor) -> int:
    """Bytes of all parts' states at these tokens, (any number,) of the model's ids."""
    return sum(part.size(tokens) for part in parts)


def too_large(size: int, limit: float) -> str:
    """What a person is told where states do not fit, (bytes, and the limit in 10^9 bytes)."""
    told = f"{size / 1e9:.2g} GB is more than data.frozen_states_gb={limit:g}"
    return f"what frozen layers make of the rows is computed in each step: {told}"


def row_keys(batch: Batch) -> list[bytes]:
    """What names a row wherever it stands: its own tokens, without padding."""
    tokens, lengths = batch.input_ids.cpu(), batch.attention_mask.sum(1).tolist()
    return [row[:length].numpy().tobytes() for row, length in zip(tokens, lengths, strict=True)]


def _lowest(stack: Any, most: int | None) -> list[Part]:
    depth = 0
    for layer in stack.layers[:most]:
        if not all(map(_constant, layer.modules())):
            break
        depth += 1
    return [Part(stack, depth, (depth - 1,))] if depth and all(map(_constant, _around(stack))) else []


def _above(backbone: Backbone) -> list[nn.Module]:
    """The modules that pass tokens on to the stacks."""
    return [backbone, backbone.model, backbone.decoder]


def _around(stack: Any) -> list[nn.Module]:
    """What a stack's layers read of itself: the embeddings, the angles, and whatever a strategy has added."""
    inside = (child for name, child in stack.named_children() if name not in ("layers", "norm"))
    return [each for child in inside for each in child.modules()]


def _constant(module: nn.Module) -> bool:
    drops = (isinstance(module, _DropoutNd) and module.p > 0) or getattr(module, "attention_dropout", 0) > 0
    trains = any(weight.requires_grad for weight in module.parameters(recurse=False))
    return _plain(module) and not drops and not trains and not adapter_layers(module)


def _plain(module: nn.Module) -> bool:
    """Whether a module does what its class says: its forward is not replaced, and nobody listens or changes it."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    ours = all(getattr(hook, "func", None) is visit for hook in hooks)
    return ours and "forward" not in vars(module)


@contextmanager
def _instead(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Other forwards while the context lasts; the modules stay in their places, and so do hooks on them."""
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module in forwards:
            vars(module).pop("forward", None)


def _passed(states: Tensor, *_: Any, **__: Any) -> Tensor:
    return states


def _given(rows: Sequence[Tensor], states: Tensor, *_: Any, **__: Any) -> Tensor:
    """(batch, time, width), zeros at padding."""
    filled = rows[0].new_zeros(len(rows), states.shape[1], rows[0].shape[1])
    for place, row in enumerate(rows):
        filled[place, : len(row)] = row
    return filled


def _recorded(forward: Callable[..., Any], rows: Any, lengths: Any, states: Tensor, *args: Any, **given: Any) -> Any:
    output = forward(states, *args, **given)
    for kept, row, length in zip(rows, output, lengths, strict=True):
        kept.append(row[:length].clone())
    return output
