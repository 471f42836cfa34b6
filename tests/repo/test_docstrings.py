"""What public names say of themselves, as far as a program can judge: arguments, and what is raised."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import pytest
from test_layout import FILES, module_name

SHARE = 0.98
SECTION = re.compile(r"^(Args|Attributes|Raises|Returns):$")
ENTRY = re.compile(r"^    (\w+(?:, \w+)*): ")
SHAPE = re.compile(r"\((?:[\w+ ]+,)+ ?[\w+ ]*\)|[Ss]calar")
FIELDS = {"dataclass", "NamedTuple", "TypedDict"}

CONTRACTS = re.compile(
    r"workbench\.(strategy|benchmark|batch|metrics|statistics|scorers|depth|conformance|testing|tiny|published|executors|study)\b"
    r"|strategies\.|benchmarks\.\w+\.(benchmark|sequence|scoring)\b"
)
"""The modules that others' code calls: there every argument is told."""

ROLES = {"rng", "style"}
"""Arguments that many functions of one kind share, told once where the kind is."""

COMMANDS = {"run", "list_", "report", "check", "grow", "merge", "export"}
"""In `workbench.cli`: their docstrings are what `--help` prints."""


@dataclass(frozen=True)
class Name:
    """A public class, function or method.

    Attributes:
        path: Its module and its name.
        node: As it was parsed.
        owner: The class that it is a method of.
    """

    path: str
    node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    owner: ast.ClassDef | None

    @cached_property
    def doc(self) -> str:
        """Its docstring; a method without one has that of the method it overrides, in this house or a library."""
        own = ast.get_docstring(self.node)
        return own or (inherited(self.owner, self.node.name) if self.owner else "")

    @cached_property
    def sections(self) -> dict[str, list[str]]:
        """The lines of its sections."""
        found: dict[str, list[str]] = {}
        current = None
        for line in self.doc.splitlines():
            if start := SECTION.match(line):
                current = found.setdefault(start[1], [])
            elif line and not line.startswith(" "):
                current = None
            elif current is not None:
                current.append(line)
        return found

    @property
    def function(self) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
        """What is called: of a class its constructor, where it has one."""
        if not isinstance(self.node, ast.ClassDef):
            return self.node
        return next(
            (one for one in self.node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"), None
        )

    @property
    def arguments(self) -> list[str]:
        """What a caller gives: of a class with fields, these."""
        if self.function is not None:
            given = self.function.args
            extra = [given.kwarg] if given.kwarg else []
            names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs, *extra)]
            return [name for name in names if name not in ("self", "cls") and not name.startswith("_")]
        made = [ast.unparse(one).partition("(")[0] for one in (*self.node.decorator_list, *self.node.bases)]
        if not FIELDS & set(made):
            return []
        return [
            one.target.id
            for one in self.node.body
            if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
        ]

    def told(self, *sections: str) -> set[str]:
        """The entries of some of its sections."""
        lines = [line for section in sections for line in self.sections.get(section, ())]
        return {name for line in lines if (entry := ENTRY.match(line)) for name in entry[1].split(", ")}


TREES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
CLASSES = {node.name: node for tree in TREES.values() for node in tree.body if isinstance(node, ast.ClassDef)}


def inherited(owner: ast.ClassDef, name: str) -> str:
    """The docstring of the method that is overridden; a library's own counts as one that is there."""
    for base in owner.bases:
        known = CLASSES.get(ast.unparse(base).partition("[")[0])
        if known is None:
            continue
        for one in known.body:
            if isinstance(one, ast.FunctionDef) and one.name == name and ast.get_docstring(one):
                return ast.get_docstring(one) or ""
        if found := inherited(known, name):
            return found
    return ""


def public(module: str, body: list[ast.stmt], owner: ast.ClassDef | None = None, prefix: str = "") -> Iterator[Name]:
    """The public names of a module or a class, in turn; a property's setter is the property."""
    for node in body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        if any(ast.unparse(decorator).endswith(".setter") for decorator in node.decorator_list):
            continue
        yield Name(f"{module}.{prefix}{node.name}", node, owner)
        if isinstance(node, ast.ClassDef):
            yield from public(module, node.body, node, f"{prefix}{node.name}.")


NAMES = [name for module, tree in TREES.items() for name in public(module, tree.body)]


def test_nearly_every_public_name_says_what_it_is() -> None:
    modules = [module for module, tree in TREES.items() if not ast.get_docstring(tree)]
    assert not modules, f"these modules have no docstring: {modules}"
    silent = [name.path for name in NAMES if not name.doc]
    share = 1 - len(silent) / len(NAMES)
    assert share >= SHARE, f"{share:.1%} of {len(NAMES)}; without a docstring: {silent}"


def test_sections_name_the_arguments_that_are_there_and_all_of_them() -> None:
    for name in NAMES:
        if "Args" not in name.sections:
            continue
        told, given = name.told("Args"), name.arguments
        assert told <= set(given), f"{name.path} tells of {sorted(told - set(given))}, which it does not take"
        missing = [each for each in given if each not in name.told("Args", "Attributes")]
        assert not missing, f"{name.path} tells of some arguments and not of {missing}"


def test_what_is_raised_is_told() -> None:
    silent = set()
    for name in NAMES:
        bodies = name.function.body if name.function is not None else []
        raised = [
            one for node in bodies for one in ast.walk(node) if isinstance(one, ast.Raise) and one.exc is not None
        ]
        command = name.path.startswith("workbench.cli.") and name.node.name in COMMANDS
        told = "Raises" in name.sections or re.search(r"[Rr]efus|Raises", name.doc)
        if raised and not command and not told and not inside(name):
            silent.add(name.path)
    assert not silent, f"no Raises section: {sorted(silent)}"


def inside(name: Name) -> bool:
    """Whether what is raised comes from a function within this one, as a signal's handler does."""
    if name.function is None:
        return True
    nested = [one for one in ast.walk(name.function) if isinstance(one, ast.FunctionDef) and one is not name.function]
    within = {id(raised) for one in nested for raised in ast.walk(one) if isinstance(raised, ast.Raise)}
    return all(id(one) in within or one.exc is None for one in ast.walk(name.function) if isinstance(one, ast.Raise))


@pytest.mark.parametrize("name", [name for name in NAMES if CONTRACTS.match(name.path)], ids=lambda name: name.path)
def test_every_argument_of_what_others_call_is_told(name: Name) -> None:
    lightnings = name.node.name.startswith("on_")  # whose arguments Lightning's own pages tell
    overrides = lightnings or (name.owner is not None and bool(inherited(name.owner, name.node.name)))
    if overrides or any(ast.unparse(one).startswith("overload") for one in name.node.decorator_list):
        return
    described = name.doc + (ast.get_docstring(name.owner) or "" if name.owner else "")
    words = set(re.findall(r"\w+", described)) | {word.rstrip("s") for word in re.findall(r"\w+", described)}
    silent = [each for each in name.arguments if each not in words | ROLES and not set(each.split("_")) <= words]
    assert not silent, f"{name.path} says nothing of {silent}"


@pytest.mark.parametrize("name", [name for name in NAMES if CONTRACTS.match(name.path)], ids=lambda name: name.path)
def test_tensors_have_their_shapes(name: Name) -> None:
    if isinstance(name.node, ast.ClassDef):
        return
    given = [each.annotation for each in (*name.node.args.args, *name.node.args.kwonlyargs)]
    annotated = [ast.unparse(each) for each in (*given, name.node.returns) if each is not None]
    if any("Tensor" in each and "dict" not in each for each in annotated):
        assert SHAPE.search(name.doc), f"{name.path} takes or gives a tensor and says nothing of its shape"


MADE = '''
def f(first, second):
    """Adds.

    Args:
        first: One.
        third: None.
    """
    raise ValueError


class A(ContinualStrategy):
    def setup(self, backbone): ...
    def other(self): ...
'''


def test_the_instrument_sees_what_is_missing() -> None:
    adds, _, setup, other = public("made", ast.parse(MADE).body)
    assert adds.told("Args") == {"first", "third"}
    assert adds.arguments == ["first", "second"]
    assert "Raises" not in adds.sections
    assert not inside(adds)
    assert setup.doc.startswith("Once, before the first task")
    assert other.doc == ""
