"""Hooks of mkdocs: add the repository's READMEs to the site, so that each text exists once, and adapt their links."""

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
    "benchmarks/lesson/README.md": "benchmarks/lesson.md",
    "workbench/models/mini/README.md": "models/mini.md",
    "workbench/models/micro/README.md": "models/micro.md",
}
SOURCES = {page: source for source, page in PAGES.items()}
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:)([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the repository's pages to the site's."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    return relinked(markdown, page.file.src_uri)


def relinked(markdown: str, page: str) -> str:
    """Return a page's text with its links to files of the repository replaced by links to the pages that show them.

    A file that no page shows is named in place of the link, by its path in the repository.

    Args:
        markdown: The text as it stands in its file.
        page: The page's path on the site, such as "benchmarks/trace.md".
    """
    here = os.path.dirname(SOURCES.get(page, OWN + page))

    def replace(link: re.Match[str]) -> str:
        mark, text, target, anchor = link.groups(default="")
        path = os.path.normpath(os.path.join(here, target))
        if (ROOT / path).is_dir():
            path += "/README.md"
        shown = PAGES.get(path) or (path.removeprefix(OWN) if path.startswith(OWN) else None)
        if shown:
            return f"{mark}[{text}]({os.path.relpath(shown, os.path.dirname(page) or '.')}{anchor})"
        if (ROOT / path).is_file():
            return f"`{path}`" if text == os.path.basename(path) else f"{text} (`{path}`)"
        return link[0]

    return LINK.sub(replace, markdown)
