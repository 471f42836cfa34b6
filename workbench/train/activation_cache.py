"""Cache of the states that frozen layers compute of a task's rows, which cannot change while the task is trained."""

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
from workbench.backbone.unpadded import BY_POSITION
from workbench.composition import CalmModel, visit


@dataclass(frozen=True)
class Part:
    """The layers of one decoder stack whose states of a row do not change during a task.

    Args:
        stack: Embeddings, `layers`, final norm.
        depth: Number of lowest layers that can be skipped once their states are cached.
        cached: Indices of those layers whose output is read by something that can change, in rising order.
    """

    stack: Any
    depth: int
    cached: tuple[int, ...]

    @property
    def modules(self) -> list[nn.Module]:
        """All modules that the states depend on."""
        layers = self.stack.layers[: self.depth]
        return [*_around_layers(self.stack), *(module for layer in layers for module in layer.modules())]

    def positions(self, tokens: Tensor) -> Tensor:
        """Return how many positions of the stack each token takes: one, unless the stack has its own vocabulary."""
        table = getattr(self.stack, "pieces", None)
        return torch.ones_like(tokens) if table is None else (table[tokens] >= 0).sum(-1)

    def size(self, tokens: Tensor) -> int:
        """Return the size of the cached states of these tokens in bytes."""
        state: int = self.stack.config.hidden_size * self.stack.embed_tokens.weight.itemsize
        return int(self.positions(tokens).sum()) * len(self.cached) * state


class FrozenStates:
    """Cached states of a task's rows, which replace the frozen layers that compute them.

    The last bits of a matrix product depend on the shape of the batch. So the states are computed before the first
    step, in batches that depend on the rows alone: a resumed run gets bitwise the same states.

    Args:
        backbone: The model.
        parts: Its `constant_parts`.
        batches: The task's rows, each at least once, in an order that does not depend on training.
    """

    def __init__(self, backbone: Backbone, parts: Sequence[Part], batches: Iterable[Batch]) -> None:
        self.parts = parts
        self._modules: list[Any] = [module for part in parts for module in part.modules] + _wrappers(backbone)
        self._weights = [weight for module in self._modules for weight in module.parameters(recurse=False)]
        self._states: dict[bytes, list[Tensor]] = {}
        with torch.no_grad():
            for batch in batches:
                self._states |= zip(row_keys(batch), self._compute(backbone, batch), strict=True)
        self._initial_versions = self._versions()

    @contextmanager
    def replaying(self, batch: Batch) -> Iterator[None]:
        """Within the context, let the model's forward pass of this batch use the cached states.

        Nothing is replaced if a row is not cached, or if a weight was changed or a hook was added since.
        """
        rows = [self._states.get(key, []) for key in row_keys(batch)]
        if not all(rows) or self._versions() != self._initial_versions:
            yield
            return
        states_by_layer = zip(*rows, strict=True)
        forwards = {layer: _skip for part in self.parts for layer in part.stack.layers[: part.depth]}
        forwards |= {
            part.stack.layers[index]: partial(_replay, next(states_by_layer))
            for part in self.parts
            for index in part.cached
        }
        with _replaced(forwards):
            yield

    def _compute(self, backbone: Backbone, batch: Batch) -> list[list[Tensor]]:
        """Return for each row its states, (time, width), at every cached layer, in the order of the parts."""
        rows: list[list[Tensor]] = [[] for _ in batch.row]
        forwards: dict[nn.Module, Callable[..., Any]] = {}
        for part in self.parts:
            lengths = (part.positions(batch.input_ids) * batch.attention_mask).sum(1).tolist()
            for index, layer in enumerate(part.stack.layers):
                if index in part.cached:
                    forwards[layer] = partial(_record, layer.forward, rows, lengths)
                elif index > part.cached[-1]:
                    forwards[layer] = _skip
        with _replaced(forwards):
            backbone.decoder(input_ids=batch.input_ids, use_cache=False)
        return rows

    def _versions(self) -> list[int]:
        """Return numbers that change when a weight is written to, or a hook is added to a module to be skipped."""
        hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in self._modules]
        return hooks + [weight._version for weight in self._weights]


def constant_parts(backbone: Backbone) -> list[Part]:
    """Return the parts of the model whose states do not change: nothing trains, no dropout, no adapter, no hook.

    In a model these are the lowest layers up to the first that can change; in a composition all layers of the
    augmenting models, and those of the anchor up to its first connection.
    """
    decoder: Any = backbone.decoder
    if not all(map(_is_unmodified, _wrappers(backbone))):
        return []
    if not isinstance(backbone.decoder, CalmModel):
        return _lowest_part(decoder, None)
    connections = decoder.config.connections
    parts = [
        Part(stack, len(stack.layers), tuple(sorted({lower for lower, _ in pairs})))
        for stack, pairs in zip(decoder.augmenting, connections, strict=True)
    ]
    first = min(upper for pairs in connections for _, upper in pairs)
    constant = [part for part in parts if all(map(_is_constant, part.modules))]
    return [*constant, *_lowest_part(decoder.anchor, first + 1)]


def states_size(parts: Sequence[Part], tokens: Tensor) -> int:
    """Return the size of all parts' cached states in bytes.

    Args:
        parts: `constant_parts` of the model.
        tokens: (tokens,), the model's token ids.
    """
    return sum(part.size(tokens) for part in parts)


def too_large(size: int, limit: float) -> str:
    """Return the message for states that do not fit.

    Args:
        size: Bytes of the states.
        limit: `data.frozen_states_gb`, in 10^9 bytes.
    """
    comparison = f"{size / 1e9:.2g} GB is more than data.frozen_states_gb={limit:g}"
    return f"states of frozen layers are computed in each step: {comparison}"


def row_keys(batch: Batch) -> list[bytes]:
    """Return a key for each row that does not depend on its batch: its tokens without padding."""
    tokens, lengths = batch.input_ids.cpu(), batch.attention_mask.sum(1).tolist()
    return [row[:length].numpy().tobytes() for row, length in zip(tokens, lengths, strict=True)]


def _lowest_part(stack: Any, max_depth: int | None) -> list[Part]:
    depth = 0
    for layer in stack.layers[:max_depth]:
        if not all(map(_is_constant, layer.modules())):
            break
        depth += 1
    return [Part(stack, depth, (depth - 1,))] if depth and all(map(_is_constant, _around_layers(stack))) else []


def _wrappers(backbone: Backbone) -> list[nn.Module]:
    """Return the modules that pass tokens on to the stacks."""
    return [backbone, backbone.model, backbone.decoder]


def _around_layers(stack: Any) -> list[nn.Module]:
    """Return what a stack's layers depend on beside themselves: embeddings, rotary angles, a strategy's modules."""
    children = (child for name, child in stack.named_children() if name not in ("layers", "norm"))
    return [module for child in children for module in child.modules()]


def _is_constant(module: nn.Module) -> bool:
    drops = (isinstance(module, _DropoutNd) and module.p > 0) or getattr(module, "attention_dropout", 0) > 0
    trains = any(weight.requires_grad for weight in module.parameters(recurse=False))
    return _is_unmodified(module) and not drops and not trains and not adapter_layers(module)


def _is_unmodified(module: nn.Module) -> bool:
    """Return True if a module computes what its class defines: its forward is not replaced, and it has no hooks."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    only_ours = all(getattr(hook, "func", None) is visit for hook in hooks)
    return only_ours and "forward" not in vars(module)


@contextmanager
def _replaced(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Replace the forward methods of modules within the context; hooks on the modules still run."""
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module in forwards:
            vars(module).pop("forward", None)


def _skip(states: Tensor, *_: Any, **__: Any) -> Tensor:
    return states


def _replay(rows: Sequence[Tensor], states: Tensor, *_: Any, **__: Any) -> Tensor:
    """Return cached states as (batch, time, width), with zeros at padding; or end to end, as `states` are."""
    if len(states) < len(rows):
        return torch.cat([*rows])[None]
    padded = rows[0].new_zeros(len(rows), states.shape[1], rows[0].shape[1])
    for place, row in enumerate(rows):
        padded[place, : len(row)] = row
    return padded


setattr(_skip, BY_POSITION, True)
setattr(_replay, BY_POSITION, True)


def _record(forward: Callable[..., Any], rows: Any, lengths: Any, states: Tensor, *args: Any, **kwargs: Any) -> Any:
    output = forward(states, *args, **kwargs)
    for row_states, row, length in zip(rows, output, lengths, strict=True):
        row_states.append(row[:length].clone())
    return output
