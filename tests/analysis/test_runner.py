"""Analyses on demand: what a finished run's model loses without a part, and how soon it learns again."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.studies import study

from workbench.analysis import Relearning, analyse
from workbench.analysis.knock_out import added_parts
from workbench.analysis.relearning import Scored
from workbench.analysis.runner import Reopened, built
from workbench.backbone import Backbone
from workbench.cli import app, guarded
from workbench.config import parse
from workbench.depth import PlannedLayer, restack
from workbench.display import Display
from workbench.errors import ConfigError
from workbench.report import compare, write_report
from workbench.report.analyses import measured
from workbench.results import RunFolder
from workbench.runtime.files import digest_of, read_csv
from workbench.strategy import ContinualStrategy
from workbench.study import Study
from workbench.testing.tiny import tiny_backbone
from workbench.train import ContinualDataModule, ContinualModule, score_task

WORDS = ["alpha: s1\nAnswer:", "beta: s2\nAnswer:", "alpha: s3 and more\nAnswer:"]


class Heard(Display):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def finished(model_folder: Path, task_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of three strategies over two tasks, finished."""
    strategies = {
        "seqft": {"class_path": "strategies.SeqFT"},
        "blocks": {"class_path": "strategies.BlockExpansion", "init_args": {"groups": 2}},
        "lora": {"class_path": "strategies.LoRA", "init_args": {"dropout": 0.0}},
    }
    output = tmp_path_factory.mktemp("analyses")
    Study(parse(study(model_folder, task_folder, output, strategies=strategies))).run()
    return output / "small"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "small"))


def logits(backbone: Backbone) -> torch.Tensor:
    """(rows,) log-likelihoods of an answer: they feel every weight."""
    return backbone.log_likelihood(WORDS, ["a", "b", "c"])


def files(folder: Path) -> dict[str, str]:
    return {str(path): digest_of(path) for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"}


def asked(folder: Path, **what: Any) -> Heard:
    heard = Heard()
    analyse(folder, compare([folder]), built(what), heard)
    return heard


def test_a_block_that_adds_nothing_changes_nothing_and_one_that_does_is_skipped(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    before = logits(backbone)
    restack(backbone.model, [PlannedLayer(0), PlannedLayer(0, True), *map(PlannedLayer, (1, 2, 3))])
    parts = added_parts(backbone, tmp_path / "adapters")
    assert list(parts) == ["block 1"]
    with parts["block 1"]():
        assert torch.equal(logits(backbone), before)
    with torch.no_grad():
        backbone.decoder.layers[1].mlp.down_proj.weight.normal_()  # type: ignore[union-attr, index]
    changed = logits(backbone)
    assert not torch.allclose(changed, before)
    with parts["block 1"]():
        assert torch.equal(logits(backbone), before)  # the model as it was before the block was added
    assert torch.equal(logits(backbone), changed)


def test_decoding_skips_a_block_too(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    before = backbone.generate(WORDS, 6)
    restack(backbone.model, [PlannedLayer(0), PlannedLayer(0, True), *map(PlannedLayer, (1, 2, 3))])
    with torch.no_grad():
        backbone.decoder.layers[1].mlp.down_proj.weight.normal_(std=3)  # type: ignore[union-attr, index]
    assert backbone.generate(WORDS, 6) != before
    with added_parts(backbone, tmp_path)["block 1"]():
        assert backbone.generate(WORDS, 6) == before


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 3}}], ids=str)
def test_an_adapter_that_is_skipped_leaves_the_model_without_it(tmp_path: Path, settings: dict[str, Any]) -> None:
    backbone = tiny_backbone()
    before = logits(backbone)
    backbone.add_adapter("one", r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], **settings)
    with torch.no_grad():
        for name, value in backbone.model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.3)
    backbone.save(tmp_path / "model")
    again = Backbone.load(tmp_path / "model")
    folded, names = logits(again), list(again.model.state_dict())
    assert not torch.allclose(folded, before, atol=1e-2)
    parts = added_parts(again, tmp_path / "model" / "adapters")
    assert list(again.model.state_dict()) == names
    assert list(parts) == ["adapter one", *(f"adapter one, layer {index}" for index in range(4))]
    with parts["adapter one"]():
        torch.testing.assert_close(logits(again), before, rtol=0, atol=1e-4)
    assert torch.equal(logits(again), folded)  # bit for bit, although it was subtracted and put back
    with parts["adapter one, layer 0"](), parts["adapter one, layer 1"]():
        with parts["adapter one, layer 2"](), parts["adapter one, layer 3"]():
            torch.testing.assert_close(logits(again), before, rtol=0, atol=1e-4)
        assert not torch.allclose(logits(again), before, atol=1e-3)


class Stands:
    """Stands where a Trainer does: at a step."""

    def __init__(self) -> None:
        self.global_step, self.should_stop = 0, False


@pytest.mark.parametrize(("target", "course"), [(0.5, [0, 4, 8, 10]), (0.3, [0, 4, 8]), (0.0, [0])])
def test_steps_are_counted_until_the_score_is_reached(target: float, course: list[int]) -> None:
    """The toy gains 0.04 a step, so that 0.3 is reached in step 8; two batches make a step."""
    module, stands = ContinualModule(tiny_backbone(), None, None), Stands()  # type: ignore[arg-type]
    scored = Scored(lambda _: 0.04 * stands.global_step, target, every=4, last=10)
    stands.should_stop = scored.look(module, 0)
    for batch in range(1, 21):
        if not stands.should_stop:
            stands.global_step = batch // 2
            scored.on_train_batch_end(stands, module, None, None, batch)  # type: ignore[arg-type]
    assert [step for step, _ in scored.course] == course


def test_relearning_is_plain_training_until_the_score_is_reached(finished: Path) -> None:
    """A loop by hand over the same batches comes through the same scores; training rows are tested, so that it does."""
    opened = Reopened(RunFolder(finished / "blocks" / "default" / "seed-0"))
    alpha = replace(opened.tasks[0], validation=opened.tasks[0].train)
    asked, backbone = replace(alpha, test=alpha.train), opened.untouched()
    data = ContinualDataModule([alpha], batch_size=4, seed=0)
    data.begin(backbone, 0, alpha, alpha.train)
    optimizer = torch.optim.AdamW(backbone.model.parameters(), lr=0.01)
    by_hand = [score_task(backbone, ContinualStrategy(), asked).value]
    batches = data.train_dataloader()
    for epoch in range(10):
        batches.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        for batch in batches:
            optimizer.zero_grad()
            backbone(batch).loss.backward()
            optimizer.step()
            by_hand.append(score_task(backbone, ContinualStrategy(), asked).value)
    target = sorted(by_hand)[-1]
    assert by_hand[0] < target
    relearning = Relearning(every=3, max_steps=20)
    course = relearning.course(opened, opened.untouched(), alpha, target, lambda _: None)
    expected = [(step, by_hand[step]) for step in (0, 3, 6, 9, 12, 15, 18, 20)]
    reached = next((place for place, (_, score) in enumerate(expected) if score >= target), len(expected))
    assert course == expected[: reached + 1]
    assert len({score for _, score in course}) > 1


def test_relearning_stops_where_the_score_is_and_counts_the_same_steps_again(copied: Path) -> None:
    runs = files(copied / "seqft")
    heard = asked(copied, relearning={"every": 2, "max_steps": 6, "tolerance": 0.0})
    rows = {row["strategy"]: row for row in read_csv(copied / "relearning.csv")}
    assert list(rows) == ["seqft", "blocks", "lora"]
    for row in rows.values():
        assert row["domain"] == "alpha"  # the last domain cannot have been forgotten
        assert row["rows"] == "4"
        assert row["optimizer"] == "torch.optim.AdamW(lr=0.01)"
        assert float(row["target"]) == float(row["learnt"])
        steps, untouched = float(row["steps"]), float(row["steps_untouched"])
        assert math.isnan(steps) or steps in (0, 2, 4, 6)
        assert math.isnan(untouched) or not untouched % 2
        told = 1 - steps / untouched if untouched else math.nan
        told = 1.0 if steps == 0 and math.isnan(untouched) else told
        assert repr(told) == row["savings"]
    assert files(copied / "seqft") == runs
    write_report(copied, compare([copied]))
    page = (copied / "report.html").read_text(encoding="utf-8")
    assert "by torch.optim.AdamW(lr=0.01) at a constant rate" in page
    assert "on 4 validation rows is the one recorded right after the domain was learnt, less 0.0;" in page
    again = asked(copied, relearning={"every": 2, "max_steps": 6, "tolerance": 0.0})
    assert len(heard.lines) > 3 == len(again.lines)  # each run is named, and none is trained again


def test_knocking_out_is_written_drawn_and_kept(copied: Path) -> None:
    heard = asked(copied, knock_out=True)
    assert [line for line in heard.lines if "left out" in line] == [
        f"! knock_out of {copied}/seqft/default/seed-0 is left out: its final model has no added block and no adapter "
        "to skip."
    ]
    rows = read_csv(copied / "knock_out.csv")
    parts = {row["part"] for row in rows if row["strategy"] == "blocks"}
    assert parts == {"block 1", "block 3"}
    assert {row["strategy"] for row in rows} == {"blocks", "lora"}
    for row in rows:
        assert float(row["change"]) == float(row["without"]) - float(row["whole"])
    comparison = compare([copied])[0]
    for name in ("blocks", "lora"):
        run = comparison.of(name, "default", 0)
        assert run is not None
        for row in rows:
            if row["strategy"] == name:  # the model that was opened again answers as the run's did
                assert float(row["whole"]) == run.value(2, row["domain"], row["metric"])
    write_report(copied, [comparison])
    page = (copied / "report.html").read_text(encoding="utf-8")
    assert 'id="c1-knock-out"' in page
    assert "block 3" in page
    assert (copied / "figures" / "knock-out-blocks-default.png").is_file()
    with (copied / "knock_out.csv").open("a", encoding="utf-8") as file:
        file.write("lora/default/seed-0,")
    assert measured(comparison, copied, "knock_out") == rows
    shutil.rmtree(copied / "blocks" / "default" / "seed-0")
    assert {row["strategy"] for row in measured(compare([copied])[0], copied, "knock_out")} == {"lora"}


def test_a_run_whose_model_is_gone_is_left_out_and_the_plain_report_shows_no_section(copied: Path) -> None:
    shutil.rmtree(copied / "seqft" / "default" / "seed-0" / "model")
    shutil.rmtree(copied / "blocks")
    shutil.rmtree(copied / "lora")
    arguments = ["report", str(copied), "relearning=true", "knock_out=true"]
    assert guarded(lambda: app(arguments, standalone_mode=False)) == 0
    assert not (copied / "relearning.csv").exists()
    assert "Learning again" not in (copied / "report.html").read_text(encoding="utf-8")
    assert any("`model` is not there any more" in line for line in asked(copied, relearning=True).lines)


def test_runs_without_a_journal_are_told_apart(copied: Path) -> None:
    """Two runs whose models are the same by all that is known of them are both asked."""
    shutil.rmtree(copied / "seqft")
    shutil.rmtree(copied / "blocks")
    second = copied / "lora" / "default" / "seed-1"
    shutil.copytree(copied / "lora" / "default" / "seed-0", second)
    for file in copied.rglob("journal.jsonl"):
        file.unlink()
    surroundings = (second / "environment.json").read_text(encoding="utf-8")
    (second / "environment.json").write_text(surroundings.replace('"seed": 0', '"seed": 1'), encoding="utf-8")
    asked(copied, knock_out=True)
    rows = read_csv(copied / "knock_out.csv")
    assert {row["seed"] for row in rows} == {"0", "1"}
    assert len({row["model"] for row in rows}) == 1


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"relearning": {"evry": 3}}, "'evry'. Did you mean 'every'?"),
        ({"relearning": {"every": 300}}, "every=300 is out of range"),
        ({"relearning": {"tolerance": 1.5}}, "tolerance=1.5 is out of range"),
        ({"knock_out": "yes please"}, "knock_out: expected true or false, got 'yes please'."),
    ],
)
def test_a_wrong_setting_is_told(asked: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError) as error:
        built(asked)
    assert why in str(error.value)
