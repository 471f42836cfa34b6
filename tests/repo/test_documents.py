"""Pages keep their promises: links resolve, code runs, commands are valid, every public name is in the reference."""

from __future__ import annotations

import ast
import doctest
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from helpers.documents import FENCE, NOT_RUN, PAGES, SLOW, Block, anchors, blocks, links, reader, text_of
from helpers.documents import block as block_of
from helpers.studies import ROOT
from omegaconf import OmegaConf

from workbench.cli import app, guarded
from workbench.config import load

COMMAND = re.compile(r"^(?:lightning|make|python|pytest|torchrun|srun|sbatch|hf|pip|export|\.) ", re.MULTILINE)
RUN = ("python", "pycon", "sh", "yaml")
BASE = {
    "name": "fragment",
    "benchmark": {"class_path": "benchmarks.mini_trace.MiniTrace"},
    "strategies": {"seqft": {"class_path": "strategies.SeqFT"}},
}
LISTED = re.compile(r"^::: (\S+)$", re.MULTILINE)
MODULES = {f"workbench.{name}" for name in ("composition", "depth", "metrics", "notebook", "scorers", "statistics")}
"""Public modules, which the reference lists as a whole."""
CONTRACTS = {
    "workbench.benchmark": {
        "Benchmark",
        "LazyBenchmark",
        "PRETRAINING",
        "PublishedProtocol",
        "Subset",
        "Task",
        "dataset_of_pairs",
        "no_rows",
        "seeded_random",
    },
    "workbench.strategy": {"Composition", "ContinualStrategy"},
    "workbench.report.published": {"beside", "published"},
}
"""Public names of modules that have no `__all__`."""
FOLDERS = "workbench|strategies|benchmarks|configs|tests|docs"
FIGURE = re.compile(r"(?<![\d.])(?<!Python )\d\.\d{2,3}(?!\d)(?: ± \d\.\d{2,3})?")
MEASURED = [page for page in PAGES if re.match(r"(?:strategies|benchmarks|workbench)/", page)]
"""Pages with the tables that their commands printed."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A reader's own folder; modules imported from it are removed afterwards."""
    known = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def session(page: str, folder: Path, *, slow: bool) -> None:
    """Run the code of a page from its top; of the commands either the slow ones or the others."""
    names: dict[str, Any] = {"__name__": "reader"}
    reader(page, folder)
    for block in blocks(page):
        if block.not_run or (block.file and block.language != "yaml"):
            continue
        if block.language == "python":
            exec(compile(block.text, page, "exec"), names)  # noqa: S102, the pages are ours
        elif block.language == "pycon":
            examples(block, names)
        elif block.language == "yaml":
            check_config(block, folder)
        elif block.language == "sh" and block.slow == slow:
            shell(block.text, folder) if slow else in_process(block.text)


def examples(block: Block, names: dict[str, Any]) -> None:
    """Run a session of the interpreter, and compare what it prints."""
    output: list[str] = []
    parsed = doctest.DocTestParser().get_doctest(block.text, names, block.page, None, None)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    runner.run(parsed, out=output.append, clear_globs=False)
    names.update(parsed.globs)
    assert not runner.failures, "".join(output)


def check_config(block: Block, folder: Path) -> None:
    """Load a config, or a part of one merged into a plain one: no unknown key, no value of another type."""
    given = OmegaConf.create(block.text)
    file = folder / (block.file or "fragment.yaml")
    OmegaConf.save(OmegaConf.create({**BASE, **given}), file)
    load(file)


def in_process(commands: str) -> None:
    """Run commands of ours in this process, so that each does not import its libraries again."""
    for line in commands.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "lightning", f"{line!r} is not run by the tests: name the block in NOT_RUN, with the reason"
        assert guarded(lambda given=arguments: app(given, standalone_mode=False)) == 0, line


def shell(commands: str, folder: Path) -> None:
    """Run commands as a reader would, `lightning` being this project's."""
    program = folder / ".bin" / "lightning"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m workbench "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    paths = {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-e", "-c", commands],
        cwd=folder,
        env=os.environ | paths,
        capture_output=True,
        text=True,
        timeout=7200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


WITH_CODE = [page for page in PAGES if any(block.language in RUN for block in blocks(page))]


@pytest.mark.pages
@pytest.mark.parametrize("page", WITH_CODE)
def test_what_a_page_shows_runs(page: str, folder: Path) -> None:
    session(page, folder, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(block.slow for block in blocks(page))])
def test_what_takes_minutes_runs_too(page: str, folder: Path) -> None:
    session(page, folder, slow=True)


def test_each_exception_names_one_block() -> None:
    named = [block.exception for page in PAGES for block in blocks(page) if block.exception]
    assert sorted(named) == sorted([*NOT_RUN, *SLOW]), "an exception names no block, or several"


def test_a_page_shows_no_mark_of_the_tests() -> None:
    titles = {block.file for page in PAGES for block in blocks(page) if block.file}
    assert not [title for title in titles if not re.fullmatch(r"\w+\.(?:py|yaml)", title)]


def test_no_command_hides_in_a_block_without_a_language() -> None:
    for block in (block for page in PAGES for block in blocks(page)):
        if block.language not in (*RUN, "text"):
            assert not COMMAND.search(block.text), (
                f"{block.page}: {block.text.splitlines()[0]!r} is a block of commands"
            )


def test_every_setting_that_is_shown_is_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORKBENCH_MODEL", "WORKBENCH_TRACE"):
        monkeypatch.setenv(name, "somewhere")
    shown = 0
    for page in PAGES:
        reader(page, folder)
        code = "\n".join(block.text.replace("\\\n", "") for block in blocks(page) if block.language == "sh")
        for line in re.findall(r"^(?:srun .*)?lightning run (.+)$", code, re.MULTILINE):
            config, *overrides = shlex.split(line, comments=True)
            load(config, overrides)
            shown += 1
    assert shown >= 30


@pytest.mark.parametrize("page", PAGES)
def test_every_link_within_the_repository_leads_somewhere(page: str) -> None:
    for target, anchor in links(page):
        assert (ROOT / target).is_file(), f"{page} links to {target}, which is not there"
        if anchor and not anchor.startswith(("workbench.", "strategies.", "benchmarks.")):  # made by the site alone
            assert anchor in anchors(target), f"{page} links to {target}#{anchor}, which is not there"


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])  # which is about former versions
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    code = re.findall(r"`([^`\n]+)`", FENCE.sub("", text_of(page))) + [block.text for block in blocks(page)]
    named = re.findall(rf"(?<![\w./-])(?:{FOLDERS})/[\w./-]*\w", "\n".join(code))
    assert not [name for name in named if "<" not in name and not (ROOT / name).exists()]


def test_every_public_name_has_a_place_in_the_reference() -> None:
    shown = [name for page in PAGES if "/api/" in page for name in LISTED.findall(text_of(page))]
    assert len(shown) == len(set(shown)), "a name is listed twice"
    public = {id(value): name for name, value in public_names()}
    listed = {id(resolve(name)): name for name in shown}
    assert not {name for key, name in public.items() if key not in listed}, "public, and not in the reference"
    assert not {name for key, name in listed.items() if key not in public}, "in the reference, and not public"


def test_the_floors_are_drawn_as_they_are_enforced() -> None:
    drawn: list[set[str]] = []
    for line in block_of("docs/pages/architecture.md", "floor   package").text.splitlines()[1:]:
        number, package = re.match(r" *(\d*) +(\w+)", line).groups()  # type: ignore[union-attr]
        drawn += [set()] if number else []
        drawn[-1].add(package)
    source = (ROOT / "tests" / "repo" / "test_layout.py").read_text(encoding="utf-8")
    enforced = re.search(r"^FLOORS = (\(.*?^\))", source, re.MULTILINE | re.DOTALL)
    assert enforced is not None
    assert drawn == [set(floor) - {"__main__"} for floor in ast.literal_eval(enforced[1]) if floor != ("__main__",)]


def public_names() -> Iterator[tuple[str, object]]:
    """Yield each public name and its object: packages' `__all__`, contracts, modules that are public as a whole."""
    for house in ("workbench", "strategies", "benchmarks"):
        for init in sorted((ROOT / house).rglob("__init__.py")):
            package = ".".join(init.parent.relative_to(ROOT).parts)
            for name in getattr(import_module(package), "__all__", ()):
                yield f"{package}.{name}", getattr(import_module(package), name)
    for module, names in CONTRACTS.items():
        yield from ((f"{module}.{name}", getattr(import_module(module), name)) for name in names)
    yield from ((name, import_module(name)) for name in MODULES)


def resolve(path: str) -> object:
    """Return the module, or the name in a module, at an import path."""
    if path in MODULES:
        return import_module(path)
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


@pytest.mark.parametrize(
    ("page", "sources", "fewest"),
    [
        ("README.md", ["docs/pages/real-model.md"], 25),
        ("docs/pages/strategies/index.md", [*MEASURED, "docs/pages/compare.md"], 20),
        ("docs/pages/published.md", [*MEASURED, "docs/pages/compare.md"], 20),
    ],
)
def test_figures_are_those_of_the_page_where_they_were_measured(page: str, sources: list[str], fewest: int) -> None:
    measured = "\n".join(text_of(source) for source in sources)
    shown = FIGURE.findall(FENCE.sub("", text_of(page)))
    assert len(shown) >= fewest
    assert not [figure for figure in shown if figure not in measured]
