"""Knock-out: scores of a final model without each of its added blocks and adapters."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from workbench.analysis.runner import Analysis, FinishedRun, Note
from workbench.backbone import Backbone
from workbench.backbone.adapters import saved_deltas
from workbench.benchmark import Task
from workbench.depth import Plan, recorded_plan

Parts = dict[str, Callable[[], AbstractContextManager[None]]]
"""By name a context in which the model runs without the part."""


class KnockOut(Analysis):
    """Score a run's final model on each domain, whole and without each added part in turn.

    A block is skipped by passing its input on. An adapter, which is folded into the saved weights, is subtracted from
    them; of a single adapter each layer's part is skipped as well. Nothing is trained: the change is what the model as
    it is loses, not what it could do without the part. Scored are the rows that the run was scored on.
    """

    name = "knock_out"

    def problems(self, run: FinishedRun) -> Iterator[tuple[str, str]]:
        folder = run.folder.path / "model"
        adapters = folder / "adapters"
        if not added_layers(_plan(folder)) and not (adapters.is_dir() and any(adapters.iterdir())):
            yield "", "its final model has no added block and no adapter to skip."

    def measure(self, run: FinishedRun, tasks: Sequence[Task], note: Note) -> Iterator[list[dict[str, Any]]]:
        backbone = run.final()
        parts = added_parts(backbone, run.folder.path / "model" / "adapters")
        with TemporaryDirectory() as folder:
            module = run.module(backbone, run.trainer(Path(folder)))
        for task in tasks:
            whole = run.score(module, task)
            note(f"{task.name}: {whole:.3f} whole")
            rows = []
            for name, skipped in parts.items():
                with skipped():
                    without = run.score(module, task)
                note(f"{task.name}: {without:.3f} without {name}")
                scores = {"whole": whole, "without": without, "change": without - whole}
                rows.append(
                    {"domain": task.name, "part": name, "metric": task.primary, **scores, "rows": len(task.test)}
                )
            if rows:
                yield rows


def _plan(folder: Path) -> Plan:
    """Return the layer plan in a model's `config.json`."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return recorded_plan(SimpleNamespace(layer_plan=config.get("layer_plan")))


def added_layers(plan: Plan) -> list[int]:
    """Return the indices of added layers: those that began as the identity, and repeated copies of a layer.

    >>> from workbench.depth import PlannedLayer
    >>> added_layers([PlannedLayer(0), PlannedLayer(0, True), PlannedLayer(1), PlannedLayer(1)])
    [1, 3]
    """
    seen: set[int] = set()
    added = []
    for index, planned in enumerate(plan):
        if planned.identity or planned.source in seen:
            added.append(index)
        else:
            seen.add(planned.source)
    return added


def added_parts(backbone: Backbone, adapters: Path) -> Parts:
    """Return the blocks and adapters that were added to a model.

    Args:
        backbone: The model, adapters folded in.
        adapters: Folder of the adapters; may be missing.
    """
    layers: Any = getattr(backbone.decoder, "layers", ())
    plan = recorded_plan(backbone.model.config)
    parts: Parts = {f"block {index}": partial(skipped_block, layers[index]) for index in added_layers(plan)}
    folders = sorted(adapters.iterdir()) if adapters.is_dir() else []
    for folder in folders:
        deltas = saved_deltas(backbone.model, folder)
        if deltas:
            parts[f"adapter {folder.name}"] = partial(subtracted, backbone.model, deltas)
        for layer, own in by_layer(deltas).items() if len(folders) == 1 else ():
            parts[f"adapter {folder.name}, {layer}"] = partial(subtracted, backbone.model, own)
    return parts


def by_layer(deltas: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Group changes of weights by layer, lowest first; empty if all are in one layer."""
    layers: dict[int, dict[str, Tensor]] = {}
    for name, delta in deltas.items():
        if match := re.search(r"\blayers\.(\d+)\.", name):
            layers.setdefault(int(match[1]), {})[name] = delta
    return {f"layer {index}": layers[index] for index in sorted(layers)} if len(layers) > 1 else {}


@contextmanager
def skipped_block(layer: nn.Module) -> Iterator[None]:
    """Let a block return its input unchanged within the context."""

    def pass_on(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], __: Any) -> Any:
        return args[0] if args else kwargs["hidden_states"]

    handle = layer.register_forward_hook(pass_on, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
@torch.no_grad()
def subtracted(model: nn.Module, deltas: Mapping[str, Tensor]) -> Iterator[None]:
    """Subtract changes from weights within the context; afterwards the weights are the same bit for bit."""
    weights = {name: model.get_parameter(name) for name in deltas}
    originals = {name: weight.clone() for name, weight in weights.items()}
    try:
        for name, weight in weights.items():
            weight.copy_(weight.float() - deltas[name].to(weight.device).float())
        yield
    finally:
        for name, weight in weights.items():
            weight.copy_(originals[name])
