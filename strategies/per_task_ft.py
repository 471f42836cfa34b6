"""Fine-tuning of a separate model for each task: what each one reaches without any other before it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from workbench.strategy import ContinualStrategy

if TYPE_CHECKING:
    from workbench.backbone import Backbone, Batch
    from workbench.benchmark import Task


class PerTaskFT(ContinualStrategy):
    """Fine-tunes all weights on each task alone, from the model as loaded (PerTaskFT in O-LoRA's tables).

    The diagonal of the score matrix is what is read: it is each task's score without any other task before it, by
    which a sequence's gains and its intransigence are judged. The other cells of a row say what that one task's
    model does on the rest. OP and BWT are those of the last task's model alone, and no upper bound of anything.

    It stands alone: what another method does to the model would be gone after the first restore, and rows of other
    tasks would make it something else.
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
        """Puts the loaded model back, on the device and in the precision where it is."""
        dtype = backbone.model.dtype
        backbone.restore()
        if backbone.model.dtype != dtype:  # the trainer's true half precision, taken on since the model was loaded
            backbone.model.to(dtype)
