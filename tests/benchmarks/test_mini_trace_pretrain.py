"""The shipped backbones of MiniTrace, and the recipe that made them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from benchmarks.mini_trace import MiniTrace, pretrain
from benchmarks.mini_trace.mix import FIRST
from workbench.backbone import Backbone
from workbench.model_folder import SHIPPED

MINI = SHIPPED["mini"]
PROBE_BOUND = 0.98
"""In pretrain.log the second stage ends at 1.00 on each of the four; here on rows of another seed, by generation."""


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(MINI)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The recipe sets threads and seeds for its own process; other tests keep theirs."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)


def test_mini_is_six_layers_deep_and_bfloat16() -> None:
    config = json.loads((MINI / "config.json").read_text(encoding="utf-8"))
    assert (config["num_hidden_layers"], config["model_type"]) == (6, "llama")
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert {tensor.dtype for tensor in load_file(MINI / "model.safetensors").values()} == {torch.bfloat16}


def test_config_and_tokenizer_agree_about_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    config = json.loads((MINI / "config.json").read_text(encoding="utf-8"))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert config[name] == getattr(tokenizer, name)
    assert config["vocab_size"] == len(tokenizer)


@torch.no_grad()
def test_the_mini_backbone_has_the_probes_skills(tokenizer: PreTrainedTokenizerBase) -> None:
    model: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(MINI, dtype=torch.float32)
    shares = []
    for probe in MiniTrace(seed=7).probes:
        batch = tokenizer(list(probe.test["prompt"]), padding=True, padding_side="left", return_tensors="pt")
        made = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=probe.max_new_tokens,
            do_sample=False,
        )
        texts = tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        right = [text == answer for text, answer in zip(texts, probe.test["answer"], strict=True)]
        shares.append(sum(right) / len(right))
    assert sum(shares) / len(shares) >= PROBE_BOUND, shares


@pytest.mark.parametrize(("name", "bytes_at_most"), [("mini", 4_000_000), ("micro", 1_000_000)])
def test_the_shipped_models_share_a_tokenizer_and_stay_small(name: str, bytes_at_most: int) -> None:
    folder = SHIPPED[name]
    assert sum(file.stat().st_size for file in folder.iterdir()) <= bytes_at_most
    assert (folder / "tokenizer.json").read_bytes() == (MINI / "tokenizer.json").read_bytes()
    assert Backbone.load(name).model.config.vocab_size == len(AutoTokenizer.from_pretrained(MINI))


def stages_made_short(folder: Path) -> None:
    """Every stage of the recipe, a few steps of it."""
    short = [replace(stage, steps=6) for stage in (pretrain.FIRST_STAGE, pretrain.SECOND_STAGE, pretrain.MICRO_STAGE)]
    pretrain.pretrain_first(folder / "first", short[0], log=lambda line: None)
    pretrain.pretrain_second(folder / "first", folder / "mini", short[1], log=lambda line: None)
    pretrain.pretrain_micro(folder / "mini", folder / "micro", short[2], log=lambda line: None)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_the_recipe_makes_the_same_bytes_twice_and_the_shipped_tokenizer(tmp_path: Path) -> None:
    for name in ("once", "again"):
        stages_made_short(tmp_path / name)
    for stage in ("first", "mini", "micro"):
        for file in ("model.safetensors", "tokenizer.json", "config.json"):
            made = [(tmp_path / name / stage / file).read_bytes() for name in ("once", "again")]
            assert made[0] == made[1], (stage, file)
    made_of, shipped = (
        json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
        for folder in (tmp_path / "once" / "mini", MINI)
    )
    assert (made_of["vocab"], made_of["merges"]) == (shipped["vocab"], shipped["merges"])


def test_a_wider_vocabulary_leaves_the_model_as_it_was_on_known_tokens() -> None:
    """Logits of the old tokens are those of the old model, and a new token begins as the mean of its parts."""
    known = pretrain.build_tokenizer(FIRST, 400)
    wider = pretrain.build_tokenizer(FIRST, 500)
    torch.manual_seed(1)
    model = pretrain.build_model(known, pretrain.MINI)
    grown = pretrain.with_vocabulary(model, known, wider)
    old, new = known.get_vocab(), wider.get_vocab()
    shared = sorted(old.keys() & new.keys(), key=old.__getitem__)
    before, after = torch.tensor([old[token] for token in shared]), torch.tensor([new[token] for token in shared])
    ids = torch.randint(0, len(shared), (2, 9))
    with torch.no_grad():
        expected = model(input_ids=before[ids]).logits[..., before]
        torch.testing.assert_close(grown(input_ids=after[ids]).logits[..., after], expected)
    added = sorted(new.keys() - old.keys())
    assert added
    rows = model.get_input_embeddings().weight
    parts = [part.id for part in known.backend_tokenizer.model.tokenize(added[0])]
    assert len(parts) > 1
    torch.testing.assert_close(grown.get_input_embeddings().weight[new[added[0]]], rows[parts].mean(0))
