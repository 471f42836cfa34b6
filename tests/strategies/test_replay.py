"""Replay: which rows are kept, which are mixed into which task how often, and that the memory outlives the process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers.studies import column, learn, same, weights
from torch import Tensor

from strategies import LoRA, Replay, SeqFT
from workbench.benchmark import Task, no_rows
from workbench.strategy import Composition, ContinualStrategy
from workbench.testing.tiny import tiny_backbone, tiny_tasks
from workbench.train import ContinualDataModule

ONE, TWO, THREE = tiny_tasks(3)
TEXTS = Dataset.from_dict({"text": ["a b c", "d e f", "g h i", "j k l"]})
CORPUS, OTHER_CORPUS = Task("corpus", test=TEXTS, train=TEXTS), Task("other", test=TEXTS, train=TEXTS)
BACKBONE: Any = None  # replay looks at no weights


def finish(strategy: ContinualStrategy, *tasks: Task) -> None:
    for task in tasks:
        strategy.after_task(BACKBONE, task, [])


def pairs(rows: Any) -> list[tuple[str, str]]:
    return [(row["prompt"], row["answer"]) for row in rows]


def mixed(strategy: ContinualStrategy, task: Task) -> list[dict[str, Any]]:
    return strategy.training_data(task, task.train).to_list()


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ({}, 1),  # 0.1 x 12 = 1.2
        ({"share": 0.2}, 2),  # 2.4
        ({"share": 0.3}, 4),  # 3.6
        ({"share": 0.01}, 1),  # 0.12, but at least one
        ({"share": 1}, 12),
        ({"rows": 5}, 5),
        ({"rows": 5, "share": 1}, 5),
        ({"rows": 100}, 12),
    ],
)
def test_how_many_rows_of_a_task_are_kept(arguments: dict[str, Any], kept: int) -> None:
    strategy = Replay(**arguments)
    finish(strategy, ONE)
    rows = strategy.memory["task_0"]
    assert len(rows) == kept
    assert len(set(pairs(rows))) == kept
    assert set(pairs(rows)) <= set(pairs(ONE.train))


def test_what_is_kept_depends_on_the_run_and_the_task_and_each_row_has_the_same_chance() -> None:
    """Not on what was drawn since the run's seed was set: dropout, or a batch more, changes nothing."""
    kept = []
    for seed, drawn in ((7, 0), (7, 5), (8, 0)):
        strategy = Replay(rows=3)
        torch.manual_seed(seed)
        torch.rand(drawn)
        strategy.setup(BACKBONE)
        torch.manual_seed(drawn)
        finish(strategy, ONE, TWO)
        kept.append(
            [[pairs(task.train).index(pair) for pair in pairs(strategy.memory[task.name])] for task in (ONE, TWO)]
        )
    assert kept[0] == kept[1] != kept[2]
    assert kept[0][0] != kept[0][1]
    counts: Counter[tuple[str, str]] = Counter()
    for seed in range(1200):
        torch.manual_seed(seed)
        strategy.setup(BACKBONE)
        finish(strategy, ONE)
        counts.update(pairs(strategy.memory["task_0"]))
    # 1200 draws of 3 in 12: 300 times each, standard deviation (1200 / 4 x 3 / 4) ** 0.5 = 15
    assert set(counts) == set(pairs(ONE.train))
    assert all(abs(count - 300) < 5 * 15 for count in counts.values())


def test_each_kept_row_of_all_other_tasks_stands_once_after_the_tasks_own() -> None:
    strategy = Replay(rows=3)
    assert strategy.training_data(ONE, ONE.train) is ONE.train
    finish(strategy, ONE, TWO)
    rows = mixed(strategy, THREE)
    kept = strategy.memory["task_0"] + strategy.memory["task_1"]
    assert pairs(rows) == pairs(THREE.train) + pairs(kept)
    assert [row["max_new_tokens"] for row in rows] == [None] * 12 + [3] * 6
    assert THREE.train.column_names == ["prompt", "answer"]


def test_a_task_that_comes_again_is_not_mixed_with_itself_and_replaces_what_was_kept() -> None:
    strategy = Replay(rows=3)
    finish(strategy, ONE, TWO)
    first = strategy.memory["task_0"]
    again = replace(ONE, train=ONE.train.select(range(2)))
    assert pairs(mixed(strategy, again)) == pairs(again.train) + pairs(strategy.memory["task_1"])
    finish(strategy, again)
    assert pairs(strategy.memory["task_0"]) == pairs(again.train) != pairs(first)
    assert pairs(mixed(strategy, THREE)) == pairs([*THREE.train, *again.train, *strategy.memory["task_1"]])


def test_texts_are_mixed_into_texts_and_answers_into_answers() -> None:
    strategy = Replay(share=1)
    finish(strategy, CORPUS, ONE)
    assert pairs(mixed(strategy, TWO)) == pairs(TWO.train) + pairs(ONE.train)
    assert mixed(strategy, OTHER_CORPUS) == [{"text": text} for text in TEXTS["text"][:] * 2]
    assert strategy.training_data(CORPUS, TEXTS) is TEXTS


def test_what_has_no_rows_stays_without_training() -> None:
    strategy = Replay(share=1)
    finish(strategy, ONE)
    untrained = replace(TWO, train=no_rows())
    assert len(strategy.training_data(untrained, untrained.train)) == 0
    finish(strategy, untrained)
    assert strategy.memory["task_1"] == []
    assert len(mixed(strategy, THREE)) == 24


def test_other_columns_of_the_tasks_rows_are_left() -> None:
    strategy = Replay(rows=1)
    finish(strategy, ONE)
    rows = Dataset.from_list([{"prompt": "p", "answer": "a", "source": "web"}])
    kept = strategy.memory["task_0"][0]
    assert strategy.training_data(TWO, rows).to_list() == [
        {"prompt": "p", "answer": "a", "source": "web", "max_new_tokens": None},
        {**kept, "source": None},
    ]


def test_an_answer_keeps_its_own_tasks_limit_among_shorter_ones() -> None:
    """A row of a task with long answers has the same tokens in its own task and replayed in another one."""
    backbone, strategy = tiny_backbone(), Replay(share=1)
    rows = [{"prompt": "Tell:", "answer": "a b c d e f g"}]
    long = Task("long", test=ONE.test, train=Dataset.from_list(rows), scorers=ONE.scorers, max_new_tokens=40)
    data = ContinualDataModule([long, TWO])
    data.begin(backbone, 0, long, strategy.training_data(long, long.train))
    assert data.rows is not None
    own = data.rows[0]["input_ids"].tolist()
    finish(strategy, long)
    data.begin(backbone, 1, TWO, strategy.training_data(TWO, TWO.train))
    assert data.rows[12]["input_ids"].tolist() == own
    assert own[-1] == backbone.tokenizer.eos_token_id
    assert data.cut_rows() == {"prompts": 0, "answers": 0}


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_memory_comes_back_from_a_file_without_any_code_in_it(tmp_path: Path, wrapped: bool) -> None:
    def build() -> tuple[ContinualStrategy, Replay]:
        replay = Replay(rows=2)
        return (Composition([LoRA(), replay]) if wrapped else replay), replay

    strategy, replay = build()
    finish(replay, CORPUS, ONE, TWO)
    torch.save(strategy.state_dict(), tmp_path / "state.pt")
    fresh, loaded = build()
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert loaded.memory == replay.memory
    assert list(loaded.memory) == ["corpus", "task_0", "task_1"]
    assert mixed(fresh, THREE) == mixed(strategy, THREE)


class Seen(Replay):
    """Writes down which rows each batch of each task held."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.given: list[list[tuple[str, str]]] = []
        self.batches: list[Counter[int]] = []

    def training_data(self, task: Task, rows: Dataset) -> Dataset:
        rows = super().training_data(task, rows)
        self.given.append(pairs(rows))
        self.batches.append(Counter())
        return rows

    def penalties(self, backbone: Any, batch: Any, output: Any) -> dict[str, Tensor]:
        self.batches[-1].update(batch.row.tolist())
        return {}


def counted(strategy: Seen) -> list[Counter[tuple[str, str]]]:
    """How often each row was learnt from in each item of the curriculum."""
    return [
        Counter({given[row]: count for row, count in rows.items()})
        for given, rows in zip(strategy.given, strategy.batches, strict=True)
    ]


def test_each_epoch_passes_over_each_kept_row_once(tmp_path: Path) -> None:
    strategy = Seen(rows=4)
    learn(strategy, tmp_path, tasks=[ONE, TWO, THREE], max_epochs=2)
    first, second, third = counted(strategy)
    kept = [pairs(strategy.memory[task.name]) for task in (ONE, TWO)]
    assert first == Counter(pairs(ONE.train) * 2)
    assert second == Counter((pairs(TWO.train) + kept[0]) * 2)
    assert third == Counter((pairs(THREE.train) + kept[0] + kept[1]) * 2)
    assert column(tmp_path / "costs.csv", "steps") == ["6", "8", "10"]  # 12, 16, 20 rows in batches of 4, 2 epochs


class Review(ContinualStrategy):
    """Puts an item in between that is never scored."""

    def curriculum(self, tasks: Sequence[Task], general: Task | None) -> Sequence[Task]:
        return [tasks[0], replace(THREE, name="review"), *tasks[1:]]


def test_an_inserted_item_is_remembered_like_a_task(tmp_path: Path) -> None:
    strategy = Seen(rows=4)
    learn(Composition([Review(), strategy]), tmp_path)
    assert list(strategy.memory) == ["task_0", "review", "task_1"]
    kept = [pairs(strategy.memory[name]) for name in ("task_0", "review")]
    assert counted(strategy)[1] == Counter(pairs(THREE.train) + kept[0])
    assert counted(strategy)[2] == Counter(pairs(TWO.train) + kept[0] + kept[1])


def test_the_first_task_is_plain_fine_tuning_and_the_second_is_not(tmp_path: Path) -> None:
    first = [learn(strategy, tmp_path / name, tasks=[ONE]) for name, strategy in (("a", Replay()), ("b", SeqFT()))]
    assert same(*map(weights, first))
    both = [learn(strategy, tmp_path / name) for name, strategy in (("c", Replay(rows=4)), ("d", SeqFT()))]
    assert not same(*map(weights, both))


def test_after_lora_in_a_list_the_adapters_alone_train(tmp_path: Path) -> None:
    strategy = Seen(rows=4)
    backbone = learn(Composition([LoRA(rank=2), strategy]), tmp_path)
    assert backbone.trainable()
    assert all("lora_" in name for name in backbone.trainable())
    assert counted(strategy)[1] == Counter(pairs(TWO.train) + pairs(strategy.memory["task_0"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": 0}, "share=0 is out of range; it has to be more than 0 and at most 1."),
        ({"share": 1.5}, "share=1.5 is out of range; it has to be more than 0 and at most 1."),
        ({"share": float("nan")}, "share=nan is out of range; it has to be more than 0 and at most 1."),
        ({"rows": 0}, "rows=0 is out of range; it has to be at least 1."),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Replay(**arguments)
    assert str(caught.value) == message


def test_what_is_replayed_stands_in_the_costs(tmp_path: Path) -> None:
    """Of each task of twelve rows three are kept, and mixed into every later one."""
    learn(Composition([SeqFT(), Replay(rows=3)]), tmp_path, tasks=[ONE, TWO, THREE])
    assert column(tmp_path / "costs.csv", "rows") == ["12", "15", "18"]
    assert column(tmp_path / "costs.csv", "replay_rows") == ["0", "3", "6"]
