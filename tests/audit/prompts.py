"""Audited claims about soft prompts: which train, where they stand, and by what a row chooses its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from audit_case import Case, Make
from torch import Tensor

from strategies import L2P, ProgressivePrompts
from strategies.l2p import NearestKeys
from workbench.backbone import Backbone, Batch, Output, soft_embedding
from workbench.benchmark import Task
from workbench.strategy import ContinualStrategy
from workbench.testing import tiny_backbone, tiny_tasks

TASKS = tiny_tasks(2)


def learn(backbone: Backbone, strategy: ContinualStrategy, task: Task, steps: int = 2) -> None:
    """Take a few steps on all rows of a task, between the hooks of a run."""
    strategy.before_task(backbone, task, [])
    batch = backbone.collate(backbone.encode(task.train, task.max_new_tokens).to_list())
    optimizer = torch.optim.AdamW(backbone.trainable().values(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        output = backbone(batch)
        sum(strategy.penalties(backbone, batch, output).values(), output.loss).backward()
        optimizer.step()
    strategy.after_task(backbone, task, [])


@torch.no_grad()
def before_rows(backbone: Backbone, task: Task) -> Tensor:
    """The vectors that are read before a task's first test row, (tokens, width)."""
    count = len(backbone.encoder.prefix)
    token_ids = backbone.encode(task.test, task.max_new_tokens)[0]["input_ids"][:count]
    vectors: Tensor = backbone.model.get_input_embeddings()(torch.tensor(token_ids, dtype=torch.long))
    return vectors.clone()


def first_prompt_after_two_tasks(make: Make) -> float:
    """Largest change of what is read last before x, the first task's prompt, from the end of its task on."""
    strategy, backbone = make(), tiny_backbone()
    torch.manual_seed(0)
    strategy.setup(backbone)
    learn(backbone, strategy, TASKS[0])
    first = before_rows(backbone, TASKS[0])
    learn(backbone, strategy, TASKS[1])
    now = before_rows(backbone, TASKS[1])
    if len(now) != 2 * len(first):
        return float("inf")
    return float((now[-len(first) :] - first).abs().max())


def start_of_the_second(make: Make) -> float:
    """Distance of the second task's first prompt vectors from the nearest rows of the vocabulary."""
    strategy, backbone = make(), tiny_backbone()
    torch.manual_seed(0)
    strategy.setup(backbone)
    learn(backbone, strategy, TASKS[0])
    strategy.before_task(backbone, TASKS[1], [])
    vocabulary: Any = backbone.model.get_input_embeddings().weight
    apart = (before_rows(backbone, TASKS[1])[:3, None] - vocabulary.detach()[None]).abs().amax(2)
    return float(apart.min(1).values.max())


class NeverAnew(ProgressivePrompts):
    """One prompt parameter for all tasks, of which a copy is kept after each."""

    def before_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        last: Any = soft_embedding(backbone.model)
        trained = list(last.prompts.values())[-1].vectors.detach().clone() if last is not None else None
        super().before_task(backbone, task, batches)
        if trained is not None:
            last.prompts[f"task-{self.begun}"].vectors.data = trained


class AllTrain(ProgressivePrompts):
    """The earlier prompts are not frozen."""

    def before_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        super().before_task(backbone, task, batches)
        for prompt in soft_embedding(backbone.model).prompts.values():  # type: ignore[union-attr]
            prompt.requires_grad_(True)


def pool(strategy: ContinualStrategy) -> tuple[Backbone, Any]:
    backbone = tiny_backbone()
    torch.manual_seed(0)
    strategy.setup(backbone)
    return backbone, soft_embedding(backbone.model).selector  # type: ignore[union-attr]


def keys_gradient(make: Make) -> float:
    """Relative distance of the keys' gradient from that of −mean Σ cos(q, k), by finite differences in float64."""
    strategy = make()
    backbone, selector = pool(strategy)
    batch = backbone.collate(backbone.encode(TASKS[0].train, 3).to_list())
    output = backbone(batch)
    sum(strategy.penalties(backbone, batch, output).values(), output.loss).backward()
    queries, chosen = (part.double() for part in selector.last)
    keys, right = selector.keys.detach().double(), torch.zeros(selector.keys.shape, dtype=torch.float64)

    def value(keys: Tensor) -> Tensor:
        cosines = torch.nn.functional.cosine_similarity(queries[:, None], keys[None], dim=2)
        return -cosines.gather(1, chosen.long()).sum(1).mean()

    for place in range(keys.numel()):
        step = torch.zeros(keys.numel(), dtype=torch.float64)
        step[place] = 1e-5
        step = step.view_as(keys)
        right.view(-1)[place] = (value(keys + step) - value(keys - step)) / 2e-5
    given = selector.keys.grad
    given = torch.zeros_like(right) if given is None else given.double()
    return float((given - right).norm() / right.norm())


class FrozenKeys(L2P):
    """The keys are outside of the loss, and stay as they were drawn."""

    def penalties(self, backbone: Backbone, batch: Batch, output: Output) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in super().penalties(backbone, batch, output).items()}


@torch.no_grad()
def query(make: Make) -> float:
    """Largest difference of the queries from the plain model's last state of each prompt."""
    strategy = make()
    backbone, selector = pool(strategy)
    prompts = TASKS[0].test["prompt"][:4]
    backbone.nats(backbone.encode(TASKS[0].test.select(range(4)), 3))
    plain = tiny_backbone()
    rows = plain.encode(TASKS[0].test.select_columns(["prompt"]).select(range(len(prompts))), 3)["input_ids"][:]
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    right = [plain.decoder.eval()(input_ids=torch.tensor([rows[row]])).last_hidden_state[0, -1] for row in order]
    return float((selector.last[0] - torch.stack(right)).abs().max())


class FromThePromptedModel(L2P):
    """The query is read behind soft prompts, which move while they train."""

    def setup(self, backbone: Backbone) -> None:
        super().setup(backbone)
        embedding: Any = soft_embedding(backbone.model)
        plain = embedding.without_slots

        def with_prompts(batch: Batch) -> tuple[Batch, Tensor, Tensor]:
            bare, sample, position = plain(batch)
            count = len(embedding.slot_ids)
            first = torch.arange(count).repeat(len(batch.row), 1) + embedding.num_embeddings
            token_ids = torch.cat([first, bare.input_ids], dim=1)
            rows = Batch(token_ids, batch.attention_mask, batch.labels, batch.row)
            return rows, sample, position + count

        embedding.without_slots = with_prompts


@torch.no_grad()
def alone(make: Make) -> float:
    """Share of test rows that choose other prompts among others than alone."""
    strategy = make()
    backbone, selector = pool(strategy)
    encoded = backbone.encode(TASKS[0].test, 3)
    backbone(backbone.collate(encoded.to_list()))
    together = selector.last[1]
    changed = 0
    for index, row in enumerate(encoded.to_list()):
        backbone(backbone.collate([row]))
        changed += not torch.equal(selector.last[1][0], together[index])
    return changed / len(together)


class Voting(NearestKeys):
    """The prompts that most rows of a batch have chosen are given to all of them."""

    def forward(self, features: Tensor) -> Tensor:
        super().forward(features)
        chosen = self.last[1]  # type: ignore[index]
        most = chosen.flatten().bincount(minlength=len(self.keys)).topk(self.chosen).indices
        self.last = features, most.expand_as(chosen)
        return (self.last[1][:, :, None] * self.length + torch.arange(self.length)).flatten(1)


class ByVote(L2P):
    """A batch chooses together."""

    def setup(self, backbone: Backbone) -> None:
        super().setup(backbone)
        width = backbone.model.config.hidden_size
        torch.manual_seed(1)
        backbone.choose_prompts(Voting(self.pool, self.length, self.chosen, width, self.query))


def small(kind: type[L2P]) -> Make:
    return lambda: kind(pool=8, length=2, chosen=2)


CASES: tuple[Case, ...] = (
    Case(
        "ProgressivePrompts",
        "each task's prompt begins anew, as rows of the vocabulary",
        "TRACE's code, and a port of it, has one prompt parameter, which goes on from the last task",
        start_of_the_second,
        1e-6,
        lambda: ProgressivePrompts(length=3, bottleneck=0),
        lambda: NeverAnew(length=3, bottleneck=0),
    ),
    Case(
        "ProgressivePrompts",
        "an earlier prompt keeps its values, and stands next to x",
        "earlier prompts left to train with the new one: the first thing a port forgets. Not found in the code that "
        "was read",
        first_prompt_after_two_tasks,
        0.0,
        lambda: ProgressivePrompts(length=3, bottleneck=4),
        lambda: AllTrain(length=3, bottleneck=4),
    ),
    Case(
        "L2P",
        "the keys follow the queries: their gradient is that of −Σ cos(q, k_s)",
        "TRACE's keys are frozen means of the initial prompts",
        keys_gradient,
        1e-4,
        small(L2P),
        small(FrozenKeys),
    ),
    Case(
        "L2P",
        "the query is the frozen model's reading of the prompt, without soft prompts",
        "a query from the prompted model, which moves with what it chooses. Not found in the code that was read",
        query,
        1e-4,
        small(L2P),
        small(FromThePromptedModel),
    ),
    Case(
        "L2P",
        "a row chooses its prompts alone",
        "a vote of the batch (`batchwise_prompt`, on by default in public configs), in testing as well: the answer "
        "depends on the neighbours",
        alone,
        0.0,
        small(L2P),
        small(ByVote),
    ),
)
