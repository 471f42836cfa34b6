"""What the parts refuse that methods and benchmarks are made of: texts, tasks, layers, adapters, scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from bad_inputs import Row
from datasets import Dataset

import workbench
from workbench import metrics
from workbench.backbone import Backbone
from workbench.backbone.encoding import Encoder, TextPolicy
from workbench.benchmark import PublishedProtocol, Subset, Task
from workbench.composition import CalmForCausalLM, joined_layers
from workbench.config.components import as_component
from workbench.depth import PlannedLayer, refuse_second_growth, restack, stackable_layers
from workbench.errors import ConfigError
from workbench.scorers import Bleu, EditSimilarity, FirstLabel, RougeL, RowMean
from workbench.strategy import Composition, ContinualStrategy
from workbench.testing import check_either
from workbench.testing.conformance import ConformanceError
from workbench.testing.tiny import tiny_backbone, tiny_tasks
from workbench.train.optimizer_state import Moments

PAIRS = Dataset.from_dict({"prompt": ["a"], "answer": ["b"]})
NONE = Dataset.from_dict({"prompt": [], "answer": []})
ADAPTER = {"r": 2, "target_modules": ["q_proj"]}


def encoder(**policy: Any) -> Encoder:
    return Encoder(tiny_backbone().tokenizer, 64, TextPolicy(**policy))


def strange_moments() -> None:
    """An optimizer that steps with tensors of its own, as DeepSpeed's do."""
    model = torch.nn.Linear(1, 1)
    moments, optimizer = Moments(), torch.optim.Adam(model.parameters())
    moments.give(optimizer, dict(model.named_parameters()))
    optimizer.state[torch.zeros(1)] = {"step": torch.zeros(())}
    moments.take(optimizer, model)


class Bench:
    """Of two tiny tasks, and an order that has one of them."""

    orders = {"default": ["task_0"]}
    probes = ()
    general = None

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Task:
        return tiny_tasks()[index]


class Answers(ContinualStrategy):
    def __init__(self, given: Sequence[Any] = ("one",)) -> None:
        super().__init__()
        self.given = list(given)

    def answer(self, backbone: Any, task: Any, prompts: Any) -> list[str]:
        return self.given


class Halves(ContinualStrategy):
    """Trains the last layer alone."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer

    def setup(self, backbone: Backbone) -> None:
        backbone.freeze()
        backbone.model.model.layers[self.layer].requires_grad_(True)


class Unsaid(RowMean):
    pass


def adapted(**changes: Any) -> Backbone:
    backbone = tiny_backbone()
    backbone.add_adapter("one", **{**ADAPTER, **changes})
    return backbone


def grown() -> object:
    backbone = tiny_backbone()
    restack(backbone.model, [PlannedLayer(0)] * 2)
    return refuse_second_growth(backbone.model.config, False)


def planned(*sources: int) -> object:
    return restack(tiny_backbone().model, [PlannedLayer(source) for source in sources])


def row(name: str, call: Any, *says: str, error: type[BaseException] = ValueError) -> Row:
    return Row(name, says, lambda _: call(), error=error)


TEXTS = [
    row(
        "joint and middle",
        lambda: TextPolicy(tokenization="joint", truncation="middle"),
        "data.truncation=middle: data.tokenization=joint cuts prompt and answer together, on the left. Choose data.",
    ),
    row(
        "joint positions",
        lambda: encoder(tokenization="joint", max_length=65, max_prompt_length=20).limits(9),
        "65 tokens of prompt and answer together do not fit: the model has 64 positions. Set data.max_length lower.",
    ),
    row(
        "moments of other tensors",
        strange_moments,
        "carry_optimizer: the optimizer's state is not that of the model's parameters",
        "Give trainer.strategy ddp or fsdp",
    ),
    row(
        "a part of a protocol",
        lambda: PublishedProtocol("paper", parts={"warmth": "cosy"}),
        "parts: there is no 'warmth'. Choose from tokenization, training rows",
    ),
    row("likelihoods", lambda: tiny_backbone().log_likelihood(["a"], []), "1 prompts and 0 answers", "Give one for"),
]
TASKS = [
    row("a task's name", lambda: replace(tiny_tasks()[0], name="a/b"), "'a/b' is no name for a task: it has to be"),
    row("no test rows", lambda: replace(tiny_tasks()[0], test=NONE), "task_0: the test split has no rows", "Give it"),
    row("no scorer", lambda: replace(tiny_tasks()[0], scorers={}), "task_0: no scorer is given. Give at least one"),
    row("an option", lambda: replace(tiny_tasks()[0], options=["A"]), "task_0: options=['A']. Give a list of two or"),
    row(
        "a column",
        lambda: replace(tiny_tasks()[0], train=PAIRS.remove_columns("answer")),
        "task_0, train: column 'answer' is missing (there: ['prompt']). Rename",
    ),
    row(
        "a subset's task",
        lambda: Subset(Bench(), ["task_9"]),
        "tasks: there is no 'task_9'. Choose from task_0, task_1",
    ),
    row("an empty subset", lambda: Subset(Bench(), []), "tasks: empty. Name one or more of task_0, task_1."),
    row("neither", lambda: check_either(lambda: 3), "int is neither", "Give one of these", error=ConformanceError),
]
LAYERS = [
    row("no decoder", lambda: stackable_layers(CalmForCausalLM.compose(tiny_backbone().model, [], 2)), "Take a Llama"),
    row("an adapter in the way", lambda: stackable_layers(adapted().model), "carries the adapter 'one'", "Grow first"),
    row(
        "pairs",
        lambda: joined_layers(tiny_backbone().model, tiny_backbone().model, [(0, 9)]),
        "connections=[(0, 9)]: expected different pairs of layers of the augmenting model (0 to 3)",
    ),
    row(
        "no layers",
        lambda: joined_layers(tiny_backbone().model, CalmForCausalLM.compose(tiny_backbone().model, [], 2), 2),
        "CalmForCausalLM cannot be composed: expected a decoder of the LLaMA family.",
    ),
    row("peft's argument", lambda: tiny_backbone().add_adapter("one", rnak=3), "peft: ", "'rnak'", "Give arguments of"),
    row(
        "peft's bias", lambda: tiny_backbone().add_adapter("one", **ADAPTER, bias="all"), "peft: bias='all'", "Leave it"
    ),
    row(
        "tokens under an adapter",
        lambda: adapted(target_modules=["lm_head"]).add_tokens(["<a>"]),
        "Tokens cannot be added to a composition, nor where the embeddings or the head carry an adapter. Add",
    ),
    row(
        "a tied head",
        lambda: tiny_backbone(tie_word_embeddings=True).add_adapter("one", r=2, target_modules=["lm_head"]),
        "tied head",
        "Leave lm_head out",
    ),
]
STRATEGIES = [
    row("two that answer", lambda: Composition([Answers(), Answers()]), "Answers and Answers", "combine at most one."),
    row(
        "two voices",
        lambda: Composition([Halves(0), Halves(1)]).setup(tiny_backbone()),
        "Halves",
        "combine at most one.",
    ),
]
SCORES = [
    row(
        "unsaid", lambda: Unsaid().score("", "", ""), "Unsaid does not say", "define `score`", error=NotImplementedError
    ),
    row("bleu", lambda: Bleu(0), "max_order=0 leaves no n-gram to count. Give 1 or more."),
    row("words", lambda: RougeL(words="letters"), "words='letters' is unknown. Choose one of spaces, scripts"),  # type: ignore[arg-type]
    row("similarity", lambda: EditSimilarity("jaro"), "variant='jaro' is unknown. Choose one of levenshtein"),  # type: ignore[arg-type]
    row("pattern", lambda: FirstLabel("["), "pattern='[' is no regular expression", "Fix"),
    row(
        "two shapes", lambda: metrics.general_ability_delta(torch.zeros(2), torch.zeros(3)), "(2,)", "(3,)", "Give one"
    ),
    row("no matrix", lambda: metrics.forgetting(torch.zeros(2, 2)), "R has shape (2, 2)", "it has to be (T+1, T)"),
    row("after", lambda: metrics.overall_performance(torch.zeros(3, 2), after=3), "after=3 is not", "Give 1 … 2."),
]
NAMES = [
    row(
        "a name of the package",
        lambda: workbench.Nope,
        "'workbench' has no attribute 'Nope'. Choose",
        error=AttributeError,
    ),
    row(
        "a component",
        lambda: as_component({"class": "x"}, "it"),
        "it.class: a component has",
        "Did you",
        error=ConfigError,
    ),
]
ROWS = [*TEXTS, *TASKS, *LAYERS, *STRATEGIES, *SCORES, *NAMES]
