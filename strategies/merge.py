"""Merging of the models after each task: average, SLERP, task arithmetic, TIES, DARE, MagMax."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from workbench.backbone import SetAside, plain_parameters, plain_weights, slerp_shares, wide, write_weights
from workbench.benchmark import PRETRAINING
from workbench.strategy import ContinualStrategy

if TYPE_CHECKING:
    from workbench.backbone import Backbone, Batch
    from workbench.benchmark import Task

SCALES = {"average": 1.0, "slerp": 1.0, "task_arithmetic": 0.4, "ties": 1.0, "dare": 0.4, "magmax": 0.5}
"""Each method's default scale; "average" and "slerp" have none."""
CHOICES = {
    "method": tuple(SCALES),
    "scope": ("chain", "independent"),
    "carry": ("trained", "scored"),
    "trim": ("vector", "tensor"),
}
MOST_TASKS = 255
"""Tasks that TIES can count in a byte."""
BITS = {torch.float32: torch.int32, torch.float64: torch.int64}

Weights = dict[str, Tensor]


class Merge(ContinualStrategy):
    """Merge the models of all tasks so far after each task; the merged model is scored and saved.

        τ_k = θ_k − θ_0,   M = θ_0 + scale · merged(τ_1, …, τ_t)

    with θ_0 the weights before the first task. "average": M_t = (1 − w) M_{t−1} + w θ_t with w = 1/t, the mean.
    "slerp": the same along the arc between the two, for each tensor. "task_arithmetic": Σ τ_k (Ilharco et al., 2023).
    "ties": of each τ_k only the `density` largest magnitudes; then for each weight the sign of the sum, and the mean
    over those that have this sign (Yadav et al., 2023). "dare": Σ τ_k, with each entry dropped with probability `drop`
    and the others divided by 1 − drop (Yu et al., 2024). "magmax": for each weight the τ_k of the largest magnitude
    (Marczak et al., 2024).

    Weights are merged, not factors: after `LoRA(policy="merge")` in a list, τ_k contains ΔW = scale · B A. Adapters
    that stay apart are refused, because a mean of A and a mean of B are not the factors of the mean of ΔW. Tied
    tensors are merged once. What a strategy keeps outside of the model, such as prompts, is not merged.

    Vectors are on the CPU of each process, in float32 for weights of half precision. With w the bytes of the weights
    that train: "average" and "slerp" keep w, "task_arithmetic", "dare" and "magmax" 2 w, "ties" 3.5 w, however many
    tasks there are; `carry="trained"` or `scope="independent"` add w. All of it is in a saved state.

    Args:
        method: How to merge.
        scope: Where a task starts. "chain": where the last one ended, as `carry` says. "independent": at θ_0.
        carry: Weights that go on to the next task in a chain. "trained": those that the last task ended with, as in
            MagMax, so that merging changes no training. "scored": the merged ones.
        scale: Factor of the merged task vector; None: 0.4 for "task_arithmetic" and "dare", 1 for "ties", 0.5 for
            "magmax". "average" and "slerp" have none.
        weight: Share w of the newest model in "average" and "slerp", in [0, 1]; None: 1/t.
        density: Share of the entries that "ties" keeps, in (0, 1].
        trim: Where "ties" looks for the largest entries: in the whole "vector", as the official code does, or in each
            "tensor", as peft does.
        drop: Probability with which "dare" drops an entry, in [0, 1).

    Raises:
        ValueError: A value is out of range; adapters are apart from the weights; or tasks train different parameters.
    """

    reference = "Marczak et al., 2024 (arXiv 2407.06322)"
    bibtex = """@inproceedings{marczak2024magmax,
  author = {Marczak, Daniel and others},
  title = {{MagMax}: Leveraging Model Merging for Seamless Continual Learning},
  year = {2024},
  booktitle = {European Conference on Computer Vision},
  eprint = {2407.06322},
  archivePrefix = {arXiv}
}"""

    def __init__(
        self,
        method: Literal["average", "slerp", "task_arithmetic", "ties", "dare", "magmax"] = "magmax",
        scope: Literal["chain", "independent"] = "chain",
        carry: Literal["trained", "scored"] = "trained",
        scale: float | None = None,
        weight: float | None = None,
        density: float = 0.2,
        trim: Literal["vector", "tensor"] = "vector",
        drop: float = 0.9,
    ) -> None:
        super().__init__()
        for name, given in (("method", method), ("scope", scope), ("carry", carry), ("trim", trim)):
            if given not in CHOICES[name]:
                raise ValueError(f"{name}={given!r}: choose one of {', '.join(map(repr, CHOICES[name]))}.")
        _check_numbers(scale, weight, density, drop)
        if scale is not None and method in ("average", "slerp"):
            raise ValueError(f"scale={scale}: {method!r} has no scale. Leave it out, or give `weight`.")
        if weight is not None and method not in ("average", "slerp"):
            raise ValueError(f"weight={weight}: {method!r} has no weight. Leave it out, or give `scale`.")
        self.method, self.scope, self.carry, self.trim = method, scope, carry, trim
        self.scale = SCALES[method] if scale is None else scale
        self.weight, self.density, self.drop = weight, density, drop
        self.seed = 0
        self.merged_tasks = 0
        self.names: list[str] = []
        self.start: Weights = {}
        self.vectors: dict[str, Weights] = {}
        self.aside = SetAside()

    def setup(self, backbone: Backbone) -> None:
        """Store the run's seed; the entries that "dare" drops depend only on it and on the task."""
        self.seed = torch.initial_seed()

    def before_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        """Let the task start from the right weights, and note θ_0 before the first one.

        Raises:
            ValueError: The task trains other parameters than the tasks before.
        """
        if task.name == PRETRAINING:
            return
        names = list(plain_parameters(backbone))
        if self.names and names != self.names:
            problem = f"{task.name} trains other parameters than the tasks before, so their vectors cannot be merged"
            raise ValueError(f"Merge: {problem}. Combine it with a method that trains the same ones in each task.")
        if not names:
            raise ValueError("Merge: no weight of the model trains, so there is nothing to merge. Leave it out.")
        self.names = names
        self.aside.bring_back(backbone)
        needs_start = self.method not in ("average", "slerp") or self.scope == "independent"
        if not self.start and needs_start:
            self.start = plain_weights(backbone)

    def after_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        """Add the task's model, and write the merged weights into the model.

        Raises:
            ValueError: An adapter is apart from the weights, or there are too many tasks.
        """
        if task.name == PRETRAINING:
            return
        if backbone.adapter_names:
            problem = "Merge: an adapter is apart from the weights, and factors A and B cannot be merged apart"
            raise ValueError(f"{problem}. Put LoRA(policy='merge') before Merge in the list.")
        if self.method == "ties" and self.merged_tasks == MOST_TASKS:
            raise ValueError(f"Merge: 'ties' counts at most {MOST_TASKS} tasks. Choose another method.")
        trained = plain_weights(backbone, self.names)
        self.merged_tasks += 1
        self.add(task.name, trained)
        scored = self.merged()
        if self.scope == "independent":
            self.aside.replace(backbone, scored, self.start)
        elif self.carry == "trained":
            self.aside.replace(backbone, scored, trained)
        else:
            write_weights(backbone, scored)

    def add(self, task: str, trained: Weights) -> None:
        """Add a model to what is merged.

        Args:
            task: The task's name, from which the entries to drop are drawn.
            trained: θ_k by name, of any shapes (...,).
        """
        if self.method in ("average", "slerp"):
            self._interpolate(trained)
            return
        vector = {name: wide(value) - wide(self.start[name]) for name, value in trained.items()}
        if self.method == "ties":
            vector = keep_largest(vector, self.density, self.trim)
        elif self.method == "dare":
            vector = {name: self._dropped(f"{task}/{name}", value) for name, value in vector.items()}
        if not self.vectors:
            self.vectors = _empty(vector, self.method)
        for name, value in vector.items():
            _accumulate({part: tensors[name] for part, tensors in self.vectors.items()}, value)

    def merged(self) -> Weights:
        """Return the merged weights by name, of any shapes (...,); in float32 for weights of half precision."""
        if self.method in ("average", "slerp"):
            return self.vectors["mean"]
        vectors = self.vectors
        if self.method == "ties":
            parts = ({part: vectors[part][name] for part in vectors} for name in self.names)
            merged = dict(zip(self.names, map(_mean_of_the_elected, parts), strict=True))
        else:
            (merged,) = vectors.values()
        return {name: wide(self.start[name]) + self.scale * value for name, value in merged.items()}

    def _interpolate(self, trained: Weights) -> None:
        weight = 1 / self.merged_tasks if self.weight is None or not self.vectors else self.weight
        mean = self.vectors.setdefault("mean", {})
        for name, value in trained.items():
            new = wide(value)
            old = mean.get(name, new)
            shares = slerp_shares(*_geometry(old, new), weight) if self.method == "slerp" else (1 - weight, weight)
            mean[name] = shares[0] * old + shares[1] * new if weight < 1 else new

    def _dropped(self, key: str, value: Tensor) -> Tensor:
        """Drop entries (...,) at random and rescale the others, so that the expected value stays."""
        generator = torch.Generator().manual_seed((self.seed + zlib.crc32(key.encode())) % 2**63)
        kept = torch.rand(value.shape, generator=generator) >= self.drop
        return value * kept / (1 - self.drop)

    def get_extra_state(self) -> dict[str, Any]:
        """Return θ_0, the merged vectors and the weights that wait, for `state_dict`."""
        return {
            "merged_tasks": self.merged_tasks,
            "names": list(self.names),
            "start": dict(self.start),
            "vectors": {part: dict(tensors) for part, tensors in self.vectors.items()},
            "aside": self.aside.state(),
        }

    def set_extra_state(self, state: Any) -> None:
        """Restore the state from `load_state_dict`."""
        self.merged_tasks, self.names = state["merged_tasks"], list(state["names"])
        self.start, self.vectors = dict(state["start"]), {key: dict(value) for key, value in state["vectors"].items()}
        self.aside.load(state["aside"])


def keep_largest(vector: Mapping[str, Tensor], density: float, trim: str = "vector") -> Weights:
    """Set all but the largest magnitudes of a task vector to zero; entries equal to the smallest kept one stay.

    Args:
        vector: Tensors of any shapes (...,) by name.
        density: Share of the entries to keep; int(density · n) of n.
        trim: "vector": the n entries of all tensors together; "tensor": each tensor's own.
    """
    if trim == "tensor":
        return {name: _at_least(value, _threshold([value], density)) for name, value in vector.items()}
    threshold = _threshold(list(vector.values()), density)
    return {name: _at_least(value, threshold) for name, value in vector.items()}


def _at_least(value: Tensor, threshold: float) -> Tensor:
    return torch.where(value.abs() >= threshold, value, torch.zeros_like(value))


def _threshold(tensors: list[Tensor], density: float) -> float:
    """Return the smallest magnitude among the largest int(density · n), exactly and without a copy of all entries.

    The order of positive floats is that of their bits, so that a bisection over the bits ends after 31 (or 63) passes.
    """
    wanted = int(density * sum(value.numel() for value in tensors))
    if not wanted:
        return torch.inf
    dtype = tensors[0].dtype
    low, high = 0, torch.tensor(torch.inf, dtype=dtype).view(BITS[dtype]).item()
    while low < high:  # the largest bits that at least `wanted` entries reach
        middle = (int(low) + int(high) + 1) // 2
        reached = sum(int((value.abs().view(BITS[dtype]) >= middle).sum()) for value in tensors)
        low, high = (middle, high) if reached >= wanted else (low, middle - 1)
    return float(torch.tensor(low, dtype=BITS[dtype]).view(dtype))


def _empty(vector: Weights, method: str) -> dict[str, Weights]:
    """Return sums of no vectors."""
    if method != "ties":
        part = "largest" if method == "magmax" else "sum"
        return {part: {name: torch.zeros_like(value) for name, value in vector.items()}}
    parts: dict[str, Weights] = {}
    for sign in ("positive", "negative"):
        parts[f"{sign}_sum"] = {name: torch.zeros_like(value) for name, value in vector.items()}
        parts[f"{sign}_count"] = {name: torch.zeros(value.shape, dtype=torch.uint8) for name, value in vector.items()}
    return parts


def _accumulate(parts: Weights, value: Tensor) -> None:
    """Add one tensor (...,) of a task vector in place to the sums that its method keeps."""
    if "sum" in parts:
        parts["sum"] += value
    elif "largest" in parts:
        larger = value.abs() > parts["largest"].abs()
        parts["largest"].copy_(torch.where(larger, value, parts["largest"]))
    else:
        for sign, chosen in (("positive", value > 0), ("negative", value < 0)):
            parts[f"{sign}_sum"] += value * chosen
            parts[f"{sign}_count"] += chosen.to(torch.uint8)


def _mean_of_the_elected(parts: Weights) -> Tensor:
    """Return for each entry (...,) the mean over those that have the sign of the sum; an exact tie is positive."""
    positive = parts["positive_sum"] + parts["negative_sum"] >= 0
    total = torch.where(positive, parts["positive_sum"], parts["negative_sum"])
    count = torch.where(positive, parts["positive_count"], parts["negative_count"])
    return total / count.clamp(min=1)


def _geometry(one: Tensor, other: Tensor) -> tuple[float, float, float]:
    """Return the inner product and the norms of two tensors (...,), flattened, in float64."""
    a, b = one.flatten().double(), other.flatten().double()
    return float(a @ b), float(a.norm()), float(b.norm())


def _check_numbers(scale: float | None, weight: float | None, density: float, drop: float) -> None:
    if scale is not None and not 0 < scale < float("inf"):
        raise ValueError(f"scale={scale} is out of range; it has to be more than 0.")
    if weight is not None and not 0 <= weight <= 1:
        raise ValueError(f"weight={weight} is out of range; it has to be at least 0 and at most 1.")
    if not 0 < density <= 1:
        raise ValueError(f"density={density} is out of range; it has to be more than 0 and at most 1.")
    if not 0 <= drop < 1:
        raise ValueError(f"drop={drop} is out of range; it has to be at least 0 and less than 1.")
