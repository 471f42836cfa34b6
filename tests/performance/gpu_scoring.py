"""Answers on a device beside transformers' `generate`: the same texts first, in float32, then tokens per second."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from flops import SMALL, Shape
from gpu_shared import Result, backbone, device, release, survived, task
from paired import paired, ratios, timed
from scoring import file_order, gap_where_they_part, tokens_of
from subjects import LENGTHS

from workbench.backbone import Backbone
from workbench.benchmark import Task

RUNS = 3


@dataclass(frozen=True)
class Asked:
    """What is answered.

    Args:
        rows: Prompts.
        at_once: Of them, for both ways.
        longest: Tokens of a prompt.
        answer: Tokens of an answer: random weights hardly ever end one, so that no row leaves early.
    """

    rows: int
    at_once: int
    longest: int
    answer: int

    def task(self, shape: Shape) -> Task:
        """Return prompts with the lengths of TRACE's, of all tasks in turn."""
        lengths = [LENGTHS[name][place][0] for place in range(16) for name in LENGTHS][: self.rows]
        return task("asked", shape, [(min(length, self.longest), self.answer) for length in lengths])


USUAL_ASKED = Asked(64, 32, longest=1024, answer=64)
SMALL_ASKED = Asked(8, 4, longest=48, answer=8)
Answer = Callable[[], list[str]]


def measure(shape: Shape, until: float) -> Iterator[Result]:
    """Yield whether the texts are the same, then the speed in bf16-true and in bf16-mixed.

    Args:
        shape: Of the model.
        until: A moment of `time.perf_counter`, after which nothing new begins.
    """
    asked = SMALL_ASKED if shape is SMALL else USUAL_ASKED
    what = f"{shape.title}, answers"
    yield from survived(f"{what}: texts in float32", lambda: texts(shape, asked))
    middle = (time.perf_counter() + until) / 2
    for precision, moment in (("bf16-true", middle), ("bf16-mixed", until)):
        release()
        yield from survived(f"{what}, {precision}", lambda: speed(shape, asked, precision, moment))  # noqa: B023


def ways_of(own: Backbone, asked: Asked, learnt: Task, precision: str) -> dict[str, Answer]:
    """Return both ways to answer the prompts, in a precision of training."""
    prompts = learnt.train["prompt"][:]
    tokens = tokens_of(own, learnt, prompts)

    def context() -> AbstractContextManager[object]:
        return torch.autocast(device().type, torch.bfloat16) if precision == "bf16-mixed" else nullcontext()

    def ours() -> list[str]:
        with context():
            return own.generate(prompts, asked.answer)

    def theirs() -> list[str]:
        with context():
            return file_order(own, learnt, tokens, asked.at_once)

    return {"workbench": ours, "generate": theirs}


def loaded(shape: Shape, asked: Asked, precision: str) -> Backbone:
    """Return the model, ready to answer."""
    torch.use_deterministic_algorithms(False)
    own = backbone(shape, torch.bfloat16 if precision == "bf16-true" else torch.float32, asked.answer)
    own.eval_batch_size = asked.at_once
    return own.eval()


def texts(shape: Shape, asked: Asked) -> Iterator[Result]:
    """Yield how many answers are the same, and how far apart the two best logits are where others part."""
    own, learnt = loaded(shape, asked, "32-true"), asked.task(shape)
    ours, theirs = (way() for way in ways_of(own, asked, learnt, "32-true").values())
    different = [place for place, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]]
    with torch.no_grad():
        gaps = [gap_where_they_part(own, learnt, learnt.train[i]["prompt"], ours[i], theirs[i]) for i in different]
    result = {"rows": len(ours), "same": len(ours) - len(different)}
    yield {"what": f"{shape.title}, answers: texts in float32"} | result | {"largest_gap": max(gaps, default=0.0)}


def speed(shape: Shape, asked: Asked, precision: str, until: float) -> Iterator[Result]:
    """Yield the tokens per second and peak memory of both ways, and their ratio; a first round is not counted."""
    own, learnt = loaded(shape, asked, precision), asked.task(shape)
    ways = ways_of(own, asked, learnt, precision)
    said = {name: way() for name, way in ways.items()}
    peaks = {name: _peak(way) for name, way in ways.items()}
    counted = {name: _timed(way) for name, way in ways.items()}
    seconds = paired(counted, runs=RUNS, warm=True, until=until)
    title = f"{shape.title}, answers, {precision}"
    for name, taken in seconds.items():
        tokens = sum(min(len(text.split()) + 1, asked.answer) for text in said[name])
        rates = [tokens / each for each in taken]
        yield {
            "what": f"{title}, {name}",
            "tokens_per_second": statistics.median(rates) if rates else math.nan,
            "runs": len(taken),
            "tokens": tokens,
            "peak_memory_GiB": peaks[name],
            "rows": f"{asked.rows}, {asked.at_once} at once, prompts to {asked.longest} tokens",
        }
    if all(seconds.values()):
        same = sum(one == other for one, other in zip(*said.values(), strict=True))
        ratio = statistics.median(ratios(seconds["generate"], seconds["workbench"]))
        yield {
            "what": f"{title}: generate / workbench, seconds",
            "ratio": ratio,
            "same_texts": same,
            "rows": asked.rows,
        }


def _timed(way: Answer) -> Callable[[], float]:
    return lambda: timed(way)


def _peak(way: Answer) -> float:
    """Return the most memory allocated on a GPU meanwhile, weights included, in GiB; NaN on a CPU."""
    if not torch.cuda.is_available():
        return math.nan
    torch.cuda.reset_peak_memory_stats()
    way()
    return torch.cuda.max_memory_allocated() / 2**30
