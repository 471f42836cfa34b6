"""Many rows are encoded at once as they are one by one, and once only."""

from __future__ import annotations

import random
from typing import Any

import pytest
from datasets import Dataset
from test_encoding import BEGIN, CHAT, PAIRS, encoder, plain

from workbench.backbone import encoding
from workbench.backbone.encoding import Encoder


def one_by_one(policy: Encoder, rows: Dataset, longest: int) -> list[dict[str, Any]]:
    """What `encode` gives, one row and one call of the tokenizer at a time."""
    found = []
    for index, row in enumerate(rows):
        prompt_limit, answer_limit = policy.limits(row.get("max_new_tokens") or longest)
        prompt, prompt_cut = policy.prompt(row["prompt"], prompt_limit)
        answer, answer_cut = policy.answer(row["answer"], answer_limit)
        cut = {"prompt_cut": prompt_cut, "answer_cut": answer_cut}
        found.append({"input_ids": prompt + answer, "prompt_length": len(prompt), "row": index, **cut})
    return found


@pytest.mark.parametrize("truncation", ["left", "middle"])
@pytest.mark.parametrize("template", ["none", "alpaca", "chat"])
def test_many_rows_at_once_are_encoded_as_one_by_one(
    template: str, truncation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "AT_ONCE", 7)  # so that rows fall into several calls of the tokenizer
    rng = random.Random(0)
    words = ["a", "long", "way", "</s>", "<s>", "für", "中文", "", "\n", "7 + 5", "hills"]
    rows = Dataset.from_list(
        [
            {
                "prompt": " ".join(rng.choices(words, k=rng.randrange(60))),
                "answer": " ".join(rng.choices(words, k=rng.randrange(9))),
                "max_new_tokens": rng.choice([None, 2, 5]),
            }
            for _ in range(40)
        ]
    )
    policy = encoder(CHAT if template == "chat" else None, template=template, truncation=truncation, max_length=100)
    encoded = policy.encode(rows, 12).to_list()
    assert encoded == one_by_one(policy, rows, 12)
    assert {row["prompt_cut"] for row in encoded} == {row["answer_cut"] for row in encoded} == {True, False}
    if template == "none":
        for row, text in zip(encoded, rows["prompt"], strict=True):
            if not row["prompt_cut"] and not text.endswith("</s>"):
                assert row["input_ids"][1 : row["prompt_length"]] == plain(text)


def test_rows_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, calls = encoder(max_length=24), []
    tokens = policy._tokens
    monkeypatch.setattr(policy, "_tokens", lambda texts, special: calls.append(texts) or tokens(texts, special))
    first = policy.encode(PAIRS, 3)
    made = len(calls)
    again = policy.encode(Dataset.from_dict(PAIRS.to_dict()), 3)
    assert (len(calls), again.to_list()) == (made, first.to_list())
    for other in (policy.encode(PAIRS, 4), policy.encode(PAIRS.select([1, 0]), 3)):
        assert other.to_list() != first.to_list()
    policy.tokenizer.eos_token = "<s>"
    assert policy.encode(PAIRS, 9)["input_ids"][0][-1] == BEGIN
    monkeypatch.setattr(encoding, "KEPT_BYTES", 1)
    policy.encode(PAIRS, 5)
    assert len(policy._kept) == 1
