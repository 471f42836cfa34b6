"""The tiny model: its families, variants, size and seed."""

from __future__ import annotations

import pytest
import torch

from workbench.testing.tiny import VARIANTS, tiny_backbone

FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tiny_model_is_a_function_of_family_and_seed(family: str) -> None:
    first, again, other = tiny_backbone(family), tiny_backbone(family), tiny_backbone(family, seed=1)
    assert type(first.model).__name__ == f"{FAMILIES[family]}ForCausalLM"
    state = first.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.model.state_dict().items())
    assert not torch.equal(other.model.lm_head.weight, first.model.lm_head.weight)
    assert all(value.abs().min() > 0 for name, value in state.items() if name.endswith("bias"))


def test_each_variant_is_what_its_name_says() -> None:
    models = {name: tiny_backbone(**changes).model for name, changes in VARIANTS.items()}
    tied = {name for name, model in models.items() if model.lm_head.weight is model.get_input_embeddings().weight}
    biased = {name for name, model in models.items() if any("bias" in key for key, _ in model.named_parameters())}
    layers = {name: model.model.layers[0].self_attn for name, model in models.items()}
    assert tied == {"tied"}
    assert biased == {"biased"}
    assert models["biased"].model.layers[0].mlp.down_proj.bias is not None
    assert {name for name, model in models.items() if model.dtype == torch.bfloat16} == {"bf16"}
    assert {name for name, layer in layers.items() if layer.o_proj.in_features != 32} == {"head_dim"}
    assert all(layer.q_proj.out_features == 2 * layer.k_proj.out_features for layer in layers.values())
    windows = [getattr(layer.self_attn, "sliding_window", None) for layer in models["layer_types"].model.layers]
    assert windows == [6, None, 6, None]


def test_the_sliding_window_of_the_variant_is_felt() -> None:
    """Through two windowed layers of 6 tokens position 12 sees as far as 2; the full ones see all."""
    types = ["sliding_attention"] * 2
    changes = VARIANTS["layer_types"] | {"layer_types": types, "num_hidden_layers": 2}
    model = tiny_backbone(**changes).model.eval()
    tokens = torch.arange(3, 16).unsqueeze(0)
    other = tokens.clone()
    other[0, 0] = 99
    with torch.no_grad():
        before, after = model(tokens).logits[0, :, :], model(other).logits[0, :, :]
    changed = [position for position in range(13) if not torch.equal(before[position], after[position])]
    assert changed == list(range(11))


def test_building_a_tiny_model_draws_nothing_from_the_callers_random_state() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    tiny_backbone()
    assert torch.equal(torch.rand(4), expected)


def test_the_tiny_models_size_and_its_ends() -> None:
    """V·D twice, per layer 2·D² + 2·D·16 + 3·D·F + 2·D, and the final norm: D=32, F=64, V=800."""
    backbone = tiny_backbone(num_hidden_layers=3)
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32
    vocabulary = len(backbone.tokenizer)
    assert sum(value.numel() for value in backbone.model.parameters()) == 2 * vocabulary * 32 + 3 * layer + 32
    assert backbone.model.config.eos_token_id == backbone.tokenizer.eos_token_id
    assert backbone.model.config.bos_token_id == backbone.tokenizer.bos_token_id
