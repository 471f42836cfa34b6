"""Puts the repository's own pages on the site, so that a text stands in one place, and makes their links hold there."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
OWN = "docs/pages/"
PAGES = {
    "README.md": "readme.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "strategies/README.md": "strategies/measured.md",
    "benchmarks/mini_trace/README.md": "benchmarks/mini_trace.md",
    "benchmarks/trace/README.md": "benchmarks/trace.md",
    "benchmarks/key_value_arithmetic/README.md": "benchmarks/key_value_arithmetic.md",
    "benchmarks/cipher_language/README.md": "benchmarks/cipher_language.md",
    "workbench/models/mini/README.md": "models/mini.md",
    "workbench/models/micro/README.md": "models/micro.md",
}
SOURCES = {page: source for source, page in PAGES.items()}
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)\s#]+)(?=[)#])")


def on_files(files: Files, config: Any) -> Files:
    """Adds the repository's pages to the site's."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turns links between files of the repository into links between pages of the site."""
    return relinked(markdown, page.file.src_uri)


def relinked(markdown: str, page: str) -> str:
    """The text of a page, its links to other files of the repository led to the pages that show them.

    Args:
        markdown: As it stands in its file.
        page: Where it stands on the site, such as "benchmarks/trace.md".
    """
    here = os.path.dirname(SOURCES.get(page, OWN + page))

    def led(found: re.Match[str]) -> str:
        target = os.path.normpath(os.path.join(here, found[1]))
        if (ROOT / target).is_dir():
            target += "/README.md"
        there = PAGES.get(target) or (target.removeprefix(OWN) if target.startswith(OWN) else None)
        return os.path.relpath(there, os.path.dirname(page) or ".") if there else found[1]

    return LINK.sub(led, markdown)
