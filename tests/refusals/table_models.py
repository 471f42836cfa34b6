"""What the parts refuse that methods and benchmarks are made of: texts, tasks, layers, adapters, scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from bad_inputs import Row
from datasets import Dataset
from helpers.studies import sgd

import workbench
from workbench import metrics
from workbench.backbone import Backbone
from workbench.backbone.encoding import Encoder, TextPolicy, set_end_token
from workbench.benchmark import PublishedProtocol, Subset, Task
from workbench.composition import CalmForCausalLM, joined_layers, uniform_pairs
from workbench.config.components import as_component
from workbench.depth import PlannedLayer, refuse_second_growth, restack, stackable_layers
from workbench.errors import ConfigError
from workbench.scorers import Bleu, EditSimilarity, ExactMatch, FirstLabel, RougeL, RowMean
from workbench.strategy import Composition, ContinualStrategy
from workbench.surgery import merge
from workbench.testing import check_either
from workbench.testing.conformance import ConformanceError
from workbench.testing.tiny import tiny_backbone, tiny_tasks
from workbench.train import ContinualDataModule, ContinualModule, score_task
from workbench.train.optimizer_state import Moments

PAIRS = Dataset.from_dict({"prompt": ["a"], "answer": ["b"]})
NONE = Dataset.from_dict({"prompt": [], "answer": []})
ADAPTER = {"r": 2, "target_modules": ["q_proj"]}


def encoder(**policy: Any) -> Encoder:
    return Encoder(tiny_backbone().tokenizer, 64, TextPolicy(**policy))


def endless() -> Encoder:
    tokenizer = tiny_backbone().tokenizer
    tokenizer.eos_token = None
    return Encoder(tokenizer, 64, TextPolicy())


def strange_moments() -> None:
    """An optimizer that steps with tensors of its own, as DeepSpeed's do."""
    model = torch.nn.Linear(1, 1)
    moments, optimizer = Moments(), torch.optim.Adam(model.parameters())
    moments.give(optimizer, dict(model.named_parameters()))
    optimizer.state[torch.zeros(1)] = {"step": torch.zeros(())}
    moments.take(optimizer, model)


def crowded() -> Backbone:
    small = tiny_backbone(vocab_size=9)
    return Backbone(lambda: small.model, small.tokenizer)


class Bench:
    """Of two tiny tasks, and an order that has one of them."""

    orders = {"default": ["task_0"]}
    probes = ()
    general = None

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Task:
        return tiny_tasks()[index]


class Alone(ContinualStrategy):
    composable = False


class Answers(ContinualStrategy):
    def __init__(self, given: Sequence[Any] = ("one",)) -> None:
        super().__init__()
        self.given = list(given)

    def answer(self, backbone: Any, task: Any, prompts: Any) -> list[str]:
        return self.given


class Frozen(ContinualStrategy):
    def setup(self, backbone: Backbone) -> None:
        backbone.freeze()


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


def optimizers(strategy: ContinualStrategy) -> object:
    backbone = tiny_backbone()
    strategy.setup(backbone)
    module = ContinualModule(backbone, strategy, sgd)
    module.begin("task_0", 0)
    return module.configure_optimizers()


def nothing_to_train_on() -> object:
    data = ContinualDataModule(tiny_tasks(), batch_size=4, seed=0)
    data.begin(tiny_backbone(), 0, tiny_tasks()[0], PAIRS.select([]))
    return data.train_dataloader()


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
    row("max_length", lambda: TextPolicy(max_length=1), "data.max_length=1 is out of range; it has to be at least"),
    row("a long answer", lambda: encoder(max_length=8).limits(9), "an answer may have 9 tokens", "out of 8. Set data."),
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
    row(
        "positions",
        lambda: encoder(max_prompt_length=64).limits(9),
        "64 prompt and 9 answer tokens do not fit: the model has 64 positions. Set data.max_length",
    ),
    row("no chat", lambda: encoder(template="chat"), "'chat' needs a tokenizer with a chat template. Choose 'none'"),
    row(
        "a long template",
        lambda: encoder(template="alpaca").prompt("a", 8),
        "a prompt's limit in tokens is 8; the template 'alpaca' alone takes",
        "Set",
    ),
    row("no day", lambda: TextPolicy(template_date="today"), "data.template_date='today' is no date. Give one"),
    row(
        "letter by letter", lambda: tiny_backbone().generate("text", 3), "prompts='text' is one string. Give a list of"
    ),
    row("likelihoods", lambda: tiny_backbone().log_likelihood(["a"], []), "1 prompts and 0 answers", "Give one for"),
    row("no end", endless, "The tokenizer has no end token (eos_token)", "Set"),
    row("an end", lambda: set_end_token(tiny_backbone().tokenizer, "<no>"), "end_token='<no>' is not in", "Choose"),
    row("few embeddings", crowded, "The tokenizer has", "the model only 9 embeddings", "Give the tokenizer"),
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
    row(
        "no rows",
        nothing_to_train_on,
        "There is nothing to train on: `begin` was given no rows. Give",
    ),
    row("neither", lambda: check_either(lambda: 3), "int is neither", "Give one of these", error=ConformanceError),
]
LAYERS = [
    row("no decoder", lambda: stackable_layers(CalmForCausalLM.compose(tiny_backbone().model, [], 2)), "Take a Llama"),
    row("an adapter in the way", lambda: stackable_layers(adapted().model), "carries the adapter 'one'", "Grow first"),
    row("grown before", grown, "The model was grown before: its 2 layers come from 1", "Give again=true"),
    row("an empty plan", planned, "The layer plan is empty: a model needs at least one layer."),
    row("a layer that is not there", lambda: planned(9), "The layer plan names layer 9", "has 0 to 3. Choose"),
    row("connections", lambda: uniform_pairs(4, 2, 3), "connections=3: the anchor has 4 layers", "Choose 1 to 2."),
    row(
        "pairs",
        lambda: joined_layers(tiny_backbone().model, tiny_backbone().model, [(0, 9)]),
        "connections=[(0, 9)]: expected different pairs of layers of the augmenting model (0 to 3)",
    ),
    row(
        "vocabularies",
        lambda: joined_layers(tiny_backbone().model, tiny_backbone(vocab_size=1300).model, 2),
        "and the augmenting model 1300. Give models of one tokenizer.",
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
        "peft's start", lambda: adapted(init_lora_weights="eva"), "peft: init_lora_weights='eva'", "Choose one of True"
    ),
    row("peft's task", lambda: adapted(task_type="SEQ_CLS"), "peft: task_type='SEQ_CLS'", "Leave it out."),
    row("a target", lambda: adapted(target_modules=["q_prj"]), "target_modules: the model has no 'q_prj'. Choose"),
    row(
        "an idle pattern",
        lambda: adapted(rank_pattern={"up_proj": 1}),
        "rank_pattern: 'up_proj' fits no module",
        "Leave",
    ),
    row("embeddings", lambda: adapted(target_modules=["embed_tokens"]), "on the embeddings is not supported", "Leave"),
    row("a rank", lambda: adapted(r=0), "peft: `r` should be a positive", "Give arguments of its LoraConfig"),
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
    row("alone", lambda: Composition([Alone(), Frozen()]), "Alone cannot be combined with other strategies. Give it"),
    row("two that answer", lambda: Composition([Answers(), Answers()]), "Answers and Answers", "combine at most one."),
    row(
        "two voices",
        lambda: Composition([Halves(0), Halves(1)]).setup(tiny_backbone()),
        "Halves",
        "combine at most one.",
    ),
    row("nothing trains", lambda: optimizers(Frozen()), "Frozen left nothing to train for 'task_0'", "Leave"),
    row(
        "too few answers",
        lambda: score_task(tiny_backbone(), Answers(), tiny_tasks()[0]),
        "Answers.answer('task_0') returned 1 answers for 12 prompts. Give one text for each",
    ),
    row(
        "an answer of None",
        lambda: score_task(tiny_backbone(), Answers([None] * 12), tiny_tasks()[0]),
        "Answers.answer('task_0') returned an object of type list, which holds an object of type NoneType",
        "Give one text for each",
    ),
]
SCORES = [
    row(
        "lengths", lambda: ExactMatch().update([""], [], [""]), "1 prompts, 0 predictions and 1 answers", "Give one of"
    ),
    row(
        "unsaid", lambda: Unsaid().score("", "", ""), "Unsaid does not say", "define `score`", error=NotImplementedError
    ),
    row("bleu", lambda: Bleu(0), "max_order=0 leaves no n-gram to count. Give 1 or more."),
    row("words", lambda: RougeL(words="letters"), "words='letters' is unknown. Choose one of spaces, scripts"),  # type: ignore[arg-type]
    row("similarity", lambda: EditSimilarity("jaro"), "variant='jaro' is unknown. Choose one of levenshtein"),  # type: ignore[arg-type]
    row("pattern", lambda: FirstLabel("["), "pattern='[' is no regular expression", "Mend"),
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
    row(
        "merge's method",
        lambda: merge("mini", "mini", "out", method="mean"),
        "method='mean': choose 'average' or 'slerp'.",
    ),  # type: ignore[arg-type]
]
ROWS = [*TEXTS, *TASKS, *LAYERS, *STRATEGIES, *SCORES, *NAMES]
