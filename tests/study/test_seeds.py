"""What a config leaves open for the seed: models, data and methods of a seed's own, made before its runs."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.studies import study

from workbench.backbone import Backbone
from workbench.config import Component, load, parse
from workbench.config.schema import for_seed
from workbench.errors import ConfigError
from workbench.results import RunFolder
from workbench.study import Study
from workbench.study.resume import UNTOUCHED
from workbench.testing.tiny import tiny_backbone

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
def raw(task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A study whose model is made for each seed."""
    (tmp_path / "maker_of_models.py").write_text(MAKER, encoding="utf-8")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    sys.modules.pop("maker_of_models", None)
    models = tmp_path / "models" / "{seed}"
    maker = {"class_path": "maker_of_models.Maker", "init_args": {"folder": str(models), "seed": "{seed}"}}
    return study(models, task_folder, tmp_path / "runs", prepare=maker, seeds=[3, 4])


def test_a_seed_is_put_wherever_room_is_left_for_it(raw: dict[str, Any]) -> None:
    raw["strategies"]["seqft"] = [{"class_path": "strategies.LoRA", "init_args": {"peft": {"x": ["a-{seed}-b", 1]}}}]
    config = for_seed(parse(raw), 12)
    assert config.prepare[0].init_args["seed"] == 12
    assert config.prepare[0].init_args["folder"].endswith("models/12")
    assert config.backbone.path.endswith("models/12")
    assert config.strategies["seqft"].components == [Component("strategies.LoRA", {"peft": {"x": ["a-12-b", 1]}})]
    assert (config.name, config.seeds) == ("small", [3, 4])


def test_each_run_learns_with_the_model_of_its_seed(raw: dict[str, Any], tmp_path: Path) -> None:
    small = Study(parse(raw))
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
    assert len(Study(parse(raw)).run()) == 2
    assert (tmp_path / "models" / "made.txt").read_text(encoding="utf-8") == "3\n4\n"


def test_another_model_of_a_seed_is_noticed(raw: dict[str, Any], tmp_path: Path) -> None:
    Study(parse(raw)).run()
    shutil.rmtree(tmp_path / "models" / "4")
    tiny_backbone(seed=5).save(tmp_path / "models" / "4")
    with pytest.raises(ConfigError) as caught:
        Study(parse(raw)).run()
    assert len(caught.value.problems) == 1
    assert "seed-4 was made with another model" in caught.value.problems[0]


def test_what_cannot_be_made_is_told_and_nothing_is_written(raw: dict[str, Any], tmp_path: Path) -> None:
    raw["prepare"]["init_args"]["fails"] = True
    with pytest.raises(ConfigError, match=r"prepare: maker_of_models\.Maker: nothing to make it from\."):
        Study(parse(raw)).run()
    assert not (tmp_path / "runs").exists()
    raw["prepare"]["init_args"] = {"folder": "x", "sead": 1}
    with pytest.raises(ConfigError, match=r"prepare\.0.*sead"):
        Study(parse(raw))


def test_a_maker_that_makes_something_else(raw: dict[str, Any], tmp_path: Path) -> None:
    raw["prepare"]["init_args"]["folder"] = str(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"backbone\.path: .*models/3: there is no such folder"):
        Study(parse(raw)).run()
