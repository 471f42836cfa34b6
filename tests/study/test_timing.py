"""Seconds that are carried over: lines through two measurements, work by tokens, and rows that can be afforded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from workbench.backbone.generation import BatchLimit
from workbench.benchmark import Task
from workbench.study import timing
from workbench.study.timing import (
    AFFORDABLE_SECONDS,
    AnswerLengths,
    Lengths,
    ScoreCost,
    Spent,
    StepCost,
    Work,
    affordable_rows,
    expected_longest,
    fit_step,
    spread,
)
from workbench.testing.tiny import tiny_backbone, tiny_tasks


def test_the_work_of_a_model_by_hand() -> None:
    backbone = tiny_backbone(num_hidden_layers=2)
    config = backbone.model.config
    work = Work.of(backbone)
    assert work.body == sum(value.numel() for layer in backbone.model.model.layers for value in layer.parameters())
    assert work.attention == 2 * config.hidden_size
    assert work.head == config.vocab_size * config.hidden_size
    batch = backbone.collate([{"input_ids": [3, 4, 5, 6], "prompt_length": 2, "row": 0}] * 3)
    assert work.batch(batch) == 3 * 4 * (work.body + 4 * work.attention) + 6 * work.head


def test_the_longest_of_some_rows_by_drawing() -> None:
    lengths = [3, 8, 8, 21, 40]
    drawn = torch.tensor(lengths)[torch.randint(5, (20_000, 4), generator=torch.Generator().manual_seed(0))]
    assert expected_longest(lengths, 4) == pytest.approx(drawn.max(1).values.float().mean().item(), rel=0.01)


@pytest.mark.parametrize(
    ("small", "large", "cost"),
    [
        ((10, Spent(2.0, 0.5)), (30, Spent(5.0, 0.5)), StepCost(0.5, 0.5, 0.15)),
        ((10, Spent(5.0, 0.5)), (30, Spent(5.0, 0.5)), StepCost(0.5, 1.5, 0.7 * 5 / 30)),  # noise: a flat line
        ((10, Spent(0.1, 0.5)), (30, Spent(5.0, 0.5)), StepCost(0.5, 0.0, 5 / 30)),  # noise: too steep a one
        ((10, Spent(2.0, 0.5)), (10, Spent(2.0, 0.5)), StepCost(0.5, 0.0, 0.2)),  # one batch alone
    ],
)
def test_a_line_through_two_steps(small: tuple[float, Spent], large: tuple[float, Spent], cost: StepCost) -> None:
    fitted = fit_step(small, large)
    assert vars(fitted) == pytest.approx(vars(cost))
    assert fitted(large[0]) == pytest.approx(sum(large[1]))


@pytest.mark.parametrize(("each", "count"), [(0.0, 9), (AFFORDABLE_SECONDS / 4, 4), (2 * AFFORDABLE_SECONDS, 1)])
def test_as_many_rows_as_can_be_afforded(each: float, count: int) -> None:
    def seconds(rows: Sequence[int]) -> float:
        return each * len(rows)

    chosen = list(affordable_rows(range(9), seconds))
    assert chosen == [place * 9 // count for place in range(count)]  # spread over all


@pytest.mark.parametrize(("total", "count"), [(100, 64), (127, 64), (64, 64), (5, 64), (0, 3)])
def test_spread_indices_are_no_more_than_asked_for_and_reach_the_end(total: int, count: int) -> None:
    indices = spread(total, count)
    assert len(indices) == min(total, count)
    assert len(set(indices)) == len(indices)
    assert all(index >= total - 2 for index in indices[-1:])


def test_seconds_of_scoring_by_hand() -> None:
    """Four rows of 6 tokens, of which 2 are the answer; 1 token of the prompts is common; two are answered at once."""
    lengths = AnswerLengths(Lengths([6] * 4, [2] * 4), [3] * 4, limit=8, share=1.0, batch=2)
    cost, work = ScoreCost(rate=0.5, call=0.1, row=0.01), Work(10, 0, 5)
    likelihoods, reading = 4 * (60 + 10) * 0.5, 4 * (30 + 5) * 0.5
    learnt = (max(3, 12 / 2 / 0.85) * 0.1 + 12 * 0.01) * 10
    longest = (max(8, 32 / 2 / 0.85) * 0.1 + 32 * 0.01) * 10

    def seconds(learnt: bool, *, once: bool = False, options: bool = False) -> float:
        return cost.seconds(work, lengths, once=once, options=options, learnt=learnt)

    assert seconds(True) == pytest.approx(likelihoods + reading + learnt)
    assert seconds(False) == pytest.approx(likelihoods + reading + longest)
    assert seconds(True, options=True) == pytest.approx(likelihoods + 2 * reading + learnt)
    with_answers = 4 * (50 + 10) * 0.5  # 3 tokens of the prompt and 2 of the right answer
    assert seconds(True, once=True) == pytest.approx(with_answers + learnt)
    assert seconds(True, once=True, options=True) == pytest.approx(with_answers + reading + learnt)
    corpus = AnswerLengths(Lengths([6] * 4, [5] * 4), [], limit=0, share=3.0, batch=1)
    assert cost.seconds(work, corpus, once=True, options=False, learnt=True) == pytest.approx(3 * 4 * (60 + 25) * 0.5)


def test_a_measured_model_is_unchanged_and_takes_some_time() -> None:
    backbone, tasks = tiny_backbone(), tiny_tasks()
    before = [value.clone() for value in backbone.parameters()]
    cost = ScoreCost.measure(backbone, tasks)
    assert cost.rate > 0
    assert cost.call > 0
    assert cost.row >= 0
    assert all(map(torch.equal, before, backbone.parameters()))
    assert backbone.training


def test_lengths_of_answers() -> None:
    backbone, (task, *_) = tiny_backbone(), tiny_tasks()
    lengths = AnswerLengths.of(backbone, task)
    encoded = backbone.encode(task.test, task.max_new_tokens)
    assert lengths.whole.rows == list(map(len, encoded["input_ids"]))
    assert lengths.limit == task.max_new_tokens
    assert (lengths.share, lengths.batch) == (1.0, len(task.test))
    corpus = Task("corpus", test=type(task.test).from_list([{"text": "a b c"}]))
    assert AnswerLengths.of(backbone, corpus).limit == 0


def test_a_limit_of_tokens_decides_how_many_rows_are_answered_together() -> None:
    """Short prompts and long ones: each takes its share of a batch of its own size, and they add up."""
    backbone, (task, *_) = tiny_backbone(), tiny_tasks()
    rows = [{**row, "prompt": row["prompt"] + " a" * (20 * (place % 2))} for place, row in enumerate(task.test)]
    task = replace(task, test=type(task.test).from_list(rows))
    sizes = sorted(backbone.encode(task.test, task.max_new_tokens)["prompt_length"])
    backbone.eval_batch_tokens = 2 * (sizes[-1] + task.max_new_tokens)
    together = [BatchLimit(64, backbone.eval_batch_tokens).batch_size(size + task.max_new_tokens) for size in sizes]
    assert together[0] > together[-1] == 2
    expected = len(sizes) / sum(1 / rows for rows in together)
    assert AnswerLengths.of(backbone, task).batch == pytest.approx(expected)
    backbone.eval_batch_tokens = 1
    assert AnswerLengths.of(backbone, task).batch == 1


class Decoding:
    """Stands in front of the real decoding: takes 0.5 s at first, and then 4 ms for each row in each step.

    Attributes:
        given: Prompts and tokens of each call.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given: list[tuple[list[list[int]], int]] = []
        self.real = timing.greedy
        monkeypatch.setattr(timing, "greedy", self)

    def __call__(self, model: Any, prompts: list[list[int]], tokens: int, *rest: Any) -> Any:
        time.sleep(0.004 * len(prompts) * tokens if self.given else 0.5)
        self.given.append((prompts, tokens))
        return self.real(model, prompts, tokens, *rest)


def test_decoding_is_warm_when_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    Decoding(monkeypatch)
    backbone = tiny_backbone()
    assert ScoreCost.measure(backbone, tiny_tasks()).row * Work.of(backbone).body > 0.002


@pytest.mark.parametrize("rows", [1, 2])
def test_where_few_rows_are_decoded_more_rows_take_longer(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    Decoding(monkeypatch)
    backbone = tiny_backbone()
    backbone.eval_batch_size = rows
    cost = ScoreCost.measure(backbone, tiny_tasks())
    assert cost.call == 0
    assert cost.row * Work.of(backbone).body > 0.002


def test_decoding_is_timed_within_the_limit_and_on_prompts_of_all_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, backbone, (task, *_) = Decoding(monkeypatch), tiny_backbone(), tiny_tasks()
    rows = [{**row, "prompt": row["prompt"] + " a" * (3 * place)} for place, row in enumerate(task.test)]
    task = replace(task, test=type(task.test).from_list(rows))
    lengths = sorted(backbone.encode(task.test, task.max_new_tokens)["prompt_length"])
    backbone.eval_batch_tokens = 4 * (lengths[-1] + 9)
    ScoreCost.measure(backbone, [task])
    assert all(
        len(prompts) * (max(map(len, prompts)) + tokens) <= 4 * (lengths[-1] + 9) for prompts, tokens in seen.given
    )
    longest = max(len(prompt) for prompts, _ in seen.given for prompt in prompts)
    assert longest > lengths[len(lengths) // 2]
