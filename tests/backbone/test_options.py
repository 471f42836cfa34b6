"""Which of a few answers is the likeliest: over the prompts' cache, against whole passes; and where it is reported."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_generation import INSTRUCTION, MODELS, caches, model, passes, prompts

from benchmarks.mini_trace import MiniTrace
from strategies import CALM
from workbench.backbone import Backbone
from workbench.backbone.generation import Room, has_plain_cache, option_nats
from workbench.strategy import ContinualStrategy
from workbench.testing.tiny import tiny_backbone, tiny_tasks
from workbench.train import score_task

OPTIONS = [[5], [301, 44], [301, 7, 8, 640]]
LETTERS = ("a", "b", "ab", "h")


def whole(decoder: Any, prompt: list[int], option: list[int]) -> float:
    """Nats of one option, in a pass of its own."""
    logits = decoder(torch.tensor([prompt + option])).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
    return float(-logits.gather(1, torch.tensor(option)[:, None]).sum())


@pytest.mark.parametrize("shared", [[], INSTRUCTION], ids=["nothing shared", "an instruction shared"])
@pytest.mark.parametrize("name", [name for name, changes in MODELS.items() if has_plain_cache(model(**changes))])
@torch.no_grad()
def test_options_over_a_cache_have_the_likelihood_of_whole_passes(name: str, shared: list[int]) -> None:
    decoder, given = model(**MODELS[name]), [[9, *prompt] for prompt in prompts(shared=shared)]
    expected = torch.tensor([[whole(decoder, prompt, option) for option in OPTIONS] for prompt in given])
    for rows in (64, 5):
        nats = option_nats(decoder, given, OPTIONS, Room(rows))
        assert nats.shape == (len(given), len(OPTIONS))
        torch.testing.assert_close(nats, expected.double(), rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_prompts_are_read_once_however_many_options_there_are() -> None:
    decoder, given = model(), [[*INSTRUCTION, 3 + row, 9, 4] for row in range(6)]
    with passes(decoder) as seen:
        option_nats(decoder, given, OPTIONS, Room(64))
    assert seen == [(1, len(INSTRUCTION)), (6, 2), (6, 1), (6, 2), (6, 4)]


@torch.no_grad()
def test_as_many_prompts_are_read_at_once_as_have_room() -> None:
    """Seven tokens each, with the longest option: two have room among 20 tokens."""
    decoder, given = model(), [[5 + row, 7, 4] for row in range(5)]
    with passes(decoder) as seen:
        option_nats(decoder, given, OPTIONS, Room(64, 20))
    assert [rows for rows, time in seen if time == 2] == [2, 2, 2, 2, 1, 1]


@torch.no_grad()
def test_there_is_no_second_cache_while_the_next_prompts_are_read() -> None:
    decoder = model()
    with caches(decoder) as held:
        option_nats(decoder, [[5 + row, 7, 9, 4] for row in range(6)], [[5]], Room(2))
    assert held == [0, 1, 1]


def by_whole_passes(backbone: Backbone, texts: list[str]) -> list[str]:
    """The likeliest of LETTERS after each prompt."""
    found = []
    with torch.no_grad(), backbone.evaluating():
        for text in texts:
            prompt = backbone.encoder.prompt(text, 500)[0]
            options = [backbone.encoder.answer(option, 9)[0][:-1] for option in LETTERS]
            nats = [whole(backbone.model, prompt, option) for option in options]
            found.append(LETTERS[nats.index(min(nats))])
    return found


def composed() -> Backbone:
    """A composition, whose cache is no plain one."""
    backbone = tiny_backbone()
    CALM(tiny_backbone(seed=1), connections=1).setup(backbone)
    return backbone


@pytest.mark.parametrize("make", [tiny_backbone, composed])
def test_the_likeliest_option_of_texts(make: Any) -> None:
    backbone, texts = make(), [f"{word} and then" for word in ("one", "two", "three", "four", "five", "six")]
    chosen = backbone.likeliest(texts, LETTERS, 9)
    assert chosen == by_whole_passes(backbone, texts)
    assert backbone.likeliest(["", texts[0]], LETTERS, 9)[1] == chosen[0]
    assert backbone.likeliest([], LETTERS, 9) == []


def test_the_likeliest_option_is_reported_apart() -> None:
    task = replace(tiny_tasks()[0], options=tuple("abcdefgh"))
    backbone = tiny_backbone()
    plain = score_task(backbone, ContinualStrategy(), task)
    scored = score_task(backbone, ContinualStrategy(), task, options=True)
    chosen = backbone.likeliest(task.test["prompt"], task.options, task.max_new_tokens)
    right = sum(one == other for one, other in zip(chosen, task.test["answer"], strict=True))
    assert scored.metrics == plain.metrics | {"likeliest_option": right / len(chosen)}
    assert (scored.primary, scored.predictions) == (plain.primary, plain.predictions)


def test_the_domains_of_letters_have_options() -> None:
    asked = MiniTrace()
    with_options = {asked[index].name for index in range(8) if asked[index].options}
    assert with_options == {"topic_stance", "policy_stance", "choice"}
    assert {letter for index in (0, 1, 4) for letter in asked[index].options} == {
        answer[0] for index in (0, 1, 4) for answer in asked[index].train["answer"]
    }
