"""CALM as a continual strategy: what it composes, what trains when, and that what is older never changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.studies import column, learn, same, weights
from torch import Tensor
from transformers import AutoModelForCausalLM

from strategies import CALM, BlockExpansion, DepthUpScaling
from workbench.backbone import Backbone
from workbench.benchmark import Task
from workbench.composition import CalmForCausalLM
from workbench.model_folder import SHIPPED
from workbench.strategy import Composition
from workbench.testing.conformance import check_strategy
from workbench.testing.tiny import tiny_backbone, tiny_tasks

MICRO: dict[str, Any] = {"augmenting": "micro", "connections": 3}
PROMPTS = ["Task 0: t1 b\nAnswer:", "once upon a time"]


def connections_of(backbone: Backbone) -> dict[str, Tensor]:
    return {name: value for name, value in weights(backbone).items() if name.startswith("model.connections.")}


def small(**changes: Any) -> Backbone:
    return tiny_backbone(seed=3, num_hidden_layers=2, hidden_size=16, num_attention_heads=2, **changes)


@pytest.mark.parametrize(
    "settings",
    [
        {"policy": "each_task"},
        {"encoder": True},
        {"zero_init": True},
        {"augmenting": ["micro", "micro"]},
    ],
)
def test_it_conforms_in_each_of_its_ways(settings: dict[str, Any]) -> None:
    """The default is checked with all strategies."""
    assert len(check_strategy(lambda: CALM(**{**MICRO, **settings}))) == 14


def test_what_setup_makes() -> None:
    """The backbone as anchor and micro below it, three connections each of D_A D_B + 4 D_B^2, which alone train."""
    backbone, plain = tiny_backbone(), tiny_backbone()
    CALM(**MICRO).setup(backbone)
    assert isinstance(backbone.model, CalmForCausalLM)
    assert same(
        {name: value for name, value in backbone.model.model.anchor.state_dict().items()},
        {name: value for name, value in plain.model.model.state_dict().items()},
    )
    micro = AutoModelForCausalLM.from_pretrained(SHIPPED["micro"], dtype=torch.float32)
    assert same(dict(backbone.model.model.augmenting[0].state_dict()), dict(micro.model.state_dict()))
    assert (
        backbone.model.config.connections == [[[0, 0], [1, 1], [2, 3]]] == [[[0, 4 // 3 - 1], [1, 8 // 3 - 1], [2, 3]]]
    )
    assert sum(map(Tensor.numel, backbone.trainable().values())) == 3 * (64 * 32 + 4 * 32**2)
    assert all(name.startswith("model.connections.0.") for name in backbone.trainable())
    assert backbone.model.training


def test_with_zero_init_it_answers_as_the_backbone_at_first() -> None:
    backbone, plain = tiny_backbone(), tiny_backbone()
    CALM(**MICRO, zero_init=True).setup(backbone)
    assert backbone.generate(PROMPTS, 6) == plain.generate(PROMPTS, 6)
    assert backbone.log_likelihood(PROMPTS, ["b", "c"]).tolist() == plain.log_likelihood(PROMPTS, ["b", "c"]).tolist()
    other = tiny_backbone()
    CALM(**MICRO).setup(other)
    assert other.log_likelihood(PROMPTS, ["b", "c"]).tolist() != plain.log_likelihood(PROMPTS, ["b", "c"]).tolist()


def test_a_backbone_given_is_never_changed(tmp_path: Path) -> None:
    given = small()
    before = weights(given)
    for policy in ("one", "each_task"):
        learn(CALM(given, connections=2, policy=policy), tmp_path / policy)
        assert same(weights(given), before)
        assert all(weight.requires_grad for weight in given.model.parameters())
        assert not any(layer._forward_hooks for layer in given.decoder.layers)


def test_one_composition_learns_every_task(tmp_path: Path) -> None:
    strategy, start = CALM(small(), connections=2), tiny_backbone()
    backbone = learn(strategy, tmp_path)
    torch.manual_seed(0)
    CALM(small(), connections=2).setup(start)
    old, new = weights(start), weights(backbone)
    assert old.keys() == new.keys()
    assert {name for name in new if not torch.equal(old[name], new[name])} == set(backbone.trainable())
    assert column(tmp_path / "train.csv", "item") == ["task_0"] * 3 + ["task_1"] * 3


class Notes(CALM):
    """Keeps what is there before and after each item."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.notes: list[tuple[str, set[str], dict[str, Tensor], dict[str, Tensor]]] = []

    def before_task(self, backbone: Backbone, task: Task, batches: Any) -> None:
        super().before_task(backbone, task, batches)
        self.notes.append((task.name, set(backbone.trainable()), weights(backbone), {}))

    def after_task(self, backbone: Backbone, task: Task, batches: Any) -> None:
        self.notes[-1][3].update(weights(backbone))


def test_each_task_brings_a_model_of_its_own(tmp_path: Path) -> None:
    """A fresh copy learns the task with all its weights, then joins; only its own connections train then."""
    strategy = Notes(augmenting=small(), connections=2, policy="each_task")
    backbone = learn(strategy, tmp_path)
    names, trained, before, after = zip(*strategy.notes, strict=True)
    assert names == ("task_0:augmenting", "task_0", "task_1:augmenting", "task_1")
    for copy in (0, 2):
        assert same(before[copy], weights(small()))
        assert trained[copy] == set(before[copy])
        assert not any(torch.equal(before[copy][name], after[copy][name]) for name in trained[copy])
    for place, joined in ((0, 1), (1, 3)):
        assert {name.rsplit(".", 3)[0] for name in trained[joined]} == {f"model.connections.{place}"}
        stack = {name: value for name, value in before[joined].items() if f".augmenting.{place}." in name}
        copied = {name.replace(f"augmenting.{place}.", ""): value for name, value in stack.items()}
        assert same(copied, {name: after[joined - 1][name] for name in copied})
        assert {name for name, old in before[joined].items() if not torch.equal(old, after[joined][name])} == trained[
            joined
        ]
    assert all(torch.equal(before[3][name], value) for name, value in after[1].items())
    assert strategy.parked is None
    assert same(weights(backbone), after[3])


def test_an_augmenting_models_own_training_is_not_scored(tmp_path: Path) -> None:
    learn(CALM(small(), connections=2, policy="each_task"), tmp_path)
    items = column(tmp_path / "train.csv", "item")
    assert items == [name for name in ("task_0:augmenting", "task_0", "task_1:augmenting", "task_1") for _ in range(3)]
    assert sorted(set(column(tmp_path / "scores.csv", "after"))) == ["0", "1", "2"]


def test_the_parked_composition_is_part_of_the_state() -> None:
    strategy, backbone = CALM(small(), connections=2, policy="each_task"), tiny_backbone()
    strategy.setup(backbone)
    assert backbone.trainable() == {}
    items = strategy.curriculum(tiny_tasks(), None)
    for item in items[:3]:
        strategy.before_task(backbone, item, [])
    assert any(name.startswith("parked.model.connections.0.") for name in strategy.state_dict())
    assert not any(weight.requires_grad for weight in strategy.parameters())
    strategy.before_task(backbone, items[3], [])
    assert len(backbone.model.model.augmenting) == 2
    assert strategy.state_dict() == {}


def test_a_saved_composition_is_read_by_the_backbone(tmp_path: Path) -> None:
    backbone = learn(CALM(small(), connections=2, encoder=True, policy="each_task"), tmp_path)
    loaded = Backbone.load(tmp_path / "model")
    assert loaded.generate(PROMPTS, 6) == backbone.generate(PROMPTS, 6)
    assert loaded.log_likelihood(PROMPTS, ["b", "c"]).tolist() == backbone.log_likelihood(PROMPTS, ["b", "c"]).tolist()


def swapped() -> Backbone:
    """Two tokens of the same vocabulary in each other's place."""
    backbone = small()
    vocabulary = backbone.tokenizer.get_vocab()
    one, two = sorted(vocabulary)[50:52]
    changed = {**vocabulary, one: vocabulary[two], two: vocabulary[one]}
    backbone.tokenizer.get_vocab = lambda: changed
    return backbone


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"augmenting": swapped()},
            "augmenting: its tokenizer has 1191 tokens and the backbone's 1191; 2 are not the same in both. Both "
            "models read the same tokens: give models of one tokenizer or, with policy 'one', alignment: characters.",
        ),
        ({"connections": 4}, "connections=4: the anchor has 4 layers and the augmenting model 3. Choose 1 to 3."),
        (
            {"augmenting": small(vocab_size=1300), "connections": 1},
            "Unless a table fits, both read the same tokens, but the anchor has 1191 embeddings and the augmenting "
            "model 1300. Give models of one tokenizer.",
        ),
    ],
)
@pytest.mark.parametrize("policy", ["one", "each_task"])
def test_what_setup_refuses_and_leaves_alone(arguments: dict[str, Any], message: str, policy: Any) -> None:
    backbone = tiny_backbone()
    before = backbone.model
    with pytest.raises(ValueError) as caught:
        CALM(**{**MICRO, **arguments}, policy=policy).setup(backbone)
    assert str(caught.value) == message
    assert backbone.model is before
    assert len(backbone.trainable()) == len(list(before.parameters()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": "all"}, "policy='all': choose 'one' or 'each_task'."),
        ({"alignment": "offsets"}, "alignment='offsets': choose 'same' or 'characters'."),
        (
            {"alignment": "characters", "policy": "each_task"},
            "policy='each_task' trains copies on tasks as the backbone's tokenizer encodes them, which a model of "
            "another tokenizer cannot read. Choose policy='one' or alignment='same'.",
        ),
        ({"augmenting": []}, "augmenting is empty: there is nothing to join the backbone with. Name a model."),
        (
            {"augmenting": ["micro", "mini"], "policy": "each_task"},
            "policy='each_task' trains copies of one model, but augmenting names 2. Name one.",
        ),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        CALM(**{**MICRO, **arguments})
    assert str(caught.value) == message


@pytest.mark.parametrize("policies", [("one", True), ("each_task", False)])
def test_one_composition_may_stand_beside_others(policies: tuple[Any, bool]) -> None:
    policy, allowed = policies
    members: Sequence[Any] = [CALM(**MICRO, policy=policy), CALM(**MICRO)]
    if allowed:
        assert Composition(members).members[0].policy == policy
    else:
        with pytest.raises(ValueError, match="CALM cannot be combined with other strategies"):
            Composition(members)


@pytest.mark.parametrize("grower", [BlockExpansion(groups=2), DepthUpScaling(dropped=1)])
def test_a_composition_is_not_grown(grower: Any) -> None:
    message = "CalmForCausalLM is no decoder of the LLaMA family: its layers cannot be stacked anew"
    with pytest.raises(ValueError, match=message):
        Composition([CALM(**MICRO), grower]).setup(tiny_backbone())
