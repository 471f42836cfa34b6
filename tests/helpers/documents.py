"""The project's pages as the tests read them: their code blocks, headings and links."""

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

ENVIRONMENT = "creates or uses a virtual environment of its own; .ci/wheel installs and runs in an empty one"
GPU = "needs a GPU, a model of 1B or 7B and TRACE"
HOURS = "half an hour or more"
NOT_RUN = {
    ("README.md", "make quickstart"): ENVIRONMENT,
    ("CONTRIBUTING.md", "make install"): "the tests are a part of it",
    ("benchmarks/key_value_arithmetic/README.md", "lightning run key_value"): HOURS,
    (
        "benchmarks/lesson/README.md",
        "lightning fetch smollm2",
    ): "a download, and ten minutes; tests/benchmarks/test_lesson.py has a small model",
    ("benchmarks/trace/README.md", "hf download"): "a download",
    ("benchmarks/trace/README.md", "lightning run trace_1b name=rates"): GPU,
    ("benchmarks/trace/README.md", "lightning run trace_1b     "): GPU,
    ("benchmarks/trace/README.md", "lightning run trace_7b name=lora_7b "): GPU,
    ("benchmarks/trace/README.md", "lightning run trace_7b    "): GPU,
    ("benchmarks/trace/README.md", "lightning run trace_1b name=order_2"): GPU,
    ("benchmarks/trace/README.md", "lightning run trace_1b name=short"): GPU,
    ("benchmarks/trace/README.md", "lightning report runs/lora_7b"): "reads the runs of the commands above",
    (
        "benchmarks/trace/README.md",
        "from workbench.report.comparison",
    ): "reads the runs of the commands above; tests/report/test_published.py has others",
    (
        "workbench/models/mini/README.md",
        "python -m benchmarks",
    ): f"{HOURS}; tests/benchmarks/test_mini_trace_pretrain.py has short runs",
    ("docs/pages/cluster.md", "sbatch"): "needs SLURM",
    ("docs/pages/cluster.md", "lightning report runs/seed-0"): "reads the runs of the commands above",
    ("docs/pages/cluster.md", "lightning run trace_7b"): GPU,
    ("docs/pages/cluster.md", "srun"): "needs SLURM",
    ("docs/pages/cluster.md", "lightning run trace_1b name=slurm"): "needs SLURM",
    ("docs/pages/commands.md", ". .venv/bin/activate"): ENVIRONMENT,
    ("docs/pages/growing.md", "lightning run block_positions"): "hours",
    (
        "docs/pages/growing.md",
        "lightning grow path/to/llama",
    ): "models of the reader's; tests/test_cli_folders.py has small ones",
    ("docs/pages/real-model.md", "lightning fetch smollm2"): "a download, TRACE, and two hours",
    ("docs/pages/speed.md", "make bench"): "needs an idle machine",
    ("docs/pages/audit.md", "make audit"): "tests/audit measures the same cases",
    (
        "docs/pages/speed.md",
        "python tests/performance/gpu.py",
    ): "needs a GPU; tests/performance/test_gpu.py has it in small",
    ("docs/pages/teaching.md", "make lab"): f"{ENVIRONMENT}; tests/repo/test_notebooks.py executes the notebooks",
    ("docs/pages/tutorial.md", "make install"): ENVIRONMENT,
    (
        "docs/pages/your-model.md",
        "lightning fetch smollm2",
    ): "a download, and hours of training; tests/surgery/test_fetching.py fetches it with -m slow",
    (
        "docs/pages/your-model.md",
        "export WORKBENCH_MODEL",
    ): "needs a model and TRACE; tests/benchmarks/test_trace_study.py has small ones",
}
"""Blocks that the tests leave out, by page and first words, with the reason; the pages themselves do not say."""

SLOW = {
    ("README.md", "lightning check rehearsal"): "five minutes",
    ("docs/pages/cluster.md", "lightning run mini_trace"): "a quarter of an hour",
    ("docs/pages/commands.md", "lightning run quickstart name=longer"): "half an hour",
    ("docs/pages/compare.md", "lightning run compare"): "an hour",
    ("docs/pages/tutorial.md", "lightning run quickstart name=first"): "a minute",
    ("docs/pages/tutorial.md", "lightning run quickstart name=faster"): "a minute",
    ("docs/pages/tutorial.md", "lightning run quickstart name=seeds"): "three minutes",
    ("docs/pages/tutorial.md", "lightning run pull_back.yaml"): "two minutes",
    ("docs/pages/your-benchmark.md", "lightning run asked.yaml"): "half a minute",
}
"""Blocks that run only with `-m slow`, by page and first words, with the time that they take."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: Path of the page in the repository.
        language: First word after the fence.
        file: Name under which a reader saves the block, its title on the site; empty if it is not saved.
        text: The code.
    """

    page: str
    language: str
    file: str
    text: str

    @property
    def exception(self) -> tuple[str, str] | None:
        """Key of the block in `NOT_RUN` or `SLOW`."""
        keys = [key for key in (*NOT_RUN, *SLOW) if key[0] == self.page and self.text.startswith(key[1])]
        assert len(keys) <= 1, f"{self.page}: {keys} name the same block"
        return keys[0] if keys else None

    @property
    def not_run(self) -> bool:
        """Whether the tests leave the block out."""
        return self.exception in NOT_RUN

    @property
    def slow(self) -> bool:
        """Whether the block runs only with `-m slow`."""
        return self.exception in SLOW


def text_of(page: str) -> str:
    """Return the text of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page, from its top."""
    found = []
    for info, text in FENCE.findall(text_of(page)):
        title = re.search(r'title="([^"]*)"', info)
        found.append(Block(page, info.partition(" ")[0], title[1] if title else "", text))
    return found


def anchors(page: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and our site make them."""
    prose = FENCE.sub("", text_of(page))
    return {
        re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)).strip().lower())
        for heading in HEADING.findall(prose)
    }


def links(page: str) -> list[tuple[str, str]]:
    """Return a page's relative links: the file of the repository (a folder stands for its README) and the anchor."""
    found = []
    for target, anchor in LINK.findall(FENCE.sub("", text_of(page))):
        path = (ROOT / page).parent / target if target else ROOT / page
        path = path / "README.md" if path.is_dir() else path
        found.append((path.resolve().relative_to(ROOT).as_posix(), anchor))
    return found


def block(page: str, begins: str) -> Block:
    """Return the block of a page that begins with a text."""
    found = [one for one in blocks(page) if one.text.startswith(begins)]
    assert len(found) == 1, f"{page} has {len(found)} blocks that begin with {begins!r}"
    return found[0]


def reader(page: str, folder: Path) -> None:
    """Save the files that the page asks its reader to save."""
    for one in blocks(page):
        if one.file:
            (folder / one.file).write_text(one.text, encoding="utf-8")
