"""CALM: a frozen backbone attends to the layers of frozen augmenting models."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from workbench.backbone import Backbone
from workbench.composition import CalmForCausalLM, joined_layers
from workbench.strategy import ContinualStrategy

if TYPE_CHECKING:
    from workbench.backbone import Batch
    from workbench.benchmark import Task

ROLES = ("unk_token_id", "pad_token_id", "eos_token_id", "bos_token_id")  # if a token has several, the last
LEADS = ("\n", ".", "a")  # texts after which a spelling is encoded


class CALM(ContinualStrategy):
    """Compose the backbone (anchor, m_B) with augmenting models (m_A) by trainable cross-attention.

    At each connected pair of layers i of m_A and j of m_B (Bansal et al., 2024, section 3.1):

        H_Bj ← H_Bj + f_cross(f_proj(H_Ai), H_Bj)

    f_proj projects to the width of m_B, and f_cross is cross-attention with queries from H_Bj. Both models are frozen;
    only f_proj and f_cross train. `workbench.composition.CalmModel` has the details. The paper composes once; both
    policies for a sequence of tasks are this project's.

    Args:
        augmenting: Folder, hub id or name of a model, or a Backbone, which is copied; or several of them.
        connections: Number of connections of each augmenting model, at uniform distances; or pairs (layer of the
            augmenting model, layer of the backbone). In the paper every fourth layer of the augmenting model has one.
        zero_init: Initialize the output projection of the cross-attention to zero, so that the composition starts as
            the backbone. Not specified in the paper.
        encoder: Let the augmenting models read only the prompt: the paper's weaker ablation.
        policy: "one": one composition, trained on all tasks in sequence. "each_task": for each task, a new copy of
            `augmenting` is first fine-tuned on the task and then joined by new connections, which are trained on the
            task; all earlier models and connections stay frozen. The fine-tuning is a curriculum item
            "<task>:augmenting", which is not scored.
        alignment: "same": all models have the same tokenizer. "characters": an augmenting model with another
            tokenizer reads the characters of each of the backbone's tokens, and its state at the last of them
            represents the token. Not in the paper; see `spelling` for its limits.

    Raises:
        ValueError: An argument is out of range; in `setup`, the models have different tokenizers or cannot be joined.
    """

    reference = "Bansal et al., 2024 (arXiv 2401.02412)"
    bibtex = """@misc{bansal2024calm,
  author = {Bansal, Rachit and others},
  title = {{LLM} Augmented {LLM}s: Expanding Capabilities through Composition},
  year = {2024},
  eprint = {2401.02412},
  archivePrefix = {arXiv}
}"""

    def __init__(
        self,
        augmenting: str | Backbone | Sequence[str | Backbone],
        connections: int | Sequence[tuple[int, int]] = 4,
        zero_init: bool = False,
        encoder: bool = False,
        policy: Literal["one", "each_task"] = "one",
        alignment: Literal["same", "characters"] = "same",
    ) -> None:
        super().__init__()
        self.sources = (augmenting,) if isinstance(augmenting, (str, Backbone)) else tuple(augmenting)
        if policy not in ("one", "each_task"):
            raise ValueError(f"policy={policy!r}: choose 'one' or 'each_task'.")
        if alignment not in ("same", "characters"):
            raise ValueError(f"alignment={alignment!r}: choose 'same' or 'characters'.")
        if policy == "each_task" and alignment == "characters":
            raise ValueError(
                "policy='each_task' trains copies on tasks as the backbone's tokenizer encodes them, which a model of "
                "another tokenizer cannot read. Choose policy='one' or alignment='same'."
            )
        if not self.sources:
            raise ValueError("augmenting is empty: there is nothing to join the backbone with. Name a model.")
        if policy == "each_task" and len(self.sources) > 1:
            raise ValueError(
                f"policy='each_task' trains copies of one model, but augmenting names {len(self.sources)}. Name one."
            )
        self.connections = connections
        self.settings = {"zero_init": zero_init, "encoder": encoder}
        self.policy, self.alignment = policy, alignment
        self.composable = policy == "one"  # type: ignore[misc]  # undefined for other members while a copy trains
        self.parked: Any = None  # the composition, while a copy is trained

    def curriculum(self, tasks: Sequence[Task], general: Task | None) -> Sequence[Task]:
        """Return the tasks; with the policy "each_task" preceded each by the training of an augmenting model."""
        if self.policy == "one":
            return tasks
        prepared = [replace(task, name=f"{task.name}:augmenting", prepares=task.name) for task in tasks]
        return [item for pair in zip(prepared, tasks, strict=True) for item in pair]

    def setup(self, backbone: Backbone) -> None:
        """Build the composition; with the policy "each_task" only check that the models can be joined.

        Raises:
            ValueError: The models have different tokenizers, cannot be joined, or lack a layer of `connections`.
        """
        parts = [self._read(source, backbone) for source in self.sources]
        for model, table in parts:
            joined_layers(backbone.model, model, self.connections, table)
        if self.policy == "one":
            backbone.model = CalmForCausalLM.compose(backbone.model, [], self.connections, **self.settings)
            for model, table in parts:
                backbone.model.join(model, self.connections, table)
        else:
            backbone.freeze()

    def before_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        """With the policy "each_task": replace the composition by a new copy to train, or join the trained copy."""
        if self.policy == "one":
            return
        if task.prepares is not None:
            self.parked = backbone.model.requires_grad_(False)
            fresh = copy.deepcopy(self._read(self.sources[0], backbone)[0])
            backbone.model = fresh.to(backbone.device).requires_grad_(True).train()
            return
        trained, composed = backbone.model, self.parked
        if isinstance(composed, CalmForCausalLM):
            composed.join(trained, self.connections)
        else:
            composed = CalmForCausalLM.compose(composed, [trained], self.connections, **self.settings)
        composed.requires_grad_(False)
        composed.model.connections[-1].requires_grad_(True)
        backbone.model, self.parked = composed.train(), None

    def _read(self, source: str | Backbone, backbone: Backbone) -> tuple[Any, Tensor | None]:
        """Return an augmenting model, and the spelling table if its tokenizer differs from the backbone's."""
        dtype = str(backbone.model.dtype).removeprefix("torch.")
        other = source if isinstance(source, Backbone) else Backbone.load(source, dtype=dtype)
        own, vocabulary = (each.tokenizer.get_vocab() for each in (backbone, other))
        if own == vocabulary:
            return other.model, None
        if self.alignment == "characters":
            rows = backbone.model.get_input_embeddings().num_embeddings
            return other.model, spelling(backbone.tokenizer, other.tokenizer, rows)
        name = "augmenting" if isinstance(source, Backbone) else f"augmenting={source!r}"
        apart = len(dict(own.items() ^ vocabulary.items()))
        raise ValueError(
            f"{name}: its tokenizer has {len(vocabulary)} tokens and the backbone's {len(own)}; {apart} are not the "
            "same in both. Both models read the same tokens: give models of one tokenizer or, with policy 'one', "
            "alignment: characters."
        )


def spelling(own: Any, other: Any, rows: int) -> Tensor:
    """Spell each token of one tokenizer, leading space included, in the tokens of another.

    Each token is spelt separately, as in the middle of a text, so that its spelling does not depend on other tokens. A
    token without characters (a special token, an incomplete UTF-8 character, an embedding without a token) becomes
    the other tokenizer's token of the same role (bos, eos, pad, unk), otherwise its unk or else its eos.

    Args:
        own: Tokenizer whose tokens are spelt.
        other: Tokenizer of the spellings.
        rows: Number of rows of the table: the number of embeddings of the model that uses `own`.

    Returns:
        Ids of `other`, (rows, longest spelling), padded with -1.

    Raises:
        ValueError: `other` has neither an unk nor an eos token.
    """
    nothing = next((token for token in (other.unk_token_id, other.eos_token_id) if token is not None), None)
    if nothing is None:
        raise ValueError("The augmenting model's tokenizer has neither an unk nor an eos token. Give it one.")
    roles = {getattr(own, role): getattr(other, role) for role in ROLES if getattr(other, role) is not None}
    special, lead = set(own.all_special_ids), own.encode("a", add_special_tokens=False)
    spelt = []
    for token in range(rows):
        text = "" if token in special or token >= len(own) else characters(own, lead, [token])
        pieces = [] if "\ufffd" in text else _pieces(other, text)
        spelt.append(pieces or [roles.get(token, nothing)])
    longest = max(map(len, spelt))
    return torch.tensor([pieces + [-1] * (longest - len(pieces)) for pieces in spelt])


def characters(tokenizer: Any, before: list[int], tokens: list[int]) -> str:
    """Return the text that tokens add to the decoded text of the tokens before them, spaces preserved.

    Args:
        tokenizer: Tokenizer that decodes both.
        before: Ids of the tokens before.
        tokens: Ids of the tokens.
    """
    start, whole = (tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in (before, before + tokens))
    return str(whole).removeprefix(start)


def _pieces(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a text in the middle of another, after a lead that does not merge with it."""
    found: list[list[int]] = []
    for lead in LEADS if text else ():
        before, whole = (tokenizer.encode(each, add_special_tokens=False) for each in (lead, lead + text))
        pieces = whole[len(before) :]
        if pieces and whole[: len(before)] == before:
            found.append(pieces)
            if characters(tokenizer, before, pieces) == text:
                return found[-1]
    return found[0] if found else []
