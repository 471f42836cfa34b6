"""TRACE's own protocol, chosen by one key: what it changes, what is recorded, and what the page says of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.studies import ROOT
from trace_folders import rows, write

from benchmarks.trace import Trace
from benchmarks.trace.protocol import PUBLISHED
from workbench.benchmark import Subset
from workbench.config import load
from workbench.report import compare
from workbench.report.published import beside
from workbench.study import Study

Make = Callable[..., Study]
SHORT = {"batch_size": 4, "max_prompt_length": 40, "max_answer_length": 8}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """FOMC as it was released, its eval rows being its test rows, and another task with a long prompt."""
    test = rows("test", 4)
    write(tmp_path, "FOMC", train=rows("train", 20), eval=test, test=test)
    long = [{"prompt": "word " * 60 + str(number), "answer": "B"} for number in range(4)]
    return write(tmp_path, "C-STANCE", train=[*rows("a", 6), *long], eval=rows("e", 4), test=[*rows("s", 2), *long[:1]])


def benchmark(folder: Path, **arguments: Any) -> dict[str, Any]:
    return {"class_path": "benchmarks.trace.Trace", "init_args": {"path": str(folder), **arguments}}


def environment(study: Study) -> dict[str, Any]:
    study.run()
    (file,) = study.folder.glob("seqft/*/*/environment.json")
    return dict(json.loads(file.read_text(encoding="utf-8")))


def test_one_key_chooses_all_of_it(folder: Path, make: Make) -> None:
    study = make(benchmark=benchmark(folder, protocol="published"), data=SHORT)
    found = environment(study)
    protocol = found["protocol"]
    assert protocol["text"] == {
        "max_length": 48,
        "max_prompt_length": 40,
        "max_answer_length": 8,
        "truncation": "left",
        "template": "none",
        "tokenization": "joint",
    }
    assert protocol["carry_optimizer"] is True
    assert protocol["training_rows"] == {"C-STANCE": 10, "FOMC": 20}
    assert (
        found["carried_optimizer_state"]["FOMC"]["begun"] == found["carried_optimizer_state"]["C-STANCE"]["kept"] == 0
    )
    assert found["trained_without"] == {
        "C-STANCE": {"begin": 4, "end": 4, "both": 4},
        "FOMC": {"begin": 0, "end": 0, "both": 0},
    }
    assert found["cut_in_test"]["C-STANCE"]["prompts"] == 1
    parts = protocol["published"]["parts"]
    assert {name: part["there"] for name, part in parts.items()} == dict(PUBLISHED.parts)
    assert parts["epochs"]["here"] == "1, 1"
    assert parts["rows in a step"]["here"] == "4"
    assert parts["tokenization"]["here"] == "joint, 48 tokens; prompts at test: 40 tokens"
    assert parts["optimizer"]["here"] == "torch.optim.AdamW, one for all tasks"
    (comparison,) = compare([study.folder])
    (own,) = (row for row in beside(comparison) if row.strategy == "SeqFT" and row.source.startswith("Wang"))
    assert not [text for text in own.differences if text.startswith(("tokenization", "optimizer"))]


def test_its_parts_are_settings_of_their_own(folder: Path, make: Make) -> None:
    apart = make(benchmark=benchmark(folder, protocol="published"), data={**SHORT, "tokenization": "apart"})
    assert (apart.assembly.text_policy.tokenization, apart.assembly.carries_optimizer) == ("apart", True)
    anew = make(benchmark=benchmark(folder, protocol="published"), data=SHORT, carry_optimizer=False)
    assert (anew.assembly.text_policy.tokenization, anew.assembly.carries_optimizer) == ("joint", False)
    own = make(benchmark=benchmark(folder), data=SHORT)
    assert (own.assembly.text_policy.tokenization, own.assembly.carries_optimizer) == ("apart", False)
    assert own.assembly.text_policy.max_length is None
    assert own.assembly.protocol("seqft", "1", 0)["published"] is None
    carried = make(benchmark=benchmark(folder), data={**SHORT, "tokenization": "joint"}, carry_optimizer=True)
    assert (carried.assembly.text_policy.tokenization, carried.assembly.carries_optimizer) == ("joint", True)
    assert Subset(Trace(folder, protocol="published"), ["FOMC"]).protocol is PUBLISHED


def test_the_limit_is_traces_whatever_the_longest_answers_are(folder: Path, make: Make) -> None:
    """1024 + 512 tokens for each row, as in TRACE's collator, and prompts of 1024 at test."""
    study = make(benchmark=benchmark(folder, protocol="published"), data={"batch_size": 4})
    policy = study.assembly.text_policy
    assert (policy.max_length, policy.max_prompt_length) == (1536, 1024)


def test_rows_that_validate_are_trained_on_unless_they_are_scored(folder: Path, make: Make) -> None:
    for score_on, expected in (("test", 20), ("validation", 18)):
        study = make(benchmark=benchmark(folder), data={**SHORT, "score_on": score_on})
        task = study.assembly.tasks["FOMC"]
        assert len(task.train) == expected
        shared = set(task.train["prompt"]) & set(task.test["prompt"])
        assert shared == set()


@pytest.mark.parametrize("name", ["trace", "trace_1b", "trace_7b"])
def test_the_shipped_configs_as_published_choose_it(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_TRACE", str(folder))
    monkeypatch.setenv("WORKBENCH_MODEL", "mini")
    assert load(name).benchmark.init_args == {"path": str(folder), "protocol": "published"}


def test_the_page_has_each_part_of_it() -> None:
    """The one table: what TRACE's code does, word for word as in each run's record, and what is done here."""
    text = (ROOT / "benchmarks" / "trace" / "README.md").read_text(encoding="utf-8")
    cells = {row[0]: row[1] for row in re.findall(r"^\| ([^|]+) \| ([^|]+) \| [^|]+ \| [^|]+ \|$", text, re.MULTILINE)}
    assert {part: cells.get(part) for part in PUBLISHED.parts} == dict(PUBLISHED.parts)
