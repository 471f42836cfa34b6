"""Merged weights against numbers worked by hand, against peft's functions, and against what a run really learnt."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.plain_models import TASKS, Linear, pretend_task, random_weights
from helpers.studies import learn, same, weights
from peft.utils import merge_utils
from torch import Tensor

from strategies import EMA, BlockExpansion, DownProjectionMoE, LoRA, Merge, Rewind, SeqFT
from strategies.merge import keep_largest
from workbench.benchmark import PRETRAINING, Task
from workbench.strategy import Composition, ContinualStrategy
from workbench.testing.tiny import VARIANTS, tiny_backbone, tiny_corpus

START = [1.0, 1.0, 1.0, 1.0, 1.0]
FIRST = [0.5, -0.1, 0.2, -0.4, 0.05]
SECOND = [-0.3, 0.35, 0.1, -0.6, 0.01]


@pytest.mark.parametrize(
    ("arguments", "change"),
    [
        ({"method": "average"}, [0.1, 0.125, 0.15, -0.5, 0.03]),
        ({"method": "average", "weight": 0.25}, [0.3, 0.0125, 0.175, -0.45, 0.04]),  # 3/4 of the first, 1/4
        ({"method": "task_arithmetic"}, [0.08, 0.1, 0.12, -0.4, 0.024]),  # 0.4 times the sum
        ({"method": "task_arithmetic", "scale": 1}, [0.2, 0.25, 0.3, -1.0, 0.06]),
        # Two of five stay: 0.5 and -0.4 of the first, 0.35 and -0.6 of the second.
        ({"method": "ties", "density": 0.4}, [0.5, 0.35, 0, -0.5, 0]),
        ({"method": "ties", "density": 0.4, "trim": "tensor", "scale": 0.5}, [0.25, 0.175, 0, -0.25, 0]),
        ({"method": "ties", "density": 1}, [0.5, 0.35, 0.15, -0.5, 0.03]),  # the sums are 0.2 and 0.25: positive
        ({"method": "dare", "drop": 0, "scale": 1}, [0.2, 0.25, 0.3, -1.0, 0.06]),
        ({"method": "magmax"}, [0.25, 0.175, 0.1, -0.3, 0.025]),  # half of the largest
        ({}, [0.25, 0.175, 0.1, -0.3, 0.025]),
    ],
)
@pytest.mark.parametrize("scope", ["chain", "independent"])
def test_two_tasks_by_hand(arguments: dict[str, Any], change: list[float], scope: Any) -> None:
    """All task vectors are taken from the first start, also where the second task starts from the first one's end."""
    backbone, strategy = Linear(*START), Merge(scope=scope, **arguments)
    for task, vector in zip(TASKS, (FIRST, SECOND), strict=False):
        pretend_task(strategy, backbone, task, {"weight": torch.tensor([START]) + torch.tensor([vector])})
    assert backbone.values() == pytest.approx([1 + value for value in change], abs=1e-6)


def test_slerp_by_hand() -> None:
    """A quarter turn from (3, 0) to (0, 1): with a third of the way 60 and 30 degrees are left on each side."""
    backbone, strategy = Linear(1.0, 1.0), Merge("slerp", weight=1 / 3)
    for task, value in zip(TASKS, ([3.0, 0.0], [0.0, 1.0]), strict=False):
        pretend_task(strategy, backbone, task, {"weight": torch.tensor([value])})
    assert backbone.values() == pytest.approx([3 * math.sqrt(3) / 2, 0.5], abs=1e-6)


@pytest.mark.parametrize("method", ["average", "slerp"])
def test_each_of_three_tasks_counts_as_much(method: Any) -> None:
    """Of parallel weights the arc is the straight line."""
    backbone, strategy = Linear(1.0, 2.0), Merge(method)
    for task, factor in zip(TASKS, (1.0, 2.0, 6.0), strict=False):
        pretend_task(strategy, backbone, task, {"weight": factor * torch.tensor([[1.0, 2.0]])})
    assert backbone.values() == pytest.approx([3.0, 6.0], abs=1e-6)


def three_tasks(strategy: ContinualStrategy, **variant: Any) -> tuple[Any, dict[str, Tensor], list[dict[str, Tensor]]]:
    """A tiny model after three tasks, its weights before, and the task vectors by name."""
    backbone = tiny_backbone(num_hidden_layers=2, **variant)
    start = {name: value.detach().clone() for name, value in backbone.trainable().items()}
    strategy.setup(backbone)
    ends = [random_weights(backbone, seed) for seed in range(3)]
    for task, end in zip(TASKS, ends, strict=False):
        pretend_task(strategy, backbone, task, end)
    return backbone, start, [{name: end[name].float() - start[name].float() for name in start} for end in ends]


ONES = torch.ones(3)
ORACLES = {  # each maps the three task vectors, stacked or in a list, to the merged one
    "average": ({}, lambda vectors: torch.stack(vectors).mean(0)),
    "task_arithmetic": ({}, lambda vectors: merge_utils.task_arithmetic(vectors, 0.4 * ONES)),
    "ties": ({"trim": "tensor"}, lambda vectors: merge_utils.ties(vectors, ONES, density=0.2)),
    "magmax": (
        {},
        lambda vectors: 0.5 * torch.stack(vectors).gather(0, torch.stack(vectors).abs().argmax(0)[None])[0],
    ),
}


@pytest.mark.parametrize("method", ORACLES)
def test_a_tiny_llama_is_merged_as_peft_merges(method: Any) -> None:
    arguments, oracle = ORACLES[method]
    backbone, start, vectors = three_tasks(Merge(method, **arguments))
    for name, value in backbone.trainable().items():
        expected = start[name] + oracle([vector[name] for vector in vectors])
        assert torch.allclose(value, expected, rtol=0, atol=1e-6), name


def test_ties_on_the_whole_vector_is_the_official_definition() -> None:
    """peft's function on one tensor that holds all weights; the two definitions differ."""
    backbone, start, vectors = three_tasks(Merge("ties"))
    flat = [torch.cat([value.flatten() for value in vector.values()]) for vector in vectors]
    expected = torch.cat([value.flatten() for value in start.values()]) + merge_utils.ties(flat, ONES, density=0.2)
    found = torch.cat([value.detach().flatten() for value in backbone.trainable().values()])
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)
    other = three_tasks(Merge("ties", trim="tensor"))[0]
    assert not same(weights(backbone), weights(other))


def test_slerp_of_a_tiny_llama_keeps_the_norm_where_the_average_loses_it() -> None:
    backbone, strategy = tiny_backbone(num_hidden_layers=1), Merge("slerp")
    ends = [random_weights(backbone, seed, size=10.0) for seed in range(2)]
    for end in ends:
        for value in end.values():
            value /= value.norm()
    for task, end in zip(TASKS, ends, strict=False):
        pretend_task(strategy, backbone, task, end)
    for name, value in backbone.trainable().items():
        middle = (ends[0][name] + ends[1][name]) / 2
        assert torch.allclose(value, middle / middle.norm(), atol=1e-6), name


def test_dare_drops_at_random_and_rescales() -> None:
    """Each entry is 0 or divided by 1 - p; over 700 thousand entries p is met to five standard deviations."""
    strategy = Merge("dare", drop=0.75, scale=1)
    backbone, start = tiny_backbone(num_hidden_layers=1), {}
    start = {name: value.detach().clone() for name, value in backbone.trainable().items()}
    strategy.setup(backbone)
    end = random_weights(backbone, 0)
    pretend_task(strategy, backbone, TASKS[0], end)
    kept = count = 0
    for name, value in backbone.trainable().items():
        vector, change = end[name] - start[name], value.detach() - start[name]
        stays = change.abs() > 0.5 * vector.abs()
        assert torch.allclose(change, torch.where(stays, 4 * vector, torch.zeros(())), atol=2e-6), name
        kept, count = kept + int(stays.sum()), count + value.numel()
    assert abs(kept - 0.25 * count) < 5 * math.sqrt(count * 0.25 * 0.75)


def test_what_dare_drops_depends_on_the_run_the_task_and_the_tensor_alone() -> None:
    def dropped(seed: int, task: Task, drawn: int) -> list[float]:
        backbone, strategy = Linear(*[0.0] * 64), Merge("dare", drop=0.5)
        torch.manual_seed(seed)
        strategy.setup(backbone)  # type: ignore[arg-type]
        torch.rand(drawn)
        pretend_task(strategy, backbone, task, {"weight": torch.ones(1, 64)})
        return backbone.values()

    one = dropped(1, TASKS[0], 0)
    assert one == dropped(1, TASKS[0], 7)
    assert one != dropped(2, TASKS[0], 0)
    assert one != dropped(1, TASKS[1], 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 1.0])
def test_the_largest_entries_are_found_exactly(density: float, dtype: torch.dtype) -> None:
    vector = {"a": torch.randn(40, 5, dtype=dtype), "b": torch.randn(300, dtype=dtype) * 3}
    flat = torch.cat([value.flatten() for value in vector.values()])
    expected = torch.zeros_like(flat)
    places = flat.abs().topk(int(density * 500)).indices
    expected[places] = flat[places]
    found = keep_largest(vector, density)
    assert torch.equal(torch.cat([value.flatten() for value in found.values()]), expected)
    one = keep_largest(vector, density, "tensor")["b"]
    assert int((one != 0).sum()) == int(density * 300)


def test_equal_entries_at_the_threshold_all_stay_and_too_few_entries_all_go() -> None:
    vector = {"a": torch.tensor([1.0, -2.0, 2.0, 0.5])}
    assert keep_largest(vector, 0.25)["a"].tolist() == [0.0, -2.0, 2.0, 0.0]
    assert keep_largest(vector, 0.2)["a"].tolist() == [0.0] * 4
    assert keep_largest({"a": torch.zeros(4)}, 0.5)["a"].tolist() == [0.0] * 4


@pytest.mark.parametrize("method", ["task_arithmetic", "average"])
def test_half_precision_is_rounded_once(method: Any) -> None:
    backbone, start, vectors = three_tasks(Merge(method), **VARIANTS["bf16"])
    for name, value in backbone.trainable().items():
        total = sum(vector[name] for vector in vectors)
        expected = start[name].float() + total * (0.4 if method == "task_arithmetic" else 1 / 3)
        assert value.dtype == torch.bfloat16
        assert ((value.float() - expected).abs() <= expected.abs() * 2**-8 + 1e-6).all(), name


def test_a_tied_tensor_is_merged_once() -> None:
    backbone, start, vectors = three_tasks(Merge("task_arithmetic", scale=1), **VARIANTS["tied"])
    name = "model.embed_tokens.weight"
    assert "lm_head.weight" not in backbone.trainable()
    expected = start[name] + sum(vector[name] for vector in vectors)
    assert torch.allclose(backbone.model.lm_head.weight, expected, atol=1e-6)
    assert backbone.model.lm_head.weight is backbone.model.get_input_embeddings().weight


class Spy(ContinualStrategy):
    """Copies the model's weights as each task begins, and as it ends."""

    reference = "none"

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[dict[str, Tensor]] = []
        self.ended: list[dict[str, Tensor]] = []

    def before_task(self, backbone: Any, task: Task, batches: Any) -> None:
        self.begun.append(weights(backbone))

    def after_task(self, backbone: Any, task: Task, batches: Any) -> None:
        self.ended.append(weights(backbone))


def run(folder: Path, *members: ContinualStrategy) -> tuple[dict[str, Tensor], Spy, Spy]:
    """The weights after three tiny tasks, and what was seen before and behind the members in the list."""
    first, last = Spy(), Spy()
    backbone = learn(Composition([first, *members, last]), folder, tasks=TASKS[:3])
    return weights(backbone), first, last


def test_in_a_chain_merging_changes_no_training(tmp_path: Path) -> None:
    plain, _, trained = run(tmp_path / "a", SeqFT())
    merged, seen, scored = run(tmp_path / "b", Merge())
    assert all(same(one, other) for one, other in zip(trained.ended, seen.ended, strict=True))
    assert same(merged, scored.ended[-1])
    start = seen.begun[0]
    for name, value in merged.items():
        vectors = torch.stack([end[name] - start[name] for end in trained.ended])
        largest = vectors.gather(0, vectors.abs().argmax(0)[None])[0]
        assert torch.allclose(value, start[name] + 0.5 * largest, rtol=0, atol=1e-6), name
    assert not same(merged, plain)


def test_the_merged_weights_go_on_if_they_shall(tmp_path: Path) -> None:
    _, seen, last = run(tmp_path, Merge("average", carry="scored"))
    assert same(last.begun[1], last.ended[0])
    assert same(last.begun[2], last.ended[1])
    for name, value in last.ended[1].items():
        assert torch.allclose(value, (seen.ended[0][name] + seen.ended[1][name]) / 2, atol=1e-7), name


def test_independent_tasks_all_start_from_the_same_bits(tmp_path: Path) -> None:
    _, seen, last = run(tmp_path, Merge("average", scope="independent"))
    loaded = weights(tiny_backbone())
    assert all(same(begun, loaded) for begun in last.begun)
    assert not same(seen.ended[1], seen.ended[0])


def test_after_continued_pretraining_the_vectors_begin_at_its_end() -> None:
    backbone, strategy = Linear(0.0), Merge("task_arithmetic", scale=1)
    stage = Task(PRETRAINING, test=tiny_corpus().test)
    for task, value in ((stage, 5.0), (TASKS[0], 6.0), (TASKS[1], 8.0)):
        pretend_task(strategy, backbone, task, {"weight": torch.tensor([[value]])})
    assert backbone.values() == [9.0]  # 5 + (6 - 5) + (8 - 5)


def adapter_tasks(backbone: Any, strategy: ContinualStrategy, count: int = 2) -> list[dict[str, Tensor]]:
    """Tasks with random factors, and each one's ΔW = alpha / rank · B A by the name of its weight."""
    strategy.setup(backbone)
    updates = []
    for index, task in enumerate(TASKS[:count]):
        strategy.before_task(backbone, task, [])
        generator, update = torch.Generator().manual_seed(index), {}
        factors = backbone.trainable()
        with torch.no_grad():
            for factor in factors.values():
                factor.copy_(torch.randn(factor.shape, generator=generator))
        for name, b in factors.items():
            if ".lora_B." in name:
                a = factors[name.replace("lora_B", "lora_A")]
                update[f"{name.partition('.lora_B.')[0]}.weight"] = (32 / 8 * b @ a).detach()
        updates.append(update)
        strategy.after_task(backbone, task, [])
    return updates


def test_of_adapters_the_updates_are_merged_and_not_the_factors() -> None:
    backbone = tiny_backbone(num_hidden_layers=2)
    start = weights(backbone)
    one, two = adapter_tasks(backbone, Composition([LoRA(policy="merge"), Merge("average", scope="independent")]))
    assert len(one) == 4  # two projections in two layers
    found = weights(backbone)
    for name, value in found.items():
        expected = start[name] + (one[name] + two[name]) / 2 if name in one else start[name]
        assert torch.allclose(value, expected, rtol=1e-5, atol=1e-5), name
        if name in one:
            change = value.double() - start[name].double()
            assert torch.linalg.matrix_rank(change, rtol=1e-4) == 16  # two of rank 8; a mean of factors has rank 8


@pytest.mark.parametrize(
    "members",
    [
        lambda: [LoRA(), Merge()],
        lambda: [LoRA(policy="stack"), Merge()],
        lambda: [Merge(), LoRA(policy="merge")],  # it would be folded in after the merge
    ],
)
def test_adapters_that_stay_apart_are_refused(members: Any) -> None:
    with pytest.raises(ValueError, match=r"factors A and B cannot be merged apart\. Put LoRA.policy='merge'. before"):
        adapter_tasks(tiny_backbone(num_hidden_layers=2), Composition(members()))


@pytest.mark.parametrize(
    ("peft", "message"),
    [
        ({"init_lora_weights": "pissa"}, "an adapter took a part of them"),
        ({"use_dora": True}, "q_proj.weight does not begin at zero .DoRA does not., so it would change the weights"),
    ],
)
def test_an_adapter_that_does_not_begin_at_zero_is_refused_where_weights_are_put_back(peft: Any, message: str) -> None:
    strategy = Composition([LoRA(policy="merge", peft=peft), Merge(scope="independent")])
    with pytest.raises(ValueError, match=message):
        adapter_tasks(tiny_backbone(num_hidden_layers=2), strategy)
    strategy = Composition([LoRA(policy="merge", peft=peft), Merge("average", carry="scored")])
    adapter_tasks(tiny_backbone(num_hidden_layers=2), strategy)  # nothing is put back


def test_new_blocks_are_merged_and_old_ones_keep_their_bits(tmp_path: Path) -> None:
    merged, seen, last = run(tmp_path, BlockExpansion(groups=2), Merge("task_arithmetic", scale=0.5))
    start = last.begun[0]
    changed = {name for name in merged if not torch.equal(merged[name], start[name])}
    assert {name.split(".")[2] for name in changed} == {"2", "5"}
    for name in changed:
        vectors = [end[name] - start[name] for end in seen.ended]
        assert torch.allclose(merged[name], start[name] + 0.5 * sum(vectors), rtol=0, atol=1e-6), name


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            [BlockExpansion(groups=2, each_task=True), Merge()],
            "Merge: task_1 trains other parameters than the tasks before, so their vectors cannot be merged. Combine "
            "it with a method that trains the same ones in each task.",
        ),
        (
            [Merge(), Rewind(0.5)],
            "the weights changed after they were merged or averaged: another strategy did it, or an adapter took a "
            "part of them (PiSSA, OLoRA). It would be undone. List that strategy first, or let the scored weights go "
            "on to the next task.",
        ),
        (
            [DownProjectionMoE(), Merge()],
            "model.layers.0.mlp.down_proj is computed from several parameters, and no mean of these is the weight's "
            "mean. Merging and averaging need a method that trains plain weights.",
        ),
    ],
)
def test_what_does_not_compose_says_why(members: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        run(tmp_path, *members)
    assert str(caught.value) == message


def test_averaged_weights_are_merged_if_they_go_on(tmp_path: Path) -> None:
    _, _, last = run(tmp_path, EMA(beta=0.5), Merge("average"))
    assert not same(last.ended[0], last.ended[1])


def test_a_task_that_trains_nothing_of_the_model() -> None:
    backbone = tiny_backbone(num_hidden_layers=1)
    backbone.freeze()
    with pytest.raises(ValueError, match="no weight of the model trains, so there is nothing to merge"):
        Merge().before_task(backbone, TASKS[0], [])


@pytest.mark.parametrize(
    ("arguments", "times"),
    [
        ({"method": "average"}, 2),
        ({"method": "slerp"}, 2),
        ({"method": "average", "carry": "scored"}, 1),
        ({"method": "average", "scope": "independent"}, 2),
        ({"method": "task_arithmetic", "carry": "scored"}, 2),
        ({"method": "dare", "carry": "scored"}, 2),
        ({"method": "magmax"}, 3),
        ({"method": "ties"}, 4.5),
        ({"method": "ties", "scope": "independent"}, 3.5),  # the weights that wait are θ_0
    ],
)
def test_the_bytes_that_are_kept(arguments: dict[str, Any], times: float) -> None:
    """They do not grow with the tasks, and no two names share them."""
    strategy = Merge(**arguments)
    backbone, _, _ = three_tasks(strategy)
    state = strategy.get_extra_state()
    kept = [state["start"], state["aside"]["waiting"], *state["vectors"].values()]
    sizes = {tensor.data_ptr(): tensor.nbytes for tensors in kept for tensor in tensors.values()}
    assert sum(sizes.values()) == times * sum(value.nbytes for value in backbone.trainable().values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "fisher"}, "method='fisher': choose one of 'average', 'slerp', 'task_arithmetic', 'ties', "),
        ({"scope": "all"}, "scope='all': choose one of 'chain', 'independent'."),
        ({"carry": "merged"}, "carry='merged': choose one of 'trained', 'scored'."),
        ({"trim": "layer"}, "trim='layer': choose one of 'vector', 'tensor'."),
        ({"scale": 0}, "scale=0 is out of range; it has to be more than 0."),
        ({"scale": float("nan")}, "scale=nan is out of range; it has to be more than 0."),
        ({"method": "average", "scale": 1}, "scale=1: 'average' has no scale. Leave it out, or give `weight`."),
        ({"weight": 0.5}, "weight=0.5: 'magmax' has no weight. Leave it out, or give `scale`."),
        ({"method": "slerp", "weight": 2}, "weight=2 is out of range; it has to be at least 0 and at most 1."),
        ({"density": 0}, "density=0 is out of range; it has to be more than 0 and at most 1."),
        ({"drop": 1}, "drop=1 is out of range; it has to be at least 0 and less than 1."),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Merge(**arguments)
    assert str(caught.value).startswith(message)
