"""The mini tokenizer, and how an episode becomes token ids with a weight for each."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from benchmarks.mini_trace.skills import Episode

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
CHINESE_CHARACTER = "[ã-ï].."
"""Three bytes that UTF-8 begins with E3 to EF, in byte-level BPE's own alphabet. None of German's begins so."""
MAX_LENGTH = 512
PROMPT_WEIGHT = 0.1

Encoded = tuple[list[int], list[float]]
"""Token ids of one episode, and the loss weight of each."""


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with digits apart, a BOS put first, and LLaMA's dummy prefix space.

    The prefix space makes an answer's first word the very token that the word is inside a prompt, so a fact
    can be copied out of the prompt; the decoder takes it off again.
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
    """Prompt and answer are encoded apart, as a workbench trains them: BOS prompt, answer, EOS, and so on.

    Prompts weigh little: most of their words are drawn at random, and nothing can be learnt from that.
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
