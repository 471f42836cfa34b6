"""L2P (learning to prompt): a pool of soft prompts, from which each row's own question chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional

from workbench.backbone import Selector, soft_embedding
from workbench.strategy import ContinualStrategy

if TYPE_CHECKING:
    from workbench.backbone import Backbone, Batch, Output


class NearestKeys(Selector):
    """Chooses the prompts whose keys point most nearly into the direction of a row's query.

    Args:
        pool: Number of prompts.
        length: Tokens of each prompt.
        chosen: Number of prompts that a row gets.
        width: Width of the model.
        query: The frozen model's feature of a row's prompt, "last" or "mean".

    Attributes:
        keys: (pool, width), one for each prompt.
        last: Queries (rows, width) and chosen prompts (rows, chosen) of the last call; None: there was none.
    """

    def __init__(self, pool: int, length: int, chosen: int, width: int, query: Literal["last", "mean"]) -> None:
        super().__init__(chosen * length, query)
        self.length, self.chosen = length, chosen
        self.keys = nn.Parameter(torch.rand(pool, width) * 2 - 1)
        self.last: tuple[Tensor, Tensor] | None = None

    def forward(self, features: Tensor) -> Tensor:
        """Return the places of the chosen prompts' tokens, the nearest prompt first: (rows, chosen · length)."""
        chosen = self.cosines(features).topk(self.chosen, dim=1).indices
        self.last = features.detach(), chosen
        return (chosen[:, :, None] * self.length + torch.arange(self.length, device=chosen.device)).flatten(1)

    def cosines(self, queries: Tensor) -> Tensor:
        """Return the cosine of each query (rows, width) with each key, (rows, pool), in float32."""
        keys = functional.normalize(self.keys.float(), dim=1)
        return functional.normalize(queries.float(), dim=1) @ keys.T


class L2P(ContinualStrategy):
    """Train a pool of prompts and their keys; each row reads the prompts nearest to its query   (Wang et al., 2022).

        input: [P_{s_1}; ...; P_{s_N}; x],   s = the N keys of largest cos(q(x), k)
        L = L_t − strength · mean over rows of Σ_{s} cos(q(x), k_s)

    q(x) is a feature of the frozen model's reading of the prompt x without any soft prompt and without the answer. The
    choice has no gradient, so that the second term alone trains the keys, and the first alone the chosen prompts. What
    trains is exactly the pool (pool · length, width) and the keys (pool, width), through all tasks. No task identity is
    used. The diversified selection by frequencies, which the authors use on some benchmarks, is left out.

    The authors' feature is a vision transformer's class token. Of a causal model the state of the last token has read
    the whole prompt (query="last"). The pool starts as random rows of the vocabulary's embeddings, the keys uniformly
    in [−1, 1]. Official settings: pool 10, length 10, chosen 4, strength 1. TRACE: 10, 5, 3 and 0.5, with frozen keys
    that are the means of the initial prompts. Each row chooses alone: public code can let a batch choose together, by a
    vote, which makes an answer depend on its neighbours.

    Each row is read twice in training and in testing, once for its query, and is chosen · length tokens longer. These
    do not count towards `data.max_length`, but take positions of the model. Under several processes the mean over a
    process's rows counts by its labelled tokens. The saved model is the plain one without prompts: pool and keys are
    beside it in `prompts/soft_prompts.safetensors`, and plain transformers or peft cannot choose among them. Sharded
    training (FSDP) is refused.

    Args:
        pool: Number of prompts, M.
        length: Tokens of each prompt.
        chosen: Number of prompts that each row gets, N, at most `pool`.
        strength: Weight of the pull of the chosen keys towards the query, in nats; at least 0.
        query: "last": final state of the prompt's last token. "mean": mean of the prompt's final states.

    Raises:
        ValueError: A number is out of range; in `penalties`, the weights are sharded.
    """

    reference = "Wang et al., 2022 (arXiv 2112.08654)"
    bibtex = """@inproceedings{wang2022l2p,
  author = {Wang, Zifeng and others},
  title = {Learning to Prompt for Continual Learning},
  year = {2022},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  eprint = {2112.08654},
  archivePrefix = {arXiv}
}"""

    def __init__(
        self,
        pool: int = 10,
        length: int = 10,
        chosen: int = 4,
        strength: float = 1.0,
        query: Literal["last", "mean"] = "last",
    ) -> None:
        super().__init__()
        for name, value in {"pool": pool, "length": length, "chosen": chosen}.items():
            if value < 1:
                raise ValueError(f"{name}={value} is out of range; it has to be at least 1.")
        if chosen > pool:
            raise ValueError(f"chosen={chosen} is more than the {pool} prompts of the pool. Lower it, or raise pool.")
        if not strength >= 0:
            raise ValueError(f"strength={strength} is out of range; it has to be at least 0.")
        if query not in ("last", "mean"):
            raise ValueError(f"query={query!r}: choose 'last' or 'mean'.")
        self.pool, self.length, self.chosen, self.strength = pool, length, chosen, strength
        self.query: Literal["last", "mean"] = query

    def setup(self, backbone: Backbone) -> None:
        """Freeze the model, and add the pool and its keys."""
        backbone.freeze()
        vocabulary: Any = backbone.model.get_input_embeddings().weight
        rows = torch.randint(len(vocabulary), (self.pool * self.length,)).to(vocabulary.device)
        backbone.add_prompt("pool", vocabulary[rows])
        width = vocabulary.shape[1]
        backbone.choose_prompts(NearestKeys(self.pool, self.length, self.chosen, width, self.query))

    def penalties(self, backbone: Backbone, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Pull the chosen keys towards the queries of the batch, which its forward pass has computed.

        Returns:
            {"l2p_keys": scalar, in nats}.

        Raises:
            ValueError: The weights are sharded.
        """
        selector: Any = getattr(soft_embedding(backbone.model), "selector", None)
        if isinstance(selector.keys, DTensor):
            raise ValueError("L2P needs whole keys; trainer.strategy=fsdp shards them. Give trainer.strategy=ddp.")
        if selector.last is None:  # a process without a row of the first batch
            return {"l2p_keys": selector.keys.sum() * 0}
        queries, chosen = selector.last
        with torch.autocast(backbone.device.type, enabled=False):
            near = selector.cosines(queries).gather(1, chosen).sum(1).mean()
        return {"l2p_keys": -self.strength * near}
