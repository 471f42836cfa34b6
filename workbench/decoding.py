"""Greedy decoding of many prompts: what all begin with is read once, and a row that has ended makes room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from workbench.batch import passes, token_nats

LEAST_SHARED = 8  # tokens: fewer are not worth a pass of their own


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
    reader = _Reader(model, prompts)
    active: _Rows | None = None
    while waiting or active:
        if waiting and (free := _free(active, len(prompts[waiting[0]]), new_tokens, room, reader.plain)):
            active = _joined([*([active] if active else []), *reader.enter(waiting[:free])])  # no other name holds them
            waiting = waiting[free:]
        if active:
            for place, token in zip(active.places, active.newest.tolist(), strict=True):
                answers[place].append(token)
            left = [answers[place][-1] != end and len(answers[place]) < new_tokens for place in active.places]
            active = reader.step(active if all(left) else reader.keep(active, left)) if any(left) else None
    return answers


def option_nats(
    model: PreTrainedModel, prompts: Sequence[list[int]], options: Sequence[list[int]], *, rows: int
) -> Tensor:
    """Negative log-likelihood of each of a few answers after each prompt.

    Prompts but for their last token are read once, and what all begin with once for all; each answer is then read over
    that cache. The cache has to be a plain one (`has_plain_cache`).

    Args:
        model: In evaluation mode.
        prompts: The tokens of each, two at least.
        options: The tokens of each answer, one at least.
        rows: The most prompts that are read at once.

    Returns:
        (prompts, options) nats in float64.
    """
    reader = _Reader(model, [tokens[:-1] for tokens in prompts])
    order = sorted(range(len(prompts)), key=lambda place: (-len(prompts[place]), place))
    nats = torch.zeros(len(prompts), len(options), dtype=torch.float64)
    for start in range(0, len(order), rows):
        for group in reader.enter(order[start : start + rows]):
            last = torch.tensor([prompts[place][-1] for place in group.places])
            for number, option in enumerate(options):
                nats[group.places, number] = reader.nats(group, last, torch.tensor(option)).double().cpu()
            del group  # its cache goes before the next prompts are read
    return nats


def _free(active: _Rows | None, longest: int, new_tokens: int, room: Room, joins: bool) -> int:
    """How many prompts, of `longest` tokens at most, enter now: beside active ones a quarter of the room, or none."""
    if active is None:
        return room.of(longest + new_tokens)
    most = room.of(max(longest, active.mask.shape[1]) + new_tokens)
    free = most - len(active.places)
    return free if joins and free > 0 and 4 * free >= most else 0


@dataclass
class _Rows:
    """Prompts that are being answered.

    Args:
        places: Which prompt each row is.
        mask: (rows, columns), 1 where a row has a token: in order, with gaps.
        newest: (rows,), the token that comes next, which is not read yet.
        cache: Keys and values of all columns.
    """

    places: list[int]
    mask: Tensor
    newest: Tensor
    cache: Any


class _Reader:
    """A model that reads prompts and answers into caches.

    A plain cache lets prompts be padded on the right and read without a mask, as in training: causality keeps the
    padding out. From then on a mask leaves the gap between prompt and answer out. Others are padded on the left.
    """

    def __init__(self, model: PreTrainedModel, prompts: Sequence[list[int]]) -> None:
        self.model, self.prompts = model, prompts
        self.plain = has_plain_cache(model)
        self.begun, self.shared = 0, None  # tokens that all prompts begin with, and their cache, of one row
        if self.plain and (common := _common(prompts)) >= LEAST_SHARED:
            self.begun = common
            self.shared = self._read(torch.tensor([prompts[0][:common]]), [common - 1], None)[1]

    def enter(self, places: list[int]) -> list[_Rows]:
        """Reads prompts, longest first, in one pass where they could not be joined; not again what all share."""
        if not self.plain:
            return [self._prompts(places)]
        lengths = [len(self.prompts[place]) - self.begun for place in places]
        return [self._prompts([places[index] for index in indices]) for indices in passes(lengths, len(places))]

    def _prompts(self, places: list[int]) -> _Rows:
        own = [self.prompts[place][self.begun :] for place in places]
        padded = torch.zeros(len(own), len(own[0]), dtype=torch.long)
        mask = torch.zeros_like(padded)
        for row, tokens in enumerate(own):
            there = slice(len(tokens)) if self.plain else slice(-len(tokens), None)
            padded[row, there], mask[row, there] = torch.tensor(tokens), 1
        mask = functional.pad(mask, (self.begun, 0), value=1).to(self.model.device)
        if self.plain:
            newest, cache = self._read(padded, [len(tokens) - 1 for tokens in own], _repeated(self.shared, len(own)))
        else:
            given = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(0)}
            newest, cache = self._read(padded, [-1] * len(own), None, **given)
        return _Rows(places, mask, newest, cache)

    def step(self, rows: _Rows) -> _Rows:
        """Reads the newest tokens; the next are the newest then."""
        mask = functional.pad(rows.mask, (0, 1), value=1)
        given = {"attention_mask": mask, "position_ids": mask.sum(1, keepdim=True) - 1}
        newest, cache = self._read(rows.newest[:, None], [-1] * len(rows.places), rows.cache, **given)
        return _Rows(rows.places, mask, newest, cache)

    def keep(self, rows: _Rows, left: list[bool]) -> _Rows:
        """Only the rows that are left and, of a plain cache, the columns that any of them is in."""
        index = torch.tensor(left, device=rows.mask.device).nonzero().flatten()
        mask = rows.mask[index]
        rows.cache.batch_select_indices(index)
        if self.plain and not (used := mask.any(0)).all():
            mask = mask[:, used]
            for layer in rows.cache.layers:
                layer.keys, layer.values = layer.keys[:, :, used], layer.values[:, :, used]
        return _Rows([rows.places[row] for row in index.tolist()], mask, rows.newest[index], rows.cache)

    def nats(self, rows: _Rows, last: Tensor, answer: Tensor) -> Tensor:
        """(rows,) nats of one answer after each row and a `last` token (rows,) of its prompt; the cache stays as it is.

        Row by row the answer, (time,), is the same.
        """
        tokens = torch.cat([last[:, None], answer[:-1].expand(len(last), -1)], 1)
        size, width = tokens.shape[1], rows.mask.shape[1]
        positions = rows.mask.sum(1, keepdim=True) + torch.arange(size, device=rows.mask.device)
        given = {"attention_mask": functional.pad(rows.mask, (0, size), value=1), "position_ids": positions}
        states, cache = self._states(tokens, rows.cache, **given)
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, :width], layer.values[:, :, :width]
        head = self.model.get_output_embeddings()
        targets = answer.to(states.device).repeat(len(last))
        nats = token_nats(head, states.flatten(0, 1), targets, self.model.get_input_embeddings().num_embeddings)
        return nats.view(len(last), size).sum(1)

    def _read(self, tokens: Tensor, ends: list[int], cache: Any, **given: Any) -> tuple[Tensor, Any]:
        """The likeliest token after column `ends` of each row of tokens (rows, time), and the cache with all of these.

        The cache has the columns before; None: there are none.
        """
        states, cache = self._states(tokens, cache, **given)
        logits = self.model.get_output_embeddings()(states[range(len(ends)), ends]).float()
        return logits.argmax(-1), cache

    def _states(self, tokens: Tensor, cache: Any, **given: Any) -> tuple[Tensor, Any]:
        """(rows, time, width) final states of tokens (rows, time), and the cache with these."""
        output = self.model.base_model(
            input_ids=tokens.to(self.model.device), past_key_values=cache, use_cache=True, **given
        )
        return output.last_hidden_state, output.past_key_values


def has_plain_cache(model: PreTrainedModel) -> bool:
    """Whether a cache is keys and values of every layer and every token, and nothing else."""
    if not model._supports_default_dynamic_cache():
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def _common(prompts: Sequence[list[int]]) -> int:
    """How many tokens all begin with, and each has one after them; none for one prompt alone."""
    if len(prompts) < 2:
        return 0
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(min(prompts), max(prompts), strict=False))
    return min(sum(1 for _ in alike), min(map(len, prompts)) - 1)


def _repeated(cache: DynamicCache | None, rows: int) -> DynamicCache | None:
    """A cache of one row, for several."""
    if cache is None:
        return None
    return DynamicCache(
        [[part.expand(rows, -1, -1, -1) for part in (layer.keys, layer.values)] for layer in cache.layers]
    )


def _joined(groups: list[_Rows]) -> _Rows:
    """All rows in one batch; the narrower ones have a gap on the left."""
    first, *others = groups
    width = max(rows.mask.shape[1] for rows in groups)

    def stacked(parts: list[Tensor], behind: int) -> Tensor:
        fills = [(0, 0) * behind + (width - part.shape[-1 - behind], 0) for part in parts]
        return torch.cat([functional.pad(part, fill) for part, fill in zip(parts, fills, strict=True)])

    for number, layer in enumerate(first.cache.layers if others else ()):
        layers = [rows.cache.layers[number] for rows in groups]
        layer.keys, layer.values = (stacked([getattr(part, name) for part in layers], 1) for name in ("keys", "values"))
        for part in layers[1:]:
            part.keys = part.values = None  # what has been copied is let go
    places = [place for rows in groups for place in rows.places]
    mask = stacked([rows.mask for rows in groups], 0)
    return _Rows(places, mask, torch.cat([rows.newest for rows in groups]), first.cache)
