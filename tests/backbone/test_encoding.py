"""Text to tokens: what is cut and what is kept, limits, templates, labels, and windows over long texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from workbench.backbone import Backbone
from workbench.backbone.batch import IGNORED, collate
from workbench.backbone.encoding import ALPACA, Encoder, TextPolicy, set_end_token
from workbench.model_folder import SHIPPED
from workbench.testing.tiny import tiny_backbone

POSITIONS = 128
CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[me]{% endif %}"
)
LONG = " ".join(f"word {number}" for number in range(30))


def tokenizer(chat: str | None = None) -> PreTrainedTokenizerBase:
    loaded = AutoTokenizer.from_pretrained(SHIPPED["mini"])
    loaded.chat_template = chat
    return loaded


def encoder(chat: str | None = None, **policy: Any) -> Encoder:
    return Encoder(tokenizer(chat), POSITIONS, TextPolicy(**policy))


def plain(text: str) -> list[int]:
    """Tokens without a beginning or an end token."""
    return list(tokenizer()(text, add_special_tokens=False).input_ids)


BEGIN, END = tokenizer().bos_token_id, tokenizer().eos_token_id
PAIRS = Dataset.from_list([{"prompt": "1 + 1 =", "answer": "2"}, {"prompt": LONG, "answer": "a long way to go"}])


def test_a_prompt_that_fits_is_whole() -> None:
    tokens = [BEGIN, *plain(LONG)]
    assert encoder().prompt(LONG, len(tokens)) == (tokens, False)


@pytest.mark.parametrize("limit", [2, 3, 10, 11])
def test_left_truncation_keeps_the_begin_token_and_the_last_tokens(limit: int) -> None:
    expected = [BEGIN, *plain(LONG)[-(limit - 1) :]]
    assert encoder(truncation="left").prompt(LONG, limit) == (expected, True)
    assert len(expected) == limit


@pytest.mark.parametrize(("limit", "first", "last"), [(2, 0, 1), (3, 1, 1), (10, 4, 5), (11, 5, 5)])
def test_middle_truncation_keeps_head_and_tail(limit: int, first: int, last: int) -> None:
    body = plain(LONG)
    expected = [BEGIN, *body[:first], *body[len(body) - last :]]
    assert encoder(truncation="middle").prompt(LONG, limit) == (expected, True)
    assert len(expected) == limit


def test_an_answer_ends_with_the_end_token_unless_it_was_cut() -> None:
    body = plain("seven small birds sang")
    size = len(body)
    assert size > 3
    assert encoder().answer("seven small birds sang", size + 1) == ([*body, END], False)
    assert encoder().answer("seven small birds sang", size) == (body, True)
    assert encoder().answer("seven small birds sang", 2) == (body[:2], True)
    assert encoder().answer("", 1) == ([END], False)


@pytest.mark.parametrize("truncation", ["left", "middle"])
def test_a_template_survives_truncation(truncation: str) -> None:
    head, tail = ALPACA.split("{}")
    head_tokens, tail_tokens = [BEGIN, *plain(head)], plain(tail)
    limit = len(head_tokens) + len(tail_tokens) + 6
    tokens, cut = encoder(template="alpaca", truncation=truncation).prompt(LONG, limit)
    body = plain(LONG)
    kept = body[-6:] if truncation == "left" else body[:3] + body[-3:]
    assert cut
    assert tokens == head_tokens + kept + tail_tokens


def test_alpaca_as_published() -> None:
    tokens, cut = encoder(template="alpaca").prompt("Add {1} and 2", POSITIONS)
    text = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nAdd {1} and 2\n\n### Response:\n"
    )
    assert not cut
    assert tokens == [BEGIN, *plain(text)]


def test_chat_is_the_tokenizers_own_template_with_one_begin_token() -> None:
    tokens, cut = encoder(CHAT, template="chat").prompt("Add 1 and 2", POSITIONS)
    assert not cut
    assert tokens == [BEGIN, *plain("[user] Add 1 and 2\n[me]")]


def test_chat_cut_on_the_left() -> None:
    head, tail = [BEGIN, *plain("[user] ")], plain("\n[me]")
    tokens, cut = encoder(CHAT, template="chat").prompt(LONG, len(head) + len(tail) + 5)
    assert cut
    assert tokens == head + plain(LONG)[-5:] + tail


@pytest.mark.parametrize(
    ("policy", "max_new_tokens", "expected"),
    [
        ({}, 28, (100, 28)),
        ({"max_length": 64}, 4, (60, 4)),
        ({"max_prompt_length": 50}, 20, (50, 20)),
        ({"max_length": 64, "max_answer_length": 10}, 28, (54, 10)),
        ({"max_length": 64, "max_answer_length": 40}, 28, (36, 28)),
        ({"max_prompt_length": 100, "max_answer_length": 28}, 1000, (100, 28)),
    ],
)
def test_the_most_tokens_of_prompt_and_answer(
    policy: dict[str, int], max_new_tokens: int, expected: tuple[int, int]
) -> None:
    assert encoder(**policy).limits(max_new_tokens) == expected


@pytest.mark.parametrize(
    ("policy", "max_new_tokens", "message"),
    [
        (
            {"max_length": 16},
            16,
            "an answer may have 16 tokens, which leaves none for the prompt out of 16. "
            "Set data.max_length higher, or data.max_answer_length lower.",
        ),
        (
            {"max_prompt_length": 120},
            9,
            "120 prompt and 9 answer tokens do not fit: the model has 128 positions. "
            "Set data.max_length, or data.max_prompt_length and data.max_answer_length.",
        ),
        (
            {"max_length": 200},
            20,
            "180 prompt and 20 answer tokens do not fit: the model has 128 positions. "
            "Set data.max_length, or data.max_prompt_length and data.max_answer_length.",
        ),
    ],
)
def test_limits_that_do_not_fit(policy: dict[str, int], max_new_tokens: int, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        encoder(**policy).limits(max_new_tokens)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["max_length", "max_prompt_length", "max_answer_length"])
def test_a_limit_below_what_can_hold_text(name: str) -> None:
    least = 2 if name == "max_length" else 1
    for value in (least - 1, -5):
        with pytest.raises(ValueError) as caught:
            TextPolicy(**{name: value})
        assert str(caught.value) == f"data.{name}={value} is out of range; it has to be at least {least}."


def test_what_a_tokenizer_lacks() -> None:
    with pytest.raises(ValueError) as caught:
        encoder(template="chat")
    assert str(caught.value) == ("template: 'chat' needs a tokenizer with a chat template. Choose 'none' or 'alpaca'.")
    endless = tokenizer()
    endless.eos_token = None
    with pytest.raises(ValueError) as caught:
        Encoder(endless, POSITIONS, TextPolicy())
    assert str(caught.value) == (
        "The tokenizer has no end token (eos_token), so that generation could never stop. Set one."
    )


def test_a_template_longer_than_the_limit() -> None:
    with pytest.raises(ValueError) as caught:
        encoder(template="alpaca").prompt(LONG, 8)
    taken = sum(len(plain(part)) for part in ALPACA.split("{}")) + 1
    assert str(caught.value) == (
        f"a prompt's limit in tokens is 8; the template 'alpaca' alone takes {taken}, "
        "which leaves none for the text. Set data.max_length or data.max_prompt_length higher."
    )
    with pytest.raises(ValueError) as caught:
        encoder(max_length=4).check_room(3)
    assert str(caught.value) == (
        "a prompt's limit in tokens is 1; the begin token alone takes 1, which leaves none for the text. "
        "Set data.max_length or data.max_prompt_length higher."
    )
    encoder(max_length=5).check_room(3)


DATED = (
    "{{ bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}'
    "{%- endif %}\nToday Date: {{ date_string }}\n  {% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    '{% if add_generation_prompt %}[me, {{ strftime_now("%-d.%m.%y %H:%M") }}]{% endif %}'
)


def test_a_chat_template_prints_the_day_of_the_policy() -> None:
    """As LLaMA-3.2's asks for it; the clock is never read."""
    for day, short, policy in (
        ("26 Jul 2024", "26.07.24", {}),
        ("02 Mar 2031", "2.03.31", {"template_date": "2031-03-02"}),
    ):
        written = DATED.replace('strftime_now("%d %b %Y")', repr(day))
        written = written.replace('strftime_now("%-d.%m.%y %H:%M")', repr(f"{short} 00:00"))
        assert "strftime_now(" not in written
        expected = encoder(written, template="chat").prompt("Add 1", POSITIONS)
        assert encoder(DATED, template="chat", **policy).prompt("Add 1", POSITIONS) == expected


def test_a_template_that_asks_for_no_day_is_left_alone() -> None:
    """A leading line end and spaces before a block are Jinja's business, with the fixed clock before it or without."""
    for start in ("\n", "  ", "", " a\n"):
        asks = (
            start
            + "{% for m in messages %}{{ m.content }}{% endfor %}{% if false %}{{ strftime_now('%Y') }}{% endif %}"
        )
        dated, silent = (
            encoder(chat, template="chat").prompt("Add 1", POSITIONS)
            for chat in (asks, asks.replace("strftime_now", "x"))
        )
        assert dated == silent


def test_a_day_that_is_none() -> None:
    with pytest.raises(ValueError) as caught:
        TextPolicy(template_date="today")
    assert str(caught.value) == "data.template_date='today' is no date. Give one such as '2024-07-26'."


def beginless() -> Encoder:
    """A tokenizer that puts nothing before a text, as Qwen's."""
    without = tokenizer()
    without.add_bos_token = False
    assert without("").input_ids == []
    return Encoder(without, POSITIONS, TextPolicy())


def test_an_empty_prompt_without_a_begin_token_is_the_end_token() -> None:
    """So that each token of the answer is learnt and measured, as each of them has to be generated."""
    rows = Dataset.from_list([{"prompt": "", "answer": "2"}, {"prompt": "1 + 1 =", "answer": "2"}])
    encoded = beginless().encode(rows).to_list()
    assert (encoded[0]["input_ids"], encoded[0]["prompt_length"]) == ([END, *plain("2"), END], 1)
    assert encoded[1]["input_ids"] == [*plain("1 + 1 ="), *plain("2"), END]
    assert collate(encoded, pad_id=0).labels[0, 1:].tolist()[: len(plain("2")) + 1] == [*plain("2"), END]
    assert encoder().encode(rows).to_list()[0]["input_ids"] == [BEGIN, *plain("2"), END]


@pytest.mark.parametrize("packed", [False, True])
def test_a_texts_first_token_is_predicted_without_a_begin_token_too(packed: bool) -> None:
    texts = ["seven small birds", "a cat"]
    rows = beginless().encode(Dataset.from_dict({"text": texts}), packed=packed).to_list()
    predicted = [token for row in rows for token in row["input_ids"][1:]]
    assert predicted == [token for text in texts for token in [*plain(text), END]]
    assert {row["input_ids"][0] for row in rows} == {END}


def test_what_the_tokenizer_makes_of_an_answer() -> None:
    answers = ["A", " A", "A </s> D", "", "a long way to go"]
    rows = Dataset.from_dict({"prompt": ["?"] * 5, "answer": answers})
    found = encoder().producible(encoder().encode(rows, max_new_tokens=4))
    assert found[:4] == [("A", True), ("A", True), ("A ", False), ("", True)]
    assert found[4] == (tokenizer().decode(plain("a long way to go")[:4]), False)


def test_labels_stand_on_the_answer_alone() -> None:
    encoded = encoder().encode(PAIRS).to_list()
    batch = collate(encoded, pad_id=0)
    for index, row in enumerate(PAIRS):
        prompt, answer = [BEGIN, *plain(row["prompt"])], [*plain(row["answer"]), END]
        assert encoded[index]["input_ids"] == prompt + answer
        assert encoded[index]["prompt_length"] == len(prompt)
        filler = batch.labels.shape[1] - len(prompt) - len(answer)
        assert batch.labels[index].tolist() == [IGNORED] * len(prompt) + answer + [IGNORED] * filler
        assert batch.attention_mask[index].tolist() == [1] * len(prompt + answer) + [0] * filler
        assert batch.input_ids[index].tolist() == prompt + answer + [0] * filler
    assert batch.row.tolist() == [0, 1]


def test_cut_prompts_and_answers_are_flagged() -> None:
    encoded = encoder(max_length=24).encode(PAIRS, max_new_tokens=3)
    assert encoded["prompt_cut"][:] == [False, True]
    assert encoded["answer_cut"][:] == [False, True]
    assert encoded["row"][:] == [0, 1]
    rows = encoded.to_list()
    assert rows[1]["prompt_length"] == 24 - 3
    assert rows[1]["input_ids"][21:] == plain("a long way to go")[:3]


def test_without_a_stated_limit_the_longest_answer_decides() -> None:
    encoded = encoder(max_length=24).encode(PAIRS)
    longest = len(plain("a long way to go")) + 1
    assert encoded["answer_cut"][:] == [False, False]
    assert encoded.to_list()[1]["prompt_length"] == 24 - longest


def test_a_row_may_carry_a_limit_of_its_own() -> None:
    """Prompt and answer of each row are cut as in a task of that limit: 24 tokens less the answer's for the prompt."""
    pair = {"prompt": LONG, "answer": "a long way to go"}
    limits = [None, 8, 2, 3]
    rows = Dataset.from_list([{**pair, "max_new_tokens": limit} for limit in limits])
    policy = encoder(max_length=24)
    encoded = policy.encode(rows, max_new_tokens=5)
    for row, limit in zip(encoded.to_list(), (5, 8, 2, 3), strict=True):
        assert row["prompt_length"] == 24 - limit
        (alone,) = policy.encode(Dataset.from_list([pair]), max_new_tokens=limit).to_list()
        assert {**row, "row": 0} == alone
    assert policy.encode(rows, max_new_tokens=5)["answer_cut"][:] == [
        len(plain("a long way to go")) + 1 > limit for limit in (5, 8, 2, 3)
    ]
    longest = len(plain("a long way to go")) + 1
    assert policy.encode(rows).to_list()[0]["prompt_length"] == 24 - longest


def test_a_limit_of_a_rows_own_that_does_not_fit() -> None:
    rows = Dataset.from_list([{"prompt": "1", "answer": "2", "max_new_tokens": 24}])
    with pytest.raises(ValueError, match="an answer may have 24 tokens, which leaves none for the prompt out of 24"):
        encoder(max_length=24).encode(rows, max_new_tokens=5)


def test_no_rows_no_tokens() -> None:
    empty = encoder().encode(Dataset.from_dict({"prompt": [], "answer": []}))
    assert len(empty) == 0
    assert set(empty.column_names) == {"input_ids", "prompt_length", "row", "prompt_cut", "answer_cut"}


@pytest.mark.parametrize("size", [2, 3, 7, 16, 500])
def test_windows_over_a_text_lose_nothing_and_predict_each_token_once(size: int) -> None:
    texts = [LONG, "a", "seven small birds sang"]
    encoded = encoder(max_length=size).encode(Dataset.from_dict({"text": texts})).to_list()
    for index, text in enumerate(texts):
        expected = [BEGIN, *plain(text), END]
        windows = [row["input_ids"] for row in encoded if row["row"] == index]
        assert all(1 < len(window) <= min(size, POSITIONS) for window in windows)
        predicted = [token for window in windows for token in window[1:]]
        assert predicted == expected[1:]
        assert windows[0][0] == BEGIN
        assert [window[0] for window in windows[1:]] == [window[-1] for window in windows[:-1]]
    assert all(row["prompt_length"] == 0 for row in encoded)


def test_both_limits_hold() -> None:
    assert encoder(max_length=64, max_prompt_length=200).limits(20) == (44, 20)
    assert encoder(max_length=64, max_prompt_length=30).limits(20) == (30, 20)
    assert encoder(max_prompt_length=100).limits(20) == (100, 20)


def test_another_end_token_ends_each_answer_and_is_saved(tmp_path: Path) -> None:
    tiny_backbone(num_hidden_layers=1).save(tmp_path / "model")
    token = AutoTokenizer.from_pretrained(SHIPPED["mini"]).convert_ids_to_tokens(40)
    backbone = Backbone.load(tmp_path / "model", end_token=token)
    assert backbone.encoder.answer("b", 9)[0][-1] == 40
    backbone.save(tmp_path / "again")
    assert AutoTokenizer.from_pretrained(tmp_path / "again").eos_token == token
    size = len(AutoTokenizer.from_pretrained(SHIPPED["mini"]))
    with pytest.raises(
        ValueError, match=f"end_token='<nowhere>' is not in the tokenizer's vocabulary of {size} tokens"
    ):
        Backbone.load(tmp_path / "model", end_token="<nowhere>")


@pytest.mark.parametrize("size", [4, 7, 100])
def test_packed_texts_stand_one_after_the_other_and_none_is_lost(size: int) -> None:
    texts = [LONG, "a", "seven small birds sang"]
    rows = encoder(max_length=size).encode(Dataset.from_dict({"text": texts}), packed=True).to_list()
    stream = [token for text in texts for token in [BEGIN, *plain(text), END]]
    assert rows[0]["input_ids"] + [token for row in rows[1:] for token in row["input_ids"][1:]] == stream
    assert all(len(row["input_ids"]) == size for row in rows[:-1])
    assert {row["prompt_length"] for row in rows} == {0}
    begins = [index * (size - 1) for index in range(len(rows))]
    owners = [index for index, text in enumerate(texts) for _ in [BEGIN, *plain(text), END]]
    assert [row["row"] for row in rows] == [owners[begin] for begin in begins]


def test_a_cut_prompt_keeps_a_begin_token_that_is_the_end_token_too() -> None:
    both = tokenizer()
    set_end_token(both, both.bos_token)
    tokens, cut = Encoder(both, POSITIONS, TextPolicy()).prompt(LONG, 9)
    assert (len(tokens), tokens[0], cut) == (9, BEGIN, True)
