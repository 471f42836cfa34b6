"""Layer surgery on a model folder, from disk to disk, also for models that do not fit in memory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from workbench.depth import Plan, check_plan, described, refuse_second_growth
from workbench.surgery.safetensors_io import (
    SHARD_BYTES,
    PlannedTensor,
    StoredTensor,
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
    """Result of a surgery.

    Attributes:
        folder: Folder of the new model.
        before: Number of layers of the source.
        after: Number of layers of the new model.
        identities: Number of layers that return their input.
        parameters: Number of parameters of the new model; a tied head is counted once.
        size: Size of its weights in bytes.
        adapters: Whether the source has a folder `adapters`, which is not copied: they fit only the source's layers.
    """

    folder: Path
    before: int
    after: int
    identities: int
    parameters: int
    size: int
    adapters: bool


def grow(source: str | Path, out: str | Path, component: Any, *, shard_bytes: int = SHARD_BYTES) -> Grown:
    """Grow a model folder as a strategy would at the start of a run, without training.

    Args:
        source: A model folder, "mini" or "micro".
        out: The new folder.
        component: A strategy with a method `plan(depth)` that returns the layer plan, such as
            `strategies.BlockExpansion`; a true attribute `again` allows a model that was already grown.
        shard_bytes: Maximum size of a weights file in bytes; larger models are split into several.

    Raises:
        ValueError: The folder cannot be grown, `component` has no plan or none for this depth, or `out` exists.
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
    """Write the model that `workbench.depth.restack` would build, without loading the source.

    The bytes of each tensor are copied under its new name; the output projections of identities are zero. In the
    config only the depth, `layer_types` and `layer_plan` change.

    Args:
        source: A model folder, "mini" or "micro".
        plan: One entry for each layer of the new stack, bottom first.
        out: The new folder, which is written completely or not at all.
        shard_bytes: Maximum size of a weights file in bytes; larger models are split into several.

    Raises:
        ValueError: The folder is not a complete decoder of the LLaMA family, the plan does not fit it, or `out` exists.
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


def _layers(folder: Path, stored: Mapping[str, StoredTensor], depth: int) -> list[dict[str, StoredTensor]]:
    """Return the tensors of each layer by their names in the layer.

    Raises:
        ValueError: A layer lacks a tensor that others have, or the number of layers differs from the config's.
    """
    layers: dict[int, dict[str, StoredTensor]] = {}
    for name, tensor in stored.items():
        if match := LAYER.fullmatch(name):
            layers.setdefault(int(match[1]), {})[match[2]] = tensor
    if sorted(layers) != list(range(depth)):
        raise ValueError(
            f"{folder}: config.json says {depth} layers, but there are tensors of {len(layers)}. Copy it again."
        )
    names = {name for layer in layers.values() for name in layer}
    for index in range(depth):
        if absent := sorted(names - layers[index].keys()):
            raise ValueError(
                f"{folder}: model.layers.{index}.{absent[0]} is missing; other layers have it. Copy it again."
            )
    return [layers[index] for index in range(depth)]


def _planned(
    stored: Mapping[str, StoredTensor], layers: list[dict[str, StoredTensor]], plan: Plan
) -> dict[str, PlannedTensor]:
    """Return the tensors of the new model by name."""
    tensors = {name: copied(tensor) for name, tensor in stored.items() if not LAYER.fullmatch(name)}
    for index, planned in enumerate(plan):
        for name, tensor in layers[planned.source].items():
            zeroed = planned.identity and ZEROED.fullmatch(name)
            tensors[f"model.layers.{index}.{name}"] = zeros(tensor) if zeroed else copied(tensor)
    return tensors
