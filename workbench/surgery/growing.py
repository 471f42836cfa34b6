"""The layer surgery on a model's folder, from disk to disk: a laptop can grow a model that it could not load."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from workbench.depth import Plan, check_plan, described, refuse_second_growth
from workbench.surgery.safetensors_io import (
    SHARD_BYTES,
    Planned,
    Stored,
    copied,
    count_parameters,
    plain_folder,
    read_config,
    read_stored,
    write_model,
    zeros,
)

LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
ZEROED = re.compile(r"(self_attn\.o_proj|mlp\.down_proj)\.(weight|bias)")


class Grown(NamedTuple):
    """What a surgery made.

    Attributes:
        folder: Where it is.
        before: Layers of the source.
        after: Layers now.
        identities: How many of them pass their input through.
        parameters: Of the new model; a tied head counts once.
        size: Of its weights in bytes.
        adapters: Whether the source has a folder `adapters`, which was not taken along: they fit its own layers only.
    """

    folder: Path
    before: int
    after: int
    identities: int
    parameters: int
    size: int
    adapters: bool


def grow(source: str | Path, out: str | Path, component: Any, *, shard_bytes: int = SHARD_BYTES) -> Grown:
    """Grows a model's folder as a method would at the start of a run, and trains nothing.

    Args:
        source: A model folder, "mini" or "micro".
        out: The new folder.
        component: Has `plan(depth)`, which gives the new stack, as `strategies.BlockExpansion` does; its
            `again`, if it has one, says whether a model may be grown that was grown before.
        shard_bytes: Above so many bytes the weights are split into several files.

    Raises:
        ValueError: The folder cannot be grown, `component` makes no plan or refuses this depth, or `out` is there.
    """
    folder = plain_folder(source)
    if not callable(getattr(component, "plan", None)):
        raise ValueError(
            f"{type(component).__name__} has no plan(depth), so there is no surgery to make. "
            "Give a strategy that adds layers, such as strategies.BlockExpansion."
        )
    config = read_config(folder)[1]
    refuse_second_growth(config, bool(getattr(component, "again", False)))
    return restack_folder(folder, component.plan(config.num_hidden_layers), out, shard_bytes=shard_bytes)


def restack_folder(source: str | Path, plan: Plan, out: str | Path, *, shard_bytes: int = SHARD_BYTES) -> Grown:
    """Writes the model that `restack` would build, without loading any.

    The bytes of each tensor are copied under its new name, those of an identity's output projections are zero;
    of the config only the depth, `layer_types` and `layer_plan` change.

    Args:
        source: A model folder, "mini" or "micro".
        plan: One entry for each layer of the new stack, bottom first.
        out: The new folder, which appears whole or not at all.
        shard_bytes: Above so many bytes the weights are split into several files.

    Raises:
        ValueError: The folder is no whole LLaMA-family decoder, the plan does not fit it, or `out` is there.
    """
    folder = plain_folder(source)
    raw, config = read_config(folder)
    depth = config.num_hidden_layers
    check_plan(plan, depth)
    stored = read_stored(folder)
    tensors = _planned(stored, _layers(folder, stored, depth), plan)
    write_model(Path(out), tensors, raw | described(config, plan), folder, shard_bytes)
    size = sum(planned.like.size for planned in tensors.values())
    identities = sum(planned.identity for planned in plan)
    adapters = (folder / "adapters").is_dir()
    return Grown(Path(out), depth, len(plan), identities, count_parameters(tensors), size, adapters)


def _layers(folder: Path, stored: Mapping[str, Stored], depth: int) -> list[dict[str, Stored]]:
    """The tensors of each layer by their names inside it.

    Raises:
        ValueError: A layer lacks a tensor that others have, or there are more or fewer than the config says.
    """
    layers: dict[int, dict[str, Stored]] = {}
    for name, tensor in stored.items():
        if match := LAYER.fullmatch(name):
            layers.setdefault(int(match[1]), {})[match[2]] = tensor
    if sorted(layers) != list(range(depth)):
        raise ValueError(
            f"{folder}: config.json says {depth} layers, but there are tensors of {len(layers)}. Copy it again."
        )
    every = {name for layer in layers.values() for name in layer}
    for index in range(depth):
        if absent := sorted(every - layers[index].keys()):
            raise ValueError(
                f"{folder}: model.layers.{index}.{absent[0]} is missing; other layers have it. Copy it again."
            )
    return [layers[index] for index in range(depth)]


def _planned(stored: Mapping[str, Stored], layers: list[dict[str, Stored]], plan: Plan) -> dict[str, Planned]:
    """Where each tensor of the new model comes from."""
    tensors = {name: copied(tensor) for name, tensor in stored.items() if not LAYER.fullmatch(name)}
    for index, planned in enumerate(plan):
        for name, tensor in layers[planned.source].items():
            zeroed = planned.identity and ZEROED.fullmatch(name)
            tensors[f"model.layers.{index}.{name}"] = zeros(tensor) if zeroed else copied(tensor)
    return tensors
