"""The sequence of tasks: which rows are scored, how many steps are trained, which model is scored."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers.studies import column, learn, same, sgd, weights
from torch import Tensor, nn

from strategies import SeqFT
from workbench.backbone import Backbone
from workbench.benchmark import Task
from workbench.results import RunFolder
from workbench.strategy import ContinualStrategy
from workbench.testing.tiny import tiny_backbone, tiny_tasks
from workbench.train import ContinualModule
from workbench.train.loop import scored_rows

ONE, TWO, THREE = tiny_tasks(3)
REVIEW = Task("review", test=ONE.test, train=ONE.train, scorers=ONE.scorers)
TEXT = Dataset.from_list([{"text": "a b c d e f g h"}] * 6)
CORPUS = Task("corpus", test=TEXT, train=TEXT)
EXPERT = Task("expert", test=ONE.test, train=ONE.train, scorers=ONE.scorers, prepares="task_0")
EXPERT_TWO = Task("expert two", test=ONE.test, train=ONE.train, scorers=ONE.scorers, prepares="task_1")
JOINT = Task("all", test=ONE.test, train=ONE.train, scorers=ONE.scorers)


@pytest.mark.parametrize(
    ("items", "rows"),
    [
        ([ONE, TWO, THREE], [1, 2, 3]),
        ([ONE, REVIEW, TWO, THREE], [None, 1, 2, 3]),
        ([ONE, REVIEW, REVIEW, TWO, REVIEW, THREE, REVIEW], [None, None, 1, None, 2, None, 3]),
        ([CORPUS, ONE, TWO, THREE], [None, 1, 2, 3]),
        ([CORPUS, REVIEW, ONE, TWO, THREE], [None, None, 1, 2, 3]),
        ([EXPERT, ONE, TWO, THREE], [None, 1, 2, 3]),
        ([ONE, EXPERT_TWO, TWO, REVIEW, THREE], [1, None, None, 2, 3]),
        ([JOINT], [3]),
        ([CORPUS, JOINT], [None, 3]),
        ([ONE, TWO], [1, 3]),
        ([], []),
    ],
)
def test_the_row_that_each_item_ends(items: list[Task], rows: list[int | None]) -> None:
    assert scored_rows(items, [ONE, TWO, THREE]) == rows


class Curriculum(ContinualStrategy):
    """A strategy with a given curriculum."""

    def __init__(self, items: Sequence[Task]) -> None:
        super().__init__()
        self.items = items

    def curriculum(self, tasks: Sequence[Task], general: Task | None) -> Sequence[Task]:
        return self.items


def test_every_task_trains_all_its_steps(tmp_path: Path) -> None:
    learn(ContinualStrategy(), tmp_path, tasks=[ONE, TWO, THREE], max_epochs=3)
    assert column(tmp_path / "costs.csv", "steps") == ["9", "9", "9"]  # 12 rows, batches of 4, 3 epochs
    assert column(tmp_path / "train.csv", "step") == [str(step) for step in range(1, 28)]
    assert column(tmp_path / "train.csv", "item") == ["task_0"] * 9 + ["task_1"] * 9 + ["task_2"] * 9


def test_inserted_items_train_and_the_matrix_keeps_its_shape(tmp_path: Path) -> None:
    learn(Curriculum([CORPUS, ONE, REVIEW, TWO]), tmp_path)
    assert column(tmp_path / "costs.csv", "item") == ["corpus", "task_0", "review", "task_1"]
    assert column(tmp_path / "costs.csv", "steps") == ["2", "3", "3", "3"]
    scores = RunFolder(tmp_path)
    assert scores.matrix().shape == (3, 2)
    assert not scores.matrix().isnan().any()
    assert column(tmp_path / "scores.csv", "after") == ["0", "0", "1", "1", "2", "2"]


def test_training_on_all_tasks_at_once_measures_only_the_last_row(tmp_path: Path) -> None:
    learn(Curriculum([JOINT]), tmp_path)
    assert RunFolder(tmp_path).matrix().isnan().all(dim=1).tolist() == [False, True, False]


def test_each_task_has_an_optimizer_of_its_own(tmp_path: Path) -> None:
    made: list[tuple[str, torch.optim.Optimizer]] = []

    def make(task: str, parameters: list[Any], steps: Any) -> tuple[torch.optim.Optimizer, None]:
        optimizer = torch.optim.AdamW(parameters, lr=0.01)
        assert not optimizer.state
        assert steps() == 3
        made.append((task, optimizer))
        return optimizer, None

    strategy = ContinualStrategy()
    learn(strategy, tmp_path, module=ContinualModule(tiny_backbone(), strategy, make))
    assert [task for task, _ in made] == ["task_0", "task_1"]
    for _, optimizer in made:
        assert {float(state["step"]) for state in optimizer.state.values()} == {3.0}


class Trap(ContinualStrategy):
    """Sets the head to zero after a task, so that all tokens are equally likely: no training does that."""

    def after_task(self, backbone: Any, task: Task, batches: Any) -> None:
        nn.init.zeros_(backbone.model.get_output_embeddings().weight)


def test_scoring_follows_after_task(tmp_path: Path) -> None:
    backbone = learn(Trap(), tmp_path)
    uniform = torch.tensor(float(len(backbone.tokenizer))).log().item()
    nats = [float(value) for value in column(tmp_path / "nll.csv", "value")]
    assert nats[2:] == pytest.approx([uniform] * 4, rel=1e-6)  # all logits are 0: each token costs log V
    assert all(abs(value - uniform) > 0.01 for value in nats[:2])


class NoRows(ContinualStrategy):
    """Returns no training rows; its `after_task` still acts."""

    def training_data(self, task: Task, rows: Dataset) -> Dataset:
        return rows.select([])

    def after_task(self, backbone: Any, task: Task, batches: Any) -> None:
        assert list(batches) == []
        nn.init.zeros_(backbone.model.get_output_embeddings().weight)


def test_an_item_without_rows_is_scored_but_not_trained(tmp_path: Path) -> None:
    backbone = learn(NoRows(), tmp_path)
    expected = tiny_backbone()
    nn.init.zeros_(expected.model.get_output_embeddings().weight)
    assert same(weights(backbone), weights(expected))
    assert not (tmp_path / "train.csv").exists()
    assert column(tmp_path / "costs.csv", "steps") == ["0", "0"]
    assert not RunFolder(tmp_path).matrix().isnan().any()


class Edited(ContinualStrategy):
    """Records the gradients in `edit_gradients`, and their batches."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Tensor]] = []
        self.batches: list[Any] = []
        self.before: list[dict[str, Tensor]] = []

    def penalties(self, backbone: Any, batch: Any, output: Any) -> dict[str, Tensor]:
        self.batches.append(batch)
        return {}

    def edit_gradients(self, backbone: Any) -> None:
        self.before.append(weights(backbone))
        self.seen.append({name: value.grad.clone() for name, value in backbone.trainable().items()})


def test_gradients_are_edited_when_whole_and_before_they_are_clipped(tmp_path: Path) -> None:
    strategy = Edited()
    task = tiny_tasks(1, rows=16)[0]
    after = learn(strategy, tmp_path, tasks=[task], accumulate_grad_batches=2, gradient_clip_val=1e-3)
    assert len(strategy.seen) == 2
    backbone = tiny_backbone()
    for step, seen in enumerate(strategy.seen):
        backbone.model.load_state_dict(strategy.before[step])
        backbone.model.zero_grad()
        for batch in strategy.batches[2 * step : 2 * step + 2]:
            (backbone(batch).loss / 2).backward()
        by_hand = {name: value.grad for name, value in backbone.trainable().items()}
        assert all(torch.allclose(seen[name], by_hand[name], rtol=1e-5, atol=1e-7) for name in by_hand)
        norm = torch.stack([value.norm() for value in seen.values()]).norm()
        assert norm > 0.1  # far above the clip value
        following = strategy.before[1] if step == 0 else weights(after)
        for name, gradient in seen.items():
            clipped = strategy.before[step][name] - 0.1 * gradient * 1e-3 / (norm + 1e-6)
            assert torch.allclose(following[name], clipped, rtol=1e-4, atol=1e-7)


class Stepped(Edited):
    """Records the weights right after each optimizer step, and halves the head's."""

    def __init__(self) -> None:
        super().__init__()
        self.after: list[dict[str, Tensor]] = []

    @torch.no_grad()
    def after_step(self, backbone: Any) -> None:
        self.after.append(weights(backbone))
        backbone.model.lm_head.weight.mul_(0.5)


def test_after_step_sees_each_step_and_its_change_stays(tmp_path: Path) -> None:
    """SGD at 0.1; two batches are accumulated for a step, so that four batches make two steps."""
    strategy = Stepped()
    after = weights(learn(strategy, tmp_path, tasks=[tiny_tasks(1, rows=16)[0]], accumulate_grad_batches=2))
    assert len(strategy.after) == len(strategy.before) == 2
    for before, gradients, stepped in zip(strategy.before, strategy.seen, strategy.after, strict=True):
        expected = {name: before[name] - 0.1 * seen for name, seen in gradients.items()}
        assert all(torch.allclose(stepped[name], value, rtol=1e-6, atol=1e-8) for name, value in expected.items())
    for stepped, following in zip(strategy.after, [strategy.before[1], after], strict=True):
        changed = {name: value * (0.5 if name == "lm_head.weight" else 1) for name, value in stepped.items()}
        assert same(following, changed)


class Penalised(ContinualStrategy):
    """Adds a known number to the loss, and records the language-model loss."""

    def __init__(self) -> None:
        super().__init__()
        self.nats: list[float] = []

    def penalties(self, backbone: Any, batch: Any, output: Any) -> dict[str, Tensor]:
        self.nats.append(float(output.loss.detach()))
        return {"pull": torch.tensor(0.25 * len(self.nats))}


def floats(file: Path, name: str) -> list[float]:
    return [float(value) for value in column(file, name)]


def test_the_curve_is_what_the_module_computed(tmp_path: Path) -> None:
    strategy = Penalised()
    learn(strategy, tmp_path, max_epochs=2)
    file = tmp_path / "train.csv"
    assert column(file, "step") == [str(step) for step in range(1, 13)]
    assert floats(file, "nats_per_token") == strategy.nats
    assert floats(file, "pull") == [0.25 * number for number in range(1, 13)]
    total = [nats + pull for nats, pull in zip(strategy.nats, floats(file, "pull"), strict=True)]
    assert floats(file, "loss") == pytest.approx(total, rel=1e-6)


def test_a_step_of_several_batches_is_one_point_of_the_curve(tmp_path: Path) -> None:
    strategy = Penalised()
    learn(strategy, tmp_path, accumulate_grad_batches=2)  # 3 batches a task: 2 and 1
    file, nats = tmp_path / "train.csv", strategy.nats
    assert column(file, "step") == ["1", "2", "3", "4"]
    means = [(nats[0] + nats[1]) / 2, nats[2], (nats[3] + nats[4]) / 2, nats[5]]
    assert floats(file, "nats_per_token") == pytest.approx(means, rel=1e-6)
    assert floats(file, "pull") == [0.375, 0.75, 1.125, 1.5]
    sums = [mean + pull for mean, pull in zip(means, [0.375, 0.75, 1.125, 1.5], strict=True)]
    assert floats(file, "loss") == pytest.approx(sums, rel=1e-6)


class Modes(ContinualStrategy):
    """Records each module's mode at each batch, and leaves the model in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[bool] = []

    def penalties(self, backbone: Any, batch: Any, output: Any) -> dict[str, Tensor]:
        self.modes.append(all(module.training for module in backbone.modules()))
        return {}

    def after_task(self, backbone: Any, task: Task, batches: Any) -> None:
        backbone.eval()


def test_dropout_is_on_while_every_task_is_trained(model_folder: Path, tmp_path: Path) -> None:
    """`from_pretrained` returns a model in evaluation mode, and Lightning does not change the mode."""
    strategy = Modes()
    learn(strategy, tmp_path, module=ContinualModule(Backbone.load(model_folder).eval(), strategy, sgd))
    assert strategy.modes == [True] * 6


def test_a_strategy_that_freezes_everything_is_refused(tmp_path: Path) -> None:
    class Frozen(ContinualStrategy):
        def setup(self, backbone: Any) -> None:
            backbone.freeze()

    strategy = Frozen()
    with pytest.raises(ValueError, match="Frozen left nothing to train for 'task_0'"):
        learn(strategy, tmp_path, module=ContinualModule(tiny_backbone(), strategy, sgd))


def test_moments_do_not_pile_up_from_task_to_task(tmp_path: Path) -> None:
    """A Trainer and its callbacks refer to each other until garbage is collected, perhaps many tasks later."""
    made: list[weakref.ref[Any]] = []

    def adam(_: str, parameters: list[Any], __: Any) -> tuple[torch.optim.Optimizer, None]:
        assert not any(one() for one in made)
        optimizer = torch.optim.AdamW(parameters)
        made.append(weakref.ref(optimizer))
        return optimizer, None

    gc.collect()
    gc.disable()
    try:
        method = SeqFT()
        module = ContinualModule(tiny_backbone(), method, adam)
        learn(method, tmp_path, tasks=[ONE, TWO, THREE], module=module)
        assert len(made) == 3
        assert not any(one() for one in made)
    finally:
        gc.enable()
