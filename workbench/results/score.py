"""The scores of one model on one task."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TaskScore:
    """Scores of one cell of the score matrix.

    Args:
        task: Name of the task that was tested.
        primary: Name of the metric that enters the matrix.
        metrics: Every metric by name, the primary one included.
        count: Number of rows that were scored.
        nats_per_token: Negative log-likelihood of the right answers under teacher forcing, in nats per token.
        tokens: Number of answer tokens, end tokens included.
        predictions: Rows of {"prompt", "prediction", "answer"}; none for a corpus. Where the tokenizer writes the
            answer otherwise, the row has that text as "compared_with".
        cut: Number of "prompts" and "answers" that were truncated.
        decoded_tokens: Number of tokens of the predictions, end tokens included.
        decode_seconds: Time that the predictions took, in seconds.
        errors: Standard error over the rows of each metric that has one.
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
        """Value of the primary metric."""
        return self.metrics[self.primary]
