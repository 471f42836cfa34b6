"""What the pages say holds: links lead somewhere, code runs, commands are taken, every module has its place."""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.documents import FENCE, PAGES, Block, anchors, blocks, links, reader, text_of
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
NOT_RUN = {
    ("README.md", "make quickstart"): "a virtual environment of its own",
    ("README.md", ". .venv/bin/activate"): "nothing to see",
    ("README.md", "make lab"): "a virtual environment of its own",
    ("README.md", "lightning run block_positions"): "hours",
    (
        "README.md",
        "lightning grow path/to/llama",
    ): "models that are not there; tests/test_cli_folders.py has small ones",
    ("README.md", "export WORKBENCH_MODEL"): "a model and TRACE; tests/benchmarks/test_trace_study.py has small ones",
    ("CONTRIBUTING.md", "make install"): "these tests are a part of it",
    ("benchmarks/key_value_arithmetic/README.md", "lightning run key_value"): "half an hour",
    ("benchmarks/trace/README.md", "hf download"): "a download",
    ("benchmarks/trace/README.md", "lightning run trace_1b name=rates"): "a GPU",
    ("benchmarks/trace/README.md", "lightning run trace_1b     "): "a GPU",
    ("benchmarks/trace/README.md", "lightning run trace_7b name=lora_7b "): "a GPU",
    ("benchmarks/trace/README.md", "lightning run trace_7b    "): "eight GPUs",
    ("benchmarks/trace/README.md", "lightning run trace_1b name=order_2"): "a GPU",
    ("benchmarks/trace/README.md", "lightning run trace_1b name=short"): "a GPU",
    ("benchmarks/trace/README.md", "lightning report runs/lora_7b"): "runs of the above",
    (
        "benchmarks/trace/README.md",
        "from workbench.report.comparison",
    ): "runs of the above; tests/test_published.py has others",
    ("workbench/models/mini/README.md", "python -m benchmarks"): "half an hour; see test_mini_trace_pretrain.py",
    ("docs/pages/tutorial.md", "make install"): "a virtual environment of its own",
    ("docs/pages/cluster.md", "sbatch"): "SLURM",
    ("docs/pages/cluster.md", "lightning report runs/seed-0"): "runs of the above",
    ("docs/pages/cluster.md", "lightning run trace_7b"): "eight GPUs",
    ("docs/pages/cluster.md", "srun"): "SLURM",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A reader's own folder, with what they import from it forgotten afterwards."""
    known = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def session(page: str, folder: Path, *, slow: bool) -> None:
    """Does what the page shows, from its top; of the commands those that are slow, or the others."""
    names: dict[str, Any] = {"__name__": "reader"}
    reader(page, folder)
    for block in blocks(page):
        if block.mark == "not run by the tests: " or (block.file and block.language != "yaml"):
            continue
        if block.language == "python":
            exec(compile(block.text, page, "exec"), names)  # noqa: S102, the pages are ours
        elif block.language == "pycon":
            examples(block, names)
        elif block.language == "yaml":
            takes(block, folder)
        elif block.language == "sh" and block.mark == ("slow: " if slow else ""):
            shell(block.text, folder) if slow else within(block.text)


def examples(block: Block, names: dict[str, Any]) -> None:
    """Runs a session of the interpreter, and compares what it prints."""
    told: list[str] = []
    parsed = doctest.DocTestParser().get_doctest(block.text, names, block.page, None, None)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    runner.run(parsed, out=told.append, clear_globs=False)
    names.update(parsed.globs)
    assert not runner.failures, "".join(told)


def takes(block: Block, folder: Path) -> None:
    """A config, or a part of one laid over a plain one, has no unknown key and no value of another type."""
    given = OmegaConf.create(block.text)
    file = folder / (block.file or "fragment.yaml")
    OmegaConf.save(OmegaConf.create({**BASE, **given}), file)
    load(file)


def within(commands: str) -> None:
    """Runs commands of ours in this process, so that each does not import its libraries anew."""
    for line in commands.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "lightning", f"{line!r} is not run by the tests: mark the block, and say why in NOT_RUN"
        assert guarded(lambda given=arguments: app(given, standalone_mode=False)) == 0, line


def shell(commands: str, folder: Path) -> None:
    """Runs commands as a reader would, `lightning` being this project's."""
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


WITH_CODE = [page for page in PAGES if any(one.language in RUN for one in blocks(page))]


@pytest.mark.pages
@pytest.mark.parametrize("page", WITH_CODE)
def test_what_a_page_shows_runs(page: str, folder: Path) -> None:
    session(page, folder, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(one.mark == "slow: " for one in blocks(page))])
def test_what_takes_minutes_runs_too(page: str, folder: Path) -> None:
    session(page, folder, slow=True)


def test_what_is_not_run_is_known() -> None:
    left = dict(NOT_RUN)
    for block in (one for page in PAGES for one in blocks(page) if one.mark == "not run by the tests: "):
        known = [key for key in left if key[0] == block.page and block.text.startswith(key[1])]
        assert len(known) == 1, f"{block.page}: {block.text.splitlines()[0]!r} is not in NOT_RUN, with its reason"
        del left[known[0]]
    assert not left, "these are run, or gone"


def test_no_command_hides_in_a_block_without_a_language() -> None:
    for block in (one for page in PAGES for one in blocks(page)):
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


def test_every_module_has_a_place_in_the_reference() -> None:
    shown = {
        name for page in PAGES if "/api/" in page for name in re.findall(r"^::: (\S+)$", text_of(page), re.MULTILINE)
    }
    there = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for house in ("workbench", "strategies", "benchmarks")
        for path in (ROOT / house).rglob("*.py")
        if not path.name.startswith("__")
    }
    assert shown == there


@pytest.mark.parametrize("page", ["docs/pages/strategies/index.md", "docs/pages/published.md"])
def test_figures_are_those_of_the_page_where_they_were_measured(page: str) -> None:
    measured = "\n".join(text_of(source) for source in PAGES if not source.startswith("docs/"))
    shown = re.findall(r"(?<![\d.])\d\.\d{2,3}(?!\d)(?: ± \d\.\d{2,3})?", FENCE.sub("", text_of(page)))
    assert len(shown) >= 20
    assert not [figure for figure in shown if figure not in measured]
