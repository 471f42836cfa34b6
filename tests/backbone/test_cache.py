"""The cache with room: it holds what transformers' own would, and nothing needless is computed for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_generation import INSTRUCTION, MODELS, NEVER, assert_alike, ending, model, prompts
from torch import Tensor
from transformers import DynamicCache

from workbench.backbone import generation as reading
from workbench.backbone.generation import Room, RoomyCache, RoomyLayer, greedy, has_plain_cache

PLAIN = [name for name, changes in MODELS.items() if has_plain_cache(model(**changes))]


def states(rows: int, time: int, seed: int) -> tuple[Tensor, Tensor]:
    """Keys and values (rows, 2, time, 4)."""
    drawn = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 2, time, 4, generator=drawn), torch.randn(rows, 2, time, 4, generator=drawn)


@pytest.fixture
def reserved(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """The rows, the columns and the rows that stay, of each time that a layer takes memory."""
    seen: list[tuple[int, int, int]] = []
    reserve = RoomyLayer.reserve

    def noting(layer: RoomyLayer, *sizes: int) -> None:
        seen.append(sizes)
        reserve(layer, *sizes)

    monkeypatch.setattr(RoomyLayer, "reserve", noting)
    return seen


def test_rows_of_all_passes_and_steps_stand_where_transformers_would_put_them() -> None:
    """Two rows of four tokens, then one of two beside them; then two steps of all three, and the first row leaves."""
    cache, layer = RoomyCache(model()), 0
    cache.reserve(3, 6)
    cache.aim(slice(0, 2), 0)
    one, two = states(2, 4, 0), states(1, 2, 1)
    assert all(torch.equal(*pair) for pair in zip(cache.update(*one, layer), one, strict=True))
    cache.aim(slice(2, 3), 0)
    assert all(torch.equal(*pair) for pair in zip(cache.update(*two, layer), two, strict=True))
    ends = torch.tensor([4, 3, 2])
    cache.aim(slice(3), 4, ends)
    first, second = states(3, 1, 2), states(3, 1, 3)
    cache.update(*first, layer)
    ends += 1
    shown = cache.update(*second, layer)
    for found, a, b, c, d in zip(shown, one, two, first, second, strict=True):
        assert found.shape == (3, 2, 6, 4)
        assert torch.equal(found[0], torch.cat([a[0], c[0], d[0]], 1))
        assert torch.equal(found[1, :, :5], torch.cat([a[1, :, :3], c[1], d[1]], 1))
        assert torch.equal(found[2, :, :4], torch.cat([b[0], c[2], d[2]], 1))
        assert torch.isfinite(found).all()
    last = shown[0][2].clone()
    cache.move([2], [0])
    cache.aim(slice(2), 5, ends[[2, 1]])
    assert torch.equal(cache.layers[0].keys[0], last[:, :5])


def test_rows_that_enter_find_no_trace_of_those_that_left() -> None:
    """Numbers that are none would reach through any mask."""
    cache = RoomyCache(model())
    cache.reserve(2, 4)
    cache.aim(slice(2), 0)
    for layer in range(len(cache.layers)):
        cache.update(*(part * float("nan") for part in states(2, 3, 0)), layer)
    cache.begin(slice(1, 2), None)
    cache.aim(slice(2), 4)
    for own in cache.layers:
        assert own.keys[0, :, :3].isnan().all()
        assert not own.keys[1].any()
        assert not own.values[1].any()


def test_a_cache_of_one_row_is_the_beginning_of_each() -> None:
    decoder = model()
    with torch.no_grad():
        prefix = decoder.base_model(input_ids=torch.tensor([INSTRUCTION]), use_cache=True).past_key_values
    assert isinstance(prefix, DynamicCache)
    cache = RoomyCache(decoder)
    cache.reserve(3, 20)
    cache.begin(slice(1, 3), prefix)
    cache.aim(slice(1, 3), len(INSTRUCTION))
    for own, given in zip(cache.layers, prefix.layers, strict=True):
        assert torch.equal(own.keys, given.keys.expand(2, -1, -1, -1))
        assert torch.equal(own.values, given.values.expand(2, -1, -1, -1))


@pytest.mark.parametrize("shared", [[], INSTRUCTION], ids=["nothing shared", "an instruction shared"])
@pytest.mark.parametrize("name", PLAIN)
def test_answers_that_outgrow_their_room(name: str, shared: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for three tokens at first; rows leave, and others enter, between."""
    monkeypatch.setattr(reading, "ROOM", 3)
    decoder, given = model(**MODELS[name]), prompts(shared=shared)
    end = ending(assert_alike(decoder, given, 12, NEVER))
    for rows in (64, 5):
        assert_alike(decoder, given, 12, end, rows)


@torch.no_grad()
def test_memory_is_taken_once_and_again_when_an_answer_outgrows_it(reserved: list[Any]) -> None:
    """Five batches, one after the other, of prompts of 30 tokens at most."""
    decoder, given = model(), prompts(10)
    layers = decoder.config.num_hidden_layers
    longest = max(map(len, given))
    greedy(decoder, given, 8, Room(2), NEVER)
    assert reserved == [(2, longest + 8, 0)] * layers
    reserved.clear()
    greedy(decoder, given[:2], reading.ROOM + 2, Room(2), NEVER)
    longest = max(map(len, given[:2]))
    assert reserved == [
        *[(2, longest + reading.ROOM, 0)] * layers,
        *[(2, longest + reading.ROOM + 2, 2)] * layers,
    ]


@torch.no_grad()
def test_no_more_columns_are_taken_than_a_row_can_fill(reserved: list[Any]) -> None:
    """Prompts enter beside answers that are nearly at their end."""
    decoder, given = model(), prompts(40)
    end = ending(greedy(decoder, given, 12, Room(64), NEVER))
    reserved.clear()
    greedy(decoder, given, 12, Room(5), end)
    assert len(reserved) == decoder.config.num_hidden_layers
    assert reserved[0] == (5, max(map(len, given)) + 12, 0)


@torch.no_grad()
def test_under_autocast_the_cache_holds_what_attention_takes() -> None:
    """transformers' holds rotated keys in float32, which are converted for each token; the answers are the same."""
    decoder, given = model(), [[7 * row + step for step in range(3, 13)] for row in range(6)]
    with torch.autocast("cpu", torch.bfloat16):
        assert_alike(decoder, given, 12, NEVER)
        reads = reading.PlainReader(decoder, given, 2)
        reads.step(reads.enter(list(range(6))))
    assert {part.dtype for layer in reads.cache.layers for part in layer.whole} == {torch.bfloat16}


@torch.no_grad()
def test_nothing_is_copied_between_steps() -> None:
    """The keys of every step lie in the same memory."""
    decoder, places = model(), set()

    def after(_: Any, __: Any, output: Any) -> None:
        places.add(output.past_key_values.layers[0].keys.untyped_storage().data_ptr())

    decoder.base_model.register_forward_hook(after)
    greedy(decoder, [[5, 6, 7], [8, 9]], 30, Room(2), NEVER)
    assert len(places) == 1


def test_the_last_feed_forward_reads_each_prompt_where_its_answer_begins() -> None:
    """No other column of the last block is asked for; all others of its blocks read whole rows."""
    decoder, seen = model(), []
    for block in decoder.model.layers:
        block.mlp.register_forward_hook(lambda _, given, __: seen.append(tuple(given[0].shape[:2])))
    greedy(decoder, prompts(3), 2, Room(64), NEVER)
    layers = len(decoder.model.layers)
    assert seen == [(3, 23)] * (layers - 1) + [(3, 1)] * (1 + layers)
    assert not decoder.model.layers[-1].mlp._forward_pre_hooks
    seen.clear()
    decoder.model.layers[-1].register_forward_hook(lambda *_: None)  # may look at all of its output
    greedy(decoder, prompts(3), 2, Room(64), NEVER)
    assert seen == [(3, 23)] * layers + [(3, 1)] * layers


@torch.no_grad()
@pytest.mark.parametrize(("own", "begun"), [(20, len(INSTRUCTION)), (400, 0)], ids=["short", "long"])
def test_a_beginning_is_shared_where_that_saves_multiplications(own: int, begun: int) -> None:
    """Eleven tokens before long prompts save less than reading them behind a mask takes."""
    decoder = model(max_position_embeddings=512)
    given = [[*INSTRUCTION, *((7 * row + step) % 900 + 3 for step in range(own))] for row in range(4)]
    assert reading.PlainReader(decoder, given, 8).begun == begun
    assert_alike(decoder, given, 3, NEVER)
