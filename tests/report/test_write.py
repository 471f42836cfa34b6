"""Writing a report: which runs, where to, and which files."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.run_folders import scores, write_many, write_run, write_three_tasks
from helpers.studies import ROOT

from workbench.cli import app, guarded
from workbench.errors import ConfigError
from workbench.report import compare, write_report
from workbench.report.write import SUMMARY, destination, find_runs, report_trouble
from workbench.runtime.files import read_csv

SECONDS = 30
"""Of one core, for a report of a thousand runs."""
HEADER = (
    "strategy,order,seed,OP,BWT,FWT,forgetting,learning_accuracy,general_delta,trainable_parameters,"
    "added_parameters,train_seconds,eval_seconds,peak_memory_bytes,train_tokens_per_second,decoded_tokens_per_second,"
    "steps,tokens,replay_rows,disk_bytes,task_id_at_test,OP_error,table"
)


def test_finished_runs_are_found_by_path(tmp_path: Path) -> None:
    for place in ("seqft/1/seed-0", "lora/1/seed-1", "lora/1/seed-0"):
        write_three_tasks(tmp_path / place)
    write_three_tasks(tmp_path / "lora/1/seed-2", ended=False)
    (tmp_path / ".untouched").mkdir()
    found = [run.path.relative_to(tmp_path).as_posix() for run in find_runs(tmp_path)]
    assert found == ["lora/1/seed-0", "lora/1/seed-1", "seqft/1/seed-0"]
    assert [run.path for run in find_runs(tmp_path / "lora/1/seed-1")] == [tmp_path / "lora/1/seed-1"]


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run\\. Give a study"):
        find_runs(tmp_path)
    with pytest.raises(ConfigError, match="absent: there is no run"):
        find_runs(tmp_path / "absent")
    write_three_tasks(tmp_path / "run", ended=False)
    with pytest.raises(ConfigError, match="there is 1 run, and it is not finished"):
        find_runs(tmp_path)
    write_three_tasks(tmp_path / "other", ended=False)
    with pytest.raises(ConfigError, match="there are 2 runs, none of them finished"):
        find_runs(tmp_path)


def test_the_summary_has_the_columns_that_others_rely_on(tmp_path: Path) -> None:
    write_three_tasks(tmp_path / "one", seed=0)
    write_three_tasks(tmp_path / "two", seed=1)
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


def test_the_command_rebuilds_the_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_three_tasks(tmp_path / "one", seed=0)
    write_three_tasks(tmp_path / "two", seed=1)
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


def test_a_report_of_two_studies_says_what_is_apart_unfinished_and_noise(
    two_orders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = two_orders.parent / "t"
    write_run(other, ("lora", "1", 0), scores(0.9), decoding="sampled")
    write_run(two_orders, ("lora", "2", 0), scores(0.9)[:2], ended=False)
    (two_orders / "report.html").write_text("its own")
    assert guarded(lambda: app(["report", str(two_orders), str(other), "baseline=lora"], standalone_mode=False)) == 0
    text = capsys.readouterr().out
    out = two_orders.parent / "s-and-t"
    assert f"Results: {out} " in text
    assert "Paired difference to lora (per seed)" in text
    assert "! t: kept apart from the first table (decoding: sampled here, greedy there)." in text
    assert f"! {two_orders / 'lora' / '2' / 'seed-0'} is not finished: 1 of 2 tasks." in text
    rows = read_csv(out / "summary.csv")
    assert [(row["strategy"], row["order"], row["seed"], row["table"]) for row in rows] == [
        *(("seqft", "1", seed, "1") for seed in "012"),
        ("seqft", "2", "0", "1"),
        *(("lora", "1", seed, "1") for seed in "012"),
        ("lora", "1", "0", "2"),
    ]
    assert (out / "table.tex").read_text().count(r"\begin{table}") == 2
    assert "note = {Someone, 2020}" in (out / "references.bib").read_text()
    assert (two_orders / "report.html").read_text() == "its own"
    assert sorted(path.name for path in two_orders.iterdir()) == ["lora", "report.html", "seqft"]
    assert [path.name for path in other.iterdir()] == ["lora"]


def test_where_a_report_goes(two_orders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = two_orders.parent
    write_run(base / "t" / "u", ("lora", "1", 0), scores(0.9))
    assert destination([two_orders]) == two_orders
    assert destination([two_orders, two_orders / "lora", base / "s"]) == two_orders
    assert destination([base / "s", base / "t" / "u"]) == base / "s-and-t-u"
    assert destination([two_orders], str(base / "new")) == base / "new"
    assert destination([two_orders], str(two_orders)) == two_orders
    assert destination([two_orders, base / "t"], str(base / "new" / "er")) == base / "new" / "er"
    monkeypatch.chdir(base)
    assert destination([Path("s"), Path("t")]) == Path("s-and-t")
    assert destination([Path("s"), base / "t"]) == base / "s-and-t"


def test_a_study_on_its_way_gets_a_partial_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "s", ("lora", "1", 0), scores(0.9)[:2], ended=False)
    assert guarded(lambda: app(["report", str(tmp_path / "s")], standalone_mode=False)) == 0
    text = capsys.readouterr().out
    assert "seed-0 is not finished: 1 of 2 tasks." in text
    assert "is not finished: 1 of 2 tasks" in (tmp_path / "s" / "report.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["lora", "report.html"]


def test_a_study_ends_well_where_its_report_cannot_be_written(tmp_path: Path) -> None:
    write_three_tasks(tmp_path / "one")
    found = compare([tmp_path])
    assert report_trouble(tmp_path, found) == ""
    (tmp_path / "figures").rename(tmp_path / "old")
    (tmp_path / "figures").write_text("a file where a folder has to be")
    message = report_trouble(tmp_path, found)
    assert message.startswith("The report was not written (FileExistsError: ")
    assert message.endswith(f"`lightning report {tmp_path}` tries again.")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["baseline=sqft"], "baseline: no finished run is of a strategy 'sqft'. Did you mean 'seqft'?"),
        (["base=seqft"], "base: a report has no such key. Did you mean 'baseline'?"),
        (["oot=elsewhere"], "oot: a report has no such key. Did you mean 'out'?"),
    ],
)
def test_a_wrong_argument_is_refused(
    two_orders: Path, arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(lambda: app(["report", str(two_orders), *arguments], standalone_mode=False)) == 2
    assert capsys.readouterr().err.strip() == f"error: {why}"
    assert not (two_orders / "summary.csv").exists()


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(10, 10, 10), (100, 1, 10), (2, 100, 5)], ids=str)
def test_a_thousand_runs_are_reported_in_thirty_seconds(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    """Seconds of one core: whatever else runs on the machine is left out."""
    folder = write_many(tmp_path / "made", *shape)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "workbench", "report", str(folder)], env=surroundings, capture_output=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr.decode()
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime <= SECONDS
    assert (folder / "report.html").stat().st_size < 8_000_000
