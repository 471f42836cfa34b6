"""Arguments of the shipped strategies that cannot be, and models and tasks that they cannot work on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bad_inputs import Place, Row

import strategies
from strategies import (
    CALM,
    BlockExpansion,
    ContinuedPretraining,
    DepthUpScaling,
    DownProjectionMoE,
    Joint,
    LoRA,
    Replay,
)
from strategies.calm import spelling
from workbench.backbone import Backbone
from workbench.composition import CalmForCausalLM
from workbench.strategy import ContinualStrategy
from workbench.testing.tiny import tiny_backbone, tiny_corpus, tiny_tasks


def row(make: Callable[..., ContinualStrategy], says: str, *more: str, **arguments: Any) -> Row:
    """A strategy that cannot be built."""
    return Row(f"{make.__name__} {arguments}", (says, *more), lambda _: make(**arguments))


def setup(strategy: Callable[[], ContinualStrategy], says: str, *more: str, **changes: Any) -> Row:
    """A strategy that does not fit the tiny model."""
    return Row(says, (says, *more), lambda _: strategy().setup(tiny_backbone(**changes)))


def corpus(name: str, content: bytes | None, *says: str) -> Row:
    """A corpus that cannot be read."""

    def lay(place: Place) -> None:
        if content is not None:
            (place.folder / name).write_bytes(content)

    return Row(f"corpus {name}", (name, *says), lambda _: ContinuedPretraining(1, name), lay=lay)


def without_feed_forward() -> Backbone:
    backbone = tiny_backbone()
    for layer in backbone.model.model.layers:
        layer.mlp = None
    return backbone


def nameless() -> object:
    own, other = tiny_backbone().tokenizer, tiny_backbone().tokenizer
    other.unk_token = other.eos_token = None
    return spelling(own, other, 9)


def stranger() -> Backbone:
    backbone = tiny_backbone()
    backbone.tokenizer.add_tokens(["<never>"])
    return backbone


def upscaled(**arguments: Any) -> Callable[[], ContinualStrategy]:
    return lambda: DepthUpScaling(**arguments)


BLOCKS = [
    row(BlockExpansion, "groups=0 is out of range; it has to be at least 1.", groups=0),
    row(BlockExpansion, "copies=0 is out of range; it has to be at least 1.", copies=0),
    row(BlockExpansion, "position='middle': choose 'interleaved'", "or list layers.", position="middle"),
    row(BlockExpansion, "position lists no layer, so nothing would be added. List one or more.", position=[]),
    row(BlockExpansion, "trains='old': choose 'new' or 'all'.", trains="old"),
    row(BlockExpansion, "each_task freezes", "trains='all'", "Choose one.", each_task=True, trains="all"),
    setup(lambda: BlockExpansion(groups=5, position="top"), "groups x copies = 5 blocks", "the model has 4. Choose"),
    setup(lambda: BlockExpansion(groups=3), "groups=3 does not divide the model's 4 layers. Choose one of 1, 2, 4"),
    setup(lambda: BlockExpansion(groups=2, copies=3), "copies=3 is more than the 2 blocks of a group. Choose"),
    setup(lambda: BlockExpansion(position=[4]), "position lists layer 4, but the model has 0 to 3. Choose"),
    row(DepthUpScaling, "dropped=-1 is out of range; it has to be at least 0.", dropped=-1),
    row(DepthUpScaling, "trains='old': choose 'all' or 'upper'.", dropped=1, trains="old"),
    setup(upscaled(dropped=2), "dropped=2 is out of range for the model's 4 layers", "Choose 0 to 1"),
    setup(upscaled(dropped=1, interlock=2), "interlock=2 does not divide the 3 layers", "Choose one of 1, 3."),
    Row(
        "a model without feed-forward",
        ("LlamaForCausalLM has no mlp.down_proj. Take a model of the LLaMA family.",),
        lambda _: DownProjectionMoE().setup(without_feed_forward()),
    ),
    Row(
        "a composition is grown",
        ("CalmForCausalLM is no decoder", "Take a Llama"),
        lambda _: BlockExpansion(groups=2).setup(
            Backbone(lambda: CalmForCausalLM.compose(tiny_backbone().model, [], 2), tiny_backbone().tokenizer)
        ),
    ),
]
ADAPTERS = [
    row(LoRA, "rank=0 is out of range; it has to be at least 1.", rank=0),
    row(LoRA, "dropout=1 is out of range; it has to be at least 0 and less than 1.", dropout=1),
    row(LoRA, "alpha=0 is out of range; it has to be more than 0.", alpha=0),
    row(LoRA, "targets is empty: no projection would get an adapter. Name one", targets=[]),
    row(LoRA, "policy='add': choose 'continue', 'merge' or 'stack'.", policy="add"),
    setup(lambda: LoRA(targets=["q"]), "targets: the model has no 'q'. Choose from down_proj"),
    row(Replay, "share=0 is out of range; it has to be more than 0 and at most 1.", share=0),
    row(Replay, "rows=0 is out of range; it has to be at least 1.", rows=0),
    Row(
        "texts and answers in one",
        ("prose is a corpus and task_0 is not. Give tasks of one kind.",),
        lambda _: Joint().curriculum([*tiny_tasks(), tiny_corpus()], None),
    ),
]
COMPOSED = [
    row(CALM, "policy='two': choose 'one' or 'each_task'.", augmenting="micro", policy="two"),
    row(CALM, "alignment='words': choose 'same' or 'characters'.", augmenting="micro", alignment="words"),
    row(CALM, "Choose policy='one' or", augmenting="micro", policy="each_task", alignment="characters"),
    row(CALM, "augmenting is empty: there is nothing to join the backbone with. Name", augmenting=[]),
    row(CALM, "but augmenting names 2. Name one", augmenting=["micro", "mini"], policy="each_task"),
    setup(lambda: CALM(stranger(), 2), "augmenting: its tokenizer has", "give models of one tokenizer"),
    setup(lambda: CALM("nowhere", 2), "nowhere: there is no such folder. Give"),
    Row("a tokenizer without names", ("has neither an unk nor an eos token. Give it one.",), lambda _: nameless()),
]
TEXTS = [
    row(ContinuedPretraining, "steps=0 is out of range; it has to be at least 1.", steps=0),
    Row(
        "no corpus",
        ("The benchmark has no general corpus to train on. Give corpus: a file of text.",),
        lambda _: ContinuedPretraining(1).curriculum(tiny_tasks(), None),
    ),
    Row(
        "two stages of pretraining",
        ("There is an item 'pretraining' already: combine at most one ContinuedPretraining.",),
        lambda _: ContinuedPretraining(1).curriculum(
            ContinuedPretraining(1).curriculum(tiny_tasks(), tiny_corpus()), tiny_corpus()
        ),
    ),
    corpus("absent.txt", None, "cannot be read (FileNotFoundError", "Give a .txt with a text a line"),
    corpus("bytes.txt", b"\xff\xfe", "cannot be read (UnicodeDecodeError", "Give a .txt"),
    corpus("empty.txt", b" \n", "holds no text. Give a .txt"),
    corpus("words.jsonl", b'{"words": "a"}', "cannot be read (KeyError", "Give a .txt"),
    corpus("list.jsonl", b"[1]", "cannot be read (TypeError", "Give a .txt"),
    corpus("deep.jsonl", b"[" * 100_000, "cannot be read (RecursionError", "Give a .txt"),
    corpus("number.jsonl", b'{"text": 1}', "holds no text. Give a .txt"),
]
ROWS = [
    *BLOCKS,
    *ADAPTERS,
    *COMPOSED,
    *TEXTS,
    Row(
        "a strategy's name",
        ("module 'strategies' has no attribute 'Nope'. Choose",),
        lambda _: strategies.Nope,
        error=AttributeError,
    ),
]
