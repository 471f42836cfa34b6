"""What would fail at a run's end fails in the plan, with the reader's line, before a folder is made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.studies import same, weights
from torch import Tensor, nn

from workbench.backbone import Backbone, Batch
from workbench.benchmark import Task
from workbench.errors import ConfigError
from workbench.scorers import RowMean
from workbench.strategy import ContinualStrategy
from workbench.study import Study, dry_run
from workbench.study.dry_run import check_save
from workbench.testing.tiny import tiny_backbone, tiny_tasks

Make = Callable[..., Study]


class Fisher(ContinualStrategy):
    """Fails where a task ends."""

    def after_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        raise KeyError("fisher")


class Anchors(ContinualStrategy):
    """Fails in the second task's first step, with what the first task has left."""

    anchor: Tensor | None = None

    def penalties(self, backbone: Backbone, batch: Batch, output: Any) -> dict[str, Tensor]:
        weight = backbone.model.get_output_embeddings().weight
        return {} if self.anchor is None else {"pull": (weight - self.anchor).square().sum()}

    def after_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        self.anchor = torch.zeros(3, 5)


class Memory(ContinualStrategy):
    """Has a state that no resumed run can load."""

    def get_extra_state(self) -> Any:
        return defaultdict(list)


class Short(ContinualStrategy):
    """Loses an answer."""

    def answer(self, backbone: Backbone, task: Task, prompts: Sequence[str]) -> list[str]:
        return list(prompts)[1:]


class Unwritable(ContinualStrategy):
    """Puts a setting into the model's config that no file can hold."""

    def setup(self, backbone: Backbone) -> None:
        backbone.model.config.teacher = nn.Linear(2, 2)


class Shared(ContinualStrategy):
    """Ties two weights without telling transformers."""

    def setup(self, backbone: Backbone) -> None:
        first, second = backbone.model.model.layers[:2]
        second.mlp.down_proj.weight = first.mlp.down_proj.weight


class Hungry(ContinualStrategy):
    """Chooses more rows than a few batches have."""

    rows: list[int]

    def after_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        scores = torch.cat([batch.row.float() for batch in batches])
        self.rows = scores.topk(7).indices.tolist()


class Names(ContinualStrategy):
    """Adds each task's name to the tokens, and fails unless the rows are encoded with it."""

    def before_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        (self.token,) = backbone.add_tokens([task.name])

    def penalties(self, backbone: Backbone, batch: Batch, output: Any) -> dict[str, Tensor]:
        assert bool((batch.input_ids == self.token).any(1).all()), "a row was encoded before the token was added"
        return {}


class Draws(ContinualStrategy):
    """Draws where a task ends."""

    def after_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        with torch.no_grad():
            backbone.model.get_output_embeddings().weight.add_(torch.randn(()) * 1e-3)


@pytest.mark.parametrize(
    ("strategy", "told"),
    [
        (
            Fisher,
            r"^strategies\.mine: KeyError: 'fisher' \(.*test_dry_run\.py, line \d+, in after_task\)\. Fix it\.$",
        ),
        (Anchors, r"^strategies\.mine: RuntimeError: The size of tensor .*test_dry_run\.py, line \d+, in penalties"),
        (
            Memory,
            r"^strategies\.mine: its state cannot be saved: it holds more than tensors, numbers, texts, lists and "
            r"dicts: a collections\.defaultdict\. Give `get_extra_state`",
        ),
        (
            Short,
            r"^strategies\.mine: scoring alpha failed: Short\.answer\('alpha'\) returned 1 answers for 2 prompts\.",
        ),
        (Unwritable, r"^strategies\.mine: its model cannot be saved: TypeError: .*Linear is not JSON serializable"),
        (Shared, r"^strategies\.mine: its model cannot be saved: RuntimeError: .* contained shared tensors "),
    ],
)
def test_what_would_fail_later_fails_in_the_plan(make: Make, strategy: type, told: str, tmp_path: Path) -> None:
    small = make(strategies={"mine": {"class_path": f"test_dry_run.{strategy.__name__}"}})
    with pytest.raises(ConfigError, match=told) as caught:
        small.run()
    assert len(caught.value.problems) == 1
    assert not small.folder.exists()
    assert list(tmp_path.iterdir()) == []  # nor is there anything else on the disk of the results


class Nothing(RowMean):
    """A scorer that gives no number."""

    def score(self, prompt: str, prediction: str, answer: str) -> float:
        return float("nan")


class Fails(RowMean):
    """A scorer that raises."""

    def score(self, prompt: str, prediction: str, answer: str) -> float:
        return 1 / (len(answer) - 1)


class Last(RowMean):
    """A scorer that raises where an answer is wrong."""

    def score(self, prompt: str, prediction: str, answer: str) -> float:
        return float({answer: 1.0}[prediction])


class Bench:
    """Two tasks of which the second has a scorer of its own."""

    probes: Sequence[Task] = ()
    general = None
    orders = {"default": ["task_0", "task_1"]}

    def __init__(self, scorer: str) -> None:
        first, second = tiny_tasks()
        self.tasks = [first, Task(**{**vars(second), "scorers": {**second.scorers, "mine": globals()[scorer]()}})]

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Task:
        return self.tasks[index]


@pytest.mark.parametrize(
    ("scorer", "told"),
    [
        ("Nothing", r"^benchmark: task_1, scorer 'mine': it gives nan for the right answers\. It has to give"),
        ("Fails", r"^benchmark: task_1, scorer 'mine': ZeroDivisionError: .*test_dry_run\.py, line \d+, in score\)"),
        ("Last", r"^strategies\.seqft: scoring task_1 failed: KeyError: .*test_dry_run\.py, line \d+, in score\)"),
    ],
)
def test_every_scorer_is_tried_before_the_first_step(make: Make, scorer: str, told: str) -> None:
    small = make(benchmark={"class_path": "test_dry_run.Bench", "init_args": {"scorer": scorer}})
    with pytest.raises(ConfigError, match=told):
        small.run()
    assert not small.folder.exists()


def test_a_hook_that_needs_more_than_a_few_rows_gets_them_all(make: Make) -> None:
    data = {"batch_size": 2, "max_length": 64}
    small = make(strategies={"hungry": {"class_path": "test_dry_run.Hungry"}}, data=data)
    small.run()
    assert small.failures == []


def test_rows_are_encoded_again_where_a_hook_adds_tokens(make: Make) -> None:
    make(strategies={"names": {"class_path": "test_dry_run.Names"}}).plan()


def test_a_plan_changes_no_bit_of_a_run(make: Make) -> None:
    """Two studies, of which one is planned three times before it is run."""
    strategies = {"draws": {"class_path": "test_dry_run.Draws"}}
    ends = []
    for name, plans in (("once", 0), ("often", 3)):
        small = make(strategies=strategies, name=name)
        state = torch.get_rng_state()
        for _ in range(plans):
            small.plan()
        assert torch.equal(torch.get_rng_state(), state)
        small.run()
        files = sorted((small.results(small.runs[0]).path / "model").glob("*.safetensors"))
        ends.append([file.read_bytes() for file in files])
    assert ends[0] == ends[1]


def test_a_large_model_is_checked_without_its_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    backbone = tiny_backbone(tie_word_embeddings=True)
    backbone.add_adapter("default", r=2, target_modules=["q_proj"])
    before = weights(backbone)
    monkeypatch.setattr(dry_run, "SAVED_WHOLE", 0)
    check_save(backbone, tmp_path / "sound")
    assert same(weights(backbone), before)
    assert (tmp_path / "sound" / "model.safetensors").stat().st_size < 10_000  # where the weights take 146 kB
    backbone.model.config.teacher = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="Linear is not JSON serializable"):
        check_save(backbone, tmp_path / "wrong")
    backbone = tiny_backbone()
    Shared().setup(backbone)
    with pytest.raises(RuntimeError, match="contained shared tensors"):
        check_save(backbone, tmp_path / "shared")


def test_a_disk_without_room_is_told_before_the_first_step(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = dry_run.shutil.disk_usage("/")
    monkeypatch.setattr(dry_run.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    small = make()
    with pytest.raises(ConfigError, match=r"^output: a run needs about 0\.0 GB of disk .* Make room"):
        small.run()
    assert not small.folder.exists()
