"""What a run was made with: its budget and the keys in which rows differ, from configs as runs write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.run_folders import scores, write_run
from helpers.studies import study

from workbench.cli import app, guarded
from workbench.config import dump, parse
from workbench.report import Comparison, compare
from workbench.report.page import report_page
from workbench.report.settings import ROWS_A_STEP, Settings, settings_of
from workbench.report.terminal import settings_lines
from workbench.results import RunFolder
from workbench.runtime.files import read_csv
from workbench.study import Study

SEQFT, LORA = {"class_path": "strategies.SeqFT"}, {"class_path": "strategies.LoRA", "init_args": {"rank": 2}}
ENTRIES = {"seqft": SEQFT, "lora": LORA, "joint": {"class_path": "strategies.Joint"}}


def config(name: str, **changes: Any) -> str:
    """The config of a run of a strategy on the tasks a and b, as a run writes it; `own` changes its entry."""
    entry = {**ENTRIES[name.partition(" ")[0]], **changes.pop("own", {})}
    raw = study(Path("model"), Path("tasks"), Path("runs"), strategies={name: entry}, **changes)
    return dump(parse(raw))


def made(study: Path, name: str, op: float = 0.5, seed: int = 0, costs: Any = None, **changes: Any) -> RunFolder:
    """A run of a study that says what it was made with."""
    stated = {"strategies": ["seqft", "lora", "joint"]}
    return write_run(study, (name, "1", seed), scores(op), config=config(name, **changes), costs=costs, **stated)


def trainer(**arguments: Any) -> dict[str, Any]:
    return {"max_epochs": 1, "accelerator": "cpu", **arguments}


def settings(tmp_path: Path, name: str = "seqft", **changes: Any) -> Settings:
    return settings_of(made(tmp_path / str(len(list(tmp_path.iterdir()))), name, **changes))


def budget(tmp_path: Path, **changes: Any) -> dict[str, str]:
    return dict(settings(tmp_path, **changes).budget)


def test_the_budget_is_what_each_task_is_trained(tmp_path: Path) -> None:
    """Four rows in a batch; what tasks agree in stands once, however it was said."""
    assert budget(tmp_path) == {"trainer.max_epochs": "1", ROWS_A_STEP: "4"}
    assert budget(tmp_path, per_task={"a": {"max_epochs": 3}}) == {
        "trainer.max_epochs": "1",
        "per_task.a.trainer.max_epochs": "3",
        ROWS_A_STEP: "4",
    }
    same = budget(tmp_path, trainer=trainer(max_epochs=3))
    assert budget(tmp_path, per_task={"a": {"max_epochs": 3}, "b": {"max_epochs": 3}}) == same
    assert budget(tmp_path, own={"trainer": {"max_epochs": 3}}) == same
    smaller = {"batch_size": 2, "max_length": 64}
    assert budget(tmp_path, data=smaller, trainer=trainer(accumulate_grad_batches=2)) == budget(tmp_path)
    assert budget(tmp_path, data=smaller)[ROWS_A_STEP] == "2"
    assert budget(tmp_path, trainer=trainer(max_steps=-1, devices=1)) == budget(tmp_path)
    assert budget(tmp_path, data={"batch_tokens": 99})["data.batch_tokens"] == "99"


def test_keys_that_only_observe_are_left_out_and_all_others_are_there(tmp_path: Path) -> None:
    """Also those that say what is the case anyway."""
    plain = settings(tmp_path)
    watched = {
        "trainer": trainer(logger=True, enable_progress_bar=True, log_every_n_steps=7, devices=1),
        "save_every_n_steps": 3,
        "save_every_seconds": 1.0,
        "score_every_n_steps": 2,
        "existing": "replace",
        "seeds": [7],
        "data": {"batch_size": 4, "max_length": 64, "num_workers": 2},
        "executor": {"class_path": "workbench.executors.Workers", "init_args": {"count": 2}},
    }
    assert settings(tmp_path, **watched) == plain
    assert plain.method == "strategies.SeqFT"
    assert settings(tmp_path, "lora").method == "strategies.LoRA(rank=2)"
    for changes, key, value in (
        ({"optimizer": {"init_args": {"lr": 0.5}}}, "optimizer.init_args.lr", "0.5"),
        ({"trainer": trainer(gradient_clip_val=1.0)}, "trainer.gradient_clip_val", "1.0"),
        ({"backbone": {"path": "model", "dtype": "bfloat16"}}, "backbone.dtype", "bfloat16"),
        ({"per_task": {"b": {"optimizer": {"init_args": {"lr": 0.5}}}}}, "per_task.b.optimizer.init_args.lr", "0.5"),
        ({"per_task": {"pretraining": {"trainer": {"max_steps": 9}}}}, "per_task.pretraining.trainer.max_steps", "9"),
        ({"data": {"batch_size": 4, "max_length": 64, "eval_batch_size": 2}}, "data.eval_batch_size", "2"),
    ):
        found = settings(tmp_path, **changes)
        assert {name: text for name, text in found.keys.items() if plain.keys.get(name) != text} == {key: value}
        assert found.budget == plain.budget


def compared(*folders: Path, **changes: Any) -> list[Comparison]:
    return compare(folders, **changes)


def test_other_rates_stand_in_one_table_and_are_named(tmp_path: Path) -> None:
    made(tmp_path / "A", "seqft")
    made(tmp_path / "A", "lora", own={"optimizer": {"init_args": {"lr": 0.02}}})
    made(tmp_path / "B", "seqft", optimizer={"init_args": {"lr": 0.003}}, trainer=trainer(gradient_clip_val=1.0))
    (one,) = compared(tmp_path / "A", tmp_path / "B")
    assert one.strategies == ["seqft (A)", "lora", "seqft (B)"]
    differs = [
        "optimizer.init_args.lr: 0.01 (seqft (A)), 0.02 (lora), 0.003 (seqft (B))",
        "trainer.gradient_clip_val: not set (seqft (A), lora), 1.0 (seqft (B))",
    ]
    assert one.differs == differs
    own = ["seqft (A): strategies.SeqFT", "lora: strategies.LoRA(rank=2)", "seqft (B): strategies.SeqFT"]
    assert [f"{name}: {text}" for name, text in one.own_settings.items()] == own
    assert list(settings_lines([one])) == [
        "What differs between the rows:",
        *(f"  {line}" for line in differs),
        "Each row's own settings:",
        *(f"  {line}" for line in own),
    ]
    text = report_page([one], tmp_path).read_text(encoding="utf-8")
    assert "What differs between the rows" in text
    assert all(f"<li>{line}</li>" in text for line in (*differs, *own))


def test_nothing_differs_between_alike_rows(tmp_path: Path) -> None:
    """But for the seeds, and what depends on the seed in a study's own sections."""
    for seed in range(2):
        for name in ("seqft", "lora")[: 2 - seed]:
            made(tmp_path / "A", name, seed=seed, backbone={"path": f"model-{seed}"})
    (one,) = compared(tmp_path / "A")
    assert (one.strategies, one.differs) == (["seqft", "lora"], [])


@pytest.mark.parametrize(
    ("changes", "why", "line"),
    [
        ({"trainer": trainer(max_epochs=3)}, "trainer.max_epochs: 3 here, 1 there", "trainer.max_epochs: 1 (A), 3 (B)"),
        (
            {"trainer": {"max_epochs": -1, "max_steps": 9}},
            "trainer.max_epochs: -1 here, 1 there; trainer.max_steps: 9 here, none there",
            "trainer.max_steps: not set (A), 9 (B)",
        ),
        (
            {"per_task": {"a": {"max_epochs": 3}}},
            "per_task.a.trainer.max_epochs: 3 here, none there",
            "per_task.a.trainer.max_epochs: not set (A), 3 (B)",
        ),
        (
            {"data": {"batch_size": 2, "max_length": 64}},
            f"{ROWS_A_STEP}: 2 here, 4 there",
            "data.batch_size: 4 (A), 2 (B)",
        ),
        (
            {"trainer": trainer(max_time="00:00:01:00")},
            "trainer.max_time: 00:00:01:00 here, none there",
            "trainer.max_time: not set (A), 00:00:01:00 (B)",
        ),
    ],
)
def test_other_budgets_are_not_ranked_as_one_experiment(
    tmp_path: Path, changes: dict[str, Any], why: str, line: str
) -> None:
    for seed, op in enumerate((0.3, 0.5, 0.6)):
        made(tmp_path / "A", "seqft", op, seed)
        made(tmp_path / "A", "lora", op + 0.1, seed)
        made(tmp_path / "B", "seqft", op + 0.2, seed, **changes)
    first, second = compared(tmp_path / "A", tmp_path / "B", baseline="seqft")
    assert (first.strategies, second.strategies) == (["seqft (A)", "lora"], ["seqft (B)"])
    assert (first.baseline, second.baseline) == ("seqft (A)", "seqft (B)")
    assert second.apart == f"{why}: another training budget, so the two are not ranked"
    assert first.differs == second.differs
    assert line.replace("(A)", "(seqft (A), lora)").replace("(B)", "(seqft (B))") in first.differs
    assert not any("seqft (B)" in sentence for sentence in first.warnings)
    text = report_page([first, second], tmp_path).read_text(encoding="utf-8")
    assert "another training budget, so the two are not ranked" in text


def test_a_strategy_with_epochs_of_its_own_is_not_ranked_either(tmp_path: Path) -> None:
    made(tmp_path / "A", "seqft")
    made(tmp_path / "A", "lora", own={"trainer": {"max_epochs": 3}})
    first, second = compared(tmp_path / "A")
    assert (first.strategies, second.strategies) == (["lora"], ["seqft"])
    assert first.differs == ["trainer.max_epochs: 1 (seqft), 3 (lora)"]


def test_what_a_sweep_sets_is_a_rows_own(tmp_path: Path) -> None:
    for rate in (0.1, 0.2):
        own = {"optimizer": {"init_args": {"lr": rate}}, "trial_of": "lora"}
        made(tmp_path / "A", f"lora lr={rate}", own=own, data={"batch_size": 4, "score_on": "validation"})
    (one,) = compared(tmp_path / "A")
    assert one.differs == []
    assert one.own_settings == {
        f"lora lr={rate}": f"strategies.LoRA(rank=2), optimizer.init_args.lr={rate}" for rate in (0.1, 0.2)
    }


def test_a_run_that_does_not_say_what_it_was_made_with_is_named(tmp_path: Path) -> None:
    made(tmp_path / "A", "seqft")
    run = write_run(tmp_path / "A", ("lora", "1", 0), scores(0.5), config="{")
    assert not settings_of(run).known
    differs = {line for one in compared(tmp_path / "A") for line in one.differs}
    assert differs == {"not known, as config.yaml is missing or cannot be read: lora"}


TURNS = {"replay_rows": 0}


@pytest.mark.parametrize(
    ("tokens", "changes", "why"),
    [
        (1200, {}, None),
        (700, {}, "its training budget is smaller than the sequence's: trained on 1,400 tokens, seqft on 2,400."),
        (
            1200,
            {"own": {"trainer": {"max_epochs": 9}}},
            "its training budget is not the study's: it has trainer.max_epochs of its own.",
        ),
    ],
)
def test_a_yardstick_of_another_budget_is_no_bound(
    tmp_path: Path, tokens: int, changes: dict[str, Any], why: str | None
) -> None:
    """The sequence takes 1,200 tokens for each of two tasks; replayed rows are not counted to it."""
    made(tmp_path / "A", "seqft", costs={**TURNS, "tokens": 1200})
    made(tmp_path / "A", "lora", costs={"replay_rows": 2, "tokens": 5000})
    run = write_run(
        tmp_path / "A",
        ("joint", "1", 0),
        scores(0.9),
        config=config("joint", **changes),
        costs={"tokens": tokens},
        bound="OP",
    )
    (one,) = [one for one in compared(tmp_path / "A") if "joint" in one.strategies]
    assert run.finished
    assert one.bounds == ({"joint": "OP"} if why is None else {})
    named = [sentence for sentence in one.warnings if "no bound" in sentence]
    assert named == ([] if why is None else [f"joint is no bound here: {why}"])
    text = report_page([one], tmp_path).read_text(encoding="utf-8")
    assert ("joint ‡" in text) == (why is None)


@pytest.mark.parametrize(("steps", "bound"), [(-1, True), (2, False)])
def test_joint_bounds_a_study_only_where_it_learns_as_much(
    make: Callable[..., Study], steps: int, bound: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two steps for each task, and two for both together: half the rows."""
    limits = {"max_epochs": 2} if bound else {"max_epochs": -1, "max_steps": steps}
    entries = {"seqft": SEQFT, "joint": ENTRIES["joint"]}
    small = make(strategies=entries, trainer={**limits, "accelerator": "cpu"}, per_task={} if not bound else PER_TASK)
    small.run()
    (one,) = compare([small.folder])
    assert one.bounds == ({"joint": "OP"} if bound else {})
    seqft, joint = (read_csv(run.folder / "costs.csv") for run in small.runs)
    tokens = [sum(int(row["tokens"]) for row in rows) for rows in (seqft, joint)]
    assert (tokens[0] == tokens[1]) == bound
    capsys.readouterr()
    assert guarded(lambda: app(["report", str(small.folder)], standalone_mode=False)) == 0
    text = capsys.readouterr().out
    assert ("joint ‡" in text) == bound
    assert ("! joint is no bound here: its training budget is smaller than the sequence's" in text) == (not bound)


PER_TASK = {"beta": {"max_epochs": 3}}


def test_two_real_studies_are_reported_apart(
    make: Callable[..., Study], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = {"seqft": SEQFT, "lora": LORA}
    make(name="A", strategies=entries).run()
    make(name="B", strategies={"seqft": SEQFT}, trainer=trainer(max_epochs=2)).run()
    runs, out = tmp_path / "runs", tmp_path / "out"
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    capsys.readouterr()
    argv = ["report", str(runs / "A"), str(runs / "B"), f"out={out}"]
    assert guarded(lambda: app(argv, standalone_mode=False)) == 0
    text = capsys.readouterr().out
    assert "  trainer.max_epochs: 1 (seqft (A), lora), 2 (seqft (B))\n" in text
    apart = "B: kept apart from the first table (trainer.max_epochs: 2 here, 1 there: another training budget, "
    assert f"! {apart}so the two are not ranked)." in text
    assert {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()} == before
    rows = [(row["strategy"], row["table"]) for row in read_csv(out / "summary.csv")]
    assert rows == [("seqft (A)", "1"), ("lora", "1"), ("seqft (B)", "2")]
    assert (out / "report.html").is_file()
