"""A key-value cache with memory reserved for rows and columns, into which tokens are written in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer


class PreallocatedCache(Cache):  # type: ignore[misc]  # transformers is not typed
    """Key-value cache with memory reserved for rows and columns, into which tokens are written in place.

    Args:
        model: A model with a plain cache (`has_plain_cache`).
    """

    layers: list[PreallocatedLayer]

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(layers=[PreallocatedLayer() for _ in DynamicCache(config=model.config).layers])
        self.size = (0, 0)

    def reserve(self, rows: int, columns: int, kept: int = 0) -> None:
        """Allocate memory for so many rows and columns, unless it is there; the first `kept` rows are copied over."""
        if rows > self.size[0] or columns > self.size[1]:
            self.size = (rows, columns)
            for layer in self.layers:
                layer.reserve(rows, columns, kept)

    def start_rows(self, rows: slice, prefix: Cache | None) -> None:
        """Clear these rows, and copy a cache of one row into the first columns of each if one is given."""
        for layer in self.layers:
            layer.clear(rows)
        for layer, part in zip(self.layers, prefix.layers if prefix else (), strict=False):
            layer.fill(rows, part.keys, part.values)

    def select(self, rows: slice, columns: int, ends: Tensor | None = None) -> None:
        """Choose what is attended to, and where the model's next tokens are written.

        Args:
            rows: The rows that the model reads on.
            columns: Number of leading columns that are visible.
            ends: (rows,), the column of each row's next token, which the caller increments in place after each one.
                The columns after a shorter row's end hold meaningless numbers, which a mask has to hide. None: the next
                tokens of all rows are written after the visible columns.
        """
        for layer in self.layers:
            layer.select(rows, columns, ends)

    def copy_rows(self, sources: list[int], targets: list[int]) -> None:
        """Copy rows over other rows."""
        for layer in self.layers if sources else ():
            for memory in layer.memory:
                memory[targets] = memory[sources]


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, (rows, heads, columns, head width), of which a part is in use.

    transformers' own layer is copied as a whole for every token; here a token is written into its place.
    """

    keys: Any
    values: Any
    memory: tuple[Tensor, ...] = ()
    size: tuple[int, int]

    def reserve(self, rows: int, columns: int, kept: int) -> None:
        """Set the size of new memory, and copy the first `kept` rows into it."""
        old, self.memory, self.size = self.memory, (), (rows, columns)
        self.keys = self.values = None
        self.is_initialized = False
        if kept:
            self.fill(slice(kept), *(part[:kept, :, :columns] for part in old))

    def fill(self, rows: slice, keys: Tensor, values: Tensor) -> None:
        """Copy keys and values, of these rows or of one row for all of them, into the first columns."""
        self._allocate(keys, values)
        for memory, part in zip(self.memory, (keys, values), strict=True):
            memory[rows, :, : part.shape[2]] = part

    def clear(self, rows: slice) -> None:
        """Fill rows with zeros: a mask hides any number except NaN."""
        for memory in self.memory:
            memory[rows] = 0

    def select(self, rows: slice, columns: int, ends: Tensor | None) -> None:
        """Make these rows and the first columns visible; see `PreallocatedCache.select`."""
        self.rows, self.columns, self.ends = rows, columns, ends
        self.index = None if ends is None else torch.arange(len(ends), device=ends.device)
        self._expose()

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the next tokens, (rows, heads, time, head width), and make their columns visible."""
        self._allocate(key_states, value_states)
        after = self.columns + key_states.shape[2]
        for memory, states in zip(self.memory, (key_states, value_states), strict=True):
            if self.ends is None:
                memory[self.rows, :, self.columns : after] = states
            else:  # rotated keys may be of higher precision than the cache
                memory[self.rows][self.index, :, self.ends] = states[:, :, 0].to(memory.dtype)
        self.columns = after
        self._expose()
        return self.keys, self.values

    def _allocate(self, keys: Tensor, values: Tensor) -> None:
        """Allocate the memory at first use, in the precision that attention computes in under autocast."""
        if not self.memory:
            kind = keys.device.type
            half = torch.is_autocast_enabled(kind)
            self.dtype, self.device = torch.get_autocast_dtype(kind) if half else keys.dtype, keys.device
            self.is_initialized = True
            rows, columns = self.size
            shapes = ((rows, part.shape[1], columns, part.shape[3]) for part in (keys, values))
            self.memory = tuple(torch.zeros(shape, dtype=self.dtype, device=self.device) for shape in shapes)

    def _expose(self) -> None:
        if self.memory:
            self.keys, self.values = (part[self.rows, :, : self.columns] for part in self.memory)
