"""The site has every page of the repository with working links; versions agree; what CI leaves out exists."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType

import pytest
from helpers.documents import PAGES
from helpers.studies import ROOT
from omegaconf import OmegaConf

import workbench


def module(name: str) -> ModuleType:
    """Import a module of `docs/`, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    pytest.importorskip("mkdocs", reason="`make docs` installs it")
    return module("hooks")


def test_every_page_of_the_repository_is_on_the_site(hooks: ModuleType) -> None:
    assert set(hooks.PAGES) == {page for page in PAGES if not page.startswith("docs/")}


@pytest.mark.parametrize(
    ("page", "link", "shown"),
    [
        ("tutorial.md", "../../README.md#where-things-are", "readme.md#where-things-are"),
        ("strategies/index.md", "../../../strategies/README.md", "measured.md"),
        ("strategies/index.md", "../published.md", "../published.md"),
        ("api/measures.md", "../metrics.md", "../metrics.md"),
        ("readme.md", "benchmarks/trace/README.md", "benchmarks/trace.md"),
        ("readme.md", "benchmarks/key_value_arithmetic", "benchmarks/key_value_arithmetic.md"),
        ("readme.md", "docs/pages/tutorial.md", "tutorial.md"),
        ("readme.md", "#where-things-are", "#where-things-are"),
        ("readme.md", "https://lightning.ai/a.md", "https://lightning.ai/a.md"),
        ("models/micro.md", "../mini/README.md", "mini.md"),
    ],
)
def test_a_link_leads_to_the_page_that_shows_the_file(hooks: ModuleType, page: str, link: str, shown: str) -> None:
    text = hooks.relinked(f"See [it]({link}), twice: [it]({link}).", page)
    assert text == f"See [it]({shown}), twice: [it]({shown})."


def test_a_file_that_no_page_shows_is_named(hooks: ModuleType) -> None:
    assert hooks.relinked("See [it](../../LICENSE).", "speed.md") == "See it (`LICENSE`)."
    assert hooks.relinked("See [CITATION.cff](CITATION.cff).", "readme.md") == "See `CITATION.cff`."
    assert hooks.relinked("![It](docs/pages/assets/compare.png)", "readme.md") == "![It](assets/compare.png)"
    assert hooks.relinked("See [it](nothing.md).", "readme.md") == "See [it](nothing.md)."


def test_the_doctests_of_a_docstring_are_shown_as_code() -> None:
    pytest.importorskip("griffe", reason="`make docs` installs it")
    fenced = module("doctests").fenced
    assert fenced("Adds.\n\n>>> 1 + 1\n2\n\nMore.") == "Adds.\n\n```pycon\n>>> 1 + 1\n2\n```\n\nMore."
    assert fenced("    >>> f(\n    ...     1)\n    2") == "    ```pycon\n    >>> f(\n    ...     1)\n    2\n    ```"
    assert fenced("Says > and >> of it.") == "Says > and >> of it."


def test_the_citation_is_of_this_version() -> None:
    cited = OmegaConf.load(ROOT / "CITATION.cff")
    assert str(cited.version) == workbench.__version__
    assert cited.license == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors"} <= set(cited)


def test_what_builds_the_site_is_pinned() -> None:
    extra = re.search(r"^docs = \[(.+)\]$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert extra is not None
    needed = re.findall(r'"([\w-]+)>=', extra[1])
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()}
    assert len(needed) >= 4
    assert set(needed) <= pinned


def test_the_package_has_the_version_that_it_states() -> None:
    stated = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert stated is not None
    assert stated[1] == workbench.__version__


def test_what_the_oldest_versions_leave_out_is_there() -> None:
    left_out = re.findall(r"--deselect '([^':]+)::(\w+)", (ROOT / ".ci" / "oldest").read_text(encoding="utf-8"))
    assert left_out
    for file, name in left_out:
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file} has no {name}"
