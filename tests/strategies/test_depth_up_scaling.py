"""Depth up-scaling against SOLAR's own numbers: which layer stands where, what trains, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from strategies import BlockExpansion, ContinuedPretraining, DepthUpScaling, LoRA
from workbench.backbone import Backbone
from workbench.benchmark import PRETRAINING, Task
from workbench.depth import restack
from workbench.strategy import Composition
from workbench.testing.tiny import tiny_backbone, tiny_tasks

ONE, TWO = tiny_tasks()
CORPUS = Task(PRETRAINING, test=ONE.test.rename_columns({"prompt": "text"}).select_columns(["text"]))


def sources(depth: int, **arguments: Any) -> list[int]:
    plan = DepthUpScaling(**arguments).plan(depth)
    assert not any(layer.identity for layer in plan)
    return [layer.source for layer in plan]


def test_solar_grows_from_32_to_48_layers() -> None:
    """n = 32, m = 8: [0..23] + [8..31] (SOLAR, section 2)."""
    assert sources(32) == [*range(24), *range(8, 32)]


def test_interlocked_by_one_and_by_eight() -> None:
    """k = 1: 0, 8, 1, 9, ..., 23, 31; k = 8: 0-7, 8-15, 8-15, 16-23, 16-23, 24-31."""
    assert sources(32, interlock=1) == [layer for low in range(24) for layer in (low, low + 8)]
    eight = [*range(8), *range(8, 16), *range(8, 16), *range(16, 24), *range(16, 24), *range(24, 32)]
    assert sources(32, interlock=8) == eight


def test_naive_stacking_repeats_the_whole_model_and_k_of_all_is_solar() -> None:
    assert sources(6, dropped=0) == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]
    assert sources(6, dropped=2, interlock=4) == sources(6, dropped=2) == [0, 1, 2, 3, 2, 3, 4, 5]
    assert sources(6, dropped=2, interlock=2) == [0, 1, 2, 3, 2, 3, 4, 5]
    assert sources(6, dropped=1, interlock=1) == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]


def test_the_upper_copy_by_hand() -> None:
    assert DepthUpScaling(dropped=2).upper(6) == [False] * 4 + [True] * 4
    assert DepthUpScaling(dropped=2, interlock=1).upper(6) == [False, True] * 4
    assert DepthUpScaling(dropped=0, interlock=3).upper(6) == ([False] * 3 + [True] * 3) * 2


@pytest.mark.parametrize("interlock", [None, 1])
def test_the_upper_copy_alone_trains_once_pretraining_is_over(interlock: int | None) -> None:
    strategy, backbone = DepthUpScaling(dropped=1, interlock=interlock, trains="upper"), tiny_backbone()
    strategy.setup(backbone)
    everything = len(list(backbone.model.parameters()))
    strategy.before_task(backbone, CORPUS, [])
    assert len(backbone.trainable()) == everything
    strategy.before_task(backbone, ONE, [])
    trains = sorted({int(name.split(".")[2]) for name in backbone.trainable()})
    assert trains == ([3, 4, 5] if interlock is None else [1, 3, 5])
    assert len(backbone.trainable()) == 3 * 9


def test_both_copies_begin_alike_and_learn_apart() -> None:
    backbone = tiny_backbone()
    DepthUpScaling(dropped=1).setup(backbone)
    lower, upper = (backbone.decoder.layers[index].mlp.up_proj.weight for index in (1, 3))
    assert torch.equal(lower, upper)
    optimizer = torch.optim.AdamW(backbone.trainable().values(), lr=1e-2)
    backbone(backbone.collate(backbone.encode(ONE.train).to_list())).loss.backward()
    optimizer.step()
    assert not torch.equal(lower, upper)


def test_it_goes_together_with_lora_after_it_and_with_a_corpus_before_the_tasks() -> None:
    members = [ContinuedPretraining(steps=5, packed=False), DepthUpScaling(dropped=1), LoRA()]
    strategy, backbone = Composition(members), tiny_backbone()
    strategy.setup(backbone)
    assert backbone.model.config.num_hidden_layers == 6
    assert {name.split(".")[-3] for name in backbone.trainable()} == {"lora_A", "lora_B"}
    items = strategy.curriculum([ONE, TWO], Task("text", test=CORPUS.test, train=CORPUS.test))
    assert [(item.name, item.max_steps, item.packed) for item in items] == [
        (PRETRAINING, 5, False), ("task_0", None, False), ("task_1", None, False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "depth", "message"),
    [
        (
            {"dropped": 3},
            6,
            "dropped=3 is out of range for the model's 6 layers: m has to be at least 0 and less than half of them. "
            "Choose 0 to 2; SOLAR drops a quarter.",
        ),
        (
            {"dropped": 2, "interlock": 3},
            6,
            "interlock=3 does not divide the 4 layers that are kept of each copy (6 - 2). Choose one of 1, 2, 4.",
        ),
    ],
)
def test_a_model_that_does_not_fit(arguments: dict[str, Any], depth: int, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        DepthUpScaling(**arguments).plan(depth)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dropped": -1}, "dropped=-1 is out of range; it has to be at least 0."),
        ({"interlock": 0}, "interlock=0 is out of range; it has to be at least 1."),
        ({"trains": "lower"}, "trains='lower': choose 'all' or 'upper'."),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        DepthUpScaling(**arguments)
    assert str(caught.value) == message


def test_a_grown_model_and_another_kind_of_model_are_refused(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    BlockExpansion(groups=2).setup(backbone)
    backbone.save(tmp_path / "grown")
    grown = Backbone.load(tmp_path / "grown")
    with pytest.raises(ValueError, match="The model was grown before: its 6 layers come from 4"):
        DepthUpScaling(dropped=1).setup(grown)
    DepthUpScaling(dropped=1, again=True).setup(grown)
    assert [source for source, _ in grown.model.config.layer_plan] == [0, 1, 1, 2, 3, 1, 1, 2, 3, 3]
    strange = tiny_backbone()
    strange.model.model.layers = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    with pytest.raises(ValueError, match="LlamaForCausalLM is no decoder of the LLaMA family"):
        restack(strange.model, DepthUpScaling(dropped=0).plan(1))
