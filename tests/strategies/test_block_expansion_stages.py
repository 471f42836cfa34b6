"""Block expansion over a sequence: blocks for each task, the stage before instructions, growing twice, zeroed norms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.studies import column, learn, sgd
from torch import Tensor, nn

from strategies import BlockExpansion, ContinuedPretraining, LoRA
from workbench.backbone import Backbone
from workbench.benchmark import PRETRAINING, Task
from workbench.strategy import Composition, ContinualStrategy
from workbench.testing.tiny import tiny_backbone, tiny_tasks
from workbench.train import ContinualModule

ONE, TWO, THREE = tiny_tasks(3)


def weights(backbone: Backbone) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in backbone.model.state_dict().items()}


def layers(names: Any) -> list[int]:
    return sorted({int(name.split(".")[2]) for name in names if name.startswith("model.layers.")})


class Observed(ContinualStrategy):
    """Block expansion, with what trains and what is there written down as each item begins."""

    def __init__(self, inner: ContinualStrategy) -> None:
        super().__init__()
        self.inner = inner
        self.seen: list[tuple[str, list[int], bool]] = []
        self.before: list[dict[str, Tensor]] = []
        self.plans: list[list[list[Any]]] = []
        for hook in ("curriculum", "setup"):
            setattr(self, hook, getattr(inner, hook))

    def before_task(self, backbone: Backbone, task: Task, batches: Any) -> None:
        self.inner.before_task(backbone, task, batches)
        trainable = backbone.trainable()
        self.seen.append((task.name, layers(trainable), "lm_head.weight" in trainable))
        self.before.append(weights(backbone))
        self.plans.append(backbone.model.config.layer_plan)


@pytest.mark.parametrize(
    ("arguments", "grown"),
    [
        ({"groups": 2}, [[2, 5], [3, 7], [4, 9]]),
        ({"groups": 1, "position": "top"}, [[4], [5], [6]]),
        ({"groups": 1, "position": "bottom"}, [[0], [0], [0]]),
        ({"position": [1]}, [[2], [3], [4]]),
        ({"position": [0, 2]}, [[1, 4], [2, 6], [3, 8]]),
    ],
)
def test_each_task_gets_fresh_blocks_and_the_older_ones_stay(
    tmp_path: Path, arguments: dict[str, Any], grown: list[list[int]]
) -> None:
    watch = Observed(BlockExpansion(**arguments, each_task=True))
    end = weights(learn(watch, tmp_path, tasks=[ONE, TWO, THREE]))
    assert [trains for _, trains, _ in watch.seen] == grown
    added = len(grown[0])
    assert [len(plan) for plan in watch.plans] == [4 + added, 4 + 2 * added, 4 + 3 * added]
    for number in (1, 2):
        for index, (source, identity) in enumerate(watch.plans[number]):
            assert identity == (index not in [watch.plans[number].index([old, False]) for old in range(4)])
            assert 0 <= source < 4
    last = watch.before[2]
    moved = {name for name in last if not torch.equal(last[name], end[name])}
    assert layers(moved) == grown[2]


def test_fresh_blocks_begin_as_the_identity_on_what_was_learnt() -> None:
    strategy, backbone = BlockExpansion(groups=2, each_task=True), tiny_backbone()
    strategy.setup(backbone)
    strategy.before_task(backbone, ONE, [])
    batch = backbone.collate(backbone.encode(ONE.train).to_list())
    optimizer = torch.optim.AdamW(backbone.trainable().values(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        backbone(batch).loss.backward()
        optimizer.step()
    learnt = backbone(batch).token_nats
    strategy.before_task(backbone, TWO, [])
    assert torch.equal(backbone(batch).token_nats, learnt)
    assert backbone.model.config.num_hidden_layers == 8


def test_first_the_new_blocks_on_a_corpus_and_then_all_of_them_on_the_tasks(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("a b c d e f g h\n" * 40, encoding="utf-8")
    stages = Composition([ContinuedPretraining(steps=3, corpus=str(corpus)), BlockExpansion(groups=2, trains="all")])
    watch = Observed(stages)
    learn(watch, tmp_path / "run", tasks=[ONE, TWO])
    assert watch.seen == [
        (PRETRAINING, [2, 5], False),
        ("task_0", [0, 1, 2, 3, 4, 5], True),
        ("task_1", [0, 1, 2, 3, 4, 5], True),
    ]
    first, then = watch.before[:2]
    assert layers(name for name in first if not torch.equal(first[name], then[name])) == [2, 5]


def test_a_grown_model_is_grown_again_only_where_that_is_said(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    BlockExpansion(groups=2).setup(backbone)
    backbone.save(tmp_path / "grown")
    grown = Backbone.load(tmp_path / "grown")
    with pytest.raises(ValueError) as caught:
        BlockExpansion(groups=2).setup(grown)
    assert str(caught.value) == (
        "The model was grown before: its 6 layers come from 4, as `layer_plan` in its config records. "
        "Give again=true to grow it once more, or begin with the model that it was made from."
    )
    assert grown.model.config.num_hidden_layers == 6
    BlockExpansion(groups=1, again=True).setup(grown)
    assert grown.model.config.layer_plan == [
        [0, False], [1, False], [1, True], [2, False], [3, False], [3, True], [3, True],
    ]  # fmt: skip


def test_on_a_grown_model_listed_layers_are_those_of_the_model_as_loaded(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    BlockExpansion(groups=2).setup(backbone)
    backbone.save(tmp_path / "grown")
    grown, strategy = Backbone.load(tmp_path / "grown"), BlockExpansion(position=[4], each_task=True, again=True)
    strategy.setup(grown)
    for task in (ONE, TWO):
        strategy.before_task(grown, task, [])
    assert layers(grown.trainable()) == [6]
    assert [source for source, _ in grown.model.config.layer_plan] == [0, 1, 1, 2, 3, 3, 3, 3]


def test_an_adapter_from_before_the_expansion_is_refused() -> None:
    backbone = tiny_backbone()
    with pytest.raises(ValueError, match="The model carries the adapter 'default', made for its 4 layers"):
        Composition([LoRA(), BlockExpansion(groups=2)]).setup(backbone)


def zero_norms(backbone: Backbone) -> list[nn.Module]:
    """Identity blocks the other way: projections copied, norm scales zeroed."""
    blocks = []
    for index, (source, identity) in enumerate(backbone.model.config.layer_plan):
        if identity:
            block = backbone.decoder.layers[index]
            below = backbone.decoder.layers[backbone.model.config.layer_plan.index([source, False])]
            block.load_state_dict(below.state_dict())
            nn.init.zeros_(block.input_layernorm.weight)
            nn.init.zeros_(block.post_attention_layernorm.weight)
            blocks.append(block)
    return blocks


def test_with_norm_scales_zeroed_the_feed_forward_branch_never_learns(tmp_path: Path) -> None:
    """The branch is W3 (silu(W1 t x) * (W2 t x)), of second order in the scale t: at t = 0 nothing reaches it."""
    backbone = tiny_backbone()
    base = backbone(backbone.collate(backbone.encode(ONE.train).to_list())).token_nats

    class ZeroedNorms(BlockExpansion):
        def setup(self, backbone: Backbone) -> None:
            super().setup(backbone)
            self.blocks = len(zero_norms(backbone))

    strategy = ZeroedNorms(groups=2)
    strategy.setup(backbone)
    assert torch.equal(backbone(backbone.collate(backbone.encode(ONE.train).to_list())).token_nats, base)
    before = weights(backbone)
    after = weights(
        learn(ZeroedNorms(groups=2), tmp_path, module=ContinualModule(tiny_backbone(), ZeroedNorms(groups=2), sgd))
    )
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert layers(moved) == [2, 5]
    assert not any("mlp" in name or "post_attention_layernorm" in name for name in moved)
    assert any("self_attn" in name for name in moved)
    assert column(tmp_path / "train.csv", "step") == ["1", "2", "3", "4", "5", "6"]
