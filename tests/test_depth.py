"""Layer surgery: sources of the layers, exact identities, cached decoding, and the papers' formulas."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

from strategies import BlockExpansion, DepthUpScaling
from workbench.backbone import Backbone
from workbench.depth import PlannedLayer, copy_layer, make_identity, restack
from workbench.strategy import ContinualStrategy
from workbench.surgery import grow
from workbench.testing.tiny import tiny_backbone

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
TOKENS = torch.tensor([[1, 40, 7, 300, 12, 9], [1, 5, 77, 401, 60, 61]])
INTERLEAVED = [
    PlannedLayer(0),
    PlannedLayer(1),
    PlannedLayer(1, identity=True),
    PlannedLayer(2),
    PlannedLayer(3),
    PlannedLayer(3, identity=True),
]
BOTTOM = [PlannedLayer(0, identity=True), *(PlannedLayer(index) for index in range(4))]


@torch.no_grad()
def logits(model: PreTrainedModel, tokens: Tensor = TOKENS) -> Tensor:
    return model.eval()(tokens, use_cache=False).logits


@torch.no_grad()
def greedy(model: PreTrainedModel, steps: int, cached: bool) -> list[list[int]]:
    """Argmax decoding by hand: with a cache one token at a time, or the whole sequence anew each time."""
    model.eval()
    cache = DynamicCache(config=model.config) if cached else None
    tokens = fed = TOKENS
    for _ in range(steps):
        output = model(fed, past_key_values=cache, use_cache=cached)
        following = output.logits[:, -1].argmax(dim=-1, keepdim=True)
        tokens = torch.cat([tokens, following], dim=1)
        fed = following if cached else tokens
    return tokens.tolist()


@pytest.mark.parametrize("plan", [INTERLEAVED, BOTTOM], ids=["interleaved", "bottom"])
@pytest.mark.parametrize("family", FAMILIES)
def test_identity_layers_change_no_bit_of_the_logits(family: str, plan: list[PlannedLayer]) -> None:
    model = tiny_backbone(family).model
    before = logits(model)
    restack(model, plan)
    assert (logits(model) - before).abs().max().item() == 0.0


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_an_identity_has_its_biases_zeroed_too(family: str) -> None:
    biases = {"attention_bias": True, "mlp_bias": True} if family == "llama" else {"attention_bias": True}
    model = tiny_backbone(family, **biases).model
    before = logits(model)
    assert model.model.layers[1].self_attn.o_proj.bias.abs().min() > 0
    layers = restack(model, INTERLEAVED)
    assert torch.equal(logits(model), before)
    assert layers[2].self_attn.o_proj.bias.abs().max() == 0
    assert layers[1].self_attn.o_proj.bias.abs().min() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_output_projections_are_zero_and_without_a_sign(family: str) -> None:
    model = tiny_backbone(family).model
    model.model.layers[1].mlp.down_proj.weight.data.neg_()
    layers = restack(model, INTERLEAVED)
    source = dict(layers[1].named_parameters())
    for name, parameter in layers[2].named_parameters():
        if "o_proj" in name or "down_proj" in name:
            assert not parameter.any(), name
            assert not torch.signbit(parameter).any(), name
        else:
            assert torch.equal(parameter, source[name]), name
            assert parameter.data_ptr() != source[name].data_ptr(), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sources", [(0, 1, 1, 2, 3, 3), (2, 0, 3), (3, 3, 3, 0, 1, 2, 1)])
def test_the_stack_is_what_the_plan_says(family: str, sources: tuple[int, ...]) -> None:
    """Against a model of that depth whose layers are loaded one by one with the source's weights."""
    model = tiny_backbone(family).model
    weights = [{name: value.clone() for name, value in layer.state_dict().items()} for layer in model.model.layers]
    expected = tiny_backbone(family, num_hidden_layers=len(sources)).model
    rest = {name: value for name, value in model.state_dict().items() if ".layers." not in name}
    expected.load_state_dict(rest, strict=False)
    for layer, source in zip(expected.model.layers, sources, strict=True):
        layer.load_state_dict(weights[source])
    stack = restack(model, [PlannedLayer(source) for source in sources])
    assert model.model.layers is stack
    assert torch.equal(logits(model), logits(expected))


def test_a_layer_stays_the_same_module_where_it_first_appears_and_is_copied_after_that() -> None:
    model = tiny_backbone().model
    old = list(model.model.layers)
    stack = restack(model, [PlannedLayer(1), PlannedLayer(1), PlannedLayer(0, identity=True), PlannedLayer(0)])
    assert stack[0] is old[1]
    assert stack[1] is not old[1]
    assert stack[2] is not old[0]
    assert stack[3] is old[0]
    pointers = [parameter.data_ptr() for parameter in stack.parameters()]
    assert len(set(pointers)) == len(pointers) == 4 * 9


@pytest.mark.parametrize("family", FAMILIES)
def test_the_config_and_every_cache_index_follow(family: str) -> None:
    model = tiny_backbone(family).model
    stack = restack(model, INTERLEAVED)
    assert model.config.num_hidden_layers == 6
    assert model.config.layer_plan == [[0, False], [1, False], [1, True], [2, False], [3, False], [3, True]]
    assert [layer.self_attn.layer_idx for layer in stack] == [0, 1, 2, 3, 4, 5]
    if family in ("qwen2", "qwen3"):
        assert model.config.layer_types == ["full_attention"] * 6
    configs = {id(module.config) for module in model.modules() if hasattr(module, "config")}
    assert configs == {id(model.config)}


def test_layer_types_move_with_their_layers() -> None:
    """A sliding window of 4 on layer 1 alone goes wherever layer 1 goes."""
    types = ["full_attention", "sliding_attention", "full_attention", "full_attention"]
    model = tiny_backbone("qwen2", layer_types=types, use_sliding_window=True, sliding_window=4).model
    before = logits(model)
    stack = restack(model, INTERLEAVED)
    expected = [types[planned.source] for planned in INTERLEAVED]
    assert model.config.layer_types == expected
    assert [layer.self_attn.layer_type for layer in stack] == expected
    assert torch.equal(logits(model), before)
    assert greedy(model, 9, cached=True) == greedy(model, 9, cached=False)


@pytest.mark.parametrize(
    "plan",
    [INTERLEAVED, BOTTOM, [PlannedLayer(source) for source in (0, 1, 2, 1, 2, 3)]],
    ids=["interleaved", "bottom", "upscaled"],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_decoding_is_uncached_decoding(family: str, plan: list[PlannedLayer]) -> None:
    model = tiny_backbone(family).model
    restack(model, plan)
    with torch.no_grad():  # an identity block that has learnt something: a stale cache index would show
        for parameter in model.model.layers[2].parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
    assert greedy(model, 10, cached=True) == greedy(model, 10, cached=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_transformers_loads_what_was_expanded(family: str, tmp_path: Path) -> None:
    backbone = tiny_backbone(family)
    restack(backbone.model, INTERLEAVED)
    with torch.no_grad():
        backbone.model.model.layers[2].mlp.down_proj.weight.fill_(0.01)
    backbone.save(tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert plain.config.layer_plan == [[0, False], [1, False], [1, True], [2, False], [3, False], [3, True]]
    assert torch.equal(logits(plain), logits(backbone.model))
    assert greedy(plain, 8, cached=True) == greedy(backbone.model, 8, cached=False)


def test_a_copy_shares_nothing_but_the_config() -> None:
    model = tiny_backbone().model
    layer = model.model.layers[0]
    copied = copy_layer(layer)
    make_identity(copied)
    assert copied.self_attn.config is layer.self_attn.config is model.config
    assert layer.mlp.down_proj.weight.any()
    assert layer.self_attn.o_proj.weight.any()


def restacked(*plan: PlannedLayer) -> Callable[[], nn.ModuleList]:
    return lambda: restack(tiny_backbone().model, plan)


@pytest.mark.parametrize(
    ("surgery", "message"),
    [
        (restacked(), "The layer plan is empty: a model needs at least one layer."),
        (
            restacked(PlannedLayer(0), PlannedLayer(4)),
            "The layer plan names layer 4, but the model has 0 to 3. Choose among these.",
        ),
        (restacked(PlannedLayer(-1)), "The layer plan names layer -1, but the model has 0 to 3. Choose among these."),
    ],
)
def test_a_plan_that_cannot_be(surgery: Callable[[], nn.ModuleList], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        surgery()
    assert str(caught.value) == message


def test_a_refused_plan_leaves_the_model_as_it_was() -> None:
    model = tiny_backbone().model
    before = logits(model)
    with pytest.raises(ValueError):
        restack(model, [PlannedLayer(0), PlannedLayer(9)])
    assert torch.equal(logits(model), before)
    assert model.config.num_hidden_layers == 4


SMALL = {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2, "num_hidden_layers": 2, "num_attention_heads": 2}
FOREIGN: dict[str, dict[str, int]] = {
    "gpt2": {"hidden_size": 16},
    "gpt_neox": {"hidden_size": 16, "intermediate_size": 16},
    "phi": {"hidden_size": 16, "intermediate_size": 16},  # has `layers`, but no o_proj and no down_proj
    "mixtral": {"hidden_size": 16, "intermediate_size": 16, "num_key_value_heads": 2, "num_local_experts": 2},
}


@pytest.mark.parametrize("family", [*FOREIGN, "without a head"])
def test_a_model_of_another_kind_is_refused_in_a_sentence_and_left_as_it_was(family: str) -> None:
    if family == "without a head":
        model = tiny_backbone().model.model
    else:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SMALL, **FOREIGN[family]))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"^\w+ is no decoder of the LLaMA family: .* Take a Llama, Mistral, Qwen2"):
        restack(model, [PlannedLayer(0), PlannedLayer(1, identity=True)])
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


Layer = dict[str, Tensor]
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
