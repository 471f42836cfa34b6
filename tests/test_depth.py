"""The layer surgery: where each layer comes from, exact identities, cached decoding, and what is saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

from workbench.depth import PlannedLayer, copy_layer, make_identity, restack
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
