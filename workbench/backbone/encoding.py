"""Text to tokens: one template, one truncation policy and one set of limits for training and scoring alike."""

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
"""The day that a chat template takes for today: LLaMA-3's own templates fall back on it."""
DIRECTIVES = "aAbBcdDeFGHIjmMpSTuUVwWxXyYzZ"

AT_ONCE = 256
KEPT_BYTES = 2**28
COLUMNS = {"prompt_length": int64(), "row": int64(), "prompt_cut": bool_(), "answer_cut": bool_()}


@dataclass(frozen=True)
class TextPolicy:
    """How a prompt and its answer become tokens; the `data:` section of a config.

    Args:
        max_length: Prompt and answer together, in tokens. None: as many as the model has positions.
        max_prompt_length: The prompt alone, in tokens. None: what the longest answer leaves of `max_length`.
        max_answer_length: An upper bound, in tokens, on every task's own `max_new_tokens`.
        truncation: What an over-long prompt loses. "left": its beginning, as TRACE does (a long
            prompt loses its instruction); "middle": its middle, which keeps the instruction and the cue.
        template: "none": the prompt as it stands; "alpaca"; "chat": the tokenizer's own chat template.
        tokenization: "apart": prompt and answer each by itself, the prompt cut and the answer cut, with a begin token
            always and an end token unless the answer was cut. "joint": both as one text, cut on the left to
            `max_length` tokens; end and begin token are added only where there is room, the end token first. As many
            of the last tokens are labelled as the answer has by itself, with an end token. A prompt that is to be
            answered is cut on the left to its limit, with a begin token only where there is room.
        template_date: The day, as YYYY-MM-DD, that a chat template takes for today. The clock is never asked, so that
            tokens are the same on every day and in every process.

    Raises:
        ValueError: A limit is too low to hold any text, the date is none, or truncation "middle" is combined with
            "joint".
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
            told = f"data.template_date={self.template_date!r} is no date. Give one such as '{TEMPLATE_DATE}'."
            raise ValueError(told) from error
        least = {"max_length": 2, "max_prompt_length": 1, "max_answer_length": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"data.{name}={value} is out of range; it has to be at least {bound}.")
        if self.joint and self.truncation != "left":
            told = "data.tokenization=joint cuts prompt and answer together, on the left"
            raise ValueError(f"data.truncation={self.truncation}: {told}. Choose data.truncation=left.")

    @property
    def joint(self) -> bool:
        """Whether prompt and answer are tokenised as one text."""
        return self.tokenization == "joint"


class Encoder:
    """Turns rows of text into rows of tokens under one policy.

    Args:
        tokenizer: Any fast tokenizer with an end token.
        positions: The most tokens that the model takes.
        policy: Limits, truncation and template.

    Raises:
        ValueError: The tokenizer has no end token, so that no answer could ever stop; or the
            template is "chat" and the tokenizer has none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, positions: int, policy: TextPolicy) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "The tokenizer has no end token (eos_token), so that generation could never stop. Set one."
            )
        if policy.template == "chat" and not tokenizer.chat_template:
            raise ValueError("template: 'chat' needs a tokenizer with a chat template. Choose 'none' or 'alpaca'.")
        self._made = positions, policy
        self.restore(tokenizer)
        self._kept: dict[str, Dataset] = {}  # the latest last

    def restore(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """As it was made, over a fresh copy of the tokenizer; what is kept was kept under the state it was made in."""
        self.tokenizer = tokenizer
        self.positions, self.policy = self._made

    @property
    def state(self) -> str:
        """All that decides which tokens a text becomes, as far as it may change after the tokenizer was loaded."""
        tokenizer, backend = self.tokenizer, getattr(self.tokenizer, "backend_tokenizer", None)
        added = {index: repr(token) for index, token in sorted(tokenizer.added_tokens_decoder.items())}
        parts = [str(getattr(backend, part, None)) for part in ("normalizer", "pre_tokenizer", "post_processor")]
        ends = tokenizer.all_special_tokens, tokenizer.eos_token, tokenizer.chat_template
        return repr((len(tokenizer), added, parts, ends, self.policy, self.positions))

    def limits(self, max_new_tokens: int) -> tuple[int, int]:
        """The most tokens of a prompt and of an answer, for a task whose answers have `max_new_tokens`.

        Raises:
            ValueError: Both together do not fit into the model's positions.
        """
        policy = self.policy
        answer = min(max_new_tokens, policy.max_answer_length or max_new_tokens)
        prompt = (policy.max_length or self.positions) - answer
        if policy.max_prompt_length:
            room = prompt if policy.max_length else policy.max_prompt_length
            prompt = min(policy.max_prompt_length, room)
        if prompt < 1:
            raise ValueError(
                f"an answer may have {answer} tokens, which leaves none for the prompt out of "
                f"{policy.max_length or self.positions}. Set data.max_length higher, or data.max_answer_length lower."
            )
        if prompt + answer > self.positions:
            raise ValueError(
                f"{prompt} prompt and {answer} answer tokens do not fit: the model has {self.positions} positions. "
                "Set data.max_length, or data.max_prompt_length and data.max_answer_length."
            )
        if policy.joint and (policy.max_length or 0) > self.positions:
            raise ValueError(
                f"{policy.max_length} tokens of prompt and answer together do not fit: the model has {self.positions} "
                "positions. Set data.max_length lower."
            )
        return prompt, answer

    def prompt(self, text: str, limit: int) -> tuple[list[int], bool]:
        """The prompt's tokens in its template, at most `limit`, and whether it was cut.

        There is always one at least, after which the answer begins: where the tokenizer has no begin token, an empty
        prompt is the end token, which ends the text before.
        """
        return self._prompts([text], [limit])[0]

    def _prompts(self, texts: Sequence[str], limits: Sequence[int]) -> list[tuple[list[int], bool]]:
        """Tokens of prompts, each at most its limit, and whether it was cut."""
        tokens = self._tokens([self._render(text) for text in texts], special=self._begins and not self.policy.joint)
        if self.policy.joint:
            cut = zip(tokens, limits, strict=True)
            end = [self.tokenizer.eos_token_id]
            return [(self._with_begin(ids[-limit:], limit) or end, len(ids) > limit) for ids, limit in cut]
        whole = zip(texts, tokens, limits, strict=True)
        return [self._cut_prompt(text, ids, limit) for text, ids, limit in whole]

    def _with_begin(self, token_ids: list[int], limit: int) -> list[int]:
        """Put a begin token before a joint row, if there is such a token and room for it."""
        begin = self.tokenizer.bos_token_id if self._begins else None
        return [begin, *token_ids] if begin is not None and len(token_ids) < limit else token_ids

    @property
    def _begins(self) -> bool:
        """Whether the tokenizer adds its begin token: a chat template has its own."""
        return self.policy.template != "chat"

    def _cut_prompt(self, text: str, token_ids: list[int], limit: int) -> tuple[list[int], bool]:
        if len(token_ids) <= limit:
            return token_ids or [self.tokenizer.eos_token_id], False
        head, tail, room = self._frame(limit)
        (body,) = self._tokens([text], special=False)
        kept_first = room // 2 if self.policy.truncation == "middle" else 0
        return head + body[:kept_first] + body[len(body) - (room - kept_first) :] + tail, True

    def _frame(self, limit: int) -> tuple[list[int], list[int], int]:
        """The tokens before and after each prompt's text, and how many of the limit they leave for it."""
        before, after = self._render("\0").split("\0")
        (head,), (tail,) = self._tokens([before], special=self._begins), self._tokens([after], special=False)
        room = limit - len(head) - len(tail)
        if room < 1:
            what = "begin token" if self.policy.template == "none" else f"template {self.policy.template!r}"
            told = f"the {what} alone takes {limit - room}, which leaves none for the text"
            remedy = "Set data.max_length or data.max_prompt_length higher."
            raise ValueError(f"a prompt's limit in tokens is {limit}; {told}. {remedy}")
        return head, tail, room

    def check_room(self, max_new_tokens: int) -> None:
        """Refuse limits that leave no room for a prompt's text, for a task whose answers have `max_new_tokens`.

        Raises:
            ValueError: Prompt and answer do not fit into the model's positions, or the template fills the prompt.
        """
        self._frame(self.limits(max_new_tokens)[0])

    def answer(self, text: str, limit: int) -> tuple[list[int], bool]:
        """The answer's tokens and the end token, at most `limit`, and whether it was cut.

        A cut answer has no end token: the text is not at its end.
        """
        return self._cut_answer(self._tokens([text], special=False)[0], limit)

    def _cut_answer(self, token_ids: list[int], limit: int) -> tuple[list[int], bool]:
        return [*token_ids, self.tokenizer.eos_token_id][:limit], len(token_ids) >= limit

    def encode(self, rows: Dataset, max_new_tokens: int | None = None, packed: bool = False) -> Dataset:
        """Rows of {"prompt", "answer"}, of prompts alone, or of {"text"} to rows of tokens.

        A row may carry limits of its own: where rows of several tasks stand together, as in replay, each is cut
        where it was cut in its own task. What was encoded lately is kept, so that rows which are scored after each
        task are encoded once.

        Args:
            rows: The text; a text longer than the limit becomes several rows, so that none is lost. A prompt without
                an answer is encoded as it is read before one is generated. An integer
                column "max_new_tokens" is, where it is not None, that row's own longest answer.
            max_new_tokens: The longest answer in tokens of the other rows. None: as long as the longest one there.
            packed: Whether texts stand one after the other in rows of the longest length, each ended by the end token,
                rather than in rows of their own. Attention goes across them, as usual in pretraining.

        Returns:
            Columns input_ids (list of int), prompt_length (tokens that carry no label), row (the index in
            `rows`, of the first text in it), prompt_cut and answer_cut.
        """
        texts = {
            name: rows[name][:] for name in ("text", "prompt", "answer", "max_new_tokens") if name in rows.features
        }
        key = self._digest(texts, max_new_tokens, packed)
        kept = self._kept.pop(key, None) or self._encoded(texts, max_new_tokens, packed)
        self._kept[key] = kept
        while len(self._kept) > 1 and sum(encoded.data.nbytes for encoded in self._kept.values()) > KEPT_BYTES:
            del self._kept[next(iter(self._kept))]
        return kept

    def _digest(self, texts: Mapping[str, Sequence[Any]], *limits: Any) -> str:
        """Of the texts, the limits and the encoder's state."""
        digest = hashlib.sha256(repr((limits, self.state)).encode(errors="surrogatepass"))
        for name, values in texts.items():
            digest.update(f"{name}\x1f{len(values)}\x1f".encode())
            for value in values:
                written = str(value).encode(errors="surrogatepass")
                digest.update(f"{len(written)}\x1f".encode() + written)
        return digest.hexdigest()

    def _encoded(self, texts: Mapping[str, Sequence[Any]], max_new_tokens: int | None, packed: bool) -> Dataset:
        if "text" in texts and packed:
            encoded = self._packed(texts["text"])
        elif "text" in texts:
            before = self._before_text()
            whole = enumerate(self._whole(texts["text"]))
            encoded = [part for index, token_ids in whole for part in self._text_parts(before + token_ids, index)]
        elif "answer" not in texts:
            encoded = self._unanswered(texts, max_new_tokens)
        elif self.policy.joint:
            encoded = self._joint(texts, max_new_tokens or 1)
        else:
            encoded = self._pairs(texts, max_new_tokens)
        ends = np.cumsum([0, *(len(row["input_ids"]) for row in encoded)])
        flat = np.fromiter(chain.from_iterable(row["input_ids"] for row in encoded), np.int32, int(ends[-1]))
        columns: dict[str, Any] = {"input_ids": LargeListArray.from_arrays(ends, flat)}
        columns |= {name: array([row[name] for row in encoded], kind) for name, kind in COLUMNS.items()}
        return Dataset(InMemoryTable(table(columns)))

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

    def _limits(self, texts: Mapping[str, Sequence[Any]], longest: int) -> list[tuple[int, int]]:
        own = texts.get("max_new_tokens") or [None] * len(texts["prompt"])
        return [self.limits(tokens or longest) for tokens in own]

    def _unanswered(self, texts: Mapping[str, Sequence[Any]], max_new_tokens: int | None) -> list[dict[str, Any]]:
        limits = [prompt for prompt, _ in self._limits(texts, max_new_tokens or 1)]
        prompts = enumerate(self._prompts(texts["prompt"], limits))
        return [_row(prompt, len(prompt), index, (cut, False)) for index, (prompt, cut) in prompts]

    def _joint(self, texts: Mapping[str, Sequence[Any]], max_new_tokens: int) -> list[dict[str, Any]]:
        """Prompt and answer as one text, cut on the left, whatever the longest answer is.

        The number of labels is that of the answer by itself with an end token, also in a row that has no room for one:
        there the first label stands on the prompt's last token.
        """
        self.limits(max_new_tokens)
        limit = self.policy.max_length or self.positions
        pairs = zip(texts["prompt"], texts["answer"], strict=True)
        wholes = self._tokens([self._render(prompt) + answer for prompt, answer in pairs], special=False)
        answers = self._tokens(texts["answer"], special=False)
        rows = []
        for index, (whole, answer) in enumerate(zip(wholes, answers, strict=True)):
            kept = whole[-limit:]
            kept = [*kept, self.tokenizer.eos_token_id] if len(kept) < limit else kept
            kept = self._with_begin(kept, limit)
            labelled = min(len(answer) + 1, len(kept))
            rows.append(_row(kept, len(kept) - labelled, index, (len(whole) > limit, len(answer) >= limit)))
        return rows

    def producible(self, encoded: Dataset) -> list[tuple[str, bool]]:
        """What each row's answer is as a model would give it, and whether that is all of the answer.

        Args:
            encoded: Rows of prompt and answer (`encode`).

        Returns:
            The text that the answer's own tokens decode to, which a tokenizer may write otherwise (without a leading
            space, with composed accents). It is not all of the answer where that was cut, or where special tokens
            stand in it, such as the end token's text: they are dropped, and the end token ends the answer.
        """
        added = self.tokenizer.added_tokens_decoder.items()
        special = {*self.tokenizer.all_special_ids, *(number for number, token in added if token.special)}
        pairs = zip(encoded["input_ids"][:], encoded["prompt_length"][:], encoded["answer_cut"][:], strict=True)
        found = []
        for token_ids, size, cut in pairs:
            if self.policy.joint and token_ids[-1:] != [self.tokenizer.eos_token_id]:
                size += 1  # a row without room for an end token labels the prompt's last one too
            answer = token_ids[size:]
            whole = not cut and not special.intersection(answer[:-1])
            found.append((self.decode(answer), whole))
        return found

    def decode(self, token_ids: list[int]) -> str:
        """The text of an answer's tokens, as far as the end token."""
        end = self.tokenizer.eos_token_id
        token_ids = token_ids[: token_ids.index(end)] if end in token_ids else token_ids
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _text_parts(self, token_ids: list[int], index: int) -> list[dict[str, Any]]:
        return [_row(part, 0, index, (False, False)) for _, part in self._windows(token_ids)]

    def _packed(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        whole = self._whole(texts)
        before = self._before_text()
        owners = [0] * len(before) + [index for index, token_ids in enumerate(whole) for _ in token_ids]
        stream = before + [token for token_ids in whole for token in token_ids]
        return [_row(part, 0, owners[start], (False, False)) for start, part in self._windows(stream)]

    def _whole(self, texts: Sequence[str]) -> list[list[int]]:
        return [[*token_ids, self.tokenizer.eos_token_id] for token_ids in self._tokens(texts, special=True)]

    def _before_text(self) -> list[int]:
        """What a text's first token is predicted from where the tokenizer has no begin token: the end of a text."""
        return [] if self._tokens([""], special=True)[0] else [self.tokenizer.eos_token_id]

    def _windows(self, token_ids: list[int]) -> list[tuple[int, list[int]]]:
        """Where each row begins, and the row: neighbours share a token, so that each but the first is predicted."""
        size = min(self.policy.max_length or self.positions, self.positions)
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
        """Tokens of each text; many at a time, on all cores where TOKENIZERS_PARALLELISM allows it."""
        end, found = self.tokenizer.eos_token_id, []
        for start in range(0, len(texts), AT_ONCE):
            some = list(texts[start : start + AT_ONCE])
            found += self.tokenizer(
                some, add_special_tokens=special, return_attention_mask=False, verbose=False
            ).input_ids
        if special and self.tokenizer("a").input_ids[-1] == end:  # it is added; a begin token may be the same one
            return [ids[:-1] for ids in found]
        return found


def end_with(tokenizer: PreTrainedTokenizerBase, token: str | None) -> None:
    """Makes a known token the end token, which ends every answer in training and generation.

    Where a model was never trained on its tokenizer's end token, that token's embedding may be the same as
    other unused ones', and no method that freezes the embeddings can then learn to stop.

    Args:
        tokenizer: Changed in place.
        token: As the vocabulary spells it; None leaves the tokenizer as it is.

    Raises:
        ValueError: The vocabulary has no such token.
    """
    if token is None:
        return
    if token not in tokenizer.get_vocab():
        told = f"is not in the tokenizer's vocabulary of {len(tokenizer)} tokens. Choose one that is."
        raise ValueError(f"end_token={token!r} {told}")
    tokenizer.eos_token = token


@cache
def _fixed_clock(day: str) -> str:
    """Jinja that makes `strftime_now` tell one day at midnight: a template is given no function but its own macros."""
    midnight = datetime.combine(date.fromisoformat(day), time())
    names = [f"%{flag}{letter}" for flag in ("-", "") for letter in DIRECTIVES]
    replaced = "".join(f" | replace({name!r}, {midnight.strftime(name)!r})" for name in names)
    return "{%- macro strftime_now(format) -%}{{ format" + replaced + " }}{%- endmacro %}\n"  # which Jinja drops


def _row(token_ids: list[int], prompt_length: int, row: int, cut: tuple[bool, bool]) -> dict[str, Any]:
    return {
        "input_ids": token_ids,
        "prompt_length": prompt_length,
        "row": row,
        "prompt_cut": cut[0],
        "answer_cut": cut[1],
    }
