"""What a model scores on one task: its answers, its metrics, and how likely the right answers were."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from datasets import Dataset
from torchmetrics import Metric

from workbench.adapters import merged_to_score
from workbench.backbone import Backbone
from workbench.benchmark import LIKELIEST_OPTION, NATS_PER_BYTE, Task
from workbench.processes import gathered, share
from workbench.scorers import RowMean
from workbench.strategy import ContinualStrategy


@dataclass(frozen=True)
class TaskScore:
    """One cell of the score matrix, with everything that was measured there.

    Args:
        task: The name of the task that was tested.
        primary: The metric that enters the matrix.
        metrics: Every metric by name, the primary one among them.
        count: Rows that were scored.
        nats_per_token: Teacher-forced negative log-likelihood of the right answers.
        tokens: Answer tokens, end tokens among them.
        predictions: Rows of {"prompt", "prediction", "answer"}; none for a corpus.
        cut: How many "prompts" and "answers" were too long and lost a part.
        decoded_tokens: Tokens of the answers that were given, end tokens among them.
        decode_seconds: What the strategy took to give them.
        errors: The standard error of each metric that knows its own: what the finite number of rows leaves open.
    """

    task: str
    primary: str
    metrics: dict[str, float]
    count: int
    nats_per_token: float
    tokens: int
    predictions: list[dict[str, str]] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=dict)
    decoded_tokens: int = 0
    decode_seconds: float = 0.0
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The primary metric."""
        return self.metrics[self.primary]


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
    judged = {name: _judged(scorer, prompts, predictions, answers) for name, scorer in task.scorers.items()}
    judged |= {LIKELIEST_OPTION: _judged(task.scorers[task.primary], prompts, chosen, answers)} if chosen else {}
    metrics = {name: float(metric.compute()) for name, metric in judged.items()}
    errors = {name: metric.standard_error() for name, metric in judged.items() if isinstance(metric, RowMean)}
    rows = [
        {"prompt": prompt, "prediction": prediction, "answer": answer}
        for prompt, prediction, answer in zip(prompts, predictions, answers, strict=True)
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


def _answers(
    backbone: Backbone, strategy: ContinualStrategy, task: Task, prompts: Sequence[str]
) -> tuple[list[str], float]:
    """What a strategy answers, and the seconds that it took for this process's share of the prompts."""
    own = [prompts[row] for row in share(len(prompts))]
    with backbone.evaluating():
        started = time.perf_counter()
        predictions = strategy.answer(backbone, task, own) if own else []
        seconds = time.perf_counter() - started
    if len(predictions) != len(own):
        told = f"{task.name}: {len(predictions)} answers came back for {len(own)} prompts"
        raise ValueError(f"{told}. Give one for each.")
    return gathered(predictions), seconds


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
