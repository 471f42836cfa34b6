"""What each added part does: every added block or adapter of a final model skipped in turn."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from workbench.analysis.runner import Reopened
from workbench.backbone import Backbone
from workbench.backbone.adapters import saved_deltas
from workbench.depth import Plan, recorded_plan

Parts = dict[str, Callable[[], AbstractContextManager[None]]]


class KnockOut:
    """Scores a run's final model on each domain, whole and with one added part skipped.

    A block is skipped by passing its input on. An adapter, which the saved weights hold folded in, is subtracted from
    them again; of a single adapter each layer's part is skipped as well. Nothing is trained, so the change is what the
    model as it is loses, and not what it could do without the part. The rows are those that the run was scored on.
    """

    name = "knock_out"
    settings: tuple[str, ...] = ()

    def problems(self, opened: Reopened) -> Iterator[tuple[str, str]]:
        """Why the run cannot be asked: "" and a sentence."""
        folder = opened.run.path / "model"
        adapters = folder / "adapters"
        if not added_layers(_plan(folder)) and not (adapters.is_dir() and any(adapters.iterdir())):
            yield "", "its final model has no added block and no adapter to skip."

    def measure(self, opened: Reopened, known: set[str], tell: Callable[[str], None]) -> Iterator[list[dict[str, Any]]]:
        """Skips part by part.

        Args:
            opened: The run.
            known: Domains that are left out.
            tell: Receives a line of progress now and then.

        Yields:
            For each domain its rows of `knock_out.csv`, one for each part, without what names the run.
        """
        backbone = opened.final()
        parts = added_parts(backbone, opened.run.path / "model" / "adapters")
        tasks = [task for task in opened.tasks if task.name not in known]
        with TemporaryDirectory() as folder:
            module = opened.module(backbone, opened.trainer(Path(folder)))
        for task in tasks:
            whole = opened.score(module, task)
            tell(f"{task.name}: {whole:.3f} whole")
            rows = []
            for name, skipped in parts.items():
                with skipped():
                    without = opened.score(module, task)
                tell(f"{task.name}: {without:.3f} without {name}")
                scores = {"whole": whole, "without": without, "change": without - whole, "rows": len(task.test)}
                rows.append(
                    {"domain": task.name, "part": name, "metric": task.primary, **scores, "rows": len(task.test)}
                )
            if rows:
                yield rows


def _plan(folder: Path) -> Plan:
    """The surgeries that a model's `config.json` records."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return recorded_plan(SimpleNamespace(layer_plan=config.get("layer_plan")))


def added_layers(plan: Plan) -> list[int]:
    """The layers of a grown stack that were added: those that began as the identity, and further copies of one.

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
    """What was added to a model, by name, each with a context in which the model does without it.

    Args:
        backbone: The model, adapters folded in.
        adapters: The folder of those adapters, if there is one.
    """
    layers: Any = getattr(backbone.decoder, "layers", ())
    plan = recorded_plan(backbone.model.config)
    parts: Parts = {f"block {index}": partial(skipped_block, layers[index]) for index in added_layers(plan)}
    folders = sorted(adapters.iterdir()) if adapters.is_dir() else []
    for folder in folders:
        deltas = saved_deltas(backbone.model, folder)
        if deltas:
            parts[f"adapter {folder.name}"] = partial(less, backbone.model, deltas)
        for layer, own in by_layer(deltas).items() if len(folders) == 1 else ():
            parts[f"adapter {folder.name}, {layer}"] = partial(less, backbone.model, own)
    return parts


def by_layer(deltas: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Changes of weights by the layer that they stand in, lowest first; nothing where they are all in one."""
    layers: dict[int, dict[str, Tensor]] = {}
    for name, delta in deltas.items():
        if found := re.search(r"\blayers\.(\d+)\.", name):
            layers.setdefault(int(found[1]), {})[name] = delta
    return {f"layer {index}": layers[index] for index in sorted(layers)} if len(layers) > 1 else {}


@contextmanager
def skipped_block(layer: nn.Module) -> Iterator[None]:
    """While the context lasts, a block gives out what it was given."""

    def passes_on(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any], __: Any) -> Any:
        return given[0] if given else named["hidden_states"]

    handle = layer.register_forward_hook(passes_on, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
@torch.no_grad()
def less(model: nn.Module, deltas: Mapping[str, Tensor]) -> Iterator[None]:
    """While the context lasts, changes are subtracted from weights; the very same bits are there after it."""
    weights = {name: model.get_parameter(name) for name in deltas}
    kept = {name: weight.clone() for name, weight in weights.items()}
    try:
        for name, weight in weights.items():
            weight.copy_(weight.float() - deltas[name].to(weight.device).float())
        yield
    finally:
        for name, weight in weights.items():
            weight.copy_(kept[name])
