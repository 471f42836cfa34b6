"""Merging, averaging and moving weights back: what has to hold, and the faults of public code."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from audit_case import Case, Make
from datasets import Dataset
from helpers.plain_models import TASKS, Linear, pretend_task, random_weights
from torch import Tensor

from strategies import EMA, LoRA, Merge, PullBack, Rewind
from workbench.backbone import plain_weights, write_weights
from workbench.strategy import Composition, ContinualStrategy
from workbench.testing.tiny import VARIANTS, tiny_backbone

Weights = dict[str, Tensor]
VECTORS = ([0.5, -0.9, 0.2], [0.4, 0.3, -0.1], [-0.8, 0.4, 0.6])


def from_hand(strategy: ContinualStrategy, expected: Iterable[float]) -> float:
    """Distance of three weights that began at 1 from what three tasks with `VECTORS` have to give."""
    backbone: Any = Linear(1.0, 1.0, 1.0)
    strategy.setup(backbone)
    for task, vector in zip(TASKS, VECTORS, strict=False):
        pretend_task(strategy, backbone, task, {"weight": 1 + torch.tensor([vector])})
    return max(abs(value - right) for value, right in zip(backbone.values(), expected, strict=True))


def magmax(make: Make) -> float:
    return from_hand(make(), [1 - 0.8, 1 - 0.9, 1 + 0.6])


def ties(make: Make) -> float:
    """The sums are 0.1, -0.2, 0.7: the means of 0.5 and 0.4, of -0.9, and of 0.2 and 0.6."""
    return from_hand(make(), [1.45, 0.1, 1.4])


def trimmed(make: Make) -> float:
    """Share of a task vector's energy that is kept, from that of the largest fifth of all its entries."""
    backbone, strategy = tiny_backbone(num_hidden_layers=1), make()
    start, end = plain_weights(backbone), random_weights(backbone, 0)
    for place, value in enumerate(end.values()):
        value.copy_(start[list(end)[place]] + (1 + place) * (value - start[list(end)[place]]))
    pretend_task(strategy, backbone, TASKS[0], end)
    vector = torch.cat([(end[name] - start[name]).flatten() for name in start])
    kept = torch.cat([(value - start[name]).flatten() for name, value in plain_weights(backbone).items()])
    right = vector.square().topk(int(0.2 * vector.numel())).values.sum()
    return abs(float(kept.square().sum() / right) - 1)


def dropped(make: Make) -> float:
    """Distance of the mean of what is left of 200,000 ones from 1; its standard deviation is 0.0067."""
    backbone, strategy = Linear(*[0.0] * 200_000), make()
    pretend_task(strategy, backbone, TASKS[0], {"weight": torch.ones(1, 200_000)})
    return abs(float(backbone.model.weight.detach().mean()) - 1)


def tied(make: Make) -> float:
    """Distance of tied embeddings from θ_0 + τ, after one task."""
    backbone, strategy = tiny_backbone(num_hidden_layers=1, **VARIANTS["tied"]), make()
    end = random_weights(backbone, 0)
    pretend_task(strategy, backbone, TASKS[0], end)
    return float((backbone.model.lm_head.weight.detach() - end["model.embed_tokens.weight"]).abs().max())


def set_factors(backbone: Any, seed: int) -> tuple[Weights, Weights]:
    """Train: random factors. Returns the weights of the projections before, and ΔW = alpha / rank · B A."""
    start, updates = {}, {}
    with torch.no_grad():
        for name, value in random_weights(backbone, seed).items():
            backbone.model.get_parameter(name).copy_(value)
    for name, b in backbone.trainable().items():
        if ".lora_B." in name:
            layer = name.partition(".lora_B.")[0]
            start[f"{layer}.weight"] = backbone.model.get_parameter(f"{layer}.base_layer.weight").detach().clone()
            updates[f"{layer}.weight"] = (4 * b @ backbone.trainable()[name.replace("lora_B", "lora_A")]).detach()
    return start, updates


def largest_difference(backbone: Any, expected: Weights) -> float:
    """Largest difference of the projections' weights, adapters folded in, from the expected ones."""
    found = plain_weights(backbone, expected)
    return max(float((found[name] - value).abs().max()) for name, value in expected.items())


def merged_adapters(make: Make) -> float:
    """Distance from W + (ΔW_1 + ΔW_2) / 2."""
    backbone, strategy, seen = tiny_backbone(num_hidden_layers=1), make(), []
    strategy.setup(backbone)
    for seed, task in enumerate(TASKS[:2]):
        strategy.before_task(backbone, task, [])
        seen.append(set_factors(backbone, seed))
        strategy.after_task(backbone, task, [])
    (start, one), (_, two) = seen
    return largest_difference(backbone, {name: start[name] + (one[name] + two[name]) / 2 for name in start})


def averaged_adapters(make: Make) -> float:
    """Distance from the average of W + ΔW over three steps: shares 1/8, 1/8, 1/4, 1/2, the first of ΔW = 0."""
    backbone, strategy, updates = tiny_backbone(num_hidden_layers=1), make(), []
    strategy.setup(backbone)
    strategy.before_task(backbone, TASKS[0], [])
    for seed in range(3):
        start, update = set_factors(backbone, seed)
        updates.append(update)
        strategy.after_step(backbone)
    strategy.after_task(backbone, TASKS[0], [])
    shares = zip((1 / 8, 1 / 4, 1 / 2), updates, strict=True)
    sums = [{name: share * update[name] for name in start} for share, update in shares]
    return largest_difference(backbone, {name: start[name] + sum(part[name] for part in sums) for name in start})


def constant(make: Make) -> float:
    """Distance of the average of weights that stay at 1 from 1."""
    backbone: Any = Linear(1.0)
    strategy = make()
    strategy.before_task(backbone, TASKS[0], [])
    for _ in range(10):
        strategy.after_step(backbone)
    strategy.after_task(backbone, TASKS[0], [])
    return abs(backbone.values()[0] - 1)


def rewound_adapter(make: Make) -> float:
    """Distance from W + ΔW / 4."""
    backbone, strategy = tiny_backbone(num_hidden_layers=1), make()
    strategy.setup(backbone)
    strategy.before_task(backbone, TASKS[0], [])
    start, update = set_factors(backbone, 0)
    strategy.after_task(backbone, TASKS[0], [])
    return largest_difference(backbone, {name: start[name] + update[name] / 4 for name in start})


def perplexity(make: Make) -> float:
    """Distance of the kept rows' nats per answer token from those of plain logits, each predicting the next token."""
    backbone, strategy = tiny_backbone(num_hidden_layers=1), make()
    assert isinstance(strategy, PullBack)
    pretend_task(strategy, backbone, TASKS[0], {})
    right = nats_of(backbone, strategy.memory[TASKS[0].name], shift=1)
    return abs(strategy.nats[TASKS[0].name] - right)


@torch.no_grad()
def nats_of(backbone: Any, rows: list[dict[str, Any]], shift: int) -> float:
    """Mean nats per answer token where a position's logits predict the token `shift` places further."""
    nats = []
    for row in backbone.encode(Dataset.from_list(rows)).to_list():
        tokens = torch.tensor([row["input_ids"]])
        logs = backbone.model(tokens).logits[0].double().log_softmax(-1)
        nats += [-logs[at - shift, tokens[0, at]].item() for at in range(row["prompt_length"], tokens.shape[1])]
    return sum(nats) / len(nats)


class AgainstTheLastTask(Merge):
    """Takes a task vector from the weights that the last task ended with."""

    last: Weights = {}

    def add(self, task: str, trained: Weights) -> None:
        start, self.start = self.start, self.last or self.start
        super().add(task, trained)
        self.start, self.last = start, trained


class SignByCount(Merge):
    """Elects the sign that more tasks have, whatever their magnitudes."""

    def merged(self) -> Weights:
        (one,) = self.names
        parts = {part: tensors[one] for part, tensors in self.vectors.items()}
        positive = parts["positive_count"] >= parts["negative_count"]
        total = torch.where(positive, parts["positive_sum"], parts["negative_sum"])
        return {one: self.start[one] + total / torch.where(positive, parts["positive_count"], parts["negative_count"])}


class NotRescaled(Merge):
    """Drops entries without dividing the others by 1 - p."""

    def _dropped(self, key: str, value: Tensor) -> Tensor:
        return super()._dropped(key, value) * (1 - self.drop)


class EachName(Merge):
    """Adds the merged vector to each entry of the state dict, which lists a tied tensor under both names."""

    def after_task(self, backbone: Any, task: Any, batches: Any) -> None:
        trained = plain_weights(backbone, self.names)
        write_weights(backbone, self.start)
        aliases = {value.data_ptr(): name for name, value in backbone.model.named_parameters()}
        for value in backbone.model.state_dict().values():
            name = aliases[value.data_ptr()]
            value += trained[name] - self.start[name]


class FactorsMerged(ContinualStrategy):
    """Averages A over the tasks, and B over the tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Weights] = []

    def after_task(self, backbone: Any, task: Any, batches: Any) -> None:
        self.seen.append({name: value.detach().clone() for name, value in backbone.trainable().items()})
        write_weights(backbone, {name: sum(one[name] for one in self.seen) / len(self.seen) for name in self.seen[0]})


class FactorsAveraged(EMA):
    """Averages A over the steps, and B over the steps."""

    def before_task(self, backbone: Any, task: Any, batches: Any) -> None:
        self.average = {name: value.detach().clone() for name, value in backbone.trainable().items()}

    def after_step(self, backbone: Any) -> None:
        for name, value in backbone.trainable().items():
            self.average[name].lerp_(value.detach(), 1 - self.beta)

    def after_task(self, backbone: Any, task: Any, batches: Any) -> None:
        write_weights(backbone, self.average)


class FromZeros(EMA):
    """Begins the average at zeros."""

    def before_task(self, backbone: Any, task: Any, batches: Any) -> None:
        super().before_task(backbone, task, batches)
        self.average = {name: torch.zeros_like(value) for name, value in self.average.items()}


class FactorsRewound(Rewind):
    """Moves each tensor of the adapter towards zero."""

    def after_task(self, backbone: Any, task: Any, batches: Any) -> None:
        write_weights(backbone, {name: self.alpha * value for name, value in backbone.trainable().items()})


class Unshifted(PullBack):
    """Compares the logits at a position with the token at that position."""

    def mean_nats(self, backbone: Any, rows: list[dict[str, Any]]) -> float:
        return nats_of(backbone, rows, shift=0)


def beside_lora(member: ContinualStrategy, **arguments: Any) -> Composition:
    return Composition([LoRA(**arguments), member])


CASES: tuple[Case, ...] = (
    Case(
        "Merge",
        "task vectors are differences from the weights before the first task, also in a chain of tasks",
        "each vector taken from the last task's weights, so that MagMax chooses among steps (a likely slip)",
        magmax,
        1e-6,
        lambda: Merge("magmax", scale=1),
        lambda: AgainstTheLastTask("magmax", scale=1),
    ),
    Case(
        "Merge",
        "TIES elects the sign of the sum",
        "the sign that more tasks have (peft's option `frequency`)",
        ties,
        1e-6,
        lambda: Merge("ties", density=1),
        lambda: SignByCount("ties", density=1),
    ),
    Case(
        "Merge",
        "TIES keeps the largest fifth of the whole vector, as the official code does",
        "peft keeps a fifth of each tensor under the same name",
        trimmed,
        1e-4,
        lambda: Merge("ties"),
        lambda: Merge("ties", trim="tensor"),
    ),
    Case(
        "Merge",
        "what DARE leaves has the task vector as its mean",
        "dropping without dividing by 1 - p (the default of peft's pruning function; its DARE does divide)",
        dropped,
        0.05,
        lambda: Merge("dare", scale=1),
        lambda: NotRescaled("dare", scale=1),
    ),
    Case(
        "Merge",
        "a tied tensor is merged once",
        "a loop over the state dict, which lists embeddings and head as two and adds twice (a likely slip)",
        tied,
        1e-5,
        lambda: Merge("task_arithmetic", scale=1),
        lambda: EachName("task_arithmetic", scale=1),
    ),
    Case(
        "Merge",
        "of adapters the updates B A are merged",
        "peft's `add_weighted_adapter` (linear, ties, dare_linear) combines A with A and B with B",
        merged_adapters,
        1e-5,
        lambda: beside_lora(Merge("average", scope="independent"), policy="merge"),
        lambda: beside_lora(FactorsMerged()),
    ),
    Case(
        "EMA",
        "the average of weights that stay the same is these weights",
        "an average that begins at zeros (TRL's SDFT)",
        constant,
        1e-6,
        EMA,
        FromZeros,
    ),
    Case(
        "EMA",
        "of an adapter W + B A is averaged",
        "averages of A and of B apart (TRL's SDFT)",
        averaged_adapters,
        1e-5,
        lambda: beside_lora(EMA(beta=0.5), policy="merge"),
        lambda: beside_lora(FactorsAveraged(beta=0.5)),
    ),
    Case(
        "Rewind",
        "of an adapter the update goes back by alpha",
        "each tensor of the adapter scaled, and so B A by alpha squared (a likely slip)",
        rewound_adapter,
        1e-5,
        lambda: beside_lora(Rewind(0.25)),
        lambda: beside_lora(FactorsRewound(0.25)),
    ),
    Case(
        "PullBack",
        "past tasks' perplexity is that of the next token",
        "logits that are not shifted against the labels (peft's own forgetting metric, November 2025 to July 2026)",
        perplexity,
        1e-4,
        PullBack,
        Unshifted,
    ),
)
"""Claims about merging and averaging."""
