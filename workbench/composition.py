"""CALM's composition of models (Bansal et al., 2024, arXiv 2401.02412).

This file imports only torch and transformers: a copy is saved with each composition, so that it loads without the
workbench. m_B is the anchor, m_A an augmenting model; D_A and D_B are their widths.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

Pairs = int | Sequence[tuple[int, int]]
"""A number of connections at uniform distances, or pairs (layer of the augmenting model, layer of the anchor)."""


def uniform_pairs(anchor_depth: int, augmenting_depth: int, count: int) -> list[tuple[int, int]]:
    """Return `count` pairs (layer of the augmenting model, layer of the anchor) at uniform distances.

    The distances between connected layers of one model differ by at most one; the last pair joins both last layers.

    Args:
        anchor_depth: Number of layers of the anchor.
        augmenting_depth: Number of layers of the augmenting model.
        count: Number of connections.

    Raises:
        ValueError: `count` is below 1, or a model has fewer layers.

    >>> uniform_pairs(8, 4, 4)
    [(0, 1), (1, 3), (2, 5), (3, 7)]
    """
    if not (most := min(anchor_depth, augmenting_depth)) >= count >= 1:
        depths = f"the anchor has {anchor_depth} layers and the augmenting model {augmenting_depth}"
        raise ValueError(f"connections={count}: {depths}. Choose 1 to {most}.")
    return [(index * augmenting_depth // count - 1, index * anchor_depth // count - 1) for index in range(1, count + 1)]


class CalmConfig(PreTrainedConfig):  # type: ignore[misc]
    """Config of a composition.

    Attributes:
        text_config: Config of the anchor.
        augmenting: Config of each augmenting model, as a dict.
        connections: For each augmenting model, its pairs (layer of the augmenting model, layer of the anchor).
        pieces: For each augmenting model, the width P of the table that spells the anchor's tokens in its tokens; 0:
            both have the same tokens, and there is no table.
        zero_init: Whether new connections start with W_O = 0.
        encoder: Whether the augmenting models read only the prompt.
    """

    model_type = "calm"
    _auto_class: ClassVar[str] = "AutoConfig"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": AutoConfig}
    text_config: Any = None
    augmenting: Any = ()
    connections: Any = ()
    pieces: Any = ()
    zero_init: bool = False
    encoder: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        anchor = self.text_config or {"model_type": "llama"}
        self.text_config = AutoConfig.for_model(**anchor) if isinstance(anchor, Mapping) else anchor
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        super().__post_init__(**kwargs)

    @property
    def max_position_embeddings(self) -> int:
        """Maximum sequence length that all models support."""
        return min(int(part["max_position_embeddings"]) for part in (self.text_config.to_dict(), *self.augmenting))


class CalmCache(Cache):  # type: ignore[misc]
    """Key-value cache of a composition.

    `parts` has one cache for the anchor and one for each augmenting model. The latter holds the layers of the model,
    then one layer for each connection, then, if the model has a spelling table, one for its attention mask.
    """

    def __init__(self, model: CalmModel) -> None:
        self.parts = [DynamicCache(config=part.config) for part in (model.anchor, *model.augmenting)]
        for part, links, width in zip(self.parts[1:], model.connections, model.config.pieces, strict=True):
            part.layers += [DynamicLayer() for _ in range(len(cast(Any, links)) + (width > 0))]
        super().__init__(layers=[layer for part in self.parts for layer in part.layers])


class Connection(nn.Module):
    """f_cross(f_proj(H_A), H_B): multi-head cross-attention from m_B to m_A, without biases, norms or rotary angles.

        f_proj(H_A) = H_A W_P                            (batch, read, D_B)
        Q_h = H_B W_Q^h,   K_h = f_proj(H_A) W_K^h,   V_h = f_proj(H_A) W_V^h
        f_cross = concat_h(softmax(Q_h K_h^T / √d) V_h) W_O   (batch, time, D_B)

    with as many heads as m_B has and d = D_B / heads. The weights are D_A D_B + 4 D_B² numbers.
    """

    def __init__(self, augmenting: Any, anchor: Any, zero_init: bool) -> None:
        super().__init__()
        width, heads = anchor.hidden_size, anchor.num_attention_heads
        self.heads, inner = (heads, width // heads), heads * (width // heads)  # rounded down
        self.f_proj = nn.Linear(augmenting.hidden_size, width, bias=False)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.o_proj = nn.Linear(inner, width, bias=False)
        if zero_init:
            nn.init.zeros_(self.o_proj.weight)

    def forward(self, states: Tensor, visible: Tensor, cache: Any, slot: int, hidden: Tensor) -> Tensor:
        """Return what is added to `hidden`, (batch, time, D_B).

        Args:
            states: H_A at the newly read tokens, (batch, read, D_A).
            visible: True where a query attends, (batch or 1, 1, time, all read tokens).
            cache: Cache of the augmenting model, or None.
            slot: Index of the cache layer with the keys and values of tokens read before.
            hidden: H_B, (batch, time, D_B).
        """
        dtype = self.o_proj.weight.dtype
        projected = self.f_proj(states.to(dtype))
        parts = self.q_proj(hidden.to(dtype)), self.k_proj(projected), self.v_proj(projected)
        query, key, value = (part.view(*part.shape[:2], *self.heads).transpose(1, 2) for part in parts)
        if cache is not None:
            key, value = cache.update(key, value, slot)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, visible)
        return cast(Tensor, self.o_proj(mixed.transpose(1, 2).flatten(2)).to(hidden.dtype))


class CalmModel(PreTrainedModel):  # type: ignore[misc]
    """The anchor's decoder with the augmenting models' states added after its connected layers.

    For each connection (i, j), the input of anchor layer j + 1 is

        H_Bj + f_cross(f_proj(H_Ai), H_Bj)   (batch, time, D_B);

    several connections of one layer j are summed, all computed from the same H_Bj. A query attends to the positions of
    m_A up to its own: the paper specifies no mask, but without one the labels would leak through m_A. All models are
    frozen and run in evaluation mode, without dropout. The argument `calm` of a layer has its part in this (`visit`).
    """

    config_class = CalmConfig
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ("connections",)  # small steps are lost in half precision
    embed_tokens = property(lambda self: self.anchor.embed_tokens)

    def __init__(self, config: CalmConfig, anchor: Any = None) -> None:
        super().__init__(config)
        settings = {"dtype": torch.get_default_dtype(), "attn_implementation": config._attn_implementation}
        self.anchor = _with_hooks(anchor or AutoModel.from_config(config.text_config, **settings))
        self.augmenting, self.connections = nn.ModuleList(), nn.ModuleList()
        for part, pairs, width in zip(config.augmenting, config.connections, config.pieces, strict=True):
            table = torch.zeros(config.text_config.vocab_size, width, dtype=torch.long) if width else None
            self.add(AutoModel.from_config(AutoConfig.for_model(**part), **settings), pairs, table)
        self.post_init()

    def add(self, stack: Any, pairs: Sequence[Any], table: Tensor | None) -> None:
        """Add an augmenting decoder, without copying it, and new connections.

        Args:
            stack: The decoder.
            pairs: Pairs (layer of the augmenting model, layer of the anchor).
            table: Spelling of the anchor's tokens in its tokens, (V_B, P), or None.
        """
        links = nn.ModuleList(Connection(stack.config, self.config.text_config, self.config.zero_init) for _ in pairs)
        stack.register_buffer("pieces", table)
        self.augmenting.append(_with_hooks(stack).to(self.device))
        self.connections.append(links.to(self.device))

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: connections are initialized when they are created, and the models already have weights."""

    def forward(
        self, input_ids: Any, past_key_values: Any = None, use_cache: bool = False, prompt_mask: Any = None, **rest: Any
    ) -> BaseModelOutputWithPast:
        """Return the anchor's last hidden states, (batch, time, D_B).

        Args:
            input_ids: New tokens, (batch, time).
            past_key_values: `CalmCache` of earlier calls, or None.
            use_cache: Whether to create and return a cache.
            prompt_mask: Mask of the tokens that an encoder reads, (batch, prompt). None: the tokens of the first call.
            rest: Arguments for every model, such as attention_mask and position_ids.
        """
        if self.anchor.training or self.augmenting.training:
            self.anchor.eval(), self.augmenting.eval()
        cache = CalmCache(self) if use_cache and past_key_values is None else past_key_values
        anchor_cache, *caches = [cast(Any, None)] * (1 + len(self.augmenting)) if cache is None else cache.parts
        past = 0 if cache is None else cache.get_seq_length()
        reads = not (self.config.encoder and past)  # an encoder reads in the first call only
        visible = self._visible(input_ids, past, None if reads else caches[0], prompt_mask, rest.get("attention_mask"))
        links: dict[int, list[Any]] = {}
        zipped = zip(self.augmenting, caches, self.connections, self.config.connections, strict=True)
        for part, own, connections, pairs in cast(Any, zipped):
            layers = {lower for lower, _ in pairs}
            if reads:
                states = self._read(part, layers, own, use_cache, {"input_ids": input_ids, **rest})
            else:
                states = dict.fromkeys(layers, input_ids.new_empty((len(input_ids), 0, part.config.hidden_size)))
            for slot, (connection, (lower, upper)) in enumerate(zip(connections, pairs, strict=True), len(part.layers)):
                links.setdefault(upper, []).append(partial(connection, states[lower], visible, own, slot))
        output = self.anchor(input_ids, past_key_values=anchor_cache, use_cache=use_cache, calm=({}, links), **rest)
        return BaseModelOutputWithPast(output.last_hidden_state, cache if use_cache else None)

    def _visible(self, input_ids: Tensor, past: int, frozen: Any, prompt_mask: Any, attention_mask: Any) -> Tensor:
        """Return where the new tokens attend to tokens read by m_A, (batch or 1, 1, time, read).

        `past` tokens came before the new ones. `frozen` is the cache of an augmenting model that reads no new tokens,
        otherwise None.
        """
        end = past + input_ids.shape[1]
        read = end if frozen is None else frozen.layers[len(cast(Any, self.augmenting[0].layers))].get_seq_length()
        queries, keys = (torch.arange(*ends, device=input_ids.device) for ends in ((past, end), (0, read)))
        visible = (keys <= queries[:, None])[None, None]
        mask = prompt_mask if self.config.encoder and prompt_mask is not None else attention_mask
        if mask is not None:
            visible = visible & nn.functional.pad(mask, (0, read - mask.shape[1]))[:, None, None].bool()
        return visible

    def _read(
        self, part: Any, layers: set[int], cache: Any, use_cache: bool, inputs: dict[str, Any]
    ) -> dict[int, Tensor]:
        """Return the states of some layers of an augmenting model, (batch, time, D_A), at the anchor's tokens."""
        states = dict.fromkeys(layers, cast(Any, None))
        spelt, ends = _spell(part.pieces, inputs, cache)
        with torch.no_grad():
            part(past_key_values=cache, use_cache=use_cache, calm=(states, {}), **spelt)
        return states if ends is None else {layer: hidden.take_along_dim(ends, 1) for layer, hidden in states.items()}


class CalmForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A composition with the anchor's language-model head. Only the connections are trainable, also after loading."""

    config_class = CalmConfig
    base_model_prefix = "model"
    _auto_class = "AutoModelForCausalLM"
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _supports_default_dynamic_cache = classmethod(lambda cls: False)  # it would hold only the anchor's layers
    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.anchor.embed_tokens.weight"}

    def __init__(self, config: CalmConfig, anchor: Any = None) -> None:
        super().__init__(config)
        self.model = CalmModel(config, anchor and anchor.base_model)
        size, width = self.model.embed_tokens.weight.shape
        self.lm_head = anchor.lm_head if anchor else nn.Linear(width, size, bias=False)
        self.post_init()
        self.freeze()

    @classmethod
    def compose(
        cls, anchor: Any, augmenting: Sequence[Any], connections: Pairs, zero_init: bool = False, encoder: bool = False
    ) -> CalmForCausalLM:
        """Return a composition of copies of models; the given models are not changed.

        Args:
            anchor: m_B, a causal language model.
            augmenting: Any number of m_A with the anchor's tokens; models with other tokens can be added by `join`.
            connections: Number of connections of each m_A at uniform distances, or pairs (layer of m_A, layer of m_B).
            zero_init: Initialize W_O to zero, so that the composition starts as the anchor. Not in the paper.
            encoder: Let m_A read only the prompt: the paper's weaker ablation.

        Raises:
            ValueError: The models cannot be joined, or lack a layer of `connections`.
        """
        pairs_of_each = [joined_layers(anchor, other, connections) for other in augmenting]
        own = copy.deepcopy(anchor)
        own.apply(lambda module: setattr(module, "_is_hf_initialized", True))  # or `post_init` would draw new weights
        settings = {"attn_implementation": own.config._attn_implementation, "dtype": own.dtype}
        model = cls(CalmConfig(text_config=own.config, zero_init=zero_init, encoder=encoder, **settings), own)
        model.generation_config = own.generation_config
        for other, pairs in zip(augmenting, pairs_of_each, strict=True):
            model.join(other, pairs)
        return model

    def join(self, augmenting: Any, connections: Pairs, table: Tensor | None = None) -> None:
        """Add a copy of an augmenting model, in the anchor's dtype, with new connections.

        Args:
            augmenting: The model, m_A.
            connections: Number of connections, or pairs (layer of m_A, layer of m_B).
            table: If m_A has other tokens: for each token of m_B its ids in m_A, at least one, padded with -1,
                (V_B, P).

        Raises:
            ValueError: The models cannot be joined, or lack a layer of `connections`.
        """
        pairs = joined_layers(self.model.anchor, augmenting, connections, table)
        stack = copy.deepcopy(augmenting.base_model)
        for parameter in stack.parameters():  # but no buffer: rotary frequencies stay in full precision
            parameter.data = parameter.data.to(self.dtype)
        self.model.add(stack.requires_grad_(False), pairs, table)
        self.config.pieces = [*self.config.pieces, 0 if table is None else table.shape[1]]
        self.config.augmenting = [*self.config.augmenting, stack.config.to_dict()]
        self.config.connections = [*self.config.connections, [list(pair) for pair in pairs]]

    def freeze(self) -> None:
        """Make only the connections trainable."""
        self.requires_grad_(False).model.connections.requires_grad_(True)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a composition as transformers does, then freeze all but the connections."""
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).freeze()
        return loaded

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Any = None,
        position_ids: Any = None,
        labels: Any = None,
        logits_to_keep: int = 0,
        **given: Any,
    ) -> CausalLMOutputWithPast:
        """Return the logits, (batch, kept, V_B), and the loss if there are labels.

        Args:
            input_ids: Tokens, (batch, time).
            attention_mask: 1 at tokens, 0 at padding, (batch, time so far).
            position_ids: Positions, (batch, time).
            labels: Tokens to predict, -100 where there is none, (batch, time).
            logits_to_keep: Number of last positions to compute logits for; 0: all.
            given: Further arguments of `CalmModel.forward`.
        """
        output = self.model(input_ids, attention_mask=attention_mask, position_ids=position_ids, **given)
        logits = self.lm_head(output.last_hidden_state[:, -logits_to_keep:])
        loss = None if labels is None else self.loss_function(logits, labels, self.config.text_config.vocab_size)
        return CausalLMOutputWithPast(loss, logits, output.past_key_values)


def joined_layers(anchor: Any, augmenting: Any, connections: Pairs, table: Any = None) -> list[tuple[int, int]]:
    """Return the pairs of layers (augmenting model, anchor) that are connected, after checking that they can be.

    Args:
        anchor: m_B.
        augmenting: m_A.
        connections: Number of connections, or pairs (layer of m_A, layer of m_B).
        table: Spelling of m_B's tokens in m_A's, (V_B, P), or None.

    Raises:
        ValueError: A model is not a decoder of the LLaMA family, the tokens differ and no table fits, or a pair is
            repeated or names a layer that does not exist.
    """
    if strange := [model for model in (anchor, augmenting) if not hasattr(model.base_model, "layers")]:
        raise ValueError(f"{type(strange[0]).__name__} cannot be composed: expected a decoder of the LLaMA family.")
    sizes = [model.get_input_embeddings().num_embeddings for model in (anchor, augmenting)]
    if not (sizes[0] == sizes[1] if table is None else len(table) == sizes[0] and table.max() < sizes[1]):
        found = f"the anchor has {sizes[0]} embeddings and the augmenting model {sizes[1]}"
        raise ValueError(f"Unless a table fits, both read the same tokens, but {found}. Give models of one tokenizer.")
    lower, upper = len(augmenting.base_model.layers), len(anchor.base_model.layers)
    pairs = uniform_pairs(upper, lower, connections) if isinstance(connections, int) else connections
    valid = {(below, above) for below, above in pairs if below in range(lower) and above in range(upper)}
    if not pairs or len(valid) < len(pairs):
        ranges = f"layers of the augmenting model (0 to {lower - 1}) and the anchor (0 to {upper - 1})"
        raise ValueError(f"connections={pairs}: expected different pairs of {ranges}.")
    return [(below, above) for below, above in pairs]


def _spell(table: Any, inputs: dict[str, Any], cache: Any) -> tuple[dict[str, Any], Tensor | None]:
    """Return m_A's inputs for the anchor's tokens, and the index of each token's last piece, (batch, time, 1).

    The state at its last piece represents a token. Pieces of a row are moved to the left, gaps to the right. Without a
    table the inputs are unchanged and the indices None.
    """
    if table is None:
        return inputs, None
    pieces, mask = table[inputs["input_ids"]], inputs.get("attention_mask")  # (batch, time, P)
    there = pieces >= 0 if mask is None else (pieces >= 0) & mask[:, -pieces.shape[1] :, None].bool()
    ends, there = there.sum(2).cumsum(1) - 1, there.flatten(1)
    order = there.int().argsort(dim=1, descending=True, stable=True)[:, : ends[:, -1].max() + 1]
    read = there.gather(1, order)[:, None, :, None]
    if cache is not None:
        read = cache.layers[-1].update(read, read)[0]
    read, tokens = read[:, 0, :, 0].long(), pieces.flatten(1).gather(1, order).clamp(0)
    positions = (read.cumsum(1) - 1)[:, -tokens.shape[1] :]
    return {**inputs, "input_ids": tokens, "attention_mask": read, "position_ids": positions}, ends.clamp(0)[..., None]


def _with_hooks(stack: Any) -> Any:
    """Register `visit` on each layer of a decoder and return the decoder."""
    for index, layer in enumerate(stack.layers):
        layer.register_forward_hook(partial(visit, index), with_kwargs=True)
    return stack


def visit(index: int, layer: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
    """Forward hook of a layer: record its output, or add the connections' values to it.

    The layer's argument `calm` is a pair: a dict whose keys are the layers to record, and the connections of each
    layer.

    Args:
        index: Index of the layer.
        layer: The layer.
        args: Positional arguments of the layer.
        kwargs: Keyword arguments of the layer.
        output: Hidden states, (batch, time, width).
    """
    recorded, links = kwargs.get("calm", ({}, {}))
    if index in recorded:
        recorded[index] = output
    return output + sum(link(output) for link in links[index]) if index in links else None


if not __name__.startswith("transformers_modules."):  # transformers registers a copy that was saved with a model itself
    AutoConfig.register(CalmConfig.model_type, CalmConfig)
    AutoModelForCausalLM.register(CalmConfig, CalmForCausalLM)
