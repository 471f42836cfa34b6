"""Run folders to a table: every number against one worked out by hand, and what must not stand in one table."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.run_folders import ROWS, made_run, scores

from workbench.errors import ConfigError
from workbench.report import Comparison, compare
from workbench.report.comparison import BUDGET
from workbench.results import RunFolder

OP = {"seqft": (0.4, 0.5, 0.6), "lora": (0.42, 0.53, 0.64)}
T2 = 4.302653  # the two-sided 95 % point of t with two degrees of freedom


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two strategies, three seeds; the config names seqft first, and lora takes more rows in its second seed."""
    for name, values in OP.items():
        for seed, op in enumerate(values):
            costs = {"replay_rows": 5, "tokens": 900} if (name, seed) == ("lora", 1) else {}
            made_run(tmp_path / "s", (name, "1", seed), scores(op), costs=costs, strategies=["seqft", "lora"])
    return tmp_path / "s"


def one(*folders: Path, baseline: str | None = None) -> Comparison:
    (comparison,) = compare(folders, baseline)
    return comparison


def test_what_is_there(study: Path) -> None:
    comparison = one(study)
    assert comparison.title == "s"
    assert comparison.strategies == ["seqft", "lora"]  # as in the config, not by path
    assert comparison.baseline == "seqft"
    assert comparison.orders == ["1"]
    assert comparison.seeds("lora", "1") == [0, 1, 2]
    assert (comparison.problems, comparison.unfinished, comparison.apart) == ([], [], "")
    assert comparison.protocol["benchmark"] == "b.B"
    assert "strategy" not in comparison.protocol
    run = comparison.of("lora", "1", 2)
    assert run is not None
    assert run.path == study / "lora" / "1" / "seed-2"
    assert comparison.of("lora", "1", 3) is None
    assert comparison.references == {"seqft": ["Someone, 2020"], "lora": ["Someone, 2020"]}


def test_every_estimate_by_hand(study: Path) -> None:
    """Of a matrix [[.1, .2], [.9, .3], [x − .1, x + .1]] with a probe of .5, .5, .4; x is 0.4, 0.5, 0.6."""
    comparison = one(study)
    expected = {
        "OP": (0.5, 0.1),  # x, and the standard deviation over seeds
        "BWT": (0.5 - 0.1 - 0.9, 0.1),
        "FWT": (0.3 - 0.2, 0.0),
        "forgetting": (0.9 - 0.4, 0.1),
        "learning_accuracy": ((0.9 + 0.6) / 2, 0.05),
        "general_delta": (-0.1, 0.0),
    }
    for measure, (mean, deviation) in expected.items():
        estimate = comparison.estimate("seqft", "1", measure)
        assert estimate.mean == pytest.approx(mean), measure
        assert estimate.half_width == pytest.approx(T2 * deviation / math.sqrt(3), rel=1e-6, abs=1e-12), measure
        assert estimate.count == 3


def test_every_difference_by_hand(study: Path) -> None:
    """Seed by seed lora is 0.02, 0.03 and 0.04 above seqft, though each scatters by 0.1."""
    comparison = one(study)
    difference = comparison.difference("lora", "seqft", "1", "OP")
    assert difference.mean == pytest.approx(0.03)
    assert difference.half_width == pytest.approx(T2 * 0.01 / math.sqrt(3), rel=1e-6)
    assert comparison.difference("seqft", "lora", "1", "learning_accuracy").mean == pytest.approx(-0.015)


def test_every_budget_by_hand(study: Path) -> None:
    """Two items of 6 steps, 600 tokens, 2 replayed rows, 2 + 1 seconds; one seed of three has 900 and 5."""
    comparison = one(study)
    expected = dict(zip(BUDGET, (10, 4, 12, 1200, 4, 4, 2, 5e6, 2), strict=True))
    assert comparison.budget("seqft") == {**expected, "task_id_at_test": False}
    lora = comparison.budget("lora")
    assert (lora["tokens"], lora["replay_rows"]) == ((1200 + 1800 + 1200) / 3, (4 + 10 + 4) / 3)


def test_the_noise_of_the_test_sets_by_hand(study: Path) -> None:
    """OP is the mean of two shares of 100 rows: √(p(1 − p)/100 + q(1 − q)/100) / 2, averaged over seeds."""
    errors = []
    for op in OP["seqft"]:
        variances = [share * (1 - share) / ROWS for share in (op - 0.1, op + 0.1)]
        errors.append(math.sqrt(sum(variances)) / 2)
    assert one(study).test_error("seqft", "1") == pytest.approx(sum(errors) / 3)


def test_several_orders_are_averaged_with_equal_weight_and_without_an_interval(study: Path) -> None:
    made_run(study, ("seqft", "2", 0), scores(0.7), tasks=("b", "a"))
    comparison = one(study)
    assert comparison.orders == ["1", "2"]
    both = comparison.estimate("seqft", None, "OP")
    assert both.mean == pytest.approx((0.5 + 0.7) / 2)  # not over the four runs
    assert math.isnan(both.half_width)
    assert math.isnan(comparison.estimate("lora", None, "OP").mean)  # has not met order 2
    assert comparison.estimate("lora", "2", "OP").count == 0


def test_the_same_strategy_twice_is_within_the_noise(tmp_path: Path) -> None:
    for name in ("lora", "lora_again"):
        for seed, op in enumerate(OP["lora"]):
            made_run(tmp_path / "aa", (name, "1", seed), scores(op))
    told = one(tmp_path).warnings
    assert told == ["lora_again against lora: the same numbers; within the noise, no difference."]


def test_one_pair_of_the_same_numbers_is_no_difference_either(tmp_path: Path) -> None:
    for name in ("lora", "lora_again"):
        made_run(tmp_path / "aa", (name, "1", 0), scores(0.5))
    told = one(tmp_path).warnings
    assert told[0] == "lora_again against lora: the same numbers; within the noise, no difference."
    assert told[1].startswith("Fewer than 3 seeds, so no interval")
    assert told[1].endswith("lora (1), lora_again (1).")


def test_a_difference_that_seeds_or_test_rows_could_make_is_said_to_be_noise(tmp_path: Path) -> None:
    """Differences of OP: −0.1, 0.1, 0.03 scatter around 0; 0.02, 0.03, 0.04 do not, but 100 rows could make them."""
    base, wild, near, far = (0.4, 0.5, 0.6), (0.3, 0.6, 0.63), (0.42, 0.53, 0.64), (0.72, 0.83, 0.88)
    for name, values in {"base": base, "wild": wild, "near": near, "zfar": far}.items():
        for seed, op in enumerate(values):
            made_run(tmp_path / "s", (name, "1", seed), scores(op))
    told = one(tmp_path / "s").warnings
    assert [sentence.partition(":")[0] for sentence in told] == ["near against base", "wild against base"]
    assert "OP +0.030 is within the noise of the finite test sets (± 0.0" in told[0]
    half = T2 * math.sqrt(((-0.11) ** 2 + 0.09**2 + 0.02**2) / 2) / math.sqrt(3)
    assert f"within the noise in OP +0.010 ± {half:.3f}" in told[1]


def test_a_task_that_was_solved_before_is_named(tmp_path: Path) -> None:
    for seed in range(3):
        made_run(tmp_path / "s", ("lora", "1", seed), scores(0.5, untouched=0.97))
    assert one(tmp_path).warnings == ["The untouched model already solves a (0.97): there is nothing to forget there."]


def test_the_baseline_is_chosen_by_name(study: Path) -> None:
    assert one(study, baseline="lora").baseline == "lora"
    with pytest.raises(ConfigError, match=r"baseline: no finished run is of a strategy 'lroa'\. Did you mean 'lora'\?"):
        compare([study], "lroa")


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
def test_what_cannot_be_compared_is_kept_apart(study: Path, changes: dict[str, object], why: str) -> None:
    made_run(study.parent / "t", ("lora", "1", 0), scores(0.9), **changes)  # type: ignore[arg-type]
    first, second = compare([study, study.parent / "t"])
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
        made_run(tmp_path / "s", ("lora", "1", seed), scores(0.5), scorers=stated[words])
    _, second = compare([tmp_path])
    assert "scorer of a: RougeL(words='scripts') here, RougeL(words='spaces') there" in second.apart
    made_run(tmp_path / "s", ("lora", "1", 2), scores(0.5))
    assert len(one(tmp_path).runs) == 3


def test_what_an_earlier_version_did_not_record_is_its_default(study: Path) -> None:
    text = {"truncation": "left", "template": "none", "max_prompt_length": None, "tokenization": "apart"}
    made_run(study.parent / "t", ("lora", "1", 7), scores(0.9), text=text, carry_optimizer=False)
    assert len(one(study, study.parent / "t").runs) == 7


def test_seeds_with_models_of_their_own_stand_in_one_table(tmp_path: Path) -> None:
    for seed in range(3):
        made_run(tmp_path / "s", ("lora", "1", seed), scores(0.5), backbone=f"model-{seed}", data=f"data-{seed}")
    assert one(tmp_path).seeds("lora", "1") == [0, 1, 2]


OTHER = {"other config": {"config": "name: made\nkey: 1\n"}, "other code": {"inputs": {"code": "2"}}}


@pytest.mark.parametrize("changes", OTHER.values(), ids=OTHER)
def test_one_name_made_otherwise_in_two_studies_is_told_apart_and_never_averaged(
    study: Path, changes: dict[str, Any]
) -> None:
    made_run(study.parent / "t", ("lora", "1", 7), scores(0.9), **changes)
    comparison = one(study, study.parent / "t")
    assert comparison.strategies == ["seqft", "lora (s)", "lora (t)"]
    assert comparison.seeds("lora (s)", "1") == [0, 1, 2]
    assert comparison.estimate("lora (t)", "1", "OP").mean == pytest.approx(0.9)
    assert {row["strategy"] for row in comparison.rows} == {"seqft", "lora (s)", "lora (t)"}
    assert one(study, study.parent / "t", baseline="lora").baseline == "lora (s)"  # the first of the name
    assert one(study, study.parent / "t", baseline="lora (t)").baseline == "lora (t)"


def test_seeds_in_folders_of_their_own_are_one_row(study: Path) -> None:
    """As made by a job for each seed; 0.42, 0.53, 0.64 and 0.9."""
    made_run(study.parent / "t", ("lora", "1", 7), scores(0.9))
    comparison = one(study, study.parent / "t", baseline="lora")
    assert (comparison.strategies, comparison.baseline) == (["seqft", "lora"], "lora")
    assert comparison.seeds("lora", "1") == [0, 1, 2, 7]
    assert comparison.estimate("lora", "1", "OP").mean == pytest.approx((0.42 + 0.53 + 0.64 + 0.9) / 4)
    assert comparison.own_settings["lora"] == "lora; s, t with the same settings and other seeds"


def test_the_same_seed_in_two_studies_is_no_further_seed(study: Path) -> None:
    made_run(study.parent / "t", ("lora", "1", 2), scores(0.9))
    comparison = one(study, study.parent / "t")
    assert comparison.strategies == ["seqft", "lora (s)", "lora (t)"]
    assert comparison.estimate("lora (s)", "1", "OP").mean == pytest.approx(0.53)


def test_runs_of_one_folder_that_were_made_otherwise_are_not_averaged(tmp_path: Path) -> None:
    for seed, name in enumerate(("first", "second")):
        config = f"name: made\nkey: {seed}\n"
        made_run(tmp_path / "s", ("lora", "1", seed), scores(0.5 + seed / 10), config=config).path.rename(
            tmp_path / name
        )
    assert one(tmp_path).strategies == [f"lora ({tmp_path.name})", "lora (second)"]


def test_a_folder_that_is_given_twice_counts_once_and_is_said(study: Path) -> None:
    comparison = one(study, study / "lora", study)
    assert len(comparison.runs) == 6
    assert comparison.problems == [
        f"{study / 'lora'}: 3 of its 3 runs lie in a folder that was given before: counted once.",
        f"{study}: 6 of its 6 runs lie in a folder that was given before: counted once.",
    ]


@pytest.mark.parametrize("journal", [True, False])
def test_a_copy_of_a_study_counts_once_and_is_said(study: Path, journal: bool) -> None:
    copy = study.parent / "copy"
    shutil.copytree(study, copy)
    made_run(copy, ("lora", "1", 3), scores(0.75))
    if not journal:
        for file in copy.rglob("journal.jsonl"):
            file.unlink()
    comparison = one(study, copy)
    assert comparison.strategies == ["seqft", "lora"]
    assert comparison.seeds("lora", "1") == [0, 1, 2, 3]
    first = Path("lora") / "1" / "seed-0"
    assert comparison.problems[0] == (
        f"{copy}: 6 of its 7 runs are copies of runs that were found before, "
        f"such as {copy / first} of {study / first}: counted once."
    )
    assert one(study / first, copy / first).problems[0] == f"{copy / first} is a copy of {study / first}: counted once."


def test_two_runs_of_one_cell_are_not_averaged(tmp_path: Path) -> None:
    run = made_run(tmp_path / "s", ("lora", "1", 0), scores(0.5))
    run.path.rename(tmp_path / "first")
    run = made_run(tmp_path / "s", ("lora", "1", 0), scores(0.9))
    run.path.rename(tmp_path / "second")
    comparison = one(tmp_path)
    assert comparison.estimate("lora", "1", "OP").mean == pytest.approx(0.5)
    assert "are both lora, order 1, seed 0: the second is left out" in comparison.problems[0]


def test_unfinished_runs_are_told_with_how_far_they_are(study: Path) -> None:
    made_run(study, ("lora", "1", 3), scores(0.9)[:2], ended=False)
    comparison = one(study)
    assert [(run.path.name, far) for run, far in comparison.unfinished] == [("seed-3", "1 of 2 tasks")]
    assert comparison.seeds("lora", "1") == [0, 1, 2]


def test_a_study_without_a_finished_run_is_reported_all_the_same(tmp_path: Path) -> None:
    made_run(tmp_path / "s", ("lora", "1", 0), scores(0.9)[:1], ended=False)
    comparison = one(tmp_path)
    assert [far for _, far in comparison.unfinished] == ["0 of 2 tasks"]
    assert (comparison.runs, comparison.strategies, comparison.warnings, comparison.baseline) == ([], [], [], "")


def test_a_torn_table_beside_a_journal_is_told_and_changes_no_number(study: Path) -> None:
    file = study / "lora" / "1" / "seed-0" / "scores.csv"
    file.write_text(file.read_text()[:-20])
    comparison = one(study)
    assert comparison.estimate("lora", "1", "OP").mean == pytest.approx(0.53)
    assert comparison.problems == [
        f"{file} is torn, missing or was changed: the journal's numbers are shown. `lightning run` mends it."
    ]


@pytest.mark.parametrize("name", ["scores.csv", "journal.jsonl", "environment.json"])
def test_what_cannot_be_read_is_a_problem_and_no_crash(study: Path, name: str) -> None:
    path = study / "lora" / "1" / "seed-0"
    if name == "journal.jsonl":
        lines = (path / name).read_text().splitlines()
        (path / name).write_text("\n".join([*lines[:3], "damaged", *lines[4:], ""]))
    else:
        (path / "journal.jsonl").unlink()
        (path / name).write_text((path / name).read_text()[:-15])
    comparison = one(study)
    assert comparison.seeds("lora", "1") == [1, 2]
    assert len(comparison.problems) == 1
    assert str(path) in comparison.problems[0]


def test_a_run_without_predictions_is_told(study: Path) -> None:
    run = made_run(study, ("other", "1", 0), scores(0.5), answers=False)
    (study / "lora" / "1" / "seed-0" / "predictions" / "1-a.jsonl").unlink()
    lora, other = one(study).problems
    assert lora.startswith(f"{study / 'lora' / '1' / 'seed-0'}: 1 of 9 files of predictions are missing")
    assert other == f"{run.path} has no predictions: what was answered cannot be shown."


def test_folders_without_runs_are_refused_by_name(study: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.yaml").write_text("a: 1\n")
    with pytest.raises(ConfigError) as refused:
        compare([study, tmp_path / "empty", foreign, tmp_path / "absent"])
    assert [problem.partition(":")[0] for problem in refused.value.problems] == [
        str(tmp_path / name) for name in ("empty", "foreign", "absent")
    ]
    assert "there is no run. Give a study's folder" in refused.value.problems[0]
    (foreign / "environment.json").write_text(json.dumps({"python": 3}))
    with pytest.raises(ConfigError, match="foreign: nothing was measured there, or it is no run of this workbench"):
        compare([foreign])


def test_a_folder_without_a_journal_is_read_from_its_files(study: Path) -> None:
    path = study / "lora" / "1" / "seed-0"
    (path / "journal.jsonl").unlink()
    assert RunFolder(path).finished
    assert one(study).estimate("lora", "1", "OP").mean == pytest.approx(0.53)
