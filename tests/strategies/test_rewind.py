"""Rewound weights by hand and on adapters; the pull-back on a problem of known answer, and against a scan."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers.plain_models import TASKS, Linear, pretend_task, random_weights
from helpers.studies import learn, same, weights
from torch import Tensor

from strategies import BlockExpansion, LoRA, PullBack, Rewind, SeqFT
from strategies.rewind import between
from workbench.backbone import plain_weights
from workbench.benchmark import Task, no_rows
from workbench.strategy import Composition, ContinualStrategy
from workbench.testing.tiny import VARIANTS, tiny_backbone, tiny_corpus

ONE, TWO, THREE = TASKS[:3]


@pytest.mark.parametrize(
    ("arguments", "begun", "scored"),
    [
        # From 10 the first task adds 4, the second 8.
        ({}, [10.0, 14.0], [11.0, 13.0]),  # a quarter of 4, a quarter of 12
        ({"carry": "scored"}, [10.0, 11.0], [11.0, 12.25]),  # a quarter of 1 + 8
        ({"towards": "task"}, [10.0, 14.0], [11.0, 16.0]),
        ({"towards": "task", "carry": "scored"}, [10.0, 11.0], [11.0, 13.0]),
    ],
)
def test_two_tasks_by_hand(arguments: dict[str, Any], begun: list[float], scored: list[float]) -> None:
    backbone: Any = Linear(10.0)
    strategy = Rewind(0.25, **arguments)
    found: tuple[list[float], list[float]] = [], []
    for task, step in ((ONE, 4.0), (TWO, 8.0)):
        strategy.before_task(backbone, task, [])
        found[0].extend(backbone.values())
        backbone.set([backbone.values()[0] + step])
        strategy.after_task(backbone, task, [])
        found[1].extend(backbone.values())
    assert found == (begun, scored)


def test_the_ends_are_reached_bit_for_bit(tmp_path: Path) -> None:
    plain = weights(learn(SeqFT(), tmp_path / "a"))
    assert same(weights(learn(Rewind(1), tmp_path / "b")), plain)
    assert same(weights(learn(Rewind(0), tmp_path / "c")), weights(tiny_backbone()))
    middle = weights(learn(Rewind(0.5), tmp_path / "d"))
    loaded = weights(tiny_backbone())
    for name, value in middle.items():
        assert torch.allclose(value, (plain[name] + loaded[name]) / 2, rtol=0, atol=1e-6), name


def effective(backbone: Any) -> dict[str, Tensor]:
    """All projections' weights with the adapters folded in, by their names in the plain model."""
    with backbone.merged():
        state = weights(backbone)
    return {name.replace(".base_layer", ""): value for name, value in state.items() if "lora_" not in name}


def with_adapters(strategy: ContinualStrategy, tasks: Iterable[Task] = (ONE, TWO)) -> Any:
    """A tiny model after tasks that set the trainable factors; yields before and after each `after_task`."""
    backbone = tiny_backbone(num_hidden_layers=2)
    strategy.setup(backbone)
    for index, task in enumerate(tasks):
        strategy.before_task(backbone, task, [])
        begun = effective(backbone)
        with torch.no_grad():
            for name, value in random_weights(backbone, index, 0.3).items():
                backbone.model.get_parameter(name).copy_(value)
        trained = effective(backbone)
        strategy.after_task(backbone, task, [])
        yield begun, trained, effective(backbone)


def test_of_an_adapter_the_update_is_scaled_and_not_each_factor() -> None:
    """One adapter for all tasks, back to the pretrained weights; the trained adapter goes on."""
    loaded = weights(tiny_backbone(num_hidden_layers=2))
    ended = loaded
    for begun, trained, scored in with_adapters(Composition([LoRA(), Rewind(0.25)])):
        assert same(begun, ended)
        ended = trained
        assert not same(trained, loaded)
        for name, value in scored.items():
            expected = loaded[name] + 0.25 * (trained[name] - loaded[name])
            assert torch.allclose(value, expected, rtol=0, atol=1e-5), name


@pytest.mark.parametrize("policy", ["merge", "stack"])
@pytest.mark.parametrize("towards", ["task", "pretrained"])
@pytest.mark.parametrize("carry", ["scored", "trained"])
def test_an_adapter_for_each_task_is_rewound_folded_or_not(policy: Any, towards: Any, carry: Any) -> None:
    members = [LoRA(policy=policy), Rewind(0.25, towards, carry)]
    start, before = None, None
    for begun, trained, scored in with_adapters(Composition(members)):
        start = begun if start is None or towards == "task" else start
        if before is not None:
            for name, value in begun.items():  # a folded weight is W + ΔW; one that is not is computed anew
                assert torch.allclose(value, before[name], rtol=0, atol=1e-5), name
        before = trained if carry == "trained" else scored
        for name, value in scored.items():
            expected = start[name] + 0.25 * (trained[name] - start[name])
            assert torch.allclose(value, expected, rtol=0, atol=1e-5), name


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            [LoRA(), Rewind(0.5, towards="task")],
            "Rewind: the adapter of earlier tasks goes on, and half of its way has twice its rank. Choose "
            "LoRA(policy='merge' or 'stack'), or towards='pretrained'.",
        ),
        (
            [LoRA(peft={"use_dora": True}), Rewind(0.5)],
            "the adapter 'default' is no LoRA, or is DoRA, PiSSA or OLoRA, and cannot be scaled. Fold it into the "
            "weights after each task, as LoRA(policy='merge') does.",
        ),
        (
            [BlockExpansion(groups=2, each_task=True), Rewind(0.5)],
            "Rewind: task_1 trains other parameters than the first task, which have no pretrained weights. Choose "
            "towards='task'.",
        ),
    ],
)
def test_what_does_not_compose_says_why(members: list[ContinualStrategy], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        learn(Composition(members), tmp_path)
    assert str(caught.value) == message


def test_new_blocks_of_a_task_are_rewound_to_the_identity(tmp_path: Path) -> None:
    members = [BlockExpansion(groups=2, each_task=True), Rewind(0.0, towards="task", carry="scored")]
    backbone, loaded = learn(Composition(members), tmp_path), tiny_backbone()
    batch = loaded.collate([{"input_ids": list(range(3, 20)), "prompt_length": 4, "row": 0}])
    with torch.no_grad():
        assert torch.equal(backbone(batch).token_nats, loaded(batch).token_nats)


class Slope(PullBack):
    """The past task's nats are 1 + w²/2, of a single weight w."""

    def mean_nats(self, backbone: Any, rows: Any) -> float:
        return 1 + backbone.values()[0] ** 2 / 2


@pytest.mark.parametrize(
    ("search", "steps", "alpha"),
    [("steps", 10, 0.7), ("steps", 4, 0.5), ("steps", 1, 0.0), ("bisection", 3, 0.625), ("bisection", 20, 0.74)],
)
def test_the_largest_share_that_keeps_the_past_is_found(search: Any, steps: int, alpha: float) -> None:
    """From 0 to 4: nats may rise by 4.3808 = 2.96²/2, so that 0.74 of the way fit."""
    backbone: Any = Linear(0.0)
    strategy = Slope(factor=math.exp(4.3808), steps=steps, search=search)
    pretend_task(strategy, backbone, ONE, {"weight": torch.tensor([[0.0]])})
    pretend_task(strategy, backbone, TWO, {"weight": torch.tensor([[4.0]])})
    assert strategy.alphas == {"task_1": pytest.approx(alpha, abs=2e-6)}
    assert backbone.values() == pytest.approx([4 * alpha], abs=1e-5)


def test_forgetting_does_not_add_up_over_tasks() -> None:
    """The factor holds against the perplexity right after the task, not against that before the last one."""
    backbone: Any = Linear(0.0)
    strategy = Slope(factor=math.exp(0.5), steps=30, search="bisection")
    for task, step in ((ONE, 0.0), (TWO, 3.0), (THREE, 3.0)):
        strategy.before_task(backbone, task, [])
        backbone.set([backbone.values()[0] + step])
        strategy.after_task(backbone, task, [])
    assert backbone.values() == pytest.approx([1.0], abs=1e-5)
    assert strategy.alphas["task_2"] == pytest.approx(0.0, abs=1e-5)


def ppl(backbone: Any, rows: list[dict[str, Any]]) -> float:
    """Perplexity of the answers, row by row, from the logits of plain transformers."""
    nats, tokens = 0.0, 0
    for row in rows:
        text = backbone.encode(Dataset.from_list([row])).to_list()[0]
        ids, length = torch.tensor([text["input_ids"]]), text["prompt_length"]
        logits = backbone.model.eval()(ids).logits[0].double().log_softmax(-1)
        nats -= sum(logits[place - 1, ids[0, place]].item() for place in range(length, ids.shape[1]))
        tokens += ids.shape[1] - length
        backbone.model.train()
    return math.exp(nats / tokens)


@torch.no_grad()
@pytest.mark.parametrize("search", ["steps", "bisection"])
def test_on_a_tiny_llama_it_is_what_a_scan_over_the_way_finds(search: Any) -> None:
    backbone, strategy = tiny_backbone(num_hidden_layers=2), PullBack(factor=1.5, rows=5, steps=6, search=search)
    pretend_task(strategy, backbone, ONE, {})
    start = plain_weights(backbone)
    reference = ppl(backbone, strategy.memory["task_0"])
    assert math.exp(strategy.nats["task_0"]) == pytest.approx(reference, rel=1e-4)
    end = random_weights(backbone, 0, size=0.3)
    pretend_task(strategy, backbone, TWO, end)
    found, alpha = weights(backbone), strategy.alphas["task_1"]
    assert 0 < alpha < 1
    ratios = {}
    for share in (alpha, alpha + (1 / 6 if search == "steps" else 2**-6)):
        for name, value in backbone.trainable().items():
            value.copy_(start[name] + share * (end[name] - start[name]))
        ratios[share] = ppl(backbone, strategy.memory["task_0"]) / reference
    fits, more = ratios.values()
    assert fits <= 1.5 * (1 + 1e-5)
    assert more > 1.5 * (1 - 1e-5)
    assert same(found, between(start, {name: end[name] for name in start}, alpha))


def test_what_forgets_nothing_stays_and_what_may_not_forget_goes_back(tmp_path: Path) -> None:
    """Bit for bit; rows of the first task alone are in both searches' way."""
    plain = weights(learn(SeqFT(), tmp_path / "a"))
    assert same(weights(learn(PullBack(factor=1e9), tmp_path / "b")), plain)
    one = weights(learn(SeqFT(), tmp_path / "c", tasks=[ONE]))
    for search in ("steps", "bisection"):
        strategy = PullBack(factor=1.0, steps=3, search=search)  # type: ignore[arg-type]
        strategy._keeps = lambda *_: False  # type: ignore[method-assign]
        assert same(weights(learn(strategy, tmp_path / search)), one)
        assert strategy.alphas == {"task_1": 0.0}


@pytest.mark.parametrize("policy", ["continue", "merge", "stack"])
def test_adapters_go_back_to_where_they_began(policy: Any) -> None:
    strategy = PullBack(factor=1.0, steps=2)
    strategy._keeps = lambda *_: False  # type: ignore[method-assign]
    last: dict[str, Tensor] = {}
    for begun, trained, scored in with_adapters(Composition([LoRA(policy=policy), strategy])):
        assert same(scored, begun if last else trained)
        last = scored


def test_rows_are_validation_rows_unless_they_are_scored() -> None:
    held_out = THREE.train.select(range(5))
    strategy = PullBack(rows=3)
    assert {row["prompt"] for row in strategy._choose(replace(ONE, validation=held_out))} <= {*held_out["prompt"]}
    assert len(strategy._choose(replace(ONE, validation=held_out))) == 3
    for task in (ONE, replace(ONE, validation=held_out).scored_on_validation()):
        assert {row["prompt"] for row in strategy._choose(task)} <= {*ONE.train["prompt"]}
    assert strategy._choose(ONE)[0].keys() == {"prompt", "answer", "max_new_tokens"}
    assert strategy._choose(tiny_corpus())[0].keys() == {"text"}


def test_a_task_without_rows_or_one_that_comes_again_holds_nothing_back() -> None:
    backbone: Any = Linear(0.0)
    strategy = Slope(factor=1.0)
    for task in (ONE, ONE):
        pretend_task(strategy, backbone, task, {"weight": torch.tensor([[3.0]])})
    assert strategy.alphas == {}
    llama, strategy = tiny_backbone(num_hidden_layers=1), PullBack(factor=1.0)
    pretend_task(strategy, llama, replace(ONE, train=no_rows()), {})
    pretend_task(strategy, llama, TWO, random_weights(llama, 0))
    assert strategy.alphas == {"task_1": 1.0}


def test_half_precision_is_moved_in_float32() -> None:
    start, end = ({"w": torch.tensor([value], dtype=torch.bfloat16)} for value in (1.0, 1.0078125))
    assert between(start, end, 0.5)["w"].item() == 1.00390625
    backbone, strategy = tiny_backbone(num_hidden_layers=1, **VARIANTS["bf16"]), Rewind(0.5)
    pretend_task(strategy, backbone, ONE, random_weights(backbone, 0))
    assert {value.dtype for value in backbone.trainable().values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rewind(1.5), "alpha=1.5 is out of range; it has to be at least 0 and at most 1."),
        (lambda: Rewind(float("nan")), "alpha=nan is out of range; it has to be at least 0 and at most 1."),
        (lambda: Rewind(0.5, "start"), "towards='start': choose 'pretrained' or 'task'."),  # type: ignore[arg-type]
        (lambda: Rewind(0.5, carry="both"), "carry='both': choose 'trained' or 'scored'."),  # type: ignore[arg-type]
        (lambda: PullBack(0.9), "factor=0.9 is out of range; it has to be at least 1."),
        (lambda: PullBack(math.inf), "factor=inf is out of range; it has to be at least 1."),
        (lambda: PullBack(rows=0), "rows=0 is out of range; it has to be at least 1."),
        (lambda: PullBack(steps=0), "steps=0 is out of range; it has to be at least 1."),
        (lambda: PullBack(search="grid"), "search='grid': choose 'steps' or 'bisection'."),  # type: ignore[arg-type]
    ],
)
def test_arguments_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == message
