"""A surgery as a picture: which layer stands where, what was added, and where neighbours were none before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from workbench.depth import Plan
from workbench.looks import INK, OKABE_ITO, STYLE

KINDS = {
    "as it was": OKABE_ITO[0],
    "a copy, passes its input on": OKABE_ITO[4],
    "a copy": OKABE_ITO[5],
}
BOX = (1.0, 0.26)  # inches: of a stack with the room beside it, of a layer


@matplotlib.rc_context(STYLE)
def stack_figure(plans: Mapping[str, Plan]) -> Figure:
    """Stacks of layers side by side, the input below; each layer has the number of the one that it came from.

    A dashed line is a seam: what stands above it did not follow on what stands below it in the model before. Beside it
    stands how many layers the way leads back. Layers that pass their input on make no seam.

    Args:
        plans: By the name that stands below; each as a strategy's `plan` gives it.
    """
    tallest = max(map(len, plans.values()))
    width, height = BOX[0] * len(plans) + 0.1, BOX[1] * (tallest + 3) + 0.1
    figure = Figure((width, height))
    axes = figure.add_axes((0.05 / width, 2.4 * BOX[1] / height, 1 - 0.1 / width, BOX[1] * (tallest + 0.4) / height))
    axes.set_xlim(0, len(plans))
    axes.set_ylim(-0.2, tallest + 0.2)
    axes.axis("off")
    found = {kind for place, plan in enumerate(plans.values()) for kind in _draw_stack(axes, place, plan)}
    for place, name in enumerate(plans):
        axes.text(place + 0.4, -0.35, name, ha="center", va="top")
    shown = [Patch(color=color, label=kind) for kind, color in KINDS.items() if kind in found]
    figure.legend(handles=shown, loc="lower center", ncols=len(shown), columnspacing=1.2, handlelength=1)
    return figure


def seams(plan: Plan) -> list[tuple[int, int]]:
    """Where a layer does not follow on the one that it followed on before, and how many layers the way leads back.

    Layers that pass their input on are left out, since nothing changes on the way through them.

    Returns:
        (index of the upper layer, layers back) for each seam; negative where layers are left out.

    >>> from workbench.depth import PlannedLayer
    >>> seams([PlannedLayer(0), PlannedLayer(1), PlannedLayer(1, identity=True), PlannedLayer(0), PlannedLayer(1)])
    [(3, 2)]
    """
    kept = [(index, layer.source) for index, layer in enumerate(plan) if not layer.identity]
    pairs = pairwise(kept)
    return [(index, below + 1 - source) for (_, below), (index, source) in pairs if source != below + 1]


@matplotlib.rc_context(STYLE)
def joined_figure(layers: tuple[int, int], pairs: Sequence[tuple[int, int]]) -> Figure:
    """Two frozen models side by side and the connections between them, the input below.

    Args:
        layers: Of the augmenting model and of the anchor.
        pairs: A layer of the augmenting model and the anchor's whose output it is added to, as
            `composition.joined_layers` gives them.
    """
    rows = max(layers) + 2.6
    figure = Figure((3.9, BOX[1] * 1.3 * rows))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 3.9)
    axes.set_ylim(-1.3, rows - 1.3)
    axes.axis("off")
    for x, count, name, color in (
        (0.2, layers[0], "augmenting", OKABE_ITO[4]),
        (2.7, layers[1], "anchor", OKABE_ITO[0]),
    ):
        for index in range(count):
            axes.add_patch(Rectangle((x, index), 1.0, 0.7, color=color, linewidth=0))
            ink = "white" if color == OKABE_ITO[0] else INK
            axes.text(x + 0.5, index + 0.35, str(index), ha="center", va="center_baseline", color=ink)
        axes.text(x + 0.5, -0.35, f"{name}, frozen", ha="center", va="top")
    for below, above in pairs:
        arrow = {"arrowstyle": "-|>", "color": OKABE_ITO[1], "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (2.7, above + 0.85), (1.2, below + 0.35), arrowprops=arrow)
    axes.text(1.95, layers[0] + 0.35, "trained", ha="center", color=OKABE_ITO[1])
    axes.text(3.2, layers[1] + 0.35, "answer", ha="center")
    return figure


def _draw_stack(axes: Axes, place: int, plan: Plan) -> list[str]:
    """Draws one stack and gives the kinds of its layers."""
    seen: set[int] = set()
    kinds = []
    for index, layer in enumerate(plan):
        first = layer.source not in seen and not layer.identity
        kind = "as it was" if first else "a copy, passes its input on" if layer.identity else "a copy"
        seen |= {layer.source} if first else set()
        axes.add_patch(Rectangle((place + 0.1, index + 0.08), 0.6, 0.84, color=KINDS[kind], linewidth=0))
        ink = "white" if kind == "as it was" else INK
        axes.text(place + 0.4, index + 0.5, str(layer.source), ha="center", va="center_baseline", color=ink)
        kinds.append(kind)
    for index, back in seams(plan):
        axes.plot([place + 0.03, place + 0.77], [index, index], color=INK, linewidth=1.3, linestyle=(0, (3, 1.5)))
        axes.text(place + 0.79, index, f"{-back:+d}".replace("-", "−"), va="center")
    return kinds
