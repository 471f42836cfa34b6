"""The house's rules, read off the source: who imports whom, how long a file and a function may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.studies import ROOT

HOUSE = ("workbench", "strategies", "benchmarks")
FILES = [path for folder in HOUSE for path in sorted((ROOT / folder).rglob("*.py"))]
OURS_FOR_METHODS = {"backbone", "depth", "composition", "strategy", "benchmark", "scorers"}

# The first name of a module's path below `workbench`; a floor may import only those below it.
FLOORS = (
    ("__main__",),
    ("cli",),
    ("analysis", "notebook"),
    ("study",),
    ("testing", "report", "executors"),
    ("train", "surgery"),
    ("strategy",),
    ("backbone", "results"),
    ("display",),
    ("runtime", "config"),
    ("benchmark", "scorers", "metrics", "statistics", "depth", "composition", "model_folder", "formatting"),
    ("errors", "gguf_header"),
)
FLOOR = {name: number for number, floor in enumerate(reversed(FLOORS)) for name in floor}
MOST_MODULES = 15
"""In a package, its `__init__.py` left out, and beside the packages."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, *, typing: bool = False) -> Iterator[str]:
    """The modules that a file imports when it runs; with `typing` also those for the type checker alone."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if not typing and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from _from(node)
        waiting += ast.iter_child_nodes(node)


def _from(node: ast.ImportFrom) -> Iterator[str]:
    """`from package import module` imports the module, `from module import name` the module itself."""
    for alias in node.names:
        inside = f"{node.module}.{alias.name}"
        file = ROOT / Path(*inside.split("."))
        yield inside if file.with_suffix(".py").is_file() or (file / "__init__.py").is_file() else str(node.module)


def who_imports(package: str) -> list[str]:
    """The files of the house that import a package."""
    return [module_name(path) for path in FILES if any(name.partition(".")[0] == package for name in imports(path))]


GRAPH = {module_name(path): {name for name in imports(path) if name.partition(".")[0] in HOUSE} for path in FILES}


def test_the_instrument_knows_no_method_and_no_data_set() -> None:
    for module, imported in GRAPH.items():
        if module.startswith("workbench"):
            assert {name for name in imported if not name.startswith("workbench")} == set(), module


def test_methods_and_benchmarks_know_six_modules_and_never_each_other() -> None:
    allowed = {f"workbench.{name}" for name in OURS_FOR_METHODS}
    for path in FILES:
        module = module_name(path)
        folder = module.split(".")[0]
        if folder == "workbench":
            continue
        imported = {name for name in imports(path, typing=True) if name.partition(".")[0] in HOUSE}
        own = ".".join(module.split(".")[:2]) if folder == "benchmarks" else module
        strange = {name for name in imported - allowed if name != own and not name.startswith(f"{own}.")}
        assert strange <= {folder}, f"{module} imports {strange}"


def test_an_import_for_the_type_checker_is_seen_where_it_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "method.py"
    file.write_text("import ast\nif TYPE_CHECKING:\n    from workbench.backbone.batch import Batch\n", encoding="utf-8")
    assert set(imports(file)) == {"ast"}
    assert set(imports(file, typing=True)) == {"ast", "workbench.backbone.batch"}


def test_packages_import_only_what_stands_below_them() -> None:
    for module, imported in GRAPH.items():
        if not module.startswith("workbench."):
            continue
        own = module.split(".")[1]
        assert own in FLOOR, f"{module} has no floor yet: give it one in FLOORS"
        for name in imported:
            other = name.split(".")[1]
            assert other == own or FLOOR[other] < FLOOR[own], f"{module} imports {name}, which is not below it"


def test_no_folder_has_more_modules_than_one_overlooks() -> None:
    """Except `strategies`, a catalogue: one method, one file."""
    for folder in {path.parent for path in FILES} - {ROOT / "strategies"}:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py" or folder.name == "workbench"]
        assert len(modules) <= MOST_MODULES, folder


def test_there_is_no_cycle() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for name in GRAPH.get(module, ()):
                visit(name, (*path, module))
            done.add(module)

    for module in GRAPH:
        visit(module, ())


def test_each_library_that_is_easily_replaced_has_one_door() -> None:
    assert who_imports("omegaconf") == ["workbench.config.loading"]
    assert who_imports("peft") == ["workbench.backbone.adapters"]


@pytest.mark.parametrize("module", ["report", "config", "results"])
def test_what_has_to_answer_at_once_imports_no_engine(module: str) -> None:
    reached, waiting = set(), [f"workbench.{module}"]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += GRAPH.get(name, ())
    for path in FILES:
        if module_name(path) in reached:
            assert not {name for name in imports(path) if name.split(".")[0] == "lightning"}, path


def test_a_composition_can_be_loaded_without_us() -> None:
    path = ROOT / "workbench" / "composition.py"
    if not path.is_file():
        pytest.skip("not there yet")
    foreign = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
    assert foreign <= {"torch", "transformers"}


@pytest.mark.parametrize("module", ["workbench", "workbench.config", "workbench.report", "workbench.cli", "strategies"])
def test_importing_loads_no_lightning(module: str) -> None:
    code = f"import sys, {module}; print([name for name in sys.modules if name.partition('.')[0] == 'lightning'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, the docstring left out: what it says is for readers, not for running."""
    total = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    documented = ast.get_docstring(function) is not None
    return total - ((first.end_lineno or 0) - first.lineno + 1 if documented else 0)


def test_files_and_functions_stay_short() -> None:
    for path in FILES:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 500, f"{module_name(path)} has {lines} lines"
        for function in functions(path):
            where = f"{module_name(path)}.{function.name}"
            assert code_lines(function) <= 50, f"{where} has {code_lines(function)} lines"


def test_only_the_command_imports_inside_a_function() -> None:
    for path in FILES:
        for function in functions(path):
            inside = [node for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]
            assert not inside or module_name(path) == "workbench.cli", f"{module_name(path)}.{function.name}"
