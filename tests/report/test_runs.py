"""Reading run folders: which runs share a table and a row, and what cannot be read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.run_folders import compared, protocol, scores, write_run

from workbench.errors import ConfigError
from workbench.report import compare
from workbench.results import RunFolder


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"benchmark": "c.C"}, "benchmark: c.C here, b.B there"),
        (
            {"primary": {"a": "rouge-L", "b": "accuracy", "probe": "accuracy"}},
            "metric of a: rouge-L here, accuracy there",
        ),
        ({"decoding": "sampled"}, "decoding: sampled here, greedy there"),
        ({"scored_on": "validation"}, "scored on: validation here, test there"),
        ({"text": {"truncation": "left", "template": "chat"}}, "text, template: chat here, none there"),
        (
            {"text": {"truncation": "left", "template": "none", "tokenization": "joint"}},
            "text, tokenization: joint here, apart there",
        ),
        ({"carry_optimizer": True}, "optimizer state carried from task to task: true here, false there"),
        ({"test_rows": {"a": 7, "b": 100, "probe": 100}}, "test rows of a: 7 here, 100 there"),
        ({"backbone": "micro"}, "backbone: micro here, mini there"),
        ({"data": "other"}, "data: other here, data there"),
        ({"inputs": {"model": "other"}}, "model: other here, null there"),
    ],
)
def test_what_cannot_be_compared_is_kept_apart(two_strategies: Path, changes: dict[str, object], why: str) -> None:
    write_run(two_strategies.parent / "t", ("lora", "1", 0), scores(0.9), **changes)  # type: ignore[arg-type]
    first, second = compare([two_strategies, two_strategies.parent / "t"])
    assert first.apart == ""
    assert why in second.apart
    assert (len(first.runs), len(second.runs)) == (6, 1)
    assert (first.estimate("lora", "1", "OP").count, second.strategies) == (3, ["lora"])


def test_variants_of_a_metric_are_kept_apart_where_all_runs_state_them(tmp_path: Path) -> None:
    """Of a run of an earlier version nobody knows the variant; it stands with the others as before."""
    names = {"a": "accuracy", "b": "accuracy", "probe": "accuracy"}
    stated = {
        words: {task: {metric: f"RougeL(words={words!r})"} for task, metric in names.items()}
        for words in ("spaces", "scripts")
    }
    for seed, words in enumerate(stated):
        write_run(tmp_path / "s", ("lora", "1", seed), scores(0.5), scorers=stated[words])
    _, second = compare([tmp_path])
    assert "scorer of a: RougeL(words='scripts') here, RougeL(words='spaces') there" in second.apart
    write_run(tmp_path / "s", ("lora", "1", 2), scores(0.5))
    assert len(compared(tmp_path).runs) == 3


def test_what_an_earlier_version_did_not_record_is_its_default(two_strategies: Path) -> None:
    text = {"truncation": "left", "template": "none", "max_prompt_length": None, "tokenization": "apart"}
    write_run(two_strategies.parent / "t", ("lora", "1", 7), scores(0.9), text=text, carry_optimizer=False)
    assert len(compared(two_strategies, two_strategies.parent / "t").runs) == 7


def test_seeds_with_models_of_their_own_stand_in_one_table(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / "s", ("lora", "1", seed), scores(0.5), backbone=f"model-{seed}", data=f"data-{seed}")
    assert compared(tmp_path).seeds("lora", "1") == [0, 1, 2]


OTHER = {"other config": {"config": "name: made\nkey: 1\n"}, "other code": {"inputs": {"code": "2"}}}


@pytest.mark.parametrize("changes", OTHER.values(), ids=OTHER)
def test_one_name_made_otherwise_in_two_studies_is_two_rows_and_never_averaged(
    two_strategies: Path, changes: dict[str, Any]
) -> None:
    write_run(two_strategies.parent / "t", ("lora", "1", 7), scores(0.9), **changes)
    comparison = compared(two_strategies, two_strategies.parent / "t")
    assert comparison.strategies == ["seqft", "lora (s)", "lora (t)"]
    assert comparison.seeds("lora (s)", "1") == [0, 1, 2]
    assert comparison.estimate("lora (t)", "1", "OP").mean == pytest.approx(0.9)
    assert {row["strategy"] for row in comparison.rows} == {"seqft", "lora (s)", "lora (t)"}
    assert (
        compared(two_strategies, two_strategies.parent / "t", baseline="lora").baseline == "lora (s)"
    )  # the first of the name
    assert compared(two_strategies, two_strategies.parent / "t", baseline="lora (t)").baseline == "lora (t)"


def test_seeds_in_folders_of_their_own_are_one_row(two_strategies: Path) -> None:
    """As made by a job for each seed; 0.42, 0.53, 0.64 and 0.9."""
    write_run(two_strategies.parent / "t", ("lora", "1", 7), scores(0.9))
    comparison = compared(two_strategies, two_strategies.parent / "t", baseline="lora")
    assert (comparison.strategies, comparison.baseline) == (["seqft", "lora"], "lora")
    assert comparison.seeds("lora", "1") == [0, 1, 2, 7]
    assert comparison.estimate("lora", "1", "OP").mean == pytest.approx((0.42 + 0.53 + 0.64 + 0.9) / 4)
    assert comparison.own_settings["lora"] == "lora; s, t with the same settings and other seeds"


def test_the_same_seed_in_two_studies_is_no_further_seed(two_strategies: Path) -> None:
    write_run(two_strategies.parent / "t", ("lora", "1", 2), scores(0.9))
    comparison = compared(two_strategies, two_strategies.parent / "t")
    assert comparison.strategies == ["seqft", "lora (s)", "lora (t)"]
    assert comparison.estimate("lora (s)", "1", "OP").mean == pytest.approx(0.53)


def test_runs_of_one_folder_that_were_made_otherwise_are_not_averaged(tmp_path: Path) -> None:
    for seed, name in enumerate(("first", "second")):
        config = f"name: made\nkey: {seed}\n"
        write_run(tmp_path / "s", ("lora", "1", seed), scores(0.5 + seed / 10), config=config).path.rename(
            tmp_path / name
        )
    assert compared(tmp_path).strategies == [f"lora ({tmp_path.name})", "lora (second)"]


def test_a_folder_that_is_given_twice_counts_once_and_is_said(two_strategies: Path) -> None:
    comparison = compared(two_strategies, two_strategies / "lora", two_strategies)
    assert len(comparison.runs) == 6
    assert comparison.problems == [
        f"{two_strategies / 'lora'}: 3 of its 3 runs lie in a folder that was given before: counted once.",
        f"{two_strategies}: 6 of its 6 runs lie in a folder that was given before: counted once.",
    ]


@pytest.mark.parametrize("journal", [True, False])
def test_a_copy_of_a_study_counts_once_and_is_said(two_strategies: Path, journal: bool) -> None:
    copy = two_strategies.parent / "copy"
    shutil.copytree(two_strategies, copy)
    write_run(copy, ("lora", "1", 3), scores(0.75))
    if not journal:
        for file in copy.rglob("journal.jsonl"):
            file.unlink()
    comparison = compared(two_strategies, copy)
    assert comparison.strategies == ["seqft", "lora"]
    assert comparison.seeds("lora", "1") == [0, 1, 2, 3]
    first = Path("lora") / "1" / "seed-0"
    assert comparison.problems[0] == (
        f"{copy}: 6 of its 7 runs are copies of runs that were found before, "
        f"such as {copy / first} of {two_strategies / first}: counted once."
    )
    assert (
        compared(two_strategies / first, copy / first).problems[0]
        == f"{copy / first} is a copy of {two_strategies / first}: counted once."
    )


def test_unfinished_runs_are_listed_with_their_progress(two_strategies: Path) -> None:
    write_run(two_strategies, ("lora", "1", 3), scores(0.9)[:2], ended=False)
    comparison = compared(two_strategies)
    assert [(run.path.name, far) for run, far in comparison.unfinished] == [("seed-3", "1 of 2 tasks")]
    assert comparison.seeds("lora", "1") == [0, 1, 2]


def test_a_torn_table_beside_a_journal_is_reported_and_changes_no_number(two_strategies: Path) -> None:
    file = two_strategies / "lora" / "1" / "seed-0" / "scores.csv"
    file.write_text(file.read_text()[:-20])
    comparison = compared(two_strategies)
    assert comparison.estimate("lora", "1", "OP").mean == pytest.approx(0.53)
    assert comparison.problems == [
        f"{file} is torn, missing or was changed: the journal's numbers are shown. `lightning run` repairs it."
    ]


@pytest.mark.parametrize("name", ["scores.csv", "journal.jsonl", "environment.json"])
def test_what_cannot_be_read_is_a_problem_and_no_crash(two_strategies: Path, name: str) -> None:
    path = two_strategies / "lora" / "1" / "seed-0"
    if name == "journal.jsonl":
        lines = (path / name).read_text().splitlines()
        (path / name).write_text("\n".join([*lines[:3], "damaged", *lines[4:], ""]))
    else:
        (path / "journal.jsonl").unlink()
        (path / name).write_text((path / name).read_text()[:-15])
    comparison = compared(two_strategies)
    assert comparison.seeds("lora", "1") == [1, 2]
    assert len(comparison.problems) == 1
    assert str(path) in comparison.problems[0]


def test_a_run_without_predictions_is_reported(two_strategies: Path) -> None:
    run = write_run(two_strategies, ("other", "1", 0), scores(0.5), answers=False)
    (two_strategies / "lora" / "1" / "seed-0" / "predictions" / "1-a.jsonl").unlink()
    lora, other = compared(two_strategies).problems
    assert lora.startswith(f"{two_strategies / 'lora' / '1' / 'seed-0'}: 1 of 9 files of predictions are missing")
    assert other == f"{run.path} has no predictions: what was answered cannot be shown."


def test_folders_without_runs_are_refused_by_name(two_strategies: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.yaml").write_text("a: 1\n")
    with pytest.raises(ConfigError) as refused:
        compare([two_strategies, tmp_path / "empty", foreign, tmp_path / "absent"])
    assert [problem.partition(":")[0] for problem in refused.value.problems] == [
        str(tmp_path / name) for name in ("empty", "foreign", "absent")
    ]
    assert "there is no run. Give a study's folder" in refused.value.problems[0]
    (foreign / "environment.json").write_text(json.dumps({"python": 3}))
    with pytest.raises(ConfigError, match="foreign: nothing was measured there, or it is no run of this workbench"):
        compare([foreign])


def test_a_folder_without_a_journal_is_read_from_its_files(two_strategies: Path) -> None:
    path = two_strategies / "lora" / "1" / "seed-0"
    (path / "journal.jsonl").unlink()
    assert RunFolder(path).finished
    assert compared(two_strategies).estimate("lora", "1", "OP").mean == pytest.approx(0.53)


def test_a_run_that_has_just_begun_is_left_out(two_strategies: Path) -> None:
    """It states its strategy before its tasks, and may be stopped in between."""
    run = RunFolder(two_strategies / "lora" / "1" / "seed-3")
    stated = protocol("ab", order_name="1", seed=3)
    columns = ("order", "probes", "general", "primary", "test_rows", "training_rows")
    run.write_environment({"protocol": {name: value for name, value in stated.items() if name not in columns}})
    comparison = compared(two_strategies)
    assert comparison.seeds("lora", "1") == [0, 1, 2]
    assert comparison.problems == [
        f"{run.path}: nothing was measured there, or it is no run of this workbench: left out."
    ]


@pytest.mark.parametrize("missing", ["strategy", "primary", "backbone"])
def test_a_run_with_an_incomplete_protocol_is_left_out(missing: str, two_strategies: Path) -> None:
    run = RunFolder(two_strategies / "lora" / "1" / "seed-0")
    run.write_environment(
        {"protocol": {name: value for name, value in run.environment()["protocol"].items() if name != missing}}
    )
    comparison = compared(two_strategies)
    assert comparison.seeds("lora", "1") == [1, 2]
    assert comparison.problems == [f"{run.path} cannot be read (KeyError: '{missing}'): left out."]
