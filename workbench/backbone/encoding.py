"""Text to tokens: the same template, truncation and length limits in training and in evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import cache
from itertools import chain
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from datasets.table import InMemoryTable
from pyarrow import LargeListArray, array, bool_, int64, table
from transformers import PreTrainedTokenizerBase

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{}\n\n### Response:\n"
)

TEMPLATE_DATE = "2024-07-26"
"""Default date for chat templates: LLaMA-3's own templates fall back to it."""
DIRECTIVES = "aAbBcdDeFGHIjmMpSTuUVwWxXyYzZ"
"""Format letters of `strftime`."""
TOKENIZER_BATCH = 256
"""Texts that are tokenised at once."""
CACHE_BYTES = 2**28
"""Size of the encoder's cache."""
COLUMNS = {"prompt_length": int64(), "row": int64(), "prompt_cut": bool_(), "answer_cut": bool_()}
"""Columns of encoded rows beside `input_ids`."""


@dataclass(frozen=True)
class TextPolicy:
    """How a prompt and its answer become tokens; part of a config's `data:` section.

    Args:
        max_length: Maximum length of prompt and answer together, in tokens. None: the model's number of positions.
        max_prompt_length: Maximum length of the prompt, in tokens. None: what the longest answer leaves of
            `max_length`.
        max_answer_length: Upper bound, in tokens, on every task's own `max_new_tokens`.
        truncation: Which part an over-long prompt loses. "left": its beginning, as in TRACE, so that a long prompt
            loses its instruction; "middle": its middle, which keeps the instruction and the final cue.
        template: "none": the prompt as it is; "alpaca"; "chat": the tokenizer's own chat template.
        tokenization: "apart": prompt and answer are tokenised and cut separately, with a begin token always, and an end
            token unless the answer was cut. "joint": both are tokenised as one text, cut on the left to `max_length`
            tokens; the end token, then the begin token, is added only where there is room. As many of the last tokens
            carry labels as the answer has on its own with an end token. In generation, a prompt is cut on the left to
            its limit, with a begin token only where there is room.
        template_date: Date, as YYYY-MM-DD, that a chat template uses for today. The clock is never read, so that the
            tokens are the same every day and in every process.

    Raises:
        ValueError: A limit is too low to hold any text, the date is not valid, or truncation "middle" is combined with
            tokenization "joint".
    """

    max_length: int | None = None
    max_prompt_length: int | None = None
    max_answer_length: int | None = None
    truncation: Literal["left", "middle"] = "left"
    template: Literal["none", "alpaca", "chat"] = "none"
    tokenization: Literal["apart", "joint"] = "apart"
    template_date: str = TEMPLATE_DATE

    def __post_init__(self) -> None:
        try:
            date.fromisoformat(self.template_date)
        except ValueError as error:
            message = f"data.template_date={self.template_date!r} is no date. Give one such as '{TEMPLATE_DATE}'."
            raise ValueError(message) from error
        minimum = {"max_length": 2, "max_prompt_length": 1, "max_answer_length": 1}
        for name, bound in minimum.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"data.{name}={value} is out of range; it has to be at least {bound}.")
        if self.joint and self.truncation != "left":
            message = "data.tokenization=joint cuts prompt and answer together, on the left"
            raise ValueError(f"data.truncation={self.truncation}: {message}. Choose data.truncation=left.")

    @property
    def joint(self) -> bool:
        """Whether prompt and answer are tokenised as one text."""
        return self.tokenization == "joint"


class Encoder:
    """Encodes rows of text as rows of tokens under one policy.

    Args:
        tokenizer: Any fast tokenizer with an end token.
        positions: Maximum number of tokens that the model can read.
        policy: Length limits, truncation and template.

    Attributes:
        prefix: Token ids before each row, such as those of a soft prompt. They carry no label, do not count towards
            `policy.max_length`, and take their share of the model's positions.

    Raises:
        ValueError: The tokenizer has no end token, so that no answer would ever stop; or the template is "chat" and
            the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, positions: int, policy: TextPolicy) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "The tokenizer has no end token (eos_token), so that generation could never stop. Set one."
            )
        if policy.template == "chat" and not tokenizer.chat_template:
            raise ValueError("template: 'chat' needs a tokenizer with a chat template. Choose 'none' or 'alpaca'.")
        self._initial = positions, policy
        self.restore(tokenizer)
        self._cache: dict[str, Dataset] = {}  # the most recently used last

    def restore(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Restore the initial limits and policy, with a fresh copy of the tokenizer.

        The cache stays valid, because its keys contain the encoder's state.
        """
        self.tokenizer = tokenizer
        self.positions, self.policy = self._initial
        self.prefix: list[int] = []

    @property
    def state(self) -> str:
        """Everything that determines a text's tokens and may change after the tokenizer was loaded."""
        tokenizer, backend = self.tokenizer, getattr(self.tokenizer, "backend_tokenizer", None)
        added = {index: repr(token) for index, token in sorted(tokenizer.added_tokens_decoder.items())}
        parts = [str(getattr(backend, part, None)) for part in ("normalizer", "pre_tokenizer", "post_processor")]
        ends = tokenizer.all_special_tokens, tokenizer.eos_token, tokenizer.chat_template
        return repr((len(tokenizer), added, parts, ends, self.policy, self.positions, self.prefix))

    @property
    def room(self) -> int:
        """Positions of the model that are left for a row's text."""
        return self.positions - len(self.prefix)

    def limits(self, max_new_tokens: int) -> tuple[int, int]:
        """Return the maximum length of a prompt and of an answer in tokens.

        Args:
            max_new_tokens: The task's longest answer.

        Raises:
            ValueError: The two together exceed `max_length` or the model's positions.
        """
        policy = self.policy
        answer = min(max_new_tokens, policy.max_answer_length or max_new_tokens)
        prompt = (policy.max_length or self.room) - answer
        if policy.max_prompt_length:
            room = prompt if policy.max_length else policy.max_prompt_length
            prompt = min(policy.max_prompt_length, room)
        if prompt < 1:
            raise ValueError(
                f"an answer may have {answer} tokens, which leaves none for the prompt out of "
                f"{policy.max_length or self.room}. Set data.max_length higher, or data.max_answer_length lower."
            )
        if prompt + answer > self.room:
            raise ValueError(
                f"{prompt} prompt and {answer} answer tokens do not fit: the model has {self._positions}. "
                "Set data.max_length, or data.max_prompt_length and data.max_answer_length."
            )
        if policy.joint and (policy.max_length or 0) > self.room:
            raise ValueError(
                f"{policy.max_length} tokens of prompt and answer together do not fit: the model has "
                f"{self._positions}. Set data.max_length lower."
            )
        return prompt, answer

    @property
    def _positions(self) -> str:
        """The model's number of positions in words."""
        taken = f", of which soft prompts take {len(self.prefix)}" if self.prefix else ""
        return f"{self.positions} positions{taken}"

    def prompt(self, text: str, limit: int) -> tuple[list[int], bool]:
        """Return a prompt's tokens within its template, at most `limit`, and whether the prompt was cut.

        There is at least one token, from which the answer's first token is predicted: if the tokenizer has no begin
        token, an empty prompt becomes the end token, as at the end of a previous text.
        """
        return self._prompts([text], [limit])[0]

    def answer(self, text: str, limit: int) -> tuple[list[int], bool]:
        """Return an answer's tokens and the end token, at most `limit`, and whether the answer was cut.

        A cut answer has no end token, since the text does not end there.
        """
        return self._cut_answer(self._tokens([text], special=False)[0], limit)

    def check_room(self, max_new_tokens: int) -> None:
        """Refuse limits that leave no room for a prompt's text.

        Args:
            max_new_tokens: The task's longest answer in tokens.

        Raises:
            ValueError: Prompt and answer do not fit into the model's positions, or the template fills the prompt.
        """
        self._frame(self.limits(max_new_tokens)[0])

    def encode(self, rows: Dataset, max_new_tokens: int | None = None, packed: bool = False) -> Dataset:
        """Encode rows of {"prompt", "answer"}, of prompts alone, or of {"text"}.

        A row may carry its own limit: when rows of several tasks are mixed, as in replay, each is cut where it was cut
        in its own task. Recently encoded rows are cached, so that test rows are encoded once and not after every task.

        Args:
            rows: The text. A corpus text longer than the limit becomes several rows, so that nothing is lost. A prompt
                without an answer is encoded as in generation. Where an integer column "max_new_tokens" is not None, it
                is that row's own longest answer.
            max_new_tokens: Longest answer of the other rows, in tokens. None: as long as the longest answer in `rows`.
            packed: Whether texts are concatenated into rows of full length, each text followed by the end token,
                instead of one row per text. Attention crosses their borders, as is usual in pretraining.

        Returns:
            Columns input_ids (list of int), prompt_length (number of leading tokens without a label), row (index in
            `rows`; in a packed row that of its first text), prompt_cut and answer_cut.
        """
        texts = {
            name: rows[name][:] for name in ("text", "prompt", "answer", "max_new_tokens") if name in rows.features
        }
        key = self._digest(texts, max_new_tokens, packed)
        encoded = self._cache.pop(key, None) or self._encode(texts, max_new_tokens, packed)
        self._cache[key] = encoded
        while len(self._cache) > 1 and sum(entry.data.nbytes for entry in self._cache.values()) > CACHE_BYTES:
            del self._cache[next(iter(self._cache))]
        return encoded

    def decode(self, token_ids: list[int]) -> str:
        """Return the text of an answer's tokens up to the end token."""
        end = self.tokenizer.eos_token_id
        token_ids = token_ids[: token_ids.index(end)] if end in token_ids else token_ids
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def producible(self, encoded: Dataset) -> list[tuple[str, bool]]:
        """Return each row's answer as a model can produce it, and whether that is the complete answer.

        Args:
            encoded: Rows of prompt and answer (`encode`).

        Returns:
            The text that the answer's own tokens decode to, which may differ from the answer (no leading space,
            composed accents). It is incomplete if the answer was cut, or contains special tokens such as the end
            token's text: special tokens are dropped, and the end token ends the answer.
        """
        added = self.tokenizer.added_tokens_decoder.items()
        special = {*self.tokenizer.all_special_ids, *(number for number, token in added if token.special)}
        rows = zip(encoded["input_ids"][:], encoded["prompt_length"][:], encoded["answer_cut"][:], strict=True)
        producible = []
        for token_ids, prompt_length, cut in rows:
            if self.policy.joint and token_ids[-1:] != [self.tokenizer.eos_token_id]:
                prompt_length += 1  # without room for an end token, the first label is on the prompt's last token
            answer = token_ids[prompt_length:]
            complete = not cut and not special.intersection(answer[:-1])
            producible.append((self.decode(answer), complete))
        return producible

    def _digest(self, texts: Mapping[str, Sequence[Any]], *limits: Any) -> str:
        """Return a checksum of the texts, the limits and the encoder's state."""
        digest = hashlib.sha256(repr((limits, self.state)).encode(errors="surrogatepass"))
        for name, values in texts.items():
            digest.update(f"{name}\x1f{len(values)}\x1f".encode())
            for value in values:
                content = str(value).encode(errors="surrogatepass")
                digest.update(f"{len(content)}\x1f".encode() + content)
        return digest.hexdigest()

    def _encode(self, texts: Mapping[str, Sequence[Any]], max_new_tokens: int | None, packed: bool) -> Dataset:
        if "text" in texts:
            rows = self._packed(texts["text"]) if packed else self._unpacked(texts["text"])
        elif "answer" not in texts:
            rows = self._unanswered(texts, max_new_tokens)
        elif self.policy.joint:
            rows = self._joint(texts, max_new_tokens or 1)
        else:
            rows = self._pairs(texts, max_new_tokens)
        if self.prefix:
            rows = [self._with_prefix(row) for row in rows]
        ends = np.cumsum([0, *(len(row["input_ids"]) for row in rows)])
        flat = np.fromiter(chain.from_iterable(row["input_ids"] for row in rows), np.int32, int(ends[-1]))
        columns: dict[str, Any] = {"input_ids": LargeListArray.from_arrays(ends, flat)}
        columns |= {name: array([row[name] for row in rows], kind) for name, kind in COLUMNS.items()}
        return Dataset(InMemoryTable(table(columns)))

    def _with_prefix(self, row: dict[str, Any]) -> dict[str, Any]:
        """Put the prefix before a row; the row's first token, which nothing predicted before, gets no label either."""
        prompt_length = len(self.prefix) + max(row["prompt_length"], 1)
        return {**row, "input_ids": self.prefix + row["input_ids"], "prompt_length": prompt_length}

    def _pairs(self, texts: Mapping[str, Sequence[Any]], max_new_tokens: int | None) -> list[dict[str, Any]]:
        answers = self._tokens(texts["answer"], special=False)
        longest = max_new_tokens or max((len(answer) + 1 for answer in answers), default=1)
        limits = self._limits(texts, longest)
        prompts = self._prompts(texts["prompt"], [prompt for prompt, _ in limits])
        rows = []
        for index, ((prompt, prompt_cut), answer, (_, limit)) in enumerate(zip(prompts, answers, limits, strict=True)):
            answer, answer_cut = self._cut_answer(answer, limit)
            rows.append(_row(prompt + answer, len(prompt), index, (prompt_cut, answer_cut)))
        return rows

    def _joint(self, texts: Mapping[str, Sequence[Any]], max_new_tokens: int) -> list[dict[str, Any]]:
        """Encode prompt and answer as one text, cut on the left, whatever the longest answer is.

        A row has as many labels as the answer has tokens on its own with an end token, even without room for an end
        token: then the first label is on the prompt's last token.
        """
        self.limits(max_new_tokens)
        limit = self.policy.max_length or self.room
        pairs = zip(texts["prompt"], texts["answer"], strict=True)
        wholes = self._tokens([self._render(prompt) + answer for prompt, answer in pairs], special=False)
        answers = self._tokens(texts["answer"], special=False)
        rows = []
        for index, (whole, answer) in enumerate(zip(wholes, answers, strict=True)):
            token_ids = whole[-limit:]
            token_ids = [*token_ids, self.tokenizer.eos_token_id] if len(token_ids) < limit else token_ids
            token_ids = self._with_begin(token_ids, limit)
            labelled = min(len(answer) + 1, len(token_ids))
            cut = len(whole) > limit, len(answer) >= limit
            rows.append(_row(token_ids, len(token_ids) - labelled, index, cut))
        return rows

    def _unanswered(self, texts: Mapping[str, Sequence[Any]], max_new_tokens: int | None) -> list[dict[str, Any]]:
        limits = [prompt for prompt, _ in self._limits(texts, max_new_tokens or 1)]
        prompts = enumerate(self._prompts(texts["prompt"], limits))
        return [_row(prompt, len(prompt), index, (cut, False)) for index, (prompt, cut) in prompts]

    def _unpacked(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        before = self._before_text()
        documents = enumerate(self._ended(texts))
        return [
            _row(window, 0, index, (False, False))
            for index, token_ids in documents
            for _, window in self._windows(before + token_ids)
        ]

    def _packed(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        documents = self._ended(texts)
        before = self._before_text()
        indices = [0] * len(before) + [index for index, token_ids in enumerate(documents) for _ in token_ids]
        stream = before + [token for token_ids in documents for token in token_ids]
        return [_row(window, 0, indices[start], (False, False)) for start, window in self._windows(stream)]

    def _limits(self, texts: Mapping[str, Sequence[Any]], longest: int) -> list[tuple[int, int]]:
        """Return each row's limits: its own where it has one, else those of `longest`."""
        own = texts.get("max_new_tokens") or [None] * len(texts["prompt"])
        return [self.limits(tokens or longest) for tokens in own]

    def _prompts(self, texts: Sequence[str], limits: Sequence[int]) -> list[tuple[list[int], bool]]:
        """Return the tokens of each prompt, at most its limit, and whether it was cut."""
        tokens = self._tokens(
            [self._render(text) for text in texts], special=self._adds_begin and not self.policy.joint
        )
        if self.policy.joint:
            end = [self.tokenizer.eos_token_id]
            return [
                (self._with_begin(token_ids[-limit:], limit) or end, len(token_ids) > limit)
                for token_ids, limit in zip(tokens, limits, strict=True)
            ]
        rows = zip(texts, tokens, limits, strict=True)
        return [self._cut_prompt(text, token_ids, limit) for text, token_ids, limit in rows]

    def _cut_prompt(self, text: str, token_ids: list[int], limit: int) -> tuple[list[int], bool]:
        if len(token_ids) <= limit:
            return token_ids or [self.tokenizer.eos_token_id], False
        head, tail, room = self._frame(limit)
        (body,) = self._tokens([text], special=False)
        first = room // 2 if self.policy.truncation == "middle" else 0
        return head + body[:first] + body[len(body) - (room - first) :] + tail, True

    def _cut_answer(self, token_ids: list[int], limit: int) -> tuple[list[int], bool]:
        return [*token_ids, self.tokenizer.eos_token_id][:limit], len(token_ids) >= limit

    def _frame(self, limit: int) -> tuple[list[int], list[int], int]:
        """Return the tokens before and after each prompt's text, and the room in tokens that they leave for it."""
        before, after = self._render("\0").split("\0")
        (head,), (tail,) = self._tokens([before], special=self._adds_begin), self._tokens([after], special=False)
        room = limit - len(head) - len(tail)
        if room < 1:
            what = "begin token" if self.policy.template == "none" else f"template {self.policy.template!r}"
            message = f"the {what} alone takes {limit - room}, which leaves none for the text"
            remedy = "Set data.max_length or data.max_prompt_length higher."
            raise ValueError(f"a prompt's limit in tokens is {limit}; {message}. {remedy}")
        return head, tail, room

    def _with_begin(self, token_ids: list[int], limit: int) -> list[int]:
        """Put the begin token before a joint row, if the tokenizer has one and there is room."""
        begin = self.tokenizer.bos_token_id if self._adds_begin else None
        return [begin, *token_ids] if begin is not None and len(token_ids) < limit else token_ids

    @property
    def _adds_begin(self) -> bool:
        """Whether the tokenizer adds its begin token; a chat template contains its own."""
        return self.policy.template != "chat"

    def _ended(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text with an end token."""
        return [[*token_ids, self.tokenizer.eos_token_id] for token_ids in self._tokens(texts, special=True)]

    def _before_text(self) -> list[int]:
        """Return an end token, from which a text's first token is predicted, if the tokenizer has no begin token."""
        return [] if self._tokens([""], special=True)[0] else [self.tokenizer.eos_token_id]

    def _windows(self, token_ids: list[int]) -> list[tuple[int, list[int]]]:
        """Cut tokens into rows, each with its start; neighbours share a token, so that only the first has no label."""
        size = min(self.policy.max_length or self.room, self.room)
        return [(start, token_ids[start : start + size]) for start in range(0, len(token_ids) - 1, size - 1)]

    def _render(self, text: str) -> str:
        if self.policy.template == "alpaca":
            return ALPACA.replace("{}", text)
        if self.policy.template == "chat":
            message = [{"role": "user", "content": text}]
            template = self.tokenizer.get_chat_template()
            if "strftime_now" in template:
                template = _fixed_clock(self.policy.template_date) + template
            return str(
                self.tokenizer.apply_chat_template(
                    message, chat_template=template, tokenize=False, add_generation_prompt=True
                )
            )
        return text

    def _tokens(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        """Tokenise texts in batches, on all cores where TOKENIZERS_PARALLELISM allows it; never with an end token."""
        end, tokens = self.tokenizer.eos_token_id, []
        for start in range(0, len(texts), TOKENIZER_BATCH):
            batch = list(texts[start : start + TOKENIZER_BATCH])
            tokens += self.tokenizer(
                batch, add_special_tokens=special, return_attention_mask=False, verbose=False
            ).input_ids
        if special and self.tokenizer("a").input_ids[-1] == end:  # the tokenizer appends its end token
            return [token_ids[:-1] for token_ids in tokens]
        return tokens


def set_end_token(tokenizer: PreTrainedTokenizerBase, token: str | None) -> None:
    """Make a token of the vocabulary the end token, which ends every answer in training and generation.

    If a model was never trained on its tokenizer's end token, that token's embedding may equal those of other unused
    tokens, and a method that freezes the embeddings could never learn to stop.

    Args:
        tokenizer: Changed in place.
        token: As the vocabulary spells it; None leaves the tokenizer as it is.

    Raises:
        ValueError: The vocabulary has no such token.
    """
    if token is None:
        return
    if token not in tokenizer.get_vocab():
        message = f"is not in the tokenizer's vocabulary of {len(tokenizer)} tokens. Choose one that is."
        raise ValueError(f"end_token={token!r} {message}")
    tokenizer.eos_token = token


@cache
def _fixed_clock(day: str) -> str:
    """Return a Jinja macro `strftime_now` that always formats midnight of one day; it shadows the template's clock."""
    midnight = datetime.combine(date.fromisoformat(day), time())
    names = [f"%{flag}{letter}" for flag in ("-", "") for letter in DIRECTIVES]
    replaced = "".join(f" | replace({name!r}, {midnight.strftime(name)!r})" for name in names)
    return "{%- macro strftime_now(format) -%}{{ format" + replaced + " }}{%- endmacro %}\n"  # Jinja drops the newline


def _row(token_ids: list[int], prompt_length: int, row: int, cut: tuple[bool, bool]) -> dict[str, Any]:
    return {
        "input_ids": token_ids,
        "prompt_length": prompt_length,
        "row": row,
        "prompt_cut": cut[0],
        "answer_cut": cut[1],
    }
