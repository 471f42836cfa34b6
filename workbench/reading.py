"""Prompts and answers that are read into caches, many rows at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from workbench.batch import passes, token_nats
from workbench.cache import RoomyCache, has_plain_cache
from workbench.weights import blocks

LEAST_SHARED = 8  # tokens: fewer are not worth a pass of their own
ROOM = 64  # tokens of an answer for which there is room at first


@dataclass
class Rows:
    """Prompts that are being answered.

    Args:
        places: Which prompt each row is.
        lengths: (rows,), how many tokens of each are in the cache.
        columns: Those of the cache.
        newest: (rows,), the token that comes next, which is not read yet.
        cache: Keys and values.
    """

    places: list[int]
    lengths: Tensor
    columns: int
    newest: Tensor
    cache: Any


class Reader:
    """A model that reads prompts and answers into a cache of whichever kind, padded on the left."""

    joins = False  # whether prompts may enter beside rows that are being answered

    def __init__(self, model: PreTrainedModel, prompts: Sequence[list[int]]) -> None:
        self.model, self.prompts = model, prompts

    def enter(self, places: list[int], active: Rows | None = None) -> Rows:
        """Reads prompts, longest first; together with the active rows, where there are such."""
        own = [self.prompts[place] for place in places]
        lengths, columns = self._lengths(own), len(own[0])
        mask = self._mask(lengths, columns)
        given = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(0)}
        padded = torch.tensor([[0] * (columns - len(tokens)) + tokens for tokens in own])
        return Rows(places, lengths, columns, *self._read(padded, [-1] * len(own), None, **given))

    def step(self, rows: Rows) -> Rows:
        """Reads the newest tokens; the next are the newest then."""
        mask = self._mask(rows.lengths + 1, rows.columns + 1)
        given = {"attention_mask": mask, "position_ids": rows.lengths[:, None]}
        newest, cache = self._read(rows.newest[:, None], [-1] * len(rows.places), rows.cache, **given)
        rows.lengths += 1  # in place, as a RoomyCache asks
        return Rows(rows.places, rows.lengths, rows.columns + 1, newest, cache)

    def keep(self, rows: Rows, left: list[bool]) -> Rows:
        """Only the rows that are left."""
        index = torch.tensor(left, device=rows.lengths.device).nonzero().flatten()
        rows.cache.batch_select_indices(index)
        places = [rows.places[row] for row in index.tolist()]
        return Rows(places, rows.lengths[index], rows.columns, rows.newest[index], rows.cache)

    def _lengths(self, rows: Sequence[list[int]]) -> Tensor:
        return torch.tensor([len(tokens) for tokens in rows], device=self.model.device)

    def _mask(self, lengths: Tensor, columns: int) -> Tensor:
        """(rows, columns), 1 where a row has a token."""
        return (torch.arange(columns, device=lengths.device) >= columns - lengths[:, None]).long()

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


class PlainReader(Reader):
    """One whose cache is keys and values of every layer and every token, and nothing else.

    Then what all prompts begin with is read once, where that pays, prompts are padded on the right and read without a
    mask, as in training (causality keeps the padding out), and each token of an answer takes the column behind its
    row's last.

    Args:
        model: In evaluation mode.
        prompts: The tokens of each.
        new_tokens: The most that are read behind each prompt; at first there is room for `ROOM` of them.
    """

    joins = True

    def __init__(self, model: PreTrainedModel, prompts: Sequence[list[int]], new_tokens: int) -> None:
        super().__init__(model, prompts)
        self.most = max(map(len, prompts), default=0) + new_tokens
        self.cache = RoomyCache(model)
        self.begun, self.shared = 0, None  # tokens that all prompts begin with, and their cache, of one row
        common = _common(prompts)
        if common >= LEAST_SHARED and _saved(model, prompts, common) > 0:
            self.begun = common
            self.shared = self._read(torch.tensor([prompts[0][:common]]), [common - 1], None)[1]

    def enter(self, places: list[int], active: Rows | None = None) -> Rows:
        entered = [active.newest] if active else []
        start, columns = (len(active.places), active.columns) if active else (0, 0)
        columns = max(columns, len(self.prompts[places[0]]))
        self.cache.reserve(start + len(places), self._with_room(columns), kept=start)
        self.cache.begin(slice(start, start + len(places)), self.shared)
        own = [self.prompts[place][self.begun :] for place in places]
        for chosen in passes([len(tokens) for tokens in own], len(places)):
            self.cache.aim(slice(start, start := start + len(chosen)), self.begun)
            entered.append(self._prompts([own[index] for index in chosen]))
        lengths = self._lengths([self.prompts[place] for place in places])
        if active:
            places, lengths = active.places + places, torch.cat([active.lengths, lengths])
        self.cache.aim(slice(start), columns, lengths)
        return Rows(places, lengths, columns, torch.cat(entered), self.cache)

    def _with_room(self, columns: int) -> int:
        """Columns behind which there is room for more, as far as any row can come."""
        return min(columns + ROOM, self.most)

    def _prompts(self, rows: list[list[int]]) -> Tensor:
        """The likeliest token after each, longest first."""
        padded = torch.tensor([tokens + [0] * (len(rows[0]) - len(tokens)) for tokens in rows])
        ends = [len(tokens) - 1 for tokens in rows]
        with self._last_feed_forward_at(ends):
            return self._read(padded, ends, self.cache)[0]

    @contextmanager
    def _last_feed_forward_at(self, ends: list[int]) -> Iterator[None]:
        """Has the last block's feed-forward read column `ends` of each row alone: no other is asked for behind it.

        What it gives, (rows, 1, width), is added to all columns of the residual stream, and is right in that one.
        """
        layers: Any = getattr(self.model.base_model, "layers", None) or [None]
        feed_forward = getattr(layers[-1], "mlp", None)
        if feed_forward is None or layers[-1]._forward_hooks:  # whoever looks at a block's output wants all of it
            yield
            return
        hook = feed_forward.register_forward_pre_hook(lambda _, given: (given[0][range(len(ends)), ends][:, None],))
        try:
            yield
        finally:
            hook.remove()

    def step(self, rows: Rows) -> Rows:
        if rows.columns == self.cache.size[1]:
            self.cache.reserve(len(rows.places), self._with_room(rows.columns), kept=len(rows.places))
            self.cache.aim(slice(len(rows.places)), rows.columns, rows.lengths)
        return super().step(rows)

    def keep(self, rows: Rows, left: list[bool]) -> Rows:
        """Only the rows that are left: the last of them move to where others have ended."""
        kept = [row for row, stays in enumerate(left) if stays]
        gaps = [row for row in range(len(kept)) if not left[row]]
        order = list(range(len(kept)))
        for gap, row in zip(gaps, moved := kept[len(kept) - len(gaps) :], strict=True):
            order[gap] = row
        lengths = rows.lengths[order]
        columns = int(lengths.max())
        self.cache.move(moved, gaps)
        self.cache.aim(slice(len(kept)), columns, lengths)
        return Rows([rows.places[row] for row in order], lengths, columns, rows.newest[order], self.cache)

    def nats(self, rows: Rows, last: Tensor, answer: Tensor) -> Tensor:
        """(rows,) nats of one answer after each row and a `last` token (rows,) of its prompt; the cache stays as it is.

        Row by row the answer, (time,), is the same. It is read behind all columns, with a gap in the shorter rows.
        """
        tokens = torch.cat([last[:, None], answer[:-1].expand(len(last), -1)], 1)
        size = tokens.shape[1]
        mask = functional.pad(self._mask(rows.lengths, rows.columns), (0, size), value=1)
        positions = rows.lengths[:, None] + torch.arange(size, device=mask.device)
        self.cache.aim(slice(len(last)), rows.columns)
        states, _ = self._states(tokens, self.cache, attention_mask=mask, position_ids=positions)
        head = self.model.get_output_embeddings()
        targets = answer.to(states.device).repeat(len(last))
        nats = token_nats(head, states.flatten(0, 1), targets, self.model.get_input_embeddings().num_embeddings)
        return nats.view(len(last), size).sum(1)

    def _mask(self, lengths: Tensor, columns: int) -> Tensor:
        return (torch.arange(columns, device=lengths.device) < lengths[:, None]).long()


def reader(model: PreTrainedModel, prompts: Sequence[list[int]], new_tokens: int) -> Reader:
    """The one for a model's cache, to read at most so many tokens after each prompt."""
    return PlainReader(model, prompts, new_tokens) if has_plain_cache(model) else Reader(model, prompts)


def _common(prompts: Sequence[list[int]]) -> int:
    """How many tokens all begin with, and each has one after them; none for one prompt alone."""
    if len(prompts) < 2:
        return 0
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(min(prompts), max(prompts), strict=False))
    return min(sum(1 for _ in alike), min(map(len, prompts)) - 1)


def _saved(model: PreTrainedModel, prompts: Sequence[list[int]], common: int) -> int:
    """Multiplications in a block that are saved where what all begin with is read once.

    Each row is spared its first tokens, and is read with a mask behind them, which takes all scores of attention: the
    kernel takes the causal half where there is no mask. So few tokens before long prompts cost more than they save.
    """
    weights: int = sum(parameter.numel() for parameter in blocks(model)[-1].parameters())
    width: int = model.get_input_embeddings().embedding_dim
    lengths = list(map(len, prompts))
    alone = sum(size * (weights + width * size) for size in lengths)
    behind = sum((size - common) * (weights + 2 * width * size) for size in lengths)
    return alone - behind - common * (weights + width * common)
