"""CALM (arXiv 2401.02412), of torch and transformers alone: the file is saved along, so that compositions load."""

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


def uniform_pairs(anchor_depth: int, augmenting_depth: int, count: int) -> list[tuple[int, int]]:
    """The i-th of `count` augmenting layers with the i-th of the anchor's, at gaps that differ by one at most.

    >>> uniform_pairs(8, 4, 4)
    [(0, 1), (1, 3), (2, 5), (3, 7)]

    Raises:
        ValueError: A model has fewer layers.
    """
    if not (most := min(anchor_depth, augmenting_depth)) >= count >= 1:
        depths = f"the anchor has {anchor_depth} layers and the augmenting model {augmenting_depth}"
        raise ValueError(f"connections={count}: {depths}. Choose 1 to {most}.")
    return [(index * augmenting_depth // count - 1, index * anchor_depth // count - 1) for index in range(1, count + 1)]


class CalmConfig(PreTrainedConfig):  # type: ignore[misc]
    """What a composition is made of."""

    model_type = "calm"
    _auto_class: ClassVar[str] = "AutoConfig"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": AutoConfig}
    text_config: Any = None  # the anchor's
    augmenting: Any = ()  # each one's config, as plain values
    connections: Any = ()  # for each augmenting model: pairs of one of its layers and an anchor layer
    pieces: Any = ()  # and the width of the table that spells the anchor's tokens in its own; 0: it needs none
    zero_init: bool = False
    encoder: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        given = self.text_config or {"model_type": "llama"}
        self.text_config = AutoConfig.for_model(**given) if isinstance(given, Mapping) else given
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        super().__post_init__(**kwargs)

    @property
    def max_position_embeddings(self) -> int:
        """The longest text that all the models were made for."""
        return min(int(part["max_position_embeddings"]) for part in (self.text_config.to_dict(), *self.augmenting))


class CalmCache(Cache):  # type: ignore[misc]
    """In one list the anchor's layers, then each m_A's own, its connections' and, where it has a table, its mask."""

    def __init__(self, model: CalmModel) -> None:
        self.parts = [DynamicCache(config=part.config) for part in (model.anchor, *model.augmenting)]
        for part, links, width in zip(self.parts[1:], model.connections, model.config.pieces, strict=True):
            part.layers += [DynamicLayer() for _ in range(len(cast(Any, links)) + (width > 0))]
        super().__init__(layers=[layer for part in self.parts for layer in part.layers])


class Connection(nn.Module):
    """f_cross(f_proj(H_A), H_B), m_B's attention to m_A: D_A D_B + 4 D_B² weights, no bias, norm or rotary angles."""

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
        """What is added to `hidden`, H_B (batch, time, D_B).

        `states` are H_A (batch, read, D_A) at the tokens read now, `visible` (batch or 1, 1, time, all read) is True
        where a query may look; `cache` has, at `slot`, keys and values of what was read before.
        """
        dtype = self.o_proj.weight.dtype
        given = self.f_proj(states.to(dtype))
        projected = self.q_proj(hidden.to(dtype)), self.k_proj(given), self.v_proj(given)
        query, key, value = (one.view(*one.shape[:2], *self.heads).transpose(1, 2) for one in projected)
        if cache is not None:
            key, value = cache.update(key, value, slot)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, visible)
        return cast(Tensor, self.o_proj(mixed.transpose(1, 2).flatten(2)).to(hidden.dtype))


class CalmModel(PreTrainedModel):  # type: ignore[misc]
    """The anchor's stack, with what the augmenting models see added after its chosen layers.

    H_Bj + f_cross(f_proj(H_Ai), H_Bj) is the input of anchor layer j+1; several connections are summed from the same
    H_Bj, in any order. A query sees m_A's positions up to its own: the paper names no mask, but without one the labels
    would leak through m_A. The models are frozen, and run without dropout. A layer is told its part by `calm`.
    """

    config_class = CalmConfig
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ("connections",)  # small steps are lost in half precision
    embed_tokens = property(lambda self: self.anchor.embed_tokens)

    def __init__(self, config: CalmConfig, anchor: Any = None) -> None:
        super().__init__(config)
        own = {"dtype": torch.get_default_dtype(), "attn_implementation": config._attn_implementation}
        self.anchor = _listen(anchor or AutoModel.from_config(config.text_config, **own))
        self.augmenting, self.connections = nn.ModuleList(), nn.ModuleList()
        for part, pairs, width in zip(config.augmenting, config.connections, config.pieces, strict=True):
            table = torch.zeros(config.text_config.vocab_size, width, dtype=torch.long) if width else None
            self.add(AutoModel.from_config(AutoConfig.for_model(**part), **own), pairs, table)
        self.post_init()

    def add(self, stack: Any, pairs: Sequence[Any], table: Tensor | None) -> None:
        """Takes in one augmenting stack, as it is, new connections, and the table, (V_B, P), of its tokens."""
        links = nn.ModuleList(Connection(stack.config, self.config.text_config, self.config.zero_init) for _ in pairs)
        stack.register_buffer("pieces", table)
        self.augmenting.append(_listen(stack).to(self.device))
        self.connections.append(links.to(self.device))

    def _init_weights(self, module: nn.Module) -> None:
        """Connections draw theirs when they are made, and the models have had theirs."""

    def forward(
        self, input_ids: Any, past_key_values: Any = None, use_cache: bool = False, prompt_mask: Any = None, **rest: Any
    ) -> BaseModelOutputWithPast:
        """The anchor's states, (batch, time, D_B), after the augmenting models have read the new tokens, (batch, time).

        `past_key_values` is the `CalmCache` of an earlier pass; `prompt_mask` (batch, prompt) is 1 at what an encoder
        reads, the first pass' tokens unless given; `rest` goes to every model: attention_mask, position_ids.
        """
        if self.anchor.training or self.augmenting.training:
            self.anchor.eval(), self.augmenting.eval()
        cache = CalmCache(self) if use_cache and past_key_values is None else past_key_values
        own, *others = [cast(Any, None)] * (1 + len(self.augmenting)) if cache is None else cache.parts
        past = 0 if cache is None else cache.get_seq_length()
        reads, end = not (self.config.encoder and past), past + input_ids.shape[1]
        seen = end if reads else others[0].layers[len(cast(Any, self.augmenting[0].layers))].get_seq_length()
        now, then = (torch.arange(*ends, device=input_ids.device) for ends in ((past, end), (0, seen)))
        visible = (then <= now[:, None])[None, None]
        mask = prompt_mask if self.config.encoder and prompt_mask is not None else rest.get("attention_mask")
        if mask is not None:
            visible = visible & nn.functional.pad(mask, (0, seen - mask.shape[1]))[:, None, None].bool()
        links: dict[int, list[Any]] = {}
        zipped = zip(self.augmenting, others, self.connections, self.config.connections, strict=True)
        for part, read, ways, pairs in cast(Any, zipped):
            states = {lower: now.new_empty((len(input_ids), 0, part.config.hidden_size)) for lower, _ in pairs}
            if reads:
                given, ends = _spell(part.pieces, {"input_ids": input_ids, **rest}, read)
                with torch.no_grad():
                    part(past_key_values=read, use_cache=use_cache, calm=(states, {}), **given)
                if ends is not None:
                    states = {lower: each.take_along_dim(ends, 1) for lower, each in states.items()}
            for slot, (way, (lower, upper)) in enumerate(zip(ways, pairs, strict=True), len(part.layers)):
                links.setdefault(upper, []).append(partial(way, states[lower], visible, read, slot))
        output = self.anchor(input_ids, past_key_values=own, use_cache=use_cache, calm=({}, links), **rest)
        return BaseModelOutputWithPast(output.last_hidden_state, cache if use_cache else None)


class CalmForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A composition with the anchor's head. Only the connections train, after loading too."""

    config_class = CalmConfig
    base_model_prefix = "model"
    _auto_class = "AutoModelForCausalLM"
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _supports_default_dynamic_cache = classmethod(lambda cls: False)  # it would be the anchor's alone
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
        """Joins copies of live models, which stay as they are.

        Args:
            anchor: m_B.
            augmenting: Any number of m_A that read its tokens; others can `join`.
            connections: How many for each of them, at uniform gaps; or pairs of a layer of m_A and one of m_B.
            zero_init: Whether W_O starts at zero, so that the composition starts as the anchor. Not in the paper.
            encoder: Whether m_A reads the prompt and no new token: the paper's weaker ablation.

        Raises:
            ValueError: The models cannot be joined, or not by these connections.
        """
        ways = [joined_layers(anchor, other, connections) for other in augmenting]
        own = copy.deepcopy(anchor)
        own.apply(lambda module: setattr(module, "_is_hf_initialized", True))  # else made by hand is drawn anew
        kept = {"attn_implementation": own.config._attn_implementation, "dtype": own.dtype}  # else lost here
        model = cls(CalmConfig(text_config=own.config, zero_init=zero_init, encoder=encoder, **kept), own)
        model.generation_config = own.generation_config
        for other, pairs in zip(augmenting, ways, strict=True):
            model.join(other, pairs)
        return model

    def join(self, augmenting: Any, connections: Pairs, table: Tensor | None = None) -> None:
        """Adds a copy of one more augmenting model, in the anchor's dtype, with connections of its own.

        Where its tokens are others, `table` (V_B, P) has its ids, one at least, for each of m_B's tokens, then -1.
        """
        pairs = joined_layers(self.model.anchor, augmenting, connections, table)
        stack = copy.deepcopy(augmenting.base_model)
        for parameter in stack.parameters():  # and no buffer: rotary frequencies stay precise
            parameter.data = parameter.data.to(self.dtype)
        self.model.add(stack.requires_grad_(False), pairs, table)
        self.config.pieces = [*self.config.pieces, 0 if table is None else table.shape[1]]
        self.config.augmenting = [*self.config.augmenting, stack.config.to_dict()]
        self.config.connections = [*self.config.connections, [list(pair) for pair in pairs]]

    def freeze(self) -> None:
        """Only the connections train."""
        self.requires_grad_(False).model.connections.requires_grad_(True)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As ever; loading turns all gradients on."""
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
        """Logits, (batch, kept, V_B), and the loss if labels, (batch, time), are given; the rest as in `CalmModel`."""
        output = self.model(input_ids, attention_mask=attention_mask, position_ids=position_ids, **given)
        logits = self.lm_head(output.last_hidden_state[:, -logits_to_keep:])
        loss = None if labels is None else self.loss_function(logits, labels, self.config.text_config.vocab_size)
        return CausalLMOutputWithPast(loss, logits, output.past_key_values)


def joined_layers(anchor: Any, augmenting: Any, connections: Pairs, table: Any = None) -> list[tuple[int, int]]:
    """Which layers are joined; models that cannot be are refused."""
    if strange := [model for model in (anchor, augmenting) if not hasattr(model.base_model, "layers")]:
        raise ValueError(f"{type(strange[0]).__name__} cannot be composed: expected a decoder of the LLaMA family.")
    sizes = [model.get_input_embeddings().num_embeddings for model in (anchor, augmenting)]
    if not (sizes[0] == sizes[1] if table is None else len(table) == sizes[0] and table.max() < sizes[1]):
        there = f"the anchor has {sizes[0]} embeddings and the augmenting model {sizes[1]}"
        raise ValueError(f"Unless a table fits, both read the same tokens, but {there}. Give models of one tokenizer.")
    lower, upper = len(augmenting.base_model.layers), len(anchor.base_model.layers)
    pairs = uniform_pairs(upper, lower, connections) if isinstance(connections, int) else connections
    valid = {(below, above) for below, above in pairs if below in range(lower) and above in range(upper)}
    if not pairs or len(valid) < len(pairs):
        ranges = f"layers of the augmenting model (0 to {lower - 1}) and the anchor (0 to {upper - 1})"
        raise ValueError(f"connections={pairs}: expected different pairs of {ranges}.")
    return [(below, above) for below, above in pairs]


def _spell(table: Any, given: dict[str, Any], cache: Any) -> tuple[dict[str, Any], Tensor | None]:
    """What m_A reads in place of the anchor's tokens, and the place of each one's last piece, which stands for it."""
    if table is None:
        return given, None
    pieces, mask = table[given["input_ids"]], given.get("attention_mask")  # (batch, time, P)
    there = pieces >= 0 if mask is None else (pieces >= 0) & mask[:, -pieces.shape[1] :, None].bool()
    ends, there = there.sum(2).cumsum(1) - 1, there.flatten(1)
    order = there.int().argsort(dim=1, descending=True, stable=True)[:, : ends[:, -1].max() + 1]  # gaps last
    seen = there.gather(1, order)[:, None, :, None]
    if cache is not None:
        seen = cache.layers[-1].update(seen, seen)[0]
    seen, tokens = seen[:, 0, :, 0].long(), pieces.flatten(1).gather(1, order).clamp(0)
    positions = (seen.cumsum(1) - 1)[:, -tokens.shape[1] :]
    return {**given, "input_ids": tokens, "attention_mask": seen, "position_ids": positions}, ends.clamp(0)[..., None]


def _listen(stack: Any) -> Any:
    for index, layer in enumerate(stack.layers):
        layer.register_forward_hook(partial(visit, index), with_kwargs=True)
    return stack


def visit(index: int, layer: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
    taps, links = kwargs.get("calm", ({}, {}))
    if index in taps:
        taps[index] = output
    return output + sum(link(output) for link in links[index]) if index in links else None


if not __name__.startswith("transformers_modules."):  # where it was saved along, transformers registers it itself
    AutoConfig.register(CalmConfig.model_type, CalmConfig)
    AutoModelForCausalLM.register(CalmConfig, CalmForCausalLM)
