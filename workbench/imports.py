"""Import paths: from a text in a YAML to a class, or to words that say why not.

There is no registry: a class of ours and one in a file beside the reader's YAML come in by the same door.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any


class ConfigError(ValueError):
    """All that is wrong with a config, told at once: nobody should have to fix a file one run at a time.

    Args:
        problems: One sentence each, which starts with the key it is about.
        raw: The config as far as it could be read, so that the rest of it can be looked at all the same.
    """

    def __init__(self, problems: Iterable[str], raw: Mapping[str, Any] | None = None) -> None:
        self.problems = list(problems)
        self.raw = raw or {}
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[Any, ...]:
        """From another process it comes with its sentences apart."""
        return type(self), (self.problems, self.raw)


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


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Name the candidate that was probably meant.

    >>> did_you_mean("rnk", ["rank", "alpha"])
    " Did you mean 'rank'?"
    """
    by_lower = {str(candidate).lower(): candidate for candidate in sorted(candidates)}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    return f" Did you mean '{by_lower[close[0]]}'?" if close else ""


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
