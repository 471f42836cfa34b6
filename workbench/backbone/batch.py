"""What goes into the backbone and what comes out: token tensors in, a loss as sum and count out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

MOST_READ = 1024  # tokens that are scored at once: more take more memory and, on a CPU, more time for each
IGNORED = -100
WHOLE_LOGITS = 2**26
"""Logits, of all labelled positions, up to which they are computed at once: 256 MB in float32, and twice that back."""
CHUNK_LOGITS = 2**24


@dataclass
class Batch:
    """Rows padded on the right, so that causality alone hides the padding.

    Args:
        input_ids: (batch, time) token ids.
        attention_mask: (batch, time), 1 at tokens and 0 at padding.
        labels: (batch, time), the token ids to predict and -100 where nothing is learnt.
        row: (batch,), which row of the data each one is.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    row: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(*(tensor.to(device) for tensor in vars(self).values()))


@dataclass
class Output:
    """A forward pass, kept only where a label is.

    Args:
        token_nats: (labelled,) negative log-likelihood of each labelled token, in nats.
        hidden_states: (labelled, width) the final states that predict them.
        targets: (labelled,) the labelled tokens.
        sample: (labelled,) the index in the batch that each belongs to.
        head: Maps states to logits.
    """

    token_nats: Tensor
    hidden_states: Tensor
    targets: Tensor
    sample: Tensor
    head: Callable[[Tensor], Tensor]

    @property
    def loss_sum(self) -> Tensor:
        """Nats over all labelled tokens: a scalar that adds up over batches and processes."""
        return self.token_nats.sum()

    @property
    def count(self) -> int:
        """The number of labelled tokens."""
        return self.targets.numel()

    @property
    def loss(self) -> Tensor:
        """Mean nats per labelled token, a scalar; 0 where there is none."""
        return self.loss_sum / max(self.count, 1)

    def logits(self) -> Tensor:
        """(labelled, vocabulary) logits, computed when asked for: most methods never need them."""
        return self.head(self.hidden_states)


def token_nats(head: Callable[[Tensor], Tensor], states: Tensor, targets: Tensor, vocabulary: int) -> Tensor:
    """The negative log-likelihood of each target, in float32, or in float64 where the logits are.

    Of many logits only a part is ever in memory.

    Beyond `WHOLE_LOGITS` they are made `CHUNK_LOGITS` at a time, and made again for the gradients, which costs a third
    of the head's time.

    Args:
        head: Maps states to logits.
        states: (labelled, width).
        targets: (labelled,) token ids.
        vocabulary: Logits of a state.

    Returns:
        (labelled,) nats.
    """

    def nats(states: Tensor, targets: Tensor) -> Tensor:
        logits = head(states)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return functional.cross_entropy(wide, targets, reduction="none")

    held = logits_held(len(targets), vocabulary)
    if held == len(targets) * vocabulary:
        return nats(states, targets)
    size = held // vocabulary
    parts = zip(torch.split(states, size), torch.split(targets, size), strict=True)
    return torch.cat([checkpoint(nats, *part, use_reentrant=False) for part in parts])


def logits_held(labelled: int, vocabulary: int) -> int:
    """How many logits `token_nats` holds at once, of `labelled` positions and a `vocabulary` of so many tokens."""
    if labelled * vocabulary <= WHOLE_LOGITS:
        return labelled * vocabulary
    return max(1, CHUNK_LOGITS // vocabulary) * vocabulary


def collate(rows: Sequence[Mapping[str, Any]], pad_id: int) -> Batch:
    """Pads encoded rows (`Backbone.encode`) to the longest of them.

    Args:
        rows: Token ids, the prompt's length and the row's number, each.
        pad_id: The token that fills shorter rows up.

    Returns:
        A Batch of (rows, longest); the first `prompt_length` tokens of each row carry no label. No rows, as a process
        may get of a small batch, become one token without a label, in row -1.
    """
    if not rows:
        rows = [{"input_ids": [pad_id], "prompt_length": 1, "row": -1}]
    size = max(len(row["input_ids"]) for row in rows)
    input_ids = torch.full((len(rows), size), pad_id, dtype=torch.long)
    attention_mask = torch.zeros((len(rows), size), dtype=torch.long)
    labels = torch.full((len(rows), size), IGNORED, dtype=torch.long)
    for index, row in enumerate(rows):
        tokens = torch.as_tensor(row["input_ids"], dtype=torch.long)
        input_ids[index, : len(tokens)] = tokens
        attention_mask[index, : len(tokens)] = 1
        labels[index, row["prompt_length"] : len(tokens)] = tokens[row["prompt_length"] :]
    return Batch(input_ids, attention_mask, labels, torch.tensor([row["row"] for row in rows]))


def passes(lengths: Sequence[int], rows: int) -> Iterator[list[int]]:
    """Indices of rows of similar length that are read at once, longest first, so that too large a batch shows at once.

    Args:
        lengths: Of each row, in tokens.
        rows: The most of a pass, which has at most `MOST_READ` tokens, padding among them, or one row.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    while order:
        count = min(rows, max(1, MOST_READ // lengths[order[0]]))
        yield order[:count]
        order = order[count:]
