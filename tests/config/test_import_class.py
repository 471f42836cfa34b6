"""Import paths that lead to a class, and each way not to; messages word for word."""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path

import pytest

from workbench.config.components import import_class
from workbench.errors import ConfigError, did_you_mean


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in an empty folder with one module; what is imported from it is forgotten afterwards."""
    (tmp_path / "methods.py").write_text("class LoRA: ...\nCONSTANT = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", {**sys.modules})
    return tmp_path


def path_problem(class_path: str) -> str:
    with pytest.raises(ConfigError) as caught:
        import_class(class_path)
    return str(caught.value)


def test_a_class_in_the_current_folder_is_found_and_put_last(folder: Path) -> None:
    assert import_class("methods.LoRA").__name__ == "LoRA"
    assert sys.path[-1] == str(folder)
    assert import_class("collections.OrderedDict") is OrderedDict


@pytest.mark.parametrize(
    ("class_path", "message"),
    [
        ("LoRA", "class_path: 'LoRA' is not an import path. Write it as 'package.Class'."),
        ("methods.LoRa", "class_path: 'methods' has no class 'LoRa'. Did you mean 'LoRA'?"),
        ("methods.Xyz", "class_path: 'methods' has no class 'Xyz'."),
        ("method.LoRA", "class_path: there is no module 'method'. Did you mean 'methods'?"),
        ("xml.eetree.X", "class_path: there is no module 'xml.eetree'. Did you mean 'xml.etree'?"),
        ("methods.CONSTANT", "class_path: 'methods.CONSTANT' is of type int, not a class or a function. Give one."),
    ],
)
def test_a_path_that_leads_nowhere(class_path: str, message: str) -> None:
    assert path_problem(class_path) == message


def test_an_error_within_a_module_is_not_called_not_found(folder: Path) -> None:
    (folder / "broken.py").write_text("def f(:\n")
    (folder / "needy.py").write_text("import some_missing_dependency\n")
    assert path_problem("broken.X").startswith("class_path: importing 'broken' failed: SyntaxError: ")
    assert path_problem("needy.X") == (
        "class_path: importing 'needy' failed: ModuleNotFoundError: No module named 'some_missing_dependency'. "
        "Mend it, or install what it needs."
    )


def test_a_package_that_imports_lazily(folder: Path) -> None:
    (folder / "lazy").mkdir()
    (folder / "lazy" / "good.py").write_text("class Good: ...\n")
    (folder / "lazy" / "bad.py").write_text("import nothing_like_that\n")
    (folder / "lazy" / "__init__.py").write_text(
        "import importlib\n"
        "__all__ = ['Good', 'Bad']\n"
        "def __getattr__(name):\n"
        "    if name not in __all__: raise AttributeError(name)\n"
        "    return getattr(importlib.import_module('lazy.' + name.lower()), name)\n"
    )
    assert import_class("lazy.Good").__name__ == "Good"
    assert path_problem("lazy.god") == "class_path: 'lazy' has no class 'god'. Did you mean 'Good'?"
    assert path_problem("lazy.good") == (
        "class_path: 'lazy.good' is of type module, not a class or a function. Give one. Did you mean 'Good'?"
    )
    assert "failed: ModuleNotFoundError: No module named 'nothing_like_that'." in path_problem("lazy.Bad")


def test_did_you_mean_looks_past_upper_case_and_keeps_quiet_when_in_doubt() -> None:
    assert did_you_mean("lora", ["LoRA", "CALM"]) == " Did you mean 'LoRA'?"
    assert did_you_mean("xyz", ["LoRA", "CALM"]) == ""
