"""Progressive Prompts: what trains, where the prompts stand, what stays fixed, and which prefix a test row gets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from strategies import ProgressivePrompts, Replay
from workbench.backbone import Backbone, soft_embedding
from workbench.strategy import Composition, needs_task_id
from workbench.testing.tiny import tiny_backbone, tiny_tasks
from workbench.train import score_task

TASKS = tiny_tasks(3)
TABLE = "model.embed_tokens.prompts"


def prompt(backbone: Backbone, number: int) -> Any:
    embedding = soft_embedding(backbone.model)
    assert embedding is not None
    return embedding.prompts[f"task-{number}"]


def train(backbone: Backbone, number: int, steps: int = 3) -> None:
    rows = backbone.encode(TASKS[number].train, TASKS[number].max_new_tokens).to_list()
    optimizer = torch.optim.AdamW(backbone.trainable().values(), lr=1e-1)
    for _ in range(steps):
        optimizer.zero_grad()
        backbone(backbone.collate(rows)).loss.backward()
        optimizer.step()


def learnt(strategy: ProgressivePrompts, tasks: int) -> Backbone:
    backbone = tiny_backbone()
    strategy.setup(backbone)
    for number in range(tasks):
        torch.manual_seed(number)
        strategy.before_task(backbone, TASKS[number], [])
        train(backbone, number)
        strategy.after_task(backbone, TASKS[number], [])
    return backbone


def test_exactly_the_newest_prompt_and_its_network_train() -> None:
    strategy, backbone = ProgressivePrompts(length=3, bottleneck=5), tiny_backbone()
    base = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    strategy.setup(backbone)
    assert backbone.trainable() == {}
    kept: list[Tensor] = []
    for number, task in enumerate(TASKS, 1):
        strategy.before_task(backbone, task, [])
        layers = {f"network.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
        assert set(backbone.trainable()) == {f"{TABLE}.task-{number}.{name}" for name in {"vectors"} | layers}
        train(backbone, number - 1)
        vectors = prompt(backbone, number)().detach().clone()
        strategy.after_task(backbone, task, [])
        assert torch.equal(prompt(backbone, number).vectors, vectors)
        kept.append(vectors)
    assert all(torch.equal(prompt(backbone, number).vectors, value) for number, value in enumerate(kept, 1))
    state = backbone.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in base.items())
    assert {name for name in state if name not in base} == {f"{TABLE}.task-{number}.vectors" for number in (1, 2, 3)}


def test_a_prompt_starts_as_rows_of_the_vocabulary_and_each_task_begins_anew() -> None:
    strategy, backbone = ProgressivePrompts(length=4), tiny_backbone()
    strategy.setup(backbone)
    vocabulary = backbone.model.get_input_embeddings().weight.detach()
    starts = []
    for number, task in enumerate(TASKS, 1):
        strategy.before_task(backbone, task, [])
        starts.append(prompt(backbone, number)().detach().clone())
        assert all((vocabulary == row).all(1).any() for row in starts[-1])
        train(backbone, number - 1)
        assert not torch.equal(prompt(backbone, number)(), starts[-1])
        strategy.after_task(backbone, task, [])
    assert not torch.equal(starts[0], starts[1])


def test_the_newest_prompt_stands_first() -> None:
    strategy = ProgressivePrompts(length=2, bottleneck=0)
    backbone = learnt(strategy, 3)
    row = backbone.encode(TASKS[0].test, 3).to_list()[0]
    with torch.no_grad():
        states = backbone.model.get_input_embeddings()(torch.tensor(row["input_ids"][:6]))
    expected = torch.cat([prompt(backbone, number).vectors for number in (3, 2, 1)])
    assert torch.equal(states, expected.detach())


def test_a_task_is_scored_behind_its_own_prefix_where_its_identity_is_used() -> None:
    """The last row of scores of a known task then equals the row right after that task, and else it does not."""
    for test_prefix, same in (("task", True), ("full", False)):
        strategy = ProgressivePrompts(length=2, bottleneck=0, test_prefix=test_prefix)  # type: ignore[arg-type]
        backbone = learnt(strategy, 1)
        first = score_task(backbone, strategy, TASKS[0]).nats_per_token
        for number in (1, 2):
            strategy.before_task(backbone, TASKS[number], [])
            train(backbone, number)
            strategy.after_task(backbone, TASKS[number], [])
        assert (score_task(backbone, strategy, TASKS[0]).nats_per_token == pytest.approx(first, abs=1e-6)) is same
        assert backbone.encoder.prefix == strategy.full
        assert needs_task_id(strategy) is same


def test_an_error_while_scoring_leaves_the_full_prefix() -> None:
    strategy = ProgressivePrompts(length=2, test_prefix="task")
    backbone = learnt(strategy, 2)
    with pytest.raises(ZeroDivisionError), strategy.scoring(backbone, TASKS[0]):
        _ = 1 / (len(backbone.encoder.prefix) - 2)
    assert len(backbone.encoder.prefix) == 4


def test_a_task_that_was_not_learned_is_read_behind_all_prompts() -> None:
    strategy = ProgressivePrompts(length=2, test_prefix="task")
    backbone = learnt(strategy, 2)
    with strategy.scoring(backbone, TASKS[2]):
        assert len(backbone.encoder.prefix) == 4


def test_a_task_that_comes_again_gets_another_prompt() -> None:
    strategy = ProgressivePrompts(length=2)
    backbone = learnt(strategy, 1)
    strategy.before_task(backbone, TASKS[0], [])
    assert len(strategy.prefixes[TASKS[0].name]) == 4


def test_it_composes_with_replay_and_says_so_to_the_tables() -> None:
    assert needs_task_id(Composition([ProgressivePrompts(test_prefix="task"), Replay()]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "length=0 is out of range; it has to be at least 1."),
        ({"bottleneck": -1}, "bottleneck=-1 is out of range; it has to be at least 0."),
        ({"test_prefix": "own"}, "test_prefix='own': choose 'full' or 'task'."),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        ProgressivePrompts(**arguments)
    assert str(caught.value) == message


def test_sharded_prompts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy, backbone = ProgressivePrompts(length=2), tiny_backbone()
    strategy.before_task(backbone, TASKS[0], [])
    assert strategy.penalties(backbone, None, None) == {}  # type: ignore[arg-type]
    monkeypatch.setattr("strategies.progressive_prompts.DTensor", torch.Tensor)
    with pytest.raises(ValueError, match=r"ProgressivePrompts needs whole prompts; .* Give trainer.strategy=ddp\."):
        strategy.penalties(backbone, None, None)  # type: ignore[arg-type]
