"""Depth up-scaling (SOLAR): stack two copies of the layers, without some layers in between."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from workbench.benchmark import PRETRAINING
from workbench.depth import PlannedLayer, refuse_second_growth, restack, stackable_layers
from workbench.strategy import ContinualStrategy

if TYPE_CHECKING:
    from workbench.backbone import Backbone, Batch
    from workbench.benchmark import Task


class DepthUpScaling(ContinualStrategy):
    """Grow a model from n to 2(n - m) layers: A = [0, n - m), then B = [m, n)   (SOLAR, Kim et al., 2024, section 2).

    In the paper n = 32 and m = 8. With `interlock=k`, runs of k layers are taken alternately from A and B; k = n - m
    is SOLAR itself. `dropped=0` stacks the whole model on itself. The surgery reduces quality, which continued
    pretraining of all layers restores: combine it with `ContinuedPretraining`.

    Args:
        dropped: m, the number of layers removed from the top of the lower copy and from the bottom of the upper copy;
            0 <= m < n/2.
        interlock: k, the length of the alternating runs in layers; it has to divide n - m. None: k = n - m.
        trains: Layers that are trained on the tasks: "all", or "upper", only those of the upper copy B.
        again: Allow a model that was already grown to be grown again.

    Raises:
        ValueError: m or k does not fit the model's depth, or the model was grown before.
    """

    reference = "Kim et al., 2024 (arXiv 2312.15166)"
    bibtex = """@misc{kim2024solar,
  author = {Kim, Dahyun and others},
  title = {{SOLAR 10.7B}: Scaling Large Language Models with Simple yet Effective Depth Up-Scaling},
  year = {2024},
  eprint = {2312.15166},
  archivePrefix = {arXiv}
}"""

    def __init__(
        self,
        dropped: int = 8,
        interlock: int | None = None,
        trains: Literal["all", "upper"] = "all",
        again: bool = False,
    ) -> None:
        super().__init__()
        for name, value, least in (("dropped", dropped, 0), ("interlock", interlock, 1)):
            if value is not None and value < least:
                raise ValueError(f"{name}={value} is out of range; it has to be at least {least}.")
        if trains not in ("all", "upper"):
            raise ValueError(f"trains={trains!r}: choose 'all' or 'upper'.")
        self.dropped, self.interlock = dropped, interlock
        self.trains, self.again = trains, again

    def setup(self, backbone: Backbone) -> None:
        """Restack the layers and make all parameters trainable."""
        refuse_second_growth(backbone.model.config, self.again)
        restack(backbone.model, self.plan(len(stackable_layers(backbone.model))))
        backbone.model.requires_grad_(True)

    def before_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        """Freeze everything except the upper copy after pretraining (`trains="upper"`)."""
        if self.trains == "all" or task.name == PRETRAINING:
            return
        layers = list(backbone.decoder.get_submodule("layers").children())
        backbone.freeze()
        for layer, upper in zip(layers, self.upper(len(layers) // 2 + self.dropped), strict=True):
            layer.requires_grad_(upper)

    def plan(self, depth: int) -> list[PlannedLayer]:
        """Return the layer plan for a model with `depth` layers.

        Args:
            depth: Number of layers of the model, n.

        Raises:
            ValueError: m or k does not fit the depth.

        >>> [layer.source for layer in DepthUpScaling(dropped=1).plan(4)]
        [0, 1, 2, 1, 2, 3]
        >>> [layer.source for layer in DepthUpScaling(dropped=1, interlock=1).plan(4)]
        [0, 1, 1, 2, 2, 3]
        """
        kept, run = depth - self.dropped, self._run(depth)
        return [
            PlannedLayer(copy + index)
            for start in range(0, kept, run)
            for copy in (0, self.dropped)
            for index in range(start, start + run)
        ]

    def upper(self, depth: int) -> list[bool]:
        """Return for each layer of the new stack whether it comes from the upper copy B.

        Args:
            depth: Number of layers of the model, n.
        """
        run = self._run(depth)
        return [bool(index // run % 2) for index in range(2 * (depth - self.dropped))]

    def _run(self, depth: int) -> int:
        """Return k, or n - m if `interlock` is None."""
        if 2 * self.dropped >= depth:
            raise ValueError(
                f"dropped={self.dropped} is out of range for the model's {depth} layers: m has to be at least 0 and "
                f"less than half of them. Choose 0 to {(depth - 1) // 2}; SOLAR drops a quarter."
            )
        kept = depth - self.dropped
        if self.interlock is not None and kept % self.interlock:
            fitting = ", ".join(str(run) for run in range(1, kept + 1) if kept % run == 0)
            raise ValueError(
                f"interlock={self.interlock} does not divide the {kept} layers that are kept of each copy "
                f"({depth} - {self.dropped}). Choose one of {fitting}."
            )
        return self.interlock or kept
