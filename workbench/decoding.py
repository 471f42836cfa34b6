"""Greedy decoding of many prompts: what all begin with is read once, and a row that has ended makes room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workbench.reading import PlainReader, Rows, reader


@dataclass(frozen=True)
class Room:
    """How much is decoded at once.

    Args:
        rows: Prompts, at most.
        tokens: Of the prompts, and of the answers that may come, at most; None: not limited. One row always has room.
    """

    rows: int
    tokens: int | None = None

    def of(self, columns: int) -> int:
        """The rows that have room, each of so many tokens in the end."""
        return self.rows if self.tokens is None else max(1, min(self.rows, self.tokens // columns))


def greedy(
    model: PreTrainedModel, prompts: Sequence[list[int]], new_tokens: int, room: Room, end: int
) -> list[list[int]]:
    """The likeliest token after each prompt, then after both, until the end token or the limit.

    What `model.generate` gives without sampling, in less time: what all prompts begin with is read once; a row that
    has ended leaves the batch, and when a quarter of the room is free, the next prompts enter, longest first, so that
    too large a batch shows at once. All this follows from the prompts and the weights alone, so that scores can be
    repeated. A model whose cache is not one plain list of every token's keys and values (sliding windows, a
    composition) reads its prompts whole, and ends a batch before it begins the next.

    Args:
        model: In evaluation mode.
        prompts: The tokens of each, one at least.
        new_tokens: The most of each answer, one at least.
        room: How many are decoded at once.
        end: The token that ends an answer.

    Returns:
        The tokens of each answer, in the order of the prompts, the end token among them.
    """
    waiting = sorted(range(len(prompts)), key=lambda place: (-len(prompts[place]), place))
    answers: list[list[int]] = [[] for _ in prompts]
    reads = reader(model, prompts, new_tokens)
    active: Rows | None = None
    while waiting or active:
        if waiting and (free := _free(active, len(prompts[waiting[0]]), new_tokens, room, reads.joins)):
            active = reads.enter(waiting[:free], active)
            waiting = waiting[free:]
        if active:
            for place, token in zip(active.places, active.newest.tolist(), strict=True):
                answers[place].append(token)
            left = [answers[place][-1] != end and len(answers[place]) < new_tokens for place in active.places]
            active = reads.step(active if all(left) else reads.keep(active, left)) if any(left) else None
    return answers


def option_nats(
    model: PreTrainedModel, prompts: Sequence[list[int]], options: Sequence[list[int]], room: Room
) -> Tensor:
    """Negative log-likelihood of each of a few answers after each prompt.

    Prompts but for their last token are read once, and what all begin with once for all; each answer is then read over
    that cache. The cache has to be a plain one (`has_plain_cache`).

    Args:
        model: In evaluation mode.
        prompts: The tokens of each, two at least.
        options: The tokens of each answer, one at least.
        room: How many are read at once.

    Returns:
        (prompts, options) nats in float64.
    """
    longest = max(map(len, options))
    reads = PlainReader(model, [tokens[:-1] for tokens in prompts], longest)
    order = sorted(range(len(prompts)), key=lambda place: (-len(prompts[place]), place))
    nats = torch.zeros(len(prompts), len(options), dtype=torch.float64)
    while order:
        rows = room.of(len(prompts[order[0]]) + longest)
        active, order = reads.enter(order[:rows]), order[rows:]
        last = torch.tensor([prompts[place][-1] for place in active.places])
        for number, option in enumerate(options):
            nats[active.places, number] = reads.nats(active, last, torch.tensor(option)).double().cpu()
    return nats


def _free(active: Rows | None, longest: int, new_tokens: int, room: Room, joins: bool) -> int:
    """How many prompts, of `longest` tokens at most, enter now: beside active ones a quarter of the room, or none."""
    if active is None:
        return room.of(longest + new_tokens)
    most = room.of(max(longest, active.columns) + new_tokens)
    free = most - len(active.places)
    return free if joins and free > 0 and 4 * free >= most else 0
