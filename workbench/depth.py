"""The one surgery: a plan says which source layer stands where, and `restack` builds it."""

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
        source: Index of the layer, in the stack as it is, whose weights it takes.
        identity: Whether its output projections are zeroed, so that it passes its input through.
    """

    source: int
    identity: bool = False


Plan = Sequence[PlannedLayer]


def compose_plans(first: Plan, second: Plan) -> list[PlannedLayer]:
    """Two surgeries, one after the other, as one plan over the layers that the first began with.

    A layer that either of them added stays an added one.

    Args:
        first: Over the layers of the model as it was.
        second: Over those that the first has made.

    >>> compose_plans([PlannedLayer(0), PlannedLayer(0, True)], [PlannedLayer(1), PlannedLayer(1, True)])
    [PlannedLayer(source=0, identity=True), PlannedLayer(source=0, identity=True)]
    """
    return [
        PlannedLayer(first[planned.source].source, planned.identity or first[planned.source].identity)
        for planned in second
    ]


def recorded_plan(config: Any) -> list[PlannedLayer]:
    """The surgeries that a model has gone through, as its config records them; empty where there was none.

    Raises:
        ValueError: The record is none of a surgery.
    """
    recorded = getattr(config, "layer_plan", None) or []
    try:
        return [PlannedLayer(int(source), bool(identity)) for source, identity in recorded]
    except (TypeError, ValueError) as error:
        told = "expected pairs of a layer and whether it began as the identity. Mend the model's config.json."
        raise ValueError(f"layer_plan={recorded!r}: {told}") from error


def refuse_second_growth(config: Any, again: bool) -> None:
    """Lets a grown model be grown once more only where that is said.

    Args:
        config: Of the model as it was loaded.
        again: Whether it is meant.

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
    """Rebuilds a model's layers in place, following a plan.

    A layer's first plain appearance is the source module itself; every further one, and each identity, is a
    copy. The config's depth, its `layer_types` and each layer's cache index follow, because a stale one
    drops layers or breaks cached decoding without an error.

    Args:
        model: Any model whose decoder has `layers` with `self_attn.o_proj` and `mlp.down_proj`.
        plan: One entry for each layer of the new stack, bottom first.

    Returns:
        The new layers, which the model now runs. The plan is recorded in `model.config.layer_plan`; where the
        model was grown before, the record counts from the layers that it had at first.

    Raises:
        ValueError: The plan is empty or names a layer that is not there; the model is no decoder of the LLaMA family;
            it carries adapters, which belong to the layers as they are numbered now.
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
    """A copy of a layer, with weights of its own, that goes on sharing the model's config object."""
    shared = {id(module.config): module.config for module in layer.modules() if hasattr(module, "config")}
    return copy.deepcopy(layer, shared)


@torch.no_grad()
def make_identity(layer: Any) -> None:
    """Zeroes what a layer adds to the residual stream: `o_proj` and `down_proj`, weights and biases.

    The norm scales stay as they are: with them at zero too, the branch would be a product of two vanishing
    factors and no gradient would reach it (LLaMA Pro, arXiv 2401.02415, section 3.2).
    """
    for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
        for parameter in projection.parameters():
            parameter.copy_(torch.zeros_like(parameter))


def stackable_layers(model: PreTrainedModel) -> list[Any]:
    """The layers that a surgery can stack anew, bottom first.

    Raises:
        ValueError: The model is no decoder of the LLaMA family, or it carries adapters.
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
    """Whether a surgery finds what it numbers, and zeroes, where the LLaMA family has it."""
    attention, feed_forward = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    return all(hasattr(attention, name) for name in ("layer_idx", "o_proj")) and hasattr(feed_forward, "down_proj")


def described(config: Any, plan: Plan) -> dict[str, Any]:
    """What a surgery changes in a model's config: the depth, the layers' types, the record of where they come from.

    Args:
        config: Of the model as it is.
        plan: What is done to it.
    """
    before = recorded_plan(config)
    whole = compose_plans(before, plan) if before else plan
    changed: dict[str, Any] = {"num_hidden_layers": len(plan), "layer_plan": [list(planned) for planned in whole]}
    if types := getattr(config, "layer_types", None):
        changed["layer_types"] = [types[planned.source] for planned in plan]
    return changed


def check_plan(plan: Plan, depth: int) -> None:
    """Whether a plan can be followed in a model of `depth` layers.

    Raises:
        ValueError: The plan is empty or names a layer that is not there.
    """
    if not plan:
        raise ValueError("The layer plan is empty: a model needs at least one layer.")
    if wrong := [layer.source for layer in plan if not 0 <= layer.source < depth]:
        raise ValueError(
            f"The layer plan names layer {wrong[0]}, but the model has 0 to {depth - 1}. Choose among these."
        )
