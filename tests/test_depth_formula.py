"""Each surgery's saved tensors, in memory and on a folder, against the papers' formulas written out on lists."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from strategies import BlockExpansion, DepthUpScaling
from workbench.backbone import Backbone
from workbench.strategy import ContinualStrategy
from workbench.surgery import grow
from workbench.testing.tiny import tiny_backbone

Layer = dict[str, Tensor]
TOKENS = torch.tensor([[1, 40, 7, 300, 12, 9], [1, 5, 77, 401, 60, 61]])
WIDTHS = {"hidden_size": 16, "intermediate_size": 24, "head_dim": 4}


def sliding(depth: int) -> list[str]:
    return [("full_attention", "sliding_attention")[index % 3 == 1] for index in range(depth)]


VARIANTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "gqa": lambda depth: {"num_key_value_heads": 2},
    "tied": lambda depth: {"tie_word_embeddings": True},
    "biased": lambda depth: {"attention_bias": True, "mlp_bias": True},
    "bf16": lambda depth: {},
    "head_dim": lambda depth: {"head_dim": 6},
    "layer_types": lambda depth: {
        **{"family": "qwen3", "use_sliding_window": True, "sliding_window": 4, "layer_types": sliding(depth)}
    },
}


def expansion(layers: list[Layer], groups: int, copies: int) -> list[Layer]:
    """LLaMA Pro: N groups of L/N blocks, zeroed copies of the top P of each stacked on top of it."""
    size = len(layers) // groups
    stack: list[Layer] = []
    for start in range(0, len(layers), size):
        group = layers[start : start + size]
        stack.extend(group)
        for block in group[size - copies :]:
            zeroed = ("o_proj", "down_proj")
            stack.append({k: 0 * v.abs() if any(name in k for name in zeroed) else v for k, v in block.items()})
    return stack


def solar(layers: list[Layer], m: int) -> list[Layer]:
    """SOLAR: the last m dropped of one copy, the first m of the other, then one on the other."""
    return layers[: len(layers) - m] + layers[m:]


def interlocked(layers: list[Layer], m: int, k: int) -> list[Layer]:
    """Chunks of k layers in turn from A = [0, n-m) and from B = [m, n)."""
    lower, upper = layers[: len(layers) - m], layers[m:]
    stack = []
    while lower:
        stack += lower[:k] + upper[:k]
        lower, upper = lower[k:], upper[k:]
    return stack


Case = tuple[int, Callable[[], ContinualStrategy], Callable[[list[Layer]], list[Layer]], int]
CASES: dict[str, Case] = {
    "expansion of 8 to 12": (8, lambda: BlockExpansion(groups=4), lambda layers: expansion(layers, 4, 1), 12),
    "expansion of 8 to 16": (8, lambda: BlockExpansion(4, 2), lambda layers: expansion(layers, 4, 2), 16),
    "expansion of 12 to 16": (12, lambda: BlockExpansion(groups=4), lambda layers: expansion(layers, 4, 1), 16),
    "SOLAR n=8 m=2": (8, lambda: DepthUpScaling(2), lambda layers: solar(layers, 2), 12),
    "SOLAR n=32 m=8": (32, lambda: DepthUpScaling(8), lambda layers: solar(layers, 8), 48),
    "naive n=8": (8, lambda: DepthUpScaling(0), lambda layers: layers + layers, 16),
    "interlocked n=8 m=2 k=1": (8, lambda: DepthUpScaling(2, 1), lambda layers: interlocked(layers, 2, 1), 12),
    "interlocked n=32 m=8 k=8": (32, lambda: DepthUpScaling(8, 8), lambda layers: interlocked(layers, 8, 8), 48),
}


def test_the_formulas_give_the_papers_orders() -> None:
    """The layers that the papers' text and tables name, for 32 layers."""
    layers = [{"index": torch.tensor(float(index)), "o_proj": torch.tensor(-1.0)} for index in range(32)]

    def order(stack: list[Layer]) -> list[int]:
        return [int(layer["index"]) for layer in stack]

    expanded = expansion(layers, 8, 1)
    assert [index for index, layer in enumerate(expanded) if layer["o_proj"] == 0] == [4, 9, 14, 19, 24, 29, 34, 39]
    assert order(solar(layers, 8)) == [*range(24), *range(8, 32)]
    assert order(interlocked(layers, 8, 1))[:4] == [0, 8, 1, 9]
    assert order(interlocked(layers, 8, 1))[-2:] == [23, 31]
    runs = (range(8), range(8, 16), range(8, 16), range(16, 24), range(16, 24), range(24, 32))
    assert order(interlocked(layers, 8, 8)) == [index for run in runs for index in run]
    assert order(interlocked(layers, 8, 24)) == order(solar(layers, 8))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """Each base model's folder, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("bases")

    def base(variant: str, depth: int) -> Path:
        path = folder / f"{variant}-{depth}"
        if not path.exists():
            backbone = tiny_backbone(**{"num_hidden_layers": depth, **WIDTHS, **VARIANTS[variant](depth)})
            backbone.model.to(torch.bfloat16 if variant == "bf16" else torch.float32)
            backbone.save(path)
        return path

    return base


def constructed(base: Path, formula: Callable[[list[Layer]], list[Layer]]) -> dict[str, bytes]:
    """The tensors that the formula gives, as bytes by name."""
    state, layers = load_file(base / "model.safetensors"), []
    while any(name.startswith(f"model.layers.{len(layers)}.") for name in state):
        prefix = f"model.layers.{len(layers)}."
        layers.append({name.removeprefix(prefix): state.pop(name) for name in list(state) if name.startswith(prefix)})
    for index, layer in enumerate(formula(layers)):
        state |= {f"model.layers.{index}.{name}": tensor for name, tensor in layer.items()}
    return raw(state)


def raw(state: dict[str, Tensor]) -> dict[str, bytes]:
    """Bits, the sign of a zero too."""
    return {name: tensor.contiguous().view(torch.uint8).numpy().tobytes() for name, tensor in state.items()}


@torch.no_grad()
def decode(model: PreTrainedModel, steps: int) -> tuple[Tensor, Tensor]:
    """Greedy tokens, decoded one by one with a cache, and those that one forward without it gives at their places."""
    cache = DynamicCache(config=model.config)
    tokens = fed = TOKENS
    for _ in range(steps):
        fed = model(fed, past_key_values=cache).logits[:, -1].argmax(dim=-1, keepdim=True)
        tokens = torch.cat([tokens, fed], dim=1)
    uncached = model(tokens, use_cache=False).logits.argmax(dim=-1)
    return tokens[:, -steps:], uncached[:, -steps - 1 : -1]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_surgery_is_its_formula_and_decodes_the_same_with_a_cache(
    variant: str, case: str, bases: Callable[[str, int], Path], tmp_path: Path
) -> None:
    depth, strategy, formula, after = CASES[case]
    base = bases(variant, depth)
    expected = constructed(base, formula)
    assert sum(name.endswith("input_layernorm.weight") for name in expected) == after
    made = grow(base, tmp_path / "folder", strategy())
    assert (made.before, made.after) == (depth, after)
    assert raw(load_file(tmp_path / "folder" / "model.safetensors")) == expected

    backbone = Backbone.load(base, dtype="bfloat16" if variant == "bf16" else None)
    model = backbone.model.eval()
    with torch.no_grad():
        before = model(TOKENS).logits
        strategy().setup(backbone)
        distance = (model(TOKENS).logits - before).abs().max()
    assert (distance == 0.0) == case.startswith("expansion")
    backbone.save(tmp_path / "memory")
    assert raw(load_file(tmp_path / "memory" / "model.safetensors")) == expected
    assert torch.equal(*decode(model.float(), 8))  # in bfloat16 two tokens may tie, and rounding then chooses
