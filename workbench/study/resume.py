"""Decide whether an existing run folder can be resumed."""

from __future__ import annotations

import ast
import hashlib
import inspect
import linecache
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from workbench.benchmark import Task
from workbench.config import Component, StudyConfig, load
from workbench.config.components import import_class
from workbench.config.loading import resolved
from workbench.config.schema import KEEPS_NUMBERS, OBSERVES, for_run, leaves
from workbench.errors import ConfigError
from workbench.model_folder import FETCHED, SHIPPED, locate
from workbench.results import RunFolder
from workbench.runtime.environment import describe_environment

UNTOUCHED = ".untouched"
"""Folder of row 0 in a study's folder; no strategy can have this name."""
ADVICE = "Choose another `name`, or existing=replace to lose what is there."
INPUTS = {"files": "corpus or model of its strategy", "code": "version of its strategy's code"}
"""Inputs of a run in words; "data" and "model" are words already."""
NOT_COMPARED = (*KEEPS_NUMBERS, "prepare")  # what `prepare` creates is in the fingerprints of the data and the models
WATCHERS = (
    "DeviceStatsMonitor",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "ModelSummary",
    "RichModelSummary",
    "RichProgressBar",
    "ThroughputMonitor",
    "TQDMProgressBar",
)
"""Callbacks of Lightning that only observe a training."""
EDGE_BYTES = 1 << 20


def existing_problems(
    config: StudyConfig, folder: Path, wanted: Mapping[Path, StudyConfig], inputs_of: Callable[[int], Mapping[str, str]]
) -> list[str]:
    """Compare the runs in a study's folder with those that its config asks for.

    Args:
        config: Config of the study.
        folder: Folder of the study.
        wanted: Config of each run by the run's folder.
        inputs_of: Returns the fingerprints of data and model of the runs with a seed.

    Returns:
        A sentence for each run that `existing` does not allow, or that was made with another config, other data or
        another model; also for runs that are not asked for now, because they would stand in the same table.
    """
    problems = []
    paths = {file.parent for name in ("config.yaml", "journal.jsonl") for file in folder.rglob(name)}
    for path in sorted(paths):
        asked = wanted.get(path)
        if UNTOUCHED in path.relative_to(folder).parts or (asked and config.existing == "replace"):
            continue
        if asked and config.existing == "refuse":
            problems.append(f"existing: {path} is there. Choose another `name`, or existing=resume or =replace.")
            continue
        try:
            problems += _run_problems(config, path, asked, inputs_of)
        except ConfigError as error:
            problems += error.problems
    return problems


def _run_problems(
    config: StudyConfig, path: Path, asked: StudyConfig | None, inputs_of: Callable[[int], Mapping[str, str]]
) -> list[str]:
    """Return the reason why a run cannot stand in the study's table, if any; repair the files of its folder."""
    run = RunFolder(path)
    run.mend()
    if not run.journal.records and run.finished:
        return [f"{path} is finished, but its journal.jsonl is missing. Delete {path} to make the run again."]
    try:
        there = load(path / "config.yaml")
    except ConfigError as error:
        return [f"{path}/config.yaml cannot be read ({error.problems[0]}). Delete {path} to make the run again."]
    advice = ADVICE if asked else "Choose another `name`, or delete the folder."
    here = asked or _as_asked_now(config, there)
    environment = run.environment()
    inputs = {**inputs_of(there.seeds[0]), **own_inputs(here)}
    recorded = dict(environment.get("inputs", inputs))
    if recorded.get("code") == source_code(here):
        recorded["code"] = inputs["code"]
    same = {name for name, value in environment.get("inputs", {}).items() if inputs.get(name) == value}
    if changes := differences(there, here, same):
        return [f"{path} was made with another config ({'; '.join(changes)}). {advice}"]
    if changed := [str(INPUTS.get(name, name)) for name, value in recorded.items() if inputs.get(name) != value]:
        return [f"{path} was made with another {' and another '.join(changed)}. {advice}"]
    if changed := _other_versions(environment, run.finished):
        return [f"{path} was made with other versions ({'; '.join(changed)}). {advice}"]
    return []


def _as_asked_now(config: StudyConfig, there: StudyConfig) -> StudyConfig:
    """Return the config that a run in the folder would have in this study."""
    strategies = {name: config.strategies.get(name, old) for name, old in there.strategies.items()}
    return for_run(config, strategies, there.orders, there.seeds[0])


def differences(there: StudyConfig, here: StudyConfig, same: Collection[str] = ()) -> list[str]:
    """Return the keys in which two configs differ, with both values; keys that only observe a training are left out.

    Args:
        there: Config of an existing run.
        here: Config that is asked for now.
        same: Inputs ("data", "model", "files") whose contents are known to be equal, so that their paths may differ.
    """
    old, new = (dict(leaves(_identifying(resolved(config)))) for config in (there, here))
    return [
        f"{key}: {old.get(key, 'nothing')} there, {new.get(key, 'nothing')} here"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
        and not any(f"{key}.".startswith(f"{name}.") for name in NOT_COMPARED)
        and not _moved(key, old.get(key), new.get(key), same)
    ]


def _identifying(config: dict[str, Any]) -> dict[str, Any]:
    """Return a resolved config without what only observes a training, in each of its `trainer` sections."""
    sections = [config, *config["per_task"].values()]
    for strategy in config["strategies"].values():
        first = strategy[0] if isinstance(strategy, list) else strategy
        sections += [first, *first.get("per_task", {}).values()]
    for section in sections:
        if given := section.get("trainer"):
            section["trainer"] = {key: value for key, value in given.items() if key not in OBSERVES}
            if callbacks := [part for part in _listed(given.get("callbacks")) if not _watches(part)]:
                section["trainer"]["callbacks"] = callbacks
            else:
                section["trainer"].pop("callbacks", None)
    return config


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _watches(callback: Any) -> bool:
    package, _, name = str(callback["class_path"] if isinstance(callback, Mapping) else "").rpartition(".")
    return package.startswith(("lightning.pytorch.callbacks", "pytorch_lightning.callbacks")) and name in WATCHERS


def _moved(key: str, old: Any, new: Any, same: Collection[str]) -> bool:
    """Return True if both values are paths of the same content."""
    inputs = {"backbone.path": "model", "benchmark.init_args": "data", "strategies": "files"}
    of = next((name for start, name in inputs.items() if f"{key}.".startswith(f"{start}.")), None)
    if of not in same or not (isinstance(old, str) and isinstance(new, str)):
        return False
    return of == "model" or Path(new).expanduser().exists()


def _other_versions(environment: Mapping[str, Any], finished: bool) -> list[str]:
    """Return the libraries whose versions differ; of a run to be resumed also the workbench's commit, where known."""
    now = describe_environment()
    old, new = dict(environment.get("versions", {})), dict(now["versions"])
    if not finished:
        old, new = old | {"commit": environment.get("commit")}, new | {"commit": now["commit"]}
    known = [name for name in old if None not in (old[name], new.get(name))]
    return [f"{name}: {old[name]} there, {new[name]} here" for name in known if old[name] != new[name]]


# -- fingerprints of what a run depends on


def own_inputs(config: StudyConfig) -> dict[str, str]:
    """Return the fingerprints of a run's strategy: "files", which it reads beside the backbone, and its "code"."""
    components = _components(config)
    return {
        "files": fingerprint_named(part.init_args for part in components),
        "code": fingerprint_code(import_class(part.class_path) for part in components),
    }


def source_code(config: StudyConfig) -> str:
    """Return the fingerprint of a strategy's "code" as earlier versions recorded it."""
    return fingerprint_source(import_class(part.class_path) for part in _components(config))


def _components(config: StudyConfig) -> list[Component]:
    return [part for chosen in config.strategies.values() for part in chosen.components]


def fingerprint_tasks(tasks: Iterable[Task]) -> str:
    """Return the fingerprint of every row of every split, by task."""
    digest = hashlib.sha256()
    for task in tasks:
        for split in (task.train, task.validation, task.test):
            digest.update(f"\x1d{task.name}\x1e{len(split)}".encode())
            for row in split:
                digest.update("\x1f".join(str(value) for value in row.values()).encode())
    return digest.hexdigest()[:16]


def fingerprint_model(path: str) -> str:
    """Return the fingerprint of a model folder or a GGUF file; a hub id stands for itself.

    Each file counts with its name, its size, and its first and last megabyte, which is fast and tells models apart.
    """
    folder = locate(path)
    if isinstance(folder, str):
        return folder
    if folder.is_file():
        return _fingerprint_files([folder])
    return _fingerprint_files(sorted(folder.glob("*.json")) + sorted(folder.glob("*.safetensors")))


def fingerprint_named(arguments: Iterable[Any]) -> str:
    """Return the fingerprint of the files and model folders named in a strategy's arguments, such as a corpus."""
    named = []
    for text in dict.fromkeys(_texts(arguments)):
        path = Path(text).expanduser()
        if text in (*SHIPPED, *FETCHED) or path.is_dir():
            named.append(fingerprint_model(text))
        elif path.is_file():
            named.append(_fingerprint_files([path]))
    return hashlib.sha256(" ".join(named).encode()).hexdigest()[:16] if named else "none"


def fingerprint_code(classes: Iterable[Any]) -> str:
    """Return the fingerprint of the files in which classes are written: a method that was changed is another one.

    Docstrings, comments, blank lines and imports are left out, for they change no number.
    """
    digest = hashlib.sha256()
    for written in classes:
        digest.update(_normalised(_source(written)))
    return digest.hexdigest()[:16]


def fingerprint_source(classes: Iterable[Any]) -> str:
    """Return the fingerprint of the same files byte for byte, as recorded before docstrings were left out."""
    digest = hashlib.sha256()
    for written in classes:
        digest.update(_source(written))
    return digest.hexdigest()[:16]


def _normalised(source: bytes) -> bytes:
    """Return a file's syntax tree without docstrings and imports; text that is no Python (a magic) as it is."""
    try:
        tree = _Stripper().visit(ast.parse(source))
    except (SyntaxError, ValueError):
        return source
    return ast.dump(tree).encode()


class _Stripper(ast.NodeTransformer):
    """Removes docstrings and imports from a syntax tree, and each `if` that they leave empty."""

    def generic_visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = node.body[int(ast.get_docstring(node, clean=False) is not None) :]
        super().generic_visit(node)
        empty = isinstance(node, ast.If) and not node.body and not node.orelse
        return None if empty or isinstance(node, ast.Import | ast.ImportFrom) else node


def _source(written: Any) -> bytes:
    """Return the file in which a class is written, or its notebook cell; where neither can be read, its name."""
    try:
        file = inspect.getsourcefile(written)
    except (OSError, TypeError):  # a cell's class has no file, but its hooks know their cell
        cells = [hook.__code__.co_filename for hook in vars(written).values() if inspect.isfunction(hook)]
        text = "".join(line for cell in dict.fromkeys(cells) for line in linecache.getlines(cell))
        return (text or repr(written)).encode()
    return Path(file).read_bytes() if file else repr(written).encode()


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a value and in its collections."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(value.values())
    elif isinstance(value, Iterable):
        for item in value:
            yield from _texts(item)


def _fingerprint_files(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}\x1f{size}".encode())
        with file.open("rb") as content:
            digest.update(content.read(EDGE_BYTES))
            content.seek(max(0, size - EDGE_BYTES))
            digest.update(content.read(EDGE_BYTES))
    return digest.hexdigest()[:16]
