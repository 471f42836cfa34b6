"""Sequential fine-tuning of all weights, without any measure against forgetting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.strategy import ContinualStrategy

if TYPE_CHECKING:
    from workbench.backbone import Backbone


class SeqFT(ContinualStrategy):
    """Fine-tune all weights on one task after the other: the baseline that forgets (TRACE, section 4.1)."""

    reference = "Wang et al., 2023 (arXiv 2310.06762)"
    bibtex = """@misc{wang2023trace,
  author = {Wang, Xiao and others},
  title = {{TRACE}: A Comprehensive Benchmark for Continual Learning in Large Language Models},
  year = {2023},
  eprint = {2310.06762},
  archivePrefix = {arXiv}
}"""

    def setup(self, backbone: Backbone) -> None:
        """Make all parameters trainable."""
        backbone.model.requires_grad_(True)
