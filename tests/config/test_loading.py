"""A study's YAML: reading it, overrides, environment variables, error messages, and writing it again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.configs import YAML, write_study
from helpers.studies import ROOT, study
from omegaconf import OmegaConf

from workbench.config import Component, DataConfig, StudyConfig, dump, load, parse
from workbench.config.loading import resolved, shipped_configs
from workbench.errors import ConfigError

pytestmark = pytest.mark.usefixtures("forget_imports")

SENTINEL = "sentinel-0c9a7e41"
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "DATABASE_PASSWORD")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder, not the current one, with a study and its classes."""
    return write_study(tmp_path).parent


@pytest.fixture
def config(folder: Path) -> StudyConfig:
    return load(folder / "study.yaml")


def problems(folder: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder / "study.yaml", overrides)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def test_the_package_imports_quickly_and_without_torch() -> None:
    code = (
        "import sys, time; t = time.perf_counter(); import workbench.config; t = time.perf_counter() - t\n"
        "print(t, *(m for m in ('torch', 'lightning', 'transformers', 'datasets') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
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


def test_numbers_in_both_spellings_are_floats(config: StudyConfig) -> None:
    assert config.optimizer.init_args["lr"] == 0.001
    assert config.strategies["lora"].changes["optimizer"] == {"init_args": {"lr": 0.002}}


def test_a_written_config_loads_to_an_equal_one(config: StudyConfig, folder: Path) -> None:
    config.benchmark.init_args["path"] = r"C:\data\${not_a_key} ${"
    (folder / "again.yaml").write_text(dump(config))
    assert load(folder / "again.yaml") == config
    assert parse(resolved(config)) == config
    assert resolved(config)["data"]["eval_batch_size"] == 64


def test_overrides_are_values_in_yaml(folder: Path) -> None:
    given = ["seeds=[3,4]", "strategies.lora.init_args.rank=16", "scheduler=null", "trainer.new.key=1e-3"]
    config = load(folder / "study.yaml", [*given, "strategies.mix.1.init_args.a=b=c", "orders=[1, two]"])
    assert config.seeds == [3, 4]
    assert config.strategies["lora"].components == [Component("methods.LoRA", {"rank": 16})]
    assert config.strategies["mix"].components[1].init_args == {"a": "b=c"}
    assert config.trainer["new"] == {"key": 0.001}
    assert config.orders == ["1", "two"]


def test_an_overridden_class_path_drops_only_the_arguments_of_the_file(
    folder: Path,
) -> None:
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


def test_references_are_resolved_and_open_values_reported(folder: Path) -> None:
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
        ("lr", "'lr' is not an override. Write key=value, such as trainer.max_epochs=1."),
        ("a..b=1", "'a..b=1' is not an override. Write key=value, such as trainer.max_epochs=1."),
        ("seeds=[0", "seeds: '[0' is not valid YAML: did not find expected ',' or ']'."),
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
            "strategies.lorra: there is no such strategy to drop. Did you mean 'lora'?",
        ),
        ("strategies.mix.2.a=b", "strategies.mix.2.a: 'strategies.mix.2' has no keys."),
        ("strategies.mix.2=null", "strategies.mix.2: the list strategies.mix has no item 2."),
        ("name.x=1", "name.x: 'name' has no keys."),
        ("strategies.lora=[]", "strategies.lora: an empty list; name one component or more."),
    ],
)
def test_an_override_that_does_not_fit(folder: Path, override: str, problem: str) -> None:
    assert problems(folder, override) == [problem]


def test_all_problems_are_reported_together(folder: Path) -> None:
    found = problems(folder, "seed=1", "oops", "data.batch_size=x", "seeds=[-1]", "strategies.lora.init_arg={}")
    assert [problem.partition(":")[0] for problem in found] == [
        "'oops' is not an override. Write key=value, such as trainer.max_epochs=1.",
        "seed",
        "seeds",
        "strategies.lora.init_arg",
        "data.batch_size",
    ]


def test_a_file_that_is_not_a_study(folder: Path) -> None:
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


def test_all_environment_variables_that_are_not_set_are_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORKBENCH_MODEL", "WORKBENCH_TRACE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError) as caught:
        load("trace")
    message = "is not set. Set it by: export"
    assert caught.value.problems == [
        f"backbone.path: the environment variable WORKBENCH_MODEL {message} WORKBENCH_MODEL=/path/to/model",
        f"benchmark.init_args.path: the environment variable WORKBENCH_TRACE {message} WORKBENCH_TRACE=/path/to/trace",
    ]


def test_an_environment_variable_with_a_default_need_not_be_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORKBENCH_NAME", raising=False)
    file = tmp_path / "study.yaml"
    file.write_text(YAML.replace("name: again", "name: ${oc.env:WORKBENCH_NAME,other}"), encoding="utf-8")
    assert load(file).name == "other"
    file.write_text(YAML.replace("name: again", "name: ${oc.env:WORKBENCH_NAME}"), encoding="utf-8")
    with pytest.raises(ConfigError, match="Set it by: export WORKBENCH_NAME=…"):
        load(file)


def test_no_secret_is_written_or_printed(model_folder: Path, task_folder: Path, tmp_path: Path) -> None:
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path / "logs")}}
    methods = {"lora": {"class_path": "strategies.LoRA"}, "calm": {"class_path": "strategies.CALM"}}
    methods["calm"]["init_args"] = {"augmenting": "micro", "connections": 2}  # type: ignore[assignment]
    raw = study(model_folder, task_folder, Path("runs"), strategies=methods, save_every_n_steps=1)
    raw["trainer"]["logger"] = logger
    OmegaConf.save(OmegaConf.create(raw), tmp_path / "small.yaml")
    secret = dict.fromkeys(SECRETS, SENTINEL)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"} | secret
    printed = b""
    for arguments in (
        ["run", "small.yaml"],
        ["report", "runs/small"],
        ["export", "runs/small/lora/default/seed-0", "out-lora"],
        ["export", "runs/small/calm/default/seed-0", "out-calm"],
    ):
        command = [sys.executable, "-m", "workbench", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        printed += done.stdout + done.stderr
    written = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    names = {Path(name).name for name in written}
    assert {"config.yaml", "environment.json", "journal.jsonl", "README.md", "metrics.csv", "summary.csv"} <= names
    assert b"lora" in printed
    assert [name for name, content in {**written, "stdout": printed}.items() if SENTINEL.encode() in content] == []


@pytest.mark.parametrize(
    "reference",
    [
        "${oc.env:HF_TOKEN}",
        "https://me:${ oc.env : HF_TOKEN , nothing }@host",
        "${oc.env:WORKBENCH_NOWHERE,${oc.env:HF_TOKEN}}",
        "${oc.env:${name}}",
        '${oc.env:"HF_TOKEN"}',
        "\\\\${oc.env:HF_TOKEN}",
    ],
)
def test_a_config_that_reads_a_secret_is_refused_without_showing_it(
    reference: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SENTINEL)
    raw = study(model_folder, tmp_path, tmp_path / "runs", name="HF_TOKEN")
    raw["trainer"]["logger"] = [{"class_path": "some.Logger", "init_args": {"key": reference}}]
    raw["trayner"] = 1
    file = tmp_path / "small.yaml"
    OmegaConf.save(OmegaConf.create(raw), file)
    with pytest.raises(ConfigError) as caught:
        load(file)
    (problem,) = caught.value.problems
    assert problem.startswith("trainer.logger.0.init_args.key: ${")
    assert "only variables whose names begin with WORKBENCH_ can be read" in problem
    assert SENTINEL not in problem


def test_a_secret_is_refused_on_the_command_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SENTINEL)
    with pytest.raises(ConfigError, match=r"^name: \$\{oc\.env:HF_TOKEN\}: only variables"):
        load("quickstart", ["name=${oc.env:HF_TOKEN}"])


def test_workbench_variables_are_read_and_escaped_references_are_kept(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_MODEL", str(model_folder))
    text = {"class_path": "strategies.LoRA", "init_args": {"note": "${oc.env:HF_TOKEN}"}}
    file = tmp_path / "small.yaml"
    file.write_text(dump(parse(study(model_folder, tmp_path, tmp_path / "runs", strategies={"lora": text}))))
    config = load(file, ["backbone.path=${oc.env:WORKBENCH_MODEL}"])
    assert config.backbone.path == str(model_folder)
    assert config.strategies["lora"].components[0].init_args["note"] == "${oc.env:HF_TOKEN}"


def test_a_yaml_tag_builds_nothing(tmp_path: Path) -> None:
    file, folder = tmp_path / "small.yaml", tmp_path / "folder"
    file.write_text(f"name: !!python/object/apply:os.mkdir ['{folder}']\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"small\.yaml, line 1: could not determine a constructor for the tag"):
        load(file)
    assert not folder.exists()
