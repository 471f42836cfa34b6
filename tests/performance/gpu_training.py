"""Training on a device in bf16-mixed: full, LoRA and block expansion, the first two beside HF Trainer and peft."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from flops import B1, SMALL, Shape, peak_flops, training_flops
from gpu_shared import Result, accelerator, backbone, device_name, model, release, survived, task
from paired import paired, ratios
from peft import LoraConfig, get_peft_model
from training import own_batches, with_adapters_of
from ways import Taken, hf_trainer, workbench

from strategies import BlockExpansion, LoRA, SeqFT
from workbench.backbone import Backbone
from workbench.benchmark import Task
from workbench.runtime.seeding import seed_all
from workbench.strategy import ContinualStrategy

SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK, ALPHA = 8, 16
RUNS = 3
OURS, USUAL, THEIRS = "workbench", "workbench, usual kernels", "HF Trainer"
WAYS = {"full": (OURS, USUAL, THEIRS), "lora": (OURS, THEIRS), "blocks": (OURS,)}
TITLES = {"full": "full fine-tuning", "lora": "LoRA of seven projections", "blocks": "block expansion"}


@dataclass(frozen=True)
class Rows:
    """What is learnt: rows of one length, so that nothing is padded.

    Args:
        count: Rows in a batch.
        length: Tokens of a row.
        labelled: Of these, the answer's.
        steps: Batches.
        uncounted: Of these, the first, which are not timed.
    """

    count: int
    length: int
    labelled: int
    steps: int
    uncounted: int

    def task(self, shape: Shape) -> Task:
        """Return them as a task."""
        return task("rows", shape, [(self.length - self.labelled, self.labelled)] * (self.count * self.steps))


USUAL_ROWS = Rows(16, 512, 51, steps=24, uncounted=4)
SMALL_ROWS = Rows(4, 32, 8, steps=6, uncounted=2)
COMPARED_ROWS = Rows(4, 128, 32, steps=8, uncounted=0)


def strategy(method: str, shape: Shape) -> ContinualStrategy:
    """Return the method; LoRA without dropout, which each way would draw otherwise."""
    if method == "full":
        return SeqFT()
    if method == "lora":
        return LoRA(rank=RANK, alpha=ALPHA, dropout=0.0, targets=SEVEN)
    return BlockExpansion(groups=shape.groups)


def train(way: str, method: str, shape: Shape, rows: Rows, bf16: bool = True) -> Taken:
    """Train a new model, the same each time, in one way.

    Deterministic kernels are the workbench's default, and `USUAL` those of HF Trainer. What Lightning sets in the
    environment for the former, the workspace of cuBLAS, remains for all that follow in this process.
    """
    release()
    own, learnt = backbone(shape), rows.task(shape)
    if way != THEIRS:
        trainer = {
            "accelerator": accelerator(),
            "precision": "bf16-mixed" if bf16 else "32-true",
            "deterministic": "warn" if way == OURS else False,
        }
        given: dict[str, Any] = {"trainer": trainer, "uncounted": rows.uncounted, "saves": False}
        return workbench(own, strategy(method, shape), [learnt], batch_size=rows.count, **given)
    torch.use_deterministic_algorithms(False)
    theirs = _hf_model(method, shape, own)
    own.model.to("meta")  # without weights: it only encodes
    batches = partial(own_batches, rows.count, 1)
    use_cpu = accelerator() == "cpu"
    given = {"uncounted": rows.uncounted, "bf16": bf16, "use_cpu": use_cpu, "dataloader_pin_memory": not use_cpu}
    return hf_trainer(theirs, own, [learnt], batch_size=rows.count, batches=batches, **given)


def _hf_model(method: str, shape: Shape, own: Backbone) -> Any:
    """Return the same model for HF Trainer, with the adapters that a run of seed 0 begins with."""
    plain = model(shape)
    if method == "full":
        return plain
    config = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules=SEVEN)
    seed_all(0, "setup")
    strategy(method, shape).setup(own)
    return with_adapters_of(get_peft_model(plain, config), own)


def apart(one: Taken, other: Taken) -> float:
    """Return the largest relative difference between the losses of two trainings, step by step."""
    return max(abs(a - b) / b for a, b in zip(one.losses, other.losses, strict=True))


def measure(shape: Shape, until: float) -> Iterator[Result]:
    """Yield the losses' difference in float32 (not for the largest model), then each method's measurements.

    Args:
        shape: Of the model.
        until: A moment of `time.perf_counter`, after which nothing new begins.
    """
    rows = SMALL_ROWS if shape is SMALL else USUAL_ROWS
    for method in ("full", "lora") if shape is not B1 else ():
        compared = SMALL_ROWS if shape is SMALL else COMPARED_ROWS
        ours, theirs = (train(way, method, shape, compared, bf16=False) for way in (OURS, THEIRS))
        what = f"{shape.title}, {TITLES[method]}: losses in float32, {len(ours.losses)} steps"
        yield {"what": what, "largest_relative_difference_to_hf": apart(ours, theirs)}
    for place, method in enumerate(WAYS):
        now = time.perf_counter()
        if now > until:
            yield {"what": f"{shape.title}, {TITLES[method]}", "failed": "its time was over"}
        else:
            moment = now + (until - now) / (len(WAYS) - place)
            yield from survived(f"{shape.title}, {TITLES[method]}", partial(of_method, method, shape, rows, moment))


def of_method(method: str, shape: Shape, rows: Rows, until: float) -> Iterator[Result]:
    """Yield tokens per second, utilisation and memory of each way, then their ratios; a first round is not counted."""
    title = f"{shape.title}, {TITLES[method]}"
    kept: dict[str, list[Taken]] = {}

    def first(way: str) -> Iterator[Result]:
        kept[way] = [train(way, method, shape, rows)]
        return iter(())

    for way in WAYS[method]:
        yield from survived(f"{title}, {way}", partial(first, way))

    def again(way: str) -> Callable[[], float]:
        def run() -> float:
            kept[way].append(train(way, method, shape, rows))
            return kept[way][-1].total

        return run

    seconds = paired({way: again(way) for way in kept}, runs=RUNS, warm=True, until=until)
    for way, runs in kept.items():
        yield {"what": f"{title}, {way}"} | _figures(method, shape, rows, runs)
    if {OURS, THEIRS} <= kept.keys():
        result = {"what": f"{title}: HF Trainer / workbench, seconds"}
        for way in (OURS, USUAL):
            if seconds.get(way):
                result[way] = statistics.median(ratios(seconds[THEIRS], seconds[way]))
        difference = apart(kept[OURS][0], kept[THEIRS][0])
        yield result | {"losses_largest_relative_difference": difference, "steps": rows.steps}


def _figures(method: str, shape: Shape, rows: Rows, runs: list[Taken]) -> Result:
    """Return the median and the range of the counted runs; of the first one where time sufficed for no other."""
    counted = runs[1:] or runs
    tokens = (rows.steps - rows.uncounted) * rows.count * rows.length
    rates = [tokens / run.total for run in counted]
    each = training_flops(shape, method, [rows.length], RANK) / rows.length
    peaks = [run.peak_bytes / 2**30 for run in runs if not math.isnan(run.peak_bytes)]
    return {
        "tokens_per_second": statistics.median(rates),
        "least": min(rates),
        "most": max(rates),
        "runs": len(runs) - 1,
        "model_flops_utilisation": statistics.median(rates) * each / peak_flops(device_name()),
        "flops_per_token": each,
        "peak_memory_GiB": max(peaks, default=math.nan),
        "rows": f"{rows.count} x {rows.length} tokens, {rows.labelled} labelled",
        "last_loss": runs[0].losses[-1],
    }
