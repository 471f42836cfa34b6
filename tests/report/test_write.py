"""Finished folders to tables: found, averaged and written from the folders alone."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from helpers.run_folders import made_run, scores
from helpers.tables import printed
from helpers.three_tasks import fill
from rich.console import Console

from workbench.cli import app, guarded
from workbench.errors import ConfigError
from workbench.formatting import score_table
from workbench.report import Comparison, compare, write_report
from workbench.report.terminal import (
    by_domain,
    comparison_table,
    cost_table,
    difference_table,
    domain_table,
    matrix_table,
    tables,
)
from workbench.report.write import SUMMARY, destination, find_runs, report_trouble
from workbench.results import RunFolder
from workbench.runtime.files import read_csv

HEADER = (
    "strategy,order,seed,OP,BWT,FWT,forgetting,learning_accuracy,general_delta,trainable_parameters,"
    "added_parameters,train_seconds,eval_seconds,peak_memory_bytes,train_tokens_per_second,decoded_tokens_per_second,"
    "steps,tokens,replay_rows,disk_bytes,task_id_at_test,OP_error,table"
)


def test_finished_runs_are_found_by_path(tmp_path: Path) -> None:
    for place in ("seqft/1/seed-0", "lora/1/seed-1", "lora/1/seed-0"):
        fill(tmp_path / place)
    fill(tmp_path / "lora/1/seed-2", ended=False)
    (tmp_path / "untouched").mkdir()
    found = [run.path.relative_to(tmp_path).as_posix() for run in find_runs(tmp_path)]
    assert found == ["lora/1/seed-0", "lora/1/seed-1", "seqft/1/seed-0"]
    assert [run.path for run in find_runs(tmp_path / "lora/1/seed-1")] == [tmp_path / "lora/1/seed-1"]


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run\\. Give a study"):
        find_runs(tmp_path)
    with pytest.raises(ConfigError, match="absent: there is no run"):
        find_runs(tmp_path / "absent")
    fill(tmp_path / "run", ended=False)
    with pytest.raises(ConfigError, match="there is 1 run, and it is not finished"):
        find_runs(tmp_path)
    fill(tmp_path / "other", ended=False)
    with pytest.raises(ConfigError, match="there are 2 runs, none of them finished"):
        find_runs(tmp_path)


def test_the_summary_has_the_columns_that_others_rely_on(tmp_path: Path) -> None:
    fill(tmp_path / "one", seed=0)
    fill(tmp_path / "two", seed=1)
    (one,) = compare([tmp_path])
    files = write_report(tmp_path, [one])
    rows, file = one.rows, tmp_path / "summary.csv"
    assert files[:3] == [file, tmp_path / "table.tex", tmp_path / "references.bib"]
    assert {path.parent.name for path in files[3:-1]} == {"figures"}
    assert files[-1] == tmp_path / "report.html"
    assert file.read_text().splitlines()[0] == HEADER == ",".join(SUMMARY)
    back = read_csv(file)
    assert [row["seed"] for row in back] == ["0", "1"]
    for row, read in zip(rows, back, strict=True):
        assert float(read["OP"]) == row["OP"] == pytest.approx(0.6)
        assert read["peak_memory_bytes"] == "nan"


def comparison(folder: Path) -> Comparison:
    (made,) = compare([folder])
    return made


def flat(table: object, width: int = 240) -> str:
    """What is printed, without line ends."""
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_a_strategy_is_averaged_over_its_runs(tmp_path: Path) -> None:
    long, short = {"train_seconds": 30.0, "eval_seconds": 0.0}, {"train_seconds": 7.5, "eval_seconds": 7.5}
    for seed, (op, costs) in enumerate(((0.5, long), (0.8, short))):
        made_run(tmp_path, ("lora", "1", seed), scores(op), costs={**costs, "added_parameters": 1000})
    made_run(tmp_path, ("seqft", "1", 0), scores(0.25))
    lora, seqft = printed(comparison_table(comparison(tmp_path)))
    assert lora[:2] == ["lora (mean of 2)", "0.650"]
    assert lora[-3:] == ["10", "1,000", "45 s"]
    assert seqft[:2] == ["seqft", "0.250"]


@pytest.fixture
def three_seeds(tmp_path: Path) -> Path:
    """Two strategies in two orders, three seeds but in seqft's second order."""
    for name, values in {"seqft": (0.4, 0.5, 0.6), "lora": (0.42, 0.53, 0.64)}.items():
        for seed, op in enumerate(values):
            made_run(tmp_path / "s", (name, "1", seed), scores(op), strategies=["seqft", "lora"])
    made_run(tmp_path / "s", ("seqft", "2", 0), scores(0.7), strategies=["seqft", "lora"])
    return tmp_path / "s"


def test_intervals_orders_and_differences(three_seeds: Path) -> None:
    """t(2) = 4.302653: of 0.4, 0.5, 0.6 ± 0.248, of 0.42, 0.53, 0.64 ± 0.273, of their differences ± 0.025."""
    one = comparison(three_seeds)
    cells = [row[:2] for row in printed(comparison_table(one, 200))]
    assert cells == [
        ["seqft, order 1 (mean of 3)", "0.500 ± 0.248"],
        ["seqft, order 2", "0.700"],
        ["seqft, mean of 2 orders", "0.600"],
        ["lora, order 1 (mean of 3)", "0.530 ± 0.273"],
        ["lora, mean of 2 orders", "–"],
    ]
    narrow = flat(comparison_table(one, 80), 80)
    assert "±0.248" in narrow
    assert max(map(len, narrow.splitlines())) <= 80
    differences = printed(difference_table(one, 200))
    assert [differences[0][place] for place in (0, 1, -1)] == ["lora, order 1", "+0.030 ± 0.025", "3"]
    assert [differences[1][place] for place in (0, 1)] == ["lora, mean of 2 orders", "–"]
    text = flat(comparison_table(one, 200))
    assert "±: 95 % t interval over seeds" in text
    assert "seqft, order 2 0.062; lora, order 1 " in text  # 1.96 · √(0.6 · 0.4 / 100 + 0.8 · 0.2 / 100) / 2 = 0.062


def test_what_each_strategy_costs_is_averaged_over_its_runs(tmp_path: Path) -> None:
    one = {"train_seconds": 10.0, "tokens": 10_000, "replay_rows": 3, "decoded_tokens": 100}
    two = {"train_seconds": 30.0, "tokens": 60_030, "replay_rows": 4, "decoded_tokens": 150}
    for seed, costs in enumerate((one, two)):
        made_run(tmp_path, ("lora", "1", seed), scores(0.5), costs=costs)
    unknown = made_run(tmp_path, ("seqft", "1", 0), scores(0.5))
    unknown.write_environment(unknown.environment() | {"peak_memory_bytes": None})
    lines = flat(cost_table(comparison(tmp_path)), 80).splitlines()
    lora, seqft = (line.split() for line in lines if line.startswith(("lora", "seqft")))
    # 20,000 and 120,060 tokens; 1,000 and 2,001 a second; 100 and 150 decoded in half a second; 5 MB; 2 bytes
    assert lora == ["lora", "10", "4", "12", "70K", "7", "1500", "250", "5", "0", "40", "2"]
    assert seqft == ["seqft", "10", "4", "12", "1.2K", "4", "300", "100", "–", "0", "4", "2"]


def test_a_method_that_is_told_the_task_is_marked(tmp_path: Path) -> None:
    made_run(tmp_path, ("oracle", "1", 0), scores(0.5), task_id_at_test=True, strategies=["oracle", "lora"])
    made_run(tmp_path, ("lora", "1", 0), scores(0.5))
    table = comparison_table(comparison(tmp_path))
    assert [cells[0] for cells in printed(table)] == ["oracle †", "lora"]
    assert "† is told which task" in str(table.caption)


def test_one_unmeasured_value_makes_the_mean_unmeasured(tmp_path: Path) -> None:
    made_run(tmp_path, ("lora", "1", 0), scores(0.5))
    made_run(tmp_path, ("lora", "1", 1), scores(math.nan))
    assert printed(comparison_table(comparison(tmp_path)))[0][1] == "–"


def test_a_matrix_as_it_is_printed(tmp_path: Path) -> None:
    cells = printed(matrix_table(fill(tmp_path), 120))
    assert cells[0] == ["0", "0.10", "0.20", "0.10", "0.50"]
    assert cells[3] == ["3", "0.50", "0.60", "0.70", "0.30"]


def test_the_commonest_answer_stands_above_a_matrix(tmp_path: Path) -> None:
    run = fill(tmp_path)
    first = run.environment()["protocol"]["order"][0]
    run.add_to_environment("protocol", {"majority": {first: ["A", 0.375]}})
    table = matrix_table(run, 120)
    assert printed(table)[0] == ["majority", "0.38", "–", "–", "–"]
    assert "commonest answer" in str(table.caption)


def altered(run: RunFolder, cell: str, value: str) -> RunFolder:
    """The run with another value in one cell of its scores, given as "after,on,metric,"."""
    file = run.path / "scores.csv"
    text, count = re.subn(rf"(?m)^{cell}[^,]+", f"{cell}{value}", file.read_text(encoding="utf-8"))
    assert count == 1
    file.write_text(text, encoding="utf-8")
    (run.path / "journal.jsonl").unlink()  # which would win
    return RunFolder(run.path)


def test_domain_by_domain(tmp_path: Path) -> None:
    """Learnt is the diagonal and the end the last row, averaged over two seeds that differ in one cell."""
    runs = [fill(tmp_path / "one", seed=0), fill(tmp_path / "two", seed=1)]
    runs[1] = altered(runs[1], "3,a,accuracy,", "0.1")  # 0.5 in the other
    learnt = [f"{value:.2f}" for value in runs[0].matrix()[1:].diagonal()]
    rows = {cells[0]: cells[1:] for cells in printed(domain_table(runs, 120))}
    assert list(rows) == ["untouched", "lora, learnt", "lora, end"]
    assert rows["untouched"] == ["0.10", "0.20", "0.10", "0.50"]
    assert rows["lora, learnt"] == [*learnt, "–"]
    assert rows["lora, end"] == ["0.30", "0.60", "0.70", "0.30"]


def test_what_is_learnt_together_has_no_turn_and_labels_have_a_floor(tmp_path: Path) -> None:
    run = fill(tmp_path)
    run = altered(run, "1,a,accuracy,", "nan")
    run.add_to_environment("protocol", {"majority": {"b": ["A", 0.375]}, "scored_on": "validation"})
    table = domain_table([run], 120)
    assert [cells[0] for cells in printed(table)] == ["untouched", "lora, end", "majority"]
    assert printed(table)[-1] == ["majority", "–", "0.38", "–", "–"]
    assert str(table.caption).startswith("scored on validation rows; learnt: ")


def test_the_command_rebuilds_the_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "one", seed=0)
    fill(tmp_path / "two", seed=1)
    assert guarded(lambda: app(["report", str(tmp_path)], standalone_mode=False)) == 0
    text = capsys.readouterr().out
    assert "lora (mean of 2)" in text
    assert "lora, order 2, seed 0" in text
    assert re.search(r"lora +15 +10 +9 +180 +3 +40 +120 +– +0 +4 +2\n", text)
    assert "mini; b.B, 3 tasks of 8 training rows; long prompts cut: left; template none; decoding greedy" in text
    assert (tmp_path / "summary.csv").is_file()


def test_the_command_refuses_a_folder_without_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: app(["report", str(tmp_path)], standalone_mode=False)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {tmp_path}: there is no run.")
    assert list(tmp_path.iterdir()) == []


def test_tables_fit_a_terminal_of_eighty_characters(tmp_path: Path) -> None:
    for name in ("block_expansion", "lora"):
        for seed in range(3):
            large = {"trainable_parameters": 6_738_415_616, "tokens": 1_234_567_890, "replay_rows": 123_456}
            made_run(tmp_path / "s", (name, "1", seed), scores(0.5 + seed / 10), costs=large)
    one = comparison(tmp_path / "s")
    names = [f"some_long_task_{index}" for index in range(13)]
    matrix = score_table("title", names, 80)
    matrix.add_row("8", *["0.12"] * 13)
    shown = (*tables(one, 80), matrix, matrix_table(fill(tmp_path / "run"), 80))
    text = "".join(flat(table, 80) for table in shown)
    assert "…" not in text
    assert "6.74B" in text
    assert " ".join(["8", *["0.12"] * 13]) in text


def test_a_report_of_two_studies_says_what_is_apart_unfinished_and_noise(
    three_seeds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = three_seeds.parent / "t"
    made_run(other, ("lora", "1", 0), scores(0.9), decoding="sampled")
    made_run(three_seeds, ("lora", "2", 0), scores(0.9)[:2], ended=False)
    (three_seeds / "report.html").write_text("its own")
    assert guarded(lambda: app(["report", str(three_seeds), str(other), "baseline=lora"], standalone_mode=False)) == 0
    text = capsys.readouterr().out
    out = three_seeds.parent / "s-and-t"
    assert f"Results: {out} " in text
    assert "less lora, seed by seed" in text
    assert "! t: kept apart from the first table (decoding: sampled here, greedy there)." in text
    assert f"! {three_seeds / 'lora' / '2' / 'seed-0'} is not finished: 1 of 2 tasks." in text
    rows = read_csv(out / "summary.csv")
    assert [(row["strategy"], row["order"], row["seed"], row["table"]) for row in rows] == [
        *(("seqft", "1", seed, "1") for seed in "012"),
        ("seqft", "2", "0", "1"),
        *(("lora", "1", seed, "1") for seed in "012"),
        ("lora", "1", "0", "2"),
    ]
    assert (out / "table.tex").read_text().count(r"\begin{table}") == 2
    assert "note = {Someone, 2020}" in (out / "references.bib").read_text()
    assert (three_seeds / "report.html").read_text() == "its own"
    assert sorted(path.name for path in three_seeds.iterdir()) == ["lora", "report.html", "seqft"]
    assert [path.name for path in other.iterdir()] == ["lora"]


def test_where_a_report_goes(three_seeds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = three_seeds.parent
    made_run(base / "t" / "u", ("lora", "1", 0), scores(0.9))
    assert destination([three_seeds]) == three_seeds
    assert destination([three_seeds, three_seeds / "lora", base / "s"]) == three_seeds
    assert destination([base / "s", base / "t" / "u"]) == base / "s-and-t-u"
    assert destination([three_seeds], str(base / "new")) == base / "new"
    assert destination([three_seeds], str(three_seeds)) == three_seeds
    assert destination([three_seeds, base / "t"], str(base / "new" / "er")) == base / "new" / "er"
    monkeypatch.chdir(base)
    assert destination([Path("s"), Path("t")]) == Path("s-and-t")
    assert destination([Path("s"), base / "t"]) == base / "s-and-t"


def test_runs_of_the_same_name_stand_apart_domain_by_domain(three_seeds: Path) -> None:
    """`lora` of t ends at 0.9: it is neither shown nor averaged as that of s."""
    made_run(three_seeds.parent / "t", ("lora", "1", 0), scores(0.9), config="name: made\nkey: 1\n")
    found = compare([three_seeds, three_seeds.parent / "t"])
    *matrices, means = by_domain(found, 200)
    assert [str(getattr(table, "title", "")) for table in matrices][-1] == "lora (t), order 1, seed 0"
    rows = {cells[0]: cells[1:] for cells in printed(means)}
    assert rows["lora (s), end"][:2] == ["0.43", "0.63"]
    assert rows["lora (t), end"][:2] == ["0.80", "1.00"]


def test_a_study_on_its_way_gets_a_partial_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_run(tmp_path / "s", ("lora", "1", 0), scores(0.9)[:2], ended=False)
    assert guarded(lambda: app(["report", str(tmp_path / "s")], standalone_mode=False)) == 0
    text = capsys.readouterr().out
    assert "seed-0 is not finished: 1 of 2 tasks." in text
    assert "is not finished: 1 of 2 tasks" in (tmp_path / "s" / "report.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["lora", "report.html"]


def test_a_study_ends_well_where_its_report_cannot_be_written(tmp_path: Path) -> None:
    fill(tmp_path / "one")
    found = compare([tmp_path])
    assert report_trouble(tmp_path, found) == ""
    (tmp_path / "figures").rename(tmp_path / "old")
    (tmp_path / "figures").write_text("a file where a folder has to be")
    told = report_trouble(tmp_path, found)
    assert told.startswith("The report was not written (FileExistsError: ")
    assert told.endswith(f"`lightning report {tmp_path}` tries again.")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["baseline=sqft"], "baseline: no finished run is of a strategy 'sqft'. Did you mean 'seqft'?"),
        (["base=seqft"], "base: a report has no such key. Did you mean 'baseline'?"),
        (["oot=elsewhere"], "oot: a report has no such key. Did you mean 'out'?"),
    ],
)
def test_a_wrong_argument_is_told(
    three_seeds: Path, arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(lambda: app(["report", str(three_seeds), *arguments], standalone_mode=False)) == 2
    assert capsys.readouterr().err.strip() == f"error: {why}"
    assert not (three_seeds / "summary.csv").exists()
