"""A finished run's model as a folder to give away: weights, tokenizer, adapters and a model card."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from workbench.components import ConfigError
from workbench.files import write_whole
from workbench.model_card import adapters_base, grown_here, model_card
from workbench.report import find_runs
from workbench.results import RunFolder


def export(run: str | Path, out: str | Path) -> Path:
    """Copies the model of a finished run, with all that is needed to load and to cite it.

    Adapters are folded into the weights, as they are in the run's folder, so that plain transformers loads it. They
    lie in `adapters/<name>` too and name the base model that plain peft loads them over. A composition has the file
    with its class beside it. The folder appears whole or not at all.

    Args:
        run: The run's folder, or a study's that holds one finished run.
        out: The folder to make.

    Returns:
        The folder.

    Raises:
        ConfigError: There is no finished run or more than one, or the folder is there already.
    """
    out = Path(out)
    found = only_run(run)
    if out.exists():
        raise ConfigError([f"{out} is there already. Give a folder that is not."])
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(found.path / "model", partial)
        _name_base(found, partial)
        write_whole(partial / "README.md", model_card(found))
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def only_run(folder: str | Path) -> RunFolder:
    """The one finished run in a folder.

    Raises:
        ConfigError: There is none, or more than one; its model is gone, or not as it was written.
    """
    runs = find_runs(folder)
    if len(runs) > 1:
        names = ", ".join(str(run.path) for run in runs)
        raise ConfigError([f"{folder} holds {len(runs)} finished runs. Choose one: {names}."])
    if not (runs[0].path / "model").is_dir():
        raise ConfigError(
            [f"{runs[0].path} has no folder `model` any more, so there is nothing to export. Make it again."]
        )
    runs[0].mend()
    return runs[0]


def _name_base(run: RunFolder, folder: Path) -> None:
    """Writes into each adapter what it belongs to; one of a grown model belongs to no base, but to that model."""
    backbone = run.environment()["protocol"]["backbone"]
    base = None if grown_here(folder, backbone) else adapters_base(backbone)
    for file in folder.glob("adapters/*/adapter_config.json"):
        adapter = json.loads(file.read_text(encoding="utf-8"))
        write_whole(file, json.dumps({**adapter, "base_model_name_or_path": base}, indent=2) + "\n")
