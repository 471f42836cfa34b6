"""Soft prompts: trained vectors in place of embeddings, behind token ids that the vocabulary does not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from workbench.backbone.batch import IGNORED, Batch, passes
from workbench.composition import CalmForCausalLM


class SoftPrompt(nn.Module):
    """Vectors (length, width) that train, in float32, with an optional residual network in front of them.

    Args:
        vectors: Their initial values, (length, width).
        bottleneck: Width of the network's hidden layer; 0: no network. Its output layer is zero at first, so that the
            prompt starts as `vectors`.
    """

    def __init__(self, vectors: Tensor, bottleneck: int = 0) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors.detach().float().clone())
        width = vectors.shape[1]
        self.network: nn.Sequential | None = None
        if bottleneck:
            layers = nn.Linear(width, bottleneck), nn.ReLU(), nn.Linear(bottleneck, width)
            self.network = nn.Sequential(*layers).to(vectors.device)
            for parameter in layers[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(self) -> Tensor:
        """Return the vectors, (length, width), with the network's output added."""
        return self.vectors if self.network is None else self.vectors + self.network(self.vectors)

    @torch.no_grad()
    def fix(self) -> None:
        """Freeze the vectors at what the network makes of them, and remove the network."""
        self.vectors.copy_(self())
        self.network = None
        self.vectors.requires_grad_(False)


class Selector(nn.Module):
    """Base class of a choice of soft tokens for each row, made by the frozen model's reading of the row's prompt.

    Args:
        slots: Number of soft tokens that a row gets.
        feature: What a row is read as: "last", the final state of its prompt's last token, or "mean", the mean of the
            final states of its prompt.
    """

    def __init__(self, slots: int, feature: Literal["last", "mean"]) -> None:
        super().__init__()
        self.slots, self.feature = slots, feature

    def forward(self, features: Tensor) -> Tensor:
        """Return the places in the table of soft prompts, (rows, slots).

        Args:
            features: (rows, width), float32.
        """
        raise NotImplementedError


class SoftEmbedding(nn.Embedding):
    """A model's embeddings, with soft prompts behind the last token of the vocabulary.

    The weight, and with it a tied head, is the model's own; the head gives no probability to a soft prompt.

    Args:
        base: The model's embeddings, whose weight is shared.
    """

    def __init__(self, base: nn.Embedding) -> None:
        super().__init__(base.num_embeddings, base.embedding_dim, base.padding_idx, _weight=base.weight)
        self.weight = base.weight
        self.prompts = nn.ModuleDict()
        self.selector: Selector | None = None
        self.train(base.training)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return the vectors of token ids of any shape (...,): (..., width)."""
        first = self.num_embeddings
        embedded = super().forward(token_ids.clamp(max=first - 1))
        table = torch.cat([prompt() for prompt in self.prompts.values()])
        soft = functional.embedding((token_ids - first).clamp(min=0), table).to(embedded.dtype)
        return torch.where((token_ids >= first)[..., None], soft, embedded)

    @property
    def size(self) -> int:
        """Number of soft tokens."""
        return sum(self._lengths.values())

    @property
    def _lengths(self) -> dict[str, int]:
        prompts: dict[str, Any] = dict(self.prompts.items())
        return {name: len(prompt.vectors) for name, prompt in prompts.items()}

    @property
    def slot_ids(self) -> list[int]:
        """Token ids that stand for the soft tokens that the selector is yet to choose; they have no vectors."""
        start = self.num_embeddings + self.size
        return list(range(start, start + (self.selector.slots if self.selector else 0)))

    def has_slots(self, batch: Batch) -> bool:
        """Return whether a batch's rows begin with slots; a process without a row of a small batch has none."""
        slots = self.slot_ids
        return bool(slots) and batch.input_ids.shape[1] > len(slots) and int(batch.input_ids[0, 0]) == slots[0]

    def without_slots(self, batch: Batch) -> tuple[Batch, Tensor, Tensor]:
        """Return a batch without its slots, and which positions of it are read to choose the soft tokens.

        Args:
            batch: Rows that begin with slots, (batch, time).

        Returns:
            The rows behind their slots; row and position of each state to read, (states,) each.
        """
        start = len(self.slot_ids)
        rows = batch.input_ids[:, start:], batch.attention_mask[:, start:], batch.labels[:, start:], batch.row
        bare = Batch(*rows)
        is_prompt = (bare.labels == IGNORED) & (bare.attention_mask == 1)
        if self.selector is not None and self.selector.feature == "mean":
            sample, position = is_prompt.nonzero(as_tuple=True)
            return bare, sample, position
        last = is_prompt.sum(1) - 1
        return bare, torch.arange(len(last), device=last.device), last

    def choose(self, batch: Batch, states: Tensor, sample: Tensor) -> Batch:
        """Return a batch with the tokens of the chosen prompts in place of its slots.

        Args:
            batch: Rows that begin with slots, (batch, time).
            states: The states that are read, (states, width).
            sample: The row of each, (states,).
        """
        states = states.float()
        features = states.new_zeros(len(batch.row), states.shape[1]).index_add(0, sample, states)
        features = features / sample.bincount(minlength=len(features))[:, None]
        selector: Any = self.selector
        chosen = selector(features) + self.num_embeddings
        token_ids = torch.cat([chosen, batch.input_ids[:, chosen.shape[1] :]], dim=1)
        return Batch(token_ids, batch.attention_mask, batch.labels, batch.row)

    def token_ids(self, name: str) -> list[int]:
        """Return the token ids of a prompt."""
        start = self.num_embeddings
        for other, length in self._lengths.items():
            if other == name:
                return list(range(start, start + length))
            start += length
        raise KeyError(name)


def soft_embedding(model: PreTrainedModel) -> SoftEmbedding | None:
    """Return a model's embeddings if they have soft prompts, otherwise None."""
    embedding = model.get_input_embeddings()
    return embedding if isinstance(embedding, SoftEmbedding) else None


def add_prompt(model: PreTrainedModel, name: str, vectors: Tensor, bottleneck: int) -> list[int]:
    """Add a soft prompt to a model's embeddings, and return its token ids.

    Args:
        model: The model; its embeddings are replaced by a `SoftEmbedding` at the first call.
        name: A new name.
        vectors: Initial values, (length, width).
        bottleneck: See `SoftPrompt`.

    Raises:
        ValueError: The model is a composition, its embeddings carry an adapter, or the name exists.
    """
    if isinstance(model, CalmForCausalLM):
        raise ValueError("Soft prompts cannot be added to a composition, whose models read the same tokens.")
    embedding = model.get_input_embeddings()
    if type(embedding) is nn.Embedding:
        embedding = SoftEmbedding(embedding)
        model.set_input_embeddings(embedding)
    if not isinstance(embedding, SoftEmbedding):
        kind = type(embedding).__name__
        raise ValueError(f"Soft prompts need plain embeddings, and the model has a {kind}. Add them before it.")
    if name in embedding.prompts:
        raise ValueError(f"The model has a soft prompt {name!r} already. Choose another name.")
    embedding.prompts[name] = SoftPrompt(vectors.to(embedding.weight.device), bottleneck).train(embedding.training)
    return embedding.token_ids(name)


def install_selector(model: PreTrainedModel, selector: Selector) -> list[int]:
    """Make a selector a part of a model's embeddings, and return the token ids of its slots.

    Args:
        model: The model, with the soft prompts to choose from.
        selector: Chooses among them.

    Raises:
        ValueError: The model has no soft prompt.
    """
    embedding = soft_embedding(model)
    if embedding is None:
        raise ValueError("There is no soft prompt to choose from. Call `add_prompt` first.")
    embedding.selector = selector.to(embedding.weight.device).train(embedding.training)
    return embedding.slot_ids


def filled(
    model: PreTrainedModel, rows: list[list[int]], fill: Callable[[list[dict[str, Any]]], Tensor], count: int
) -> list[list[int]]:
    """Return the token ids of prompts with the chosen soft tokens in their slots.

    Args:
        model: The model.
        rows: Token ids of each prompt.
        fill: Returns the token ids, (rows, longest), of encoded prompts.
        count: Maximum number of prompts that are filled at once.
    """
    embedding = soft_embedding(model)
    if embedding is None or embedding.selector is None:
        return rows
    result = list(rows)
    for indices in passes(list(map(len, rows)), count):
        encoded = [{"input_ids": rows[index], "prompt_length": len(rows[index]), "row": 0} for index in indices]
        for index, token_ids in zip(indices, fill(encoded).tolist(), strict=True):
            result[index] = token_ids[: len(rows[index])]
    return result
