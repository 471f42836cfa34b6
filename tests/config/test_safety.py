"""No secret of the environment is written or printed, and a config's YAML runs nothing by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.studies import ROOT, study
from omegaconf import OmegaConf

from workbench.config import dump, load, parse
from workbench.errors import ConfigError

SENTINEL = "sentinel-0c9a7e41"
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "DATABASE_PASSWORD")


def test_no_secret_is_written_or_printed(model_folder: Path, task_folder: Path, tmp_path: Path) -> None:
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path / "logs")}}
    methods = {"lora": {"class_path": "strategies.LoRA"}, "calm": {"class_path": "strategies.CALM"}}
    methods["calm"]["init_args"] = {"augmenting": "micro", "connections": 2}  # type: ignore[assignment]
    raw = study(model_folder, task_folder, Path("runs"), strategies=methods, save_every_n_steps=1)
    raw["trainer"]["logger"] = logger
    OmegaConf.save(OmegaConf.create(raw), tmp_path / "small.yaml")
    secret = dict.fromkeys(SECRETS, SENTINEL)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"} | secret
    said = b""
    for arguments in (
        ["run", "small.yaml"],
        ["report", "runs/small"],
        ["export", "runs/small/lora/default/seed-0", "out-lora"],
        ["export", "runs/small/calm/default/seed-0", "out-calm"],
    ):
        command = [sys.executable, "-m", "workbench", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        said += done.stdout + done.stderr
    written = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    names = {Path(name).name for name in written}
    assert {"config.yaml", "environment.json", "journal.jsonl", "README.md", "metrics.csv", "summary.csv"} <= names
    assert b"lora" in said
    assert [name for name, content in {**written, "the screen": said}.items() if SENTINEL.encode() in content] == []


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


def test_a_secret_is_refused_in_the_command_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SENTINEL)
    with pytest.raises(ConfigError, match=r"^name: \$\{oc\.env:HF_TOKEN\}: only variables"):
        load("quickstart", ["name=${oc.env:HF_TOKEN}"])


def test_variables_of_ours_are_read_and_a_text_that_only_looks_so_is_kept(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_MODEL", str(model_folder))
    text = {"class_path": "strategies.LoRA", "init_args": {"note": "${oc.env:HF_TOKEN}"}}
    file = tmp_path / "small.yaml"
    file.write_text(dump(parse(study(model_folder, tmp_path, tmp_path / "runs", strategies={"lora": text}))))
    config = load(file, ["backbone.path=${oc.env:WORKBENCH_MODEL}"])
    assert config.backbone.path == str(model_folder)
    assert config.strategies["lora"].components[0].init_args["note"] == "${oc.env:HF_TOKEN}"


def test_a_tag_in_a_yaml_builds_nothing(tmp_path: Path) -> None:
    file, made = tmp_path / "small.yaml", tmp_path / "made"
    file.write_text(f"name: !!python/object/apply:os.mkdir ['{made}']\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"small\.yaml, line 1: could not determine a constructor for the tag"):
        load(file)
    assert not made.exists()
