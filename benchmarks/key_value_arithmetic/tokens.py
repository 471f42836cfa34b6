"""Tokenizer of the models and their composition: each key, number and sign is one token."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from benchmarks.key_value_arithmetic.expressions import Expressions

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
WORDS = r"[a-z]+|[0-9]+|[^a-z0-9]"
POSITIONS = 64


def build_tokenizer(expressions: Expressions) -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer of keys, numbers and signs that prepends BOS.

    The paper's tokenizer splits keys into pieces and numbers into digits. Here a connection reads a key's number at
    the position of the key and provides it where m_B expects a number; two digits would need two positions.

    >>> tokenizer = build_tokenizer(Expressions(keys=20))
    >>> tokenizer.convert_ids_to_tokens(tokenizer("12+7=").input_ids)
    ['<s>', '12', '+', '7', '=']
    """
    words = [*SPECIAL, *"+-*=:", *map(str, range(expressions.largest + 1)), *expressions.numbers]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), "isolated")
    tokenizer.decoder = decoders.Fuse()
    bos = ("<s>", words.index("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[bos])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )
