"""The saved state of a run: whole at any moment, no larger than needed, and gone at the end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.studies import learn, same, sgd, weights

from strategies import BlockExpansion, LoRA
from workbench.backbone import Backbone
from workbench.errors import ConfigError
from workbench.strategy import ContinualStrategy
from workbench.testing.tiny import Stopped, tiny_backbone, tiny_run
from workbench.train import ContinualModule
from workbench.train.checkpoint import NAME, ReplayedWeights, StateFolder


def write(folder: StateFolder, content: str) -> None:
    """Publishes a state that is only text."""
    folder.publish(lambda file: file.write_text(content))


def test_the_old_state_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    states = StateFolder(tmp_path / "checkpoint")
    write(states, "one")
    (first,) = states.path.iterdir()
    assert NAME.fullmatch(first.name)

    def fails(file: Path) -> None:
        file.write_text("half")
        torch.save(torch.zeros(100_000), "/dev/full")  # torch raises a RuntimeError where the disk is full

    with pytest.raises(OSError, match="the state could not be saved"):
        states.publish(fails)
    assert list(states.path.iterdir()) == [first]
    write(states, "two")
    assert [path.read_text() for path in states.path.iterdir()] == ["two"]


def changed(module: ContinualModule, strategy: ContinualStrategy, touch: str) -> set[str]:
    """What is stored after one weight has got other bits."""
    strategy.setup(module.backbone)
    known = ReplayedWeights()
    known.note(module)
    with torch.no_grad():
        dict(module.named_parameters())[touch].add_(1.0)
    return known.changed(module)[0]


def test_only_what_may_have_changed_is_stored() -> None:
    backbone, strategy = tiny_backbone(), LoRA(rank=2)
    touched = "backbone.model.model.norm.weight"
    stored = changed(ContinualModule(backbone, strategy, sgd), strategy, touched)
    assert touched in stored
    assert all("lora_" in name for name in stored - {touched})
    assert len(stored) == 1 + 2 * 2 * backbone.model.config.num_hidden_layers


def test_a_journal_that_is_shorter_than_its_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        tiny_run(ContinualStrategy(), tmp_path, stop_after=5)
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:3]))
    with pytest.raises(ConfigError, match=r"journal\.jsonl has lost lines .* Delete"):
        tiny_run(ContinualStrategy(), tmp_path)


def test_a_state_of_anything_but_tensors_and_plain_values_is_not_loaded(tmp_path: Path) -> None:
    states = StateFolder(tmp_path / "checkpoint")
    states.publish(lambda file: torch.save({"workbench": Path("anything")}, file))
    with pytest.raises(ConfigError, match="holds more than tensors and plain values, so it is not loaded"):
        states.latest()


@pytest.mark.parametrize("make", [LoRA, lambda: BlockExpansion(groups=2)])
def test_the_state_is_gone_at_the_end_and_the_model_is_that_of_the_run(tmp_path: Path, make: object) -> None:
    backbone = learn(make(), tmp_path / "run")  # type: ignore[operator]
    assert not (tmp_path / "run" / "checkpoint").exists()
    saved = Backbone.load(tmp_path / "run" / "model")
    with backbone.merged():
        merged = {name: value for name, value in weights(backbone).items() if "lora_" not in name}
    assert same({name.replace(".base_layer", ""): value for name, value in merged.items()}, weights(saved))
