"""Knock-out: what a finished run's model loses without a part."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from workbench.analysis.knock_out import added_parts
from workbench.backbone import Backbone
from workbench.depth import PlannedLayer, restack
from workbench.report import compare, write_report
from workbench.report.analyses import measured
from workbench.runtime.files import read_csv
from workbench.testing.tiny import tiny_backbone

WORDS = ["alpha: s1\nAnswer:", "beta: s2\nAnswer:", "alpha: s3 and more\nAnswer:"]
Ask = Callable[..., list[str]]


def logits(backbone: Backbone) -> torch.Tensor:
    """(rows,) log-likelihoods of an answer: they feel every weight."""
    return backbone.log_likelihood(WORDS, ["a", "b", "c"])


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


def test_knocking_out_is_written_drawn_and_kept(copied: Path, ask: Ask) -> None:
    notes = ask(copied, knock_out=True)
    assert [line for line in notes if "left out" in line] == [
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
