"""Block expansion (LLaMA Pro): identity copies of blocks, inserted between the frozen blocks and trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from workbench.benchmark import PRETRAINING
from workbench.depth import PlannedLayer, compose_plans, refuse_second_growth, restack, stackable_layers
from workbench.strategy import ContinualStrategy

if TYPE_CHECKING:
    from workbench.backbone import Backbone, Batch
    from workbench.benchmark import Task

PLACES = ("interleaved", "bottom", "top")


class BlockExpansion(ContinualStrategy):
    """Add blocks that start as the identity and train only these (LLaMA Pro, Wu et al., 2024, section 3.2).

    The L layers are split into `groups` groups. Above each group, copies of its top `copies` blocks are inserted with
    their output projections set to zero:

        y = x + Attention(Norm(x)),   block(x) = y + FFN(Norm(y)),   with W_O = W_down = 0: block(x) = x

    so that the initial logits are exactly those of the base model.

    For the paper's two stages combine it with `ContinuedPretraining`, which trains only the new blocks, and set
    `trains="all"`, so that all blocks are trained on the tasks.

    Args:
        groups: Number of groups; it has to divide the number of layers. LLaMA Pro: 8 groups of 4 layers.
        copies: Number of blocks added to each group, or above each listed layer.
        position: "interleaved", as in the paper; or, as in its ablation, all groups × copies blocks in one place:
            "bottom" (below the first layer, copies of the lowest layers) or "top" (above the last, copies of the
            highest). Or a list of layer indices: `copies` of each are inserted directly above it; `groups` is ignored.
        trains: Parameters that are trained on the tasks: "new", the added blocks; "all", the whole model.
        each_task: Freeze a task's blocks after it, and add new blocks before the next task, placed by the same rule
            in the grown model.
        again: Allow a model that was already grown to be grown again.

    Raises:
        ValueError: `groups` does not divide the number of layers, there are fewer layers than blocks to copy, a
            listed layer does not exist, or the model was grown before.
    """

    reference = "Wu et al., 2024 (arXiv 2401.02415)"
    bibtex = """@misc{wu2024llamapro,
  author = {Wu, Chengyue and others},
  title = {{LLaMA Pro}: Progressive {LLaMA} with Block Expansion},
  year = {2024},
  eprint = {2401.02415},
  archivePrefix = {arXiv}
}"""

    def __init__(
        self,
        groups: int = 8,
        copies: int = 1,
        position: Literal["interleaved", "bottom", "top"] | Sequence[int] = "interleaved",
        trains: Literal["new", "all"] = "new",
        each_task: bool = False,
        again: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("groups", groups), ("copies", copies)):
            if value < 1:
                raise ValueError(f"{name}={value} is out of range; it has to be at least 1.")
        if isinstance(position, str) and position not in PLACES:
            raise ValueError(f"position={position!r}: choose 'interleaved', 'bottom' or 'top', or list layers.")
        if not position:
            raise ValueError("position lists no layer, so nothing would be added. List one or more.")
        if trains not in ("new", "all"):
            raise ValueError(f"trains={trains!r}: choose 'new' or 'all'.")
        if each_task and trains == "all":
            raise ValueError("each_task freezes the blocks of past tasks, which trains='all' would train. Choose one.")
        self.groups, self.copies = groups, copies
        self.position = position if isinstance(position, str) else sorted(position)
        self.trains, self.each_task, self.again = trains, each_task, again
        self.tasks_begun = 0
        self.stack: list[PlannedLayer] = []  # the model's layers in terms of the loaded model's, as one plan

    def setup(self, backbone: Backbone) -> None:
        """Insert the new blocks and freeze the others."""
        refuse_second_growth(backbone.model.config, self.again)
        self._grow(backbone, self.plan(len(stackable_layers(backbone.model))))

    def before_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        """Make all parameters trainable (`trains="all"`), or add blocks before each later task (`each_task`)."""
        if task.name == PRETRAINING:
            return
        self.tasks_begun += 1
        if self.trains == "all":
            backbone.model.requires_grad_(True)
        elif self.each_task and self.tasks_begun > 1:
            self._grow(backbone, self._next_plan(len(self.stack)))

    def plan(self, depth: int) -> list[PlannedLayer]:
        """Return the layer plan for a model with `depth` layers.

        Args:
            depth: Number of layers of the model.

        Raises:
            ValueError: `groups`, `copies` or the listed layers do not fit the depth.

        >>> [layer.source for layer in BlockExpansion(groups=2).plan(4)]
        [0, 1, 1, 2, 3, 3]
        """
        if not isinstance(self.position, str):
            return self._above(self.position, depth)
        old = [PlannedLayer(index) for index in range(depth)]
        if self.position != "interleaved":
            added = self.groups * self.copies
            if added > depth:
                raise ValueError(
                    f"groups x copies = {added} blocks are to be copied, but the model has {depth}. Choose fewer."
                )
            lowest = 0 if self.position == "bottom" else depth - added
            new = [PlannedLayer(index, identity=True) for index in range(lowest, lowest + added)]
            return new + old if self.position == "bottom" else old + new
        if depth % self.groups:
            fitting = ", ".join(str(count) for count in range(1, depth + 1) if depth % count == 0)
            raise ValueError(
                f"groups={self.groups} does not divide the model's {depth} layers. Choose one of {fitting}, or list "
                "layers as `position`."
            )
        size = depth // self.groups
        if self.copies > size:
            raise ValueError(f"copies={self.copies} is more than the {size} blocks of a group. Choose fewer.")
        plan: list[PlannedLayer] = []
        for start in range(0, depth, size):
            group = old[start : start + size]
            plan += group + [PlannedLayer(layer.source, identity=True) for layer in group[-self.copies :]]
        return plan

    def _next_plan(self, depth: int) -> list[PlannedLayer]:
        """Return the plan for the next task's blocks; listed layers refer to the model as loaded."""
        if isinstance(self.position, str):
            return self.plan(depth)
        highest = {layer.source: index for index, layer in enumerate(self.stack)}
        return self._above([highest[source] for source in self.position], depth)

    def _above(self, chosen: Sequence[int], depth: int) -> list[PlannedLayer]:
        """Return the plan with copies directly above the chosen layers."""
        if wrong := [index for index in chosen if not 0 <= index < depth]:
            raise ValueError(
                f"position lists layer {wrong[0]}, but the model has 0 to {depth - 1}. Choose among these."
            )
        plan = []
        for index in range(depth):
            plan.append(PlannedLayer(index))
            plan += [PlannedLayer(index, identity=True)] * (self.copies * list(chosen).count(index))
        return plan

    def _grow(self, backbone: Backbone, plan: Sequence[PlannedLayer]) -> None:
        layers = restack(backbone.model, plan)
        self.stack = compose_plans(self.stack, plan) if self.stack else list(plan)
        backbone.freeze()
        for layer, planned in zip(layers, plan, strict=True):
            layer.requires_grad_(planned.identity)
