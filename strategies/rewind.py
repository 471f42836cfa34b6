"""Moving the weights back after a task: by a fixed share, or until past tasks are kept."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from datasets import Dataset
from torch import Tensor

from workbench.backbone import (
    SetAside,
    parameters_by_name,
    plain_parameters,
    plain_weights,
    update_factors,
    wide,
    write_weights,
)
from workbench.benchmark import PRETRAINING
from workbench.strategy import ContinualStrategy

if TYPE_CHECKING:
    from workbench.backbone import Backbone, Batch
    from workbench.benchmark import Task

Weights = dict[str, Tensor]


def between(start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> Weights:
    """Return start + alpha (end − start) for each tensor of any shape (...,), at 0 and 1 bit for bit the ends.

    Args:
        start: By name.
        end: By name.
        alpha: Share of the way, in [0, 1].
    """
    return {name: torch.lerp(wide(start[name]), wide(value), alpha) for name, value in end.items()}


class Rewind(ContinualStrategy):
    """After each task, take only a share of the way from a start to the trained weights   (arXiv 2605.28819).

        θ ← θ_0 + alpha (θ − θ_0)

    `towards="pretrained"`: θ_0 are the weights before the first task; `towards="task"`: before this one. `carry` says
    which weights go on. With "trained" the rewound weights are only scored and saved, as if each model of the sequence
    were rewound afterwards. With "scored" they go on, so that after t tasks "pretrained" leaves alpha^t of the first.

    Adapters: where they are folded in before (`LoRA(policy="merge")` before `Rewind` in a list), the weights are
    rewound. Where they stay apart, their ΔW is: B is multiplied by alpha, and A is not, because ΔW is the product.
    With `towards="task"` this needs an adapter that begins at zero with the task (policy "stack", not "continue").
    With w the bytes of the weights that train and of those that carry an adapter, θ_0 takes w on the CPU of each
    process, and `carry="trained"` w more between two tasks; both are in a saved state.

    Args:
        alpha: Share of the way, in [0, 1]: 1 changes nothing, 0 returns to the start.
        towards: "pretrained" or "task".
        carry: "trained" or "scored".

    Raises:
        ValueError: A value is out of range, the adapter's update cannot be scaled, or "pretrained" is given and a
            task trains other parameters than the first.
    """

    reference = "Rewinding, 2026 (arXiv 2605.28819)"
    bibtex = """@misc{rewinding2026,
  author = {{The authors of arXiv 2605.28819}},
  title = {Rewinding},
  year = {2026},
  eprint = {2605.28819},
  archivePrefix = {arXiv}
}"""

    def __init__(
        self,
        alpha: float,
        towards: Literal["pretrained", "task"] = "pretrained",
        carry: Literal["trained", "scored"] = "trained",
    ) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha} is out of range; it has to be at least 0 and at most 1.")
        if towards not in ("pretrained", "task"):
            raise ValueError(f"towards={towards!r}: choose 'pretrained' or 'task'.")
        if carry not in ("trained", "scored"):
            raise ValueError(f"carry={carry!r}: choose 'trained' or 'scored'.")
        self.alpha, self.towards, self.carry = alpha, towards, carry
        self.start: Weights = {}
        self.aside = SetAside()

    def before_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        """Put the trained weights back if they wait, and note θ_0.

        Raises:
            ValueError: There is no θ_0 for a parameter, or the adapter does not begin at zero with this task.
        """
        if task.name == PRETRAINING:
            return
        if self.start and self.towards == "pretrained" and list(self.start) != list(plain_parameters(backbone)):
            problem = f"{task.name} trains other parameters than the first task, which have no pretrained weights"
            raise ValueError(f"Rewind: {problem}. Choose towards='task'.")
        self.aside.bring_back(backbone)
        if self.towards == "task" or not self.start:
            self.start = plain_weights(backbone)
        factors = update_factors(backbone.model) if self.towards == "task" else {}
        if any(factor.requires_grad and bool(factor.any()) for factor in factors.values()):
            problem = "Rewind: the adapter of earlier tasks goes on, and half of its way has twice its rank"
            raise ValueError(f"{problem}. Choose LoRA(policy='merge' or 'stack'), or towards='pretrained'.")

    def after_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        """Write the rewound weights."""
        if task.name == PRETRAINING:
            return
        if backbone.adapter_names:
            factors = update_factors(backbone.model)
            moving = [name for name, factor in factors.items() if factor.requires_grad or self.towards == "pretrained"]
            trained = {name: factors[name].detach().to("cpu", copy=True) for name in moving}
            start = {name: torch.zeros_like(value) for name, value in trained.items()}
        else:
            trained, start = plain_weights(backbone, self.start), self.start
        rewound = self.rewound(start, trained)
        if self.carry == "trained":
            self.aside.replace(backbone, rewound, trained)
        else:
            write_weights(backbone, rewound)

    def rewound(self, start: Weights, trained: Weights) -> Weights:
        """Return θ_0 + alpha (θ − θ_0) by name, of any shapes (...,).

        Args:
            start: θ_0.
            trained: θ.
        """
        return between(start, trained, self.alpha)

    def get_extra_state(self) -> dict[str, Any]:
        """Return θ_0 and the weights that wait, for `state_dict`."""
        return {"start": dict(self.start), "aside": self.aside.state()}

    def set_extra_state(self, state: Any) -> None:
        """Restore the state from `load_state_dict`."""
        self.start = dict(state["start"])
        self.aside.load(state["aside"])


class PullBack(ContinualStrategy):
    """After each task, pull the weights back until past tasks' perplexity is within a factor of what it was.

        θ ← θ_s + α (θ − θ_s),   the largest α tried with ppl_k(α) ≤ factor · ppl_k for every past task k

    θ_s are the weights before the task, ppl_k the perplexity on kept rows of task k right after it was learned (and
    pulled back), over the tokens of the answers, or of a corpus all tokens. At α = 0 nothing of the task is kept, and
    every condition holds that held before, so forgetting is bounded by the factor over all tasks together. Every α is
    computed from the same two ends, so that no rounding adds up. "steps" tries 1, 1 − 1/steps, … in this order;
    "bisection" halves [0, 1] `steps` times and keeps an α that was measured to fit (if the perplexities rise along the
    way, it is within 2^−steps of the largest).

    The idea is that of the package avr-cl on PyPI, which pulls an adapter back; no paper defines it. Adapters that
    were folded in before (`LoRA(policy="merge")` before it in a list) are pulled back as weights. Adapters that stay
    apart move with both factors: the path between its two ends is then not straight in ΔW, but perplexity is measured
    on the path itself.

    Rows are kept of `task.validation`. If there are none, or they are what is scored (`data.score_on: validation`),
    training rows are kept. Choose rates on other rows than these.

    θ_s takes the bytes of the weights that train, and the trained weights as many once more while they are moved, both
    on the CPU of each process; θ_s is in a saved state. Each α reads at most the kept rows of all past tasks
    once: about `steps · rows · tasks` rows after the last task of a sequence, or less where an early α fits. Every
    process reads all of them, so that all find the same α.

    Args:
        factor: Largest ratio of perplexities, at least 1.
        rows: Rows that are kept of each task; all if there are fewer.
        steps: Number of steps.
        search: "steps" or "bisection".

    Attributes:
        memory: Kept rows by task name.
        nats: Mean nats per token of these rows right after their task.
        alphas: The α of each task that had others before it.

    Raises:
        ValueError: A value is out of range.
    """

    reference = "avr-cl, as of 2026 (PyPI)"
    bibtex = """@misc{avrcl2026,
  author = {{The authors of avr-cl}},
  title = {avr-cl},
  year = {2026},
  howpublished = {Python Package Index},
  note = {https://pypi.org/project/avr-cl}
}"""

    def __init__(
        self,
        factor: float = 1.1,
        rows: int = 32,
        steps: int = 10,
        search: Literal["steps", "bisection"] = "steps",
    ) -> None:
        super().__init__()
        if not 1 <= factor < math.inf:
            raise ValueError(f"factor={factor} is out of range; it has to be at least 1.")
        for name, value in (("rows", rows), ("steps", steps)):
            if value < 1:
                raise ValueError(f"{name}={value} is out of range; it has to be at least 1.")
        if search not in ("steps", "bisection"):
            raise ValueError(f"search={search!r}: choose 'steps' or 'bisection'.")
        self.factor, self.rows, self.steps, self.search = factor, rows, steps, search
        self.seed = 0
        self.start: Weights = {}
        self.memory: dict[str, list[dict[str, Any]]] = {}
        self.nats: dict[str, float] = {}
        self.alphas: dict[str, float] = {}

    def setup(self, backbone: Backbone) -> None:
        """Store the run's seed; the kept rows depend only on it and on the task."""
        self.seed = torch.initial_seed()

    def before_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        """Note θ_s if there is a past task to keep."""
        if self.memory:
            trainable = {name: value.detach().to("cpu", copy=True) for name, value in backbone.trainable().items()}
            self.start = trainable | plain_weights(backbone)

    def after_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        """Pull the weights back, and keep rows of this task with their perplexity."""
        past = [name for name in self.memory if name != task.name]
        if past:
            self.alphas[task.name] = self.pull_back(backbone, past)
        self.start = {}
        self.memory[task.name] = self._choose(task)
        self.nats[task.name] = self.mean_nats(backbone, self.memory[task.name])

    def pull_back(self, backbone: Backbone, past: Iterable[str]) -> float:
        """Move the weights to the chosen α, and return it.

        Args:
            backbone: As trained.
            past: Names of the tasks to keep.
        """
        end = self._moving(backbone)

        def move(alpha: float) -> float:
            write_weights(backbone, between(self.start, end, alpha))
            return alpha

        past = list(past)
        if self._keeps(backbone, past):
            return 1.0
        if self.search == "steps":
            for step in range(self.steps - 1, 0, -1):
                alpha = move(step / self.steps)
                if self._keeps(backbone, past):
                    return alpha
            return move(0.0)
        low, high = 0.0, 1.0
        for _ in range(self.steps):
            middle = move((low + high) / 2)
            low, high = (middle, high) if self._keeps(backbone, past) else (low, middle)
        return move(low)

    def mean_nats(self, backbone: Backbone, rows: list[dict[str, Any]]) -> float:
        """Return the mean nats per labelled token, the logarithm of the perplexity; NaN where there is none.

        Args:
            backbone: The model.
            rows: Rows of prompt and answer, or of text.
        """
        if not rows:
            return math.nan
        nats, tokens = backbone.nats(backbone.encode(Dataset.from_list(rows)))
        return float(nats.sum()) / int(tokens.sum()) if int(tokens.sum()) else math.nan

    def _keeps(self, backbone: Backbone, past: Iterable[str]) -> bool:
        """Return whether every past task is within the factor; one without rows always is."""
        most = math.log(self.factor)
        return all(
            self.mean_nats(backbone, self.memory[name]) <= self.nats[name] + most
            for name in past
            if not math.isnan(self.nats[name])
        )

    def _moving(self, backbone: Backbone) -> Weights:
        """Return copies of the weights that the task has changed: the adapter's, or the plain ones."""
        apart, by_name = bool(backbone.adapter_names), parameters_by_name(backbone)
        trainable = list(backbone.trainable()) if apart else []
        names = trainable or [name for name in self.start if name in by_name]
        return {name: by_name[name].detach().to("cpu", copy=True) for name in names}

    def _choose(self, task: Task) -> list[dict[str, Any]]:
        held_out = len(task.validation) > 0 and task.validation is not task.test
        candidates = (replace(task, train=task.validation) if held_out else task).rows_to_mix()
        generator = torch.Generator().manual_seed((self.seed + zlib.crc32(task.name.encode())) % 2**63)
        chosen = torch.randperm(len(candidates), generator=generator)[: self.rows].tolist()
        return [candidates[index] for index in sorted(chosen)]

    def get_extra_state(self) -> dict[str, Any]:
        """Return θ_s, the kept rows, their nats and the α so far, for `state_dict`."""
        memory = {name: list(kept) for name, kept in self.memory.items()}
        return {"start": dict(self.start), "memory": memory, "nats": dict(self.nats), "alphas": dict(self.alphas)}

    def set_extra_state(self, state: Any) -> None:
        """Restore the state from `load_state_dict`."""
        self.start, self.nats, self.alphas = dict(state["start"]), dict(state["nats"]), dict(state["alphas"])
        self.memory = {name: list(kept) for name, kept in state["memory"].items()}
