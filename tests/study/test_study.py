"""A study from its config to its folder, end to end on a tiny model: numbers, files, and what is kept."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.studies import ROOT, column, study
from omegaconf import OmegaConf
from rich.console import Console

from workbench.backbone import Backbone
from workbench.config import Component, dump, load, parse
from workbench.config.schema import for_seed
from workbench.errors import ConfigError
from workbench.report import compare
from workbench.report.terminal import comparison_table
from workbench.report.write import SUMMARY, find_runs
from workbench.results import RunFolder
from workbench.runtime.files import read_csv
from workbench.strategy import ContinualStrategy
from workbench.study import Study
from workbench.study.resume import UNTOUCHED
from workbench.study.study import with_bounds
from workbench.testing.tiny import tiny_backbone

Make = Callable[..., Study]
LORA = {"class_path": "strategies.LoRA", "init_args": {"rank": 2}}
SEQFT = {"class_path": "strategies.SeqFT"}
FILES = {"config.yaml", "environment.json", "scores.csv", "nll.csv", "train.csv", "predictions", "model"}


def cells(run: RunFolder, name: str = "scores.csv") -> list[dict[str, str]]:
    return read_csv(run.path / name)


def test_a_study_leaves_complete_matrices_and_all_its_files(make: Make) -> None:
    small = make(strategies={"seqft": SEQFT, "lora": LORA}, seeds=[0, 1])
    rows = small.run()
    assert [(row["strategy"], row["order"], row["seed"]) for row in rows] == [
        ("seqft", "default", 0),
        ("seqft", "default", 1),
        ("lora", "default", 0),
        ("lora", "default", 1),
    ]
    runs = [small.results(run) for run in small.runs]
    for run in runs:
        names = {entry.name for entry in run.path.iterdir()}
        assert {
            "config.yaml",
            "environment.json",
            "scores.csv",
            "nll.csv",
            "train.csv",
            "predictions",
            "model",
        } <= names
        assert run.matrix().shape == (3, 2)
        assert not run.matrix().isnan().any()
        answers = sorted(file.name for file in (run.path / "predictions").iterdir())
        assert answers == sorted(f"{after}-{name}.jsonl" for after in range(3) for name in ("alpha", "beta"))
        assert [row["count"] for row in cells(run)] == ["4"] * len(cells(run))
        assert len(cells(run, "nll.csv")) == 6
        assert column(run.path / "costs.csv", "steps") == ["2", "2"]
    untouched = [[row for row in cells(run) + cells(run, "nll.csv") if row["after"] == "0"] for run in runs]
    assert all(row == untouched[0] for row in untouched)
    assert tuple(read_csv(small.folder / "summary.csv")[0]) == SUMMARY


def test_a_study_and_its_runs_travel_as_their_configs(make: Make) -> None:
    small = make(strategies={"seqft": SEQFT, "lora": LORA}, seeds=[0, 1])
    assert small.assembly.backbone.model is not None
    sent = pickle.dumps((small, small.runs[-1]))
    assert len(sent) < 20_000
    copy, run = pickle.loads(sent)  # noqa: S301
    assert copy.config == small.config
    assert copy.runs == small.runs
    assert (run, run.config) == (small.runs[-1], small.runs[-1].config)
    assert [(spec.title, spec.folder, spec.config.seeds) for spec in small.runs[:2]] == [
        (f"seqft, order default, seed {seed}", small.folder / "seqft" / "default" / f"seed-{seed}", [seed])
        for seed in (0, 1)
    ]


def test_scores_can_be_recomputed_from_the_answers_on_disk(make: Make) -> None:
    small = make()
    small.run()
    run = small.results(small.runs[0])
    for after in range(3):
        for name in ("alpha", "beta"):
            lines = (run.path / "predictions" / f"{after}-{name}.jsonl").read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines]
            exact = sum(row["prediction"].strip() == row["answer"] for row in rows) / len(rows)
            assert run.value(after, name, run.environment()["protocol"]["primary"][name]) == exact


def test_what_was_done_is_written_beside_the_numbers(make: Make) -> None:
    small = make(strategies={"lora": LORA})
    small.run()
    environment = small.results(small.runs[0]).environment()
    protocol = environment["protocol"]
    assert protocol["order"] == ["alpha", "beta"]
    assert (protocol["decoding"], protocol["precision"], protocol["dtype"]) == ("greedy", "32-true", "float32")
    assert protocol["references"] == ["Hu et al., 2022 (arXiv 2106.09685)"]
    assert protocol["test_rows"] == {"alpha": 4, "beta": 4}
    assert protocol["scorers"]["alpha"] == {
        "accuracy": "ExactMatch(empty=True)",
        "rouge-L": "RougeL(skip=0, words='scripts', empty=True)",
    }
    assert "answers" not in environment
    assert environment["versions"]["torch"] == version("torch")
    assert all("lora_" in name for name in environment["trainable"]["alpha"])
    assert len(environment["trainable"]["alpha"]) == 8  # two layers, two projections, A and B


def test_the_day_that_a_chat_template_prints_is_the_studys_and_not_the_clocks(
    make: Make, model_folder: Path, tmp_path: Path
) -> None:
    """Two ways to write the template, once by `strftime_now` and once with the day written out, learn the same."""
    dated = '{{ strftime_now("%d %b %Y") }} {% for m in messages %}{{ m.content }}{% endfor %}'
    trained = []
    for name, template in (("dated", dated), ("written", dated.replace('strftime_now("%d %b %Y")', "'26 Jul 2024'"))):
        folder = Path(shutil.copytree(model_folder, tmp_path / name))
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        data = {"batch_size": 4, "max_length": 64, "template": "chat"}
        small = make(name=name, backbone={"path": str(folder)}, data=data)
        small.run()
        run = small.results(small.runs[0])
        assert run.environment()["protocol"]["text"]["template_date"] == "2024-07-26"
        assert load(run.path / "config.yaml").data.template_date == "2024-07-26"
        trained.append(
            [(run.path / file).read_bytes() for file in ("scores.csv", "nll.csv", "model/model.safetensors")]
        )
    assert trained[0] == trained[1]


def test_the_config_of_a_run_runs_again_by_itself(make: Make) -> None:
    first = make(strategies={"seqft": SEQFT, "lora": LORA}, seeds=[3, 4])
    first.run()
    path = first.results(first.runs[-1]).path
    again = Study(path / "config.yaml", ["name=again"])
    again.run()
    assert [(run.strategy, run.seed) for run in again.runs] == [("lora", 4)]
    other = again.results(again.runs[0]).path
    for name in ("scores.csv", "nll.csv", "train.csv", "model/model.safetensors"):
        assert (other / name).read_bytes() == (path / name).read_bytes()


def test_two_processes_in_other_places_give_the_same_bytes(make: Make, tmp_path: Path) -> None:
    here = make(strategies={"lora": LORA})
    (tmp_path / "small.yaml").write_text(dump(here.config), encoding="utf-8")
    processes = []
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        command = [sys.executable, "-m", "workbench", "run", "../small.yaml", "output=out"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(len(processes) + 1)}
        processes.append(subprocess.Popen(command, cwd=tmp_path / place, env=environment, stdout=subprocess.PIPE))
    texts = [process.communicate(timeout=100)[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert "Plan: 1 run of 2 tasks" in texts[0]
    here.run()
    run = here.results(here.runs[0]).path
    for name in ("scores.csv", "nll.csv", "train.csv", "model/model.safetensors"):
        for place in ("one", "two"):
            found = tmp_path / place / "out" / run.relative_to(tmp_path / "runs") / name
            assert found.read_bytes() == (run / name).read_bytes()


def test_another_seed_is_another_run(make: Make) -> None:
    small = make(seeds=[0, 1])
    small.run()
    one, other = (small.results(run).path / "model" / "model.safetensors" for run in small.runs)
    assert one.read_bytes() != other.read_bytes()


def test_a_finished_run_is_kept_and_an_unfinished_one_gone_on_with(make: Make) -> None:
    first = make(seeds=[0, 1])
    first.run()
    kept, broken = (first.results(run).path for run in first.runs)
    scores, model = (broken / "scores.csv").read_bytes(), (broken / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(broken / "model")
    lines = (broken / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (broken / "journal.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]))
    (kept / "mark").touch()
    make(seeds=[0, 1]).run()
    assert (kept / "mark").exists()
    assert (broken / "scores.csv").read_bytes() == scores
    assert (broken / "model" / "model.safetensors").read_bytes() == model
    assert RunFolder(broken).environment()["resumed"] == {"times": 1}


def test_a_folder_of_another_config_is_never_mixed_with_this_one(make: Make) -> None:
    make(strategies={"lora": LORA}).run()
    other = make(strategies={"lora": {**LORA, "init_args": {"rank": 4}}}, data={"batch_size": 4, "max_length": 60})
    with pytest.raises(ConfigError) as caught:
        other.run()
    problem = caught.value.problems[0]
    assert "lora/default/seed-0 was made with another config (" in problem
    assert "rank: 2 there, 4 here" in problem
    assert "data.max_length: 64 there, 60 here" in problem
    assert len(caught.value.problems) == 1


def test_refuse_and_replace(make: Make) -> None:
    first = make()
    first.run()
    run = first.results(first.runs[0]).path
    (run / "mark").touch()
    with pytest.raises(ConfigError, match=r"existing: .*seed-0 is there\. Choose another `name`"):
        make(existing="refuse").run()
    assert (run / "mark").exists()
    make(existing="replace", data={"batch_size": 2, "max_length": 64}).run()
    assert not (run / "mark").exists()
    assert column(run / "costs.csv", "steps") == ["4", "4"]


def test_replacing_deletes_the_runs_of_this_config_and_nothing_else(make: Make) -> None:
    first = make(strategies={"seqft": SEQFT, "lora": LORA})
    first.run()
    seqft, lora = (first.results(run).path for run in first.runs)
    for path in (seqft, lora, first.folder):
        (path / "mark").touch()
    make(existing="replace", strategies={"seqft": SEQFT}).run()
    assert [(path / "mark").exists() for path in (seqft, lora, first.folder)] == [False, True, True]


def test_a_task_has_its_own_epochs_and_optimizer(make: Make) -> None:
    still = {"max_epochs": 3, "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.0}}}
    small = make(per_task={"beta": still})
    small.run()
    run = small.results(small.runs[0])
    assert column(run.path / "costs.csv", "steps") == ["2", "6"]
    nats = {(row["after"], row["on"]): row["value"] for row in cells(run, "nll.csv")}
    assert nats["1", "alpha"] != nats["0", "alpha"]
    for name in ("alpha", "beta"):  # nothing changes at a learning rate of 0
        assert nats["2", name] == nats["1", name]


class Recording(torch.optim.lr_scheduler.LambdaLR):
    """Keeps the steps that it was told, and how often it stepped."""

    made: list[Recording] = []

    def __init__(self, optimizer: Any, total_steps: int) -> None:
        self.total_steps = total_steps
        self.made.append(self)
        super().__init__(optimizer, lambda step: 1 - step / total_steps)


def test_a_scheduler_knows_its_tasks_steps(make: Make) -> None:
    small = make(scheduler={"class_path": "test_study.Recording"}, per_task={"beta": {"max_epochs": 3}})
    small.plan()
    Recording.made.clear()
    small.run()
    made = Recording.made[-2:]  # before them those of the plan
    assert [scheduler.total_steps for scheduler in made] == [2, 6]
    assert [scheduler.last_epoch for scheduler in made] == [2, 6]


class Extra(ContinualStrategy):
    """Adds half a nat to each loss."""

    def penalties(self, backbone: Any, batch: Any, output: Any) -> dict[str, torch.Tensor]:
        return {"extra": torch.tensor(0.5)}


def test_a_list_of_strategies_acts_as_one(make: Make) -> None:
    small = make(strategies={"both": [LORA, {"class_path": "test_study.Extra"}]})
    small.run()
    run = small.results(small.runs[0])
    assert set(column(run.path / "train.csv", "extra")) == {"0.5"}
    for row in read_csv(run.path / "train.csv"):
        assert float(row["loss"]) == pytest.approx(float(row["nats_per_token"]) + 0.5, rel=1e-6)
    assert all("lora_" in name for name in run.environment()["trainable"]["alpha"])


MINE = '''
from workbench.strategy import ContinualStrategy


class OnlyHead(ContinualStrategy):
    """Trains the head alone."""

    reference = "mine"

    def setup(self, backbone):
        backbone.freeze()
        backbone.model.get_output_embeddings().requires_grad_(True)
'''


def test_a_strategy_in_the_readers_own_folder(
    model_folder: Path, task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_own_method.py").write_text(MINE, encoding="utf-8")
    mine = {"mine": {"class_path": "my_own_method.OnlyHead"}}
    raw = study(model_folder, task_folder, tmp_path / "runs", strategies=mine)
    OmegaConf.save(OmegaConf.create(raw), tmp_path / "mine.yaml")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    small = Study("mine.yaml")
    small.run()
    environment = small.results(small.runs[0]).environment()
    assert environment["trainable"] == {"alpha": ["lm_head.weight"], "beta": ["lm_head.weight"]}
    assert environment["protocol"]["references"] == ["mine"]
    assert load("mine.yaml") == small.config


def test_scores_in_mid_task_and_counts_of_what_was_cut(make: Make) -> None:
    small = make(score_every_n_steps=1, data={"batch_size": 4, "max_prompt_length": 5, "max_answer_length": 1})
    small.run()
    run = small.results(small.runs[0])
    within = cells(run, "within.csv")
    assert {row["step"] for row in within} == {"0", "1", "2", "3", "4"}
    assert [row["on"] for row in within if row["metric"] == "accuracy"] == ["alpha", "beta"] * 5
    environment = run.environment()
    assert environment["cut_in_training"]["alpha"] == {"prompts": 8, "answers": 8}
    assert environment["cut_in_test"]["beta"] == {"prompts": 4, "answers": 4}


# -- bounds


def classes(strategies: dict[str, Any], **changes: Any) -> dict[str, list[str]]:
    config = with_bounds(parse({**study(Path(), Path(), Path()), "strategies": strategies, **changes}))
    return {name: [part.class_path for part in entry.components] for name, entry in config.strategies.items()}


def test_bounds_are_added_under_the_names_of_their_files() -> None:
    seqft = {"class_path": "strategies.SeqFT"}
    assert list(classes({"seqft": seqft})) == ["seqft"]
    assert classes({"seqft": seqft}, bounds=True) == {
        "seqft": ["strategies.SeqFT"],
        "joint": ["strategies.Joint"],
        "per_task_ft": ["strategies.PerTaskFT"],
    }


def test_a_bound_that_the_config_names_keeps_its_own_rate() -> None:
    own = {"class_path": "strategies.Joint", "optimizer": {"init_args": {"lr": 0.5}}}
    raw = {**study(Path(), Path(), Path()), "strategies": {"together": own}, "bounds": True}
    config = with_bounds(parse(raw))
    assert list(config.strategies) == ["together", "per_task_ft"]
    assert config.settings("together").optimizer.init_args["lr"] == 0.5
    assert config.settings("per_task_ft").optimizer == config.optimizer
    assert config.strategies["per_task_ft"].components == [Component("strategies.PerTaskFT")]
    assert with_bounds(config) == config  # they are in, and the run's config says so


def test_a_bound_is_checked_with_the_settings_that_it_would_learn_with(make: Make) -> None:
    own = {**SEQFT, "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}}
    changes = {"strategies": {"seqft": own}, "per_task": {"beta": {"optimizer": {"init_args": {"momentum": 0.9}}}}}
    assert make(**changes).config.settings("seqft", "beta").optimizer.init_args == {"lr": 0.1, "momentum": 0.9}
    with pytest.raises(ConfigError) as caught:
        make(**changes, bounds=True)
    assert caught.value.problems == ["per_task.beta.optimizer.init_args.momentum: AdamW has no argument 'momentum'."]


def test_bounds_are_run_and_marked(model_folder: Path, task_folder: Path, tmp_path: Path) -> None:
    small = Study(parse(study(model_folder, task_folder, tmp_path / "runs", bounds=True)))
    rows = small.run()
    assert [(row["strategy"], row["bound"]) for row in rows] == [
        ("seqft", None),
        ("joint", "OP"),
        ("per_task_ft", "learning_accuracy"),
    ]
    assert load(small.runs[1].folder / "config.yaml").bounds is False
    written = StringIO()
    console = Console(width=200, file=written)
    console.print(comparison_table(*compare([small.folder]), 200))
    text = written.getvalue()
    assert "joint ‡" in text
    assert "per_task_ft ‡" in text
    assert "seqft ‡" not in text
    assert "‡ a bound, not a method of continual learning: joint by OP, per_task_ft by learning accuracy" in text


# -- models, data and methods of each seed's own

MAKER = '''
"""A model of each seed's own, made once."""
from pathlib import Path

from workbench.testing import tiny_backbone


class Maker:
    def __init__(self, folder: str, seed: int, fails: bool = False) -> None:
        self.folder, self.seed, self.fails = Path(folder), seed, fails

    def __call__(self, display) -> None:
        if self.fails:
            raise ValueError("nothing to make it from.")
        if self.folder.is_dir():
            return
        display.note(f"making {self.folder.name}")
        tiny_backbone(seed=self.seed).save(self.folder)
        with (self.folder.parent / "made.txt").open("a") as log:
            log.write(f"{self.seed}\\n")
'''


@pytest.fixture
def seeded(task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A study whose model is made for each seed."""
    (tmp_path / "maker_of_models.py").write_text(MAKER, encoding="utf-8")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    sys.modules.pop("maker_of_models", None)
    models = tmp_path / "models" / "{seed}"
    maker = {"class_path": "maker_of_models.Maker", "init_args": {"folder": str(models), "seed": "{seed}"}}
    return study(models, task_folder, tmp_path / "runs", prepare=maker, seeds=[3, 4])


def test_a_seed_is_put_wherever_room_is_left_for_it(seeded: dict[str, Any]) -> None:
    seeded["strategies"]["seqft"] = [{"class_path": "strategies.LoRA", "init_args": {"peft": {"x": ["a-{seed}-b", 1]}}}]
    config = for_seed(parse(seeded), 12)
    assert config.prepare[0].init_args["seed"] == 12
    assert config.prepare[0].init_args["folder"].endswith("models/12")
    assert config.backbone.path.endswith("models/12")
    assert config.strategies["seqft"].components == [Component("strategies.LoRA", {"peft": {"x": ["a-12-b", 1]}})]
    assert (config.name, config.seeds) == ("small", [3, 4])


def test_each_run_learns_with_the_model_of_its_seed(seeded: dict[str, Any], tmp_path: Path) -> None:
    small = Study(parse(seeded))
    assert not (tmp_path / "models").exists()
    small.run()
    assert (tmp_path / "models" / "made.txt").read_text(encoding="utf-8") == "3\n4\n"
    first, second = (small.results(run) for run in small.runs)
    assert first.environment()["inputs"]["model"] != second.environment()["inputs"]["model"]
    assert first.environment()["inputs"]["data"] == second.environment()["inputs"]["data"]
    for run, seed in ((first, 3), (second, 4)):
        alone = load(run.path / "config.yaml")
        assert (alone.backbone.path, alone.seeds) == (str(tmp_path / "models" / str(seed)), [seed])
        own = RunFolder(small.folder / UNTOUCHED / f"seed-{seed}")
        assert [row for row in run.records.nll if row["after"] == "0"] == own.records.nll
        backbone = Backbone.load(alone.backbone.path, text=small.assembly.text_policy)
        nats, tokens = backbone.nats(backbone.encode(small.assembly.tasks["alpha"].test, 3))
        assert float(own.records.nll[0]["value"]) == pytest.approx(float(nats.sum() / tokens.sum()), rel=1e-5)
    assert len(Study(parse(seeded)).run()) == 2
    assert (tmp_path / "models" / "made.txt").read_text(encoding="utf-8") == "3\n4\n"


def test_another_model_of_a_seed_is_noticed(seeded: dict[str, Any], tmp_path: Path) -> None:
    Study(parse(seeded)).run()
    shutil.rmtree(tmp_path / "models" / "4")
    tiny_backbone(seed=5).save(tmp_path / "models" / "4")
    with pytest.raises(ConfigError) as caught:
        Study(parse(seeded)).run()
    assert len(caught.value.problems) == 1
    assert "seed-4 was made with another model" in caught.value.problems[0]


def test_what_cannot_be_made_is_told_and_nothing_is_written(seeded: dict[str, Any], tmp_path: Path) -> None:
    seeded["prepare"]["init_args"]["fails"] = True
    with pytest.raises(ConfigError, match=r"prepare: maker_of_models\.Maker: nothing to make it from\."):
        Study(parse(seeded)).run()
    assert not (tmp_path / "runs").exists()
    seeded["prepare"]["init_args"] = {"folder": "x", "sead": 1}
    with pytest.raises(ConfigError, match=r"prepare\.0.*sead"):
        Study(parse(seeded))


def test_a_maker_that_makes_something_else(seeded: dict[str, Any], tmp_path: Path) -> None:
    seeded["prepare"]["init_args"]["folder"] = str(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"backbone\.path: .*models/3: there is no such folder"):
        Study(parse(seeded)).run()


# -- a method compared with itself

METHODS: dict[str, dict[str, Any]] = {
    "seqft": {"class_path": "strategies.SeqFT"},
    "lora": {"class_path": "strategies.LoRA", "init_args": {"rank": 2, "dropout": 0.3}},
    "replay": {"class_path": "strategies.Replay", "init_args": {"share": 0.5}},
}
TIMED = {"train_seconds", "eval_seconds", "peak_memory_bytes", "train_tokens_per_second", "decoded_tokens_per_second"}
MEASURED = ("scores.csv", "nll.csv", "within.csv", "train.csv", "predictions/*", "model/*", "model/adapters/*/*")


def measured(run: RunFolder) -> dict[str, bytes]:
    """Whatever a run says of its model, and the model."""
    files = [file for pattern in MEASURED for file in run.path.glob(pattern) if file.is_file()]
    return {file.relative_to(run.path).as_posix(): file.read_bytes() for file in files}


@pytest.mark.parametrize(
    "method", ["seqft", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lora", "replay"))]
)
def test_a_method_differs_from_itself_in_nothing(
    method: str, model_folder: Path, task_folder: Path, tmp_path: Path
) -> None:
    between = {"class_path": "strategies.BlockExpansion", "init_args": {"groups": 2}}  # leaves nothing behind either
    strategies = {"a": METHODS[method], "between": between, "b": METHODS[method]}
    raw = study(model_folder, task_folder, tmp_path, strategies=strategies, seeds=[0, 1], score_every_n_steps=1)
    rows = Study(parse(raw)).run()
    runs = {(run.protocol.strategy, run.path.name): run for run in find_runs(tmp_path)}
    for seed in ("seed-0", "seed-1"):
        one, other = runs["a", seed], runs["b", seed]
        assert len(measured(one)) > 12
        assert measured(one) == measured(other)
        assert list(one.moments().values()) == list(other.moments().values())
    assert measured(runs["a", "seed-0"])["train.csv"] != measured(runs["a", "seed-1"])["train.csv"]
    assert measured(runs["a", "seed-0"])["nll.csv"] != measured(runs["between", "seed-0"])["nll.csv"]
    same = [{name: str(value) for name, value in row.items() if name not in {"strategy", *TIMED}} for row in rows]
    assert same[:2] == same[4:]  # as text, since nan is not nan
    (comparison,) = compare([tmp_path])
    assert comparison.difference("b", "a", "default", "OP").mean == 0.0
    shown = [list(column.cells) for column in comparison_table(comparison).columns]
    assert [cells[0] for cells in shown[1:-1]] == [cells[2] for cells in shown[1:-1]]
