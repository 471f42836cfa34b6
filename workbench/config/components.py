"""A component of a config, `{class_path, init_args}`: import, check and instantiate it.

There is no registry: a built-in class and a class in a file beside the YAML are imported in the same way.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
import traceback
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from workbench.config.type_check import Produced, accepts, choices, described
from workbench.errors import SHIPPED, ConfigError, did_you_mean, is_readers, readers_line


def import_class(path: str) -> Callable[..., Any]:
    """Import a class or a function by its path, also from a file in the current folder.

    The current folder is put at the end of `sys.path`, whichever command was used to start, so that a
    reader's `my_method.MyStrategy` is found, and at the end, so that it hides no installed module.

    Raises:
        ConfigError: There is no such module or name, or the module itself cannot be imported.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name or not name:
        raise ConfigError([f"class_path: '{path}' is no import path. Write it as 'package.Class'."])
    reach(Path.cwd())
    module = _module(module_name)
    known = _names(module)
    try:
        found = getattr(module, name)
    except Exception as error:  # a package that imports lazily may fail here in any way
        if isinstance(error, AttributeError) and name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError([f"class_path: '{module_name}' has no class '{name}'.{hint}"]) from None
        raise ConfigError([_failed(path, error)]) from error
    if not callable(found):
        kind, hint = type(found).__name__, did_you_mean(name, known - {name})
        raise ConfigError([f"class_path: '{path}' is no class or function, but of type {kind}. Give one.{hint}"])
    return typing.cast(Callable[..., Any], found)


def reach(folder: Path) -> None:
    """Let modules in a folder be imported, those too that were written a moment ago."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    importlib.invalidate_caches()


def _module(name: str) -> ModuleType:
    """Import a module and tell one that is not there from one that does not work."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name != missing and not name.startswith(f"{missing}."):
            raise ConfigError([_failed(name, error)]) from error
    except Exception as error:
        raise ConfigError([_failed(name, error)]) from error
    parent = missing.rpartition(".")[0]
    folders = getattr(sys.modules.get(parent), "__path__", []) if parent else None
    beside = [module.name for module in pkgutil.iter_modules(folders)]
    hint = did_you_mean(missing, [f"{parent}.{name}" if parent else name for name in beside])
    raise ConfigError([f"class_path: there is no module '{missing}'.{hint}"])


def _names(module: ModuleType) -> set[str]:
    """List what a module offers: not its submodules, as `strategies.lora` beside `strategies.LoRA`."""
    own = vars(module)
    names = {*dir(module), *own.get("__all__", ())}
    return {name for name in names if name[:1] != "_" and not isinstance(own.get(name), ModuleType)}


def _failed(path: str, error: Exception) -> str:
    """Say that an import broke, with its own words: the remedy is in them, not in the spelling."""
    return f"class_path: importing '{path}' failed: {type(error).__name__}: {error}. Mend it, or install what it needs."


KEYS = ("class_path", "init_args")
LONGEST_TEXT = 400


@dataclass(frozen=True)
class Component:
    """Something to import and to call, not yet built.

    Args:
        class_path: Import path of a class, or of a function that makes the object.
        init_args: Its keyword arguments; a value may hold components in turn.
    """

    class_path: str
    init_args: dict[str, Any] = field(default_factory=dict)


def is_component(value: object) -> bool:
    """Tell whether a value of a config is to be built, which is so for each mapping with a `class_path`."""
    return isinstance(value, Component) or (isinstance(value, Mapping) and "class_path" in value)


def as_component(value: Component | Mapping[str, Any], where: str = "") -> Component:
    """Read a component from a mapping, since a YAML holds mappings and code is easier with names.

    Raises:
        ConfigError: The mapping has other keys, or values of other types.
    """
    if isinstance(value, Component):
        return value
    if problems := check_shape(value, where):
        raise ConfigError(problems)
    return Component(value["class_path"], dict(value.get("init_args") or {}))


def instantiate(component: Component | Mapping[str, Any], **extra: Any) -> Any:
    """Build a component, the components in its `init_args` first.

    Args:
        component: What to build.
        extra: Arguments that no file can hold, such as an optimizer's `params`.

    Raises:
        ConfigError: There is no such class. What the class itself raises is passed on as it is.
    """
    component = as_component(component)
    return import_class(component.class_path)(**_built(component.init_args, lambda part, _: instantiate(part)), **extra)


def build(component: Component | Mapping[str, Any], where: str, **extra: Any) -> Any:
    """Build a component as `instantiate` does; whatever its class raises becomes a sentence with its key.

    Args:
        component: What to build.
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


def in_words(error: Exception, where: str, who: str = "") -> list[str]:
    """Say what a class raised, with its key and with the place in the reader's own code.

    A ValueError that the class worded itself, in a `raise` of its own, stays as it is.

    Args:
        error: What was raised.
        where: The key of the component, dotted.
        who: What raised it.
    """
    text, place = " ".join(str(error).split()), readers_line(error)
    text = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"
    if isinstance(error, ImportError):
        return [f"{where}: {who} needs a package that is not installed: {_package(error, text)}"]
    if isinstance(error, ValueError) and text and _own_words(error):
        return [f"{where}: {line}" for line in str(error).splitlines()]
    named = text and (isinstance(error, ValueError | TypeError) or type(error).__module__ != "builtins")
    kind = "" if named else type(error).__name__
    told = ": ".join(part for part in (where, who, kind, text.rstrip(".")) if part)
    return [f"{told} ({place}). Mend the class, or its init_args." if place else f"{told}. Mend its init_args."]


def _own_words(error: Exception) -> bool:
    """Tell whether a class, not a library that it calls, raised an error on purpose."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    owned = last.filename.startswith(SHIPPED) or is_readers(last.filename)
    return owned and re.search(r"\braise\b", last.line or "") is not None


def _package(error: ImportError, text: str) -> str:
    """Say how to get what an import lacks."""
    wanted = re.search(r"pip install (?:-\S+ )?([^`]+)", text)
    if wanted or error.name:
        return f"pip install {wanted[1].strip() if wanted else str(error.name).partition('.')[0]}"
    return f"{text.rstrip('.')}. Get it, or choose another class."


def check_component(value: Any, where: str, extra: Collection[str] = ()) -> list[str]:
    """Tell what would go wrong in building a component, which is imported for that but not called.

    Args:
        value: A component, or what stands in a file where one is expected.
        where: Its key, dotted; "" for the top.
        extra: Names of the arguments that the builder will add.

    Returns:
        One sentence for each problem; none where all is well.
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
    """Tell which keyword arguments a callable would not take, or should not: names and types.

    Types matter as many classes check nothing themselves: `lightning.Trainer` takes `max_epochs="many"`.

    Args:
        target: The class or function.
        arguments: What it is to be called with; components count as what they will be built to.
        where: The key of `arguments`, dotted.
        extra: Names that will be there without being in `arguments`.
    """
    problems = []
    annotations, required, any_name = _parameters(target)
    owner = getattr(target, "__name__", str(target))
    for name, value in arguments.items():
        key = joined(where, name)
        problems += _check_nested(value, key)
        if name in annotations:
            problems += check_value(value, annotations[name], key)
        elif not any_name:
            problems.append(f"{key}: {owner} has no argument '{name}'.{did_you_mean(name, annotations)}")
    for name in required:
        if name not in arguments and name not in extra:
            problems.append(f"{joined(where, name)}: missing; {owner} needs it.")
    return problems


def check_shape(value: object, where: str, partial: bool = False) -> list[str]:
    """Tell if a value is not `{class_path, init_args}`; a partial one may do without a `class_path`."""
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
        problems += check_plain(value["class_path"], str, joined(where, "class_path"))
    elif not partial:
        problems.append(f"{joined(where, 'class_path')}: missing. Name a class.")
    return problems + check_plain(value.get("init_args"), dict[str, Any] | None, joined(where, "init_args"))


def check_value(value: Any, annotation: Any, where: str) -> list[str]:
    """Tell whether a value does not have the type that an annotation asks for."""
    if accepts(_produced(value), annotation):
        return []
    if is_component(value):
        return [f"{where}: expected {described(annotation)}, got {as_component(value).class_path}."]
    return _unlike(value, annotation, where)


def check_plain(value: Any, annotation: Any, where: str) -> list[str]:
    """As `check_value`, where what stands there is taken as it is, and a component would never be built."""
    return [] if accepts(value, annotation) else _unlike(value, annotation, where)


def _unlike(value: Any, annotation: Any, where: str) -> list[str]:
    hint = did_you_mean(value, choices(annotation)) if isinstance(value, str) else ""
    return [f"{where}: expected {described(annotation)}, got {value!r} ({type(value).__name__}).{hint}"]


def joined(where: str, key: object) -> str:
    """Append a key to a dotted path.

    >>> joined("strategies.lora", "init_args"), joined("", "name")
    ('strategies.lora.init_args', 'name')
    """
    return f"{where}.{key}" if where else str(key)


def _check_nested(value: object, where: str) -> list[str]:
    """Check the components that a value holds, however deep they stand."""
    if is_component(value):
        return check_component(value, where)
    listed = enumerate(value) if isinstance(value, list | tuple) else ()
    items: Iterable[tuple[object, Any]] = value.items() if isinstance(value, Mapping) else listed
    return [problem for key, item in items for problem in _check_nested(item, joined(where, key))]


def _built(value: Any, make: Callable[[Any, str], Any], where: str = "") -> Any:
    """Make the components that a value holds and leave all else as it is."""
    if is_component(value):
        return make(value, where)
    if isinstance(value, Mapping):
        return {key: _built(item, make, joined(where, key)) for key, item in value.items()}
    if type(value) not in (list, tuple):
        return value
    return type(value)(_built(item, make, joined(where, index)) for index, item in enumerate(value))


def _produced(value: Any) -> Any:
    """Put what a component's class promises in the place of the component, for a check of types."""
    if is_component(value):
        path = value.class_path if isinstance(value, Component) else value["class_path"]
        try:
            return Produced(import_class(path))
        except (ConfigError, AttributeError):  # told where the component itself is checked
            return Produced(None)
    if isinstance(value, Mapping):
        return {key: _produced(item) for key, item in value.items()}
    return [_produced(item) for item in value] if isinstance(value, list | tuple) else value


def _parameters(target: Callable[..., Any]) -> tuple[dict[str, Any], Sequence[str], bool]:
    """Read a callable's signature: each name's annotation, the required names, and if any name will do."""
    function = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    if getattr(function, "__module__", "") == "torch.nn.modules.module":
        return {}, (), False  # Module.__init__ says **kwargs, and refuses them
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):  # written in C, without a signature
        return {}, (), True
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    scope = getattr(inspect.unwrap(function), "__globals__", {})
    annotations = {p.name: _resolved(p, scope) for p in named}
    required = [p.name for p in named if p.default is p.empty]
    return annotations, required, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _resolved(parameter: inspect.Parameter, scope: dict[str, Any]) -> Any:
    """Turn an annotation that is text into a type; one that names what was never imported asks nothing."""
    holder = SimpleNamespace(__annotations__={"it": parameter.annotation})
    try:
        annotation = typing.get_type_hints(holder, scope)["it"]
        return annotation | None if parameter.default is None else annotation  # x: int = None
    except (AttributeError, NameError, SyntaxError, TypeError):
        return Any
