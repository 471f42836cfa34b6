"""What is given away loads with plain transformers and plain peft, and the card says what was measured."""

from __future__ import annotations

import json
import math
import re
import runpy
import shutil
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.studies import study, weights
from huggingface_hub import metadata_load
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from workbench.backbone import Backbone
from workbench.cli import app, guarded
from workbench.config import parse
from workbench.errors import ConfigError
from workbench.formatting import duration, number
from workbench.report import export
from workbench.report.comparison import MEASURES
from workbench.report.model_card import FOLDER, in_words
from workbench.results import RunFolder
from workbench.study import Study

STRATEGIES = {
    "seqft": [{"class_path": "strategies.SeqFT"}],
    "lora": [{"class_path": "strategies.LoRA"}],
    "stack": [{"class_path": "strategies.LoRA", "init_args": {"policy": "stack"}}],
    "blocks": [{"class_path": "strategies.BlockExpansion", "init_args": {"groups": 2}}],
    "grown_lora": [
        {"class_path": "strategies.DepthUpScaling", "init_args": {"dropped": 0}},
        {"class_path": "strategies.LoRA"},
    ],
    "calm": [{"class_path": "strategies.CALM", "init_args": {"augmenting": "micro", "connections": 2}}],
}
TOKENS = torch.arange(3, 13).unsqueeze(0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, task_folder: Path) -> Path:
    """A finished study of six strategies, one run each."""
    output = tmp_path_factory.mktemp("runs")
    made = Study(parse(study(model_folder, task_folder, output, strategies=STRATEGIES)))
    made.run()
    assert made.failures == []
    return output / "small"


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model.eval()(TOKENS).logits
    return found


def blocks(card: str) -> list[str]:
    """The Python in a card."""
    return re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)


def loaded_as_the_card_says(folder: Path, upto: int) -> dict[str, Any]:
    """What is defined after the first blocks of the card's Python were run."""
    script = folder.parent / "load.py"
    code = "\n".join(blocks((folder / "README.md").read_text(encoding="utf-8"))[:upto])
    script.write_text(code.replace(FOLDER, str(folder)), encoding="utf-8")
    return runpy.run_path(str(script))


def cells(card: str, heading: str) -> list[list[str]]:
    """The rows of the table whose head begins with a cell, without the head."""
    table = re.search(rf"^\| {heading} \|.*\n\|[- |]+\n((?:\|.*\n)*)", card, flags=re.MULTILINE)
    assert table
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in table.group(1).splitlines()]


@pytest.mark.parametrize("name", STRATEGIES)
def test_plain_transformers_loads_what_the_run_ended_with(name: str, runs: Path, tmp_path: Path) -> None:
    folder = export(runs / name, tmp_path / "out")
    source = runs / name / "default" / "seed-0" / "model"
    plain = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=name == "calm")
    assert torch.equal(logits(plain), logits(Backbone.load(source).model))
    assert torch.equal(logits(loaded_as_the_card_says(folder, upto=1)["model"]), logits(plain))
    files = {file.relative_to(source).as_posix() for file in source.rglob("*")}
    assert {file.relative_to(folder).as_posix() for file in folder.rglob("*")} == files | {"README.md"}
    assert [entry.name for entry in tmp_path.iterdir() if "partial" in entry.name] == []


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own use
@pytest.mark.parametrize(("name", "adapters"), [("lora", ["default"]), ("stack", ["task-1", "task-2"])])
def test_plain_peft_loads_the_adapters_over_the_base(
    name: str, adapters: list[str], runs: Path, model_folder: Path, tmp_path: Path
) -> None:
    folder = export(runs / name, tmp_path / "out")
    folded = logits(AutoModelForCausalLM.from_pretrained(folder))
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    assert (logits(base) - folded).abs().max() > 1e-3  # so that agreement below says something
    said = [json.loads((folder / "adapters" / name / "adapter_config.json").read_text()) for name in adapters]
    assert {one["base_model_name_or_path"] for one in said} == {str(model_folder.resolve())}
    peft = loaded_as_the_card_says(folder, upto=2)["model"]
    assert isinstance(peft, PeftModel)
    assert (logits(peft) - folded).abs().max() < 1e-5


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own use
def test_a_base_that_is_a_gguf_file_is_loaded_as_the_card_says(task_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    helpers = import_module("helpers.gguf_files")
    tokenizer = helpers.tokenizer_of("smollm")
    file = helpers.write_gguf(tmp_path / "tiny.gguf", helpers.model_of("llama", len(tokenizer)), tokenizer, "smollm")
    Study(parse(study(file, task_folder, tmp_path / "runs", strategies={"lora": STRATEGIES["lora"]}))).run()
    folder = export(tmp_path / "runs" / "small" / "lora", tmp_path / "out")
    facts = dict(cells((folder / "README.md").read_text(encoding="utf-8"), ""))
    assert facts["backbone"] == f"`{file}`, loaded as float32, dequantised from `tiny.gguf` (21 tensors F32)"
    assert facts["end token"] == r"`<\|end\|>`"  # a bar would begin a new cell
    peft = loaded_as_the_card_says(folder, upto=2)["model"]
    assert isinstance(peft, PeftModel)
    assert (logits(peft) - logits(AutoModelForCausalLM.from_pretrained(folder))).abs().max() < 1e-5


def test_adapters_of_a_grown_model_name_no_base(runs: Path, tmp_path: Path) -> None:
    folder = export(runs / "grown_lora", tmp_path / "out")
    file = folder / "adapters" / "default" / "adapter_config.json"
    assert json.loads(file.read_text())["base_model_name_or_path"] is None
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert len(blocks(card)) == 1
    assert "They fit the layers of this model, not the base." in card
    assert "Its 4 layers, counted from 0 in the model before any growth: 0 to 1, 0 to 1." in card


def test_the_chosen_end_token_is_exported(model_folder: Path, task_folder: Path, tmp_path: Path) -> None:
    backbone = {"path": str(model_folder), "end_token": "<s>"}
    strategies = {name: STRATEGIES[name] for name in ("lora", "calm")}
    Study(parse(study(model_folder, task_folder, tmp_path, backbone=backbone, strategies=strategies))).run()
    for name in strategies:
        folder = export(tmp_path / "small" / name, tmp_path / f"{name}-out")
        config, generation = (
            json.loads((folder / file).read_text()) for file in ("config.json", "generation_config.json")
        )
        assert config.get("text_config", config)["eos_token_id"] == generation["eos_token_id"] == 1


def test_a_composition_brings_its_class_along_and_the_card_says_so(runs: Path, tmp_path: Path) -> None:
    folder = export(runs / "calm", tmp_path / "out")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert (folder / "composition.py").is_file()
    assert 'from_pretrained("path/to/this/folder", trust_remote_code=True)' in card
    pairs = json.loads((folder / "config.json").read_text())["connections"]
    assert (
        "augmenting model 1's layers to the anchor's: " + ", ".join(f"{low} → {high}" for low, high in pairs[0]) in card
    )
    assert [row[1] for row in cells(card, "item")] == ["connections"] * 2


def test_the_cards_numbers_are_those_of_the_run(runs: Path, tmp_path: Path) -> None:
    """Of a copy with other scores in it than this small model's, which are mostly 0."""
    copied = shutil.copytree(runs / "seqft", tmp_path / "copied")
    scores = copied / "default" / "seed-0" / "scores.csv"
    lines = enumerate(scores.read_text().splitlines())
    scores.write_text("\n".join(re.sub(r"(accuracy),[^,]+", rf"\g<1>,0.{place}5", line) for place, line in lines))
    (copied / "default" / "seed-0" / "journal.jsonl").unlink()  # which would win
    run = RunFolder(copied / "default" / "seed-0")
    folder = export(copied, tmp_path / "out")
    card = (folder / "README.md").read_text(encoding="utf-8")
    summary, matrix = run.summary(), run.matrix()
    assert len(matrix.unique()) == matrix.numel()
    assert cells(card, "OP") == [[number(summary[name]) for name in MEASURES]]
    assert cells(card, "domain") == [
        ["alpha", "accuracy", *(number(value) for value in matrix[[0, 1, 2], 0]), "4"],
        ["beta", "accuracy", *(number(value) for value in matrix[[0, 2, 2], 1]), "4"],
    ]
    count = sum(value.numel() for value in weights(Backbone.load(folder)).values())
    assert [row[-2:] for row in cells(card, "item")] == [[f"{count:,}", "0"]] * 2
    assert [row[2] for row in cells(card, "item")] == ["2", "2"]
    speeds = [
        f"{summary[name]:,.0f} tokens a second" for name in ("train_tokens_per_second", "decoded_tokens_per_second")
    ]
    peak = summary["peak_memory_bytes"]
    memory = "" if math.isnan(peak) else f"; peak memory {peak / 1e6:,.0f} MB"
    assert (
        dict(cells(card, ""))["cost"]
        == f"{duration(summary['train_seconds'])} of training; training {speeds[0]}; decoding {speeds[1]}{memory}"
    )


def test_the_card_says_how_the_model_was_made(runs: Path, model_folder: Path, tmp_path: Path) -> None:
    card = export(runs / "blocks", tmp_path / "out") / "README.md"
    assert metadata_load(card) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["continual-learning", "blocks", "llama"],
    }
    text = card.read_text(encoding="utf-8")
    facts = dict(cells(text, ""))
    assert facts["strategy"] == "`strategies.BlockExpansion(groups=2)`"
    assert facts["paper"] == "Wu et al., 2024 (arXiv 2401.02415)"
    assert facts["backbone"] == f"`{model_folder}`, loaded as float32"
    assert facts["tasks in order"] == "alpha → beta (order `default`)"
    assert facts["seed"] == "0"
    assert facts["precision of training"] == "32-true"
    assert facts["deterministic kernels"] == "yes, wherever torch has one"
    assert facts["scored"] == "on test rows; decoding greedy"
    assert f"torch {version('torch')}" in facts["versions"]
    assert "0, a copy of 0 that began as the identity, 1, a copy of 1 that began as the identity." in text
    assert [row[1] for row in cells(text, "item")] == ["layers 1, 3"] * 2
    config = (runs / "blocks" / "default" / "seed-0" / "config.yaml").read_text(encoding="utf-8")
    assert f"```yaml\n{config.strip()}\n```" in text


@pytest.mark.parametrize(
    ("backbone", "known"),
    [("mini", {"license": "apache-2.0"}), ("someone/llama", {"base_model": "someone/llama"})],
)
def test_base_and_licence_stand_in_the_card_where_they_are_known(
    backbone: str, known: dict[str, str], runs: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(runs / "lora", tmp_path / "copied")
    RunFolder(copied / "default" / "seed-0").add_to_environment("protocol", {"backbone": backbone})
    folder = export(copied, tmp_path / "out")
    front = metadata_load(folder / "README.md")
    assert {key: front[key] for key in ("license", "base_model") if key in front} == known
    adapter = json.loads((folder / "adapters" / "default" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == known.get("base_model")


def test_layers_in_words() -> None:
    assert in_words([[index, False] for index in [*range(24), *range(8, 32)]]) == "0 to 23, 8 to 31"
    assert (
        in_words([[0, False], [1, False], [0, True], [1, True]])
        == "0 to 1, copies of 0 to 1 that began as the identity"
    )


def test_what_cannot_be_exported_is_refused(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds 6 finished runs\. Choose one: .*/blocks/default/seed-0, .*/calm"):
        export(runs, tmp_path / "out")
    with pytest.raises(ConfigError, match="there is no run"):
        export(tmp_path, tmp_path / "out")
    unfinished = shutil.copytree(runs / "seqft", tmp_path / "unfinished")
    journal = unfinished / "default" / "seed-0" / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(b"".join(line for line in whole.splitlines(True) if b'"kind": "end"' not in line)[:-9])
    with pytest.raises(ConfigError, match="not finished"):
        export(unfinished, tmp_path / "out")
    journal.write_bytes(whole)
    with (unfinished / "default" / "seed-0" / "model" / "model.safetensors").open("r+b") as model:
        model.seek(-1, 2)
        model.write(b"\x7f")
    with pytest.raises(ConfigError, match=r"model\.safetensors is not as it was written"):
        export(unfinished, tmp_path / "out")
    shutil.rmtree(unfinished / "default" / "seed-0" / "model")
    with pytest.raises(ConfigError, match="no folder `model` any more"):
        export(unfinished, tmp_path / "out")
    with pytest.raises(ConfigError, match="is there already"):
        export(runs / "seqft", unfinished)
    assert [entry.name for entry in tmp_path.iterdir()] == ["unfinished"]


def test_a_write_that_fails_leaves_nothing(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("workbench.report.model_card.write_whole", broken)
    with pytest.raises(OSError, match="disk full"):
        export(runs / "lora", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_command(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", str(runs / "lora"), str(tmp_path / "deep" / "out")]
    assert guarded(lambda: app(arguments, standalone_mode=False)) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/deep/out: the model, its tokenizer and README.md")
    assert guarded(lambda: app(arguments, standalone_mode=False)) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/deep/out is there already. Give a folder that is not.\n"
