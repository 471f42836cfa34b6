"""A report page, read back as tables."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from workbench.report import compare
from workbench.report.page import report_page

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Tables(HTMLParser):
    """The tables of a page by caption, each a list of rows of texts; its links and ids, and the tags not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: dict[str, list[list[str]]] = {}
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self._caption: list[str] = []
        self._rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "srcset")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID and "/" not in tag:
            self.open.append(tag)
        if tag == "table":
            self._caption, self._rows = [], []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag
        if tag == "table":
            self.found[" ".join("".join(self._caption).split())] = self._rows

    def handle_data(self, data: str) -> None:
        if "caption" in self.open:
            self._caption.append(data)
        elif self.open and {"td", "th"} & {*self.open[-4:]} and self._rows and self._rows[-1]:
            self._rows[-1][-1] = " ".join(f"{self._rows[-1][-1]} {data}".split())


def page_of(*folders: Path) -> tuple[str, Tables]:
    """Return the text of the page about some folders, and its tables."""
    text = report_page(compare(list(folders)), folders[0]).read_text(encoding="utf-8")
    return text, Tables(text)
