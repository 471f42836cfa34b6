"""Text to tokens: truncation, limits, templates, labels, windows over long texts, joint tokenization."""

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
from workbench.backbone import Backbone, encoding
from workbench.backbone.batch import IGNORED, collate
from workbench.backbone.encoding import ALPACA, Encoder, TextPolicy, set_end_token
from workbench.benchmark import Task
from workbench.model_folder import SHIPPED
from workbench.scorers import ExactMatch
from workbench.strategy import ContinualStrategy
from workbench.testing.tiny import tiny_backbone
from workbench.train import score_task
from workbench.train.data import EncodedRows

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


def test_a_prompt_that_fits_is_not_cut() -> None:
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
def test_limits_of_prompt_and_answer(policy: dict[str, int], max_new_tokens: int, expected: tuple[int, int]) -> None:
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
def test_limits_that_do_not_fit_are_refused(policy: dict[str, int], max_new_tokens: int, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        encoder(**policy).limits(max_new_tokens)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["max_length", "max_prompt_length", "max_answer_length"])
def test_a_limit_too_low_for_any_text_is_refused(name: str) -> None:
    least = 2 if name == "max_length" else 1
    for value in (least - 1, -5):
        with pytest.raises(ValueError) as caught:
            TextPolicy(**{name: value})
        assert str(caught.value) == f"data.{name}={value} is out of range; it has to be at least {least}."


def test_a_tokenizer_without_chat_template_or_end_token_is_refused() -> None:
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


def test_a_template_longer_than_the_limit_is_refused() -> None:
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


def test_a_chat_template_prints_the_policys_date() -> None:
    """LLaMA-3.2's template asks for the date; the clock is never read."""
    for day, short, policy in (
        ("26 Jul 2024", "26.07.24", {}),
        ("02 Mar 2031", "2.03.31", {"template_date": "2031-03-02"}),
    ):
        written = DATED.replace('strftime_now("%d %b %Y")', repr(day))
        written = written.replace('strftime_now("%-d.%m.%y %H:%M")', repr(f"{short} 00:00"))
        assert "strftime_now(" not in written
        expected = encoder(written, template="chat").prompt("Add 1", POSITIONS)
        assert encoder(DATED, template="chat", **policy).prompt("Add 1", POSITIONS) == expected


def test_a_template_without_a_date_is_unchanged() -> None:
    """Jinja treats a leading line end, and spaces before a block, the same with and without the macro before them."""
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


def test_an_invalid_template_date_is_refused() -> None:
    with pytest.raises(ValueError) as caught:
        TextPolicy(template_date="today")
    assert str(caught.value) == "data.template_date='today' is no date. Give one such as '2024-07-26'."


def beginless() -> Encoder:
    """An encoder whose tokenizer adds no begin token, like Qwen's."""
    without = tokenizer()
    without.add_bos_token = False
    assert without("").input_ids == []
    return Encoder(without, POSITIONS, TextPolicy())


def test_an_empty_prompt_without_a_begin_token_is_the_end_token() -> None:
    """Each token of the answer is then predicted in training and scoring, as in generation."""
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


def test_producible_answers() -> None:
    answers = ["A", " A", "A </s> D", "", "a long way to go"]
    rows = Dataset.from_dict({"prompt": ["?"] * 5, "answer": answers})
    found = encoder().producible(encoder().encode(rows, max_new_tokens=4))
    assert found[:4] == [("A", True), ("A", True), ("A ", False), ("", True)]
    assert found[4] == (tokenizer().decode(plain("a long way to go")[:4]), False)


def test_only_answer_tokens_have_labels() -> None:
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


def test_without_a_limit_the_longest_answer_sets_it() -> None:
    encoded = encoder(max_length=24).encode(PAIRS)
    longest = len(plain("a long way to go")) + 1
    assert encoded["answer_cut"][:] == [False, False]
    assert encoded.to_list()[1]["prompt_length"] == 24 - longest


def test_a_row_may_have_its_own_limit() -> None:
    """Each row is cut as in a task of its own limit: the prompt gets 24 tokens minus the answer's limit."""
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


def test_a_rows_own_limit_that_does_not_fit_is_refused() -> None:
    rows = Dataset.from_list([{"prompt": "1", "answer": "2", "max_new_tokens": 24}])
    with pytest.raises(ValueError, match="an answer may have 24 tokens, which leaves none for the prompt out of 24"):
        encoder(max_length=24).encode(rows, max_new_tokens=5)


def test_encoding_no_rows_gives_an_empty_dataset() -> None:
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


def test_max_length_and_max_prompt_length_both_apply() -> None:
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
def test_packed_texts_are_concatenated_without_loss(size: int) -> None:
    texts = [LONG, "a", "seven small birds sang"]
    rows = encoder(max_length=size).encode(Dataset.from_dict({"text": texts}), packed=True).to_list()
    stream = [token for text in texts for token in [BEGIN, *plain(text), END]]
    assert rows[0]["input_ids"] + [token for row in rows[1:] for token in row["input_ids"][1:]] == stream
    assert all(len(row["input_ids"]) == size for row in rows[:-1])
    assert {row["prompt_length"] for row in rows} == {0}
    begins = [index * (size - 1) for index in range(len(rows))]
    owners = [index for index, text in enumerate(texts) for _ in [BEGIN, *plain(text), END]]
    assert [row["row"] for row in rows] == [owners[begin] for begin in begins]


def test_a_cut_prompt_keeps_a_begin_token_that_is_also_the_end_token() -> None:
    both = tokenizer()
    set_end_token(both, both.bos_token)
    tokens, cut = Encoder(both, POSITIONS, TextPolicy()).prompt(LONG, 9)
    assert (len(tokens), tokens[0], cut) == (9, BEGIN, True)


def one_by_one(policy: Encoder, rows: Dataset, longest: int) -> list[dict[str, Any]]:
    """The result of `encode`, computed one row and one tokenizer call at a time."""
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
def test_encoding_many_rows_equals_encoding_one_by_one(
    template: str, truncation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "TOKENIZER_BATCH", 7)  # so that rows fall into several calls of the tokenizer
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


def test_encoded_rows_are_cached(monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setattr(encoding, "CACHE_BYTES", 1)
    policy.encode(PAIRS, 5)
    assert len(policy._cache) == 1


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
    """A tokenizer that marks the start of a text like that of a word, as sentencepiece does for LLaMA-2."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(special_tokens=["<unk>", "<s>", "</s>"], vocab_size=200, show_progress=False)
    made.train_from_iterator([*WORDS, *WORDS, "A", "A", "Answer", "Answer", "\n", ":"] * 2, trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def expected_row(tokenizer: PreTrainedTokenizerBase, row: dict[str, str], limit: int) -> tuple[list[int], list[int]]:
    """Ids and labels of one row, by the tokenizer's own truncation and without the workbench."""
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
    """The expected tokens of a prompt in generation."""
    tokenizer.truncation_side = "left"
    ids = list(tokenizer(prompt, add_special_tokens=False, truncation=True, max_length=limit)["input_ids"])
    return [tokenizer.bos_token_id, *ids] if len(ids) < limit else ids


def check_rows(tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, str]], prompt: int, whole: int) -> list[int]:
    """Compare ids, labels and prompts of each row; return how many lack the begin token, the end token, and both."""
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
    """Labels of the rows when prompt and answer are tokenised apart."""
    encoder = Encoder(tokenizer, 4 * whole, TextPolicy())
    rows = encoder.encode(Dataset.from_list(rows)).to_list()
    return [row["input_ids"][row["prompt_length"] :] for row in rows]


def test_joint_rows_equal_the_tokenizers_own_truncation(pieces: PreTrainedTokenizerBase) -> None:
    rows = drawn_rows(300, 40)
    begin, end, both = check_rows(pieces, rows, 40, 60)
    assert 0 < both == end < begin < 300  # the end token has the room first
    one = {"prompt": "the bank stays\nAnswer:", "answer": "A"}
    joint, labels = expected_row(pieces, one, 60)
    assert pieces.convert_ids_to_tokens(joint[-2:]) == ["A", "</s>"]
    assert [pieces.convert_ids_to_tokens(ids) for ids in apart(pieces, [one], 60)] == [["▁A", "</s>"]]
    assert labels == [IGNORED] * (len(joint) - 2) + joint[-2:]


@pytest.mark.parametrize("size", [57, 58, 59, 60])
def test_a_joint_row_that_just_fits(pieces: PreTrainedTokenizerBase, size: int) -> None:
    """With room for two more tokens both are added, with room for one the end token, else neither."""
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
def test_joint_rows_with_a_real_tokenizer() -> None:
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
def test_joint_rows_of_trace() -> None:
    """Every training row of TRACE; the counts are of stories260K, whose tokens are shorter than LLaMA-2's."""
    tokenizer, counts = AutoTokenizer.from_pretrained(MODEL), {}
    for task in Trace(TRACE, protocol="published"):
        *_, both = check_rows(tokenizer, task.train.to_list(), 1024, 1536)
        counts[task.name] = f"{both} of {len(task.train)}"
    print(counts)
    assert counts["FOMC"] == "0 of 500"
    assert not counts["MeetingBank"].startswith("0 ")


def test_a_joint_answer_longer_than_the_row_loses_its_beginning(pieces: PreTrainedTokenizerBase) -> None:
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
    """Negative log-likelihood by a plain forward pass of the whole row."""
    with torch.no_grad():
        logits = backbone.model(torch.tensor([ids])).logits[0, :-1].double()
    nats = torch.nn.functional.cross_entropy(logits, torch.tensor(labels[1:]), ignore_index=IGNORED, reduction="sum")
    return float(nats)


def test_joint_likelihoods_are_those_of_the_trained_labels(pieces: PreTrainedTokenizerBase) -> None:
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


def test_the_likeliest_joint_option_equals_that_of_plain_passes(pieces: PreTrainedTokenizerBase) -> None:
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


def test_joint_tokenization_with_a_template_and_of_a_corpus(pieces: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """A template is part of the prompt; a corpus is encoded as without joint tokenization."""
    joint = Encoder(pieces, 200, TextPolicy(tokenization="joint", template="alpaca"))
    row = {"prompt": "up", "answer": "down"}
    (found,) = joint.encode(Dataset.from_list([row])).to_list()
    whole = {**row, "prompt": joint._render("up")}
    assert found["input_ids"] == expected_row(pieces, whole, 200)[0]
    texts = Dataset.from_dict({"text": ["the bank stays", "up"]})
    assert joint.encode(texts).to_list() == Encoder(pieces, 200, TextPolicy()).encode(texts).to_list()
