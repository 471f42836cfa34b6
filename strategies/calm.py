"""CALM's composition: a frozen backbone attends to the layers of frozen augmenting models."""

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

ROLES = ("unk_token_id", "pad_token_id", "eos_token_id", "bos_token_id")  # the last counts where a token has several
LEADS = ("\n", ".", "a")


class CALM(ContinualStrategy):
    """Joins the backbone, as anchor, with augmenting models by projections and cross-attention, which alone train.

    The equations, and what the paper leaves open, stand with `workbench.composition.CalmModel`. The paper composes
    once; a sequence of tasks is ours, under either policy.

    Args:
        augmenting: A model's folder, hub id or name, or a Backbone, which stays as it is; or several.
        connections: How many for each augmenting model, at uniform gaps; or pairs of one of its layers and one of the
            backbone's, whose outputs are joined. In the paper every fourth layer of the augmenting model has one.
        zero_init: Whether the cross-attention's output projection starts at zero, so that the composition starts as
            the backbone. The paper says nothing of it.
        encoder: Whether the augmenting models read the prompt and no token of the answer: the paper's weaker ablation.
        policy: "one": one composition, trained through all tasks; "each_task": for each task a fresh copy of
            `augmenting` is first trained on that task alone, all its weights, and then joined by connections of its
            own, which learn the task; all older models and connections stay frozen. The training of the copy is an
            item of the curriculum, "<task>:augmenting", that is not scored.
        alignment: "same": all models have one tokenizer; "characters": another's model reads the characters of each
            of the backbone's tokens, spelt in its own, and its state at the last of them stands for the token. The
            paper says nothing of it; see `spelling` for what is lost.

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
        self.composable = policy == "one"  # type: ignore[misc]  # nobody has said what others do while a copy trains
        self.parked: Any = None  # the composition, while a copy trains in its place

    def curriculum(self, tasks: Sequence[Task], general: Task | None) -> Sequence[Task]:
        """The tasks; under "each_task" with the training of an augmenting model before each one."""
        if self.policy == "one":
            return tasks
        prepared = [replace(task, name=f"{task.name}:augmenting", prepares=task.name) for task in tasks]
        return [item for pair in zip(prepared, tasks, strict=True) for item in pair]

    def setup(self, backbone: Backbone) -> None:
        """Composes; or, where each task brings a model of its own, sees that it can be joined.

        Raises:
            ValueError: The models have different tokenizers or cannot be joined, or not by these connections.
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
        """Under "each_task": puts a fresh copy in the composition's place, or joins the trained one to it."""
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
        """An augmenting model, and the table that it needs to read what the backbone reads, if any."""
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
    """The characters of each token of one tokenizer, a leading space among them, in the tokens of another.

    Each token is spelt by itself, as it would be in the middle of a text, so that what a model reads for it depends
    on no other token. What has no characters is the other's token of the same role (bos, eos, pad, unk), else its unk
    or, without one, its eos: special tokens, bytes that are no whole character, embeddings without a token.

    Args:
        own: The tokenizer whose tokens are spelt.
        other: The one that they are spelt in.
        rows: Of the table: the embeddings of the model that reads `own`.

    Returns:
        (rows, the longest spelling) ids of `other`, -1 after the last.

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
    """What tokens add to the text of those before them, as a tokenizer decodes it, spaces as they are."""
    start, whole = (tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in (before, before + tokens))
    return str(whole).removeprefix(start)


def _pieces(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text in the middle of another, after one that they do not melt into."""
    found: list[list[int]] = []
    for lead in LEADS if text else ():
        before, whole = (tokenizer.encode(each, add_special_tokens=False) for each in (lead, lead + text))
        pieces = whole[len(before) :]
        if pieces and whole[: len(before)] == before:
            found.append(pieces)
            if characters(tokenizer, before, pieces) == text:
                return found[-1]
    return found[0] if found else []
