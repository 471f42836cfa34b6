"""Summary metrics of the score matrix R.

R has shape (T+1, T). R[l, i] is the primary score on task i after training on the first l tasks; row 0 is the model
as loaded (zero-shot). The formulas count tasks from 1, the tensor's columns from 0. Scores are in [0, 1], higher is
better. NaN marks a cell that was not measured; a metric that needs such a cell is NaN. The literature uses one name
for different definitions, which disagree on the same matrix: each definition has a function of its own here, and a
table should state which one it shows.
"""

from __future__ import annotations

import torch
from torch import Tensor


def overall_performance(R: Tensor, after: int | None = None) -> float:
    """Return the mean score on all learnt tasks, OP, in [0, 1]; higher is better.

    OP = 1/T Σ_i R[T, i], or OP_t = 1/t Σ_{i≤t} R[t, i] after the first t tasks   (Wang et al., 2023, TRACE)

    Args:
        R: Scores, (T+1, T).
        after: t, the number of learnt tasks. None: T.

    Raises:
        ValueError: R has another shape, or `after` is not within 1 … T.

    >>> R = torch.tensor([[0.1, 0.2], [0.9, 0.3], [0.5, 0.8]])
    >>> round(overall_performance(R), 4), round(overall_performance(R, after=1), 4)
    (0.65, 0.9)
    """
    scores, t = _checked(R, after)
    return _mean(scores[t, :t])


def backward_transfer(R: Tensor, after: int | None = None) -> float:
    """Return backward transfer, in [-1, 1]: the change of earlier tasks' scores; negative means forgetting.

    BWT_t = 1/(t-1) Σ_{i<t} (R[t, i] - R[i, i])   (Lopez-Paz & Ranzato, 2017; TRACE for t < T)

    Args:
        R: Scores, (T+1, T).
        after: t, the number of learnt tasks. None: T.

    Returns:
        NaN for t = 1, when there is no earlier task.

    >>> R = torch.tensor([[0.1, 0.2], [0.9, 0.3], [0.5, 0.8]])
    >>> round(backward_transfer(R), 4)
    -0.4
    """
    scores, t = _checked(R, after)
    return _mean(_changes(scores, t))


def backward_transfer_over_all(R: Tensor) -> float:
    """Return backward transfer divided by T instead of T - 1, in [-1, 1]; some codebases report it as BWT.

    1/T Σ_{i<T} (R[T, i] - R[i, i]) = (T-1)/T · BWT

    Args:
        R: Scores, (T+1, T).

    >>> R = torch.tensor([[0.1, 0.2], [0.9, 0.3], [0.5, 0.8]])
    >>> round(backward_transfer_over_all(R), 4)
    -0.2
    """
    scores, t = _checked(R)
    return _mean(_changes(scores, t)) * (t - 1) / t


def backward_transfer_clipped(R: Tensor) -> float:
    """Return backward transfer without gains, in [-1, 0], so that no task's gain offsets another's loss.

    1/(T-1) Σ_{i<T} min(R[T, i] - R[i, i], 0)

    Args:
        R: Scores, (T+1, T).

    >>> R = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.5, 0.5, 0.0], [0.3, 0.9, 0.5]])
    >>> round(backward_transfer_clipped(R), 4), round(backward_transfer(R), 4)
    (-0.1, 0.1)
    """
    scores, t = _checked(R)
    return _mean(_changes(scores, t).clamp(max=0))


def forward_transfer(R: Tensor) -> float:
    """Return forward transfer, in [-1, 1]: the change of a task's score by the tasks before it; higher is better.

    FWT = 1/(T-1) Σ_{i≥2} (R[i-1, i] - R[0, i])   (Lopez-Paz & Ranzato, 2017, with the zero-shot score instead of a
    randomly initialized model's)

    Args:
        R: Scores, (T+1, T).

    Returns:
        NaN for T = 1.

    >>> R = torch.tensor([[0.1, 0.2], [0.9, 0.3], [0.5, 0.8]])
    >>> round(forward_transfer(R), 4)
    0.1
    """
    scores, t = _checked(R)
    return _mean(scores[1:t].diagonal(offset=1) - scores[0, 1:])


def forgetting(R: Tensor) -> float:
    """Return forgetting, in [-1, 1]: the drop from the best earlier score to the final score; lower is better.

    1/(T-1) Σ_{i<T} (max_{1≤l<T} R[l, i] - R[T, i])   (Chaudhry et al., 2018, eq. 3)

    The maximum ignores unmeasured cells. Gains by the last task make the value negative.

    Args:
        R: Scores, (T+1, T).

    Returns:
        NaN for T = 1.

    >>> R = torch.tensor([[0.1, 0.2], [0.9, 0.3], [0.5, 0.8]])
    >>> round(forgetting(R), 4)
    0.4
    """
    scores, t = _checked(R)
    return _mean(_best(scores[1:t])[: t - 1] - scores[t, : t - 1])


def forgetting_max_of_all(R: Tensor) -> float:
    """Return forgetting with the final score included in the maximum, in [0, 1]; it hides gains.

    1/(T-1) Σ_{i<T} (max_{1≤l≤T} R[l, i] - R[T, i])

    Args:
        R: Scores, (T+1, T).

    >>> R = torch.tensor([[0.1, 0.2], [0.5, 0.3], [0.9, 0.8]])
    >>> round(forgetting_max_of_all(R), 4), round(forgetting(R), 4)
    (0.0, -0.4)
    """
    scores, t = _checked(R)
    return _mean(_best(scores[1:])[: t - 1] - scores[t, : t - 1])


def forgetting_first_last(R: Tensor) -> float:
    """Return forgetting from the score right after a task's training, in [-1, 1]; lower is better.

    1/(T-1) Σ_{i<T} (R[i, i] - R[T, i]) = -BWT

    Args:
        R: Scores, (T+1, T).

    >>> R = torch.tensor([[0.1, 0.2], [0.9, 0.3], [0.5, 0.8]])
    >>> round(forgetting_first_last(R), 4)
    0.4
    """
    return 0.0 - backward_transfer(R)


def learning_accuracy(R: Tensor) -> float:
    """Return the mean score of each task right after its training, in [0, 1]; it measures plasticity.

    LA = 1/T Σ_i R[i, i]   (Riemer et al., 2019)

    Args:
        R: Scores, (T+1, T).

    >>> R = torch.tensor([[0.1, 0.2], [0.9, 0.3], [0.5, 0.8]])
    >>> round(learning_accuracy(R), 4)
    0.85
    """
    scores, _ = _checked(R)
    return _mean(scores[1:].diagonal())


def general_ability_delta(before: Tensor, after: Tensor) -> float:
    """Return the mean change of the scores on tasks that are never trained, in [-1, 1]; higher is better.

    1/M Σ_m (after[m] - before[m])   (Wang et al., 2023, TRACE: ΔR^G)

    Args:
        before: Scores of the model as loaded on the general tasks, (M,).
        after: Scores of the trained model on the same tasks, (M,).

    Returns:
        NaN if there is no task.

    Raises:
        ValueError: The shapes differ, or are not one-dimensional.

    >>> round(general_ability_delta(torch.tensor([0.5, 0.4]), torch.tensor([0.4, 0.3])), 4)
    -0.1
    """
    if before.dim() != 1 or before.shape != after.shape:
        raise ValueError(
            f"before has shape {tuple(before.shape)} and after {tuple(after.shape)}. "
            "Give one score per general task in each, in the same order."
        )
    return _mean(_exact(after) - _exact(before))


def _checked(R: Tensor, after: int | None = None) -> tuple[Tensor, int]:
    """Return R in double precision on the CPU, and t."""
    if R.dim() != 2 or R.shape[0] != R.shape[1] + 1 or R.shape[1] == 0:
        raise ValueError(
            f"R has shape {tuple(R.shape)}; for T tasks it has to be (T+1, T). Row 0 is the model as loaded: "
            "if it was not scored, put a row of NaN there."
        )
    tasks = R.shape[1]
    if after is not None and not 1 <= after <= tasks:
        raise ValueError(f"after={after} is not a number of tasks learnt: R has {tasks}. Give 1 … {tasks}.")
    return _exact(R), tasks if after is None else after


def _exact(scores: Tensor) -> Tensor:
    return scores.detach().cpu().double()


def _changes(scores: Tensor, t: int) -> Tensor:
    """Return R[t, i] - R[i, i] for each i < t, (t-1,)."""
    return scores[t, : t - 1] - scores[1:].diagonal()[: t - 1]


def _best(scores: Tensor) -> Tensor:
    """Return the largest measured score of each column; NaN if there is none."""
    if len(scores) == 0:
        return torch.full_like(scores[:0].sum(0), torch.nan)
    unmeasured = scores.isnan()
    return scores.masked_fill(unmeasured, -torch.inf).amax(0).masked_fill(unmeasured.all(0), torch.nan)


def _mean(values: Tensor) -> float:
    """Return the mean; NaN if a value is NaN or there is none."""
    return float(values.mean())
