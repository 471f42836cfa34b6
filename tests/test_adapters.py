"""Adapters inside a backbone: the formula, exact merging, names, and files that plain peft reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from workbench import adapters
from workbench.backbone import Backbone
from workbench.testing import tiny_backbone

TOKENS = torch.tensor([[1, 40, 7, 300, 12, 9, 15, 22]])
SETTINGS = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def adapted(*names: str, family: str = "llama", **settings: object) -> Backbone:
    """A backbone whose adapters are as if trained: both factors are random."""
    backbone = tiny_backbone(family)
    for number, name in enumerate(names):
        backbone.add_adapter(name, **{**SETTINGS, **settings})
        generator = torch.Generator().manual_seed(number)
        for key, parameter in backbone.model.named_parameters():
            if f".{name}." in key:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return backbone


@torch.no_grad()
def logits(backbone: Backbone) -> Tensor:
    return backbone.model.eval()(TOKENS, use_cache=False).logits


def factors(backbone: Backbone, path: str, name: str) -> tuple[Tensor, Tensor]:
    layer = backbone.model.get_submodule(path)
    return layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach()


@pytest.mark.parametrize("names", [("one",), ("one", "two", "three")])
def test_the_folded_weight_is_w_plus_alpha_over_r_b_a_summed_over_adapters(names: tuple[str, ...]) -> None:
    plain = tiny_backbone().model.state_dict()
    backbone = adapted(*names)
    expected = {key: value.clone() for key, value in plain.items()}
    for layer in range(4):
        for projection in ("q_proj", "v_proj"):
            path = f"model.layers.{layer}.self_attn.{projection}"
            for name in names:
                first, second = factors(backbone, path, name)
                expected[f"{path}.weight"] += 12 / 4 * second @ first
    with backbone.merged():
        folded = {key: value.clone() for key, value in adapters.plain_state_dict(backbone.model).items()}
    assert folded.keys() == plain.keys()
    for key, value in expected.items():
        torch.testing.assert_close(folded[key], value, rtol=1e-6, atol=1e-6, msg=key)


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_and_unmerged_give_the_same_logits(family: str) -> None:
    backbone = adapted("one", "two", family=family)
    unmerged = logits(backbone)
    assert (unmerged - logits(tiny_backbone(family))).abs().max() > 0.01
    with backbone.merged():
        torch.testing.assert_close(logits(backbone), unmerged, rtol=0, atol=1e-5)
    assert torch.equal(logits(backbone), unmerged)


def test_merging_puts_back_the_very_bits() -> None:
    backbone = adapted("one")
    before = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    weight = backbone.model.model.layers[0].self_attn.q_proj.base_layer.weight
    with backbone.merged():
        assert not torch.equal(weight, before["model.layers.0.self_attn.q_proj.base_layer.weight"])
    after = backbone.model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert backbone.model.model.layers[0].self_attn.q_proj.base_layer.weight is weight


def test_merging_within_merging_folds_once() -> None:
    backbone = adapted("one")
    before = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    with backbone.merged():
        outer = adapters.plain_state_dict(backbone.model)
        outer = {key: value.clone() for key, value in outer.items()}
        with backbone.merged():
            inner = adapters.plain_state_dict(backbone.model)
            assert all(torch.equal(inner[key], outer[key]) for key in outer)
        again = adapters.plain_state_dict(backbone.model)
        assert all(torch.equal(again[key], outer[key]) for key in outer)
    after = backbone.model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_an_error_while_merged_puts_the_bits_back_too() -> None:
    backbone = adapted("one")
    unmerged = logits(backbone)
    with pytest.raises(ZeroDivisionError), backbone.merged():
        _ = 1 / 0
    assert torch.equal(logits(backbone), unmerged)


def test_without_adapters_merging_does_nothing() -> None:
    backbone = tiny_backbone()
    before = logits(backbone)
    with backbone.merged():
        assert torch.equal(logits(backbone), before)
    assert adapters.plain_state_dict(backbone.model).keys() == backbone.model.state_dict().keys()


def test_only_the_newest_adapter_trains() -> None:
    backbone = adapted("task-1", "task-11")
    assert backbone.adapter_names == ["task-1", "task-11"]
    assert len(backbone.trainable()) == 4 * 2 * 2
    assert all(".task-11." in key for key in backbone.trainable())
    backbone.add_adapter("task-111", **SETTINGS)
    assert len(backbone.trainable()) == 4 * 2 * 2
    assert all(".task-111." in key for key in backbone.trainable())


def test_folding_in_leaves_a_plain_model_with_the_same_logits() -> None:
    backbone = adapted("one", "two")
    unmerged = logits(backbone)
    backbone.fold_adapters()
    assert backbone.model.state_dict().keys() == tiny_backbone().model.state_dict().keys()
    assert backbone.adapter_names == []
    assert adapters.adapter_layers(backbone.model) == []
    torch.testing.assert_close(logits(backbone), unmerged, rtol=0, atol=1e-5)
    backbone.add_adapter("one", **SETTINGS)
    torch.testing.assert_close(logits(backbone), unmerged, rtol=0, atol=1e-5)
    assert len(backbone.trainable()) == 4 * 2 * 2


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("family", FAMILIES)
def test_plain_peft_loads_a_saved_adapter_over_the_plain_base(family: str, tmp_path: Path) -> None:
    base, backbone = tiny_backbone(family), adapted("one", family=family)
    base.save(tmp_path / "base")
    backbone.save(tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    with_adapter = PeftModel.from_pretrained(plain, tmp_path / "model" / "adapters" / "one").eval()
    with torch.no_grad():
        torch.testing.assert_close(with_adapter(TOKENS).logits, logits(backbone), rtol=0, atol=1e-6)


def test_the_saved_folder_is_the_folded_model(tmp_path: Path) -> None:
    backbone = adapted("one", "two")
    unmerged = logits(backbone)
    backbone.save(tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(TOKENS).logits, unmerged, rtol=0, atol=1e-5)
    assert torch.equal(logits(backbone), unmerged)
    assert sorted(folder.name for folder in (tmp_path / "model" / "adapters").iterdir()) == ["one", "two"]


def test_rank_stabilised_scaling_is_alpha_over_root_r() -> None:
    backbone = adapted("one", use_rslora=True)
    path = "model.layers.3.self_attn.v_proj"
    first, second = factors(backbone, path, "one")
    expected = tiny_backbone().model.state_dict()[f"{path}.weight"] + 12 / 4**0.5 * second @ first
    with backbone.merged():
        torch.testing.assert_close(adapters.plain_state_dict(backbone.model)[f"{path}.weight"], expected)


def test_a_setting_that_peft_does_not_know() -> None:
    with pytest.raises(ValueError, match=r"^peft: .*unexpected keyword argument 'rnak'"):
        tiny_backbone().add_adapter("one", rnak=3)


@pytest.mark.parametrize(("name", "value"), [("modules_to_save", ["lm_head"]), ("bias", "all")])
def test_a_setting_that_would_train_more_than_the_adapter(name: str, value: object) -> None:
    with pytest.raises(ValueError) as caught:
        tiny_backbone().add_adapter("one", **SETTINGS, **{name: value})
    assert (
        str(caught.value) == f"peft: {name}={value!r} is not supported: only the low-rank factors train and are saved. "
        "Leave it out."
    )


def test_a_tied_head_gets_no_adapter() -> None:
    with pytest.raises(ValueError, match="tied head"):
        tiny_backbone(tie_word_embeddings=True).add_adapter("one", r=2, target_modules=["lm_head"])
    untied = tiny_backbone(tie_word_embeddings=False)
    untied.add_adapter("one", r=2, target_modules=["lm_head"])
    assert len(untied.trainable()) == 2
