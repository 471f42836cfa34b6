"""Forward passes without padding: the rows of a batch lie end to end, and only attention sees them apart.

Rows of a random batch differ in length: padded to the longest, batches of TRACE's rows were 10 to 40 % padding.
All of a transformer but its attention works on single positions, so it is given the real tokens alone, as one long
row. Attention puts the rows side by side again, as a padded batch would have them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils.parametrize import is_parametrized
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from workbench.backbone.batch import Batch

IMPLEMENTATION = "sdpa_within_rows"
"""Name of the attention function in transformers' registry; without `token_rows` it is "sdpa"."""
LEAST_PADDING = 0.05
"""Share of a batch's positions that have to be padding before it is worth the copies in attention."""
LEAST_WIDTH = 256
"""Least width of a model that skips padding. Measured at 576; a narrower model saves less for each copied position."""
BY_POSITION = "by_position"
"""Attribute of a function that may replace a module's forward in a pass without padding."""
KNOWN_PACKAGES = (
    *(f"transformers.models.{family}." for family in ("llama", "mistral", "qwen2", "qwen3")),
    "transformers.activations.",
    "peft.tuners.lora.",
    "workbench.backbone.prompts.",
)
"""Packages whose modules connect the positions of a row by attention alone."""
KNOWN_CLASSES = (
    *(nn.Linear, nn.Embedding, nn.Dropout, nn.Identity, nn.LayerNorm, nn.RMSNorm),
    *(nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict),
    *(nn.SiLU, nn.GELU, nn.ReLU, nn.Sigmoid, nn.Tanh),
)
"""Classes of torch that treat each position alone."""


@dataclass(frozen=True)
class Rows:
    """Where the tokens of a batch lie, end to end and in the padded batch.

    Args:
        count: Number of rows.
        longest: Length of the longest row in tokens.
        place: (tokens,), index of each token in the padded batch, seen as one row of `count * longest` positions.
    """

    count: int
    longest: int
    place: Tensor

    def apart(self, states: Tensor) -> Tensor:
        """Put rows side by side: (1, heads, tokens, width) to (count, heads, longest, width), padded with zeros."""
        heads, width = states.shape[1], states.shape[3]
        flat = states.new_zeros(self.count * self.longest, heads, width)
        flat = flat.index_copy(0, self.place, states[0].transpose(0, 1))
        return flat.view(self.count, self.longest, heads, width).transpose(1, 2)

    def end_to_end(self, states: Tensor) -> Tensor:
        """Undo `apart`: (count, longest, heads, width) becomes (1, tokens, heads, width)."""
        return states.flatten(0, 1).index_select(0, self.place)[None]


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    token_rows: Rows | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Compute transformers' SDPA attention, within each row where `token_rows` is given.

    Args:
        module: The attention layer.
        query: (batch, heads, time, width); with `token_rows` (1, heads, tokens, width), and so for the others.
        key: The same with the number of key-value heads.
        value: The same as `key`.
        attention_mask: As for SDPA; not used with `token_rows`, since causality hides the padding behind each row.
        token_rows: Where the tokens of each row lie.
        settings: Further arguments of transformers' function.

    Returns:
        (batch, time, heads, width), and None in place of the attention weights.
    """
    if token_rows is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)[0], None
    apart = (token_rows.apart(states) for states in (query, key, value))
    return token_rows.end_to_end(sdpa_attention_forward(module, *apart, None, **settings)[0]), None


AttentionInterface.register(IMPLEMENTATION, attend)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def allow_unpadded(model: PreTrainedModel) -> PreTrainedModel:
    """Let a model that uses SDPA attend within rows; nothing else about it changes, and nothing of it is saved."""
    if model.config._attn_implementation == "sdpa":
        model.config._attn_implementation = IMPLEMENTATION
    return model


def lay_end_to_end(batch: Batch, decoder: nn.Module) -> Rows | None:
    """Return how a batch is laid end to end; None if it has to stay padded, or would gain nothing.

    It stays padded where something other than attention may look along a row: a module of an unknown class, a hook, a
    replaced forward; and where a layer attends to a window only.

    Args:
        batch: Rows padded on the right.
        decoder: The model without its head.
    """
    count, longest = batch.input_ids.shape
    if count < 2 or not _is_wide(decoder.config):
        return None
    place = batch.attention_mask.flatten().nonzero().flatten()
    if len(place) > (1 - LEAST_PADDING) * count * longest or not _sees_whole_rows(decoder.config, longest):
        return None
    return Rows(count, longest, place) if _looks_along_no_row(decoder) else None


def skips_padding(decoder: nn.Module) -> bool:
    """Return whether batches of short rows that differ in length are computed without their padding.

    Args:
        decoder: The model without its head.
    """
    return _is_wide(decoder.config) and _sees_whole_rows(decoder.config, 1) and _looks_along_no_row(decoder)


def unpadded_states(decoder: nn.Module, batch: Batch, rows: Rows) -> Tensor:
    """Return the final states of a batch's tokens, (tokens, width), in the order of `rows.place`."""
    tokens = batch.input_ids.flatten()[rows.place][None]
    positions = (rows.place % rows.longest)[None]
    unused = tokens.new_zeros(1, 1, 1, 1)  # four dimensions: transformers builds no mask of its own
    output = decoder(
        input_ids=tokens, position_ids=positions, attention_mask=unused, use_cache=False, token_rows=rows
    ).last_hidden_state
    return torch.as_tensor(output[0])


def _is_wide(config: Any) -> bool:
    """Whether a model attends by `attend`, and is wide enough to gain from it; a composition has no width."""
    return config._attn_implementation == IMPLEMENTATION and getattr(config, "hidden_size", 0) >= LEAST_WIDTH


def _looks_along_no_row(decoder: nn.Module) -> bool:
    """Whether nothing but attention connects the positions of a row, as far as classes, hooks and forwards tell.

    A method that was replaced on a class of transformers itself is not noticed.
    """
    if _has_any_global_hook():  # type: ignore[no-untyped-call]
        return False
    own = {id(module) for name, module in decoder.named_modules() if "parametrizations" in name}
    return all(_is_known(module) for module in decoder.modules() if id(module) not in own)


def _sees_whole_rows(config: Any, longest: int) -> bool:
    """Whether every layer attends to all tokens before, in rows of this length."""
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (window is None or longest <= window) and kinds <= {"full_attention", "sliding_attention"}


def _is_known(module: nn.Module) -> bool:
    kind = type(module).__mro__[1] if is_parametrized(module) else type(module)
    known = kind in KNOWN_CLASSES or f"{kind.__module__}.".startswith(KNOWN_PACKAGES)
    replaced = vars(module).get("forward")
    by_position = replaced is None or getattr(getattr(replaced, "func", replaced), BY_POSITION, False)
    config = getattr(module, "config", None)
    attends = config is None or config._attn_implementation == IMPLEMENTATION
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return known and by_position and attends and not any(hooks)
