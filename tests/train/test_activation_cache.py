"""Cached states of frozen layers: the same numbers as without the cache, and an exact resume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.studies import column, same, trainer, weights
from lightning.pytorch import Callback
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from strategies import CALM, BlockExpansion, DownProjectionMoE, LoRA, Replay, SeqFT
from workbench.backbone import Backbone, Batch, Output
from workbench.display import Display
from workbench.results import RunFolder
from workbench.strategy import Composition, ContinualStrategy
from workbench.testing.tiny import TINY, Stopped, StopsAfter, tiny_backbone, tiny_tasks
from workbench.train import ContinualDataModule, ContinualModule, learn_in_sequence
from workbench.train.activation_cache import FrozenStates, constant_parts, states_size
from workbench.train.checkpoint import Intervals

EPOCHS, ROWS, TASKS = 2, 12, 2


class Notes(Display):
    """Records the notes of the progress display."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


def adam(_: str, parameters: list[Any], __: Any) -> tuple[torch.optim.Optimizer, None]:
    return torch.optim.Adam(parameters, lr=1e-3, eps=1e-4), None


def learn(
    strategy: ContinualStrategy,
    folder: Path,
    *,
    gb: float = 1.0,
    backbone: Backbone | None = None,
    more: Sequence[Callback] = (),
    display: Display | None = None,
    stop_after: int | None = None,
    **arguments: Any,
) -> Backbone:
    """Train on two tiny tasks, two epochs of three batches each."""
    module = ContinualModule(backbone or tiny_backbone(), strategy, adam)
    data = ContinualDataModule(tiny_tasks(TASKS, ROWS), batch_size=4, seed=0)
    data.frozen_states_gb = gb
    settings = {"max_epochs": EPOCHS, **arguments}
    stops = StopsAfter(stop_after)
    learn_in_sequence(
        module,
        data,
        lambda _, given: trainer(folder, [*given, *more, stops], **settings),
        RunFolder(folder),
        display,
        Intervals(save_every_n_steps=1 if stop_after else None),
    )
    return module.backbone


def losses(folder: Path) -> torch.Tensor:
    return torch.tensor([float(value) for value in column(folder / "train.csv", "loss")], dtype=torch.float64)


def augmenting() -> Backbone:
    return tiny_backbone(seed=1, hidden_size=16, num_hidden_layers=3, num_attention_heads=2)


def stranger() -> Backbone:
    """An augmenting model with a character vocabulary, so that most tokens of the anchor are several of its own."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("llama", **{**TINY, "hidden_size": 16, "num_hidden_layers": 3, "vocab_size": 300})
    )
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([], trainers.BpeTrainer(special_tokens=["</s>"], initial_alphabet=alphabet))
    return Backbone(lambda: model, PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>"))


METHODS: dict[str, tuple[Callable[[], ContinualStrategy], dict[str, Any]]] = {
    "blocks": (lambda: BlockExpansion(groups=2), {}),
    "blocks of each task": (lambda: BlockExpansion(groups=2, each_task=True), {}),
    "blocks and replay": (lambda: Composition([BlockExpansion(groups=2), Replay(share=0.5)]), {}),
    "blocks on windows": (
        lambda: BlockExpansion(groups=2),
        {"family": "qwen3", "layer_types": ["sliding_attention", "full_attention"] * 2, "use_sliding_window": True}
        | {"sliding_window": 6},
    ),
    "calm": (lambda: CALM(augmenting(), connections=2), {}),
    "calm, pairs": (lambda: CALM(augmenting(), connections=[(0, 1), (2, 3), (0, 3)], encoder=True), {}),
    "calm of each task": (lambda: CALM(augmenting(), connections=2, policy="each_task"), {}),
    "calm, characters": (lambda: CALM(stranger(), connections=2, alignment="characters"), {}),
}


@pytest.mark.parametrize("name", METHODS)
def test_losses_equal_those_without_the_cache(tmp_path: Path, name: str) -> None:
    make, changes = METHODS[name]
    kept, computed = tmp_path / "kept", tmp_path / "computed"
    learn(make(), kept, backbone=tiny_backbone(**changes))
    learn(make(), computed, backbone=tiny_backbone(**changes), gb=0)
    assert len(losses(kept)) >= TASKS * EPOCHS * 3
    torch.testing.assert_close(losses(kept), losses(computed), rtol=0, atol=2e-6)
    assert sum(RunFolder(kept).environment()["frozen_states_bytes"].values()) > 0
    assert "frozen_states_bytes" not in RunFolder(computed).environment()


class Twice(BlockExpansion):
    """Passes each batch through the model a second time, in its own hook."""

    def penalties(self, backbone: Backbone, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Penalty: the difference of the two passes."""
        return {"again": (backbone(batch).loss.detach() - output.loss.detach()).abs()}


@pytest.mark.parametrize(
    ("strategy", "spared"),
    [
        (BlockExpansion(groups=2), 2 * (24 - 12)),  # two epochs of 12 rows, computed once, in each of two tasks
        (Composition([BlockExpansion(groups=2), Replay(share=0.5)]), 24 - 12 + 36 - 18),
        (Twice(groups=2), 2 * (24 - 12)),  # a strategy's own forward runs all layers
    ],
)
def test_a_frozen_layer_computes_each_row_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: ContinualStrategy, spared: int
) -> None:
    rows, forward = [0] * 6, LlamaDecoderLayer.forward

    def counted(self: Any, states: Tensor, *args: Any, **given: Any) -> Any:
        rows[self.self_attn.layer_idx] += len(states)
        return forward(self, states, *args, **given)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", counted)
    learn(strategy, tmp_path)
    assert [rows[3] - seen for seen in rows[:4]] == [spared, spared, 0, 0]  # layer 2 is the first new one
    if isinstance(strategy, Twice):
        assert max(float(value) for value in column(tmp_path / "train.csv", "again")) < 2e-6


@pytest.mark.parametrize("name", ["blocks of each task", "calm"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, name: str) -> None:
    make, stopped = METHODS[name][0], 0
    whole = learn(make(), tmp_path / "whole")
    while True:
        with suppress(Stopped):
            parts = learn(make(), tmp_path / "parts", stop_after=4)  # of 12 batches
            break
        stopped += 1
    assert stopped == 2
    assert same(weights(parts), weights(whole))
    assert torch.equal(losses(tmp_path / "parts"), losses(tmp_path / "whole"))


def hooked(place: str) -> BlockExpansion:
    class Listens(BlockExpansion):
        def setup(self, backbone: Backbone) -> None:
            super().setup(backbone)
            backbone.get_submodule(place).register_forward_pre_hook(lambda *_: None)

    return Listens(groups=2)


@pytest.mark.parametrize(
    ("strategy", "changes", "depths"),
    [
        (BlockExpansion(groups=2), {}, [2]),
        (BlockExpansion(groups=1, position="top"), {}, [4]),
        (BlockExpansion(groups=2, position="bottom"), {}, []),
        (BlockExpansion(groups=2), {"tie_word_embeddings": True}, [2]),
        (BlockExpansion(groups=2), {"attention_dropout": 0.1}, []),
        (BlockExpansion(groups=2, trains="all"), {}, []),
        (SeqFT(), {}, []),
        (LoRA(), {}, []),
        (LoRA(peft={"layers_to_transform": [2, 3]}), {}, [2]),
        (DownProjectionMoE(), {}, []),
        (hooked("model.model.layers.1.mlp.up_proj"), {}, [1]),
        (hooked("model.model.layers.2.mlp.up_proj"), {}, [2]),
        (hooked("model.model.embed_tokens"), {}, []),
        (hooked("model.model"), {}, []),
        (CALM(augmenting(), connections=[(0, 1), (2, 3)]), {}, [3, 2]),
        (CALM(augmenting(), connections=[(1, 0)]), {}, [3, 1]),
    ],
)
def test_the_number_of_constant_layers(strategy: ContinualStrategy, changes: dict[str, Any], depths: list[int]) -> None:
    backbone = tiny_backbone(**changes)
    strategy.setup(backbone)
    strategy.before_task(backbone, tiny_tasks()[0], [])
    assert [part.depth for part in constant_parts(backbone)] == depths


def states_of(backbone: Backbone) -> tuple[FrozenStates, Batch]:
    """The cached states of four rows, and a batch of two of them."""
    rows = backbone.encode(tiny_tasks(1, 4)[0].train).to_list()
    parts = constant_parts(backbone)
    return FrozenStates(backbone, parts, [backbone.collate(rows)]), backbone.collate(rows[1:3])


def test_a_later_change_of_a_weight_or_hook_disables_the_cache() -> None:
    for change in (
        lambda layer: layer.mlp.up_proj.weight.mul_(2),
        lambda layer: layer.mlp.register_forward_hook(lambda *given: 2 * given[-1]),
    ):
        backbone = tiny_backbone()
        BlockExpansion(groups=2).setup(backbone)
        states, batch = states_of(backbone)
        before = backbone(batch).token_nats
        with torch.no_grad():
            change(backbone.decoder.layers[0])
        with states.replaying(batch):
            found = backbone(batch).token_nats
        assert torch.equal(found, backbone(batch).token_nats)
        assert (found - before).abs().max() > 1e-3


def test_replaying_restores_the_modules() -> None:
    backbone = tiny_backbone()
    BlockExpansion(groups=2).setup(backbone)
    before, gradients = weights(backbone), set(backbone.trainable())
    states, batch = states_of(backbone)
    layer: Any = backbone.decoder.layers[0]  # type: ignore[index]
    with suppress(Stopped), states.replaying(batch):
        assert torch.equal(layer(torch.ones(1, 1)), torch.ones(1, 1))  # it stands in
        assert weights(backbone).keys() == before.keys()
        raise Stopped
    assert not any("forward" in vars(module) for module in backbone.modules())
    assert same(weights(backbone), before)
    assert set(backbone.trainable()) == gradients


def test_states_above_the_limit_are_not_cached_and_a_note_says_so(tmp_path: Path) -> None:
    data = ContinualDataModule(tiny_tasks(TASKS, ROWS), batch_size=4)
    backbone = tiny_backbone()
    data.begin(backbone, 0, data.tasks[0], data.tasks[0].train)
    size = sum(data.rows.lengths) * 32 * 4  # type: ignore[union-attr]  # tokens x width x bytes
    BlockExpansion(groups=2).setup(backbone)
    tokens = torch.cat([batch.input_ids[batch.attention_mask > 0] for batch in data.batches()])
    assert states_size(constant_parts(backbone), tokens) == size
    for gb, used in ((size / 1e9, size), ((size - 1) / 1e9, 0)):
        display, folder = Notes(), tmp_path / str(used)
        learn(BlockExpansion(groups=2), folder, gb=gb, display=display)
        assert RunFolder(folder).environment()["frozen_states_bytes"]["task_0"] == used
        told = "are computed once" if used else f"is more than data.frozen_states_gb={gb:g}"
        assert sum(told in line for line in display.told) >= 1


@pytest.mark.parametrize("settings", [{"max_epochs": 1}, {"max_epochs": 3, "limit_train_batches": 1}])
def test_a_single_epoch_uses_no_cache(tmp_path: Path, settings: dict[str, Any]) -> None:
    learn(BlockExpansion(groups=2), tmp_path, **settings)
    assert "frozen_states_bytes" not in RunFolder(tmp_path).environment()
