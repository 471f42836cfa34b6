"""Added tokens with their rows and saved folders, and activation checkpointing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers.studies import study, weights
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, AutoTokenizer

from strategies import CALM, BlockExpansion, DepthUpScaling, LoRA, SeqFT
from workbench.backbone import Backbone
from workbench.backbone.loading import NOISE, blocks, checkpoint_blocks
from workbench.config import parse
from workbench.report import export
from workbench.runtime.seeding import seed_all
from workbench.strategy import Composition, ContinualStrategy
from workbench.study import Study
from workbench.testing.conformance import check_strategy
from workbench.testing.tiny import tiny_backbone, tiny_tasks
from workbench.train.activation_cache import FrozenStates, constant_parts

ADDING_TOKENS = '''
"""Methods that add a token in `setup` and one before the second task, each in its own way."""
from strategies import LoRA
from workbench.strategy import ContinualStrategy


class Adds(ContinualStrategy):
    reference = "none"

    def __init__(self) -> None:
        super().__init__()
        self.begun = 0

    def add(self, backbone, token):
        backbone.add_tokens([token])

    def setup(self, backbone):
        self.add(backbone, "Answer:")

    def before_task(self, backbone, task, batches):
        self.begun += 1
        if self.begun == 2:
            self.add(backbone, task.name[:3])


class AddsByHand(Adds):
    def add(self, backbone, token):
        backbone.tokenizer.add_tokens([token])
        backbone.model.resize_token_embeddings(len(backbone.tokenizer))


class Forgets(Adds):
    def add(self, backbone, token):
        backbone.tokenizer.add_tokens([token])


class AddsUnderLoRA(LoRA):
    """Trains the embeddings beside the adapters."""

    def setup(self, backbone):
        backbone.add_tokens(["Answer:"])
        super().setup(backbone)
        backbone.model.get_input_embeddings().requires_grad_(True)
'''
KINDS: list[dict[str, Any]] = [{}, {"tie_word_embeddings": True}, {"vocab_size": 1300}, {"dtype": torch.bfloat16}]
ROWS = Dataset.from_list([{"prompt": "one <a> two <b>", "answer": "<a>"}])


@pytest.fixture
def methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of methods that worker processes can import as well."""
    (tmp_path / "adding.py").write_text(ADDING_TOKENS, encoding="utf-8")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    sys.modules.pop("adding", None)
    return __import__("adding")


def named(*names: str) -> dict[str, Any]:
    """Strategies of that module, as a YAML names them."""
    return {name.lower(): {"class_path": f"adding.{name}"} for name in names}


@pytest.mark.parametrize("changes", KINDS)
def test_a_new_row_is_the_mean_of_the_others_with_a_little_noise(changes: dict[str, Any]) -> None:
    backbone = tiny_backbone(**changes)
    before, size = weights(backbone), len(backbone.tokenizer)
    backbone.model.get_output_embeddings().requires_grad_(False)
    torch.manual_seed(3)
    assert backbone.add_tokens(["<a>", "Answer:", "<a>"]) == [size, size + 1, size]
    torch.manual_seed(3)
    noise = [torch.randn(2, 32) for _ in range(2)]
    after = weights(backbone)
    rows = max(size + 2, changes.get("vocab_size", 0))
    tied = "tie_word_embeddings" in changes
    for name, drawn in {"model.embed_tokens.weight": noise[0], "lm_head.weight": noise[0 if tied else 1]}.items():
        old = before[name][:size].float()
        expected = old.mean(0) + NOISE * old.std(0) * drawn
        torch.testing.assert_close(after[name][size : size + 2], expected.to(after[name].dtype))
        assert torch.equal(after.pop(name)[:size], before.pop(name)[:size])
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert backbone.model.config.vocab_size == backbone.model.get_input_embeddings().num_embeddings == rows
    assert not backbone.model.get_output_embeddings().weight.requires_grad
    assert backbone.model.get_input_embeddings().weight.requires_grad is not tied
    assert backbone.add_tokens("<a>") == [size]  # known by now


@pytest.mark.parametrize("changes", KINDS)
def test_a_saved_model_has_the_new_tokens_in_plain_transformers(changes: dict[str, Any], tmp_path: Path) -> None:
    backbone = tiny_backbone(**changes)
    backbone.add_tokens(["<a>", "<b>"])
    backbone.add_adapter("one", r=2, target_modules=["q_proj"])  # which comes after them
    backbone.save(tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    tokens = AutoTokenizer.from_pretrained(tmp_path / "model")("one <a> two <b>", return_tensors="pt").input_ids
    assert {1191, 1192} <= set(tokens.flatten().tolist())
    assert torch.equal(tokens[0], torch.tensor(backbone.tokenizer("one <a> two <b>").input_ids))
    with torch.no_grad(), backbone.evaluating(), backbone.merged():
        assert torch.equal(plain(tokens).logits, backbone.model(tokens).logits)
    again = Backbone.load(tmp_path / "model")
    assert again.encode(ROWS)["input_ids"][:] == backbone.encode(ROWS)["input_ids"][:]


def by_hand(backbone: Backbone) -> None:
    backbone.tokenizer.add_tokens(["<b>"])
    backbone.model.resize_token_embeddings(len(backbone.tokenizer))


@pytest.mark.parametrize("add", [lambda backbone: backbone.add_tokens(["<b>"]), by_hand])
def test_restore_resets_the_tokenizer_and_the_encoders_cache_stays_right(
    add: Callable[[Backbone], object],
) -> None:
    def encoded(backbone: Backbone) -> list[list[int]]:
        tokens: list[list[int]] = backbone.encode(ROWS)["input_ids"][:]
        return tokens

    plain, backbone = tiny_backbone(), tiny_backbone()
    backbone.add_tokens(["<a>"])  # as many tokens as the other way has
    other = encoded(backbone)
    backbone.tokenizer.chat_template = backbone.tokenizer.pad_token = "<a>"
    backbone.restore()
    assert encoded(backbone) == encoded(plain) != other
    assert backbone.tokenizer.get_vocab() == plain.tokenizer.get_vocab()
    assert (backbone.tokenizer.chat_template, backbone.pad_id) == (plain.tokenizer.chat_template, plain.pad_id)
    add(backbone)
    own = tiny_backbone()
    own.add_tokens(["<b>"])
    assert encoded(backbone) == encoded(own) != other
    backbone.restore()
    assert encoded(backbone) == encoded(plain)
    assert weights(backbone).keys() == weights(plain).keys()
    assert all(torch.equal(value, weights(plain)[name]) for name, value in weights(backbone).items())


def scores(folder: Path) -> dict[str, bytes]:
    """Scores, losses, answers and weights of a study's runs."""
    patterns = ("scores.csv", "nll.csv", "train.csv", "predictions/*.jsonl", "model/*.safetensors", "model/*.json")
    files = [file for pattern in patterns for file in folder.glob(f"*/*/*/{pattern}")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(files)}


def test_runs_after_the_plan_and_runs_of_workers_end_with_the_same_bytes(
    methods: Any, model_folder: Path, task_folder: Path, tmp_path: Path
) -> None:
    strategies = {
        **named("Adds", "AddsByHand", "AddsUnderLoRA"),
        "lora": [{"class_path": "adding.Adds"}, {"class_path": "strategies.LoRA"}],
        "seqft": {"class_path": "strategies.SeqFT"},
    }
    raw = study(model_folder, task_folder, tmp_path / "runs", strategies=strategies)
    here = Study(parse(raw))
    here.run()
    assert here.failures == []
    workers = {"class_path": "workbench.executors.Workers", "init_args": {"count": 1}}
    beside = Study(parse({**raw, "name": "beside", "executor": workers}))
    beside.run()
    expected = scores(here.folder)
    assert len([name for name in expected if name.endswith(".safetensors")]) == 5
    assert scores(beside.folder) == expected
    alone = Study(parse({**raw, "name": "alone", "strategies": {"seqft": strategies["seqft"]}}))
    alone.run()
    assert scores(alone.folder) == {name: file for name, file in expected.items() if name.startswith("seqft")}
    for name, added in (("adds", 2), ("addsbyhand", 2), ("addsunderlora", 1), ("lora", 2), ("seqft", 0)):
        saved = Backbone.load(here.folder / name / "default/seed-0/model")
        assert (len(saved.tokenizer), saved.model.config.vocab_size) == (1191 + added, 1191 + added)
    folder = export(here.folder / "lora", tmp_path / "out")
    adapter = json.loads((folder / "adapters" / "default" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] is None  # over the base it would lack the new rows
    assert "not the base." in (folder / "README.md").read_text(encoding="utf-8")


def test_the_rows_of_new_tokens_train_only_if_the_method_trains_the_embeddings(methods: Any) -> None:
    def learnt(strategy: Any) -> Tensor:
        """Change of the embedding of "Answer:" over some steps."""
        backbone = tiny_backbone()
        strategy.setup(backbone)
        row = backbone.model.get_input_embeddings().weight[1191].detach().clone()
        rows = Dataset.from_list([{"prompt": "x\nAnswer:", "answer": "b"}])
        batch = backbone.collate(backbone.encode(rows).to_list())
        optimizer = torch.optim.AdamW(backbone.trainable().values(), lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            backbone(batch).loss.backward()
            optimizer.step()
        return backbone.model.get_input_embeddings().weight[1191].detach() - row

    assert learnt(methods.AddsUnderLoRA()).abs().min() > 0
    assert learnt(Composition([methods.Adds(), LoRA()])).abs().max() == 0


@pytest.mark.parametrize("name", ["Adds", "AddsByHand", "AddsUnderLoRA"])
def test_a_method_that_adds_tokens_passes_every_check(methods: Any, name: str) -> None:
    """Among the checks: a resumed run is bitwise equal to an uninterrupted one."""
    changes: dict[str, Any] = {"tie_word_embeddings": True} if name == "Adds" else {}
    passed = check_strategy(getattr(methods, name), lambda: tiny_backbone(**changes))
    assert "`restore` brings back the model and the tokenizer as loaded." in passed


def test_tokens_without_rows_are_refused_before_the_first_step(
    methods: Any, model_folder: Path, task_folder: Path, tmp_path: Path
) -> None:
    raw = study(model_folder, task_folder, tmp_path / "runs", strategies=named("Forgets"))
    with pytest.raises(
        ValueError, match=r"^strategies.forgets: The tokenizer has 1192 tokens and the model only 1191 "
    ):
        Study(parse(raw)).run()
    assert not (tmp_path / "runs").exists()


def test_adding_tokens_to_a_composition_or_an_adapted_head_is_refused() -> None:
    adapted, joined = tiny_backbone(), tiny_backbone()
    adapted.add_adapter("one", r=2, target_modules=["lm_head"])
    CALM(augmenting="mini", connections=1).setup(joined)
    for backbone in (adapted, joined):
        with pytest.raises(ValueError, match="Add them before that"):
            backbone.add_tokens(["<a>"])
        assert len(backbone.tokenizer) == 1191


STRATEGIES: dict[str, Callable[[], ContinualStrategy]] = {
    "seqft": SeqFT,
    "lora": partial(LoRA, dropout=0.3),
    "block_expansion": partial(BlockExpansion, groups=2),
    "depth_up_scaling": partial(DepthUpScaling, dropped=1),
    "calm": lambda: CALM(tiny_backbone(seed=3), connections=2),
}


def stepped(method: str, checkpointed: bool) -> tuple[Backbone, list[float], int]:
    """A tiny model after three steps of a method, the losses, and the bytes saved for the backward pass."""
    seed_all(0)
    backbone = tiny_backbone()
    if checkpointed:
        checkpoint_blocks(backbone.model)
    STRATEGIES[method]().setup(backbone)
    rows = backbone.encode(tiny_tasks()[0].train, 3).to_list()
    batch, kept, losses = backbone.collate(rows[:4]), {}, []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    optimizer = torch.optim.SGD(backbone.trainable().values(), lr=0.1)
    for _ in range(3):
        kept.clear()
        optimizer.zero_grad()
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = backbone(batch).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return backbone, losses, sum(kept.values())


@pytest.mark.parametrize("method", STRATEGIES)
def test_checkpointed_blocks_give_the_same_bits_with_less_memory(method: str) -> None:
    plain, losses, kept = stepped(method, checkpointed=False)
    checkpointed, again, less = stepped(method, checkpointed=True)
    assert losses == again
    assert losses[0] != losses[-1]
    assert less == kept if method == "calm" else less < kept / 2  # a composition's models run in evaluation mode
    for (name, value), other in zip(plain.model.named_parameters(), checkpointed.model.parameters(), strict=True):
        assert torch.equal(value, other), name


def test_cached_states_of_frozen_layers_work_with_checkpointed_blocks() -> None:
    losses = []
    for checkpointed in (False, True):
        backbone = tiny_backbone()
        if checkpointed:
            checkpoint_blocks(backbone.model)
        BlockExpansion(groups=2).setup(backbone)
        batch = backbone.collate(backbone.encode(tiny_tasks()[0].train, 3).to_list()[:4])
        states = FrozenStates(backbone, constant_parts(backbone), [batch])
        with states.replaying(batch):
            output = backbone(batch)
        output.loss.backward()
        gradients = torch.cat(
            [value.grad.flatten() for value in backbone.trainable().values() if value.grad is not None]
        )
        losses.append((float(output.loss.detach()), gradients))
    assert losses[0][0] == losses[1][0]
    assert torch.equal(losses[0][1], losses[1][1])
    assert bool(losses[0][1].any())


def test_restore_keeps_activation_checkpointing(model_folder: Path) -> None:
    backbone = Backbone.load(model_folder, activation_checkpointing=True)
    assert all(block.gradient_checkpointing for block in blocks(backbone))
    backbone.restore()
    assert all(block.gradient_checkpointing for block in blocks(backbone))
    assert not any(block.gradient_checkpointing for block in blocks(Backbone.load(model_folder)))


def test_a_study_with_activation_checkpointing_ends_with_the_same_scores(
    make: Callable[..., Study], model_folder: Path
) -> None:
    files = []
    for name, checkpointed in (("plain", False), ("checkpointed", True)):
        study = make(name=name, backbone={"path": str(model_folder), "activation_checkpointing": checkpointed})
        study.run()
        files.append([path.read_bytes() for path in sorted(study.folder.glob("*/*/*/*.csv")) if path.stem != "costs"])
    assert files[0] == files[1]
    assert files[0]
