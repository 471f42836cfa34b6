"""The score matrix R, and what the literature computes from it.

R is a tensor of shape (T+1, T). R[l, i] is the primary score on task i after training on the first l tasks,
with tasks counted from 1 in the formulas and from 0 in the tensor's columns; row 0 is the untouched model.
NaN is a cell that was not measured: where a needed cell is NaN the result is. Definitions that go by one name
disagree on the same matrix, so each has its own function here, and a table should say which one it shows.
"""

from __future__ import annotations

import torch
from torch import Tensor


def overall_performance(R: Tensor, after: int | None = None) -> float:
    """How good the model is in the end, on all it has learnt.

    OP = 1/T Σ_i R[T, i], or OP_t = 1/t Σ_{i≤t} R[t, i] after an earlier task   (Wang et al., 2023, TRACE)

    Args:
        R: Scores, (T+1, T).
        after: t, the number of tasks learnt so far; all of them by default.

    Raises:
        ValueError: R has another shape, or `after` is not within 1 … T.

    >>> R = torch.tensor([[0.1, 0.2], [0.9, 0.3], [0.5, 0.8]])
    >>> round(overall_performance(R), 4), round(overall_performance(R, after=1), 4)
    (0.65, 0.9)
    """
    scores, t = _checked(R, after)
    return _mean(scores[t, :t])


def backward_transfer(R: Tensor, after: int | None = None) -> float:
    """How learning later tasks changed earlier ones; below 0, they were forgotten.

    BWT_t = 1/(t-1) Σ_{i<t} (R[t, i] - R[i, i])   (Lopez-Paz & Ranzato, 2017; TRACE for t < T)

    Args:
        R: Scores, (T+1, T).
        after: t, the number of tasks learnt so far; all of them by default.

    Returns:
        NaN for t = 1, when nothing came before.

    >>> R = torch.tensor([[0.1, 0.2], [0.9, 0.3], [0.5, 0.8]])
    >>> round(backward_transfer(R), 4)
    -0.4
    """
    scores, t = _checked(R, after)
    return _mean(_changes(scores, t))


def backward_transfer_over_all(R: Tensor) -> float:
    """Backward transfer divided by the number of tasks, the last one included.

    1/T Σ_{i<T} (R[T, i] - R[i, i]): smaller in size than `backward_transfer` by (T-1)/T, and printed under
    the same name by some codebases.

    Args:
        R: Scores, (T+1, T).

    >>> R = torch.tensor([[0.1, 0.2], [0.9, 0.3], [0.5, 0.8]])
    >>> round(backward_transfer_over_all(R), 4)
    -0.2
    """
    scores, t = _checked(R)
    return _mean(_changes(scores, t)) * (t - 1) / t


def backward_transfer_clipped(R: Tensor) -> float:
    """Backward transfer with gains counted as 0, so that one task's gain hides no other's loss.

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
    """How much the earlier tasks taught about a task before its own training.

    FWT = 1/(T-1) Σ_{i≥2} (R[i-1, i] - R[0, i])   (Lopez-Paz & Ranzato, 2017, with the untouched model's
    score in the place of a random model's)

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
    """How far each task fell below the best it ever was before the last task.

    1/(T-1) Σ_{i<T} (max_{1≤l<T} R[l, i] - R[T, i])   (Chaudhry et al., 2018, eq. 3)

    Unmeasured cells are left out of the maximum. The value is negative where the last task brought a gain.

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
    """Forgetting from the best of all rounds, the last included: never negative, so gains are hidden.

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
    """Forgetting from the score right after a task's own training: backward transfer with its sign changed.

    1/(T-1) Σ_{i<T} (R[i, i] - R[T, i])

    Args:
        R: Scores, (T+1, T).

    >>> R = torch.tensor([[0.1, 0.2], [0.9, 0.3], [0.5, 0.8]])
    >>> round(forgetting_first_last(R), 4)
    0.4
    """
    return 0.0 - backward_transfer(R)


def learning_accuracy(R: Tensor) -> float:
    """How well each task is learnt at the time: what a method pays in plasticity shows here.

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
    """What the sequence did to tasks that were only ever tested.

    1/M Σ_m (after[m] - before[m])   (Wang et al., 2023, TRACE: ΔR^G)

    Args:
        before: Scores of the untouched model on the general tasks, (M,).
        after: Scores of the trained model on the same tasks, (M,).

    Returns:
        NaN without a task.

    Raises:
        ValueError: The shapes differ, or are not of one dimension.

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
    """R in double precision on the CPU, and t."""
    if R.dim() != 2 or R.shape[0] != R.shape[1] + 1 or R.shape[1] == 0:
        raise ValueError(
            f"R has shape {tuple(R.shape)}; for T tasks it has to be (T+1, T). Row 0 is the untouched model: "
            "where it was not scored, put a row of NaN there."
        )
    tasks = R.shape[1]
    if after is not None and not 1 <= after <= tasks:
        raise ValueError(f"after={after} is not a number of tasks learnt: R has {tasks}. Give 1 … {tasks}.")
    return _exact(R), tasks if after is None else after


def _exact(scores: Tensor) -> Tensor:
    return scores.detach().cpu().double()


def _changes(scores: Tensor, t: int) -> Tensor:
    """R[t, i] - R[i, i] for each i < t, (t-1,)."""
    return scores[t, : t - 1] - scores[1:].diagonal()[: t - 1]


def _best(scores: Tensor) -> Tensor:
    """Each column's largest measured score; NaN where there is none."""
    if len(scores) == 0:
        return torch.full_like(scores[:0].sum(0), torch.nan)
    unmeasured = scores.isnan()
    return scores.masked_fill(unmeasured, -torch.inf).amax(0).masked_fill(unmeasured.all(0), torch.nan)


def _mean(values: Tensor) -> float:
    """The mean, NaN where a value is or where there is none."""
    return float(values.mean())
