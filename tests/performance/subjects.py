"""What is measured on: rows with the lengths of TRACE's, and random LLaMAs with a vocabulary of 32,000.

A word of the text is a token, so that a row has exactly the length that it is to have, through the real tokenizer.
`lengths.json` holds the tokens of prompt and answer of 128 training rows of each task of the 500-row data (end tokens
included), counted with a SentencePiece vocabulary of 32,000 pieces.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workbench.backbone import Backbone
from workbench.backbone.encoding import TextPolicy
from workbench.benchmark import Task
from workbench.runtime.seeding import seed_all
from workbench.scorers import ExactMatch

VOCABULARY = 32_000
LENGTHS: dict[str, list[list[int]]] = json.loads(Path(__file__).with_name("lengths.json").read_text(encoding="utf-8"))


def tokenizer(vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Words "2" to "31999", each a token; 0 is what is unknown, 1 the end."""
    words = {"<unk>": 0, "</s>": 1} | {str(number): number for number in range(2, vocabulary)}
    made = Tokenizer(WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>", pad_token="</s>")


def model(width: int, layers: int, vocabulary: int = VOCABULARY) -> LlamaForCausalLM:
    """A random LLaMA: heads of 64, LLaMA-2's ratio of the inner width, an untied head."""
    seed_all("performance", width, layers)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=-(-width * 8 // 3 // 32) * 32,
        num_hidden_layers=layers,
        num_attention_heads=max(width // 64, 1),
        num_key_value_heads=max(width // 64, 1),
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        eos_token_id=1,
        pad_token_id=1,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def backbone(width: int, layers: int, longest_prompt: int = 1024, longest_answer: int = 512) -> Backbone:
    """The same behind the workbench's operations."""
    policy = TextPolicy(max_prompt_length=longest_prompt, max_answer_length=longest_answer)
    return Backbone(lambda: model(width, layers), tokenizer(), text=policy)


def rows(lengths: Sequence[Sequence[int]], seed: int = 0, vocabulary: int = VOCABULARY) -> Dataset:
    """Random words: a prompt and an answer of so many tokens each, the answer's end token included."""
    drawn = random.Random(seed)

    def words(count: int) -> str:
        return " ".join(str(drawn.randrange(2, vocabulary)) for _ in range(count))

    pairs = [(words(prompt), words(answer - 1)) for prompt, answer in lengths]
    return Dataset.from_dict({"prompt": [pair[0] for pair in pairs], "answer": [pair[1] for pair in pairs]})


def trace_task(name: str, count: int, longest_answer: int = 512) -> Task:
    """A task with the first `count` lengths of TRACE's of that name, and one row to be tested on."""
    test = Dataset.from_dict({"prompt": ["2"], "answer": ["3"]})
    train = rows(LENGTHS[name][:count])
    return Task(name, test, train, scorers={"exact_match": ExactMatch()}, max_new_tokens=longest_answer)
