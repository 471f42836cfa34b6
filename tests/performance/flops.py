"""How many floating-point operations a training step needs by formula, and which share of a device's peak that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import LlamaConfig

FORMULA = (
    "FLOPs of a step = 2 t (N_f + N_b + N_w) + 4 width S (L_f + 2 L_b), with t tokens (no padding), S the sum of the "
    "rows' squared lengths (causality is not discounted, as in PaLM, appendix B); N_f weights of matrix products in "
    "the forward pass, the head among them, L_f its layers; N_b and L_b those through which gradients flow back; N_w "
    "those that train. Full fine-tuning: 6 N t + 12 L width S"
)
PEAKS = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
}
"""FLOP/s of dense products in bfloat16, by the name that torch gives a device, from the makers' data sheets."""


@dataclass(frozen=True)
class Shape:
    """A LLaMA with a tied head.

    Args:
        title: Name of the shape.
        layers: Transformer blocks.
        width: Of the hidden states.
        heads: Of attention.
        key_value_heads: Shared by several heads each.
        inner: Width of the feed-forward.
        vocabulary: Tokens.
        groups: Of block expansion, each of which gets one block.
    """

    title: str
    layers: int
    width: int
    heads: int
    key_value_heads: int
    inner: int
    vocabulary: int
    groups: int

    @property
    def projections(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the seven projections of a block."""
        narrow = self.width // self.heads * self.key_value_heads
        attention = [(self.width, self.width)] * 2 + [(self.width, narrow)] * 2
        return attention + [(self.width, self.inner)] * 2 + [(self.inner, self.width)]

    @property
    def block(self) -> int:
        """Weights of a block's projections."""
        return sum(inputs * outputs for inputs, outputs in self.projections)

    @property
    def head(self) -> int:
        """Weights of the head, which are the embeddings'."""
        return self.vocabulary * self.width

    def config(self) -> LlamaConfig:
        """Return transformers' own description; its token 1 is the end."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            eos_token_id=1,
            pad_token_id=1,
            bos_token_id=None,
        )


SMALL = Shape("small", 4, 64, 4, 2, 176, 512, groups=2)
M135 = Shape("135M", 30, 576, 9, 3, 1536, 49_152, groups=6)
B1 = Shape("1B", 16, 2048, 32, 8, 8192, 128_256, groups=8)


def training_flops(shape: Shape, method: str, lengths: Sequence[int], rank: int = 8) -> float:
    """Return the operations of a training step by `FORMULA`.

    Args:
        shape: Of the model before the method changes it.
        method: "full"; "lora", of all seven projections; "blocks": one new block above each group.
        lengths: Tokens of each row.
        rank: Of the adapters.
    """
    base = shape.layers * shape.block + shape.head
    if method == "full":
        weights, layers = (base, base, base), (shape.layers, shape.layers)
    elif method == "lora":
        added = shape.layers * rank * sum(inputs + outputs for inputs, outputs in shape.projections)
        weights, layers = (base + added, base + added, added), (shape.layers, shape.layers)
    else:
        below = shape.layers // shape.groups  # the first new block is above them, and no gradient reaches them
        after, added = shape.layers + shape.groups, shape.groups * shape.block
        weights = base + added, base + added - below * shape.block, added
        layers = after, after - below
    tokens, squares = sum(lengths), sum(length**2 for length in lengths)
    return 2.0 * tokens * sum(weights) + 4.0 * shape.width * squares * (layers[0] + 2 * layers[1])


def peak_flops(device: str) -> float:
    """Return a device's FLOP/s; NaN for one that `PEAKS` does not list.

    Args:
        device: As torch names it.
    """
    return PEAKS.get(device, math.nan)
