"""What a notebook shows: the numbers of the runs, in letters that can be read from the last row."""

from __future__ import annotations

import base64
import io
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.run_folders import write_examples
from matplotlib.figure import Figure
from PIL import Image

from workbench.notebook import SHARPNESS, Page, Picture, Rows, score_rows
from workbench.report import compare
from workbench.report.figures import format_panels, matrix_figure
from workbench.report.plots import heat_map, stability_plasticity
from workbench.report.scores import View
from workbench.report.style import PALETTE, series_styles
from workbench.statistics import Estimate


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> View:
    return View(compare([write_examples(tmp_path_factory.mktemp("notebook") / "made", seeds=1)])[0])


def test_a_pictures_smallest_letters_are_14_points_high() -> None:
    figure = Figure((2, 1))
    figure.text(0, 0, "large", size=20)
    figure.text(0, 0, "small", size=7)
    figure.text(0, 0, "", size=1)
    picture = Picture(figure, "two words")
    assert picture.scale == 2
    data, metadata = picture._repr_mimebundle_()
    assert data["text/plain"] == "two words"
    assert metadata["image/png"] == {"width": 2 * 2 * 96, "height": 2 * 96, "alt": "two words"}
    png = base64.b64decode(data["image/png"])
    assert struct.unpack(">II", png[16:24]) == (2 * 2 * 96 * SHARPNESS, 2 * 96 * SHARPNESS)


def test_letters_of_ticks_count_too() -> None:
    picture = Picture(heat_map(["zero-shot", "a"], {"a": True}, [[0.1], [0.2]]), "a matrix")
    assert picture.scale == pytest.approx(14 / 7.5)


def test_a_picture_keeps_the_colours_of_its_legend() -> None:
    """Each strategy has a marker a few pixels wide."""
    names = [f"s{index}" for index in range(len(PALETTE))]
    points = {name: (Estimate(0.1 * x, math.nan, 1), Estimate(0.5, math.nan, 1), 1.0) for x, name in enumerate(names)}
    picture = Picture(stability_plasticity(points, series_styles(names), "cost"), "markers")
    image = Image.open(io.BytesIO(base64.b64decode(picture._repr_mimebundle_()[0]["image/png"]))).convert("RGB")
    legend = image.crop((image.width * 7 // 10, 0, image.width, image.height))
    colors = {"#{:02x}{:02x}{:02x}".format(*color) for _, color in legend.getcolors(legend.width * legend.height)}
    assert {*PALETTE} <= colors


def test_a_table_holds_its_cells_and_no_code_of_theirs() -> None:
    rows = Rows(["name", "value"], [["<b>", 0.5], ["count", 12345], ["nothing", float("nan")]], "what it is")
    assert repr(rows) == "name\tvalue\n<b>\t0.500\ncount\t12,345\nnothing\t–\nwhat it is"
    html = rows._repr_html_()
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert "font-size:14pt" in html
    assert html.count("<td") == 6


def test_scores_are_those_of_the_runs(view: View) -> None:
    made = score_rows(view.comparison)
    assert made.head[:3] == ["strategy", "OP", "BWT"]
    assert made.rows[0][:5] == ["seqft", "0.650", "-0.400", "0.850", "-0.100"]


def test_a_matrix_fills_in_task_by_task(view: View) -> None:
    def cells(after: int | None, others: bool = True) -> list[str]:
        return [text.get_text() for text in matrix_figure(view, "seqft", "default", after, others).axes[0].texts]

    assert cells(1) == ["0.10", "0.20", "0.50", "0.90", "0.30", "0.50", "–", "–", "–"]
    assert cells(1, others=False) == ["0.10", "0.20", "0.90", "0.30", "–", "–"]
    assert cells(None) == cells(2) == ["0.10", "0.20", "0.50", "0.90", "0.30", "0.50", "0.50", "0.80", "0.40"]


def test_format_and_knowledge_stand_side_by_side(view: View) -> None:
    panels, styles = format_panels(view, "seqft", "default")
    assert [panel.title for panel in panels] == ["a: score", "a: nats per token", "b: score", "b: nats per token"]
    assert [list(panel.lines) for panel in panels] == [
        ["strict", "lenient"],
        ["right answer"],
        ["strict"],
        ["right answer"],
    ]
    assert list(styles) == ["strict", "lenient", "right answer"]
    assert [point.mean for point in panels[0].lines["lenient"]] == pytest.approx([0.15, 0.95, 0.55])
    assert [point.mean for point in panels[1].lines["right answer"]] == pytest.approx([1.9, 1.1, 1.5])
    assert [panel.learnt_after for panel in panels] == [1, 1, 2, 2]
    assert [panel.in_nats for panel in panels] == [False, True, False, True]


def test_a_page_is_whole_and_keeps_to_its_frame(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text('<p title="a">&amp;<dt>hardware</dt><dd>a machine</dd></p>', encoding="utf-8")
    html = Page(file, height=300)._repr_html_()
    assert 'srcdoc="&lt;p title=&quot;a&quot;&gt;&amp;amp;&lt;/p&gt;"' in html
    assert "height:300px" in html
    assert html.count("<") == 2


def test_a_notebooks_folder_is_empty_and_goes_with_its_kernel(tmp_path: Path) -> None:
    code = "import os; from workbench.notebook import begin; begin(); open('run', 'w').close(); print(os.getcwd())"
    place = {"PYTHONPATH": str(Path(__file__).parent.parent), "TMPDIR": str(tmp_path)}
    made = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **place}
    )
    folder = Path(made.stdout.strip())
    assert folder.parent == tmp_path.resolve()
    assert not folder.exists()
