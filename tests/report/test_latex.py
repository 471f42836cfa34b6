"""A comparison as LaTeX: the table cell by cell, and a bibliography that names each paper once."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.run_folders import compared, scores, write_run

import strategies
from workbench.report import compare
from workbench.report.latex import KEY, bibtex, escaped, latex_table

ENTRY = "@misc{someone2020,\n  title = {A {Method}},\n  year = {2020}\n}"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A strategy with a name that LaTeX would choke on, three seeds; one that is given the task, without an entry."""
    for seed, op in enumerate((0.4, 0.5, 0.6)):
        write_run(tmp_path, ("a_b&50%", "1", seed), scores(op), bibtex=[ENTRY])
    write_run(tmp_path, ("oracle", "1", 0), scores(0.9), task_id_at_test=True, references=["A_B, 1999 (C)"])
    return tmp_path


def test_a_table_cell_by_cell(study: Path) -> None:
    lines = [line.strip() for line in latex_table(compared(study)).splitlines()]
    body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    half, other = "0.248", "0.124"  # 4.302653 · 0.1 / √3, and for learning accuracy of half that scatter
    assert body[0] == (
        r"a\_b\&50\%~\cite{someone2020} & 3 & "
        rf"$0.500 \pm {half}$ & $-0.500 \pm {half}$ & $0.100 \pm 0.000$ & $0.500 \pm {half}$ & "
        rf"$0.750 \pm {other}$ & $-0.100 \pm 0.000$ \\"
    )
    assert body[1].startswith(r"oracle\,\dag{}~\cite{a-b-1999-c} & 1 & $0.900$ & $-0.100$ & ")
    assert lines[lines.index(r"\toprule") + 1].count("&") == 7
    assert r"\begin{tabular}{lrrrrrrr}" in lines


def test_the_caption_states_the_protocol(study: Path) -> None:
    text = latex_table(compared(study))
    caption = next(line for line in text.splitlines() if "caption" in line)
    assert "mini; b.B, 2 tasks of 8 training rows; long prompts cut: left; template none; decoding greedy" in caption
    assert r"$\pm$: 95\,\% $t$ interval over seeds." in caption
    assert r"\dag{}: given the task's identity at test time." in caption


def test_several_orders_have_a_column(study: Path) -> None:
    write_run(study, ("oracle", "2", 0), scores(0.7), tasks=("b", "a"))
    text = latex_table(compared(study))
    assert r"\begin{tabular}{llrrrrrrr}" in text
    assert r"} & 2 & 1 & $0.700$" in text


def test_an_unmeasured_value_is_a_dash(tmp_path: Path) -> None:
    write_run(tmp_path, ("lora", "1", 0), scores(float("nan")))
    assert "1 & -- & -- & $0.100$ & -- &" in latex_table(compared(tmp_path))


def test_each_paper_is_named_once(study: Path) -> None:
    write_run(study, ("other", "1", 0), scores(0.5), bibtex=[ENTRY])
    text = bibtex(compared(study), compared(study))
    assert text.count("@misc{someone2020,") == 1
    assert text == ENTRY + "\n\n@misc{a-b-1999-c,\n  note = {A\\_B, 1999 (C)}\n}\n"


def test_what_latex_reads_as_a_command_is_escaped() -> None:
    assert escaped(r"\a{}~^") == r"\textbackslash{}a\{\}\textasciitilde{}\textasciicircum{}"


@pytest.mark.parametrize("name", strategies.__all__)
def test_every_built_in_strategy_has_an_entry_for_its_paper(name: str) -> None:
    """Braces balance, the year is the reference's, and so is the number of a preprint."""
    method = getattr(strategies, name)
    assert KEY.match(method.bibtex)
    assert method.bibtex.count("{") == method.bibtex.count("}")
    assert re.search(r"year = \{(\d+)\}", method.bibtex)[1] in method.reference  # type: ignore[index]
    assert re.findall(r"eprint = \{(.+)\}", method.bibtex) == re.findall(r"arXiv ([\d.]+)", method.reference)
    assert all(f"  {field} = {{" in method.bibtex for field in ("author", "title"))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs LaTeX")
def test_latex_takes_the_table(study: Path) -> None:
    text = latex_table(compared(study))
    page = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{text}\end{{document}}"
    (study / "page.tex").write_text(page)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "page.tex"]
    assert subprocess.run(command, cwd=study, capture_output=True, check=False).returncode == 0


def test_a_bound_is_marked(tmp_path: Path) -> None:
    write_run(tmp_path / "s", ("joint", "1", 0), scores(0.9), bound="OP")
    text = latex_table(compare([tmp_path / "s"])[0])
    assert r"joint\,\ddag{}~\cite{" in text
    note = r"\ddag{} a bound, not a method of continual learning: joint by OP"
    assert f"{note}; zero-shot, the model scores 0.150" in text
