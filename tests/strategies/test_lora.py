"""LoRA through a sequence of tasks: where it starts, what trains under each policy, and what it refuses."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from strategies import LoRA
from workbench.backbone import Backbone, Batch, adapters
from workbench.errors import ConfigError
from workbench.study import Study
from workbench.testing.tiny import tiny_backbone, tiny_run, tiny_tasks

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
TASKS = tiny_tasks(3)
POLICIES = ("continue", "merge", "stack")


def batch_of(backbone: Backbone, number: int = 0) -> Batch:
    return backbone.collate(backbone.encode(TASKS[number].train).to_list())


def weights(backbone: Backbone) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in backbone.model.state_dict().items()}


def folded(backbone: Backbone) -> dict[str, Tensor]:
    with backbone.merged():
        return {name: value.clone() for name, value in adapters.plain_state_dict(backbone.model).items()}


def train(backbone: Backbone, number: int = 0, steps: int = 10) -> None:
    optimizer = torch.optim.AdamW(backbone.trainable().values(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        backbone(batch_of(backbone, number)).loss.backward()
        optimizer.step()


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_loss_is_exactly_the_bases(family: str) -> None:
    base, backbone = tiny_backbone(family), tiny_backbone(family)
    LoRA(dropout=0.5).setup(backbone)
    batch = batch_of(base)
    assert torch.equal(backbone(batch).token_nats, base(batch).token_nats)


@pytest.mark.parametrize("family", FAMILIES)
def test_ten_steps_move_every_factor_and_not_one_frozen_bit(family: str) -> None:
    backbone = tiny_backbone(family)
    LoRA(rank=2, dropout=0.0).setup(backbone)
    loss = backbone(batch_of(backbone)).loss.item()
    before = weights(backbone)
    train(backbone)
    expected = {
        f"model.layers.{layer}.self_attn.{projection}.lora_{factor}.default.weight"
        for layer in range(4)
        for projection in ("q_proj", "v_proj")
        for factor in "AB"
    }
    assert set(backbone.trainable()) == expected
    assert changed(before, weights(backbone)) == expected
    assert abs(backbone(batch_of(backbone)).loss.item() - loss) > 0.01


def test_the_number_of_values_that_train() -> None:
    """rank · (inputs + outputs) of each projection: q is 32 → 32, v is 32 → 2 heads of 8."""
    backbone = tiny_backbone()
    LoRA(rank=3).setup(backbone)
    assert sum(parameter.numel() for parameter in backbone.trainable().values()) == 4 * 3 * (32 + 32 + 32 + 16)


def test_one_layer_by_the_formula() -> None:
    """W x + (alpha / rank) B A x."""
    backbone = tiny_backbone()
    LoRA(rank=2, alpha=6, dropout=0.5, targets=["down_proj"]).setup(backbone)
    train(backbone, steps=2)
    backbone.eval()
    layer = backbone.model.model.layers[2].mlp.down_proj
    states = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    first, second = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = states @ layer.base_layer.weight.T + 6 / 2 * (states @ first.T) @ second.T
    torch.testing.assert_close(layer(states), expected, rtol=1e-5, atol=1e-5)


def test_continue_trains_one_adapter_through_all_tasks() -> None:
    backbone, strategy = tiny_backbone(), LoRA(dropout=0.0)
    strategy.setup(backbone)
    names, parameters = [], []
    for number, task in enumerate(TASKS):
        strategy.before_task(backbone, task, [])
        names.append(set(backbone.trainable()))
        parameters.append([id(parameter) for parameter in backbone.trainable().values()])
        train(backbone, number, steps=2)
        before = weights(backbone)
        strategy.after_task(backbone, task, [])
        assert changed(before, weights(backbone)) == set()
    assert names[0] == names[1] == names[2]
    assert parameters[0] == parameters[1] == parameters[2]
    assert backbone.adapter_names == ["default"]


def test_merge_folds_each_task_in_and_starts_afresh() -> None:
    backbone, strategy = tiny_backbone(), LoRA(dropout=0.0, policy="merge")
    plain = set(weights(backbone))
    strategy.setup(backbone)
    for number, task in enumerate(TASKS):
        start = folded(backbone)
        strategy.before_task(backbone, task, [])
        assert changed(start, folded(backbone)) == set()
        assert len(backbone.trainable()) == 4 * 2 * 2
        assert all(".default." in name for name in backbone.trainable())
        train(backbone, number, steps=3)
        learnt = folded(backbone)
        strategy.after_task(backbone, task, [])
        after = weights(backbone)
        assert set(after) == plain
        assert changed(learnt, after) == set()
        assert changed(start, after) == {name for name in plain if "q_proj" in name or "v_proj" in name}


def test_stack_freezes_older_adapters_and_sums_them_all() -> None:
    backbone, strategy = tiny_backbone(), LoRA(rank=2, alpha=8, dropout=0.0, policy="stack")
    base = weights(backbone)
    strategy.setup(backbone)
    for number, task in enumerate(TASKS):
        strategy.before_task(backbone, task, [])
        newest = f"task-{number + 1}"
        assert len(backbone.trainable()) == 4 * 2 * 2
        assert all(f".{newest}." in name for name in backbone.trainable())
        before = weights(backbone)
        start = backbone(batch_of(backbone, number)).token_nats
        train(backbone, number, steps=3)
        assert changed(before, weights(backbone)) == set(backbone.trainable())
        assert not torch.equal(backbone(batch_of(backbone, number)).token_nats, start)
        strategy.after_task(backbone, task, [])
    assert backbone.adapter_names == ["task-1", "task-2", "task-3"]
    path = "model.layers.1.self_attn.v_proj"
    layer: Any = backbone.model.get_submodule(path)
    update = sum(layer.lora_B[name].weight @ layer.lora_A[name].weight for name in backbone.adapter_names)
    torch.testing.assert_close(folded(backbone)[f"{path}.weight"], base[f"{path}.weight"] + 8 / 2 * update)


def test_a_new_adapter_of_the_stack_starts_without_effect() -> None:
    backbone, strategy = tiny_backbone(), LoRA(dropout=0.0, policy="stack")
    strategy.setup(backbone)
    strategy.before_task(backbone, TASKS[0], [])
    train(backbone, steps=3)
    learnt = backbone(batch_of(backbone)).token_nats
    strategy.before_task(backbone, TASKS[1], [])
    assert torch.equal(backbone(batch_of(backbone)).token_nats, learnt)


@pytest.mark.parametrize("policy", POLICIES)
def test_restore_forgets_the_adapters(policy: Any) -> None:
    backbone, base = tiny_backbone(), tiny_backbone()
    strategy = LoRA(policy=policy)
    strategy.setup(backbone)
    strategy.before_task(backbone, TASKS[0], [])
    train(backbone, steps=1)
    strategy.after_task(backbone, TASKS[0], [])
    backbone.restore()
    assert changed(weights(base), weights(backbone)) == set()
    assert weights(base).keys() == weights(backbone).keys()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("targets", "places"),
    [("all-linear", 28), ("q_proj", 4), (["q_proj"], 4), (r".*layers\.[01]\.self_attn\.[qkv]_proj", 6)],
)
def test_targets_by_name_by_expression_or_all(targets: Any, places: int, policy: Any) -> None:
    backbone, strategy = tiny_backbone(), LoRA(rank=2, dropout=0.0, targets=targets, policy=policy)
    strategy.setup(backbone)
    for number, task in enumerate(TASKS):
        strategy.before_task(backbone, task, [])
        assert len(backbone.trainable()) == 2 * places
        assert len(adapters.adapter_layers(backbone.model)) == places
        train(backbone, number, steps=1)
        strategy.after_task(backbone, task, [])
    assert not any("lm_head" in path for path, _ in backbone.model.named_modules() if "lora" in path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"targets": "all-linear"}, ""),
        ({"targets": "q_prj"}, "strategies.lora: targets: the model has no 'q_prj'. Choose from down_proj"),
        ({"targets": ["embed_tokens"]}, "strategies.lora: an adapter on the embeddings is not supported"),
        ({"peft": {"lora_bias": True}}, "strategies.lora: peft: lora_bias=True is not supported"),
        ({"peft": {"init_lora_weights": "eva"}}, "strategies.lora: peft: init_lora_weights='eva' is not supported"),
    ],
)
def test_a_study_says_before_the_first_step_what_cannot_be_adapted(
    arguments: dict[str, Any], says: str, make: Callable[..., Study], tmp_path: Path
) -> None:
    """Also under autocast, where a step is tried in another precision than it is scored in."""
    lora = {"lora": {"class_path": "strategies.LoRA", "init_args": arguments}}
    small = make(strategies=lora, trainer={"max_epochs": 1, "accelerator": "cpu", "precision": "bf16-mixed"})
    if not says:
        assert small.plan().estimates["lora"].trainable.startswith("8,192 of ")
        return
    with pytest.raises(ConfigError) as caught:
        small.run()
    assert [problem[: len(says)] for problem in caught.value.problems] == [says]
    assert not (tmp_path / "runs").exists()


def test_peft_settings_are_passed_on_and_win(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    LoRA(rank=4, alpha=16, peft={"r": 9, "use_rslora": True}).setup(backbone)
    layer: Any = backbone.model.model.layers[0].self_attn.q_proj
    assert layer.lora_A["default"].weight.shape == (9, 32)
    assert layer.scaling["default"] == pytest.approx(16 / 9**0.5)


def test_a_peft_setting_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match=r"^peft: .*unexpected keyword argument 'use_rslor'"):
        LoRA(peft={"use_rslor": True}).setup(tiny_backbone())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank=0 is out of range; it has to be at least 1."),
        ({"dropout": 1.0}, "dropout=1.0 is out of range; it has to be at least 0 and less than 1."),
        ({"dropout": -0.1}, "dropout=-0.1 is out of range; it has to be at least 0 and less than 1."),
        ({"alpha": 0}, "alpha=0 is out of range; it has to be more than 0."),
        ({"targets": []}, "targets is empty: no projection would get an adapter. Name one or more."),
        ({"policy": "sum"}, "policy='sum': choose 'continue', 'merge' or 'stack'."),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        LoRA(**arguments)
    assert str(caught.value) == message


def test_a_projection_that_the_model_does_not_have() -> None:
    backbone = tiny_backbone()
    with pytest.raises(ValueError) as caught:
        LoRA(targets=["q_proj", "c_attn"]).setup(backbone)
    assert str(caught.value) == (
        "targets: the model has no 'c_attn'. Choose from down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj."
    )
    assert backbone.adapter_names == []


def test_what_trained_is_counted_before_it_is_folded_in(tmp_path: Path) -> None:
    tiny_run(LoRA(rank=2, policy="merge"), tmp_path)
    with (tmp_path / "costs.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    # 4 layers, width 32: q_proj is 32 -> 32 and v_proj 32 -> 16, so 2 x (32 + 32) + 2 x (32 + 16) values a layer
    assert [int(row["trainable_parameters"]) for row in rows] == [896, 896]
    assert [int(row["added_parameters"]) for row in rows] == [0, 0]
