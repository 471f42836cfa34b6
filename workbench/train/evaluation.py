"""Score a model on one task: its answers, their metrics, and the likelihood of the right answers."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torchmetrics import Metric

from workbench.backbone import Backbone
from workbench.backbone.adapters import merged_to_score
from workbench.benchmark import LIKELIEST_OPTION, NATS_PER_BYTE, Task
from workbench.results.score import TaskScore
from workbench.runtime.distributed import gathered, share
from workbench.scorers import RowMean
from workbench.strategy import ContinualStrategy, answers_itself, checked_answers


def score_task(backbone: Backbone, strategy: ContinualStrategy, task: Task, *, options: bool = False) -> TaskScore:
    """Score one task: the strategy's answers with each scorer, and the likelihood of the right answers.

    A strict score falls to 0 when only the answer's format is lost; the likelihood, in nats per token, distinguishes
    this from lost knowledge. A corpus has no answers and is scored in nats per byte of UTF-8 (lower is better). With
    several processes, each scores its share of the rows, and all of them return the whole result.

    Args:
        backbone: The model.
        strategy: Its `answer` hook gives the answers.
        task: Its test rows are scored.
        options: Whether the most likely of the task's options is scored as well, with the primary scorer, as
            "likeliest_option"; ignored for a task without options.
    """
    with merged_to_score(backbone.model), strategy.scoring(backbone, task):
        encoded = backbone.encode(task.test, task.max_new_tokens)
        if task.is_corpus:
            nats, tokens = _total(backbone.nats(encoded.select(share(len(encoded)))))
            size = sum(len(text.encode()) for text in task.test["text"])
            metrics = {NATS_PER_BYTE: nats / size}
            return TaskScore(task.name, task.primary, metrics, len(task.test), nats / tokens, tokens)
        prompts, answers = task.test["prompt"][:], task.test["answer"][:]
        encoded_prompts = backbone.encode(task.test.select_columns(["prompt"]), task.max_new_tokens)
        cut = {"prompts": sum(encoded_prompts["prompt_cut"][:]), "answers": sum(encoded["answer_cut"][:])}
        predictions, (nats, tokens), seconds = _answer(backbone, strategy, task, encoded)
        likeliest = _likeliest_options(backbone, task, prompts) if options else []
    producible = backbone.encoder.producible(encoded)
    right = references(answers, producible, predictions)
    updated = {name: _updated(scorer, prompts, predictions, right) for name, scorer in task.scorers.items()}
    if likeliest:
        right_options = references(answers, producible, likeliest)
        updated[LIKELIEST_OPTION] = _updated(task.scorers[task.primary], prompts, likeliest, right_options)
    metrics = {name: float(metric.compute()) for name, metric in updated.items()}
    errors = {name: metric.standard_error() for name, metric in updated.items() if isinstance(metric, RowMean)}
    rows = [
        {"prompt": prompt, "prediction": prediction, "answer": answer}
        | ({} if reference == answer else {"compared_with": reference})
        for prompt, prediction, answer, reference in zip(prompts, predictions, answers, right, strict=True)
    ]
    return TaskScore(
        task=task.name,
        primary=task.primary,
        metrics=metrics,
        count=len(rows),
        nats_per_token=nats / max(tokens, 1),
        tokens=tokens,
        predictions=rows,
        cut=cut,
        decoded_tokens=_count_tokens(backbone, task, predictions),
        decode_seconds=seconds,
        errors=errors,
    )


def references(answers: Sequence[str], producible: Sequence[tuple[str, bool]], predictions: Sequence[str]) -> list[str]:
    """Return what each prediction is compared with: the right answer as the tokenizer decodes it.

    A model cannot produce, for example, a leading space that its tokenizer drops. An answer that the tokenizer cannot
    represent completely stays as it is, since its remaining part would not be right. A prediction that equals the
    answer is compared with the answer itself.

    Args:
        answers: The right answers.
        producible: `Encoder.producible` of their rows.
        predictions: One for each answer.

    >>> references([" A", "A </s> B"], [("A", True), ("A ", False)], ["A", "A "])
    ['A', 'A </s> B']
    """
    return [
        text if complete and prediction != answer else answer
        for answer, (text, complete), prediction in zip(answers, producible, predictions, strict=True)
    ]


@dataclass(frozen=True)
class Reach:
    """The best possible score on a task's test answers, given the tokenizer and the length limits.

    Args:
        task: Name of the task.
        primary: The metric that enters the score matrix.
        count: Test rows.
        lost: Answers that cannot be produced: they are cut, contain the text of special tokens, or are empty under a
            metric that never accepts an empty answer.
        cut: How many of these are longer than the limit.
        written: Answers that the tokenizer decodes differently, and that are compared in that form.
        best: The primary metric of the best answers that can be produced.
        example: The first such answer, and what its own tokens decode to.
    """

    task: str
    primary: str
    count: int
    lost: int
    cut: int
    written: int
    best: float
    example: tuple[str, str]

    @property
    def stated(self) -> dict[str, Any]:
        """The counts, with their keys in `environment.json`."""
        return {
            "rows": self.count,
            "cannot_be_produced": self.lost,
            "longer_than_the_limit": self.cut,
            "compared_as_written": self.written,
            f"best_{self.primary}": self.best,
            "example": list(self.example),
        }

    def __str__(self) -> str:
        answer, text = (f"{part!r:.60}" for part in self.example)
        count, reason = self.lost or self.written, f"the tokens of {answer} decode to {text}"
        subject = f"{self.task}: {count} of {self.count} test answers"
        if self.cut:
            others = f"; {reason}" if self.lost > self.cut else ""
            reason = f"{self.cut} longer than the limit{others}"
        if self.lost:
            return f"{subject} cannot be produced ({reason}); the best possible {self.primary} is {self.best:.4g}"
        return f"{subject} are compared as the tokenizer writes them ({reason})"


def reach(backbone: Backbone, task: Task) -> Reach | None:
    """Count the test answers that a model cannot produce exactly with this tokenizer and these limits; None if none."""
    if task.is_corpus:
        return None
    encoded = backbone.encode(task.test, task.max_new_tokens)
    prompts, answers, producible = task.test["prompt"][:], task.test["answer"][:], backbone.encoder.producible(encoded)
    pairs = list(zip(answers, producible, strict=True))
    empty = [prompt for prompt, answer in zip(prompts, answers, strict=True) if not answer]
    blank = [""] * len(empty)
    empty_is_wrong = empty and judge(task.scorers[task.primary], empty, blank, blank) < 1
    cut = encoded["answer_cut"][:]
    lost = [
        (is_cut, answer, text)
        for (answer, (text, complete)), is_cut in zip(pairs, cut, strict=True)
        if not complete or (empty_is_wrong and not answer)
    ]
    lost.sort(key=lambda entry: entry[0])  # an answer that is not cut is the better example
    rewritten = [(answer, text) for answer, (text, complete) in pairs if complete and text != answer]
    if not lost and not rewritten:
        return None
    predictions = [text for text, _ in producible]
    right = references(answers, producible, predictions)
    best = judge(task.scorers[task.primary], prompts, predictions, right)
    example = lost[0][1:] if lost else rewritten[0]
    return Reach(task.name, task.primary, len(answers), len(lost), sum(cut), len(rewritten), best, example)


def majority_answer(task: Task) -> tuple[str, float] | None:
    """Return the most frequent answer and the score of always giving it: the floor of a classification task.

    The answer is chosen on training rows: the most frequent answer, or the most frequent first character where a label
    begins a longer answer; whichever scores better there.

    Returns:
        The answer and its primary score on the test rows; None if the answers are not labels (no metric is called
        "valid") or there are no training rows.
    """
    if "valid" not in task.scorers or not len(task.train):
        return None
    answers: list[str] = task.train["answer"][:]
    candidates = [Counter(kind).most_common(1)[0][0] for kind in (answers, [answer[:1] for answer in answers])]

    def score(rows: Dataset, constant: str) -> float:
        return judge(task.scorers[task.primary], rows["prompt"][:], [constant] * len(rows), rows["answer"][:])

    best = max(candidates, key=lambda constant: score(task.train, constant))
    return best, score(task.test, best)


def judge(metric: Metric, prompts: Sequence[str], predictions: Sequence[str], answers: Sequence[str]) -> float:
    """Compute one metric of some answers on a copy, so that the task's own object does not change.

    Args:
        metric: The metric to copy.
        prompts: The prompts.
        predictions: One for each prompt.
        answers: The right answer to each prompt.
    """
    return float(_updated(metric, prompts, predictions, answers).compute())


def _updated(metric: Metric, prompts: Sequence[str], predictions: Sequence[str], answers: Sequence[str]) -> Metric:
    metric = copy.deepcopy(metric).to("cpu")
    metric.reset()
    metric.update(prompts, predictions, answers)
    return metric


def _answer(
    backbone: Backbone, strategy: ContinualStrategy, task: Task, encoded: Dataset
) -> tuple[list[str], tuple[float, int], float]:
    """Return a strategy's answers, the likelihood of the right ones, and the seconds that this process's share took.

    A prompt is read once for both, unless the strategy answers in its own way or the model has no plain cache. The
    seconds are then those of both.

    Args:
        backbone: The model.
        strategy: Its `answer` hook gives the answers.
        task: Its test rows are scored.
        encoded: These rows as token ids.
    """
    rows = share(len(encoded))
    prompts, local = task.test.select(rows)["prompt"][:], encoded.select(rows)
    once = not answers_itself(strategy) and backbone.reads_once(local, prompts, task.max_new_tokens)
    if not once:
        right = backbone.nats(local)
    with backbone.evaluating():
        started = time.perf_counter()
        if once:
            predictions, right = backbone.generate_with_nats(local, task.max_new_tokens)
        else:
            predictions = strategy.answer(backbone, task, prompts) if prompts else []
        seconds = time.perf_counter() - started
    return gathered(checked_answers(strategy, task, predictions, len(prompts))), _total(right), seconds


def _total(local: tuple[Tensor, Tensor]) -> tuple[float, int]:
    """Return the sums over all processes of the nats and the tokens of this process's rows."""
    nats, tokens = (torch.tensor(gathered(values.tolist()), dtype=values.dtype) for values in local)
    return float(nats.sum()), int(tokens.sum())


def _likeliest_options(backbone: Backbone, task: Task, prompts: Sequence[str]) -> list[str]:
    """Return the model's most likely option for each prompt; empty for a task without options."""
    local = [prompts[row] for row in share(len(prompts))]
    return gathered(backbone.likeliest(local, task.options, task.max_new_tokens) if local and task.options else [])


def _count_tokens(backbone: Backbone, task: Task, predictions: Sequence[str]) -> int:
    """Count the tokens of answers and their end tokens; an answer of maximum length has none."""
    limit = backbone.encoder.limits(task.max_new_tokens)[1]
    return sum(len(backbone.encoder.answer(prediction, limit)[0]) for prediction in predictions)
