"""The project's pages as the tests read them: their blocks of code, their headings and their links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from helpers.studies import ROOT

PATTERNS = (
    "*.md",
    "docs/pages/**/*.md",
    "strategies/README.md",
    "benchmarks/*/README.md",
    "workbench/models/*/README.md",
)
PAGES = sorted(path.relative_to(ROOT).as_posix() for pattern in PATTERNS for path in ROOT.glob(pattern))
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\((?!\w+:)([^)\s#]*)(?:#([^)\s]+))?\)")
MARKS = ("slow: ", "not run by the tests: ")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: Of the repository.
        language: The first word after the fence.
        title: What stands above it on the site: a file's name, or why it is not run at once.
        text: The code.
    """

    page: str
    language: str
    title: str
    text: str

    @property
    def mark(self) -> str:
        """ "slow: ", "not run by the tests: ", or nothing."""
        return next((mark for mark in MARKS if self.title.startswith(mark)), "")

    @property
    def file(self) -> str:
        """The name under which a reader saves it; nothing: it is not saved."""
        return "" if self.mark else self.title


def text_of(page: str) -> str:
    """What is in the file."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, from its top."""
    found = []
    for info, text in FENCE.findall(text_of(page)):
        title = re.search(r'title="([^"]*)"', info)
        found.append(Block(page, info.partition(" ")[0], title[1] if title else "", text))
    return found


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and our site make them."""
    prose = FENCE.sub("", text_of(page))
    return {
        re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)).strip().lower())
        for heading in HEADING.findall(prose)
    }


def links(page: str) -> list[tuple[str, str]]:
    """The relative links of a page: the file of the repository, a folder standing for its README, and the anchor."""
    found = []
    for target, anchor in LINK.findall(FENCE.sub("", text_of(page))):
        path = (ROOT / page).parent / target if target else ROOT / page
        path = path / "README.md" if path.is_dir() else path
        found.append((path.resolve().relative_to(ROOT).as_posix(), anchor))
    return found


def block(page: str, begins: str) -> Block:
    """The block of a page that begins so."""
    found = [one for one in blocks(page) if one.text.startswith(begins)]
    assert len(found) == 1, f"{page} has {len(found)} blocks that begin with {begins!r}"
    return found[0]


def reader(page: str, folder: Path) -> None:
    """Saves what the page tells its reader to save."""
    for one in blocks(page):
        if one.file:
            (folder / one.file).write_text(one.text, encoding="utf-8")
