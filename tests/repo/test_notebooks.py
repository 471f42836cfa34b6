"""The teaching notebooks: what is stored in them is whole, real and small; `make notebooks` executes them anew."""

from __future__ import annotations

import ast
import json
import re
import resource
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.studies import ROOT

FOLDER = ROOT / "notebooks"
FILES = sorted(FOLDER.glob("*.ipynb"))
NAMES = ["01_what_forgetting_is", "02_block_expansion", "03_going_deeper", "04_composition", "05_your_own_strategy"]
SECONDS = 90
BYTES = 400_000
LONGEST_CELL, WIDEST_LINE = 40, 130
WIDEST_PICTURE = 1020  # pixels: what a window of 1366 has beside JupyterLab's own
QUESTIONS = 3
NUMBER = re.compile(r"(?<![\w.,])-?\d+\.\d+(?![\w.]*\d)")
PLACES = re.compile(r"(?<![\w.<~])/(?:home|root|tmp|work|Users|var|opt|mnt)/|[A-Z]:\\\\\w")


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def code(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [cell for cell in cells if cell["cell_type"] == "code"]


def prose(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [cell for cell in cells if cell["cell_type"] == "markdown"]


def shown(cell: dict[str, Any]) -> str:
    """All text of a cell's outputs, a report's page left out."""
    texts = [output.get("text", "") for output in cell.get("outputs", ())]
    texts += [output.get("data", {}).get("text/plain", "") for output in cell.get("outputs", ())]
    return "\n".join("".join(text) for text in texts)


def plain(text: str) -> str:
    """Signs and separators as Python writes them."""
    return text.replace("−", "-").replace("\\,", "")


def test_there_are_five_of_them() -> None:
    assert [file.stem for file in FILES] == NAMES


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def file(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


def test_outputs_are_of_one_execution_in_order_without_an_error(file: Path) -> None:
    cells = code(read(file)["cells"])
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert not [output["text"] for output in outputs if output.get("name") == "stderr"]
    pages = ["<iframe" in "".join(output.get("data", {}).get("text/html", "")) for output in outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) + sum(pages) >= 2


def test_it_is_small_and_tells_nothing_of_the_machine(file: Path) -> None:
    assert file.stat().st_size < BYTES
    text = file.read_text(encoding="utf-8")
    assert not PLACES.findall(text)
    assert set(read(file)["metadata"]) == {"kernelspec", "language_info"}
    assert not any(cell["metadata"] for cell in read(file)["cells"])


def test_pictures_can_be_seen_from_the_last_row(file: Path) -> None:
    for cell in code(read(file)["cells"]):
        for output in cell["outputs"]:
            if "image/png" in output.get("data", {}):
                size = output["metadata"]["image/png"]
                assert size["alt"]
                assert size["width"] <= WIDEST_PICTURE, "it would be made smaller, and its letters with it"


def test_cells_are_short_and_hold_no_code_that_belongs_in_the_library(file: Path) -> None:
    for cell in code(read(file)["cells"]):
        text = source(cell)
        assert len(text.splitlines()) <= LONGEST_CELL, text
        assert max(map(len, text.splitlines())) <= WIDEST_LINE, text
        if text.startswith("%%writefile"):
            continue
        tree = ast.parse(text)
        assert not [node.name for node in tree.body if isinstance(node, ast.FunctionDef)], text
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        assert not classes or file.stem == "05_your_own_strategy", text
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
        assert not [name for name in imported if name.startswith("_")]


def test_questions_have_folded_answers(file: Path) -> None:
    text = "\n".join(map(source, prose(read(file)["cells"])))
    assert text.count("<details>") == text.count("</details>") >= QUESTIONS
    for folded in re.findall(r"<details>(.*?)</details>", text, re.DOTALL):
        summary, _, answer = folded.partition("</summary>")
        assert re.match(r"<summary><b>(Question \d|To try)\.</b> \S", summary), summary
        assert len(answer.split()) >= 15, answer
    assert re.findall(r"Question (\d)\.", text) == [str(place + 1) for place in range(text.count("Question "))]


def test_each_number_in_the_text_stands_in_an_output_above_it_or_in_the_page_that_is_linked(file: Path) -> None:
    known: set[float] = set()
    for cell in read(file)["cells"]:
        if cell["cell_type"] == "code":
            known |= {float(number) for number in NUMBER.findall(plain(source(cell) + "\n" + shown(cell)))}
            continue
        text = plain(source(cell))
        linked = [(FOLDER / place).read_text(encoding="utf-8") for place in re.findall(r"\]\((\.\./[^)#]+)", text)]
        there = known | {float(number) for page in linked for number in NUMBER.findall(plain(page))}
        for number in NUMBER.findall(re.sub(r"\]\([^)]*\)|`[^`]*`|arXiv[^)]*", "", text)):
            digits = len(number.partition(".")[2])
            near = [value for value in there if abs(abs(value) - abs(float(number))) <= 0.5001 * 10**-digits]
            assert near, f"{number} is in no output above: {text[:200]}"


def test_the_first_one_computes_backward_transfer_as_the_workbench_does() -> None:
    (text,) = (shown(cell) for cell in code(read(FILES[0])["cells"]) if "BWT by hand" in source(cell))
    first, second, by_hand, ours = re.findall(r"(?:=|workbench: +) ?(-?\d\.\d{4})(?:,|$)", text, re.MULTILINE)
    assert float(by_hand) == float(ours)
    assert float(by_hand) == pytest.approx((float(first) + float(second)) / 2, abs=1e-4)


def processor_seconds() -> float:
    """What the kernels that have ended took: on a machine that does other things too, the clock says less."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the kernel is another process, and this one only waits for it
def test_it_is_executed_in_a_fresh_kernel_within_its_time(file: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="pip install 'continual-workbench[notebooks]'")
    nbformat = pytest.importorskip("nbformat")
    stored, notebook = read(file), nbformat.read(file, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    started, spent = time.monotonic(), processor_seconds()
    client = nbclient.NotebookClient(notebook, timeout=3 * SECONDS, resources={"metadata": {"path": str(FOLDER)}})
    client.execute()
    seconds, spent = time.monotonic() - started, processor_seconds() - spent
    for before, now in zip(code(stored["cells"]), code(notebook.cells), strict=True):
        kinds = [[sorted(output.get("data", {"text": ""})) for output in cell["outputs"]] for cell in (before, now)]
        assert kinds[0] == kinds[1], source(before)
    print(f"{file.stem}: {seconds:.0f} s, of one processor {spent:.0f} s")
    assert spent <= SECONDS
