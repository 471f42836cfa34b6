"""A cache of keys and values with room for the tokens to come."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer


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
