"""Weights that tasks change: copies with adapters folded in, and weights that wait while others are scored."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from workbench.backbone import adapters

if TYPE_CHECKING:
    from workbench.backbone.backbone import Backbone

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer dtypes by size in bytes."""
NEARLY_PARALLEL = 1e-6
"""Sine of the angle below which two tensors are averaged."""


def plain_parameters(backbone: Backbone) -> dict[str, nn.Parameter]:
    """Return the parameters that a task changes, by their names in the plain model; a tied one occurs once.

    These are the trainable ones, and in place of an adapter's factors the weights into which it is folded.

    Args:
        backbone: The model, before a task.

    Raises:
        ValueError: A trainable weight is parametrized, so that no arithmetic on its parts is one on the weight.
    """
    model = backbone.model
    carriers, factors = adapters.carriers_and_factors(model)
    chosen = {}
    for name, parameter in model.named_parameters():
        if parameter in carriers or (parameter.requires_grad and parameter not in factors):
            if ".parametrizations." in name:
                weight = name.partition(".parametrizations.")[0]
                problem = f"{weight} is computed from several parameters, and no mean of these is the weight's mean."
                raise ValueError(f"{problem} Merging and averaging need a method that trains plain weights.")
            chosen[_plain(name)] = parameter
    return chosen


def plain_weights(backbone: Backbone, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Return copies of weights on the CPU, of any shapes (...,), with the adapters folded in.

    Args:
        backbone: The model.
        names: Names in the plain model; None: those of `plain_parameters`.
    """
    names = list(plain_parameters(backbone) if names is None else names)
    by_name = parameters_by_name(backbone)
    with torch.no_grad(), backbone.merged():
        return {name: by_name[name].detach().to("cpu", copy=True) for name in names}


def parameters_by_name(backbone: Backbone) -> dict[str, nn.Parameter]:
    """Return all parameters by their names in the plain model, and adapters' factors by their own.

    Args:
        backbone: The model.
    """
    return {_plain(name): parameter for name, parameter in backbone.model.named_parameters()}


@torch.no_grad()
def write_weights(backbone: Backbone, values: Mapping[str, Tensor]) -> None:
    """Write weights into the model, in its dtype.

    Args:
        backbone: The model; an adapter on one of the weights has to begin at zero.
        values: The weights by name (`parameters_by_name`), of any shapes (...,).

    Raises:
        ValueError: An adapter adds to one of the weights.
    """
    by_name, carriers = parameters_by_name(backbone), adapters.carriers_and_factors(backbone.model)[0]
    for name, value in values.items():
        by_name[name].copy_(value)
    carrying = {name: by_name[name] for name in values if by_name[name] in carriers}
    before = {name: parameter.clone() for name, parameter in carrying.items()}
    with backbone.merged():
        changed = [name for name, parameter in carrying.items() if not torch.equal(parameter, before[name])]
    if changed:
        problem = f"the adapter of {changed[0]} does not begin at zero (DoRA does not)"
        raise ValueError(f"{problem}, so it would change the weights that are put back. Choose another adapter.")


class SetAside:
    """Weights that wait while others are scored, and go on to the next task.

    Attributes:
        waiting: The waiting weights by name, on the CPU; empty: none.
        scored: Checksum of the weights that are scored in their place.
    """

    def __init__(self) -> None:
        self.waiting: Mapping[str, Tensor] = {}
        self.scored = 0

    def replace(self, backbone: Backbone, scored: Mapping[str, Tensor], waiting: Mapping[str, Tensor]) -> None:
        """Write the weights to score.

        Args:
            backbone: The model.
            scored: By name, of any shapes (...,).
            waiting: The weights that the next task starts from, under the same names.
        """
        write_weights(backbone, scored)
        self.waiting, self.scored = dict(waiting), _checksum(backbone, waiting)

    def bring_back(self, backbone: Backbone) -> None:
        """Write the waiting weights, if there are any.

        Args:
            backbone: The model, before a task.

        Raises:
            ValueError: The model no longer has the weights that were scored: another strategy has changed them.
        """
        if not self.waiting:
            return
        if _checksum(backbone, self.waiting) != self.scored:
            problem = "the weights changed after they were merged or averaged: another strategy did it, or an adapter"
            remedy = "List that strategy first, or let the scored weights go on to the next task."
            raise ValueError(f"{problem} took a part of them (PiSSA, OLoRA). It would be undone. {remedy}")
        write_weights(backbone, self.waiting)
        self.waiting = {}

    def state(self) -> dict[str, Any]:
        """Return the state, for `get_extra_state`."""
        return {"waiting": dict(self.waiting), "scored": self.scored}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore the state, for `set_extra_state`."""
        self.waiting, self.scored = dict(state["waiting"]), state["scored"]


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor (...,) in float32, or in float64 if it is in float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def slerp_shares(dot: float, first: float, second: float, weight: float) -> tuple[float, float]:
    """Return the coefficients of A and B in their spherical linear interpolation.

        sin((1 - weight) ω) / sin ω · A + sin(weight ω) / sin ω · B

    with ω the angle between the flattened tensors (Shoemake, 1985, "Animating rotation with quaternion curves"). The
    tensors are not normalized: if both have the same norm, so has the result, unlike their average. If sin ω is below
    1e-6 or a tensor is zero, there is no arc, and the coefficients are those of the average.

    Args:
        dot: Inner product of the flattened tensors.
        first: Norm of A.
        second: Norm of B.
        weight: Share of B, in [0, 1].

    >>> round(slerp_shares(0.0, 1.0, 2.0, 1 / 3)[1], 9)  # sin 30° / sin 90°
    0.5
    """
    if first == 0 or second == 0:
        return 1 - weight, weight
    angle = math.acos(max(-1.0, min(1.0, dot / first / second)))
    if math.sin(angle) < NEARLY_PARALLEL:
        return 1 - weight, weight
    return math.sin((1 - weight) * angle) / math.sin(angle), math.sin(weight * angle) / math.sin(angle)


def _plain(name: str) -> str:
    return name.replace(".base_layer.", ".")


def _checksum(backbone: Backbone, names: Iterable[str]) -> int:
    """Return the sum of the weights' bits, which is the same on every device."""
    by_name = parameters_by_name(backbone)
    bits = (by_name[name].detach().view(INTEGERS[by_name[name].itemsize]) for name in names)
    return sum(int(value.sum(dtype=torch.int64)) for value in bits)
