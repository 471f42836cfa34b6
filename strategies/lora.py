"""Low-rank adaptation (LoRA) of some projections, through a sequence of tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from workbench.backbone import lora_settings
from workbench.strategy import ContinualStrategy

if TYPE_CHECKING:
    from workbench.backbone import Backbone, Batch
    from workbench.benchmark import Task


class LoRA(ContinualStrategy):
    """Train W x + (alpha / rank) B A x with W frozen   (Hu et al., 2022, section 4.1).

    W is (out, in), B (out, rank), A (rank, in). B starts at zero, so that the initial model is the base model. The
    defaults are TRACE's: rank 8, alpha 32, dropout 0.1, on the query and value projections.

    Args:
        rank: Rank of each update.
        alpha: Scale of each update, which is divided by the rank.
        dropout: Dropout probability of an adapter's inputs in training, in [0, 1).
        targets: One or several names of projections that get an adapter; "all-linear": all except the head; or a
            regular expression that matches full names, such as ".*layers.[01].self_attn.q_proj".
        policy: "continue": one adapter for all tasks, as in TRACE. "merge": after each task, merge the adapter into
            the weights and start a new one. "stack": one adapter per task, summed; earlier ones are frozen.
        peft: Further arguments of `peft.LoraConfig`, which take precedence over those above. Arguments with which
            anything other than W + (alpha / rank) B A would be trained, scored or saved raise an error
            (`workbench.backbone.adapters.SUPPORTED`).

    Raises:
        ValueError: A number is out of range, or the model has no projection of a name in `targets`.
    """

    reference = "Hu et al., 2022 (arXiv 2106.09685)"
    bibtex = """@inproceedings{hu2022lora,
  author = {Hu, Edward J. and others},
  title = {{LoRA}: Low-Rank Adaptation of Large Language Models},
  year = {2022},
  booktitle = {International Conference on Learning Representations},
  eprint = {2106.09685},
  archivePrefix = {arXiv}
}"""

    def __init__(
        self,
        rank: int = 8,
        alpha: float = 32,
        dropout: float = 0.1,
        targets: Sequence[str] | str = ("q_proj", "v_proj"),
        policy: Literal["continue", "merge", "stack"] = "continue",
        peft: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if policy not in ("continue", "merge", "stack"):
            raise ValueError(f"policy={policy!r}: choose 'continue', 'merge' or 'stack'.")
        self.policy = policy
        self.tasks_begun = 0
        own = lora_settings(rank, alpha, dropout, targets)
        self.targets: list[str] | str = own["target_modules"]
        self.settings = {**own, **(peft or {})}

    def setup(self, backbone: Backbone) -> None:
        """Freeze the model and add the first adapter.

        Raises:
            ValueError: The model has no projection of a name in `targets`.
        """
        present = {name.rpartition(".")[2] for name, _ in backbone.model.named_modules()}
        names = [] if isinstance(self.targets, str) else self.targets
        if absent := [target for target in names if target not in present]:
            there = ", ".join(sorted(name for name in present if name.endswith("proj")))
            raise ValueError(f"targets: the model has no {absent[0]!r}. Choose from {there}.")
        backbone.freeze()
        self._begin_adapter(backbone)

    def before_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        """Add a new adapter before each task after the first, unless the policy is "continue"."""
        self.tasks_begun += 1
        if self.tasks_begun > 1 and self.policy != "continue":
            self._begin_adapter(backbone)

    def after_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        """Merge the adapter into the weights if the policy is "merge"."""
        if self.policy == "merge":
            backbone.fold_adapters()

    def _begin_adapter(self, backbone: Backbone) -> None:
        name = f"task-{len(backbone.adapter_names) + 1}" if self.policy == "stack" else "default"
        backbone.add_adapter(name, **self.settings)
