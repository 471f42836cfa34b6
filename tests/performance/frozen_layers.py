"""What frozen layers save: block expansion beside full fine-tuning of the same model, and CALM's augmenting model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from paired import Line, paired, ratios
from subjects import backbone, trace_task
from ways import workbench

from strategies import CALM, BlockExpansion
from workbench.backbone import Backbone
from workbench.train.activation_cache import constant_parts, states_size

SIZE = (256, 8)  # width, layers; two blocks are added
SMALL = (128, 8)
TASK, ROWS, BATCH, EPOCHS = "C-STANCE", 32, 8, 5


def blocks(trains: str, gigabytes: float, epochs: int) -> float:
    """Seconds of training a model of eight layers and two new blocks."""
    strategy = BlockExpansion(groups=2, trains="new" if trains == "new" else "all")
    task = trace_task(TASK, ROWS)
    taken = workbench(backbone(*SIZE), strategy, [task], batch_size=BATCH, epochs=epochs, frozen_states_gb=gigabytes)
    return taken.total


class Watched(CALM):
    """CALM, with the seconds that its augmenting model is read in training or to fill the cache."""

    spent = 0.0

    def setup(self, backbone: Backbone) -> None:
        super().setup(backbone)
        decoder: Any = backbone.decoder
        decoder.augmenting[0].forward = self._timed(decoder.augmenting[0].forward)

    def _timed(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **given: Any) -> Any:
            started = time.perf_counter()
            output = forward(*args, **given)
            self.spent += time.perf_counter() - started
            return output

        return run


def augmenting(gigabytes: float) -> float:
    """Seconds in the forward of m_A, half as wide as m_B, over five epochs."""
    strategy = Watched(backbone(*SMALL), connections=4)
    task = trace_task(TASK, ROWS)
    workbench(backbone(*SIZE), strategy, [task], batch_size=BATCH, epochs=EPOCHS, frozen_states_gb=gigabytes)
    return strategy.spent


def cache() -> str:
    """What is kept of m_A, in words."""
    own, task = backbone(*SIZE), trace_task(TASK, ROWS)
    Watched(backbone(*SMALL), connections=4).setup(own)
    tokens = torch.cat([torch.tensor(row) for row in own.encode(task.train, task.max_new_tokens)["input_ids"]])
    of_augmenting = constant_parts(own)[:1]
    return f"{states_size(of_augmenting, tokens) / 1e6:.0f} MB for {len(tokens):,} tokens"


def measure() -> Iterator[Line]:
    """Both; a cache is filled within the time that is told."""
    ways: dict[str, Callable[[], float]] = {
        "all": lambda: blocks("all", 0, EPOCHS),
        "new": lambda: blocks("new", 0, EPOCHS),
        "kept": lambda: blocks("new", 1, EPOCHS),
    }
    taken = paired(ways)
    title = f"two new of ten layers, {EPOCHS} epochs"
    yield Line(f"{title}: block expansion / full", ratios(taken["new"], taken["all"]), 0.75, at_least=False)
    yield Line(f"{title}: and states kept / full", ratios(taken["kept"], taken["all"]), 0.75, at_least=False)
    yield Line(f"{title}: kept / not kept", ratios(taken["kept"], taken["new"]), 1.0, at_least=False)
    spent = paired({"each step": lambda: augmenting(0), "kept": lambda: augmenting(1)})
    saved = [1 - kept for kept in ratios(spent["kept"], spent["each step"])]
    yield Line(f"CALM, {EPOCHS} epochs: share of m_A's forward saved ({cache()})", saved, 0.8, unit="of it")
