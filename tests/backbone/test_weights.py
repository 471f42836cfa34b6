"""Which weights a task changes, under which names; and weights that wait while others are scored."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from strategies import LoRA
from workbench.backbone import (
    SetAside,
    parameters_by_name,
    plain_parameters,
    plain_weights,
    update_factors,
    write_weights,
)
from workbench.testing.tiny import VARIANTS, tiny_backbone


def test_without_adapters_they_are_the_trainable_ones() -> None:
    backbone = tiny_backbone(num_hidden_layers=1, **VARIANTS["tied"])
    backbone.model.model.norm.weight.requires_grad_(False)
    names = {name for name, _ in backbone.model.named_parameters()} - {"model.norm.weight"}
    assert plain_parameters(backbone).keys() == names
    assert "lm_head.weight" not in names  # tied to the embeddings
    for name, value in plain_weights(backbone).items():
        parameter = backbone.model.get_parameter(name)
        assert torch.equal(value, parameter)
        assert value.data_ptr() != parameter.data_ptr()


def test_with_adapters_they_are_what_these_are_folded_into() -> None:
    backbone = tiny_backbone(num_hidden_layers=1)
    LoRA(peft={"target_modules": ["q_proj", "down_proj"]}).setup(backbone)
    names = ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"]
    assert list(plain_parameters(backbone)) == names
    factors = update_factors(backbone.model)
    assert [name.partition(".lora_B")[0] for name in factors] == [name.removesuffix(".weight") for name in names]
    for factor in factors.values():
        torch.nn.init.normal_(factor)
    by_name = parameters_by_name(backbone)
    before = {name: by_name[name].detach().clone() for name in names}
    found = plain_weights(backbone)
    for name in names:
        a = by_name[name.replace(".weight", ".lora_A.default.weight")]
        update = 4 * factors[name.replace(".weight", ".lora_B.default.weight")] @ a
        assert torch.allclose(found[name], before[name] + update, atol=1e-5)
        assert torch.equal(by_name[name], before[name])
    backbone.fold_adapters()
    assert all(torch.equal(value, backbone.model.get_parameter(name)) for name, value in found.items())


def test_weights_are_written_in_the_models_dtype_and_never_under_an_adapter_that_adds() -> None:
    backbone = tiny_backbone(num_hidden_layers=1, **VARIANTS["bf16"])
    LoRA().setup(backbone)
    name = "model.layers.0.self_attn.q_proj.weight"
    write_weights(backbone, {name: torch.full((32, 32), 1 / 3)})
    weight = parameters_by_name(backbone)[name]
    assert weight.dtype == torch.bfloat16
    assert weight.unique().tolist() == [torch.tensor(1 / 3).bfloat16().item()]
    torch.nn.init.ones_(update_factors(backbone.model)["model.layers.0.self_attn.q_proj.lora_B.default.weight"])
    with pytest.raises(ValueError, match=r"the adapter of model\.layers\.0\.self_attn\.q_proj\.weight does not begin"):
        write_weights(backbone, {name: torch.ones(32, 32)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_waits_comes_back_unless_the_scored_weights_were_changed(dtype: Any) -> None:
    backbone, aside = tiny_backbone(num_hidden_layers=1, dtype=dtype), SetAside()
    aside.bring_back(backbone)  # nothing waits
    trained = plain_weights(backbone)
    scored = {name: value + 1 for name, value in trained.items()}
    aside.replace(backbone, scored, trained)
    again = SetAside()
    again.load(aside.state())
    assert all(torch.equal(value, scored[name]) for name, value in plain_weights(backbone).items())
    aside.bring_back(backbone)
    assert all(torch.equal(value, trained[name]) for name, value in plain_weights(backbone).items())
    assert not aside.waiting
    with pytest.raises(ValueError, match="the weights changed after they were merged or averaged"):
        again.bring_back(backbone)
