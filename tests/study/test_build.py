"""Objects built from a config: the rows that are scored, Trainers, and optimizers with their fused kernel."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers.studies import column, write_tasks
from torch import nn

from benchmarks.mini_trace import MiniTrace
from workbench.backbone import Backbone
from workbench.benchmark import Task
from workbench.config import load
from workbench.errors import ConfigError
from workbench.report.terminal import matrix_table, protocol_note
from workbench.results import RunFolder
from workbench.runtime.files import read_csv
from workbench.study import Study
from workbench.study.resume import UNTOUCHED

Make = Callable[..., Study]
FEW = {"train_rows": 32, "test_rows": 3, "validation_rows": 2}
SEQFT = {"class_path": "strategies.SeqFT"}
VALIDATION = {"batch_size": 4, "max_length": 64, "score_on": "validation"}


class OneProbe(MiniTrace):
    """MiniTrace with a single probe, to be scored in seconds."""

    @property
    def probes(self) -> Sequence[Task]:
        return super().probes[:1]


def mini(make: Make, score_on: str | None, strategies: dict[str, Any]) -> Study:
    """A study of a few rows of MiniTrace, two steps a task."""
    benchmark = {"class_path": "test_build.OneProbe", "init_args": FEW}
    chosen = {} if score_on is None else {"score_on": score_on}
    return make(benchmark=benchmark, strategies=strategies, data={"batch_size": 16, "max_length": 128, **chosen})


def check_rows(run: RunFolder, after: int, task: Task, rows: Dataset) -> None:
    """The counts of a cell and its answers on disk are those of `rows`, in their order."""
    counts = {
        row["count"]
        for row in read_csv(run.path / "scores.csv")
        if (row["after"], row["on"]) == (str(after), task.name)
    }
    assert counts == {str(len(rows))}
    lines = (run.path / "predictions" / f"{after}-{task.name}.jsonl").read_text(encoding="utf-8").splitlines()
    told = [(row["prompt"], row["answer"]) for row in map(json.loads, lines)]
    assert told == list(zip(rows["prompt"], rows["answer"], strict=True))


def check_likelihoods(run: RunFolder, backbone: Backbone, task: Task, rows: Dataset) -> None:
    """Row 0 of nll.csv is the mean over the answer tokens of `rows`."""
    nats, tokens = backbone.nats(backbone.encode(rows, task.max_new_tokens))
    cells = [row for row in read_csv(run.path / "nll.csv") if (row["after"], row["on"]) == ("0", task.name)]
    assert [row["count"] for row in cells] == [str(int(tokens.sum()))]
    assert float(cells[0]["value"]) == pytest.approx(float(nats.sum() / tokens.sum()), rel=1e-5)


def test_learning_rates_are_compared_on_exactly_the_validation_rows(make: Make) -> None:
    rates = {"seqft_1e-3": 1e-3, "seqft_1e-2": 1e-2}
    strategies = {name: {**SEQFT, "optimizer": {"init_args": {"lr": rate}}} for name, rate in rates.items()}
    small = mini(make, "validation", strategies)
    assert [row["strategy"] for row in small.run()] == list(rates)
    benchmark = OneProbe(**FEW)
    tasks = [benchmark[index] for index in range(len(benchmark))]
    runs = [small.results(run) for run in small.runs]
    small.assembly.backbone.restore()
    for run, rate in zip(runs, rates.values(), strict=True):
        config = load(run.path / "config.yaml")
        assert config.data.score_on == "validation"
        assert config.settings(next(iter(config.strategies))).optimizer.init_args == {"lr": rate}
        for task in tasks:
            for after in range(len(tasks) + 1):
                check_rows(run, after, task, task.validation)
            check_likelihoods(run, small.assembly.backbone, task, task.validation)
        check_rows(run, 0, benchmark.probes[0], benchmark.probes[0].test)
    slow, fast = (column(run.path / "train.csv", "loss") for run in runs)
    assert slow[0] == fast[0]  # the first step's loss is the untouched model's; the second's is not
    assert slow[1] != fast[1]


def test_unless_told_otherwise_exactly_the_test_rows_are_scored(make: Make) -> None:
    small = mini(make, None, {"seqft": SEQFT})
    small.run()
    run = small.results(small.runs[0])
    small.assembly.backbone.restore()
    for task in map(OneProbe(**FEW).__getitem__, range(8)):
        for after in (0, 1, 8):
            check_rows(run, after, task, task.test)
        check_likelihoods(run, small.assembly.backbone, task, task.test)
    assert run.environment()["protocol"]["scored_on"] == "test"
    assert "scored on" not in protocol_note(run)
    assert "scored on" not in str(matrix_table(run, 200).caption)


def test_no_test_row_is_seen_and_the_split_stands_beside_the_numbers(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    encode, generate = Backbone.encode, Backbone.generate

    def watched_encode(self: Backbone, rows: Dataset, *arguments: Any) -> Dataset:
        seen.extend(rows["prompt"])
        return encode(self, rows, *arguments)

    def watched_generate(self: Backbone, prompts: Sequence[str], longest: int) -> list[str]:
        seen.extend(prompts)
        return generate(self, prompts, longest)

    monkeypatch.setattr(Backbone, "encode", watched_encode)
    monkeypatch.setattr(Backbone, "generate", watched_generate)
    small = make(data=VALIDATION, score_every_n_steps=1)
    small.run()  # its plan, row 0, scores in mid-task and all the others
    assert {prompt.split()[1][0] for prompt in seen} == {"t", "e"}  # as `write_tasks` names rows; a test row's is "s"
    run = small.results(small.runs[0])
    assert run.environment()["protocol"]["scored_on"] == "validation"
    assert "2 tasks of 8 training rows; scored on validation rows; long prompts cut: left" in protocol_note(run)
    assert "scored on validation rows" in str(matrix_table(run, 200).caption)


def test_a_folder_scored_on_the_other_split_is_refused(make: Make) -> None:
    make().run()
    for asked in ({"seeds": [0]}, {"seeds": [1]}):
        with pytest.raises(ConfigError) as caught:
            make(data=VALIDATION, **asked).run()
        assert "(data.score_on: test there, validation here)" in caught.value.problems[0]
        assert len(caught.value.problems) == 1


def test_row_0_of_the_other_split_is_never_taken_over(make: Make) -> None:
    first = make()
    first.run()
    first.results(first.runs[0]).clear()  # its untouched model's scores stay behind
    assert "alpha: s0" in (first.folder / UNTOUCHED / "predictions" / "0-alpha.jsonl").read_text(encoding="utf-8")
    second = make(data=VALIDATION)
    second.run()
    row_0 = second.results(second.runs[0]).path / "predictions" / "0-alpha.jsonl"
    assert "alpha: e0" in row_0.read_text(encoding="utf-8")
    assert "alpha: s0" not in row_0.read_text(encoding="utf-8")


def test_tasks_without_validation_rows_are_told_with_all_else_that_is_wrong(make: Make, tmp_path: Path) -> None:
    benchmark = {"class_path": "test_build.OneProbe", "init_args": {**FEW, "validation_rows": 0}}
    with pytest.raises(ConfigError) as caught:
        make(benchmark=benchmark, data=VALIDATION, orders=["third"])
    orders, split = caught.value.problems
    assert orders.startswith("orders: OneProbe has no order 'third'.")
    told = split.removeprefix("data.score_on: validation, but ").partition(" have no validation rows. ")[0]
    assert set(told.split(", ")) == set(MiniTrace().orders["default"])
    assert not (tmp_path / "runs").exists()
    assert make(benchmark=benchmark).config.data.score_on == "test"


def test_one_task_without_validation_rows(make: Make, tmp_path: Path) -> None:
    folder = write_tasks(tmp_path / "tasks")
    (folder / "beta" / "eval.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        make(benchmark={"class_path": "benchmarks.trace.Trace", "init_args": {"path": str(folder)}}, data=VALIDATION)
    assert caught.value.problems == [
        "data.score_on: validation, but beta has no validation rows. "
        "Give the benchmark some, or leave data.score_on at test."
    ]


def test_a_split_that_there_is_not(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"data\.score_on: .*validation"):
        make(data={"score_on": "valid"})


def test_equal_trainer_sections_share_a_trainer(make: Make) -> None:
    strategies = {"one": SEQFT, "two": SEQFT, "other": {**SEQFT, "trainer": {"max_epochs": 2}}}
    assembly = make(strategies=strategies, per_task={"beta": {"trainer": {"accumulate_grad_batches": 3}}}).assembly
    alpha, beta = assembly.tasks.values()
    assert assembly.trainer("one") is assembly.trainer("two")
    assert assembly.trainer("one", alpha) is assembly.trainer("two", alpha)
    assert [assembly.trainer(name, alpha).max_epochs for name in strategies] == [1, 1, 2]
    assert [assembly.trainer("one", task).accumulate_grad_batches for task in (alpha, beta)] == [1, 3]


def optimizer_of(make: Make, parameters: list[Any] | None = None, **changes: Any) -> torch.optim.Optimizer:
    factory = make(**changes).assembly.optimizer_factory("seqft")
    return factory("alpha", parameters or [nn.Parameter(torch.ones(2, 3))], lambda: 1)[0]


@pytest.mark.parametrize(
    ("name", "settings", "trainer", "expected"),
    [
        ("AdamW", {}, {}, True),
        ("Adam", {}, {}, True),
        ("AdamW", {"fused": False}, {}, False),
        ("AdamW", {"foreach": True}, {}, None),
        ("AdamW", {}, {"precision": "bf16-true"}, True),
        ("AdamW", {}, {"precision": "bf16-mixed"}, None),
        ("AdamW", {}, {"precision": "16-mixed"}, None),
        ("AdamW", {}, {"precision": 16}, None),
        ("AdamW", {"fused": True}, {"precision": "bf16-mixed"}, True),
        ("SGD", {}, {}, None),
        ("Adagrad", {}, {}, None),
    ],
)
def test_adam_is_fused_where_nobody_said_otherwise(
    make: Make, name: str, settings: dict[str, Any], trainer: dict[str, Any], expected: bool | None
) -> None:
    optimizer = {"class_path": f"torch.optim.{name}", "init_args": {"lr": 0.1, **settings}}
    made = optimizer_of(make, optimizer=optimizer, trainer={"accelerator": "cpu", **trainer})
    assert made.param_groups[0]["fused"] is expected


def test_parts_of_sharded_weights_are_not_fused(make: Make) -> None:
    class Part(torch.Tensor):
        """Stands for a weight that is no plain tensor."""

    part = nn.Parameter(torch.ones(2).as_subclass(Part))
    adam = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1}}
    assert optimizer_of(make, [nn.Parameter(torch.ones(2)), part], optimizer=adam).param_groups[0]["fused"] is None


def test_the_fused_kernel_computes_the_formula(make: Make) -> None:
    """Loshchilov and Hutter, 2019, algorithm 2, in float64: three steps with gradients of very different sizes."""
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01, "weight_decay": 0.1}}
    weight = nn.Parameter(torch.linspace(-1, 1, 7))
    made = optimizer_of(make, [weight], optimizer=optimizer)
    expected = weight.detach().double()
    first, second = torch.zeros(7, dtype=torch.float64), torch.zeros(7, dtype=torch.float64)
    for step in range(1, 4):
        gradient = torch.logspace(-6, 3, 7) * (-1) ** step
        weight.grad = gradient.clone()
        made.step()
        expected = expected * (1 - 0.01 * 0.1)
        first = 0.9 * first + 0.1 * gradient.double()
        second = 0.999 * second + 0.001 * gradient.double() ** 2
        moved = first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        expected = expected - 0.01 * moved
    assert torch.allclose(weight.detach().double(), expected, atol=1e-6, rtol=0)


def test_mixed_precision_still_clips(make: Make) -> None:
    """Lightning raises where a fused optimizer's gradients are to be clipped in mixed precision."""
    trainer = {"precision": "bf16-mixed", "gradient_clip_val": 0.5, "max_epochs": 1, "accelerator": "cpu"}
    small = make(optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1}}, trainer=trainer)
    small.run()
    assert column(small.results(small.runs[0]).path / "costs.csv", "steps") == ["2", "2"]
