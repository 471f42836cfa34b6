"""Arguments of the shipped benchmarks that cannot be, and folders of tasks that are not as they should be."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from bad_inputs import Place, Row
from helpers.studies import write_tasks

import benchmarks
from benchmarks.cipher_language import CipherLanguage
from benchmarks.cipher_language import Pretrain as PretrainCipher
from benchmarks.key_value_arithmetic import KeyValueArithmetic
from benchmarks.key_value_arithmetic import Pretrain as PretrainKeys
from benchmarks.mini_trace import MiniTrace
from benchmarks.mini_trace.sampling import distinct_rows
from benchmarks.trace import Trace
from benchmarks.trace.files import NEEDED
from workbench.benchmark import seeded_random


def row(make: Callable[..., object], says: str, *more: str, **arguments: Any) -> Row:
    """A benchmark that cannot be built."""
    return Row(f"{make.__module__} {make.__name__} {arguments}", (says, *more), lambda _: make(**arguments))


def keys(says: str, *more: str, **arguments: Any) -> Row:
    """Expressions that cannot be."""
    return row(KeyValueArithmetic, says, *more, expressions=arguments)


def trace(says: str, *more: str, **arguments: Any) -> Row:
    """What is asked of a whole folder of tasks."""
    lay: Callable[[Place], object] = lambda place: write_tasks(place.folder / "tasks")  # noqa: E731
    return Row(f"trace {arguments}", (says, *more), lambda _: Trace("tasks", **arguments), lay=lay)


def data(split: str, content: bytes | None, *says: str) -> Row:
    """A file of a task, given to the command as part of its study."""

    def lay(place: Place) -> None:
        place.config()
        file = write_tasks(place.folder / "tasks") / "alpha" / f"{split}.json"
        file.unlink() if content is None else file.write_bytes(content)

    argv = ("run", "small.yaml", "benchmark.init_args.path=tasks")
    return Row(f"{split}.json {content!r:.40}", (f"benchmark: alpha/{split}.json", *says), argv=argv, lay=lay)


def folder(name: str, lay: Callable[[Place], object], call: Callable[[], object], *says: str) -> Row:
    """A folder that is not what it should be."""
    return Row(name, says, lambda _: call(), lay=lay)


def note(place: Place) -> None:
    (place.folder / "made").mkdir()
    (place.folder / "made" / "note.txt").write_text("mine")


def recipe(content: str) -> Callable[[Place], object]:
    def lay(place: Place) -> None:
        note(place)
        (place.folder / "made" / "recipe.json").write_text(content)

    return lay


def both_wrong(place: Place) -> None:
    for name in ("alpha", "beta"):
        (write_tasks(place.folder / "tasks") / name / "test.json").write_text("{}")
    for name in ("alpha", "beta"):
        (place.folder / "tasks" / name / "test.json").write_text("{}")


PROTOCOL = [trace("protocol: there is no 'publish'. Did you mean 'published'?", protocol="publish")]
ARITHMETIC = [
    row(KeyValueArithmetic, "train_on='num': choose 'math' or 'subs'.", train_on="num"),
    row(KeyValueArithmetic, "train_rows=0 is out of range. Choose 1 or more.", train_rows=0),
    keys("keys=9 is out of range. Choose 20 to 100000.", keys=9),
    keys("values=1 is out of range. Choose 2 or more.", values=1),
    keys("operands=[1]: give one count or more, each of 2 or more.", operands=[1]),
    keys("operators='/': choose one or more of '+', '-' and '*'.", operators="/"),
    keys("and each number is a token. Choose fewer", values=10**6),
    row(KeyValueArithmetic, "share=2 of", "is out of range: choose more than 0", share=2),
    Row(
        "few prompts",
        ("test: Only 128 different prompts were found where 400 are asked for. Take fewer rows",),
        lambda _: KeyValueArithmetic(test_rows=400, expressions={"keys": 20, "operands": [2]})[0],
    ),
    row(PretrainKeys, "steps names 'm_c'. Choose 'm_a' and 'm_b'.", folder="x", steps={"m_c": 1}),
    row(PretrainKeys, "steps.m_a=0 is out of range. Choose 1 or more.", folder="x", steps={"m_a": 0}),
]
OTHERS = [
    row(CipherLanguage, "train_rows=0 is out of range. Choose 1 to 8192.", train_rows=0),
    row(PretrainCipher, "steps=0 is out of range. Choose 1 or more.", folder="x", steps=0),
    row(MiniTrace, "train_rows=0 is out of range. Choose 1 to 4096.", train_rows=0),
    row(MiniTrace, "similarity='much': choose one of", similarity="much"),
    Row(
        "one prompt alone",
        ("Only 1 different prompts were found where 2 are asked for: take fewer rows.",),
        lambda _: distinct_rows(lambda _: ("a", "b"), seeded_random("test"), 2),
    ),
    Row(
        "a benchmark's name",
        ("module 'benchmarks' has no attribute 'Nope'. Choose",),
        lambda _: benchmarks.Nope,
        error=AttributeError,
    ),
]
MADE = [
    folder("keys, a folder of another", note, lambda: PretrainKeys("made")(), "made holds no recipe.json", "Choose"),
    folder(
        "cipher, a folder of another", note, lambda: PretrainCipher("made")(), "made holds no recipe.json", "Choose"
    ),
    *(
        folder(
            f"{name}, a recipe {content}",
            recipe(content),
            lambda make=make: make("made")(),
            *("made", "was made with other arguments", "Choose another `folder`, or delete this one"),
        )
        for name, make in (("keys", PretrainKeys), ("cipher", PretrainCipher))
        for content in ('{"seed": 5}', "[]", "{", "3")
    ),
]
TRACE = [
    trace("tasks='alpha' is one string. Give a list of names: ['alpha'].", tasks="alpha"),
    trace("tasks: there is no 'alpa'. Did you mean 'alpha'?", "There are: alpha, beta.", tasks=["alpa"]),
    trace("tasks=[] is empty or names a task twice. Choose from alpha, beta.", tasks=[]),
    trace("max_new_tokens has to be 1 or more (alpha: 0, beta: 0).", max_new_tokens=0),
    trace("max_new_tokens: there is no 'alhpa'. Did you mean 'alpha'?", max_new_tokens={"alhpa": 4}),
    folder(
        "no folder", lambda _: None, lambda: Trace("nowhere"), "nowhere: there is no such folder. Give the one that"
    ),
    folder("no task", note, lambda: Trace("made"), "made: there is no task in it. Each task needs a folder"),
    folder(
        "two files", both_wrong, lambda: Trace("tasks"), "tasks: 2 things are wrong.", "beta/test.json holds", NEEDED
    ),
]
DATA = [
    data("train", b"", "is empty. A JSON list of rows is expected. Each row needs"),
    data("train", None, "is missing. Each task needs a folder with train.json"),
    data("train", b'[{"prompt": "a", "ans', "is cut short or is no JSON", "Download or write it again."),
    data("train", b"[" * 100_000, "is cut short or is no JSON", "Download or write it again."),
    data("train", b"[" + b"9" * 5000 + b"]", "is cut short or is no JSON", "Download or write it again."),
    data("train", b"\xff\xfe[]", "is not UTF-8 text (byte 0). Save it as UTF-8"),
    data("train", b'{"prompt": "a", "answer": "b"}', "holds an object, not a list of rows. Each row needs"),
    data("train", b'[{"answer": "b"}]', 'row 1: "prompt" is missing. Each row needs'),
    data("eval", b'[{"prompt": "a", "answer": 1}]', 'row 1: "answer" is a number, not a string. Each row needs'),
    data("eval", json.dumps([{"prompt": "\ud800", "answer": "b"}]).encode(), 'row 1: "prompt"', NEEDED),
    data("test", b'[{"prompt": "a", "answer": "b"}, {"prompt": "a"}]', 'row 2: "answer" is missing. Each row needs'),
    data("test", b"[]", "has no rows, so nothing could be measured. Each row needs"),
    data("test", b"[null]", "row 1: this is null, not an object. Each row needs"),
]
ROWS = [*PROTOCOL, *ARITHMETIC, *OTHERS, *MADE, *TRACE, *DATA]
