"""Figures as SVG text: as files, and as parts of a page that take its colours and its font."""

from __future__ import annotations

import io
import re
from html import escape

import matplotlib
from matplotlib.figure import Figure

from workbench.looks import INK, LINE, OKABE_ITO, STYLE


@matplotlib.rc_context(STYLE)
def svg_of(figure: Figure) -> str:
    """The figure as SVG text, the same for the same numbers."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return re.sub(r"(\d\.\d{2})\d+", r"\1", buffer.getvalue())


def inline(figure: Figure, name: str, label: str = "") -> str:
    """The figure as a part of a page: it takes the page's font and colours, and its ids are its own.

    Args:
        figure: What is drawn.
        name: Unlike every other figure's of the page; letters, digits and hyphens.
        label: What it shows, for who cannot see it; without one it is decoration.
    """
    text = svg_of(figure)
    body = re.sub(r"(?s)<metadata>.*?</metadata>|<!--.*?-->", "", text[text.index("<svg") :])
    body = re.sub(r'(<(?:g|path|rect)) id="\w+_\d+"', r"\1", body)  # no one refers to these
    body = re.sub(r'\bid="', f'id="{name}-', body).replace('xlink:href="#', f'href="#{name}-')
    body = body.replace("url(#", f"url(#{name}-").replace(INK, "currentColor").replace(LINE, "var(--line)")
    body = re.sub(r"font-family: [^;\"]*;?|transform=\"rotate\(-0 [^\"]*\"", "", body)
    body = body.replace("#ffffff", "var(--paper)")
    for place, color in enumerate(OKABE_ITO):
        body = body.replace(color, f"var(--mark-{place})")
    role = f'role="img" aria-label="{escape(label)}"' if label else 'aria-hidden="true"'
    box = re.search(r'viewBox="[^"]*"', body)
    opening = f'<svg id="{name}" {role} {box.group() if box else ""}>'
    return re.sub(r"\s+", " ", re.sub(r"<svg[^>]*>", lambda _: opening, body, count=1))
