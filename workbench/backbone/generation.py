"""Greedy decoding with a key-value cache: read prompts, share common prefixes, decode in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from workbench.backbone.batch import passes, token_nats
from workbench.backbone.loading import blocks


class RoomyLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not typed
    """Keys and values of one layer, (rows, heads, columns, width of a head), of which a part is in use.

    transformers' own layers are copied whole for every token; here a token is written into its place.
    """

    keys: Any
    values: Any
    whole: tuple[Tensor, ...] = ()
    size: tuple[int, int]

    def reserve(self, rows: int, columns: int, kept: int) -> None:
        """Takes new memory for so many rows and columns, and copies the first `kept` rows there."""
        old, self.whole, self.size = self.whole, (), (rows, columns)
        self.keys = self.values = None
        self.is_initialized = False
        if kept:
            self.fill(slice(kept), *(part[:kept, :, :columns] for part in old))

    def fill(self, rows: slice, keys: Tensor, values: Tensor) -> None:
        """Copies keys and values, of these rows or of one for all of them, into the first columns."""
        self._take(keys, values)
        for whole, part in zip(self.whole, (keys, values), strict=True):
            whole[rows, :, : part.shape[2]] = part

    def clear(self, rows: slice) -> None:
        """Zeros in place of what rows have left: a mask hides any number but a NaN."""
        for whole in self.whole:
            whole[rows] = 0

    def aim(self, rows: slice, columns: int, ends: Tensor | None) -> None:
        """Shows these rows and the first columns; `RoomyCache.aim` tells of `ends`."""
        self.rows, self.columns, self.ends = rows, columns, ends
        self.index = None if ends is None else torch.arange(len(ends), device=ends.device)
        self._show()

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Writes what comes next, (rows, heads, time, width of a head), and shows so many columns more."""
        self._take(key_states, value_states)
        after = self.columns + key_states.shape[2]
        for whole, states in zip(self.whole, (key_states, value_states), strict=True):
            if self.ends is None:
                whole[self.rows, :, self.columns : after] = states
            else:
                whole[self.rows][self.index, :, self.ends] = states[:, :, 0].to(whole.dtype)  # rotated keys are wider
        self.columns = after
        self._show()
        return self.keys, self.values

    def _take(self, keys: Tensor, values: Tensor) -> None:
        """Memory for more of the same, unless there is some, in the precision that attention takes under autocast."""
        if not self.whole:
            kind = keys.device.type
            half = torch.is_autocast_enabled(kind)
            self.dtype, self.device = torch.get_autocast_dtype(kind) if half else keys.dtype, keys.device
            self.is_initialized = True
            rows, columns = self.size
            shapes = ((rows, part.shape[1], columns, part.shape[3]) for part in (keys, values))
            self.whole = tuple(torch.zeros(shape, dtype=self.dtype, device=self.device) for shape in shapes)

    def _show(self) -> None:
        if self.whole:
            self.keys, self.values = (part[self.rows, :, : self.columns] for part in self.whole)


class RoomyCache(Cache):  # type: ignore[misc]
    """Room for rows of tokens, which are written one after the other and stay where they are.

    Args:
        model: Its cache has to be a plain one (`has_plain_cache`).
    """

    layers: list[RoomyLayer]

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(layers=[RoomyLayer() for _ in DynamicCache(config=model.config).layers])
        self.size = (0, 0)

    def reserve(self, rows: int, columns: int, kept: int = 0) -> None:
        """Sees to it that so many rows and columns have room; of those that are there, the first `kept` stay."""
        if rows > self.size[0] or columns > self.size[1]:
            self.size = (rows, columns)
            for layer in self.layers:
                layer.reserve(rows, columns, kept)

    def begin(self, rows: slice, prefix: Cache | None) -> None:
        """Clears these rows, and lets them begin with a cache of one row where one is given."""
        for layer in self.layers:
            layer.clear(rows)
        for layer, part in zip(self.layers, prefix.layers if prefix else (), strict=False):
            layer.fill(rows, part.keys, part.values)

    def aim(self, rows: slice, columns: int, ends: Tensor | None = None) -> None:
        """Chooses what is attended to, and where the model's next tokens are written.

        Args:
            rows: That the model reads on.
            columns: How many of them are shown, the first.
            ends: (rows,), where each row's next token goes; whoever reads one adds 1 in place. A row that is shorter
                than others shows numbers without meaning behind its end: a mask has to hide them. None: the next tokens
                of all rows go behind the columns that are shown.
        """
        for layer in self.layers:
            layer.aim(rows, columns, ends)

    def move(self, rows: list[int], to: list[int]) -> None:
        """Copies rows over others."""
        for layer in self.layers if rows else ():
            for whole in layer.whole:
                whole[to] = whole[rows]


def has_plain_cache(model: PreTrainedModel) -> bool:
    """Whether a cache is keys and values of every layer and every token, and nothing else."""
    if not model._supports_default_dynamic_cache():
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


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
