"""The scores of one model on one task."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TaskScore:
    """One cell of the score matrix, with everything that was measured there.

    Args:
        task: The name of the task that was tested.
        primary: The metric that enters the matrix.
        metrics: Every metric by name, the primary one among them.
        count: Rows that were scored.
        nats_per_token: Teacher-forced negative log-likelihood of the right answers.
        tokens: Answer tokens, end tokens among them.
        predictions: Rows of {"prompt", "prediction", "answer"}; none for a corpus. Those whose answer the tokenizer
            writes otherwise (`references`) also have "compared_with".
        cut: How many "prompts" and "answers" were too long and lost a part.
        decoded_tokens: Tokens of the answers that were given, end tokens among them.
        decode_seconds: What the strategy took to give them.
        errors: The standard error of each metric that knows its own: what the finite number of rows leaves open.
    """

    task: str
    primary: str
    metrics: dict[str, float]
    count: int
    nats_per_token: float
    tokens: int
    predictions: list[dict[str, str]] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=dict)
    decoded_tokens: int = 0
    decode_seconds: float = 0.0
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The primary metric."""
        return self.metrics[self.primary]
