"""What a model scores on one task: its answers, its metrics, and how likely the right answers were."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torchmetrics import Metric

from workbench.backbone import Backbone
from workbench.backbone.adapters import merged_to_score
from workbench.benchmark import LIKELIEST_OPTION, NATS_PER_BYTE, Task
from workbench.results.score import TaskScore
from workbench.runtime.distributed import gathered, share
from workbench.scorers import RowMean
from workbench.strategy import ContinualStrategy, checked_answers


def score_task(backbone: Backbone, strategy: ContinualStrategy, task: Task, *, options: bool = False) -> TaskScore:
    """Tests one task: the strategy's own answers under each scorer, and the likelihood of the right ones.

    A strict score can fall to 0 when only the format is lost; the likelihood, in nats per token, tells that from
    lost knowledge. A corpus has no answers: it is scored in nats per byte of UTF-8 (lower is better). Of several
    processes each scores its share of the rows, and all have the whole afterwards.

    With `options`, of a task that has such, the option that the model itself finds likeliest after the prompt is judged
    besides, by the primary scorer: "likeliest_option".
    """
    with merged_to_score(backbone.model):
        encoded = backbone.encode(task.test, task.max_new_tokens)
        own = backbone.nats(encoded.select(share(len(encoded))))
        row_nats, row_tokens = (torch.tensor(gathered(values.tolist()), dtype=values.dtype) for values in own)
        nats, tokens = float(row_nats.sum()), int(row_tokens.sum())
        if task.is_corpus:
            size = sum(len(text.encode()) for text in task.test["text"])
            metrics = {NATS_PER_BYTE: nats / size}
            return TaskScore(task.name, task.primary, metrics, len(task.test), nats / tokens, tokens)
        prompts, answers = task.test["prompt"][:], task.test["answer"][:]
        asked = backbone.encode(task.test.select_columns(["prompt"]), task.max_new_tokens)
        cut = {"prompts": sum(asked["prompt_cut"][:]), "answers": sum(encoded["answer_cut"][:])}
        predictions, seconds = _answers(backbone, strategy, task, prompts)
        chosen = _chosen(backbone, task, prompts) if options else []
    written = backbone.encoder.producible(encoded)
    right = references(answers, written, predictions)
    judged = {name: _judged(scorer, prompts, predictions, right) for name, scorer in task.scorers.items()}
    if chosen:
        right_option = references(answers, written, chosen)
        judged[LIKELIEST_OPTION] = _judged(task.scorers[task.primary], prompts, chosen, right_option)
    metrics = {name: float(metric.compute()) for name, metric in judged.items()}
    errors = {name: metric.standard_error() for name, metric in judged.items() if isinstance(metric, RowMean)}
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


def references(answers: Sequence[str], written: Sequence[tuple[str, bool]], predictions: Sequence[str]) -> list[str]:
    """What each prediction is compared with: the right answer, as the tokenizer writes it.

    A model cannot give a leading space that its tokenizer drops. An answer of which the tokenizer loses a part stays as
    it is: its remains are not right.

    Args:
        answers: The right ones.
        written: `Encoder.producible` of their rows.
        predictions: One that is an answer letter by letter is compared with just that, however it was come by.

    >>> references([" A", "A </s> B"], [("A", True), ("A ", False)], ["A", "A "])
    ['A', 'A </s> B']
    """
    return [
        text if whole and prediction != answer else answer
        for answer, (text, whole), prediction in zip(answers, written, predictions, strict=True)
    ]


@dataclass(frozen=True)
class Reach:
    """How near a task's test answers a model can come at best; counted before anything is learnt.

    Args:
        task: Its name.
        primary: The metric that enters the matrix.
        count: Test rows.
        lost: Answers that cannot be given: cut, with special tokens' text in them, or empty under a metric to which
            that is never right.
        cut: Those of them that are longer than the limit.
        written: Answers that the tokenizer writes otherwise and that are compared as it does.
        best: The primary metric of the best answers that can be given.
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
        """The counts as they stand in `environment.json`."""
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
        some, decoded = self.lost or self.written, f"the tokens of {answer} decode to {text}"
        told = f"{self.task}: {some} of {self.count} test answers"
        if self.cut:
            rest = f"; {decoded}" if self.lost > self.cut else ""
            decoded = f"{self.cut} longer than the limit{rest}"
        if self.lost:
            return f"{told} cannot be produced ({decoded}); the best possible {self.primary} is {self.best:.4g}"
        return f"{told} are compared as the tokenizer writes them ({decoded})"


def reach(backbone: Backbone, task: Task) -> Reach | None:
    """Count the test answers that the tokenizer or the limits keep a model from giving; None where there is none."""
    if task.is_corpus:
        return None
    encoded = backbone.encode(task.test, task.max_new_tokens)
    prompts, answers, written = task.test["prompt"][:], task.test["answer"][:], backbone.encoder.producible(encoded)
    pairs = list(zip(answers, written, strict=True))
    empty = [prompt for prompt, answer in zip(prompts, answers, strict=True) if not answer]
    nothing = [""] * len(empty)
    wrong = empty and judge(task.scorers[task.primary], empty, nothing, nothing) < 1
    cut = encoded["answer_cut"][:]
    lost = [
        (long, answer, text)
        for (answer, (text, whole)), long in zip(pairs, cut, strict=True)
        if not whole or (wrong and not answer)
    ]
    lost.sort(key=lambda one: one[0])  # of a long answer an example says less
    other = [(answer, text) for answer, (text, whole) in pairs if whole and text != answer]
    if not lost and not other:
        return None
    given = [text for text, _ in written]
    best = judge(task.scorers[task.primary], prompts, given, references(answers, written, given))
    example = lost[0][1:] if lost else other[0]
    return Reach(task.name, task.primary, len(answers), len(lost), sum(cut), len(other), best, example)


def _answers(
    backbone: Backbone, strategy: ContinualStrategy, task: Task, prompts: Sequence[str]
) -> tuple[list[str], float]:
    """What a strategy answers, and the seconds that it took for this process's share of the prompts."""
    own = [prompts[row] for row in share(len(prompts))]
    with backbone.evaluating():
        started = time.perf_counter()
        predictions = strategy.answer(backbone, task, own) if own else []
        seconds = time.perf_counter() - started
    return gathered(checked_answers(strategy, task, predictions, len(own))), seconds


def _chosen(backbone: Backbone, task: Task, prompts: Sequence[str]) -> list[str]:
    """The option that the model itself finds likeliest, for each prompt; nothing for a task without options."""
    own = [prompts[row] for row in share(len(prompts))]
    return gathered(backbone.likeliest(own, task.options, task.max_new_tokens) if own and task.options else [])


def _count_tokens(backbone: Backbone, task: Task, predictions: Sequence[str]) -> int:
    """Tokens of some answers and their end tokens, which those as long as may be do not have."""
    limit = backbone.encoder.limits(task.max_new_tokens)[1]
    return sum(len(backbone.encoder.answer(prediction, limit)[0]) for prediction in predictions)


def judge(metric: Metric, prompts: Sequence[str], predictions: Sequence[str], answers: Sequence[str]) -> float:
    """One metric over some answers; the task's own object is left as it was."""
    return float(_judged(metric, prompts, predictions, answers).compute())


def _judged(metric: Metric, prompts: Sequence[str], predictions: Sequence[str], answers: Sequence[str]) -> Metric:
    metric = copy.deepcopy(metric).to("cpu")
    metric.reset()
    metric.update(prompts, predictions, answers)
    return metric


def majority_answer(task: Task) -> tuple[str, float] | None:
    """What a model scores that always gives the commonest answer: the floor of a domain of labels.

    The answer is chosen on training rows: the commonest one, or the commonest first character, where a label begins
    a longer answer; whichever scores better there.

    Returns:
        The answer and its primary score on the scored rows; None where answers are no labels, which is where no
        metric is called "valid", or where there is nothing to choose from.
    """
    if "valid" not in task.scorers or not len(task.train):
        return None
    known: list[str] = task.train["answer"][:]
    candidates = [Counter(kind).most_common(1)[0][0] for kind in (known, [answer[:1] for answer in known])]

    def score(rows: Dataset, constant: str) -> float:
        return judge(task.scorers[task.primary], rows["prompt"][:], [constant] * len(rows), rows["answer"][:])

    best = max(candidates, key=lambda constant: score(task.train, constant))
    return best, score(task.test, best)
