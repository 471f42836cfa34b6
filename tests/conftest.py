"""What holds for every test, and what many start from: a tiny model's folder and one of tiny tasks."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis  # noqa: F401  # whose plugins look for referrers as it is imported, and find none that is frozen
import pytest
import torch
from helpers.studies import study, write_tasks

from workbench.config import parse
from workbench.study import Study
from workbench.testing.tiny import tiny_backbone

# On models this small a second thread only waits: many times slower where another program uses the processor.
torch.set_num_threads(1)

LONGEST = (
    "study",
    "killing",
    "resume",
    "conformance",
    "trace_study",
    "optimizer_state",
    "workers",
    "plan",
    "run",
    "model_loading",
    "runs",
    "settings",
    "callbacks",
    "build",
    "activation_cache",
)


def pytest_collection_finish() -> None:
    """Leave the imported libraries out of later garbage collections: each run makes several, a quarter of its time."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest go first, so that of several workers none is left with one of them at the end."""
    order = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of two layers, saved as plain transformers saves it."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_backbone(num_hidden_layers=2).save(folder)
    return folder


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks of eight training rows and four test rows, laid out as TRACE's."""
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def make(model_folder: Path, task_folder: Path, tmp_path: Path) -> Callable[..., Study]:
    """Makes the small study with some keys changed."""

    def build(**changes: Any) -> Study:
        return Study(parse(study(model_folder, task_folder, tmp_path / "runs", **changes)))

    return build
