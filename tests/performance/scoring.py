"""Scoring beside transformers' own `generate` at equal peak memory: the same text first, then how much faster.

Needs TRACE's data and a small LLaMA: the environment variables WORKBENCH_TRACE and WORKBENCH_MODEL, as the configs.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory

import torch
from paired import RUNS, Line, paired, ratios, timed
from subjects import model
from transformers import GenerationConfig
from ways import workbench

from benchmarks.trace import Trace
from strategies import SeqFT
from workbench.backbone import Backbone
from workbench.backbone.encoding import TextPolicy
from workbench.benchmark import Task

MMAP_MAX, TRIM_THRESHOLD = -4, -1  # of glibc's `mallopt`
TIED = 1e-4  # logits: where the two best are as near as that, either may be chosen
BATCH = 16  # rows that `generate` answers at once, and that are learnt at once
LONGEST = {"C-STANCE": 8, "FOMC": 8, "NumGLUE-cm": 16, "NumGLUE-ds": 16}
OTHERS = 64
INSTRUCTED = "Read what follows and answer as you were taught, in one word where one is enough. "


@dataclass(frozen=True)
class Size:
    """A model that is measured.

    Args:
        title: In a few words.
        shape: Width and layers.
        longest_prompt: Tokens; longer prompts are cut in the middle. The small model has 512 positions; the large one
            has TRACE's own limit.
        longest_learnt: The same where they are learnt, which takes the most of the time.
        at_once: Rows that the workbench answers at once: `peak.measure_scoring` shows that they take no more memory.
    """

    title: str
    shape: tuple[int, int]
    longest_prompt: int
    longest_learnt: int
    at_once: int


SMALL = Size("260 thousand parameters", (64, 5), longest_prompt=400, longest_learnt=400, at_once=24)
LARGE = Size("50 million parameters", (640, 10), longest_prompt=1024, longest_learnt=256, at_once=20)
SIZES = (SMALL, LARGE)


def tokens_of(backbone: Backbone, task: Task, prompts: Sequence[str]) -> list[list[int]]:
    """Of each prompt; the workbench has them from its first round on as well."""
    limit = backbone.encoder.limits(task.max_new_tokens)[0]
    return [backbone.encoder.prompt(text, limit)[0] for text in prompts]


def file_order(backbone: Backbone, task: Task, prompts: Sequence[list[int]], at_once: int = BATCH) -> list[str]:
    """Answers by transformers' `generate`, the prompts in the file's order, each batch padded to its longest."""
    new_tokens = backbone.encoder.limits(task.max_new_tokens)[1]
    pad, end = backbone.pad_id, backbone.tokenizer.eos_token_id
    backbone.model.generation_config = GenerationConfig()
    config = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=end, pad_token_id=pad)
    answers = []
    for start in range(0, len(prompts), at_once):
        rows = prompts[start : start + at_once]
        size = max(map(len, rows))
        tokens = torch.tensor([[pad] * (size - len(row)) + row for row in rows], device=backbone.device)
        mask = torch.tensor([[0] * (size - len(row)) + [1] * len(row) for row in rows], device=backbone.device)
        made = backbone.model.generate(input_ids=tokens, attention_mask=mask, generation_config=config)
        answers += [_text(backbone, row) for row in made[:, size:].tolist()]
    return answers


def _text(backbone: Backbone, tokens: list[int]) -> str:
    end = backbone.tokenizer.eos_token_id
    kept = tokens[: tokens.index(end)] if end in tokens else tokens
    return str(backbone.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def gap_where_they_part(backbone: Backbone, task: Task, prompt: str, one: str, other: str) -> float:
    """How far apart the two best logits are where two answers to a prompt begin to differ."""
    limit, new_tokens = backbone.encoder.limits(task.max_new_tokens)
    start = backbone.encoder.prompt(prompt, limit)[0]
    left, right = (backbone.encoder.answer(text, new_tokens)[0] for text in (one, other))
    same = next(
        (place for place, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
    )
    tokens = torch.tensor([start + left[:same]], device=backbone.device)
    logits = backbone.model(input_ids=tokens).logits[0, -1].float()
    best = logits.topk(2).values
    return float(best[0] - best[1])


def loaded(size: Size, folder: str, longest_prompt: int) -> tuple[Backbone, list[Task]]:
    """A model of this size, and the eight tasks.

    Args:
        size: Of the model.
        folder: Where it is.
        longest_prompt: In tokens.
    """
    longest = LONGEST | dict.fromkeys(("MeetingBank", "Py150", "ScienceQA", "20Minuten"), OTHERS)
    found = Trace(os.environ["WORKBENCH_TRACE"], max_new_tokens=longest)
    policy = TextPolicy(max_prompt_length=longest_prompt, max_answer_length=OTHERS, truncation="middle")
    return Backbone.load(folder, end_token="<s>", text=policy, eval_batch_size=size.at_once), list(found)


def train(size: Size, rows: int, folder: str) -> None:
    """Saves a model after an epoch on each of the eight tasks.

    Args:
        size: The small one begins as WORKBENCH_MODEL, the large one at random, with its vocabulary.
        rows: Of each task.
        folder: For the model.
    """
    made, tasks = loaded(size, os.environ["WORKBENCH_MODEL"], size.longest_learnt)
    if size is not SMALL:
        random = partial(model, *size.shape, vocabulary=len(made.tokenizer))
        made = Backbone(random, made.tokenizer, text=made.encoder.policy)
    learnt = [
        Task(
            task.name,
            task.test.select(range(1)),
            task.train.select(range(min(rows, len(task.train)))),
            scorers=task.scorers,
            max_new_tokens=task.max_new_tokens,
        )
        for task in tasks
    ]
    workbench(made, SeqFT(), learnt, batch_size=BATCH, bucket=8)
    made.save(folder)


@contextmanager
def trained(size: Size, rows: int) -> Iterator[tuple[Backbone, list[Task]]]:
    """What `train` saves in a process of its own, so that it is scored as any checkpoint is, in a fresh one.

    In the process that has trained, which keeps gigabytes, `generate` is faster and the workbench is not.
    """
    with TemporaryDirectory() as folder:
        command = [sys.executable, __file__, str(SIZES.index(size)), str(rows), folder]
        print(f"{size.title}: learning {rows} rows of each task", flush=True)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        made, tasks = loaded(size, folder, size.longest_prompt)
        made.eval()
        yield made, tasks


def beside_generate(title: str, made: Backbone, tasks: Sequence[Task], rows: int) -> Iterator[Line]:
    """Seconds of `generate` over the workbench's, task by task and over all; the text has to be the same."""
    whole: dict[str, list[float]] = {}
    for task in tasks:
        prompts = task.test["prompt"][:rows]
        taken, ties = _both(made, task, prompts, RUNS)
        for name, seconds in taken.items():
            whole[name] = [sum(pair) for pair in zip(whole.get(name, [0.0] * len(seconds)), seconds, strict=True)]
        told = f"{title}: {task.name} ({len(prompts)} rows{ties}), generate / workbench"
        yield Line(told, ratios(taken["generate"], taken["workbench"]))
    yield Line(f"{title}: all tasks, generate / workbench", ratios(whole["generate"], whole["workbench"]), 1.5)


def _both(made: Backbone, task: Task, prompts: Sequence[str], runs: int) -> tuple[dict[str, list[float]], str]:
    """Seconds of both ways, and how many texts differ by a tie; the round before the first compares them."""
    rows = tokens_of(made, task, prompts)
    theirs, ours = file_order(made, task, rows), made.generate(prompts, task.max_new_tokens)
    apart = [index for index, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1]]
    for index in apart:
        gap = gap_where_they_part(made, task, prompts[index], theirs[index], ours[index])
        if gap > TIED:
            raise SystemExit(f"{task.name}, row {index}: another text, with logits {gap:.1e} apart; no speed is told")
    ways = {
        "generate": partial(timed, partial(file_order, made, task, rows)),
        "workbench": partial(timed, partial(made.generate, prompts, task.max_new_tokens)),
    }
    return paired(ways, runs=runs, warm=True), f", {len(apart)} ties" if apart else ""


def with_a_shared_instruction(title: str, made: Backbone, rows: int) -> Line:
    """The same where all prompts of a task begin alike, as TRACE's do before they are cut."""
    task = Trace(os.environ["WORKBENCH_TRACE"], max_new_tokens=8)[1]
    prompts = [INSTRUCTED * 3 + prompt[-200:] for prompt in task.test["prompt"][:rows]]
    taken, ties = _both(made, task, prompts, 3 * RUNS)  # they are short
    what = f"{title}: a shared instruction ({len(prompts)} rows{ties}), generate / workbench"
    return Line(what, ratios(taken["generate"], taken["workbench"]), 2.0)


def measure() -> Iterator[Line]:
    """With the small model; nothing where its data is not there."""
    if not _has_data():
        return
    with trained(SMALL, 500) as (made, tasks):
        yield from beside_generate(SMALL.title, made, tasks, 96)
        yield with_a_shared_instruction(SMALL.title, made, 250)


def measure_large() -> Iterator[Line]:
    """With the large one: in a fresh process, then where the C library keeps all memory that is let go.

    Otherwise large blocks go back to the system, and what makes its cache anew for each token waits for new ones.
    """
    if not _has_data():
        return
    with trained(LARGE, 500) as (made, tasks):
        yield from beside_generate(LARGE.title, made, tasks, 32)
        yield with_a_shared_instruction(LARGE.title, made, 48)
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_MAX, 0)
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)
        yield from beside_generate(f"{LARGE.title}, freed memory kept", made, tasks, 32)


def _has_data() -> bool:
    """Whether the environment names the data and the model; otherwise it is said, and the other parts go on."""
    given = {"WORKBENCH_TRACE", "WORKBENCH_MODEL"} <= set(os.environ)
    if not given:
        print("scoring: left out; set WORKBENCH_TRACE and WORKBENCH_MODEL")
    return given


if __name__ == "__main__":
    train(SIZES[int(sys.argv[1])], int(sys.argv[2]), sys.argv[3])
