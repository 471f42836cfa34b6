"""Protocol of TRACE's released code, for runs that are comparable with its published table."""

from __future__ import annotations

from workbench.benchmark import PublishedProtocol

PUBLISHED = PublishedProtocol(
    name="TRACE (Wang et al., 2023), released code",
    tokenization="joint",
    carry_optimizer=True,
    parts={
        "tokenization": "joint, 1024 + 512 = 1536 tokens; prompts at test: 1024 tokens",
        "training rows": "all",
        "optimizer": "Adam, betas 0.9 and 0.95, no decay, clipped at 1.0, one for all tasks",
        "rate": "1e-5, LoRA 1e-4; constant",
        "rows in a step": "256 (SeqFT, replay), 128 (others), 32 or 64 (LoRA)",
        "loss": "mean of the means of micro-batches of 1, 2 or 4 rows",
        "epochs": "5, 3, 7, 5, 3, 5, 5, 7 in order 1 (paper: 1, 1, 5, 5, 1, 5, 5, 5 for full fine-tuning)",
        "decoding": "sampled at temperature 0.1",
    },
)
PROTOCOLS = {"own": None, "published": PUBLISHED}
