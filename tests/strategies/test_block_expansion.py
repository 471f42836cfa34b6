"""Block expansion: LLaMA Pro's numbers, exact identities, gradients, blocks for each task, and both stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.studies import column, learn, sgd
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from strategies import BlockExpansion, ContinuedPretraining, LoRA
from workbench.backbone import Backbone, Batch
from workbench.benchmark import PRETRAINING, Task
from workbench.depth import PlannedLayer
from workbench.strategy import Composition, ContinualStrategy
from workbench.testing.tiny import tiny_backbone, tiny_tasks
from workbench.train import ContinualModule

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
TASK = tiny_tasks()[0]


def batch_of(backbone: Backbone) -> Batch:
    return backbone.collate(backbone.encode(TASK.train).to_list())


def weights(backbone: Backbone) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in backbone.model.state_dict().items()}


def expanded(family: str = "llama", **arguments: Any) -> Backbone:
    backbone = tiny_backbone(family)
    BlockExpansion(**{"groups": 2, **arguments}).setup(backbone)
    return backbone


def step(backbone: Backbone, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    backbone(batch_of(backbone)).loss.backward()
    optimizer.step()


def test_llama_2_grows_as_in_the_paper() -> None:
    """32 layers in 8 groups become 40; the new ones are 4, 9, …, 39, each a copy of the one below."""
    plan = BlockExpansion(groups=8).plan(32)
    new = [index for index, layer in enumerate(plan) if layer.identity]
    assert len(plan) == 40
    assert new == [4, 9, 14, 19, 24, 29, 34, 39]
    assert [plan[index].source for index in new] == [plan[index - 1].source for index in new]
    assert [layer.source for layer in plan if not layer.identity] == list(range(32))


def test_the_size_of_a_block_of_llama_2() -> None:
    """4 D² + 3 D F + 2 D with D = 4096 and F = 11008: 202.38M, and 8.357B in all after eight more."""
    width, inner, vocabulary = 4096, 11008, 32000
    block = 4 * width**2 + 3 * width * inner + 2 * width
    assert round(block / 1e6, 2) == 202.38
    assert round((40 * block + 2 * vocabulary * width + width) / 1e9, 3) == 8.357
    with torch.device("meta"):
        config = LlamaConfig(hidden_size=width, intermediate_size=inner, num_attention_heads=32)
        layer = LlamaDecoderLayer(config, 0)
    assert sum(parameter.numel() for parameter in layer.parameters()) == block


@pytest.mark.parametrize(
    ("arguments", "sources", "new"),
    [
        ({"groups": 2}, [0, 1, 1, 2, 3, 3], [2, 5]),
        ({"groups": 4}, [0, 0, 1, 1, 2, 2, 3, 3], [1, 3, 5, 7]),
        ({"groups": 1}, [0, 1, 2, 3, 3], [4]),
        ({"groups": 2, "copies": 2}, [0, 1, 0, 1, 2, 3, 2, 3], [2, 3, 6, 7]),
        ({"groups": 1, "copies": 2}, [0, 1, 2, 3, 2, 3], [4, 5]),
        ({"groups": 2, "position": "bottom"}, [0, 1, 0, 1, 2, 3], [0, 1]),
        ({"groups": 2, "position": "top"}, [0, 1, 2, 3, 2, 3], [4, 5]),
        ({"groups": 3, "position": "top"}, [0, 1, 2, 3, 1, 2, 3], [4, 5, 6]),
        ({"position": [2, 0]}, [0, 0, 1, 2, 2, 3], [1, 4]),
        ({"position": [3, 3]}, [0, 1, 2, 3, 3, 3], [4, 5]),
        ({"position": [1], "copies": 2}, [0, 1, 1, 1, 2, 3], [2, 3]),
    ],
)
def test_the_plan_by_hand(arguments: dict[str, Any], sources: list[int], new: list[int]) -> None:
    plan = BlockExpansion(**arguments).plan(4)
    assert plan == [PlannedLayer(source, index in new) for index, source in enumerate(sources)]


@pytest.mark.parametrize("position", ["interleaved", "bottom", "top"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_loss_is_exactly_the_bases(family: str, position: str) -> None:
    base, backbone = tiny_backbone(family), expanded(family, position=position)
    batch = batch_of(base)
    assert torch.equal(backbone(batch).token_nats, base(batch).token_nats)
    assert backbone.generate(["Task 0: t"], 6) == base.generate(["Task 0: t"], 6)


@pytest.mark.parametrize("position", ["interleaved", "bottom", "top"])
def test_at_first_only_the_output_projections_feel_the_loss_and_then_all_nine(position: str) -> None:
    """LLaMA Pro, section 3.2: why norm scales are copied and not zeroed."""
    backbone = expanded(position=position)
    new = [index for index, (_, identity) in enumerate(backbone.model.config.layer_plan) if identity]
    names = {
        f"model.layers.{index}.{name}" for index in new for name, _ in backbone.decoder.layers[0].named_parameters()
    }
    assert set(backbone.trainable()) == names
    assert len(names) == 2 * 9
    optimizer = torch.optim.SGD(backbone.trainable().values(), lr=0.1)
    step(backbone, optimizer)
    felt = {name for name, parameter in backbone.trainable().items() if parameter.grad.any()}
    assert felt == {name for name in names if "o_proj" in name or "down_proj" in name}
    step(backbone, optimizer)
    assert {name for name, parameter in backbone.trainable().items() if parameter.grad.any()} == names


@pytest.mark.parametrize("family", FAMILIES)
def test_ten_steps_change_the_new_blocks_and_not_one_other_bit(family: str) -> None:
    backbone = expanded(family)
    before, loss = weights(backbone), backbone(batch_of(backbone)).loss.item()
    optimizer = torch.optim.AdamW(backbone.trainable().values(), lr=1e-2)
    for _ in range(10):
        step(backbone, optimizer)
    after = weights(backbone)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith(("model.layers.2.", "model.layers.5."))}
    assert moved == set(backbone.trainable())
    assert all(parameter.grad is None for name, parameter in backbone.model.named_parameters() if name not in moved)
    assert abs(backbone(batch_of(backbone)).loss.item() - loss) > 0.01


def test_two_copies_of_a_block_learn_apart() -> None:
    backbone = expanded(groups=1, copies=2)
    assert len(backbone.trainable()) == 2 * 9
    optimizer = torch.optim.AdamW(backbone.trainable().values(), lr=1e-2)
    step(backbone, optimizer)
    first, second = (backbone.decoder.layers[index].mlp.down_proj.weight for index in (4, 5))
    assert not torch.equal(first, second)


def test_which_blocks_are_new_is_written_down_and_survives(tmp_path: Path) -> None:
    backbone = expanded()
    plan = [[0, False], [1, False], [1, True], [2, False], [3, False], [3, True]]
    assert backbone.model.config.layer_plan == plan
    backbone.save(tmp_path / "model")
    loaded = Backbone.load(tmp_path / "model")
    assert loaded.model.config.layer_plan == plan
    tokens = torch.tensor([[1, 40, 7, 300, 12]])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert torch.equal(plain(tokens).logits, tiny_backbone().model.eval()(tokens).logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": 0}, "groups=0 is out of range; it has to be at least 1."),
        ({"copies": 0}, "copies=0 is out of range; it has to be at least 1."),
        ({"position": "middle"}, "position='middle': choose 'interleaved', 'bottom' or 'top', or list layers."),
        ({"position": []}, "position lists no layer, so nothing would be added. List one or more."),
        ({"trains": "some"}, "trains='some': choose 'new' or 'all'."),
        (
            {"trains": "all", "each_task": True},
            "each_task freezes the blocks of past tasks, which trains='all' would train. Choose one.",
        ),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        BlockExpansion(**arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("arguments", "depth", "message"),
    [
        (
            {"groups": 5},
            32,
            "groups=5 does not divide the model's 32 layers. Choose one of 1, 2, 4, 8, 16, 32, or list layers as "
            "`position`.",
        ),
        (
            {"groups": 8},
            6,
            "groups=8 does not divide the model's 6 layers. Choose one of 1, 2, 3, 6, or list layers as `position`.",
        ),
        ({"position": [0, 6]}, 6, "position lists layer 6, but the model has 0 to 5. Choose among these."),
        ({"groups": 8, "copies": 5}, 32, "copies=5 is more than the 4 blocks of a group. Choose fewer."),
        (
            {"groups": 4, "copies": 2, "position": "top"},
            6,
            "groups x copies = 8 blocks are to be copied, but the model has 6. Choose fewer.",
        ),
    ],
)
def test_a_model_that_does_not_fit(arguments: dict[str, Any], depth: int, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        BlockExpansion(**arguments).plan(depth)
    assert str(caught.value) == message


def test_a_model_that_does_not_fit_is_left_alone() -> None:
    backbone = tiny_backbone()
    with pytest.raises(ValueError, match="groups=3 does not divide the model's 4 layers"):
        BlockExpansion(groups=3).setup(backbone)
    assert len(backbone.trainable()) == len(list(backbone.model.parameters()))
    assert backbone.model.config.num_hidden_layers == 4


ONE, TWO, THREE = tiny_tasks(3)


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
