"""LLaMA Pro's mixture variant: a second down-projection in each feed-forward block, both always active."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from workbench.strategy import ContinualStrategy

if TYPE_CHECKING:
    from workbench.backbone import Backbone


class DownProjectionMoE(ContinualStrategy):
    """Keep each layer's down-projection W3 frozen and train a second one, W3' (LLaMA Pro, Table 5, "MoE").

        FFN(x) = softmax(a)_1 W3 h + softmax(a)_2 W3' h   with h the activations (batch, time, inner width)

    a = (a_1, a_2) is learnt in each layer; only W3' and a are trained. Both projections act on the same h, so they
    are equal to one matrix, and the saved model has the base model's size and structure. The paper does not specify
    the initialization of W3'; here W3' = W3 and a = 0, so that the initial logits are exactly the base model's.

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
        """Add the second projections and freeze all other parameters.

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
    """Parametrization softmax(a)_1 W + softmax(a)_2 W' of a weight, with trainable W' and a.

    Args:
        first: W, (out, in); W' starts as a copy.
    """

    def __init__(self, first: Tensor) -> None:
        super().__init__()
        self.second = nn.Parameter(first.detach().clone())
        self.balance = nn.Parameter(torch.zeros(2, dtype=torch.float32, device=first.device))

    def forward(self, first: Tensor) -> Tensor:
        """Return the mixture of both matrices, (out, in).

        Args:
            first: W, (out, in).
        """
        share = self.balance.softmax(0).to(first.dtype)
        return share[0] * first + share[1] * self.second
