"""Components of a config, `{class_path, init_args}`: import, check and build them.

There is no registry: a built-in class and a class in a file beside the YAML are imported in the same way.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from workbench.config.type_check import Produced, accepts, check_type, described, joined, mismatch
from workbench.errors import ConfigError, did_you_mean, in_words

KEYS = ("class_path", "init_args")


@dataclass(frozen=True)
class Component:
    """Something to import and to call, not yet built.

    Args:
        class_path: Import path of a class, or of a function that returns the object.
        init_args: Its keyword arguments; values may contain components in turn.
    """

    class_path: str
    init_args: dict[str, Any] = field(default_factory=dict)


def is_component(value: object) -> bool:
    """Return True if a value of a config will be built: a mapping with a `class_path`."""
    return isinstance(value, Component) or (isinstance(value, Mapping) and "class_path" in value)


def as_component(value: Component | Mapping[str, Any], where: str = "") -> Component:
    """Convert a mapping to a component.

    Args:
        value: The mapping; a component is returned as it is.
        where: Its key, dotted.

    Raises:
        ConfigError: The mapping has other keys, or values of other types.
    """
    if isinstance(value, Component):
        return value
    if problems := check_shape(value, where):
        raise ConfigError(problems)
    return Component(value["class_path"], dict(value.get("init_args") or {}))


def import_class(path: str) -> Callable[..., Any]:
    """Import a class or a function by its path, also from a file in the current folder.

    The current folder is appended to `sys.path`, whichever command was used to start, so that a user's
    `my_method.MyStrategy` is found; it comes last, so that it hides no installed module.

    Raises:
        ConfigError: There is no such module or name, or importing the module fails.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name or not name:
        raise ConfigError([f"class_path: '{path}' is not an import path. Write it as 'package.Class'."])
    make_importable(Path.cwd())
    module = _import_module(module_name)
    known = _public_names(module)
    try:
        target = getattr(module, name)
    except Exception as error:  # a package that imports lazily may fail here in any way
        if isinstance(error, AttributeError) and name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError([f"class_path: '{module_name}' has no class '{name}'.{hint}"]) from None
        raise ConfigError([_import_failure(path, error)]) from error
    if not callable(target):
        kind, hint = type(target).__name__, did_you_mean(name, known - {name})
        raise ConfigError([f"class_path: '{path}' is of type {kind}, not a class or a function. Give one.{hint}"])
    return typing.cast(Callable[..., Any], target)


def make_importable(folder: Path) -> None:
    """Append a folder to `sys.path`, and let Python find modules that have just been written."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    importlib.invalidate_caches()


def _import_module(name: str) -> ModuleType:
    """Import a module; distinguish one that does not exist from one whose import fails."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name != missing and not name.startswith(f"{missing}."):
            raise ConfigError([_import_failure(name, error)]) from error
    except Exception as error:
        raise ConfigError([_import_failure(name, error)]) from error
    parent = missing.rpartition(".")[0]
    folders = getattr(sys.modules.get(parent), "__path__", []) if parent else None
    siblings = [module.name for module in pkgutil.iter_modules(folders)]
    hint = did_you_mean(missing, [f"{parent}.{name}" if parent else name for name in siblings])
    raise ConfigError([f"class_path: there is no module '{missing}'.{hint}"])


def _public_names(module: ModuleType) -> set[str]:
    """List the names of a module, without its submodules: `strategies.LoRA`, but not `strategies.lora`."""
    content = vars(module)
    names = {*dir(module), *content.get("__all__", ())}
    return {name for name in names if name[:1] != "_" and not isinstance(content.get(name), ModuleType)}


def _import_failure(path: str, error: Exception) -> str:
    """Report a failed import with the error's own message, which contains the remedy."""
    return f"class_path: importing '{path}' failed: {type(error).__name__}: {error}. Fix it, or install what it needs."


def instantiate(component: Component | Mapping[str, Any], **extra: Any) -> Any:
    """Build a component, the components in its `init_args` first.

    Args:
        component: The component to build.
        extra: Arguments that no file can hold, such as an optimizer's `params`.

    Raises:
        ConfigError: There is no such class. What the class itself raises is not caught.
    """
    component = as_component(component)
    return import_class(component.class_path)(**_built(component.init_args, lambda part, _: instantiate(part)), **extra)


def build(component: Component | Mapping[str, Any], where: str, **extra: Any) -> Any:
    """Build a component as `instantiate` does, and convert what its class raises to a ConfigError.

    Args:
        component: The component to build.
        where: Its key, dotted.
        extra: Arguments that no file can hold.

    Raises:
        ConfigError: There is no such class, or it cannot be built from these arguments.
    """
    component = as_component(component, where)
    arguments = _built(component.init_args, build, joined(where, "init_args"))
    try:
        target = import_class(component.class_path)
    except ConfigError as error:
        raise ConfigError([joined(where, problem) for problem in error.problems]) from error
    try:
        return target(**arguments, **extra)
    except Exception as error:
        raise ConfigError(in_words(error, where, component.class_path)) from error


def _built(value: Any, build_one: Callable[[Any, str], Any], where: str = "") -> Any:
    """Replace the components that a value contains by what they are built to.

    Args:
        value: A mapping, a list or anything else.
        build_one: Builds a component, given its key.
        where: The value's key, dotted.
    """
    if is_component(value):
        return build_one(value, where)
    if isinstance(value, Mapping):
        return {key: _built(item, build_one, joined(where, key)) for key, item in value.items()}
    if type(value) not in (list, tuple):
        return value
    return type(value)(_built(item, build_one, joined(where, index)) for index, item in enumerate(value))


def check_component(value: Any, where: str, extra: Collection[str] = ()) -> list[str]:
    """Check that a component can be built: its class is imported, but not called.

    Args:
        value: A component, or the value in a file where one is expected.
        where: Its key, dotted; "" at the top.
        extra: Names of the arguments that the workbench adds.

    Returns:
        One sentence for each problem.
    """
    problems = check_shape(value, where)
    if problems:
        return problems
    component = as_component(value)
    inside = joined(where, "init_args")
    for name in sorted(set(extra) & set(component.init_args)):
        problems.append(f"{inside}.{name}: this argument is filled in by the workbench. Leave it out.")
    try:
        target = import_class(component.class_path)
    except ConfigError as error:
        problems += [joined(where, problem) for problem in error.problems]
        return problems + _check_nested(component.init_args, inside)
    return problems + check_arguments(target, component.init_args, inside, extra)


def check_arguments(
    target: Callable[..., Any], arguments: Mapping[str, Any], where: str, extra: Collection[str] = ()
) -> list[str]:
    """Check keyword arguments against a callable's signature: their names and types.

    Types are checked because many classes do not check them: `lightning.Trainer` accepts `max_epochs="many"`.

    Args:
        target: The class or function.
        arguments: Its keyword arguments; components count as what they will be built to.
        where: The key of `arguments`, dotted.
        extra: Names that will be given in addition.

    Returns:
        One sentence for each problem.
    """
    problems = []
    annotations, required, any_name = _signature(target)
    owner = getattr(target, "__name__", str(target))
    for name, value in arguments.items():
        key = joined(where, name)
        problems += _check_nested(value, key)
        if name in annotations:
            problems += _check_argument(value, annotations[name], key)
        elif not any_name:
            problems.append(f"{key}: {owner} has no argument '{name}'.{did_you_mean(name, annotations)}")
    for name in required:
        if name not in arguments and name not in extra:
            problems.append(f"{joined(where, name)}: missing; {owner} needs it.")
    return problems


def check_shape(value: object, where: str, partial: bool = False) -> list[str]:
    """Check that a value is a mapping `{class_path, init_args}`.

    Args:
        value: The value in a file.
        where: Its key, dotted.
        partial: Accept a mapping without `class_path`.

    Returns:
        One sentence for each problem.
    """
    if isinstance(value, Component):
        return []
    if not isinstance(value, Mapping):
        return [f"{where}: expected a mapping with 'class_path', got {value!r} ({type(value).__name__})."]
    advice = " Arguments go into 'init_args'."
    problems = [
        f"{joined(where, key)}: a component has 'class_path' and 'init_args' only."
        f"{did_you_mean(str(key), KEYS) or advice}"
        for key in value
        if key not in KEYS
    ]
    if "class_path" in value:
        problems += check_type(value["class_path"], str, joined(where, "class_path"))
    elif not partial:
        problems.append(f"{joined(where, 'class_path')}: missing. Name a class.")
    return problems + check_type(value.get("init_args"), dict[str, Any] | None, joined(where, "init_args"))


def _check_argument(value: Any, annotation: Any, where: str) -> list[str]:
    """Check an argument's type, where components count as what they will be built to."""
    if accepts(_built(value, lambda part, _: _promised(part)), annotation):
        return []
    if is_component(value):
        return [f"{where}: expected {described(annotation)}, got {as_component(value).class_path}."]
    return [mismatch(value, annotation, where)]


def _check_nested(value: object, where: str) -> list[str]:
    """Check the components that a value contains, at any depth."""
    if is_component(value):
        return check_component(value, where)
    listed = enumerate(value) if isinstance(value, list | tuple) else ()
    items: Iterable[tuple[object, Any]] = value.items() if isinstance(value, Mapping) else listed
    return [problem for key, item in items for problem in _check_nested(item, joined(where, key))]


def _promised(component: Component | Mapping[str, Any]) -> Produced:
    """Import a component's class, without calling it."""
    path = component.class_path if isinstance(component, Component) else component["class_path"]
    try:
        return Produced(import_class(path))
    except (ConfigError, AttributeError):  # reported by the check of the component itself
        return Produced(None)


def _signature(target: Callable[..., Any]) -> tuple[dict[str, Any], Sequence[str], bool]:
    """Return a callable's annotations by name, its required names, and whether it accepts any name."""
    function = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    if getattr(function, "__module__", "") == "torch.nn.modules.module":
        return {}, (), False  # Module.__init__ declares **kwargs, and refuses them
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):  # written in C, without a signature
        return {}, (), True
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    scope = getattr(inspect.unwrap(function), "__globals__", {})
    annotations = {p.name: _evaluated(p, scope) for p in named}
    required = [p.name for p in named if p.default is p.empty]
    return annotations, required, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _evaluated(parameter: inspect.Parameter, scope: dict[str, Any]) -> Any:
    """Evaluate an annotation given as text; `Any` if it names what was not imported at run time."""
    holder = SimpleNamespace(__annotations__={"it": parameter.annotation})
    try:
        annotation = typing.get_type_hints(holder, scope)["it"]
        return annotation | None if parameter.default is None else annotation  # x: int = None
    except (AttributeError, NameError, SyntaxError, TypeError):
        return Any
