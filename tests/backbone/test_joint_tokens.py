"""Prompt and answer as one text: tokens, labels and likelihoods, compared with plain tokenizer and model calls."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from benchmarks.trace import Trace
from workbench.backbone import Backbone
from workbench.backbone.batch import IGNORED, collate
from workbench.backbone.encoding import Encoder, TextPolicy
from workbench.benchmark import Task
from workbench.scorers import ExactMatch
from workbench.strategy import ContinualStrategy
from workbench.testing.tiny import tiny_backbone
from workbench.train import score_task
from workbench.train.data import EncodedRows

MODEL, TRACE = os.environ.get("WORKBENCH_MODEL", ""), os.environ.get("WORKBENCH_TRACE", "")
WORDS = ("rate", "hike", "dovish", "the", "bank", "stays", "up", "down", "利率", "Größe")
needs_model = pytest.mark.skipif(not MODEL, reason="set WORKBENCH_MODEL to the folder of stories260K")


def drawn_rows(count: int, longest: int, seed: int = 0) -> list[dict[str, str]]:
    """Prompts and answers of very different lengths; some are empty."""
    rng = random.Random(seed)

    def text(words: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(words))

    ends = ("", "\n", "\nAnswer:", " ")
    return [
        {"prompt": text(rng.randint(0, longest)) + rng.choice(ends), "answer": text(rng.choice((0, 1, 3, longest)))}
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def pieces() -> PreTrainedTokenizerBase:
    """A tokenizer that marks the beginning of a text as of a word, as sentencepiece does for LLaMA-2."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(special_tokens=["<unk>", "<s>", "</s>"], vocab_size=200, show_progress=False)
    made.train_from_iterator([*WORDS, *WORDS, "A", "A", "Answer", "Answer", "\n", ":"] * 2, trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def expected_row(tokenizer: PreTrainedTokenizerBase, row: dict[str, str], limit: int) -> tuple[list[int], list[int]]:
    """Ids and labels of one row, by the tokenizer's own truncation and nothing of the workbench."""
    tokenizer.truncation_side = "left"
    given: dict[str, Any] = {"add_special_tokens": False, "truncation": True, "max_length": limit}
    both = list(tokenizer(row["prompt"] + row["answer"], **given)["input_ids"])
    alone = list(tokenizer(row["answer"], **given)["input_ids"])
    if len(alone) < limit:
        alone = [*alone, tokenizer.eos_token_id]
    if len(both) < limit:
        both = [*both, tokenizer.eos_token_id]
    if len(both) < limit:
        both = [tokenizer.bos_token_id, *both]
    unlabelled = max(0, len(both) - len(alone))
    return both, [IGNORED] * unlabelled + both[unlabelled:]


def expected_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, limit: int) -> list[int]:
    """What is read before an answer is generated."""
    tokenizer.truncation_side = "left"
    ids = list(tokenizer(prompt, add_special_tokens=False, truncation=True, max_length=limit)["input_ids"])
    return [tokenizer.bos_token_id, *ids] if len(ids) < limit else ids


def check_rows(tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, str]], prompt: int, whole: int) -> list[int]:
    """Compares ids, labels and prompts row by row; how many rows have no begin token, no end token, neither."""
    policy = TextPolicy(max_length=whole, max_prompt_length=prompt, tokenization="joint")
    encoder, data = Encoder(tokenizer, whole, policy), Dataset.from_list(rows)
    encoded = encoder.encode(data, whole - prompt)
    prompts = encoder.encode(data.select_columns(["prompt"]), whole - prompt)["input_ids"][:]
    without = [0, 0, 0]
    for index, (row, found) in enumerate(zip(rows, encoded.to_list(), strict=True)):
        ids, labels = expected_row(tokenizer, row, whole)
        batch = collate([found], pad_id=0)
        assert (batch.input_ids[0].tolist(), batch.labels[0].tolist()) == (ids, labels), index
        assert prompts[index] == expected_prompt(tokenizer, row["prompt"], prompt)
        assert encoder.prompt(row["prompt"], prompt)[0] == prompts[index]
        length = len(tokenizer(row["prompt"] + row["answer"], add_special_tokens=False)["input_ids"])
        bare = [length > whole - 2, length > whole - 1]
        without = [total + flag for total, flag in zip(without, (*bare, all(bare)), strict=True)]
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert list(EncodedRows(encoded).without(*ends).values()) == without
    return without


def apart(tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, str]], whole: int) -> list[list[int]]:
    """Labels of the rows that are tokenised apart."""
    encoder = Encoder(tokenizer, 4 * whole, TextPolicy())
    rows = encoder.encode(Dataset.from_list(rows)).to_list()
    return [row["input_ids"][row["prompt_length"] :] for row in rows]


def test_drawn_rows_are_encoded_as_the_tokenizer_says(pieces: PreTrainedTokenizerBase) -> None:
    rows = drawn_rows(300, 40)
    begin, end, both = check_rows(pieces, rows, 40, 60)
    assert 0 < both == end < begin < 300  # the end token has the room first
    one = {"prompt": "the bank stays\nAnswer:", "answer": "A"}
    joint, labels = expected_row(pieces, one, 60)
    assert pieces.convert_ids_to_tokens(joint[-2:]) == ["A", "</s>"]
    assert [pieces.convert_ids_to_tokens(ids) for ids in apart(pieces, [one], 60)] == [["▁A", "</s>"]]
    assert labels == [IGNORED] * (len(joint) - 2) + joint[-2:]


@pytest.mark.parametrize("size", [57, 58, 59, 60])
def test_a_row_that_just_fits(pieces: PreTrainedTokenizerBase, size: int) -> None:
    """With room for two more tokens both are there, with room for one the end token, else neither."""
    row = {"prompt": "up" + " up" * 80, "answer": " down"}
    answer = len(pieces(row["prompt"] + row["answer"], add_special_tokens=False).input_ids)
    words = size - (answer - 81)
    row["prompt"] = "up" + " up" * (words - 1)
    assert len(pieces(row["prompt"] + row["answer"], add_special_tokens=False).input_ids) == size
    encoder = Encoder(pieces, 59, TextPolicy(max_length=59, tokenization="joint"))
    (found,) = encoder.encode(Dataset.from_list([row])).to_list()
    ids = found["input_ids"]
    there = (ids[0] == pieces.bos_token_id, ids[-1] == pieces.eos_token_id)
    assert there == {57: (True, True), 58: (False, True), 59: (False, False), 60: (False, False)}[size]
    assert found["prompt_cut"] is (size > 59)
    own = len(pieces(row["answer"], add_special_tokens=False).input_ids)
    assert len(ids) - found["prompt_length"] == own + 1  # also where the row has no end token


@needs_model
def test_rows_on_a_real_tokenizer() -> None:
    tokenizer, rows = AutoTokenizer.from_pretrained(MODEL), drawn_rows(300, 40, seed=1)
    begin, end, both = check_rows(tokenizer, rows, 100, 160)
    assert 0 < both == end <= begin < 300
    labels = [
        labels[-len(own) :]
        for row, own in zip(rows, apart(tokenizer, rows, 160), strict=True)
        for labels in [expected_row(tokenizer, row, 4000)[0]]
    ]
    assert labels != apart(tokenizer, rows, 160)


@needs_model
@pytest.mark.skipif(not TRACE, reason="set WORKBENCH_TRACE to the folder that holds TRACE's eight tasks")
def test_the_released_rows() -> None:
    """Every training row of TRACE; the counts are of stories260K, whose tokens are shorter than LLaMA-2's."""
    tokenizer, counts = AutoTokenizer.from_pretrained(MODEL), {}
    for task in Trace(TRACE, protocol="published"):
        *_, both = check_rows(tokenizer, task.train.to_list(), 1024, 1536)
        counts[task.name] = f"{both} of {len(task.train)}"
    print(counts)
    assert counts["FOMC"] == "0 of 500"
    assert not counts["MeetingBank"].startswith("0 ")


def test_an_answer_longer_than_the_row_loses_its_beginning(pieces: PreTrainedTokenizerBase) -> None:
    row = {"prompt": "the bank", "answer": "up " * 50 + "down"}
    encoder = Encoder(pieces, 20, TextPolicy(max_length=20, tokenization="joint"))
    (found,) = encoder.encode(Dataset.from_list([row])).to_list()
    assert found["input_ids"] == expected_row(pieces, row, 20)[0]
    assert (found["prompt_length"], found["prompt_cut"], found["answer_cut"]) == (0, True, True)


def joint_backbone(pieces: PreTrainedTokenizerBase, **policy: Any) -> Backbone:
    """A tiny random model with that tokenizer."""
    model = tiny_backbone().model
    return Backbone(lambda: model, pieces, text=TextPolicy(tokenization="joint", **policy))


def expected_nats(backbone: Backbone, ids: list[int], labels: list[int]) -> float:
    """By a plain forward of the whole row."""
    with torch.no_grad():
        logits = backbone.model(torch.tensor([ids])).logits[0, :-1].double()
    nats = torch.nn.functional.cross_entropy(logits, torch.tensor(labels[1:]), ignore_index=IGNORED, reduction="sum")
    return float(nats)


def test_likelihoods_are_of_the_tokens_that_are_trained(pieces: PreTrainedTokenizerBase) -> None:
    backbone = joint_backbone(pieces, max_length=60, max_prompt_length=40)
    backbone.eval()
    rows = [row for row in drawn_rows(40, 40) if row["prompt"]]
    data = Dataset.from_list(rows)
    expected = [expected_nats(backbone, *expected_row(pieces, row, 60)) for row in rows]
    found = backbone.log_likelihood(data["prompt"][:], data["answer"][:])
    assert found.tolist() == pytest.approx([-nats for nats in expected], rel=1e-5)
    for longest in (3, 20, None):
        assert backbone.encode(data, longest).to_list() == backbone.encode(data).to_list()
    task = Task("sums", data, scorers={"accuracy": ExactMatch()}, max_new_tokens=4)
    score = score_task(backbone, ContinualStrategy(), task)
    labels = sum(label != IGNORED for row in rows for label in expected_row(pieces, row, 60)[1][1:])
    assert (score.tokens, score.nats_per_token) == (labels, pytest.approx(sum(expected) / labels, rel=1e-5))
    longer = [len(pieces(row["prompt"], add_special_tokens=False).input_ids) > 40 for row in rows]
    assert score.cut["prompts"] == sum(longer) > 0


def test_the_likeliest_option_is_that_of_the_whole_text(pieces: PreTrainedTokenizerBase) -> None:
    backbone = joint_backbone(pieces, max_length=60, max_prompt_length=40)
    backbone.eval()
    prompts, options = [row["prompt"] + "\nAnswer:" for row in drawn_rows(20, 30)], ["A", "the", "up down"]
    expected = []
    for prompt in prompts:
        nats = []
        for option in options:
            ids, labels = expected_row(pieces, {"prompt": prompt, "answer": option}, 60)
            if ids[-1] == pieces.eos_token_id:
                nats.append(expected_nats(backbone, ids[:-1], labels[:-1]))
            else:
                first = labels.index(next(label for label in labels if label != IGNORED))
                nats.append(expected_nats(backbone, ids, [*[IGNORED] * (first + 1), *labels[first + 1 :]]))
        expected.append(options[nats.index(min(nats))])
    assert len(set(expected)) > 1
    assert backbone.likeliest(prompts, options, 4) == expected


def test_templates_and_texts(pieces: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """A template is part of the prompt; a corpus is encoded as ever."""
    joint = Encoder(pieces, 200, TextPolicy(tokenization="joint", template="alpaca"))
    row = {"prompt": "up", "answer": "down"}
    (found,) = joint.encode(Dataset.from_list([row])).to_list()
    whole = {**row, "prompt": joint._render("up")}
    assert found["input_ids"] == expected_row(pieces, whole, 200)[0]
    texts = Dataset.from_dict({"text": ["the bank stays", "up"]})
    assert joint.encode(texts).to_list() == Encoder(pieces, 200, TextPolicy()).encode(texts).to_list()
