"""Loss, generation, likelihood and modes of the backbone, compared with plain transformers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional

from strategies import CALM
from workbench.backbone import Backbone, Batch
from workbench.backbone.batch import IGNORED, collate, passes
from workbench.testing.tiny import tiny_backbone

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
WORDS = "the a cat dog sat on mat red big sky of blue river while seven small birds sang".split()  # noqa: SIM905
ROWS = [{"prompt": " ".join(WORDS[: 2 + 3 * index]), "answer": " ".join(WORDS[index:6])} for index in range(5)]


def batch_of(backbone: Backbone, rows: list[dict[str, str]]) -> Batch:
    return backbone.collate(backbone.encode(Dataset.from_list(rows)).to_list())


def plain_nats(backbone: Backbone, batch: Batch) -> Tensor:
    """Negative log-likelihood summed over the labels, from all logits of transformers."""
    logits = backbone.model(batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
    labels = batch.labels[:, 1:]
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")


def mixed_prompts(count: int) -> list[str]:
    """Prompts of 1 to 29 words, no two alike, lengths not in order."""
    return [
        " ".join(WORDS[(index * 5 + step) % len(WORDS)] for step in range(1 + index * 7 % 29)) for index in range(count)
    ]


@torch.no_grad()
def greedy_by_hand(backbone: Backbone, prompt: str, steps: int) -> tuple[list[int], list[float]]:
    """Greedy tokens without a cache, and the gap between the two best logits at each step."""
    tokens = backbone.tokenizer(prompt).input_ids
    end, answer, gaps = backbone.tokenizer.eos_token_id, [], []
    for _ in range(steps):
        best = backbone.model(torch.tensor([tokens + answer]), use_cache=False).logits[0, -1].topk(2)
        gaps.append(float(best.values[0] - best.values[1]))
        if (token := int(best.indices[0])) == end:
            break
        answer.append(token)
    return answer, gaps


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_equals_the_one_from_all_logits(family: str) -> None:
    backbone = tiny_backbone(family)
    batch = batch_of(backbone, ROWS)
    output = backbone(batch)
    expected = plain_nats(backbone, batch)
    labelled = int((batch.labels != IGNORED).sum())
    assert output.count == labelled == sum(len(backbone.tokenizer(row["answer"]).input_ids) for row in ROWS)
    torch.testing.assert_close(output.loss_sum, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(output.loss, expected / labelled, rtol=1e-6, atol=0)
    assert torch.equal(output.targets, batch.labels[batch.labels != IGNORED])


@pytest.mark.parametrize("family", FAMILIES)
def test_sum_and_count_add_up_over_any_split_of_the_rows(family: str) -> None:
    backbone = tiny_backbone(family)
    whole = backbone(batch_of(backbone, ROWS))
    parts = [backbone(batch_of(backbone, rows)) for rows in (ROWS[:1], ROWS[1:4], ROWS[4:])]
    assert sum(part.count for part in parts) == whole.count
    torch.testing.assert_close(sum(part.loss_sum for part in parts), whole.loss_sum, rtol=1e-6, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_does_not_change_the_loss(family: str) -> None:
    backbone = tiny_backbone(family)
    encoded = backbone.encode(Dataset.from_list(ROWS)).to_list()
    together = backbone(backbone.collate(encoded))
    for index, row in enumerate(encoded):
        alone = backbone(backbone.collate([row]))
        torch.testing.assert_close(
            together.token_nats[together.sample == index], alone.token_nats, rtol=1e-5, atol=1e-6
        )
    other_filler = backbone(collate(encoded, pad_id=99))
    assert torch.equal(together.token_nats, other_filler.token_nats)


def test_the_gradient_is_that_of_the_plain_loss() -> None:
    backbone = tiny_backbone()
    batch = batch_of(backbone, ROWS)
    backbone(batch).loss_sum.backward()
    own = {name: parameter.grad.clone() for name, parameter in backbone.model.named_parameters()}
    backbone.zero_grad()
    plain_nats(backbone, batch).backward()
    for name, parameter in backbone.model.named_parameters():
        torch.testing.assert_close(own[name], parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_logits_on_demand_reproduce_the_loss() -> None:
    backbone = tiny_backbone()
    output = backbone(batch_of(backbone, ROWS))
    nats = -output.logits().log_softmax(-1)[torch.arange(output.count), output.targets]
    torch.testing.assert_close(nats, output.token_nats, rtol=1e-6, atol=1e-6)


def test_a_batch_without_a_label_has_loss_zero() -> None:
    backbone = tiny_backbone()
    batch = batch_of(backbone, ROWS)
    batch.labels.fill_(IGNORED)
    output = backbone(batch)
    assert (output.count, output.loss.item(), output.loss_sum.item()) == (0, 0.0, 0.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_equals_a_greedy_loop_without_a_cache(family: str) -> None:
    backbone = tiny_backbone(family)
    prompts = mixed_prompts(6)
    expected = [backbone.encoder.decode(greedy_by_hand(backbone, prompt, 8)[0]) for prompt in prompts]
    assert len(set(expected)) > 3
    assert backbone.generate(prompts, 8) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_the_batch_size_changes_no_answer(family: str) -> None:
    """In fp32 an answer may differ only from where the two best logits lie within 1e-4 of each other."""
    backbone, steps = tiny_backbone(family), 8
    prompts = mixed_prompts(66)
    answers = {}
    for backbone.eval_batch_size in (1, 7, 64):
        answers[backbone.eval_batch_size] = backbone.generate(prompts, steps)
    near_ties = 0
    for index, prompt in enumerate(prompts):
        if len({answers[size][index] for size in answers}) > 1:
            assert min(greedy_by_hand(backbone, prompt, steps)[1]) < 1e-4, prompt
            near_ties += 1
    assert near_ties <= 1


def test_an_answer_stops_before_the_end_token() -> None:
    """Two rows of the head are exchanged so that the third token of one prompt's answer is the end token."""
    backbone = tiny_backbone()
    prompt, other = "the cat", "seven small birds sang on"
    tokens = greedy_by_hand(backbone, prompt, 6)[0]
    assert len(tokens) == 6
    assert tokens[2] not in tokens[:2]
    head = backbone.model.lm_head.weight
    end = backbone.tokenizer.eos_token_id
    with torch.no_grad():
        head[[end, tokens[2]]] = head[[tokens[2], end]]
    assert backbone.generate([other, prompt], 6)[1] == backbone.tokenizer.decode(tokens[:2])
    assert greedy_by_hand(backbone, prompt, 6)[0] == tokens[:2]


def test_the_models_own_generation_config_is_ignored_and_unchanged() -> None:
    expected = tiny_backbone().generate(["the cat", "a dog"], 12)
    backbone = tiny_backbone()
    config = backbone.model.generation_config
    config.repetition_penalty, config.no_repeat_ngram_size, config.do_sample = 5.0, 1, True
    assert backbone.generate(["the cat", "a dog"], 12) == expected
    assert backbone.model.generation_config is config


def test_generate_without_prompts_returns_nothing() -> None:
    assert tiny_backbone().generate([], 4) == []


@pytest.mark.parametrize("training", [True, False])
def test_scoring_restores_every_modules_mode(training: bool) -> None:
    backbone = tiny_backbone()
    backbone.train(training)
    backbone.model.model.layers[1].train(not training)
    modes = [module.training for module in backbone.modules()]
    backbone.generate(["a"], 2)
    backbone.log_likelihood(["a"], ["b"])
    with pytest.raises(ZeroDivisionError), backbone.evaluating():
        _ = 1 / sum(module.training for module in backbone.modules())
    assert [module.training for module in backbone.modules()] == modes
    assert len(set(modes)) == 2


def test_scoring_uses_no_dropout() -> None:
    still, dropping = tiny_backbone(), tiny_backbone(attention_dropout=0.5)
    encoded = still.encode(Dataset.from_list(ROWS))
    assert torch.equal(dropping.nats(encoded)[0], still.nats(encoded)[0])
    assert not torch.equal(
        dropping(dropping.collate(encoded.to_list())).loss, still(still.collate(encoded.to_list())).loss
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_log_likelihood_equals_a_sum_over_tokens(family: str) -> None:
    """Σ log p(token | all before it) over the answer's tokens and the end token, one row at a time."""
    backbone = tiny_backbone(family)
    end = backbone.tokenizer.eos_token_id
    expected = []
    for row in ROWS:
        prompt = backbone.tokenizer(row["prompt"]).input_ids
        answer = [*backbone.tokenizer(row["answer"], add_special_tokens=False).input_ids, end]
        with torch.no_grad():
            log_probabilities = backbone.model(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
        places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
        expected.append(sum(float(log_probabilities[at, token]) for at, token in zip(places, answer, strict=True)))
    backbone.eval_batch_size = 2
    measured = backbone.log_likelihood([row["prompt"] for row in ROWS], [row["answer"] for row in ROWS])
    torch.testing.assert_close(measured, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-5)


def test_forward_passes_are_limited_in_rows_and_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.backbone.batch.MAX_PASS_TOKENS", 20)
    assert list(passes([4, 9, 30, 10, 2, 3], 3)) == [[2], [3, 1], [0, 5, 4]]
    assert list(passes([4, 9, 30, 10, 2, 3], 1)) == [[2], [3], [1], [0], [5], [4]]
    assert list(passes([], 3)) == []


def test_batching_changes_a_likelihood_by_rounding_only(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone()
    encoded = backbone.encode(Dataset.from_list(ROWS))
    nats, counts = backbone.nats(encoded)
    monkeypatch.setattr("workbench.backbone.batch.MAX_PASS_TOKENS", 1)
    alone = backbone.nats(encoded)
    torch.testing.assert_close(alone[0], nats, rtol=1e-6, atol=0)
    assert torch.equal(alone[1], counts)


def test_every_token_of_a_long_text_but_its_first_is_counted_once() -> None:
    backbone = tiny_backbone(max_position_embeddings=16)
    text = " ".join([*WORDS, *WORDS])
    tokens = [*backbone.tokenizer(text).input_ids, backbone.tokenizer.eos_token_id]
    nats, counts = backbone.nats(backbone.encode(Dataset.from_dict({"text": [text]})))
    expected = [min(15, len(tokens) - 1 - start) for start in range(0, len(tokens) - 1, 15)]
    assert counts.tolist() == expected
    assert sum(expected) == len(tokens) - 1
    with torch.no_grad():
        for part, start in enumerate(range(0, len(tokens) - 1, 15)):
            window = torch.tensor([tokens[start : start + 16]])
            loss = functional.cross_entropy(backbone.model(window).logits[0, :-1], window[0, 1:], reduction="sum")
            assert nats[part].item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_a_texts_first_token_is_counted_without_a_begin_token(packed: bool) -> None:
    """Qwen's tokenizer adds no begin token: then an end token precedes the text, in generation as well."""
    backbone = tiny_backbone("qwen2")
    backbone.tokenizer.add_bos_token = False
    end = backbone.tokenizer.eos_token_id
    tokens = [end, *backbone.tokenizer("a cat").input_ids, end]
    nats, counts = backbone.nats(backbone.encode(Dataset.from_dict({"text": ["a cat"]}), packed=packed))
    assert counts.tolist() == [len(tokens) - 1]
    with torch.no_grad():
        logits = backbone.model(torch.tensor([tokens])).logits[0, :-1]
    expected = functional.cross_entropy(logits, torch.tensor(tokens[1:]), reduction="sum").item()
    assert nats.item() == pytest.approx(expected, rel=1e-5)
    # an empty prompt is the same beginning for the likelihood of an answer and for the likeliest option
    assert backbone.log_likelihood([""], ["a cat"]).item() == pytest.approx(-expected, rel=1e-5)
    options = ["a", "cat", "dog", "7"]
    first = [-logits[0].log_softmax(-1)[backbone.encoder.answer(text, 9)[0][0]].item() for text in options]
    alone = [text for text in options if len(backbone.encoder.answer(text, 9)[0]) == 2]
    assert backbone.likeliest([""], alone, 9) == [min(alone, key=lambda text: first[options.index(text)])]


def test_a_single_string_is_refused() -> None:
    backbone = tiny_backbone(num_hidden_layers=1)
    calls = {
        "prompts": [
            lambda: backbone.generate("text", 3),
            lambda: backbone.likeliest("text", ["a", "b"], 3),
            lambda: backbone.log_likelihood("text", ["a"] * 4),
        ],
        "answers": [lambda: backbone.log_likelihood(["a"] * 4, "text")],
        "options": [lambda: backbone.likeliest(["a"], "text", 3)],
    }
    for name, each in calls.items():
        for call in each:
            with pytest.raises(ValueError, match=rf"^{name}='text' is one string\. Give a list of texts\.$"):
                call()
    with pytest.raises(ValueError, match=r"^2 prompts and 1 answers were given\. Give one for each\.$"):
        backbone.log_likelihood(["a", "b"], ["c"])


MODEL = os.environ.get("WORKBENCH_MODEL")


@pytest.mark.skipif(
    not MODEL, reason="WORKBENCH_MODEL is not set to the folder of the 260K-parameter TinyStories model"
)
def test_a_real_model_generates_its_known_story() -> None:
    backbone = Backbone.load(Path(str(MODEL)))
    story = backbone.generate(["Once upon a time, there was a little girl"], 48)[0]
    expected = "named Lily. She loved to play outside in the park. One day, she saw a big, red ball."
    assert story.strip().startswith(expected)


LETTERS = ("a", "b", "ab", "h")


def option_nats_by_hand(decoder: Any, prompt: list[int], option: list[int]) -> float:
    """Nats of one option, in a pass of its own."""
    logits = decoder(torch.tensor([prompt + option])).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
    return float(-logits.gather(1, torch.tensor(option)[:, None]).sum())


def by_whole_passes(backbone: Backbone, texts: list[str]) -> list[str]:
    """The most likely of LETTERS after each prompt."""
    found = []
    with torch.no_grad(), backbone.evaluating():
        for text in texts:
            prompt = backbone.encoder.prompt(text, 500)[0]
            options = [backbone.encoder.answer(option, 9)[0][:-1] for option in LETTERS]
            nats = [option_nats_by_hand(backbone.model, prompt, option) for option in options]
            found.append(LETTERS[nats.index(min(nats))])
    return found


def composed() -> Backbone:
    """A composition, which has no plain cache."""
    backbone = tiny_backbone()
    CALM(tiny_backbone(seed=1), connections=1).setup(backbone)
    return backbone


@pytest.mark.parametrize("make", [tiny_backbone, composed])
def test_the_likeliest_option_equals_that_of_separate_passes(make: Any) -> None:
    backbone, texts = make(), [f"{word} and then" for word in ("one", "two", "three", "four", "five", "six")]
    chosen = backbone.likeliest(texts, LETTERS, 9)
    assert chosen == by_whole_passes(backbone, texts)
    assert backbone.likeliest(["", texts[0]], LETTERS, 9)[1] == chosen[0]
    assert backbone.likeliest([], LETTERS, 9) == []
