"""Components: importing, checking and building them, by their exact messages."""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path

import lightning
import pytest
import torch

from workbench.config import Component, instantiate
from workbench.config.components import build, check_arguments, check_component, import_class
from workbench.errors import ConfigError

METHODS = '''
"""A user's own module."""
from __future__ import annotations
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
import torch
if TYPE_CHECKING:
    from nowhere import Ghost

class Model: ...
class Teacher(Model):
    def __init__(self, layers: int = 2): self.layers = layers
class LoRA:
    def __init__(self, path: Path, rank: int = 8, targets: Sequence[str] = ("q",),
                 teacher: Model | None = None, ghost: Ghost = None, depth: int = None):
        self.path, self.rank, self.teacher = path, rank, teacher
class Bare(torch.nn.Module): ...
class Open:
    def __init__(self, rank: int = 1, **options): self.options = options
def make(size: int) -> Model: return Model()
CONSTANT = 3
'''


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, forget_imports: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty folder with one module."""
    (tmp_path / "methods.py").write_text(METHODS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def import_problem(class_path: str) -> str:
    """Return the message with which an import path is refused."""
    with pytest.raises(ConfigError) as caught:
        import_class(class_path)
    return str(caught.value)


def test_a_class_in_the_current_folder_is_found_and_hides_no_module(folder: Path) -> None:
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
def test_a_class_that_cannot_be_found(class_path: str, message: str) -> None:
    assert import_problem(class_path) == message


def test_a_module_that_cannot_be_imported(folder: Path) -> None:
    (folder / "broken.py").write_text("def f(:\n")
    (folder / "needy.py").write_text("import some_missing_dependency\n")
    assert import_problem("broken.X").startswith("class_path: importing 'broken' failed: SyntaxError: ")
    assert import_problem("needy.X") == (
        "class_path: importing 'needy' failed: ModuleNotFoundError: No module named 'some_missing_dependency'. "
        "Fix it, or install what it needs."
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
    assert import_problem("lazy.god") == "class_path: 'lazy' has no class 'god'. Did you mean 'Good'?"
    assert import_problem("lazy.good") == (
        "class_path: 'lazy.good' is of type module, not a class or a function. Give one. Did you mean 'Good'?"
    )
    assert "failed: ModuleNotFoundError: No module named 'nothing_like_that'." in import_problem("lazy.Bad")


@pytest.mark.parametrize(
    ("init_args", "problems"),
    [
        ({"path": "here"}, []),
        ({}, ["s.init_args.path: missing; LoRA needs it."]),
        ({"path": "x", "rnk": 1}, ["s.init_args.rnk: LoRA has no argument 'rnk'. Did you mean 'rank'?"]),
        ({"path": "x", "rank": "8"}, ["s.init_args.rank: expected int, got '8' (str)."]),
        ({"path": "x", "targets": "q"}, ["s.init_args.targets: expected Sequence[str], got 'q' (str)."]),
        ({"path": "x", "ghost": 3, "depth": None}, []),
        ({"path": "x", "teacher": {"class_path": "methods.Teacher"}}, []),
        ({"path": "x", "teacher": {"class_path": "methods.make", "init_args": {"size": 1}}}, []),
        (
            {"path": "x", "teacher": {"class_path": "methods.Open"}},
            ["s.init_args.teacher: expected Model or None, got methods.Open."],
        ),
        (
            {"path": "x", "teacher": {"class_path": "methods.Teacher", "init_args": {"layer": 1}}},
            ["s.init_args.teacher.init_args.layer: Teacher has no argument 'layer'. Did you mean 'layers'?"],
        ),
        (
            {"path": "x", "teacher": {"class_path": "methods.Teachr"}},
            ["s.init_args.teacher.class_path: 'methods' has no class 'Teachr'. Did you mean 'Teacher'?"],
        ),
    ],
)
def test_arguments_are_checked_against_the_signature(init_args: dict[str, object], problems: list[str]) -> None:
    assert check_component({"class_path": "methods.LoRA", "init_args": init_args}, "s") == problems


def test_all_problems_of_a_component_are_reported_together() -> None:
    inner = {"class_path": "methods.Zzz"}
    found = check_component({"class_path": "methods.LoRA", "init_args": {"rank": 1.5, "teacher": inner}}, "")
    assert found == [
        "init_args.rank: expected int, got 1.5 (float).",
        "init_args.teacher.class_path: 'methods' has no class 'Zzz'.",
        "init_args.path: missing; LoRA needs it.",
    ]


def test_a_component_of_the_wrong_shape() -> None:
    assert check_component("methods.LoRA", "s") == [
        "s: expected a mapping with 'class_path', got 'methods.LoRA' (str)."
    ]
    assert check_component({"class_pth": "methods.LoRA", "init_args": []}, "s") == [
        "s.class_pth: a component has 'class_path' and 'init_args' only. Did you mean 'class_path'?",
        "s.class_path: missing. Name a class.",
        "s.init_args: expected dict[str, Any] or None, got [] (list).",
    ]


def test_any_argument_is_accepted_by_kwargs_but_not_by_those_of_torch_modules() -> None:
    assert check_component({"class_path": "methods.Open", "init_args": {"any": 1}}, "s") == []
    assert check_component({"class_path": "methods.Bare", "init_args": {"any": 1}}, "s") == [
        "s.init_args.any: Bare has no argument 'any'."
    ]


def test_the_parameters_of_an_optimizer_are_filled_in() -> None:
    component = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1, "betas": [0.9, 0.95]}}
    assert check_component(component, "optimizer", extra=("params",)) == []
    assert check_component(component, "optimizer") == ["optimizer.init_args.params: missing; AdamW needs it."]
    component["init_args"] = {"lr": "fast", "betas": [0.9], "params": []}
    assert check_component(component, "optimizer", extra=("params",)) == [
        "optimizer.init_args.params: this argument is filled in by the workbench. Leave it out.",
        "optimizer.init_args.lr: expected float or Tensor, got 'fast' (str).",
        "optimizer.init_args.betas: expected tuple[float or Tensor, float or Tensor], got [0.9] (list).",
    ]


def test_the_types_of_the_trainer_s_arguments_are_checked() -> None:
    callbacks = [{"class_path": "lightning.pytorch.callbacks.ModelSummary"}]
    good = {"max_epochs": 3, "accelerator": "auto", "precision": "bf16-mixed", "callbacks": callbacks}
    assert check_arguments(lightning.Trainer, good, "trainer") == []
    bad = {"max_epochs": "many", "acelerator": "cpu", "precision": "bf16-mixd", "gradient_clip_val": True}
    messages = check_arguments(lightning.Trainer, bad, "trainer")
    assert messages[0] == "trainer.max_epochs: expected int or None, got 'many' (str)."
    assert messages[1] == "trainer.acelerator: Trainer has no argument 'acelerator'. Did you mean 'accelerator'?"
    assert messages[2].endswith("got 'bf16-mixd' (str). Did you mean 'bf16-mixed'?")
    assert messages[3] == "trainer.gradient_clip_val: expected int or float or None, got True (bool)."


def test_instantiate_builds_nested_components_first() -> None:
    teacher = {"class_path": "methods.Teacher", "init_args": {"layers": 5}}
    built = instantiate(Component("methods.LoRA", {"path": "p", "teacher": teacher}), rank=3)
    assert (built.path, built.rank, built.teacher.layers) == ("p", 3, 5)
    listed = instantiate({"class_path": "methods.Open", "init_args": {"many": [teacher, {"one": teacher}]}})
    assert [listed.options["many"][0].layers, listed.options["many"][1]["one"].layers] == [5, 5]


def test_instantiate_does_not_catch_a_constructor_s_error() -> None:
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        instantiate(Component("torch.optim.SGD", {"lr": -1}), params=[torch.nn.Parameter(torch.zeros(1))])


def test_build_reports_a_constructor_s_error_with_its_key() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    with pytest.raises(ConfigError) as caught:
        build({"class_path": "torch.optim.SGD", "init_args": {"lr": -1}}, "optimizer", params=parameters)
    assert caught.value.problems == ["optimizer: torch.optim.SGD: Invalid learning rate: -1. Fix its init_args."]
    inner = {"class_path": "torch.nn.Linear", "init_args": {"in_features": "a", "out_features": 2}}
    with pytest.raises(ConfigError) as caught:
        build({"class_path": "methods.Open", "init_args": {"many": [1, {"one": inner}]}}, "strategies.it")
    assert caught.value.problems[0].startswith("strategies.it.init_args.many.1.one: torch.nn.Linear: ")
