"""Adapters of any kind: what trains, the formula of one kind, merging between tasks, and refusals by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, OFTConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import Tensor
from transformers import AutoModelForCausalLM

from strategies import Adapter
from workbench.backbone import Backbone, adapters
from workbench.testing import check_strategy
from workbench.testing.tiny import tiny_backbone, tiny_tasks

TASKS = tiny_tasks(2)
TOKENS = torch.tensor([[1, 40, 7, 300, 12, 9, 15, 22]])
TARGETS = {"target_modules": ["q_proj", "v_proj"]}
SETTINGS: dict[str, dict[str, Any]] = {  # for a model of width 32
    "C3A": {"block_size": 8},
    "FOURIERFT": {"n_frequency": 20},
    "GRALORA": {"r": 4, "gralora_k": 2},
    "HRA": {"r": 4},
    "IA3": {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm", "norm"]},
    "MISS": {"r": 8},
    "OFT": {"oft_block_size": 8},
    "PVERA": {"r": 16},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 2},
    "VERA": {"r": 16},
    "WAVEFT": {"n_frequency": 20},
}
STARTS_ELSEWHERE = ("C3A", "FOURIERFT")


def settings(kind: str) -> dict[str, Any]:
    return {**TARGETS, **SETTINGS.get(kind, {})}


@torch.no_grad()
def logits(model: Any) -> Tensor:
    output: Tensor = model.eval()(TOKENS, use_cache=False).logits
    return output


def moved(backbone: Backbone) -> None:
    """Change all trainable parameters, as optimizer steps would."""
    generator = torch.Generator().manual_seed(5)
    for parameter in backbone.trainable().values():
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.05


def set_up(config: Any, given: dict[str, Any] | None = None, **arguments: Any) -> tuple[Adapter, Backbone]:
    backbone, strategy = tiny_backbone(), Adapter(config, given, **arguments)
    torch.manual_seed(0)
    strategy.setup(backbone)
    strategy.before_task(backbone, TASKS[0], [])
    return strategy, backbone


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
@pytest.mark.filterwarnings("ignore:Specified to not:UserWarning", "ignore:Sparse invariant checks:UserWarning")
@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")  # by plain peft, which loads it
@pytest.mark.parametrize("kind", adapters.KINDS)
def test_what_is_trained_is_what_is_merged_saved_and_loaded_by_plain_peft(kind: str, tmp_path: Path) -> None:
    base = tiny_backbone()
    base.save(tmp_path / "base")
    _, backbone = set_up(kind, settings(kind))
    plain = set(base.model.state_dict())
    assert backbone.trainable()
    assert not {name.replace(".base_layer", "") for name in backbone.trainable()} & plain
    if kind not in STARTS_ELSEWHERE:
        torch.testing.assert_close(logits(backbone.model), logits(base.model), rtol=0, atol=1e-4)
    moved(backbone)
    learnt = logits(backbone.model)
    assert (learnt - logits(base.model)).abs().max() > 1e-3
    before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    with backbone.merged():
        torch.testing.assert_close(logits(backbone.model), learnt, rtol=0, atol=1e-4)
    after = backbone.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    backbone.save(tmp_path / "model")
    over = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    loaded = [
        AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32),
        PeftModel.from_pretrained(over, tmp_path / "model" / "adapters" / "default"),
    ]
    for model in loaded:
        torch.testing.assert_close(logits(model), learnt, rtol=0, atol=1e-4)
    if kind != "LORA":
        assert adapters.saved_deltas(tiny_backbone().model, tmp_path / "model" / "adapters" / "default") == {}
    backbone.fold_adapters()
    assert set(backbone.model.state_dict()) == plain
    torch.testing.assert_close(logits(backbone.model), learnt, rtol=0, atol=1e-4)


def test_ia3_by_its_formula() -> None:
    """v_proj: l ⊙ (W x); down_proj, a feed-forward: W (l ⊙ x)."""
    _, backbone = set_up("IA3", settings("IA3"))
    moved(backbone)
    layer: Any = backbone.model.model.layers[1]
    generator = torch.Generator().manual_seed(1)
    for module, width in ((layer.self_attn.v_proj, 32), (layer.mlp.down_proj, 64)):
        states = torch.randn(5, width, generator=generator)
        scale, weight = module.ia3_l["default"].flatten(), module.base_layer.weight
        scaled = (states * scale) @ weight.T if width == 64 else (states @ weight.T) * scale
        torch.testing.assert_close(module(states), scaled)


def test_oft_rotates_the_inputs_of_a_projection() -> None:
    """W' = W R with R block-diagonal and orthogonal: the singular values of W stay, W does not.

    By default peft approximates the orthogonal matrix by a Neumann series.
    """
    _, backbone = set_up("OFT", {**settings("OFT"), "use_cayley_neumann": False})
    weight = tiny_backbone().model.model.layers[2].self_attn.q_proj.weight.detach()
    moved(backbone)
    backbone.fold_adapters()
    rotated = backbone.model.model.layers[2].self_attn.q_proj.weight.detach()
    assert (rotated - weight).abs().max() > 0.01
    torch.testing.assert_close(torch.linalg.svdvals(rotated), torch.linalg.svdvals(weight), rtol=1e-4, atol=1e-4)


def test_policy_merge_keeps_each_task_and_starts_afresh() -> None:
    strategy, backbone = set_up("OFT", settings("OFT"), policy="merge")
    for task in TASKS:
        strategy.before_task(backbone, task, [])
        assert len(backbone.trainable()) == 8
        assert all(not value.any() for value in backbone.trainable().values())
        moved(backbone)
        learnt = logits(backbone.model)
        strategy.after_task(backbone, task, [])
        assert backbone.adapter_names == []
        torch.testing.assert_close(logits(backbone.model), learnt, rtol=0, atol=1e-4)


def test_policy_continue_trains_one_adapter_through_all_tasks() -> None:
    strategy, backbone = set_up("IA3", settings("IA3"))
    first = list(map(id, backbone.trainable().values()))
    strategy.after_task(backbone, TASKS[0], [])
    strategy.before_task(backbone, TASKS[1], [])
    assert list(map(id, backbone.trainable().values())) == first


@pytest.mark.parametrize(
    ("config", "given"),
    [
        (OFTConfig(oft_block_size=8, target_modules=["q_proj", "v_proj"]), {}),
        ("oft", settings("OFT")),
        (OFTConfig(oft_block_size=4, target_modules=["q_proj", "v_proj"]), {"oft_block_size": 8}),
    ],
)
def test_a_config_of_peft_and_a_name_with_settings_give_the_same(config: Any, given: dict[str, Any]) -> None:
    expected, backbone = set_up("OFT", settings("OFT"))[1], set_up(config, given)[1]
    shapes = [{name: value.shape for name, value in each.trainable().items()} for each in (expected, backbone)]
    assert shapes[0] == shapes[1]


def test_dora_is_lora_with_a_setting() -> None:
    _, backbone = set_up(LoraConfig(r=2, use_dora=True, target_modules=["q_proj"]))
    assert sum("lora_magnitude_vector" in name for name in backbone.trainable()) == 4
    with pytest.raises(ValueError, match="peft: bias='all' is not supported"):
        set_up(LoraConfig(r=2, bias="all", target_modules=["q_proj"]))


@pytest.mark.parametrize("kind", sorted(set(map(str, adapters.REFUSED))))
def test_what_cannot_be_scored_merged_or_saved_is_refused_by_name(kind: str) -> None:
    with pytest.raises(ValueError) as caught:
        set_up(kind, TARGETS)
    start = f"peft: an adapter of kind {kind} is not supported: {adapters.REFUSED[kind]}. Choose from C3A, "
    assert str(caught.value).startswith(start)


def test_every_kind_of_peft_is_tested_or_refused() -> None:
    known = {str(getattr(kind, "value", kind)) for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    assert set(adapters.KINDS) | adapters.REFUSED.keys() >= known
    assert not set(adapters.KINDS) & adapters.REFUSED.keys()


@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        ("NOTHING", {}, "peft: an adapter of kind NOTHING is not supported: unknown. Choose from C3A, "),
        ("OFT", {**TARGETS, "modules_to_save": ["lm_head"]}, "peft: OFT: modules_to_save=['lm_head'] is not supported"),
        ("VERA", {**TARGETS, "save_projection": True}, "peft: VERA: save_projection=True is not supported"),
        ("OFT", {"target_modules": ["c_attn"]}, "peft: target_modules: the model has no 'c_attn'. Choose from down"),
        ("OFT", {**TARGETS, "rank": 3}, "peft: OFT: OFTConfig.__init__() got an unexpected keyword argument 'rank'"),
        ("IA3", {"target_modules": ["embed_tokens"], "feedforward_modules": []}, "peft: IA3: Target module Embedding"),
        ("HRA", {**TARGETS, "r": 0}, "peft: HRA: "),
    ],
)
def test_settings_that_do_not_fit_are_refused(config: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        set_up(config, given)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value).splitlines()) == 1


def test_a_second_adapter_of_another_kind_is_refused() -> None:
    _, backbone = set_up("IA3", settings("IA3"))
    with pytest.raises(ValueError, match="the model has the adapter 'default', to which OFT cannot be added"):
        backbone.add_adapter("second", "OFT", **settings("OFT"))


@pytest.mark.parametrize("kind", adapters.NEEDS_FLOAT32)
def test_a_kind_that_cannot_read_half_precision_says_so(kind: str) -> None:
    with pytest.raises(
        ValueError, match=f"peft: {kind} computes in float32, and the model's weights are torch.bfloat16"
    ):
        Adapter(kind, settings(kind)).setup(tiny_backbone(dtype=torch.bfloat16))


def test_an_unknown_policy() -> None:
    with pytest.raises(ValueError, match=r"policy='stack': choose 'continue' or 'merge'."):
        Adapter("OFT", policy="stack")  # type: ignore[arg-type]


@pytest.mark.parametrize("config", ["VERA", IA3Config(**settings("IA3"))])
def test_it_conforms_with_policy_merge(config: Any) -> None:
    given = settings("VERA") if config == "VERA" else {}
    check_strategy(lambda: Adapter(config, given, policy="merge"))
