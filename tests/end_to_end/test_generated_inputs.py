"""Generated configs, rows and run folders: each is read, or refused in sentences that name what is wrong."""

from __future__ import annotations

import copy
import json
import shutil
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers.studies import study, write_tasks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from benchmarks.trace.files import SPLITS, read_tasks
from strategies.continued_pretraining import read_corpus
from workbench.config import StudyConfig, load, parse
from workbench.config.validation import check, check_parts
from workbench.errors import ConfigError
from workbench.model_folder import check_folder
from workbench.results import RunFolder
from workbench.results.journal import Journal

TINY = study(Path("mini"), Path("tasks"), Path("runs"), per_task={"alpha": {"max_epochs": 2}}, scheduler=None)
KEYS = [
    "name",
    "seeds",
    "init_args",
    "class_path",
    "trainer",
    "optimizer",
    "lr",
    "per_task",
    "max_epochs",
    "data",
    "x",
    "",
]
TEXTS = [
    "",
    "???",
    "${name}",
    "${",
    "${oc.env:HOME}",
    "../up",
    "a: [b",
    "torch.optim.SGD",
    "strategies.LoRA",
    "é\ud800",
    "\0",
]
examples = partial(settings, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))

numbers = some.integers(-(2**40), 2**40) | some.floats() | some.booleans() | some.none()
texts = some.sampled_from(TEXTS + KEYS) | some.text(max_size=6)
values = some.recursive(
    numbers | texts,
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.sampled_from(KEYS) | texts, inner, max_size=3),
    max_leaves=6,
)
writable = values.filter(lambda value: "\\ud" not in ascii(value))  # what a UTF-8 file can hold


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in a config."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(way for key, item in items for way in places(item, (*at, key)))]


@some.composite
def configs(draw: Callable[[Any], Any]) -> Any:
    """The small study with one to three keys dropped, renamed, added, or with other values."""
    config = copy.deepcopy(TINY)
    for _ in range(draw(some.integers(1, 3))):
        way = draw(some.sampled_from(places(config)))
        parent = config
        for key in way[:-1]:
            parent = parent[key]
        change = draw(some.sampled_from(["drop", "rename", "value", "value", "add"]))
        if not way:
            config = draw(values) if change == "drop" else {**config, draw(texts): draw(values)}
            if not isinstance(config, dict):
                return config
        elif change == "add" and isinstance(parent[way[-1]], dict):
            parent[way[-1]][draw(texts)] = draw(values)
        elif change in ("drop", "rename") and isinstance(parent, dict):
            value = parent.pop(way[-1])
            if change == "rename":
                parent[draw(texts)] = value
        else:
            parent[way[-1]] = draw(values)
    return config


def read_or_refused(read: Callable[[], object], *refusals: type[Exception], named: str = "") -> object:
    """What was read; None where it was refused in words, which begin with the file's name or hold it."""
    try:
        return read()
    except (ConfigError, *refusals) as error:
        problems = error.problems if isinstance(error, ConfigError) else str(error).splitlines()
        assert problems
        assert all(problem.strip() for problem in problems)
        assert any(named in problem for problem in problems), problems
        return None


@examples(max_examples=400)
@given(configs().filter(lambda raw: isinstance(raw, dict)))
def test_a_generated_mapping_is_a_study_or_refused(raw: Any) -> None:
    config = read_or_refused(lambda: parse(raw))
    assert config is None or isinstance(config, StudyConfig)
    assert all(problem.strip() for problem in check_parts(raw))


@examples(max_examples=150)
@given(
    raw=configs(), overrides=some.lists(some.tuples(texts, texts | some.just("[1")).map("=".join) | texts, max_size=2)
)
def test_a_generated_file_and_command_line_are_a_study_or_refused(
    tmp_path: Path, raw: Any, overrides: list[str]
) -> None:
    file = tmp_path / "small.yaml"
    file.write_bytes(json.dumps(raw).encode())  # JSON is YAML
    config = read_or_refused(lambda: load(file, overrides))
    if isinstance(config, StudyConfig):
        assert all(problem.strip() for problem in check(config))
    assert list(tmp_path.iterdir()) == [file]


@examples(max_examples=150)
@given(some.binary(max_size=40) | some.text(alphabet="a:-[]{}&*!|>?%@`'\"#, \n\t0", max_size=40).map(str.encode))
def test_generated_bytes_are_a_study_or_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "small.yaml"
    file.write_bytes(content)
    assert read_or_refused(lambda: load(file)) is None  # nothing as short is a whole study


rows = some.lists(
    values
    | some.dictionaries(some.sampled_from(["prompt", "answer", "x"]), values, max_size=3)
    | some.fixed_dictionaries({"prompt": texts, "answer": texts}),
    max_size=4,
)


@examples(max_examples=250)
@given(content=rows | values, split=some.sampled_from(SPLITS))
def test_generated_rows_are_a_task_or_refused_with_the_files_name(tmp_path: Path, content: Any, split: str) -> None:
    folder = write_tasks(tmp_path)
    (folder / "alpha" / f"{split}.json").write_text(json.dumps(content))
    tasks = read_or_refused(lambda: read_tasks(folder, ["alpha"]), ValueError, named=f"alpha/{split}.json")
    if isinstance(tasks, dict):
        found = tasks["alpha"][split]
        assert [{"prompt": prompt, "answer": answer} for prompt, answer in found] == [
            {"prompt": row["prompt"], "answer": row["answer"]} for row in content
        ]
        "".join(text for row in found for text in row).encode()


@examples(max_examples=80)
@given(some.binary(max_size=30) | some.text(alphabet='[]{}":,\\ud8prompt0e-', max_size=30).map(str.encode))
def test_generated_bytes_are_a_task_or_refused_with_the_files_name(tmp_path: Path, content: bytes) -> None:
    folder = write_tasks(tmp_path)
    (folder / "alpha" / "train.json").write_bytes(content)
    read_or_refused(lambda: read_tasks(folder, ["alpha"]), ValueError, named="alpha/train.json")


@examples(max_examples=80)
@given(some.lists(values, max_size=3), some.sampled_from([".txt", ".jsonl"]))
def test_a_generated_corpus_is_texts_or_refused(tmp_path: Path, content: list[Any], kind: str) -> None:
    file = tmp_path / f"corpus{kind}"
    file.write_text("\n".join(map(json.dumps, content)))
    read_or_refused(lambda: read_corpus(file), ValueError, named=file.name)


KINDS = ["config", "environment", "cell", "within", "steps", "costs", "end", "x"]
FIELDS = [
    "kind",
    "after",
    "on",
    "metrics",
    "count",
    "text",
    "section",
    "values",
    "rows",
    "model",
    "predictions",
    "spent",
]
records = some.dictionaries(some.sampled_from(FIELDS), values, max_size=6) | values
named_records = some.tuples(records, some.sampled_from(KINDS)).map(
    lambda pair: {**pair[0], "kind": pair[1]} if isinstance(pair[0], dict) else pair[0]
)


@examples(max_examples=200)
@given(content=some.lists(named_records, min_size=1, max_size=3), torn=some.integers(0, 9))
def test_a_generated_journal_is_read_or_refused_with_its_name(tmp_path: Path, content: list[Any], torn: int) -> None:
    lines, total = b"", 0
    for record in content:
        text = json.dumps(record).encode()
        total = zlib.crc32(text, total)
        lines += b"%08x %s\n" % (total, text)
    file = tmp_path / "journal.jsonl"
    file.write_bytes(lines[: len(lines) - torn])
    run = read_or_refused(lambda: RunFolder(tmp_path), named="journal.jsonl")
    if isinstance(run, RunFolder):
        assert len(run.journal.records) in (len(content), len(content) - 1) or torn
    assert list(tmp_path.iterdir()) == [file]


@examples(max_examples=80)
@given(some.binary(max_size=60))
def test_generated_bytes_are_no_journal(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "journal.jsonl"
    file.write_bytes(content)
    journal = read_or_refused(lambda: Journal(file), named="journal.jsonl")
    assert journal is None or journal.records == []  # type: ignore[attr-defined]


TABLES = ["scores.csv", "nll.csv", "within.csv", "costs.csv", "train.csv", "environment.json"]
cells = some.sampled_from(["0", "1.5", "nan", "after", "on", "value", "step", '"', "", "alpha", "\0"])
csvs = some.lists(some.lists(cells, max_size=5).map(",".join), max_size=4).map("\n".join)
headed = csvs.map(lambda text: f"after,on,metric,value,count\n{text}")


@examples(max_examples=200)
@given(name=some.sampled_from(TABLES), text=csvs | headed | writable.map(json.dumps))
def test_a_generated_file_of_a_run_is_read_or_refused_with_its_name(tmp_path: Path, name: str, text: str) -> None:
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_bytes(text.encode())
    run = read_or_refused(lambda: RunFolder(tmp_path / "run"), named=name)
    if isinstance(run, RunFolder):
        assert run.value(0, "alpha", "accuracy") is not None
        assert isinstance(run.environment(), dict)
    assert [file.name for file in (tmp_path / "run").iterdir()] == [name]


@examples(max_examples=80)
@given(name=some.sampled_from(["config.json", "tokenizer_config.json", "model.safetensors.index.json"]), content=values)
@pytest.mark.parametrize("header", [False, True])
def test_a_generated_file_of_a_model_is_read_or_refused(
    model_folder: Path, tmp_path: Path, header: bool, name: str, content: Any
) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model", dirs_exist_ok=True))
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    if header:
        text = json.dumps({"weight": content} if name == "config.json" else content).encode()
        (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    else:
        (folder / name).write_text(json.dumps(content))
    problems = check_folder(folder)
    assert all("model" in problem for problem in problems)
    assert problems or name == "tokenizer_config.json" or header
