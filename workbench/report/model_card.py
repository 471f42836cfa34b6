"""Export a finished run as a Hugging Face model folder with a model card."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData, metadata_load, try_to_load_from_cache

from workbench.config import Component, StudyConfig, load
from workbench.errors import ConfigError
from workbench.formatting import duration, number
from workbench.model_folder import FETCHED, SHIPPED, is_gguf, locate
from workbench.report.comparison import MEASURES
from workbench.report.terminal import protocol_words
from workbench.report.write import find_runs
from workbench.results import Protocol, RunFolder
from workbench.runtime.files import read_csv, write_whole

SPEEDS = (("training", "train_tokens_per_second"), ("decoding", "decoded_tokens_per_second"))
KERNELS: dict[bool | str | None, str] = {True: "yes", "warn": "yes, wherever torch has one", False: "not requested"}
FOLDER = "path/to/this/folder"


def model_card(run: RunFolder) -> str:
    """Return the card of a finished run as Markdown, with Hugging Face's front matter.

    Args:
        run: Folder of the run, from which every number is read.
    """
    protocol, study = run.protocol, load(run.path / "config.yaml")
    config = json.loads((run.path / "model" / "config.json").read_text(encoding="utf-8"))
    count = len(protocol.order)
    sections = [
        f"---\n{_front_matter(protocol, config)}\n---",
        f"# {protocol.strategy} on {protocol.benchmark.rpartition('.')[2]}",
        f"A language model trained on {count} task{'s' * (count > 1)} and scored with continual-workbench.",
        "## How to load it",
        _loading(run, protocol, config),
        "## How it was trained",
        _table(("", ""), _facts(run, study)),
        _growth(config),
        _costs(run),
        "## Scores",
        _table(list(MEASURES), [[number(run.summary()[name]) for name in MEASURES]]),
        "\n".join(f"- {name.replace('_', ' ')}: {meaning}" for name, meaning in MEASURES.items()),
        "All are means over domains; – was not measured.",
        _domains(run),
        protocol.benchmark_notes,
        "## The run's config",
        f"```yaml\n{(run.path / 'config.yaml').read_text(encoding='utf-8').strip()}\n```",
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def adapters_base(path: str) -> str | None:
    """Return the base model for peft: the hub id or the absolute folder; None for a named model or a GGUF file.

    >>> adapters_base("meta-llama/Llama-3.2-1B"), adapters_base("mini")
    ('meta-llama/Llama-3.2-1B', None)
    """
    source = locate(path)
    if isinstance(source, str):
        return source
    return None if path in (*SHIPPED, *FETCHED) or is_gguf(source) else str(source.resolve())


def grown_here(folder: Path, backbone: str) -> bool:
    """Return True if a model has other layers, or a larger vocabulary, than the backbone that its run began with."""
    final, base = _config(folder), _config(locate(backbone))
    larger = bool(base) and final.get("vocab_size") != base.get("vocab_size")
    return larger or final.get("layer_plan") != base.get("layer_plan")


def _config(place: Path | str) -> dict[str, Any]:
    """Return a model's config; {} where it is on the hub and not in the cache."""
    file = try_to_load_from_cache(place, "config.json") if isinstance(place, str) else place / "config.json"
    if not isinstance(file, str | Path) or not Path(file).is_file():
        return {}
    return dict(json.loads(Path(file).read_text(encoding="utf-8")))


def in_words(plan: Sequence[Sequence[Any]]) -> str:
    """Describe a layer plan in words, bottom first, with runs of neighbours joined.

    >>> in_words([[0, False], [1, False], [1, True], [2, False], [3, False]])
    '0 to 1, a copy of 1 that began as the identity, 2 to 3'
    """
    # Within a run of neighbours the source less the place is the same.
    runs = groupby(enumerate(plan), key=lambda entry: (bool(entry[1][1]), entry[1][0] - entry[0]))
    words = []
    for (identity, _), entries in runs:
        sources = [layer[0] for _, layer in entries]
        name = f"{sources[0]}" if len(sources) == 1 else f"{sources[0]} to {sources[-1]}"
        copies = "a copy of" if len(sources) == 1 else "copies of"
        words.append(f"{copies} {name} that began as the identity" if identity else name)
    return ", ".join(words)


def _front_matter(protocol: Protocol, config: Mapping[str, Any]) -> str:
    source = locate(protocol.backbone)
    hub = isinstance(source, str)
    card = try_to_load_from_cache(source, "README.md") if isinstance(source, str) else source / "README.md"
    known = metadata_load(card) if isinstance(card, (str, Path)) and Path(card).is_file() else None
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=protocol.backbone if hub else None,
        license=(known or {}).get("license"),
        tags=["continual-learning", protocol.strategy, config["model_type"]],
    )
    return str(data.to_yaml())


def _loading(run: RunFolder, protocol: Protocol, config: Mapping[str, Any]) -> str:
    own_code = ", trust_remote_code=True" if "auto_map" in config else ""
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        f'model = AutoModelForCausalLM.from_pretrained("{FOLDER}"{own_code})',
        f'tokenizer = AutoTokenizer.from_pretrained("{FOLDER}")',
    ]
    parts = [_code(lines)]
    if own_code:
        parts.append("The model's class lies beside its weights, in one file that needs torch and transformers only.")
    names = sorted(folder.name for folder in (run.path / "model" / "adapters").glob("*"))
    if names and grown_here(run.path / "model", protocol.backbone):
        parts.append(
            "The adapters beside it are merged into it already. They fit the layers of this model, not the base."
        )
    elif names:
        parts += ["The adapters are merged into it already. To load them over the base model:", _peft(names, protocol)]
    return "\n\n".join(parts)


def _peft(names: Sequence[str], protocol: Protocol) -> str:
    base = adapters_base(protocol.backbone)
    place = f'"{base}"' if base else f'locate("{protocol.backbone}")'
    needed = "from workbench import Backbone" if is_gguf(Path(protocol.backbone)) else ""
    needed = needed or ("" if base else "from workbench.model_folder import locate")
    loaded = f'AutoModelForCausalLM.from_pretrained({place}, dtype="{protocol.dtype}")'
    if is_gguf(Path(protocol.backbone)):  # plain transformers reads it slowly, and its tokenizer otherwise
        loaded = f'Backbone.load("{protocol.backbone}", dtype="{protocol.dtype}").model'
    lines = ["from peft import PeftModel", *filter(None, [needed])]
    lines += [
        f"base = {loaded}",
        f'model = PeftModel.from_pretrained(base, "{FOLDER}/adapters/{names[0]}", adapter_name="{names[0]}")',
    ]
    lines += [f'model.load_adapter("{FOLDER}/adapters/{name}", "{name}")' for name in names[1:]]
    if len(names) > 1:
        lines.append(f"model.base_model.set_adapter({json.dumps(list(names))})  # they add up")
    return _code(lines)


def _quantised(protocol: Protocol) -> str:
    """Say which quantised file the backbone's weights come from."""
    if not (origin := protocol.dequantised):
        return ""
    kinds = ", ".join(f"{count} tensors {kind}" for kind, count in origin["tensors"].items())
    return f", dequantised from `{origin['file']}` ({kinds})"


def _facts(run: RunFolder, study: StudyConfig) -> Iterable[Sequence[str]]:
    """Return labels and values of the table on training; rows without a value are left out."""
    protocol, versions = run.protocol, run.environment()["versions"]
    components = [part for strategy in study.strategies.values() for part in strategy.components]
    task_id = "; it is given the task's identity at test time" if protocol.task_id_at_test else ""
    rows = (
        ("strategy", ", then ".join(map(_called, components)) + task_id),
        ("paper", "; ".join(dict.fromkeys(protocol.references))),
        ("backbone", f"`{protocol.backbone}`, loaded as {protocol.dtype}{_quantised(protocol)}"),
        ("benchmark", _called(study.benchmark)),
        ("tasks in order", f"{' → '.join(protocol.order)} (order `{protocol.order_name}`)"),
        ("seed", str(protocol.seed)),
        ("precision of training", str(protocol.precision)),
        ("deterministic kernels", KERNELS.get(protocol.deterministic, "")),
        ("scored", f"on {protocol.scored_on} rows; decoding {protocol.decoding}"),
        ("encoding and optimizer", protocol_words(protocol).removesuffix("; ")),
        ("prompts", f"template {protocol.text['template']}; long ones cut: {protocol.text['truncation']}"),
        ("end token", f"`{protocol.end_token}`"),
        ("cost", _cost(run.summary())),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)),
    )
    return [row for row in rows if row[1]]


def _called(component: Component) -> str:
    """Return a component as a call, in Markdown."""
    arguments = ", ".join(f"{name}={value!r}" for name, value in component.init_args.items())
    return f"`{component.class_path}({arguments})`"


def _cost(summary: Mapping[str, Any]) -> str:
    speeds = [f"{kind} {summary[key]:,.0f} tokens a second" for kind, key in SPEEDS if not math.isnan(summary[key])]
    memory = summary["peak_memory_bytes"]
    peak = [] if math.isnan(memory) else [f"peak memory {memory / 1e6:,.0f} MB"]
    return "; ".join([f"{duration(summary['train_seconds'])} of training", *speeds, *peak])


def _growth(config: Mapping[str, Any]) -> str:
    """Describe the model's layers where they are not those of the base model; else ""."""
    if config.get("layer_plan"):
        plan = config["layer_plan"]
        return f"Its {len(plan)} layers, counted from 0 in the model before any growth: {in_words(plan)}."
    if "augmenting" not in config:
        return ""
    joined = [
        f"augmenting model {count}'s layers to the anchor's: "
        + ", ".join(f"{lower} → {upper}" for lower, upper in pairs)
        for count, pairs in enumerate(config["connections"], start=1)
    ]
    return f"It connects, by cross-attention, {'; '.join(joined)} (layers counted from 0)."


def _costs(run: RunFolder) -> str:
    columns = ("steps", "tokens", "trainable_parameters", "added_parameters")
    trainable = run.environment()["trainable"]
    rows = [
        [row["item"], _where(trainable[row["item"]]), *(f"{int(row[name]):,}" for name in columns)]
        for row in read_csv(run.path / "costs.csv")
    ]
    return _table(["item", "what trained", *(name.replace("_", " ") for name in columns)], rows)


def _where(names: Iterable[str]) -> str:
    """Name the parts of a model that some parameters belong to.

    >>> _where(["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
    'layers 0 to 1, norm'
    """
    names = list(names)
    matches = [(name, re.search(r"layers\.(\d+)\.", name)) for name in names]
    layers = sorted({int(match.group(1)) for _, match in matches if match})
    others = dict.fromkeys(name.removeprefix("model.").partition(".")[0] for name, match in matches if not match)
    kind = "adapters in layers" if all("lora_" in name for name in names) else "layers"
    return ", ".join([*([f"{kind} {in_words([[layer, False] for layer in layers])}"] if layers else []), *others])


def _domains(run: RunFolder) -> str:
    """Return the table of primary scores by domain, probe and corpus."""
    protocol, moments = run.protocol, run.moments().values()
    kinds = {name: " (a probe)" for name in protocol.probes} | {protocol.general: " (text; lower is better)"}
    rows = [
        [
            name + kinds.get(name, ""),
            protocol.primary[name],
            *(number(scores.get(name, math.nan)) for scores in moments),
            str(protocol.test_rows[name]),
        ]
        for name in protocol.tested
    ]
    return _table(("domain", "metric", "zero-shot", "just learnt", "at the end", "rows"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _code(lines: Sequence[str]) -> str:
    return "```python\n" + "\n".join(lines) + "\n```"


def export(run: str | Path, out: str | Path) -> Path:
    """Copy the model of a finished run, with all that is needed to load and to cite it.

    Adapters are merged into the weights, as in the run's folder, so that plain transformers loads the model. They are
    in `adapters/<name>` too, with the name of the base model that plain peft loads them over. A composition has the
    file with its class beside it. The folder appears complete or not at all.

    Args:
        run: Folder of the run, or of a study that holds one finished run.
        out: Folder to create.

    Returns:
        Path of the new folder.

    Raises:
        ConfigError: There is no finished run or more than one, or the folder exists.
    """
    out = Path(out)
    source = only_run(run)
    if out.exists():
        raise ConfigError([f"{out} is there already. Give a folder that is not."])
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(source.path / "model", partial)
        _name_base(source, partial)
        write_whole(partial / "README.md", model_card(source))
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def only_run(folder: str | Path) -> RunFolder:
    """Return the only finished run in a folder.

    Raises:
        ConfigError: There is none, or more than one; its model was deleted or changed.
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
    """Write into each adapter the name of its base model; adapters of a grown model have none."""
    backbone = run.protocol.backbone
    base = None if grown_here(folder, backbone) else adapters_base(backbone)
    for file in folder.glob("adapters/*/adapter_config.json"):
        adapter = json.loads(file.read_text(encoding="utf-8"))
        write_whole(file, json.dumps({**adapter, "base_model_name_or_path": base}, indent=2) + "\n")
