"""Text to tokens: one template, one truncation policy and one set of limits for training and scoring alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{}\n\n### Response:\n"
)


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

    Raises:
        ValueError: A limit is too low to hold any text.
    """

    max_length: int | None = None
    max_prompt_length: int | None = None
    max_answer_length: int | None = None
    truncation: Literal["left", "middle"] = "left"
    template: Literal["none", "alpaca", "chat"] = "none"

    def __post_init__(self) -> None:
        least = {"max_length": 2, "max_prompt_length": 1, "max_answer_length": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"data.{name}={value} is out of range; it has to be at least {bound}.")


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
        self.tokenizer = tokenizer
        self.positions = positions
        self.policy = policy

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
        return prompt, answer

    def prompt(self, text: str, limit: int) -> tuple[list[int], bool]:
        """The prompt's tokens in its template, at most `limit`, and whether it was cut."""
        token_ids = self._tokens(self._render(text), special=self.policy.template != "chat")
        if len(token_ids) <= limit:
            return token_ids, False
        before, after = self._render("\0").split("\0")
        head = self._tokens(before, special=self.policy.template != "chat")
        tail = self._tokens(after, special=False) if after else []
        body = self._tokens(text, special=False)
        room = limit - len(head) - len(tail)
        if room < 1:
            told = f"The template {self.policy.template!r} alone is longer than the {limit} prompt tokens."
            raise ValueError(f"{told} Set data.max_length or data.max_prompt_length higher.")
        kept_first = room // 2 if self.policy.truncation == "middle" else 0
        return head + body[:kept_first] + body[len(body) - (room - kept_first) :] + tail, True

    def answer(self, text: str, limit: int) -> tuple[list[int], bool]:
        """The answer's tokens and the end token, at most `limit`, and whether it was cut.

        A cut answer has no end token: the text is not at its end.
        """
        token_ids = [*self._tokens(text, special=False), self.tokenizer.eos_token_id]
        return token_ids[:limit], len(token_ids) > limit

    def encode(self, rows: Dataset, max_new_tokens: int | None = None, packed: bool = False) -> Dataset:
        """Rows of {"prompt", "answer"} or {"text"} to rows of tokens.

        A row may carry limits of its own: where rows of several tasks stand together, as in replay, each is cut
        where it was cut in its own task.

        Args:
            rows: The text; a text longer than the limit becomes several rows, so that none is lost. An integer
                column "max_new_tokens" is, where it is not None, that row's own longest answer.
            max_new_tokens: The longest answer in tokens of the other rows. None: as long as the longest one there.
            packed: Whether texts stand one after the other in rows of the longest length, each ended by the end token,
                rather than in rows of their own. Attention goes across them, as usual in pretraining.

        Returns:
            Columns input_ids (list of int), prompt_length (tokens that carry no label), row (the index in
            `rows`, of the first text in it), prompt_cut and answer_cut.
        """
        if "text" in rows.column_names and packed:
            encoded = self._packed(rows["text"][:])
        elif "text" in rows.column_names:
            encoded = [part for index, row in enumerate(rows) for part in self._text_parts(row["text"], index)]
        else:
            longest = max_new_tokens or self._longest_answer(rows)
            encoded = [self._pair(row, index, row.get("max_new_tokens") or longest) for index, row in enumerate(rows)]
        columns = ("input_ids", "prompt_length", "row", "prompt_cut", "answer_cut")
        return Dataset.from_dict({name: [row[name] for row in encoded] for name in columns})

    def _longest_answer(self, rows: Dataset) -> int:
        return max((len(self._tokens(row["answer"], special=False)) + 1 for row in rows), default=1)

    def _pair(self, row: Mapping[str, Any], index: int, max_new_tokens: int) -> dict[str, Any]:
        prompt_limit, answer_limit = self.limits(max_new_tokens)
        prompt, prompt_cut = self.prompt(row["prompt"], prompt_limit)
        answer, answer_cut = self.answer(row["answer"], answer_limit)
        return _row(prompt + answer, len(prompt), index, (prompt_cut, answer_cut))

    def _text_parts(self, text: str, index: int) -> list[dict[str, Any]]:
        return [_row(part, 0, index, (False, False)) for _, part in self._windows(self._whole(text))]

    def _packed(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        whole = [self._whole(text) for text in texts]
        owners = [index for index, token_ids in enumerate(whole) for _ in token_ids]
        stream = [token for token_ids in whole for token in token_ids]
        return [_row(part, 0, owners[start], (False, False)) for start, part in self._windows(stream)]

    def _whole(self, text: str) -> list[int]:
        return [*self._tokens(text, special=True), self.tokenizer.eos_token_id]

    def _windows(self, token_ids: list[int]) -> list[tuple[int, list[int]]]:
        """Where each row begins, and the row: neighbours share a token, so that each but the first is predicted."""
        size = min(self.policy.max_length or self.positions, self.positions)
        return [(start, token_ids[start : start + size]) for start in range(0, len(token_ids) - 1, size - 1)]

    def _render(self, text: str) -> str:
        if self.policy.template == "alpaca":
            return ALPACA.replace("{}", text)
        if self.policy.template == "chat":
            message = [{"role": "user", "content": text}]
            return str(self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
        return text

    def _tokens(self, text: str, special: bool) -> list[int]:
        token_ids = list(self.tokenizer(text, add_special_tokens=special, verbose=False).input_ids)
        if special and token_ids and token_ids[-1] == self.tokenizer.eos_token_id:
            token_ids.pop()
        return token_ids


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


def _row(token_ids: list[int], prompt_length: int, row: int, cut: tuple[bool, bool]) -> dict[str, Any]:
    return {
        "input_ids": token_ids,
        "prompt_length": prompt_length,
        "row": row,
        "prompt_cut": cut[0],
        "answer_cut": cut[1],
    }
