"""A study's YAML: read, overridden, refused with reasons, laid over in the right order, written again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from workbench.config import Component, DataConfig, StudyConfig, dump, load, parse
from workbench.config.components import import_class
from workbench.config.loading import resolved, shipped_configs
from workbench.config.validation import check
from workbench.errors import ConfigError

YAML = """
name: again
seeds: [0, 1]
benchmark: {class_path: methods.Bench, init_args: {path: here}}
strategies:
  seqft: {class_path: methods.Plain}
  lora:
    class_path: methods.LoRA
    init_args: {rank: 8}
    optimizer: {init_args: {lr: 2e-3}}
    per_task: {FOMC: {max_epochs: 7}}
  mix:
    - {class_path: methods.LoRA, trainer: {max_steps: 5}}
    - {class_path: methods.Plain}
optimizer: {class_path: methods.Adam, init_args: {lr: 1.0e-3, decay: 0.1}}
per_task:
  FOMC: {max_epochs: 3, optimizer: {init_args: {lr: 1.0e-5}}}
  MeetingBank: {optimizer: {class_path: methods.SGD}, scheduler: {class_path: methods.Cosine}}
data: {batch_size: 32, max_length: 256}
trainer: {max_epochs: 1, accelerator: auto}
"""

METHODS = """
class Bench:
    def __init__(self, path: str): ...
class Plain: ...
class LoRA:
    def __init__(self, rank: int = 8): ...
class Adam:
    def __init__(self, params, lr: float = 1.0, decay: float = 0.0): ...
class SGD:
    def __init__(self, params, lr: float = 1.0): ...
class Cosine:
    def __init__(self, optimizer, steps: int = 1): ...
class Trainer:
    def __init__(self, max_epochs: int | None = None, max_steps: int = -1, accelerator: str = "auto"): ...
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lay a study and its classes in a folder that is not the current one."""
    (tmp_path / "study.yaml").write_text(YAML)
    (tmp_path / "methods.py").write_text(METHODS)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", {**sys.modules})
    return tmp_path


@pytest.fixture
def study(folder: Path) -> StudyConfig:
    return load(folder / "study.yaml")


def problems(folder: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder / "study.yaml", overrides)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def test_importing_it_is_quick_and_brings_no_engine() -> None:
    code = (
        "import sys, time; t = time.perf_counter(); import workbench.config; t = time.perf_counter() - t\n"
        "print(t, *(m for m in ('torch', 'lightning', 'transformers', 'datasets') if m in sys.modules))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    seconds, *engines = done.stdout.split()
    assert engines == []
    assert float(seconds) < 1.0  # 0.1 on a quiet machine; torch alone would take several


def test_defaults(folder: Path) -> None:
    (folder / "small.yaml").write_text("{name: a, benchmark: {class_path: m.B}, strategies: {s: {class_path: m.S}}}")
    config = load(folder / "small.yaml")
    assert (config.seeds, config.orders, config.existing, config.output) == ([0], None, "resume", "runs")
    assert (config.backbone.path, config.backbone.dtype, config.scheduler) == ("mini", None, None)
    assert config.optimizer == Component("torch.optim.AdamW", {"lr": 1e-4})
    assert config.data == DataConfig(batch_size=32, eval_batch_size=64, template="none", truncation="left")


def test_numbers_in_both_spellings_are_floats(study: StudyConfig) -> None:
    assert study.optimizer.init_args["lr"] == 0.001
    assert study.strategies["lora"].changes["optimizer"] == {"init_args": {"lr": 0.002}}


def test_a_written_config_loads_to_an_equal_one(study: StudyConfig, folder: Path) -> None:
    study.benchmark.init_args["path"] = r"C:\data\${not_a_key} ${"
    (folder / "again.yaml").write_text(dump(study))
    assert load(folder / "again.yaml") == study
    assert parse(resolved(study)) == study
    assert resolved(study)["data"]["eval_batch_size"] == 64


def test_overrides_are_values_in_yaml(folder: Path) -> None:
    given = ["seeds=[3,4]", "strategies.lora.init_args.rank=16", "scheduler=null", "trainer.new.key=1e-3"]
    config = load(folder / "study.yaml", [*given, "strategies.mix.1.init_args.a=b=c", "orders=[1, two]"])
    assert config.seeds == [3, 4]
    assert config.strategies["lora"].components == [Component("methods.LoRA", {"rank": 16})]
    assert config.strategies["mix"].components[1].init_args == {"a": "b=c"}
    assert config.trainer["new"] == {"key": 0.001}
    assert config.orders == ["1", "two"]


def test_a_class_path_drops_the_file_s_arguments_and_keeps_the_line_s(folder: Path) -> None:
    new = ["optimizer.init_args.momentum=0.9", "optimizer.class_path=methods.SGD"]
    for overrides in (new, new[::-1]):
        config = load(folder / "study.yaml", overrides)
        assert config.optimizer == Component("methods.SGD", {"momentum": 0.9})


def test_strategies_are_replaced_and_dropped(folder: Path) -> None:
    assert list(load(folder / "study.yaml", ["strategies.mix=null"]).strategies) == ["seqft", "lora"]
    replaced = load(folder / "study.yaml", ["strategies={lora: {class_path: methods.LoRA}}"])
    assert list(replaced.strategies) == ["lora"]
    assert replaced.strategies["lora"].changes == {}
    assert problems(folder, "strategies={}") == ["strategies: empty; a study needs one strategy or more."]


def test_references_are_resolved_and_open_values_told(folder: Path) -> None:
    config = load(folder / "study.yaml", ["data.eval_batch_size=${data.batch_size}", "data.batch_size=8"])
    assert config.data.eval_batch_size == 8
    assert problems(folder, "data.batch_size=${dat.size}") == [
        "data.batch_size: Interpolation key 'dat.size' not found. Name a key that is there."
    ]
    assert problems(folder, "benchmark.init_args.path=???", "seeds=???") == [
        f"{key}: left open (???). Write it in the file, or give {key}=… ."
        for key in ("seeds", "benchmark.init_args.path")
    ]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("lr", "'lr' is no override. Write key=value, such as trainer.max_epochs=1."),
        ("a..b=1", "'a..b=1' is no override. Write key=value, such as trainer.max_epochs=1."),
        ("seeds=[0", "seeds: '[0' is no YAML: did not find expected ',' or ']'."),
        ("sedes=[0]", "sedes: a study has no key 'sedes'. Did you mean 'seeds'?"),
        ("data.bach_size=1", "data.bach_size: data has no key 'bach_size'. Did you mean 'batch_size'?"),
        (
            "strategies.lora.rank=1",
            "strategies.lora.rank: strategies.lora has no key 'rank'. "
            "Its keys are class_path, init_args, optimizer, scheduler, trainer, per_task, sweep, trial_of.",
        ),
        (
            "strategies.lorra.init_args.rank=1",
            "strategies.lorra.class_path: missing; this would be a new strategy. Did you mean 'lora'?",
        ),
        (
            "strategies.lorra=null",
            "strategies.lorra: there is no such strategy to leave out. Did you mean 'lora'?",
        ),
        ("strategies.mix.2.a=b", "strategies.mix.2.a: there are no keys in 'strategies.mix.2'."),
        ("strategies.mix.2=null", "strategies.mix.2: the list at strategies.mix has no place 2."),
        ("name.x=1", "name.x: there are no keys in 'name'."),
        ("strategies.lora=[]", "strategies.lora: an empty list; name one component or more."),
    ],
)
def test_an_override_that_cannot_be(folder: Path, override: str, problem: str) -> None:
    assert problems(folder, override) == [problem]


def test_all_problems_come_together(folder: Path) -> None:
    found = problems(folder, "seed=1", "oops", "data.batch_size=x", "seeds=[-1]", "strategies.lora.init_arg={}")
    assert [problem.partition(":")[0] for problem in found] == [
        "'oops' is no override. Write key=value, such as trainer.max_epochs=1.",
        "seed",
        "seeds",
        "strategies.lora.init_arg",
        "data.batch_size",
    ]


def test_classes_are_checked_in_each_layer_and_each_problem_is_told_once(folder: Path) -> None:
    keys = ["optimizer.init_args.dcay=1", "strategies.lora.init_args.rnk=8", "trainer.max_epochs=many"]
    more = ["strategies.lora.optimizer.init_args.lr=fast", "per_task.FOMC.trainer.max_step=1"]
    config = load(folder / "study.yaml", keys + more)
    assert check(config, trainer=import_class("methods.Trainer")) == [
        "optimizer.init_args.dcay: Adam has no argument 'dcay'. Did you mean 'decay'?",
        "trainer.max_epochs: expected int or None, got 'many' (str).",
        "per_task.FOMC.trainer.max_step: Trainer has no argument 'max_step'. Did you mean 'max_steps'?",
        "strategies.lora.init_args.rnk: LoRA has no argument 'rnk'. Did you mean 'rank'?",
        "strategies.lora.optimizer.init_args.lr: expected float, got 'fast' (str).",
    ]


def test_a_study_without_problems_and_the_names_of_a_composition(folder: Path) -> None:
    assert check(load(folder / "study.yaml"), trainer=import_class("methods.Trainer")) == []
    config = load(folder / "study.yaml", ["strategies.mix.1.init_args.a=1", "benchmark.class_path=methods.Bench"])
    assert check(config) == [
        "benchmark.init_args.path: missing; Bench needs it.",
        "strategies.mix.1.init_args.a: Plain has no argument 'a'.",
    ]


def test_a_file_that_is_no_study(folder: Path) -> None:
    path = folder / "bad.yaml"
    for text, problem in [
        ("name: a\nseeds: [0\ndata: {}\n", f"{path}, line 3: did not find expected ',' or ']'."),
        ("name: a\nname: b\n", f"{path}, line 2: found duplicate key name."),
        ("- a\n", f"{path}: expected a mapping of keys, got a list. Write `key: value`."),
        (
            "",
            "\n".join(f"{key}: missing; every study needs it." for key in ("name", "benchmark", "strategies")),
        ),
    ]:
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            load(path)
        assert str(caught.value) == problem


def test_shipped_configs_are_found_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "workbench").mkdir()
    (folder / "configs" / "trace").mkdir(parents=True)
    (folder / "configs" / "quickstart.yaml").write_text(YAML)
    (folder / "configs" / "trace" / "small.yaml").write_text(YAML)
    monkeypatch.setattr("workbench.config.loading.__file__", str(folder / "workbench" / "config" / "loading.py"))
    assert list(shipped_configs()) == ["quickstart", "trace/small"]
    assert load("quickstart") == load("trace/small") == load(folder / "study.yaml")
    with pytest.raises(ConfigError) as caught:
        load("quikstart")
    assert str(caught.value) == (
        "there is no file 'quikstart', nor a shipped config. Did you mean 'quickstart'? "
        "Give a path, or choose from quickstart, trace/small."
    )


def test_all_variables_that_are_not_set_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORKBENCH_MODEL", "WORKBENCH_TRACE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError) as caught:
        load("trace")
    told = "of the environment is not set. Give it by: export"
    assert caught.value.problems == [
        f"backbone.path: the variable WORKBENCH_MODEL {told} WORKBENCH_MODEL=/path/to/model",
        f"benchmark.init_args.path: the variable WORKBENCH_TRACE {told} WORKBENCH_TRACE=/path/to/trace",
    ]


def test_a_variable_with_something_in_its_stead_need_not_be_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORKBENCH_NAME", raising=False)
    file = tmp_path / "study.yaml"
    file.write_text(YAML.replace("name: again", "name: ${oc.env:WORKBENCH_NAME,other}"), encoding="utf-8")
    assert load(file).name == "other"
    file.write_text(YAML.replace("name: again", "name: ${oc.env:WORKBENCH_NAME}"), encoding="utf-8")
    with pytest.raises(ConfigError, match="Give it by: export WORKBENCH_NAME=…"):
        load(file)
