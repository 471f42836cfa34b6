"""Fine-tuning of a separate model for each task: the score of each task without any task before it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from workbench.strategy import ContinualStrategy

if TYPE_CHECKING:
    from workbench.backbone import Backbone, Batch
    from workbench.benchmark import Task


class PerTaskFT(ContinualStrategy):
    """Fine-tune all weights on each task separately, from the model as loaded   (PerTaskFT in O-LoRA's tables).

    The result is the diagonal of the score matrix: each task's score without any task before it, the reference for
    transfer and intransigence of a sequence. The other cells of a row are the scores of that task's model on the
    other tasks. OP and BWT are those of the last task's model, and not a bound.

    It cannot be combined with other strategies: restoring the model before each task would remove their changes, and
    rows of other tasks would defeat its purpose.
    """

    composable = False
    bound = "learning_accuracy"
    reference = "Wang et al., 2023 (arXiv 2310.14152)"
    bibtex = """@misc{wang2023olora,
  author = {Wang, Xiao and others},
  title = {Orthogonal Subspace Learning for Language Model Continual Learning},
  year = {2023},
  eprint = {2310.14152},
  archivePrefix = {arXiv}
}"""

    def before_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        """Restore the model as loaded, on its device and in its precision."""
        dtype = backbone.model.dtype
        backbone.restore()
        if backbone.model.dtype != dtype:  # the trainer uses true half precision
            backbone.model.to(dtype)
