"""Layer surgery: a plan lists the source layer of each layer of the new stack, and `restack` builds it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PlannedLayer(NamedTuple):
    """One layer of the new stack.

    Attributes:
        source: Index of the layer in the current stack whose weights it has.
        identity: Whether its output projections are zero, so that it returns its input.
    """

    source: int
    identity: bool = False


Plan = Sequence[PlannedLayer]
"""One entry for each layer of the new stack, bottom first."""


def compose_plans(first: Plan, second: Plan) -> list[PlannedLayer]:
    """Return the single plan that is equivalent to two successive plans.

    A layer that is an identity in either plan is one in the result.

    Args:
        first: Plan over the layers of the original model.
        second: Plan over the layers that the first plan gives.

    >>> compose_plans([PlannedLayer(0), PlannedLayer(0, True)], [PlannedLayer(1), PlannedLayer(1, True)])
    [PlannedLayer(source=0, identity=True), PlannedLayer(source=0, identity=True)]
    """
    return [
        PlannedLayer(first[planned.source].source, planned.identity or first[planned.source].identity)
        for planned in second
    ]


def recorded_plan(config: Any) -> list[PlannedLayer]:
    """Return the layer plan that a model's config records; empty if the model was never grown.

    Args:
        config: Config of the model.

    Raises:
        ValueError: The record is not a layer plan.
    """
    recorded = getattr(config, "layer_plan", None) or []
    try:
        return [PlannedLayer(int(source), bool(identity)) for source, identity in recorded]
    except (TypeError, ValueError) as error:
        expected = "expected pairs of a layer and whether it began as the identity. Fix the model's config.json."
        raise ValueError(f"layer_plan={recorded!r}: {expected}") from error


def refuse_second_growth(config: Any, again: bool) -> None:
    """Raise an error if the model was already grown and `again` is False.

    Args:
        config: Config of the model as loaded.
        again: Allow a model that was already grown.

    Raises:
        ValueError: The model was grown before.
    """
    plan = recorded_plan(config)
    if plan and not again:
        origin = len({layer.source for layer in plan})
        raise ValueError(
            f"The model was grown before: its {len(plan)} layers come from {origin}, as `layer_plan` in its config "
            "records. Give again=true to grow it once more, or begin with the model that it was made from."
        )


def restack(model: PreTrainedModel, plan: Plan) -> nn.ModuleList:
    """Rebuild a model's layers in place according to a plan.

    The first occurrence of a source layer, unless it is an identity, is the module itself; all others are copies. The
    config's depth and `layer_types` and each layer's cache index are updated: a stale value would drop layers or break
    cached decoding without an error.

    Args:
        model: A model whose decoder has `layers` with `self_attn.o_proj` and `mlp.down_proj`.
        plan: One entry for each layer of the new stack, bottom first.

    Returns:
        The new layers, now those of the model. `model.config.layer_plan` records the plan; if the model was grown
        before, the recorded sources are the layers of the original model.

    Raises:
        ValueError: The plan is empty or names a layer that does not exist; the model is not a decoder of the LLaMA
            family, or has adapters, which belong to the current layer numbers.
    """
    sources = stackable_layers(model)
    check_plan(plan, len(sources))
    decoder = getattr(model, model.base_model_prefix)
    used: set[int] = set()
    layers = []
    for index, planned in enumerate(plan):
        layer = sources[planned.source]
        if planned.identity or planned.source in used:
            layer = copy_layer(layer)
        else:
            used.add(planned.source)
        if planned.identity:
            make_identity(layer)
        layer.self_attn.layer_idx = index
        layers.append(layer)
    stack = nn.ModuleList(layers)
    decoder.layers = stack
    for key, value in described(model.config, plan).items():
        setattr(model.config, key, value)
    return stack


def copy_layer(layer: nn.Module) -> Any:
    """Return a copy of a layer with separate weights that shares the model's config object.

    Args:
        layer: The layer to copy.
    """
    shared = {id(module.config): module.config for module in layer.modules() if hasattr(module, "config")}
    return copy.deepcopy(layer, shared)


@torch.no_grad()
def make_identity(layer: Any) -> None:
    """Set a layer's contributions to the residual stream to zero: `o_proj` and `down_proj`, weights and biases.

    The norm scales are unchanged: with them at zero too, the branch would be a product of two vanishing factors and
    no gradient would reach it (LLaMA Pro, arXiv 2401.02415, section 3.2).

    Args:
        layer: The layer, changed in place.
    """
    for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
        for parameter in projection.parameters():
            parameter.copy_(torch.zeros_like(parameter))


def stackable_layers(model: PreTrainedModel) -> list[Any]:
    """Return the layers of a model that can be restacked, bottom first.

    Args:
        model: The model.

    Raises:
        ValueError: The model is not a decoder of the LLaMA family, or has adapters.
    """
    sources = list(getattr(getattr(model, model.base_model_prefix, None), "layers", ()))
    if not sources or not all(_is_llama_like(layer) for layer in sources):
        raise ValueError(
            f"{type(model).__name__} is no decoder of the LLaMA family: its layers cannot be stacked anew. "
            "Take a Llama, Mistral, Qwen2 or Qwen3 model."
        )
    if names := list(getattr(model, "peft_config", {})):
        raise ValueError(
            f"The model carries the adapter {names[0]!r}, made for its {len(sources)} layers as they are numbered now. "
            "Grow first and add adapters after, or fold the adapter in."
        )
    return sources


def _is_llama_like(layer: nn.Module) -> bool:
    """Return whether a layer has the modules that a surgery numbers or sets to zero."""
    attention, feed_forward = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    return all(hasattr(attention, name) for name in ("layer_idx", "o_proj")) and hasattr(feed_forward, "down_proj")


def described(config: Any, plan: Plan) -> dict[str, Any]:
    """Return the config values that a surgery changes: depth, layer types and recorded plan.

    Args:
        config: Config of the model before the surgery.
        plan: The surgery's plan.
    """
    before = recorded_plan(config)
    whole = compose_plans(before, plan) if before else plan
    changed: dict[str, Any] = {"num_hidden_layers": len(plan), "layer_plan": [list(planned) for planned in whole]}
    if types := getattr(config, "layer_types", None):
        changed["layer_types"] = [types[planned.source] for planned in plan]
    return changed


def check_plan(plan: Plan, depth: int) -> None:
    """Raise an error unless a plan fits a model.

    Args:
        plan: The plan.
        depth: Number of layers of the model.

    Raises:
        ValueError: The plan is empty or names a layer that does not exist.
    """
    if not plan:
        raise ValueError("The layer plan is empty: a model needs at least one layer.")
    if missing := [layer.source for layer in plan if not 0 <= layer.source < depth]:
        raise ValueError(
            f"The layer plan names layer {missing[0]}, but the model has 0 to {depth - 1}. Choose among these."
        )
