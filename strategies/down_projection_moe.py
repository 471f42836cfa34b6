"""LLaMA Pro's mixture variant: beside each feed-forward output projection a second one, both always active."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from workbench.strategy import ContinualStrategy

if TYPE_CHECKING:
    from workbench.backbone import Backbone


class DownProjectionMoE(ContinualStrategy):
    """Keeps every layer's down-projection W3 and learns a second one beside it (LLaMA Pro, Table 5, "MoE").

    The feed-forward output becomes softmax(a)_1 W3 h + softmax(a)_2 W3' h, with a = (a1, a2) learnt in each layer.
    Only W3' and a train. Both projections act on the same h, so the two are one matrix: the saved model is a plain one
    of the size that it had. The paper does not say how W3' begins; here it is a copy of W3 and a = 0, so that the
    logits are the base model's exactly.

    Raises:
        ValueError: The layers have no `mlp.down_proj`.
    """

    reference = "Wu et al., 2024 (arXiv 2401.02415)"
    bibtex = """@misc{wu2024llamapro,
  author = {Wu, Chengyue and others},
  title = {{LLaMA Pro}: Progressive {LLaMA} with Block Expansion},
  year = {2024},
  eprint = {2401.02415},
  archivePrefix = {arXiv}
}"""

    def setup(self, backbone: Backbone) -> None:
        """Puts the second projections in, freezes the rest.

        Raises:
            ValueError: The layers have no `mlp.down_proj`.
        """
        backbone.freeze()
        projections = [module for name, module in backbone.decoder.named_modules() if name.endswith("mlp.down_proj")]
        if not projections:
            raise ValueError(f"{type(backbone.model).__name__} has no mlp.down_proj. Take a model of the LLaMA family.")
        for projection in projections:
            parametrize.register_parametrization(projection, "weight", SoftmaxMixture(projection.weight))


class SoftmaxMixture(nn.Module):
    """softmax(a)_1 W + softmax(a)_2 W', of which W' and a train.

    Args:
        first: W, (out, in).
    """

    def __init__(self, first: Tensor) -> None:
        super().__init__()
        self.second = nn.Parameter(first.detach().clone())
        self.balance = nn.Parameter(torch.zeros(2, dtype=torch.float32, device=first.device))

    def forward(self, first: Tensor) -> Tensor:
        """The one matrix (out, in) that both act as.

        Args:
            first: W, (out, in).
        """
        share = self.balance.softmax(0).to(first.dtype)
        return share[0] * first + share[1] * self.second
