"""Input and output of the backbone: batches of token ids, and the loss as a sum and a count."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

MAX_PASS_TOKENS = 1024
"""Tokens that are scored at once: more need more memory and, on a CPU, more time per token."""
IGNORED = -100
"""Label of a position without a target."""
MAX_LOGITS = 2**26
"""Logits of a batch that are computed at once: 256 MB in float32, and twice that in the backward pass."""
CHUNK_LOGITS = 2**24
"""Logits computed at a time where a batch has more."""


@dataclass
class Batch:
    """Rows padded on the right, so that the causal mask alone hides the padding.

    Args:
        input_ids: (batch, time), token ids.
        attention_mask: (batch, time), 1 at tokens and 0 at padding.
        labels: (batch, time), the token ids to predict, and -100 at positions without a target.
        row: (batch,), index of each row in the data.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    row: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on another device."""
        return Batch(*(tensor.to(device) for tensor in vars(self).values()))


@dataclass
class Output:
    """Result of a forward pass at the labelled positions.

    Args:
        token_nats: (labelled,), negative log-likelihood of each labelled token, in nats.
        hidden_states: (labelled, width), the final states that predict the labelled tokens.
        targets: (labelled,), the labelled tokens.
        sample: (labelled,), index in the batch of each labelled token's row.
        head: Maps states to logits.
    """

    token_nats: Tensor
    hidden_states: Tensor
    targets: Tensor
    sample: Tensor
    head: Callable[[Tensor], Tensor]

    @property
    def loss_sum(self) -> Tensor:
        """Sum over all labelled tokens in nats, a scalar; adds up over batches and processes."""
        return self.token_nats.sum()

    @property
    def count(self) -> int:
        """Number of labelled tokens."""
        return self.targets.numel()

    @property
    def loss(self) -> Tensor:
        """Mean nats per labelled token, a scalar; 0 where there is none."""
        return self.loss_sum / max(self.count, 1)

    def logits(self) -> Tensor:
        """Compute the logits, (labelled, vocabulary); most methods never need them."""
        return self.head(self.hidden_states)


def token_nats(head: Callable[[Tensor], Tensor], states: Tensor, targets: Tensor, vocabulary: int) -> Tensor:
    """Compute the negative log-likelihood of each target, in float32, or in float64 if the logits are.

    Of more than `MAX_LOGITS` logits only `CHUNK_LOGITS` are in memory at a time; they are recomputed in the backward
    pass, which costs a third of the head's time.

    Args:
        head: Maps states to logits.
        states: (labelled, width).
        targets: (labelled,), token ids.
        vocabulary: Number of logits per state.

    Returns:
        (labelled,), in nats.
    """

    def nats(states: Tensor, targets: Tensor) -> Tensor:
        logits = head(states)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return functional.cross_entropy(wide, targets, reduction="none")

    held = logits_held(len(targets), vocabulary)
    if held == len(targets) * vocabulary:
        return nats(states, targets)
    size = held // vocabulary
    chunks = zip(torch.split(states, size), torch.split(targets, size), strict=True)
    return torch.cat([checkpoint(nats, *chunk, use_reentrant=False) for chunk in chunks])


def logits_held(labelled: int, vocabulary: int) -> int:
    """Return how many logits `token_nats` holds in memory at once.

    Args:
        labelled: Number of labelled positions.
        vocabulary: Number of logits per position.
    """
    if labelled * vocabulary <= MAX_LOGITS:
        return labelled * vocabulary
    return max(1, CHUNK_LOGITS // vocabulary) * vocabulary


def collate(rows: Sequence[Mapping[str, Any]], pad_id: int) -> Batch:
    """Make a batch of encoded rows (`Backbone.encode`), padded to the longest of them.

    Args:
        rows: Each with "input_ids", "prompt_length" and "row".
        pad_id: The token used for padding.

    Returns:
        A Batch of shape (rows, longest); the first `prompt_length` tokens of each row carry no label. Without rows, as
        in a process without a share of a small batch, one token without a label, with row -1.
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
    """Divide rows into forward passes of similar length, longest first, so that lack of memory shows at once.

    A pass has at most `MAX_PASS_TOKENS` tokens including padding, or one row.

    Args:
        lengths: Length of each row in tokens.
        rows: Maximum number of rows in a pass.

    Yields:
        The indices of the rows of each pass.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    while order:
        count = min(rows, max(1, MAX_PASS_TOKENS // lengths[order[0]]))
        yield order[:count]
        order = order[count:]
