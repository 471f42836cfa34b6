"""Training of a small LLaMA from scratch on generated rows, and its exact match."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from benchmarks.key_value_arithmetic.expressions import Make, Row
from benchmarks.key_value_arithmetic.tokens import POSITIONS

BATCH_ROWS = 128
LEARNING_RATE = 3e-3
WARMUP_STEPS = 100
SIZES = {"hidden_size": 64, "intermediate_size": 168, "num_hidden_layers": 4, "num_attention_heads": 4}
Observe = Callable[[int, float], None]


def build_model(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """Return a model with random weights. All models have the same depth, so that each layer has a counterpart."""
    config = LlamaConfig(
        **SIZES,
        vocab_size=len(tokenizer),
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Return token ids, padded on the right, and a mask of the answer with its end token; both (batch, time)."""
    prompts = tokenizer([prompt for prompt, _ in rows])["input_ids"]
    answers = tokenizer([answer for _, answer in rows], add_special_tokens=False)["input_ids"]
    width = max(len(prompt) + len(answer) + 1 for prompt, answer in zip(prompts, answers, strict=True))
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    answered = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        whole = [*prompt, *answer, tokenizer.eos_token_id]
        ids[row, : len(whole)] = torch.tensor(whole)
        answered[row, len(prompt) : len(whole)] = True
    return ids, answered


def answer_logits(model: LlamaForCausalLM, ids: Tensor, answered: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits that predict each answer token, (tokens, vocabulary), and the tokens, (tokens,)."""
    states = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    return model.lm_head(states[answered[:, 1:]]), ids[:, 1:][answered[:, 1:]]


@torch.no_grad()
def exact_match(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> float:
    """Return the share of rows, in [0, 1], that greedy decoding answers exactly.

    Computed in one forward pass: greedy decoding yields the answer if and only if each of its tokens is the most
    likely one given the tokens before it.
    """
    ids, answered = encode(tokenizer, rows)
    logits, targets = answer_logits(model, ids, answered)
    right = torch.ones_like(answered[:, 1:])
    right[answered[:, 1:]] = logits.argmax(-1) == targets
    return right.all(-1).float().mean().item()


def rate_factor(step: int, steps: int) -> float:
    """Return the learning rate factor of a step: linear warm-up, then cosine decay to 0.01."""
    warmup = min(WARMUP_STEPS, max(1, steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def grouped(parameters: Iterable[nn.Parameter]) -> list[dict[str, object]]:
    """Return parameter groups: weight decay for matrices, none for vectors."""
    weights = list(parameters)
    matrices = [weight for weight in weights if weight.ndim > 1]
    vectors = [weight for weight in weights if weight.ndim <= 1]
    return [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    make: Make,
    steps: int,
    rng: random.Random,
    observe: Observe,
) -> None:
    """Train with AdamW on the answers of new rows; `observe` receives each step and its loss in nats per token."""
    optimizer = torch.optim.AdamW(grouped(model.parameters()), lr=LEARNING_RATE, betas=(0.9, 0.98))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, steps))
    for step in range(1, steps + 1):
        ids, answered = encode(tokenizer, [make(rng) for _ in range(BATCH_ROWS)])
        loss = nn.functional.cross_entropy(*answer_logits(model, ids, answered))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        observe(step, loss.item())
