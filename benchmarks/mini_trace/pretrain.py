"""Pretraining of the mini backbones: `python -m benchmarks.mini_trace.pretrain OUT`.

OUT/mini is trained in two stages: first English only, until facts are retrieved from the prompt, then all skills, with
German and Chinese in a larger vocabulary. OUT/micro is a smaller model with the same tokenizer. All text is generated
and seeded, and one thread computes, so that training is deterministic on one machine.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from benchmarks.mini_trace.mix import FIRST, MIX, episode, first_episode, text_of
from benchmarks.mini_trace.skills import Episode, Skill
from benchmarks.mini_trace.tokens import MAX_LENGTH, Encoded, encode_episodes, train_tokenizer
from workbench.benchmark import seeded_random

BATCH_ROWS = 40
BUCKET_BATCHES = 32
WARMUP_STEPS = 200
TOKENIZER_ROWS = 20_000
FIRST_VOCABULARY = 800
VOCABULARY = 1280
"""Upper bound; fewer are used, since every word of the mix is a token before it is reached."""
Log = Callable[[str], None]
MakeEpisode = Callable[[random.Random, float], Episode]


@dataclass(frozen=True)
class Stage:
    """One stage of pretraining.

    Args:
        name: Name in the log, and seed of the rows.
        steps: Number of optimizer steps.
        learning_rate: Learning rate after warm-up.
        skills: Skills that are evaluated for the log.
        make: Function that returns an episode, given a random number generator and the share of finished steps.
    """

    name: str
    steps: int
    learning_rate: float
    skills: Mapping[str, Skill]
    make: MakeEpisode


FIRST_STAGE = Stage("pretraining", 7500, 2.5e-3, FIRST, first_episode)
SECOND_STAGE = Stage("broadening", 7000, 2.0e-3, MIX, lambda rng, progress: episode(rng))
MICRO_STAGE = Stage("micro", 6000, 3.0e-3, MIX, lambda rng, progress: episode(rng))
Sizes = dict[str, int]
MINI: Sizes = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4}
MICRO: Sizes = {"hidden_size": 64, "intermediate_size": 168, "num_hidden_layers": 3, "num_attention_heads": 4}


def build_tokenizer(skills: Mapping[str, Skill], vocabulary: int) -> PreTrainedTokenizerBase:
    """Train a tokenizer on text of all skills in equal shares, so that rare words get tokens too."""
    rng = seeded_random("tokenizer")
    makers = list(skills.values())
    texts = (text_of(makers[number % len(makers)](rng)) for number in range(TOKENIZER_ROWS))
    return train_tokenizer(texts, vocabulary)


def build_model(tokenizer: PreTrainedTokenizerBase, sizes: Sizes) -> LlamaForCausalLM:
    """Return a model with random weights: small enough to train in minutes, deep enough for layer surgery."""
    config = LlamaConfig(
        **sizes,
        vocab_size=len(tokenizer),
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


@torch.no_grad()
def with_vocabulary(
    model: LlamaForCausalLM, known: PreTrainedTokenizerBase, wider: PreTrainedTokenizerBase
) -> LlamaForCausalLM:
    """Return the model with a larger vocabulary; a new token is initialized as the mean of its former tokens."""
    grown = build_model(wider, {name: getattr(model.config, name) for name in MINI})
    state = model.state_dict()
    rows, spell = model.get_input_embeddings().weight, known.backend_tokenizer.model.tokenize
    ids, old = wider.get_vocab(), known.get_vocab()
    table = torch.empty(len(wider), rows.shape[1])
    for token, index in ids.items():
        spelt = [old[token]] if token in old else [part.id for part in spell(token)]
        table[index] = rows[spelt].mean(0)
    state |= {name: table for name in state if name.endswith(("embed_tokens.weight", "lm_head.weight"))}
    grown.load_state_dict(state)
    return grown


def collate(rows: list[Encoded], pad: int) -> tuple[Tensor, Tensor]:
    """Return token ids and loss weights, padded on the right (causal attention needs no mask); both (batch, time)."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [pad] * (width - len(row)) for row, _ in rows])
    weights = torch.tensor([row + [0.0] * (width - len(row)) for _, row in rows])
    return ids, weights


def batches(tokenizer: PreTrainedTokenizerBase, stage: Stage) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield new batches for a stage's steps or a few more, bucketed by length to reduce padding."""
    rng = seeded_random(stage.name)
    for done in range(0, stage.steps, BUCKET_BATCHES):
        made = [stage.make(rng, done / stage.steps) for _ in range(BATCH_ROWS * BUCKET_BATCHES)]
        rows = encode_episodes(tokenizer, made)
        rows.sort(key=lambda row: len(row[0]))
        parts = [rows[start : start + BATCH_ROWS] for start in range(0, len(rows), BATCH_ROWS)]
        rng.shuffle(parts)
        for part in parts:
            yield collate(part, tokenizer.pad_token_id)


def token_losses(model: LlamaForCausalLM, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of each next token in nats, and whether it is the most likely one; both (batch, time - 1)."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    targets = ids[:, 1:]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view_as(targets), logits.argmax(-1) == targets


@torch.no_grad()
def exact_match(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, skills: Mapping[str, Skill], rows: int = 64
) -> dict[str, float]:
    """Return the share of first questions answered exactly by greedy decoding, by skill, in [0, 1].

    The rows have a seed that training does not use. Computed in one forward pass: greedy decoding yields the answer if
    and only if each of its tokens is the most likely one given the tokens before it.
    """
    scores: dict[str, float] = {}
    for name, skill in skills.items():
        rng = seeded_random("skill-test", name)
        encoded = encode_episodes(tokenizer, [skill(rng)[:1] for _ in range(rows)])
        ids, weights = collate(encoded, tokenizer.pad_token_id)
        _, likeliest = token_losses(model, ids)
        scores[name] = (likeliest | (weights[:, 1:] < 1)).all(-1).float().mean().item()
    return scores


def learning_rate_factor(step: int, steps: int) -> float:
    """Return the learning rate factor of a step: linear warm-up, then cosine decay to 0.01."""
    warmup = min(WARMUP_STEPS, max(1, steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save the model in bfloat16 and its tokenizer, loadable with plain transformers."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, stage: Stage, observe: Callable[[int, float], None]
) -> None:
    """Train with AdamW on the weighted loss of new rows; `observe` receives each step and its loss in nats."""
    decayed = [weight for weight in model.parameters() if weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=stage.learning_rate, betas=(0.9, 0.98))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, stage.steps))
    stream = batches(tokenizer, stage)
    for step in range(1, stage.steps + 1):
        ids, weights = next(stream)
        losses, _ = token_losses(model, ids)
        loss = (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        observe(step, loss.item())


def learn(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, stage: Stage, folder: Path, log: Log) -> None:
    """Train one stage and log its loss and exact match; the model is saved every 1000 steps."""
    parameters = sum(weight.numel() for weight in model.parameters())
    log(f"{stage.name}: steps {stage.steps}  parameters {parameters}  vocabulary {len(tokenizer)}")
    recent: list[float] = []
    started = time.perf_counter()

    def observe(step: int, loss: float) -> None:
        recent.append(loss)
        if step % 250 == 0 or step == stage.steps:
            seconds = time.perf_counter() - started
            log(f"step {step:5d}  loss {sum(recent) / len(recent):.4f}  seconds {seconds:.0f}")
            recent.clear()
        if step % 1000 == 0 or step == stage.steps:
            scores = exact_match(model, tokenizer, stage.skills)
            log("  " + "  ".join(f"{name} {score:.2f}" for name, score in scores.items()))
            save(model, tokenizer, folder)

    train(model, tokenizer, stage, observe)


def load(folder: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """Load a saved model in float32, and its tokenizer."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def pretrain_first(folder: Path, stage: Stage = FIRST_STAGE, log: Log = print) -> None:
    """Train the first stage: English only."""
    one_thread_one_seed()
    tokenizer = build_tokenizer(FIRST, FIRST_VOCABULARY)
    learn(build_model(tokenizer, MINI), tokenizer, stage, folder, log)


def pretrain_second(first: Path, folder: Path, stage: Stage = SECOND_STAGE, log: Log = print) -> None:
    """Train the second stage: the first stage's model with a larger vocabulary, on the whole mix."""
    one_thread_one_seed()
    model, known = load(first)
    wider = build_tokenizer(MIX, VOCABULARY)
    learn(with_vocabulary(model, known, wider), wider, stage, folder, log)


def pretrain_micro(mini: Path, folder: Path, stage: Stage = MICRO_STAGE, log: Log = print) -> None:
    """Train the smaller model on the whole mix, with the tokenizer of mini."""
    one_thread_one_seed()
    tokenizer = AutoTokenizer.from_pretrained(mini)
    learn(build_model(tokenizer, MICRO), tokenizer, stage, folder, log)


def one_thread_one_seed() -> None:
    """Use one thread and a fixed seed, so that a stage is reproducible."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


def main() -> None:
    """Train all models; the log is written next to them."""
    parser = argparse.ArgumentParser(description="Train the mini backbones from generated text.")
    parser.add_argument("out", type=Path, help="folder of the trained models: first, mini, micro")
    out = parser.parse_args().out
    disable_progress_bar()
    out.mkdir(parents=True, exist_ok=True)
    with (out / "pretrain.log").open("w", encoding="utf-8") as file:

        def log(line: str) -> None:
            print(line, flush=True)
            print(line, file=file, flush=True)

        pretrain_first(out / "first", log=log)
        pretrain_second(out / "first", out / "mini", log=log)
        pretrain_micro(out / "mini", out / "micro", log=log)


if __name__ == "__main__":
    main()
