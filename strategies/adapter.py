"""One adapter of any kind that peft has, through a sequence of tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from workbench.strategy import ContinualStrategy

if TYPE_CHECKING:
    from workbench.backbone import Backbone, Batch
    from workbench.benchmark import Task


class Adapter(ContinualStrategy):
    """Train an adapter of peft while the weights W stay frozen   (Mangrulkar et al., 2022).

    Every kind that is accepted replaces W by a weight W'(φ), of which φ alone trains, so that the scored and saved
    model is a plain one:

        OFT: W R, R orthogonal      IA3: diag(l) W      VeRA: W + diag(b) B diag(d) A, A and B random and fixed
        DoRA: m ⊙ (W + B A), each row divided by its norm

    `workbench.backbone.adapters.KINDS` lists them. A kind that changes no weight, that depends on the input, or that
    plain peft does not load again is refused by name with the reason (`REFUSED` there). The settings default to
    peft's.

    C3A and FourierFT draw a random update by default, which changes the model before the first step, and under policy
    "merge" before each task. OFT's R is orthogonal to within a Neumann series unless `use_cayley_neumann` is false.

    The memory is that of the adapter and its moments. A step costs more than LoRA's where W'(φ) is built anew each time
    (OFT, HRA, DoRA): a product of matrices of W's size. Sharded training (FSDP) has been tested with kind "LORA"
    only.

    Args:
        config: A kind as peft names it, such as "OFT", "IA3", "VERA" or "LORA"; or one of peft's configs, in a study
            {class_path: peft.OFTConfig, init_args: {...}}.
        settings: Keyword arguments of the kind's config, which come before those of `config`. DoRA is "LORA" with
            {use_dora: true}.
        policy: "continue": one adapter for all tasks. "merge": after each task, merge the adapter into the weights and
            start a new one with the next task. Several at once are for `LoRA` and `OLoRA`, whose adapters add up.

    Raises:
        ValueError: The policy is unknown; in `setup`, the kind or the settings are not supported.
    """

    reference = "Mangrulkar et al., 2022 (github.com/huggingface/peft)"
    bibtex = """@misc{mangrulkar2022peft,
  author = {Mangrulkar, Sourab and others},
  title = {{PEFT}: State-of-the-art Parameter-Efficient Fine-Tuning Methods},
  year = {2022},
  howpublished = {\\url{https://github.com/huggingface/peft}}
}"""

    def __init__(
        self,
        config: Any = "IA3",
        settings: Mapping[str, Any] | None = None,
        policy: Literal["continue", "merge"] = "continue",
    ) -> None:
        super().__init__()
        if policy not in ("continue", "merge"):
            raise ValueError(f"policy={policy!r}: choose 'continue' or 'merge'.")
        self.config, self.settings, self.policy = config, dict(settings or {}), policy

    def setup(self, backbone: Backbone) -> None:
        """Freeze the model and add the adapter."""
        backbone.add_adapter("default", self.config, **self.settings)

    def before_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        """Add a new adapter where the last one was merged."""
        if not backbone.adapter_names:
            self.setup(backbone)

    def after_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        """Merge the adapter into the weights if the policy is "merge"."""
        if self.policy == "merge":
            backbone.fold_adapters()
