"""What a study finds in its folder: nothing is mixed in one table that was made in different ways."""

from __future__ import annotations

import hashlib
import json
import linecache
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers.studies import study, write_tasks

from strategies import LoRA, SeqFT
from workbench.config import load, parse
from workbench.errors import ConfigError
from workbench.study import Study
from workbench.study import resume as existing
from workbench.study.resume import UNTOUCHED, fingerprint_code

Make = Callable[..., Study]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Two tasks that a test may change."""
    return write_tasks(tmp_path / "tasks")


@pytest.fixture
def make(model_folder: Path, tasks: Path, tmp_path: Path) -> Make:
    """Makes the small study with some keys changed."""

    def build(**changes: Any) -> Study:
        return Study(parse(study(model_folder, tasks, tmp_path / "runs", **changes)))

    return build


def change_answers(tasks: Path) -> None:
    """Other answers in one task's test file."""
    file = tasks / "alpha" / "test.json"
    rows = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps([row | {"answer": "zz"} for row in rows]), encoding="utf-8")


def test_runs_of_another_config_stay_out_of_the_table(make: Make) -> None:
    make().run()
    other = make(seeds=[1], trainer={"max_epochs": 2, "accelerator": "cpu"})
    with pytest.raises(ConfigError, match=r"max_epochs: 1 there, 2 here.*delete the folder"):
        other.run()
    lora = {"class_path": "strategies.LoRA", "init_args": {"rank": 2}}
    assert len(make(strategies={"lora": lora}, seeds=[1]).run()) == 2  # the same way, another method: one table


def test_other_data_under_the_same_config_are_refused(make: Make, tasks: Path) -> None:
    make().run()
    change_answers(tasks)
    with pytest.raises(ConfigError, match="seed-0 was made with another data"):
        make(seeds=[0, 1]).run()


def test_the_untouched_model_is_scored_again_on_other_data(make: Make, tasks: Path) -> None:
    first = make()
    first.run()
    before = (first.folder / UNTOUCHED / "nll.csv").read_text(encoding="utf-8")
    change_answers(tasks)
    second = make(existing="replace")
    second.run()
    after = (second.folder / UNTOUCHED / "nll.csv").read_text(encoding="utf-8")
    assert before != after
    row_0 = (second.results(second.runs[0]).path / "predictions" / "0-alpha.jsonl").read_text(encoding="utf-8")
    assert '"answer": "zz"' in row_0


def test_a_strategy_may_be_called_untouched(make: Make) -> None:
    rows = make(strategies={"untouched": {"class_path": "strategies.SeqFT"}}).run()
    assert [row["strategy"] for row in rows] == ["untouched"]


def test_a_run_that_diverges_does_not_stop_the_others(make: Make) -> None:
    wild = {"class_path": "strategies.SeqFT", "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 1e30}}}
    small = make(strategies={"wild": wild, "seqft": {"class_path": "strategies.SeqFT"}})
    rows = small.run()
    assert [row["strategy"] for row in rows] == ["seqft"]
    assert len(small.failures) == 1
    assert "wild, order default, seed 0 failed: alpha: the loss is nan at step 2" in small.failures[0]


def test_test_rows_have_no_part_in_a_study_that_is_scored_on_validation_rows(make: Make, tasks: Path) -> None:
    data = {"batch_size": 4, "max_length": 64, "score_on": "validation"}
    first = make(data=data)
    first.run()
    scores = (first.folder / UNTOUCHED / "scores.csv").stat().st_mtime_ns
    change_answers(tasks)
    second = make(data=data, seeds=[0, 1])  # goes on, and scores the untouched model once
    second.run()
    assert (second.folder / UNTOUCHED / "scores.csv").stat().st_mtime_ns == scores


def begun(small: Study) -> Path:
    """The folder of a study's one run, which is put back to where its first task had been scored."""
    path = small.results(small.runs[0]).path
    journal = path / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    kept = next(place for place, line in enumerate(lines) if b'"kind": "cell", "after": 1' in line)
    journal.write_bytes(b"".join(lines[:kept]))
    return path


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.parametrize(
    "trainer",
    [
        {"enable_progress_bar": True},
        {"enable_model_summary": True, "log_every_n_steps": 7},
        {"enable_checkpointing": True},
        {
            "callbacks": [
                {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"monitor": "train/loss"}}
            ],
            "enable_checkpointing": True,
        },
        {"logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs"}}},
        {"profiler": "simple"},
        {"callbacks": [{"class_path": "lightning.pytorch.callbacks.TQDMProgressBar"}], "enable_progress_bar": True},
    ],
)
def test_what_only_observes_a_training_refuses_no_resume(
    make: Make, trainer: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = make()
    first.run()
    path = begun(first)
    weights = (path / "model" / "model.safetensors").read_bytes()
    again = make(trainer={"max_epochs": 1, "accelerator": "cpu", **trainer})
    again.run()
    assert again.failures == []
    assert (path / "model" / "model.safetensors").read_bytes() == weights
    assert load(path / "config.yaml").trainer == again.config.trainer  # the run's own config runs again as it was made


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"gradient_clip_val": 0.5}, r"trainer\.gradient_clip_val: nothing there, 0\.5 here"),
        ({"precision": "bf16-true"}, r"trainer\.precision: nothing there, bf16-true here"),
        (
            {"callbacks": [{"class_path": "lightning.pytorch.callbacks.StochasticWeightAveraging",
                            "init_args": {"swa_lrs": 0.1}}]},
            r"trainer\.callbacks\.0\.class_path: nothing there",
        ),
    ],
)  # fmt: skip
def test_what_changes_a_training_still_does(make: Make, changes: dict[str, Any], told: str) -> None:
    make().run()
    with pytest.raises(ConfigError, match=told):
        make(trainer={"max_epochs": 1, "accelerator": "cpu", **changes}).check_existing()


def test_what_observes_one_strategy_or_one_task_is_no_difference(make: Make) -> None:
    make().run()
    watched = {"trainer": {"log_every_n_steps": 3}}
    strategies = {"seqft": {"class_path": "strategies.SeqFT", **watched, "per_task": {"beta": watched}}}
    make(strategies=strategies, per_task={"alpha": watched}).check_existing()


def test_data_model_study_and_results_may_move(tasks: Path, model_folder: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(model_folder, tmp_path / "here" / "model"))
    corpus = tmp_path / "here" / "corpus.txt"
    corpus.write_text("once a cat runs\n" * 8, encoding="utf-8")

    def built(model: Path, corpus: Path, tasks: Path, **changes: Any) -> Study:
        pretrained = {"class_path": "strategies.ContinuedPretraining", "init_args": {"steps": 2, "corpus": str(corpus)}}
        trace = {"class_path": "benchmarks.trace.Trace", "init_args": {"path": str(tasks), "max_new_tokens": 3}}
        parts = {"benchmark": trace, "strategies": {"pretrained": pretrained}, **changes}
        return Study(parse(study(model, tasks, Path(parts.pop("output", tmp_path / "runs")), **parts)))

    first = built(model, corpus, tasks)
    first.run()
    weights = (begun(first) / "model" / "model.safetensors").read_bytes()
    untouched = (first.folder / UNTOUCHED / "journal.jsonl").read_bytes()
    there = tmp_path / "there"
    shutil.move(tmp_path / "here", there)
    shutil.move(tasks, there / "tasks")
    shutil.move(first.folder, tmp_path / "other" / "renamed")
    moved = {"name": "renamed", "output": tmp_path / "other"}
    again = built(there / "model", there / "corpus.txt", there / "tasks", **moved)
    assert len(again.run()) == 1
    run = again.results(again.runs[0]).path
    assert run == tmp_path / "other" / "renamed" / "pretrained" / "default" / "seed-0"
    assert (run / "model" / "model.safetensors").read_bytes() == weights
    assert (again.folder / UNTOUCHED / "journal.jsonl").read_bytes() == untouched  # row 0 is not scored again
    (there / "corpus.txt").write_text("once a dog runs\n" * 8, encoding="utf-8")
    with pytest.raises(ConfigError, match="another corpus or model of its strategy"):
        built(there / "model", there / "corpus.txt", there / "tasks", **moved).run()
    change_answers(there / "tasks")
    with pytest.raises(ConfigError, match="another data"):
        built(there / "model", there / "corpus.txt", there / "tasks", **moved).run()


CODE = '''
from workbench.strategy import ContinualStrategy


class Mine(ContinualStrategy):
    """{doc}"""

    reference = "{reference}"
'''


def test_a_reworded_docstring_is_no_other_code_and_an_old_fingerprint_holds(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    file = tmp_path / "my_method_of_today.py"
    strategies = {"mine": {"class_path": "my_method_of_today.Mine"}}

    def write(doc: str, reference: str) -> None:
        file.write_text(CODE.format(doc=doc, reference=reference), encoding="utf-8")

    write("One.", "A")
    first = make(strategies=strategies)
    first.run()
    write("Another word.", "A")
    make(strategies=strategies).check_existing()
    write("Another word.", "B")
    with pytest.raises(ConfigError, match="another version of its strategy's code"):
        make(strategies=strategies).check_existing()
    run = first.results(first.runs[0])
    as_it_was = hashlib.sha256(file.read_bytes()).hexdigest()[:16]  # of the whole file, as it was recorded before
    run.write_environment(run.environment() | {"inputs": run.environment()["inputs"] | {"code": as_it_was}})
    make(strategies=strategies).check_existing()
    write("A third one.", "B")
    with pytest.raises(ConfigError, match="another version of its strategy's code"):
        make(strategies=strategies).check_existing()


def test_other_versions_and_other_code_are_refused_with_the_difference(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make().run()
    with monkeypatch.context() as changed:
        changed.setattr(existing, "describe_environment", lambda: {"versions": {"torch": "9.9"}, "commit": "other"})
        with pytest.raises(ConfigError, match=r"seed-0 was made with other versions \(torch: .* there, 9\.9 here\)"):
            make(seeds=[0, 1]).run()
    with monkeypatch.context() as changed:
        changed.setattr(existing, "fingerprint_code", lambda _: "other")
        with pytest.raises(ConfigError, match="seed-0 was made with another version of its strategy's code"):
            make(seeds=[0, 1]).run()
    assert len(make(seeds=[0, 1]).run()) == 2


CELL = """
class Mine:
    {attribute}
    def penalties(self):
        return {strength}
"""


def written_in_a_cell(monkeypatch: pytest.MonkeyPatch, text: str, name: str = "/cells/1.py") -> Any:
    """A class as a notebook has it: of `__main__`, which has no file, and of a cell that linecache knows."""
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setitem(linecache.cache, name, (len(text), None, text.splitlines(keepends=True), name))
    exec(compile(text, name, "exec"), vars(main))  # noqa: S102, as a notebook does with its cells
    return vars(main)["Mine"]


def test_a_method_in_a_file_is_known_by_the_file(tmp_path: Path) -> None:
    assert fingerprint_code([SeqFT]) != fingerprint_code([LoRA])
    assert fingerprint_code([SeqFT]) == fingerprint_code([SeqFT])


def test_a_method_in_a_notebook_is_known_by_its_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [
        CELL.format(attribute=f"share = {share}", strength=strength) for share, strength in [(1, 2), (1, 3), (2, 2)]
    ]
    found = [fingerprint_code([written_in_a_cell(monkeypatch, text)]) for text in texts]
    assert len(set(found)) == 3
    moved = fingerprint_code([written_in_a_cell(monkeypatch, texts[0], "/cells/2.py")])
    assert moved == found[0]


def test_a_class_without_a_source_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = written_in_a_cell(monkeypatch, "class Mine: ...\n")
    other = type("Other", (), {"__module__": "__main__"})
    assert fingerprint_code([empty]) != fingerprint_code([other])
