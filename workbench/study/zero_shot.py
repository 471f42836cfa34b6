"""Row 0 of every matrix in a study: the scores of the model as loaded, computed once and copied into each run."""

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


def zero_shot_folder(study: Path, assembly: Assembly, strategy: str, seed: int | None) -> Path:
    """Return the folder of a row 0: one per study, and one per seed or precision where the row depends on them.

    Args:
        study: Folder of the study.
        assembly: Objects of the runs that the row is for.
        strategy: Strategy of these runs.
        seed: Seed of the model; None: all seeds have the same model.
    """
    config = assembly.config
    first_task = next(iter(assembly.tasks))
    precision = config.settings(strategy, first_task).trainer.get("precision")
    folder = study / UNTOUCHED
    folder = folder if precision == config.trainer.get("precision") else folder / f"precision-{precision}"
    return folder if seed is None else folder / f"seed-{seed}"


def zero_shot_row(
    folder: Path,
    assembly: Assembly,
    module: ContinualModule,
    data: ContinualDataModule,
    make_trainer: MakeTrainer,
    display: Display,
) -> RunFolder:
    """Open the folder of a row 0, and score what is missing.

    All of it is scored again if it was scored from other inputs, under another text policy or in another precision, or
    if it is damaged.
    """
    key = _key(assembly, data, make_trainer)
    with first_rank_first():
        results = _open(folder)
    if _without_path(results.environment().get("scored from", {}).get("key", "{}")) != _without_path(key):
        results.clear()
        results.add_to_environment("scored from", {"key": key})
    if not all(results.has_cell(0, task.name) for task in data.tested):
        display.stage("scoring the zero-shot model")
    for task in data.tested:
        if results.has_cell(0, task.name):
            display.scored(0, task.name, results.value(0, task.name, task.primary))
    plain = ContinualModule(module.backbone, ContinualStrategy(), module.make_optimizer)
    score_zero_shot(plain, data, make_trainer, results, display)
    return results


def _key(assembly: Assembly, data: ContinualDataModule, make_trainer: MakeTrainer) -> str:
    """Return what the scores of a row 0 depend on, as JSON."""
    policy = {
        "precision": make_trainer(data.tasks[0], []).precision,
        "backbone": vars(assembly.config.backbone),
        "options": data.score_options,
        **assembly.stated_policy,
    }
    if policy["tokenization"] == "apart":  # rows scored before there was another have the same key
        del policy["tokenization"]
    return json.dumps({**assembly.inputs, **policy}, sort_keys=True)


def _without_path(key: str) -> Any:
    """Return a key without the path of the model, which may move: its fingerprint tells models apart."""
    values = json.loads(key)
    values.get("backbone", {}).pop("path", None)
    return values


def _open(folder: Path) -> RunFolder:
    """Open a folder of scores; one that is damaged is deleted first, for it can be scored again."""
    try:
        results = RunFolder(folder, writes=is_first())
        if is_first():
            results.mend()
    except ConfigError:
        shutil.rmtree(folder)
        results = RunFolder(folder)
    return results
