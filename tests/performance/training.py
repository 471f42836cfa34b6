"""Training beside HF Trainer: the same losses first, then how much faster; and beside a bare loop, the limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from datasets import Dataset
from paired import RUNS, Line, paired, ratios
from peft import LoraConfig, get_peft_model
from subjects import LENGTHS, backbone, model, trace_task
from ways import Taken, bare, hf_trainer, workbench

from strategies import LoRA, SeqFT
from workbench.backbone import Backbone
from workbench.benchmark import Task
from workbench.runtime.seeding import derived_seed, seed_all
from workbench.strategy import ContinualStrategy
from workbench.train.data import EpochBatches

TARGETS = ["q_proj", "v_proj"]
SIZES = {(256, 4): (8, 4, 2.0), (512, 8): (6, 3, 1.3)}  # width, layers: rows a task, rows a batch, the bar
PROMPT, ANSWER = 512, 128  # tokens at most
BUCKET = 16  # batches within which rows are sorted by length: here, all of a task
HF_ORDERS = ("its own batches", "the same batches")


def strategy(method: str) -> ContinualStrategy:
    """Full fine-tuning, or LoRA without dropout."""
    return SeqFT() if method == "full" else LoRA(rank=8, alpha=16, dropout=0.0, targets=TARGETS)


def hf_model(method: str, width: int, layers: int) -> Any:
    """The same for HF Trainer: plain, or wrapped by peft."""
    plain = model(width, layers)
    if method == "full":
        return plain
    return get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=TARGETS))


def with_adapters_of(wrapped: Any, source: Backbone) -> Any:
    """Takes the adapters' first weights from another model, so that both begin at the same point."""
    state = source.model.state_dict()
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(state[name.removeprefix("base_model.model.")])
    return wrapped


def largest_difference(method: str, width: int, layers: int, steps: int = 20, rows: int = 4) -> float:
    """The largest relative difference between the losses of the workbench and of HF Trainer, step by step.

    Args:
        method: "full" or "lora".
        width: Of the model.
        layers: Of the model.
        steps: That are compared.
        rows: In a batch.
    """
    task = trace_task("FOMC", steps * rows)
    ours = workbench(backbone(width, layers), strategy(method), [task], batch_size=rows)
    theirs, encoder = hf_model(method, width, layers), backbone(width, layers)
    if method == "lora":
        theirs = with_adapters_of(theirs, _as_set_up(backbone(width, layers)))
    other = hf_trainer(theirs, encoder, [task], batch_size=rows, batches=partial(own_batches, rows, 1))
    if len(ours.losses) != steps or len(other.losses) != steps:
        raise SystemExit(f"{len(ours.losses)} and {len(other.losses)} steps were made, not {steps}")
    return max(abs(one - two) / two for one, two in zip(ours.losses, other.losses, strict=True))


def own_batches(rows: int, bucket: int, data: Dataset) -> Iterator[list[int]]:
    """The rows of each batch as the workbench draws them."""
    lengths = [len(row) for row in data["input_ids"]]
    return iter(EpochBatches(lengths, rows, derived_seed(0, "task", 0), bucket))


def _as_set_up(fresh: Backbone) -> Backbone:
    """The adapters as a run of seed 0 begins with them."""
    seed_all(0, "setup")
    strategy("lora").setup(fresh)
    return fresh


def beside_hf(method: str, width: int, layers: int) -> list[Line]:
    """Seconds of HF Trainer over the workbench's, over all tasks and for each: against the faster of HF's two orders.

    HF's own grouping sorts within a quarter of the rows, which are a single batch here, so that it would group nothing;
    it is given the workbench's batches instead, sorted over all rows of a task.
    """
    count, _, bar = SIZES[width, layers]
    tasks = [trace_task(name, count, ANSWER) for name in LENGTHS]
    kept: dict[str, list[Taken]] = {"workbench": []} | {order: [] for order in HF_ORDERS}

    def way(name: str) -> Callable[[], float]:
        def run() -> float:
            taken = _train(name, method, (width, layers), tasks)
            kept[name].append(taken)
            return taken.total

        return run

    seconds = paired({name: way(name) for name in kept})
    faster = min(HF_ORDERS, key=lambda name: sum(seconds[name]))
    title = f"{method}, {width} × {layers}"
    whole = Line(
        f"{title}: all tasks, HF Trainer ({faster}) / workbench", ratios(seconds[faster], seconds["workbench"]), bar
    )
    return [whole, *(_of_task(title, task, kept) for task in tasks)]


def _of_task(title: str, task: Task, kept: dict[str, list[Taken]]) -> Line:
    taken = {name: [each.seconds[task.name] for each in runs[-RUNS:]] for name, runs in kept.items()}
    faster = min(HF_ORDERS, key=lambda name: sum(taken[name]))
    return Line(f"{title}: {task.name}, HF Trainer ({faster}) / workbench", ratios(taken[faster], taken["workbench"]))


def _train(name: str, method: str, size: tuple[int, int], tasks: list[Task]) -> Taken:
    own, rows = backbone(*size, PROMPT, ANSWER), SIZES[size][1]
    if name == "workbench":
        return workbench(own, strategy(method), tasks, batch_size=rows, bucket=BUCKET)
    batches = partial(own_batches, rows, BUCKET) if name == "the same batches" else None
    return hf_trainer(hf_model(method, *size), own, tasks, batch_size=rows, batches=batches)


def beside_a_bare_loop() -> list[Line]:
    """The workbench over the bare loop: a step of about 100 ms as a ratio, a tiny one in milliseconds more a step."""
    lines = []
    for what, size, rows, steps in (("large", (256, 4), 8, 12), ("tiny", (64, 1), 2, 60)):
        task = trace_task("FOMC", min(rows * steps, 128))
        count = -(-len(task.train) // rows)
        ways = {
            "workbench": lambda: workbench(backbone(*size), SeqFT(), [task], batch_size=rows).total,  # noqa: B023
            "bare": lambda: bare(backbone(*size), task, batch_size=rows).total,  # noqa: B023
        }
        taken = paired(ways)
        step = 1000 * min(taken["bare"]) / count
        if what == "large":
            values = ratios(taken["workbench"], taken["bare"])
            lines.append(Line(f"a step of {step:.0f} ms: workbench / bare loop", values, 1.05, at_least=False))
        else:
            more = [1000 * (one - two) / count for one, two in zip(taken["workbench"], taken["bare"], strict=True)]
            lines.append(
                Line(f"a step of {step:.1f} ms: what the workbench adds", more, 2.5, at_least=False, unit="ms")
            )
    return lines


def measure() -> Iterator[Line | str]:
    """All of it; the losses have to be equal before a speed is told."""
    yield from beside_a_bare_loop()
    for width, layers in SIZES:
        for method in ("full", "lora"):
            title, apart = f"{method}, {width} × {layers}", largest_difference(method, width, layers)
            if apart > 1e-5:
                raise SystemExit(f"{title}: losses differ from HF Trainer's by {apart:.1e} of them; no speed is told")
            yield f"{title}: losses of 20 steps within {apart:.1e} of HF Trainer's"
            yield from beside_hf(method, width, layers)
