"""Joint: one task of all rows, one training run, and two rows of the score matrix."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from datasets import Dataset
from helpers.studies import column, learn, study, weights, write_tasks
from torch import Tensor

from strategies import BlockExpansion, Joint, LoRA
from workbench.backbone import Batch
from workbench.backbone.batch import IGNORED
from workbench.benchmark import Task
from workbench.cli import app, guarded
from workbench.config import parse
from workbench.results import RunFolder
from workbench.runtime.files import read_csv
from workbench.strategy import Composition, ContinualStrategy
from workbench.study import Study
from workbench.testing.tiny import tiny_backbone, tiny_tasks

ONE, TWO, THREE = tiny_tasks(3)
TEXTS = [Dataset.from_dict({"text": texts}) for texts in (["a b c", "d e f"], ["g h i"])]
CORPORA = [Task(f"corpus_{place}", test=rows, train=rows) for place, rows in enumerate(TEXTS)]


def united(tasks: Sequence[Task]) -> Task:
    (task,) = Joint().curriculum(tasks, CORPORA[0])
    return task


def test_one_task_of_all_rows_each_under_its_own_limit() -> None:
    longer = replace(TWO, max_new_tokens=9)
    task = united([ONE, longer])
    assert task.name == "joint"
    assert task.train.to_list() == [{**row, "max_new_tokens": 3} for row in ONE.train] + [
        {**row, "max_new_tokens": 9} for row in TWO.train
    ]
    assert task.test.to_list() == ONE.test.to_list()
    assert len(task.validation) == 0


@pytest.mark.parametrize(
    ("field", "values", "expected"),
    [
        ("max_new_tokens", (3, 9, 5), 9),
        ("max_epochs", (None, None, None), None),
        ("max_epochs", (3, 3, 3), 3),
        ("max_epochs", (3, 3, 5), 1),
        ("max_epochs", (4, 2, 6), 2),
        ("max_epochs", (3, None, 3), None),
    ],
)
def test_what_the_united_task_states(field: str, values: Sequence[Any], expected: Any) -> None:
    tasks = [replace(task, **{field: value}) for task, value in zip((ONE, TWO, THREE), values, strict=True)]
    assert getattr(united(tasks), field) == expected


def test_corpora_are_united_as_text() -> None:
    task = united(CORPORA)
    assert task.is_corpus
    assert task.train.to_list() == [{"text": text} for text in ("a b c", "d e f", "g h i")]


def test_texts_and_answers_are_not_united() -> None:
    with pytest.raises(ValueError) as caught:
        united([ONE, *CORPORA, TWO])
    assert str(caught.value) == (
        "Joint cannot unite texts and answers: corpus_0 is a corpus and task_0 is not. Give tasks of one kind."
    )


class Seen(Joint):
    """Keeps the batches that were learnt from."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Batch] = []

    def penalties(self, backbone: Any, batch: Any, output: Any) -> dict[str, Tensor]:
        self.batches.append(batch)
        return {}

    @property
    def rows(self) -> Counter[int]:
        """How often each row of the united task was learnt from."""
        return Counter(row for batch in self.batches for row in batch.row.tolist())


class Passes(Joint):
    """Counts the rows of each task that were learnt from, told by the begin of their prompts."""

    seen: ClassVar[Counter[str]] = Counter()

    def setup(self, backbone: Any) -> None:
        self.seen.clear()  # of what the plan tried

    def penalties(self, backbone: Any, batch: Any, output: Any) -> dict[str, Tensor]:
        texts = backbone.tokenizer.batch_decode(batch.input_ids, skip_special_tokens=True)
        self.seen.update(text.strip().partition(":")[0] for text in texts)
        return {}


def test_as_many_steps_as_the_sequence_over_every_row_of_every_task(tmp_path: Path) -> None:
    strategy = Seen()
    learn(strategy, tmp_path / "joint", tasks=[ONE, TWO, THREE], max_epochs=2)
    learn(ContinualStrategy(), tmp_path / "sequence", tasks=[ONE, TWO, THREE], max_epochs=2)
    assert strategy.rows == Counter(dict.fromkeys(range(36), 2))
    assert column(tmp_path / "joint" / "costs.csv", "item") == ["joint"]
    steps = {name: column(tmp_path / name / "costs.csv", "steps") for name in ("joint", "sequence")}
    assert steps == {"joint": ["18"], "sequence": ["6", "6", "6"]}
    tokens = {name: column(tmp_path / name / "costs.csv", "tokens") for name in ("joint", "sequence")}
    assert int(tokens["joint"][0]) == sum(map(int, tokens["sequence"]))


def test_rows_stand_in_an_epoch_as_often_as_their_task_needs() -> None:
    tasks = [replace(task, max_epochs=epochs) for task, epochs in zip((ONE, TWO), (6, 4), strict=True)]
    prompts = [row["prompt"] for row in united(tasks).train]
    assert prompts == [*ONE.train["prompt"]] * 3 + [*TWO.train["prompt"]] * 2
    assert united(tasks).max_epochs == 2


NAMES = ("C-STANCE", "FOMC", "NumGLUE-cm")  # TRACE passes over these 5, 3 and 5 times


@pytest.mark.parametrize(
    ("changes", "epochs"),
    [
        ({"trainer": {"accelerator": "cpu"}}, (5, 3, 5)),
        ({"per_task": {"FOMC": {"max_epochs": 3}}, "trainer": {"max_epochs": 2, "accelerator": "cpu"}}, (2, 3, 2)),
        ({"trainer": {"max_epochs": 2, "accelerator": "cpu"}}, (2, 2, 2)),
    ],
)
def test_every_row_is_passed_over_as_often_as_in_the_sequence(
    model_folder: Path, tmp_path: Path, changes: dict[str, Any], epochs: tuple[int, ...]
) -> None:
    """Eight rows a task. 5, 3, 5: one epoch of 8 (5 + 3 + 5) rows; 2, 3, 2: one of 8 (2 + 3 + 2), not two."""
    strategies = {"seqft": {"class_path": "strategies.SeqFT"}, "joint": {"class_path": "test_joint.Passes"}}
    tasks = write_tasks(tmp_path / "tasks", NAMES)
    data = {"batch_size": 4, "max_length": 64, "max_prompt_length": 32}
    small = Study(parse(study(model_folder, tasks, tmp_path, strategies=strategies, data=data, **changes)))
    planned = small.plan().estimates
    small.run()
    seqft, joint = (read_csv(run.folder / "costs.csv") for run in small.runs)
    assert [(row["item"], row["rows"], row["replay_rows"]) for row in seqft] == [(name, "8", "0") for name in NAMES]
    (united,) = joint
    common = math.gcd(*epochs)
    assert (united["item"], united["replay_rows"]) == ("joint", "0")
    assert int(united["rows"]) * common == sum(8 * count for count in epochs)
    assert Passes.seen == Counter(dict(zip(NAMES, (8 * count for count in epochs), strict=True)))
    for name in ("tokens", "steps"):
        assert int(united[name]) == sum(int(row[name]) for row in seqft)
    assert planned["joint"].steps == planned["seqft"].steps == int(united["steps"])


def test_row_0_and_the_last_row_are_scored_and_no_other(tmp_path: Path) -> None:
    learn(Joint(), tmp_path, tasks=[ONE, TWO, THREE])
    matrix = RunFolder(tmp_path).matrix()
    assert matrix.isnan().all(dim=1).tolist() == [False, True, True, False]
    assert not matrix[[0, 3]].isnan().any()
    assert column(tmp_path / "scores.csv", "after") == ["0"] * 3 + ["3"] * 3


def test_one_step_is_minus_the_rate_times_the_mean_gradient_over_batches_of_both_tasks(tmp_path: Path) -> None:
    """θ ← θ - 0.1 · 1/6 Σ ∇L(batch): six batches of four rows are all 24 rows."""
    strategy, start = Seen(), tiny_backbone()
    after = weights(learn(strategy, tmp_path, accumulate_grad_batches=6))
    assert strategy.rows == Counter(range(24))
    assert any(set(batch.row.tolist()) & set(range(12)) != set(batch.row.tolist()) for batch in strategy.batches)
    for batch in strategy.batches:
        (start(batch).loss / 6).backward()
    for name, value in start.model.named_parameters():
        torch.testing.assert_close(after[name], value.detach() - 0.1 * value.grad, rtol=1e-5, atol=1e-6, msg=name)


def test_an_answer_keeps_its_own_tasks_limit(tmp_path: Path) -> None:
    long = Dataset.from_list([{"prompt": "Tell:", "answer": "a b c d e f g"}] * 4)
    strategy, backbone = Seen(), tiny_backbone()
    learn(strategy, tmp_path, tasks=[ONE, replace(TWO, train=long, max_new_tokens=40)])
    labels = {
        row: int((batch.labels[i] != IGNORED).sum())
        for batch in strategy.batches
        for i, row in enumerate(batch.row.tolist())
    }
    whole = [*backbone.tokenizer("a b c d e f g", add_special_tokens=False).input_ids, backbone.tokenizer.eos_token_id]
    assert len(whole) > 3
    assert labels == {
        row: len(backbone.encoder.answer(answer, 3)[0]) for row, answer in enumerate(ONE.train["answer"])
    } | dict.fromkeys(range(12, 16), len(whole))


@pytest.mark.parametrize("make", [lambda: LoRA(rank=2), lambda: BlockExpansion(groups=2)])
def test_with_another_method_that_ones_parameters_train(tmp_path: Path, make: Callable[[], ContinualStrategy]) -> None:
    alone = tiny_backbone()
    make().setup(alone)
    backbone = learn(Composition([make(), Joint()]), tmp_path)
    assert set(backbone.trainable()) == set(alone.trainable()) != set(dict(backbone.model.named_parameters()))
    assert column(tmp_path / "costs.csv", "steps") == ["6"]
    assert not RunFolder(tmp_path).matrix()[[0, 2]].isnan().any()


def test_a_study_and_its_report_show_what_was_measured_and_dashes(
    model_folder: Path, task_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = study(model_folder, task_folder, tmp_path, strategies={"joint": {"class_path": "strategies.Joint"}})
    (row,) = Study(parse(raw)).run()
    folder = tmp_path / "small"
    results = RunFolder(folder / "joint" / "default" / "seed-0")
    last = results.matrix()[2].tolist()
    assert row["OP"] == pytest.approx(sum(last) / 2)
    nothing = ("BWT", "FWT", "forgetting", "learning_accuracy")
    assert all(math.isnan(row[name]) for name in nothing)
    written = read_csv(folder / "summary.csv")[0]
    assert [written[name] for name in nothing] == ["nan"] * 4
    assert column(results.path / "costs.csv", "steps") == ["4"]  # 16 rows in batches of 4
    capsys.readouterr()
    assert guarded(lambda: app(["report", str(folder)], standalone_mode=False)) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("│ joint"))
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells[1] == f"{row['OP']:.3f}"
    assert cells[2:6] == ["–"] * 4
