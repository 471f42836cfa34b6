"""Greedy decoding with a key-value cache: read prompts, share common prefixes, decode in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from workbench.backbone.batch import passes, token_nats
from workbench.backbone.cache import PreallocatedCache
from workbench.backbone.loading import blocks

MIN_SHARED_TOKENS = 8
"""A shorter common prefix is not worth a forward pass of its own."""
SPARE_COLUMNS = 64
"""Answer tokens that the cache has memory for at first."""


@dataclass(frozen=True)
class BatchLimit:
    """How much is decoded at once.

    Args:
        rows: Maximum number of prompts.
        tokens: Maximum number of tokens, of the prompts and of the longest possible answers; None: no limit. A single
            row is always allowed.
    """

    rows: int
    tokens: int | None = None

    def batch_size(self, columns: int) -> int:
        """Maximum batch size for sequences of `columns` tokens."""
        return self.rows if self.tokens is None else max(1, min(self.rows, self.tokens // columns))


def greedy(
    model: PreTrainedModel, prompts: Sequence[list[int]], max_new_tokens: int, limit: BatchLimit, end_id: int
) -> list[list[int]]:
    """Decode greedily: append the most likely token until it is the end token or the answer has its maximum length.

    Returns what `model.generate` returns without sampling, in less time. The prompts' common prefix is read once. A
    finished row leaves the batch; as soon as a quarter of the batch is free, the next prompts join it, longest first,
    so that a batch that is too large for the memory fails at once. The batches depend on the prompts and the weights
    alone, so that scores are reproducible. A model without a plain cache (`has_plain_cache`), such as one with sliding
    windows or a composition, reads each prompt as a whole and finishes a batch before it starts the next.

    Args:
        model: In evaluation mode.
        prompts: Token ids of each prompt, at least one.
        max_new_tokens: Maximum length of an answer in tokens, at least 1.
        limit: How much is decoded at once.
        end_id: The token that ends an answer.

    Returns:
        Token ids of each answer, including the end token, in the order of the prompts.
    """
    reader = PlainCacheReader(model, prompts, max_new_tokens) if has_plain_cache(model) else Reader(model, prompts)
    return _decode(reader, max_new_tokens, limit, end_id)


def greedy_with_nats(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    right: Sequence[list[int]],
    max_new_tokens: int,
    limit: BatchLimit,
    end_id: int,
) -> tuple[list[list[int]], Tensor]:
    """Decode as `greedy` does, and return the likelihoods of the right answers: each prompt is read once for both.

    A prompt is read together with its right answer. Its own answer is then decoded on top of the cached prompt, where
    it overwrites the right one.

    Args:
        model: In evaluation mode, with a plain cache (`has_plain_cache`).
        prompts: Token ids of each prompt, at least one.
        right: Token ids of the right answer to each prompt, at most `max_new_tokens`.
        max_new_tokens: Maximum length of an answer in tokens, at least 1.
        limit: How much is decoded at once.
        end_id: The token that ends an answer.

    Returns:
        Token ids of each answer; and (prompts,), negative log-likelihoods of the right answers, in nats, float64.
    """
    reader = PlainCacheReader(model, prompts, max_new_tokens, right)
    return _decode(reader, max_new_tokens, limit, end_id), reader.right_nats


def _decode(reader: Reader, max_new_tokens: int, limit: BatchLimit, end_id: int) -> list[list[int]]:
    """Decode the reader's prompts; see `greedy`."""
    prompts = reader.prompts
    waiting = _longest_first(prompts)
    answers: list[list[int]] = [[] for _ in prompts]
    active: ActiveRows | None = None
    while waiting or active:
        if waiting and (
            free := _free_rows(active, len(prompts[waiting[0]]), max_new_tokens, limit, reader.rows_can_join)
        ):
            active = reader.enter(waiting[:free], active)
            waiting = waiting[free:]
        if active:
            for place, token in zip(active.places, active.newest.tolist(), strict=True):
                answers[place].append(token)
            unfinished = [
                answers[place][-1] != end_id and len(answers[place]) < max_new_tokens for place in active.places
            ]
            if any(unfinished):
                active = reader.step(active if all(unfinished) else reader.keep(active, unfinished))
            else:
                active = None
    return answers


def option_nats(
    model: PreTrainedModel, prompts: Sequence[list[int]], options: Sequence[list[int]], limit: BatchLimit
) -> Tensor:
    """Return the negative log-likelihood of each of a few answers after each prompt.

    Each prompt except its last token is read once, and the prompts' common prefix once for all of them. Every option
    is then read on top of that cache.

    Args:
        model: In evaluation mode, with a plain cache (`has_plain_cache`).
        prompts: Token ids of each prompt, at least two per prompt.
        options: Token ids of each answer, at least one per answer.
        limit: How much is read at once.

    Returns:
        (prompts, options), nats in float64.
    """
    longest = max(map(len, options))
    reader = PlainCacheReader(model, [token_ids[:-1] for token_ids in prompts], longest)
    waiting = _longest_first(prompts)
    nats = torch.zeros(len(prompts), len(options), dtype=torch.float64)
    while waiting:
        count = limit.batch_size(len(prompts[waiting[0]]) + longest)
        active, waiting = reader.enter(waiting[:count]), waiting[count:]
        last = torch.tensor([prompts[place][-1] for place in active.places])
        for index, option in enumerate(options):
            nats[active.places, index] = reader.nats(active, last, torch.tensor(option)).double().cpu()
    return nats


def has_plain_cache(model: PreTrainedModel) -> bool:
    """Return True if the model's cache is the keys and values of every layer and every token, and nothing else."""
    if not model._supports_default_dynamic_cache():
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def _longest_first(prompts: Sequence[list[int]]) -> list[int]:
    return sorted(range(len(prompts)), key=lambda place: (-len(prompts[place]), place))


def _free_rows(active: ActiveRows | None, longest: int, max_new_tokens: int, limit: BatchLimit, can_join: bool) -> int:
    """Return how many prompts of at most `longest` tokens enter now; beside active rows a quarter of the batch or 0."""
    if active is None:
        return limit.batch_size(longest + max_new_tokens)
    size = limit.batch_size(max(longest, active.columns) + max_new_tokens)
    free = size - len(active.places)
    return free if can_join and free > 0 and 4 * free >= size else 0


@dataclass
class ActiveRows:
    """A batch of prompts that are being answered.

    Args:
        places: Index of each row's prompt.
        lengths: (rows,), tokens of each row in the cache.
        columns: Columns of the cache.
        newest: (rows,), the next token of each row, not yet read by the model.
        cache: Keys and values.
    """

    places: list[int]
    lengths: Tensor
    columns: int
    newest: Tensor
    cache: Any


class Reader:
    """Reads prompts and answers into any kind of cache, padded on the left.

    Args:
        model: In evaluation mode.
        prompts: Token ids of each prompt.
    """

    rows_can_join = False
    """Whether prompts may enter a batch that is being answered."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[list[int]]) -> None:
        self.model, self.prompts = model, prompts

    def enter(self, places: list[int], active: ActiveRows | None = None) -> ActiveRows:
        """Read the prompts at `places`, longest first, and append them to the active rows if there are any."""
        prompts = [self.prompts[place] for place in places]
        lengths, columns = self._lengths(prompts), len(prompts[0])
        mask = self._mask(lengths, columns)
        inputs = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(0)}
        padded = torch.tensor([[0] * (columns - len(token_ids)) + token_ids for token_ids in prompts])
        return ActiveRows(places, lengths, columns, *self._read(padded, [-1] * len(prompts), None, **inputs))

    def step(self, rows: ActiveRows) -> ActiveRows:
        """Read the newest token of each row and predict the next one."""
        mask = self._mask(rows.lengths + 1, rows.columns + 1)
        inputs = {"attention_mask": mask, "position_ids": rows.lengths[:, None]}
        newest, cache = self._read(rows.newest[:, None], [-1] * len(rows.places), rows.cache, **inputs)
        rows.lengths += 1  # in place: a PreallocatedCache holds the same tensor
        return ActiveRows(rows.places, rows.lengths, rows.columns + 1, newest, cache)

    def keep(self, rows: ActiveRows, unfinished: list[bool]) -> ActiveRows:
        """Drop the finished rows."""
        index = torch.tensor(unfinished, device=rows.lengths.device).nonzero().flatten()
        rows.cache.batch_select_indices(index)
        places = [rows.places[row] for row in index.tolist()]
        return ActiveRows(places, rows.lengths[index], rows.columns, rows.newest[index], rows.cache)

    def _lengths(self, rows: Sequence[list[int]]) -> Tensor:
        return torch.tensor([len(token_ids) for token_ids in rows], device=self.model.device)

    def _mask(self, lengths: Tensor, columns: int) -> Tensor:
        """(rows, columns), 1 where a row has a token."""
        return (torch.arange(columns, device=lengths.device) >= columns - lengths[:, None]).long()

    def _read(self, token_ids: Tensor, ends: list[int], cache: Any, **inputs: Any) -> tuple[Tensor, Any]:
        """Read more tokens and predict the next one.

        Args:
            token_ids: (rows, time).
            ends: For each row the column of `token_ids` after which to predict.
            cache: Keys and values of the columns before; None: there are none.
            inputs: Further arguments of the model.

        Returns:
            (rows,), the most likely next tokens; and the cache including `token_ids`.
        """
        states, cache = self._states(token_ids, cache, **inputs)
        logits = self.model.get_output_embeddings()(states[range(len(ends)), ends]).float()
        return logits.argmax(-1), cache

    def _states(self, token_ids: Tensor, cache: Any, **inputs: Any) -> tuple[Tensor, Any]:
        """Return the final states (rows, time, width) of tokens (rows, time), and the cache including them."""
        output = self.model.base_model(
            input_ids=token_ids.to(self.model.device), past_key_values=cache, use_cache=True, **inputs
        )
        return output.last_hidden_state, output.past_key_values


class PlainCacheReader(Reader):
    """Reads into a `PreallocatedCache`, which needs a model with a plain cache.

    The prompts' common prefix is read once where that saves work. Prompts are padded on the right and read without a
    mask, as in training: causality hides the padding. Each answer token takes the column after its row's last token.

    Args:
        model: In evaluation mode.
        prompts: Token ids of each prompt.
        max_new_tokens: Maximum number of tokens read after each prompt.
        right: Token ids of the right answer to each prompt, whose likelihoods are wanted too; None: they are not.

    Attributes:
        right_nats: (prompts,), negative log-likelihoods of the right answers to the prompts that have entered.
    """

    rows_can_join = True

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        right: Sequence[list[int]] | None = None,
    ) -> None:
        super().__init__(model, prompts)
        self.right = right or [[] for _ in prompts]
        self.right_nats = torch.zeros(len(prompts), dtype=torch.float64)
        self.max_columns = max(map(len, prompts), default=0) + max_new_tokens
        self.cache = PreallocatedCache(model)
        self.shared_length, self.shared_cache = 0, None  # of the common prefix: its tokens, and a cache of one row
        length = common_prefix(prompts)
        if length >= MIN_SHARED_TOKENS and _saved_multiplications(model, prompts, length) > 0:
            self.shared_length = length
            self.shared_cache = self._read(torch.tensor([prompts[0][:length]]), [length - 1], None)[1]

    def enter(self, places: list[int], active: ActiveRows | None = None) -> ActiveRows:
        newest = [active.newest] if active else []
        start, columns = (len(active.places), active.columns) if active else (0, 0)
        columns = max(columns, len(self.prompts[places[0]]))
        sizes = [len(self.prompts[place]) + len(self.right[place]) for place in places]
        self.cache.reserve(start + len(places), max(self._with_spare(columns), *sizes), kept=start)
        self.cache.start_rows(slice(start, start + len(places)), self.shared_cache)
        entered: list[int] = []
        for indices in passes([size - self.shared_length for size in sizes], len(places)):
            self.cache.select(slice(start, start := start + len(indices)), self.shared_length)
            entered += (together := [places[index] for index in indices])
            newest.append(self._read_prompts(together))
        lengths = self._lengths([self.prompts[place] for place in entered])
        if active:
            entered, lengths = active.places + entered, torch.cat([active.lengths, lengths])
        self.cache.select(slice(start), columns, lengths)
        return ActiveRows(entered, lengths, columns, torch.cat(newest), self.cache)

    def step(self, rows: ActiveRows) -> ActiveRows:
        if rows.columns == self.cache.size[1]:
            self.cache.reserve(len(rows.places), self._with_spare(rows.columns), kept=len(rows.places))
            self.cache.select(slice(len(rows.places)), rows.columns, rows.lengths)
        return super().step(rows)

    def keep(self, rows: ActiveRows, unfinished: list[bool]) -> ActiveRows:
        """Drop the finished rows; the last unfinished ones move into their places."""
        kept = [row for row, stays in enumerate(unfinished) if stays]
        gaps = [row for row in range(len(kept)) if not unfinished[row]]
        moved = kept[len(kept) - len(gaps) :]
        order = list(range(len(kept)))
        for gap, row in zip(gaps, moved, strict=True):
            order[gap] = row
        lengths = rows.lengths[order]
        columns = int(lengths.max())
        self.cache.copy_rows(moved, gaps)
        self.cache.select(slice(len(kept)), columns, lengths)
        return ActiveRows([rows.places[row] for row in order], lengths, columns, rows.newest[order], self.cache)

    def nats(self, rows: ActiveRows, last: Tensor, answer: Tensor) -> Tensor:
        """Return the negative log-likelihood of one answer after each row; the cached prompts stay as they are.

        The answer is read after all columns, which leaves a gap in the shorter rows.

        Args:
            rows: Prompts without their last token.
            last: (rows,), the last token of each prompt.
            answer: (time,), the same for every row.

        Returns:
            (rows,), in nats.
        """
        token_ids = torch.cat([last[:, None], answer[:-1].expand(len(last), -1)], 1)
        size = token_ids.shape[1]
        mask = functional.pad(self._mask(rows.lengths, rows.columns), (0, size), value=1)
        positions = rows.lengths[:, None] + torch.arange(size, device=mask.device)
        self.cache.select(slice(len(last)), rows.columns)
        states, _ = self._states(token_ids, self.cache, attention_mask=mask, position_ids=positions)
        head = self.model.get_output_embeddings()
        targets = answer.to(states.device).repeat(len(last))
        nats = token_nats(head, states.flatten(0, 1), targets, self.model.get_input_embeddings().num_embeddings)
        return nats.view(len(last), size).sum(1)

    def _with_spare(self, columns: int) -> int:
        return min(columns + SPARE_COLUMNS, self.max_columns)

    def _mask(self, lengths: Tensor, columns: int) -> Tensor:
        return (torch.arange(columns, device=lengths.device) < lengths[:, None]).long()

    def _read_prompts(self, places: list[int]) -> Tensor:
        """Read prompts, longest first, each with its right answer if that is wanted, and note its likelihood.

        Returns:
            (rows,), the most likely token after each prompt.
        """
        prompts = [self.prompts[place][self.shared_length :] for place in places]
        rows = [prompt + self.right[place][:-1] for prompt, place in zip(prompts, places, strict=True)]
        padded = torch.tensor([token_ids + [0] * (max(map(len, rows)) - len(token_ids)) for token_ids in rows])
        targets = [token for place in places for token in self.right[place]]
        counts = torch.tensor([max(1, len(self.right[place])) for place in places])
        sample = torch.arange(len(places)).repeat_interleave(counts)
        first = counts.cumsum(0) - counts  # of each row's states
        ends = torch.tensor([len(prompt) - 1 for prompt in prompts])
        column = ends[sample] + torch.arange(len(sample)) - first[sample]
        with self._last_feed_forward_at(sample, column):
            states = self._states(padded, self.cache)[0][sample, column]
        head = self.model.get_output_embeddings()
        if targets:
            vocabulary = self.model.get_input_embeddings().num_embeddings
            nats = token_nats(head, states, torch.tensor(targets, device=states.device), vocabulary)
            self.right_nats.index_add_(0, torch.tensor(places)[sample], nats.double().cpu())
        return cast(Tensor, head(states[first]).float().argmax(-1))

    @contextmanager
    def _last_feed_forward_at(self, sample: Tensor, column: Tensor) -> Iterator[None]:
        """Compute the last block's feed-forward layer at some positions only: no other output is used.

        Args:
            sample: (positions,), row of each position.
            column: (positions,), column of each position.
        """
        layers: Any = getattr(self.model.base_model, "layers", None) or [None]
        feed_forward = getattr(layers[-1], "mlp", None)
        if feed_forward is None or layers[-1]._forward_hooks:  # a hook on a block expects its whole output
            yield
            return
        shape: list[torch.Size] = []

        def choose(_: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
            shape.append(inputs[0].shape)
            return (inputs[0][sample, column][:, None],)

        def spread(_: Any, inputs: Any, output: Tensor) -> Tensor:
            whole = output.new_zeros(shape.pop())
            whole[sample, column] = output[:, 0]
            return whole

        hooks = feed_forward.register_forward_pre_hook(choose), feed_forward.register_forward_hook(spread)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def common_prefix(prompts: Sequence[list[int]]) -> int:
    """Return the length of the prompts' common prefix, which leaves each at least one token; 0 for a single prompt."""
    if len(prompts) < 2:
        return 0
    equal = takewhile(lambda pair: pair[0] == pair[1], zip(min(prompts), max(prompts), strict=False))
    return min(sum(1 for _ in equal), min(map(len, prompts)) - 1)


def _saved_multiplications(model: PreTrainedModel, prompts: Sequence[list[int]], common: int) -> int:
    """Return how many multiplications per block are saved by reading the first `common` tokens once.

    A row then skips its first tokens, but is read with a mask, for which attention computes all scores; without a mask
    the kernel computes the causal half. So a short prefix before long prompts costs more than it saves.
    """
    weights: int = sum(parameter.numel() for parameter in blocks(model)[-1].parameters())
    width: int = model.get_input_embeddings().embedding_dim
    lengths = list(map(len, prompts))
    separate = sum(size * (weights + width * size) for size in lengths)
    after_prefix = sum((size - common) * (weights + 2 * width * size) for size in lengths)
    return separate - after_prefix - common * (weights + width * common)
