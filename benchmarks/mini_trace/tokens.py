"""The mini tokenizer, and the encoding of episodes as token ids with loss weights."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from benchmarks.mini_trace.skills import Episode

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
CHINESE_CHARACTER = "[ã-ï].."
"""A character of three UTF-8 bytes, the first E3 to EF, in the alphabet of byte-level BPE; no German letter is one."""
MAX_LENGTH = 512
PROMPT_WEIGHT = 0.1

Encoded = tuple[list[int], list[float]]
"""Token ids of an episode, and the loss weight of each token."""


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train byte-level BPE with separate digits, BOS first, and LLaMA's dummy prefix space.

    With the prefix space the first word of an answer is the same token as inside a prompt, so that a fact can be
    copied from the prompt. The decoder removes it.

    Args:
        texts: Training texts.
        vocabulary: Maximum number of tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.ByteLevel(add_prefix_space=True),
            pre_tokenizers.Split(Regex(f"{CHINESE_CHARACTER}|[0-9]"), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def encode_episodes(tokenizer: PreTrainedTokenizerBase, episodes: list[Episode]) -> list[Encoded]:
    """Encode episodes: BOS, prompt, answer, EOS, prompt, answer, EOS, ...

    Prompts and answers are tokenized separately, as the workbench does in training. Prompt tokens have a small weight:
    most of them are drawn at random and cannot be predicted.
    """
    texts = [text for episode in episodes for turn in episode for text in turn]
    encoded = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    rows: list[Encoded] = []
    for episode in episodes:
        ids, weights = [bos], [0.0]
        for _ in episode:
            prompt, answer = next(encoded), [*next(encoded), eos]
            ids += [*prompt, *answer]
            weights += [PROMPT_WEIGHT] * len(prompt) + [1.0] * len(answer)
        rows.append((ids, weights))
    return rows
