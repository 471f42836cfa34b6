"""Soft prompts: the same vectors in the loss, the likelihood, decoding, unpadded training, and what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from workbench.backbone import Backbone, Selector, soft_embedding, unpadded
from workbench.backbone.adapters import plain_state_dict
from workbench.backbone.encoding import TextPolicy
from workbench.composition import CalmForCausalLM
from workbench.testing.tiny import tiny_backbone, tiny_corpus, tiny_tasks

TASK = tiny_tasks(1)[0]
PROMPTS = TASK.test["prompt"][:4]


class ByTheFirstFeature(Selector):
    """Give a row the first or the second half of four vectors."""

    def __init__(self) -> None:
        super().__init__(slots=2, feature="mean")
        self.seen: list[Tensor] = []
        self.border = torch.tensor(0.0)

    def forward(self, features: Tensor) -> Tensor:
        self.seen.append(features)
        half = (features[:, 0] > self.border).long()
        return torch.stack([2 * half, 2 * half + 1], dim=1)


def vectors(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(seed)) * 0.2


def prompted(count: int = 3, **changes: Any) -> Backbone:
    backbone = tiny_backbone(**changes)
    backbone.freeze()
    backbone.put_before(backbone.add_prompt("one", vectors(count)))
    return backbone


@torch.no_grad()
def logits_by_hand(backbone: Backbone, before: Tensor, token_ids: list[int]) -> Tensor:
    """Logits (time, vocabulary) of a plain model that reads vectors before a row's embeddings."""
    plain = tiny_backbone(tie_word_embeddings=backbone.model.config.tie_word_embeddings).model.eval()
    embedded = torch.cat([before, plain.get_input_embeddings()(torch.tensor(token_ids))])
    logits: Tensor = plain(inputs_embeds=embedded[None], use_cache=False).logits[0, len(before) :]
    return logits


@pytest.mark.parametrize("tied", [False, True])
def test_loss_likelihood_and_answer_are_those_of_a_model_that_reads_the_vectors_first(tied: bool) -> None:
    backbone = prompted(tie_word_embeddings=tied)
    encoded = backbone.encode(TASK.test.select(range(4)), TASK.max_new_tokens)
    rows = encoded.to_list()
    expected, answers = [], []
    for row in rows:
        token_ids, start = row["input_ids"][3:], row["prompt_length"] - 3
        logits = logits_by_hand(backbone, vectors(3), token_ids).log_softmax(-1)
        expected.append(-logits[range(start - 1, len(token_ids) - 1), token_ids[start:]].sum())
        answer = list(token_ids[:start])
        for _ in range(TASK.max_new_tokens):
            answer.append(int(logits_by_hand(backbone, vectors(3), answer)[-1].argmax()))
        answers.append(backbone.encoder.decode(answer[start:]))
    nats = torch.stack(expected)
    torch.testing.assert_close(backbone.nats(encoded)[0].float(), nats, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(backbone(backbone.collate(rows)).loss_sum, nats.sum(), rtol=1e-5, atol=1e-5)
    assert backbone.generate(PROMPTS, TASK.max_new_tokens) == answers
    once, (together, _) = backbone.generate_with_nats(encoded, TASK.max_new_tokens)
    assert once == answers
    torch.testing.assert_close(together.float(), nats, rtol=1e-5, atol=1e-5)


def test_only_the_prompt_trains_and_the_head_has_no_row_for_it() -> None:
    backbone = prompted()
    assert list(backbone.trainable()) == ["model.embed_tokens.prompts.one.vectors"]
    batch = backbone.collate(backbone.encode(TASK.train, TASK.max_new_tokens).to_list())
    output = backbone(batch)
    assert output.logits().shape[1] == len(backbone.tokenizer)
    output.loss.backward()
    gradient = backbone.trainable()["model.embed_tokens.prompts.one.vectors"].grad
    assert gradient is not None
    assert gradient.abs().sum(1).gt(0).all()


def test_a_tied_weight_stays_tied_and_is_saved_without_prompts(tmp_path: Path) -> None:
    backbone = prompted(tie_word_embeddings=True)
    assert backbone.model.get_output_embeddings().weight is backbone.model.get_input_embeddings().weight
    plain = tiny_backbone(tie_word_embeddings=True).model.state_dict()
    state = plain_state_dict(backbone.model)
    assert state.keys() == plain.keys()
    assert all(torch.equal(state[name], plain[name]) for name in plain)


def test_prompts_do_not_count_towards_the_limit_and_take_positions() -> None:
    text = TextPolicy(max_length=12)
    plain, backbone = tiny_backbone(text=text), tiny_backbone(text=text)
    backbone.put_before(backbone.add_prompt("one", vectors(5)))
    before, after = (each.encode(TASK.train, TASK.max_new_tokens).to_list() for each in (plain, backbone))
    size = len(plain.tokenizer)
    for row, longer in zip(before, after, strict=True):
        assert longer["input_ids"] == [*range(size, size + 5), *row["input_ids"]]
        assert longer["prompt_length"] == row["prompt_length"] + 5
    backbone.put_before(backbone.add_prompt("two", vectors(245)) + backbone.encoder.prefix)
    with pytest.raises(ValueError, match=r"the model has 256 positions, of which soft prompts take 250"):
        backbone.encode(TASK.train, 3)
    backbone.restore()
    assert backbone.encode(TASK.train, TASK.max_new_tokens).to_list() == before


@pytest.mark.parametrize("packed", [False, True])
def test_a_corpus_has_the_same_labels_behind_a_prompt(packed: bool) -> None:
    corpus = tiny_corpus().train
    plain, backbone = tiny_backbone(), prompted(4)
    before, after = (each.encode(corpus, packed=packed).to_list() for each in (plain, backbone))
    for row, longer in zip(before, after, strict=True):
        assert longer["input_ids"][4:] == row["input_ids"]
        assert longer["prompt_length"] == 5
    assert torch.equal(plain.nats(plain.encode(corpus))[1] - 1, backbone.nats(backbone.encode(corpus))[1] - 1)


def test_unpadded_training_reads_prompts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpadded, "LEAST_WIDTH", 1)
    monkeypatch.setattr(unpadded, "LEAST_PADDING", 0.0)
    backbone = prompted()
    rows = backbone.encode(TASK.train, TASK.max_new_tokens).to_list()
    rows[0] = {**rows[0], "input_ids": rows[0]["input_ids"][:4] + rows[0]["input_ids"][-6:], "prompt_length": 8}
    batch = backbone.collate(rows)
    assert unpadded.lay_end_to_end(batch, backbone.decoder) is not None
    short = backbone(batch).token_nats
    monkeypatch.setattr(unpadded, "LEAST_WIDTH", 10**9)
    assert unpadded.lay_end_to_end(batch, backbone.decoder) is None
    torch.testing.assert_close(short, backbone(batch).token_nats, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_plain_peft_reads_the_saved_prefix(tmp_path: Path) -> None:
    backbone = prompted(2)
    second = backbone.add_prompt("two", vectors(3, seed=1))
    backbone.put_before(second + backbone.encoder.prefix)
    backbone.save(tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    loaded = PeftModel.from_pretrained(plain, tmp_path / "model" / "prompts" / "prefix").eval()
    row = [1, 40, 7, 300, 12]
    expected = logits_by_hand(backbone, torch.cat([vectors(3, seed=1), vectors(2)]), row)
    with torch.no_grad():
        logits = loaded(input_ids=torch.tensor([row])).logits[0, -5:]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    state = load_file(tmp_path / "model" / "prompts" / "soft_prompts.safetensors")
    assert {name: value.shape[0] for name, value in state.items()} == {
        "prompts.one.vectors": 2,
        "prompts.two.vectors": 3,
    }


def test_the_network_starts_without_effect_and_is_baked_in() -> None:
    backbone = tiny_backbone()
    backbone.freeze()
    backbone.put_before(backbone.add_prompt("one", vectors(3), bottleneck=5))
    embedding = soft_embedding(backbone.model)
    assert embedding is not None
    prompt: Any = embedding.prompts["one"]
    assert torch.equal(prompt(), vectors(3))
    for value in prompt.network.parameters():
        value.data = torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel()))
    first, second = prompt.network[0], prompt.network[2]
    hidden = (vectors(3) @ first.weight.T + first.bias).clamp(min=0)
    expected = vectors(3) + hidden @ second.weight.T + second.bias
    torch.testing.assert_close(prompt(), expected)
    assert len(backbone.trainable()) == 5
    prompt.fix()
    torch.testing.assert_close(prompt(), expected)
    assert backbone.trainable() == {}


def chosen() -> tuple[Backbone, ByTheFirstFeature]:
    backbone, selector = tiny_backbone(), ByTheFirstFeature()
    backbone.freeze()
    backbone.add_prompt("pool", vectors(4))
    backbone.choose_prompts(selector)
    return backbone, selector


def test_each_row_gets_the_prompt_that_the_plain_models_reading_of_its_prompt_chooses() -> None:
    backbone, selector = chosen()
    plain = tiny_backbone()
    encoded, bare = (each.encode(TASK.test, TASK.max_new_tokens) for each in (backbone, plain))
    expected = []
    for row in bare.to_list():
        with torch.no_grad():
            prompt = torch.tensor([row["input_ids"][: row["prompt_length"]]])
            expected.append(plain.decoder.eval()(input_ids=prompt).last_hidden_state[0].mean(0))
    selector.border = torch.stack(expected)[:, 0].mean()
    batch = backbone.collate(encoded.to_list())
    loss = backbone(batch).token_nats
    torch.testing.assert_close(selector.seen[0], torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert {bool(feature[0] > selector.border) for feature in expected} == {False, True}
    nats = []
    for row, feature in zip(bare.to_list(), expected, strict=True):
        before = vectors(4)[2:] if feature[0] > selector.border else vectors(4)[:2]
        logits = logits_by_hand(backbone, before, row["input_ids"]).log_softmax(-1)
        start = row["prompt_length"]
        nats.append(-logits[range(start - 1, len(row["input_ids"]) - 1), row["input_ids"][start:]])
    torch.testing.assert_close(loss, torch.cat(nats), rtol=1e-4, atol=1e-5)
    answers, (once, _) = backbone.generate_with_nats(encoded, TASK.max_new_tokens)
    assert answers == backbone.generate(TASK.test["prompt"][:], TASK.max_new_tokens)
    torch.testing.assert_close(once, backbone.nats(encoded)[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(once.float(), torch.stack([part.sum() for part in nats]), rtol=1e-4, atol=1e-4)


def test_a_row_is_answered_alone_as_among_others() -> None:
    backbone, _ = chosen()
    together = backbone.generate(PROMPTS, 3)
    assert [backbone.generate([prompt], 3)[0] for prompt in PROMPTS] == together
    options = ["a", "b", "c"]
    likeliest = backbone.likeliest(PROMPTS, options, 3)
    assert [backbone.likeliest([prompt], options, 3)[0] for prompt in PROMPTS] == likeliest


def test_a_process_without_a_row_fills_no_slot() -> None:
    backbone, selector = chosen()
    assert backbone(backbone.collate([])).count == 0
    assert selector.seen == []


def test_where_no_prompt_can_be_added() -> None:
    backbone = prompted()
    with pytest.raises(ValueError, match=r"The model has a soft prompt 'one' already\."):
        backbone.add_prompt("one", vectors(2))
    with pytest.raises(ValueError, match=r"Tokens cannot be added"):
        backbone.add_tokens(["<new>"])
    with pytest.raises(ValueError, match=r"There is no soft prompt to choose from\."):
        tiny_backbone().choose_prompts(ByTheFirstFeature())
    other = tiny_backbone()

    class Own(nn.Embedding):
        pass

    other.model.set_input_embeddings(Own(4, 32))
    with pytest.raises(ValueError, match=r"Soft prompts need plain embeddings, and the model has a Own\."):
        other.add_prompt("one", vectors(2))
    other.model = CalmForCausalLM.compose(tiny_backbone().model, [tiny_backbone().model], 1)
    with pytest.raises(ValueError, match="Soft prompts cannot be added to a composition"):
        other.add_prompt("one", vectors(2))
