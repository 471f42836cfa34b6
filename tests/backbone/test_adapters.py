"""Low-rank adapters: the formula, exact merging, refused settings, and files that plain peft reads."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from workbench.backbone import Backbone, adapters
from workbench.testing.tiny import tiny_backbone

TOKENS = torch.tensor([[1, 40, 7, 300, 12, 9, 15, 22]])
SETTINGS = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def adapted(*names: str, family: str = "llama", **settings: object) -> Backbone:
    """A backbone with adapters whose two factors are random, as after training."""
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


def test_merging_restores_the_weights_bitwise() -> None:
    backbone = adapted("one")
    before = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    weight = backbone.model.model.layers[0].self_attn.q_proj.base_layer.weight
    with backbone.merged():
        assert not torch.equal(weight, before["model.layers.0.self_attn.q_proj.base_layer.weight"])
    after = backbone.model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert backbone.model.model.layers[0].self_attn.q_proj.base_layer.weight is weight


def test_nested_merging_folds_once() -> None:
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


def test_an_error_while_merged_restores_the_weights_bitwise() -> None:
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


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^peft: .*unexpected keyword argument 'rnak'"):
        tiny_backbone().add_adapter("one", rnak=3)


@pytest.mark.parametrize(("name", "value"), [("modules_to_save", ["lm_head"]), ("bias", "all")])
def test_settings_that_would_train_more_than_the_adapter_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError) as caught:
        tiny_backbone().add_adapter("one", **SETTINGS, **{name: value})
    assert (
        str(caught.value) == f"peft: {name}={value!r} is not supported: only the low-rank factors train and are saved. "
        "Leave it out."
    )


def test_an_adapter_on_a_tied_head_is_refused() -> None:
    with pytest.raises(ValueError, match="tied head"):
        tiny_backbone(tie_word_embeddings=True).add_adapter("one", r=2, target_modules=["lm_head"])
    untied = tiny_backbone(tie_word_embeddings=False)
    untied.add_adapter("one", r=2, target_modules=["lm_head"])
    assert len(untied.trainable()) == 2


def trained(backbone: Backbone) -> None:
    """Change all trainable parameters a little, as optimizer steps would."""
    generator = torch.Generator().manual_seed(5)
    for parameter in backbone.trainable().values():
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.02


WORKING: dict[str, dict[str, Any]] = {
    "a random start": {"init_lora_weights": False},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "ranks": {"rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "excluded": {"exclude_modules": ["layers.0.self_attn.q_proj"]},
    "some layers": {"layers_to_transform": [1, 3], "layers_pattern": "layers"},
    "all linear": {"target_modules": "all-linear"},
    "one name": {"target_modules": "down_proj"},
    "an expression": {"target_modules": r".*layers\.[01]\.mlp\.up_proj"},
    "the head": {"target_modules": ["lm_head", "q_proj"]},
    "nothing said": {"target_modules": None},
}
LAYERS = {"excluded": 7, "some layers": 4, "all linear": 28, "one name": 4, "an expression": 2, "the head": 5}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("name", WORKING)
def test_what_is_trained_is_what_is_scored_saved_and_loaded_by_plain_peft(name: str, tmp_path: Path) -> None:
    settings = {**SETTINGS, **WORKING[name]}
    base = tiny_backbone()
    base.save(tmp_path / "base")
    backbone = tiny_backbone()
    torch.manual_seed(2)
    backbone.add_adapter("one", **settings)
    assert len(adapters.adapter_layers(backbone.model)) == LAYERS.get(name, 8)
    if name not in ("a random start", "orthogonal"):
        torch.testing.assert_close(logits(backbone), logits(base), rtol=0, atol=1e-4)  # it starts as the base
    start = logits(backbone)
    trained(backbone)
    unmerged = logits(backbone)
    assert (unmerged - start).abs().max() > 1e-3
    with backbone.merged():
        torch.testing.assert_close(logits(backbone), unmerged, rtol=0, atol=1e-4)
    assert torch.equal(logits(backbone), unmerged)
    backbone.save(tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    over = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    with_adapter = PeftModel.from_pretrained(over, tmp_path / "model" / "adapters" / "one").eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(TOKENS).logits, unmerged, rtol=0, atol=1e-4)
        torch.testing.assert_close(with_adapter(TOKENS).logits, unmerged, rtol=0, atol=1e-4)
    backbone.add_adapter("two", **settings)  # a second one, and both are what is folded in
    trained(backbone)
    both = logits(backbone)
    backbone.fold_adapters()
    torch.testing.assert_close(logits(backbone), both, rtol=0, atol=1e-4)
    backbone.restore()
    assert torch.equal(logits(backbone), logits(base))


def test_ranks_and_scales_by_pattern() -> None:
    backbone = adapted("one", **WORKING["ranks"])
    layers = {
        path: backbone.model.get_submodule(f"model.layers.{path}")
        for path in ("1.self_attn.q_proj", "1.self_attn.v_proj")
    }
    ranks = {path: (layer.r["one"], layer.scaling["one"]) for path, layer in layers.items()}
    assert ranks == {"1.self_attn.q_proj": (2, 12 / 2), "1.self_attn.v_proj": (4, 3 / 4)}


@pytest.mark.parametrize("field", fields(LoraConfig), ids=lambda field: field.name)
def test_every_argument_of_peft_is_tested_above_or_refused_by_name(field: Field[Any]) -> None:
    name = field.name
    tested = {key for settings in (SETTINGS, *WORKING.values()) for key in settings}
    if name in tested | {"lora_dropout", "base_model_name_or_path", "revision"}:
        assert name in adapters.SUPPORTED
        return
    with pytest.raises(ValueError, match=rf"^peft: {name}=.* is not supported: .*\. Leave it out\.$"):
        tiny_backbone().add_adapter("one", **SETTINGS, **{name: ["something"]})
    default = field.default if field.default_factory is MISSING else field.default_factory()
    tiny_backbone().add_adapter("one", **SETTINGS, **{name: default})


@pytest.mark.parametrize("start", ["eva", "corda", "loftq", "lora_ga", "mica", "pissa_niter_4", "kaiming"])
def test_an_unsupported_initialisation_is_refused(start: str) -> None:
    """peft would silently start eva, lora_ga and others as plain LoRA."""
    with pytest.raises(
        ValueError, match=rf"^peft: init_lora_weights='{start}' is not supported: .* Choose one of True,"
    ):
        tiny_backbone().add_adapter("one", **SETTINGS, init_lora_weights=start)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"target_modules": ["q_proj", "k_prj"]},
            "peft: target_modules: the model has no 'k_prj'. Choose from down_proj, ",
        ),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "an adapter on the embeddings is not supported: "),
        ({"target_modules": ["self_attn"]}, "peft: Target module LlamaAttention( (q_proj)"),
        ({"target_modules": ".*nothing"}, "peft: "),
        ({"rank_pattern": {"up_proj": 2}}, "peft: rank_pattern: 'up_proj' fits no module that has an adapter."),
        ({"alpha_pattern": {"layers.9.*": 2}}, "peft: alpha_pattern: 'layers.9.*' fits no module that has an adapter."),
        ({"layers_to_transform": [9]}, "peft: "),
        (
            {"exclude_modules": ["k_prj"]},
            "peft: You have passed exclude_modules={'k_prj'} but no modules were excluded.",
        ),
        ({"r": 0}, "peft: `r` should be a positive integer value but the value passed is 0. Give"),
        ({"task_type": "SEQ_CLS"}, "peft: task_type='SEQ_CLS': the model is a causal language model. Leave it out."),
    ],
)
def test_targets_and_patterns_without_effect_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        tiny_backbone().add_adapter("one", **{**SETTINGS, **changes})
    assert str(caught.value).startswith(message)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_adapter_initialised_from_the_weights_has_no_saved_delta(start: str, tmp_path: Path) -> None:
    backbone = adapted("one", init_lora_weights=start)
    backbone.save(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert adapters.saved_deltas(model, tmp_path / "model" / "adapters" / "one") == {}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
