"""Row 0 of every matrix in a study: the scores of the model as loaded, made once and copied into each run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from workbench.display import Display
from workbench.errors import ConfigError
from workbench.results import RunFolder
from workbench.runtime.distributed import first_rank_first, is_first
from workbench.strategy import ContinualStrategy
from workbench.study.build import Assembly
from workbench.study.resume import UNTOUCHED
from workbench.train import ContinualDataModule, ContinualModule
from workbench.train.loop import MakeTrainer, score_zero_shot


def untouched_path(study: Path, assembly: Assembly, strategy: str, seed: int | None) -> Path:
    """The folder of a row 0: one for a study, but for models of a seed's own, and for strategies in other precisions.

    Args:
        study: The study's folder.
        assembly: Of the runs that it is for.
        strategy: Of the runs that it is for.
        seed: Whose model it is; None: it is that of all seeds.
    """
    config = assembly.config
    first = next(iter(assembly.tasks))
    own = config.settings(strategy, first).trainer.get("precision")
    path = study / UNTOUCHED
    path = path if own == config.trainer.get("precision") else path / f"precision-{own}"
    return path if seed is None else path / f"seed-{seed}"


def untouched_row(
    path: Path,
    assembly: Assembly,
    module: ContinualModule,
    data: ContinualDataModule,
    make_trainer: MakeTrainer,
    display: Display,
) -> RunFolder:
    """Opens the folder of a row 0, and scores what is not there.

    It is made again where it was scored from other inputs, under another text policy or in another precision,
    and where it is damaged.
    """
    policy = {
        "precision": make_trainer(data.tasks[0], []).precision,
        "backbone": vars(assembly.config.backbone),
        "options": data.score_options,
        **assembly.stated_policy,
    }
    if policy["tokenization"] == "apart":  # rows scored before there was another have the same key
        del policy["tokenization"]
    key = json.dumps({**assembly.inputs, **policy}, sort_keys=True)
    with first_rank_first():
        results = _whole(path)
    if _wherever(results.environment().get("scored from", {}).get("key", "{}")) != _wherever(key):
        results.clear()
        results.add_to_environment("scored from", {"key": key})
    for task in data.tested:
        if results.has_cell(0, task.name):
            display.scored(0, task.name, results.value(0, task.name, task.primary))
    asked = ContinualModule(module.backbone, ContinualStrategy(), module.make_optimizer)
    score_zero_shot(asked, data, make_trainer, results, display)
    return results


def _wherever(key: str) -> Any:
    """What a row 0 was scored from, but for the place where the model lies: its fingerprint tells models apart."""
    known = json.loads(key)
    known.get("backbone", {}).pop("path", None)
    return known


def _whole(path: Path) -> RunFolder:
    """The folder of scores that can be made again; what is damaged in it is gone."""
    try:
        results = RunFolder(path, writes=is_first())
        if is_first():
            results.mend()
    except ConfigError:
        shutil.rmtree(path)
        results = RunFolder(path)
    return results
