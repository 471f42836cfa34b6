"""Greedy decoding and options, compared with transformers' own passes; the number of passes; the cache."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from workbench.backbone import Backbone, batch, generation
from workbench.backbone.cache import PreallocatedCache, PreallocatedLayer
from workbench.backbone.generation import (
    BatchLimit,
    greedy,
    greedy_with_nats,
    has_plain_cache,
    option_nats,
)
from workbench.composition import CalmForCausalLM
from workbench.testing.tiny import VARIANTS, tiny_backbone

NEVER = -1  # an end token that no model gives
INSTRUCTION = [7, 301, 45, 45, 902, 13, 77, 5, 640, 21, 8]
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "biased": VARIANTS["biased"],
    "tied": VARIANTS["tied"],
    "mistral": {"family": "mistral"},
    "qwen2": {"family": "qwen2"},
    "qwen3": {"family": "qwen3"},
    "windows in some layers": VARIANTS["layer_types"],
    "a window in all layers": {"family": "mistral", "sliding_window": 5},
}


def model(**changes: Any) -> Any:
    return tiny_backbone(**changes).model.eval()


def composed(**settings: Any) -> Any:
    torch.manual_seed(0)
    small = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 3}
    anchor = model(**settings.pop("anchor", {}))
    return CalmForCausalLM.compose(anchor, [model(seed=1, **small)], 2, **settings).eval()


def adapted(**settings: Any) -> Any:
    """A model with a separate adapter that is not zero."""
    backbone = tiny_backbone()
    backbone.add_adapter("one", r=4, target_modules=["q_proj", "v_proj", "down_proj"], **settings)
    torch.manual_seed(0)
    for name, parameter in backbone.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return backbone.model.eval()


def prompts(count: int = 13, shared: Sequence[int] = ()) -> list[list[int]]:
    """Prompts of 1 to 30 tokens after the shared ones, lengths not in order."""
    return [[*shared, *((7 * row + 11 * step) % 900 + 3 for step in range(1 + 11 * row % 30))] for row in range(count)]


@torch.no_grad()
def by_transformers(
    model: Any, given: Sequence[list[int]], new_tokens: int, end: int
) -> tuple[list[list[int]], Tensor]:
    """transformers' answers in one left-padded batch, and the gap between the two best logits, (rows, tokens)."""
    width = max(map(len, given))
    rows = torch.tensor([[0] * (width - len(row)) + row for row in given])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in given])
    made = model.generate(
        rows,
        attention_mask=mask,
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=None if end == NEVER else end,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    tokens = made.sequences[:, width:].tolist()
    answers = [row[: row.index(end) + 1] if end in row else row for row in tokens]
    best = torch.stack(made.logits, 1).topk(2).values
    return answers, best[..., 0] - best[..., 1]


def ending(answers: Sequence[list[int]]) -> int:
    """The token that, used as the end token, gives answers of the most different lengths."""
    tokens = {token for answer in answers for token in answer}
    places = {token: {answer.index(token) for answer in answers if token in answer} for token in tokens}
    return max(places, key=lambda token: (len(places[token]), token))


def assert_alike(model: Any, given: Sequence[list[int]], new_tokens: int, end: int, rows: int = 64) -> list[list[int]]:
    """Assert that the answers equal transformers', except after a near tie of two tokens."""
    expected, gaps = by_transformers(model, given, new_tokens, end)
    with torch.no_grad():
        answers = greedy(model, given, new_tokens, BatchLimit(rows), end)
    near_ties = 0
    for answer, wanted, gap in zip(answers, expected, gaps.tolist(), strict=True):
        if answer != wanted:
            pairs = list(zip(answer, wanted, strict=False))
            first = next((step for step, (one, other) in enumerate(pairs) if one != other), len(pairs) - 1)
            assert gap[first] < 1e-4
            near_ties += 1
    assert near_ties <= len(given) // 10
    return answers


@contextmanager
def passes(model: Any) -> Iterator[list[tuple[int, int]]]:
    """Record the shape (rows, time) of each forward pass."""
    seen: list[tuple[int, int]] = []
    hook = model.get_input_embeddings().register_forward_hook(lambda _, given, __: seen.append(tuple(given[0].shape)))
    yield seen
    hook.remove()


@contextmanager
def caches(model: Any) -> Iterator[list[int]]:
    """Record how many caches exist before each pass that reads prompts."""
    made: list[weakref.ref[Any]] = []
    held: list[int] = []

    def before(_: Any, __: Any, given: dict[str, Any]) -> None:
        if given["input_ids"].shape[1] > 1:
            held.append(len({id(cache) for kept in made if (cache := kept()) is not None}))

    hooks = [
        model.base_model.register_forward_pre_hook(before, with_kwargs=True),
        model.base_model.register_forward_hook(lambda _, __, out: made.append(weakref.ref(out.past_key_values))),
    ]
    yield held
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("shared", [[], INSTRUCTION], ids=["nothing shared", "an instruction shared"])
@pytest.mark.parametrize("rows", [64, 5])
@pytest.mark.parametrize("name", MODELS)
def test_answers_equal_those_of_transformers(name: str, rows: int, shared: list[int]) -> None:
    decoder, given = model(**MODELS[name]), prompts(shared=shared)
    whole = assert_alike(decoder, given, 12, NEVER, rows)
    assert {len(answer) for answer in whole} == {12}
    ended = assert_alike(decoder, given, 12, ending(whole), rows)
    assert len({len(answer) for answer in ended}) > 2


@pytest.mark.parametrize("anchor", [{}, {"family": "mistral", "sliding_window": 5}])
@pytest.mark.parametrize("encoder", [False, True])
def test_answers_of_a_composition(encoder: bool, anchor: dict[str, Any]) -> None:
    decoder, given = composed(encoder=encoder, anchor=anchor), prompts(shared=INSTRUCTION)
    end = ending(assert_alike(decoder, given, 12, NEVER))
    ended = assert_alike(decoder, given, 12, end, rows=5)
    assert len({len(answer) for answer in ended}) > 2


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}])
def test_answers_of_an_adapted_model(settings: dict[str, Any]) -> None:
    decoder, given = adapted(**settings), prompts(shared=INSTRUCTION)
    answers = assert_alike(decoder, given, 12, NEVER, rows=5)
    assert answers != greedy(model(), given, 12, BatchLimit(5), NEVER)


def test_answers_of_a_trained_model() -> None:
    """`mini`, which was trained to end its answers."""
    backbone = Backbone.load("mini")
    backbone.model.eval()
    texts = [f"Answer with one word. {number} and {7 * number}: which is more?\nAnswer:" for number in range(1, 40)]
    given = [backbone.encoder.prompt(text, 200)[0] for text in texts]
    answers = assert_alike(backbone.model, given, 16, backbone.tokenizer.eos_token_id, rows=8)
    assert any(answer[-1] == backbone.tokenizer.eos_token_id for answer in answers)


def test_a_common_prefix_is_read_once_and_each_answer_token_once() -> None:
    """11 shared tokens; the rest padded to the longest, 30; then 5 steps of 3 rows."""
    own = [[*range(3, 33)], [*range(40, 50)], [*range(60, 65)]]
    decoder = model()
    with passes(decoder) as seen:
        greedy(decoder, [INSTRUCTION + row for row in own], 6, BatchLimit(64), NEVER)
    assert seen == [(1, 11), (3, 30), *[(3, 1)] * 5]
    assert sum(rows * time for rows, time in seen) == 11 + 3 * 30 + 3 * 5


@pytest.mark.parametrize("case", ["windows", "a composition", "a short beginning", "one prompt"])
def test_without_a_plain_cache_or_a_common_prefix_prompts_are_read_whole(case: str) -> None:
    decoder = {"windows": lambda: model(**VARIANTS["layer_types"]), "a composition": composed}.get(case, model)()
    shared = INSTRUCTION[: generation.MIN_SHARED_TOKENS - 1] if case == "a short beginning" else INSTRUCTION
    given = [[*shared, 100], [*shared, 200, 4]][: 1 if case == "one prompt" else 2]
    with passes(decoder) as seen:
        greedy(decoder, given, 2, BatchLimit(64), NEVER)
    assert seen == [(len(given), max(map(len, given))), (len(given), 1)]


def test_finished_rows_leave_the_batch() -> None:
    """Every step reads as many rows as there are unfinished answers."""
    for decoder in (model(), composed()):
        given = prompts()
        end = ending(greedy(decoder, given, 12, BatchLimit(64), NEVER))
        with passes(decoder) as seen:
            answers = greedy(decoder, given, 12, BatchLimit(64), end)
        lengths = [len(answer) for answer in answers]
        steps = [(sum(length > step for length in lengths), 1) for step in range(1, max(lengths))]
        assert seen == [(13, max(map(len, given))), *steps]
        assert steps[-1] < steps[0]


@pytest.mark.parametrize(("make", "expected"), [(model, [0, 1, 1]), (composed, [0, 0, 0])])
def test_decoding_holds_one_cache_while_the_next_prompts_are_read(make: Any, expected: list[int]) -> None:
    """The next prompts are read into the same cache, or the old one is freed first."""
    decoder = make()
    with caches(decoder) as held:
        greedy(decoder, [[5 + row, 7, 9] for row in range(6)], 3, BatchLimit(2), NEVER)
    assert held == expected


def test_the_next_prompts_enter_when_a_quarter_of_the_batch_is_free() -> None:
    """At most eight rows, each prompt read once, and fewer steps than if each batch waited for its last row."""
    decoder, given = model(), [[5, *row] for row in prompts(30)]
    end = ending(greedy(decoder, given, 40, BatchLimit(64), NEVER))
    with passes(decoder) as seen:
        answers = greedy(decoder, given, 40, BatchLimit(8), end)
    active, entered = [0], []
    for rows, time in seen:
        if time > 1:
            entered.append((active[-1], rows))
        else:
            active.append(rows)
    assert max(active) <= 8
    assert all(rows >= 2 for _, rows in entered[:-1])
    assert any(before > 0 for before, _ in entered)
    assert sum(rows for _, rows in entered) == 30
    order = sorted(range(30), key=lambda row: -len(given[row]))
    lengths = [len(answers[row]) for row in order]
    waiting = sum(max(lengths[first : first + 8]) - 1 for first in range(0, 30, 8))
    assert len(active) - 1 < waiting


def test_long_prompts_are_read_in_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 tokens per pass including padding: 3 prompts of up to 31, 3 of up to 28, and the last 2."""
    decoder, given = model(), [[3 + row] * (31 - row) for row in range(8)]
    expected = greedy(decoder, given, 4, BatchLimit(64), NEVER)
    monkeypatch.setattr(batch, "MAX_PASS_TOKENS", 100)
    with passes(decoder) as seen:
        assert greedy(decoder, given, 4, BatchLimit(64), NEVER) == expected
    assert seen == [(3, 31), (3, 28), (2, 25), *[(8, 1)] * 3]


@pytest.mark.parametrize("make", [model, composed])
@pytest.mark.parametrize(
    "given",
    [[[5, 6, 7]], [[9] * 12] * 3, [[9] * 12, [9] * 20, [9] * 10], [[4]], [[4], [5]], [INSTRUCTION, INSTRUCTION[:-1]]],
    ids=["one", "alike", "one the beginning of the other", "one token", "one token each", "one token more"],
)
def test_prompts_with_special_lengths_and_prefixes(make: Any, given: list[list[int]]) -> None:
    decoder = make()
    assert_alike(decoder, given, 5, NEVER)
    first = assert_alike(decoder, given, 1, NEVER)
    assert {len(answer) for answer in first} == {1}
    assert assert_alike(decoder, given, 5, first[0][0])[0] == first[0]  # the end token at once


def test_decoding_without_prompts_returns_nothing() -> None:
    assert greedy(model(), [], 3, BatchLimit(4), NEVER) == []


def test_an_empty_prompt_continues_after_an_end_token() -> None:
    """With a tokenizer that adds no begin token, like Qwen's."""
    backbone = tiny_backbone("qwen2")
    backbone.tokenizer.add_bos_token = False
    with torch.no_grad():
        tokens = greedy(backbone.model, [[backbone.tokenizer.eos_token_id]], 4, BatchLimit(1), NEVER)
    assert backbone.encoder.prompt("", 9) == ([backbone.tokenizer.eos_token_id], False)
    assert backbone.generate([""], 4) == [backbone.tokenizer.decode(tokens[0])]


def test_decoding_twice_gives_the_same_bits() -> None:
    decoder, given = model(), prompts(20, INSTRUCTION)
    states: list[Tensor] = []
    decoder.lm_head.register_forward_hook(lambda _, __, logits: states.append(logits))
    once, again = (greedy(decoder, given, 8, BatchLimit(6), 11) for _ in range(2))
    half = len(states) // 2
    assert once == again
    assert all(torch.equal(one, other) for one, other in zip(states[:half], states[half:], strict=True))


@pytest.mark.parametrize("make", [model, composed])
def test_the_limit_of_tokens_in_a_batch_holds(make: Any) -> None:
    decoder, given = make(), prompts(24)
    expected = greedy(decoder, given, 6, BatchLimit(64), NEVER)
    longest, tokens = max(map(len, given)), 4 * (max(map(len, given)) + 6)
    with passes(decoder) as seen:
        assert greedy(decoder, given, 6, BatchLimit(64, tokens), NEVER) == expected
    rows = [count for count, width in seen if width == 1]
    assert max(rows) > 4 >= rows[0]  # short prompts have more beside them than the longest
    assert all(count * width <= tokens for count, width in seen)
    with passes(decoder) as seen:
        assert greedy(decoder, given, 6, BatchLimit(64, longest), NEVER) == expected  # one row always has room
    assert min(count for count, _ in seen) == 1


OPTIONS = [[5], [301, 44], [301, 7, 8, 640]]


def whole(decoder: Any, prompt: list[int], option: list[int]) -> float:
    """Nats of one option, in a pass of its own."""
    logits = decoder(torch.tensor([prompt + option])).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
    return float(-logits.gather(1, torch.tensor(option)[:, None]).sum())


@pytest.mark.parametrize("shared", [[], INSTRUCTION], ids=["nothing shared", "an instruction shared"])
@pytest.mark.parametrize("name", [name for name, changes in MODELS.items() if has_plain_cache(model(**changes))])
@torch.no_grad()
def test_option_likelihoods_equal_those_of_separate_passes(name: str, shared: list[int]) -> None:
    decoder, given = model(**MODELS[name]), [[9, *prompt] for prompt in prompts(shared=shared)]
    expected = torch.tensor([[whole(decoder, prompt, option) for option in OPTIONS] for prompt in given])
    for rows in (64, 5):
        nats = option_nats(decoder, given, OPTIONS, BatchLimit(rows))
        assert nats.shape == (len(given), len(OPTIONS))
        torch.testing.assert_close(nats, expected.double(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shared", [[], INSTRUCTION], ids=["nothing shared", "an instruction shared"])
@pytest.mark.parametrize("rows", [64, 5])
@pytest.mark.parametrize("name", [name for name, changes in MODELS.items() if has_plain_cache(model(**changes))])
@torch.no_grad()
def test_answers_and_the_likelihood_of_right_ones_in_one_reading(name: str, rows: int, shared: list[int]) -> None:
    """Right answers of 1 to 12 tokens lie where the decoded ones are written; rows leave, and others join."""
    decoder, given = model(**MODELS[name]), prompts(shared=shared)
    right = [[(13 * row + 5 * step) % 900 + 3 for step in range(1 + 5 * row % 12)] for row in range(len(given))]
    end = ending(greedy(decoder, given, 12, BatchLimit(rows), NEVER))
    answers, nats = greedy_with_nats(decoder, given, right, 12, BatchLimit(rows), end)
    assert answers == greedy(decoder, given, 12, BatchLimit(rows), end)
    expected = [whole(decoder, *pair) for pair in zip(given, right, strict=True)]
    torch.testing.assert_close(nats, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_a_prompt_is_read_once_with_its_right_answer_except_the_last_token() -> None:
    own, right = [[*range(3, 33)], [*range(40, 50)], [*range(60, 65)]], [[5], [7, 9], [*range(200, 229)]]
    decoder = model()
    with passes(decoder) as seen:
        greedy_with_nats(decoder, [INSTRUCTION + row for row in own], right, 30, BatchLimit(64), NEVER)
    assert seen == [(1, 11), (3, 5 + 28), *[(3, 1)] * 29]


@torch.no_grad()
def test_prompts_are_read_once_for_all_options() -> None:
    decoder, given = model(), [[*INSTRUCTION, 3 + row, 9, 4] for row in range(6)]
    with passes(decoder) as seen:
        option_nats(decoder, given, OPTIONS, BatchLimit(64))
    assert seen == [(1, len(INSTRUCTION)), (6, 2), (6, 1), (6, 2), (6, 4)]


@torch.no_grad()
def test_the_limit_of_tokens_holds_for_options() -> None:
    """Seven tokens each with the longest option, so that two fit into 20 tokens."""
    decoder, given = model(), [[5 + row, 7, 4] for row in range(5)]
    with passes(decoder) as seen:
        option_nats(decoder, given, OPTIONS, BatchLimit(64, 20))
    assert [rows for rows, time in seen if time == 2] == [2, 2, 2, 2, 1, 1]


@torch.no_grad()
def test_scoring_options_holds_one_cache_while_the_next_prompts_are_read() -> None:
    decoder = model()
    with caches(decoder) as held:
        option_nats(decoder, [[5 + row, 7, 9, 4] for row in range(6)], [[5]], BatchLimit(2))
    assert held == [0, 1, 1]


PLAIN = [name for name, changes in MODELS.items() if has_plain_cache(model(**changes))]


def states(rows: int, time: int, seed: int) -> tuple[Tensor, Tensor]:
    """Keys and values (rows, 2, time, 4)."""
    drawn = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 2, time, 4, generator=drawn), torch.randn(rows, 2, time, 4, generator=drawn)


@pytest.fixture
def reserved(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Rows, columns and kept rows of each call of a layer's `reserve`."""
    seen: list[tuple[int, int, int]] = []
    reserve = PreallocatedLayer.reserve

    def noting(layer: PreallocatedLayer, *sizes: int) -> None:
        seen.append(sizes)
        reserve(layer, *sizes)

    monkeypatch.setattr(PreallocatedLayer, "reserve", noting)
    return seen


def test_the_cache_holds_what_transformers_would_hold() -> None:
    """Two rows of four tokens, then one of two; then two steps of all three, and the first row leaves."""
    cache, layer = PreallocatedCache(model()), 0
    cache.reserve(3, 6)
    cache.select(slice(0, 2), 0)
    one, two = states(2, 4, 0), states(1, 2, 1)
    assert all(torch.equal(*pair) for pair in zip(cache.update(*one, layer), one, strict=True))
    cache.select(slice(2, 3), 0)
    assert all(torch.equal(*pair) for pair in zip(cache.update(*two, layer), two, strict=True))
    ends = torch.tensor([4, 3, 2])
    cache.select(slice(3), 4, ends)
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
    cache.copy_rows([2], [0])
    cache.select(slice(2), 5, ends[[2, 1]])
    assert torch.equal(cache.layers[0].keys[0], last[:, :5])


def test_new_rows_are_cleared_of_old_values() -> None:
    """A mask cannot hide NaN."""
    cache = PreallocatedCache(model())
    cache.reserve(2, 4)
    cache.select(slice(2), 0)
    for layer in range(len(cache.layers)):
        cache.update(*(part * float("nan") for part in states(2, 3, 0)), layer)
    cache.start_rows(slice(1, 2), None)
    cache.select(slice(2), 4)
    for own in cache.layers:
        assert own.keys[0, :, :3].isnan().all()
        assert not own.keys[1].any()
        assert not own.values[1].any()


def test_a_prefix_cache_is_copied_into_each_row() -> None:
    decoder = model()
    with torch.no_grad():
        prefix = decoder.base_model(input_ids=torch.tensor([INSTRUCTION]), use_cache=True).past_key_values
    assert isinstance(prefix, DynamicCache)
    cache = PreallocatedCache(decoder)
    cache.reserve(3, 20)
    cache.start_rows(slice(1, 3), prefix)
    cache.select(slice(1, 3), len(INSTRUCTION))
    for own, given in zip(cache.layers, prefix.layers, strict=True):
        assert torch.equal(own.keys, given.keys.expand(2, -1, -1, -1))
        assert torch.equal(own.values, given.values.expand(2, -1, -1, -1))


@pytest.mark.parametrize("shared", [[], INSTRUCTION], ids=["nothing shared", "an instruction shared"])
@pytest.mark.parametrize("name", PLAIN)
def test_answers_longer_than_the_reserved_columns(
    name: str, shared: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory for three tokens at first, while rows leave and others enter."""
    monkeypatch.setattr(generation, "SPARE_COLUMNS", 3)
    decoder, given = model(**MODELS[name]), prompts(shared=shared)
    end = ending(assert_alike(decoder, given, 12, NEVER))
    for rows in (64, 5):
        assert_alike(decoder, given, 12, end, rows)


@torch.no_grad()
def test_memory_is_allocated_once_and_again_for_a_longer_answer(reserved: list[Any]) -> None:
    """Five batches in sequence, of prompts of at most 30 tokens."""
    decoder, given = model(), prompts(10)
    layers = decoder.config.num_hidden_layers
    longest = max(map(len, given))
    greedy(decoder, given, 8, BatchLimit(2), NEVER)
    assert reserved == [(2, longest + 8, 0)] * layers
    reserved.clear()
    greedy(decoder, given[:2], generation.SPARE_COLUMNS + 2, BatchLimit(2), NEVER)
    longest = max(map(len, given[:2]))
    assert reserved == [
        *[(2, longest + generation.SPARE_COLUMNS, 0)] * layers,
        *[(2, longest + generation.SPARE_COLUMNS + 2, 2)] * layers,
    ]


@torch.no_grad()
def test_no_more_columns_are_allocated_than_a_row_can_fill(reserved: list[Any]) -> None:
    """Prompts enter beside answers that are nearly finished."""
    decoder, given = model(), prompts(40)
    end = ending(greedy(decoder, given, 12, BatchLimit(64), NEVER))
    reserved.clear()
    greedy(decoder, given, 12, BatchLimit(5), end)
    assert len(reserved) == decoder.config.num_hidden_layers
    assert reserved[0] == (5, max(map(len, given)) + 12, 0)


@torch.no_grad()
def test_under_autocast_the_cache_has_the_precision_of_attention() -> None:
    """transformers caches rotated keys in float32 and converts them for each token; the answers are the same."""
    decoder, given = model(), [[7 * row + step for step in range(3, 13)] for row in range(6)]
    with torch.autocast("cpu", torch.bfloat16):
        assert_alike(decoder, given, 12, NEVER)
        reads = generation.PlainCacheReader(decoder, given, 2)
        reads.step(reads.enter(list(range(6))))
    assert {part.dtype for layer in reads.cache.layers for part in layer.memory} == {torch.bfloat16}


@torch.no_grad()
def test_nothing_is_copied_between_steps() -> None:
    """The keys of all steps are in the same memory."""
    decoder, places = model(), set()

    def after(_: Any, __: Any, output: Any) -> None:
        places.add(output.past_key_values.layers[0].keys.untyped_storage().data_ptr())

    decoder.base_model.register_forward_hook(after)
    greedy(decoder, [[5, 6, 7], [8, 9]], 30, BatchLimit(2), NEVER)
    assert len(places) == 1


def test_the_last_feed_forward_layer_reads_only_the_last_token_of_each_prompt() -> None:
    """Only the last block's feed-forward layer is restricted, and not if the block has a hook."""
    decoder, seen = model(), []
    for block in decoder.model.layers:
        block.mlp.register_forward_hook(lambda _, given, __: seen.append(tuple(given[0].shape[:2])))
    greedy(decoder, prompts(3), 2, BatchLimit(64), NEVER)
    layers = len(decoder.model.layers)
    assert seen == [(3, 23)] * (layers - 1) + [(3, 1)] * (1 + layers)
    assert not decoder.model.layers[-1].mlp._forward_pre_hooks
    seen.clear()
    decoder.model.layers[-1].register_forward_hook(lambda *_: None)  # may look at all of its output
    greedy(decoder, prompts(3), 2, BatchLimit(64), NEVER)
    assert seen == [(3, 23)] * layers + [(3, 1)] * layers


@torch.no_grad()
@pytest.mark.parametrize(("own", "begun"), [(20, len(INSTRUCTION)), (400, 0)], ids=["short", "long"])
def test_a_prefix_is_shared_only_if_that_saves_multiplications(own: int, begun: int) -> None:
    """Before long prompts, eleven shared tokens save less than the mask costs."""
    decoder = model(max_position_embeddings=512)
    given = [[*INSTRUCTION, *((7 * row + step) % 900 + 3 for step in range(own))] for row in range(4)]
    assert generation.PlainCacheReader(decoder, given, 8).shared_length == begun
    assert_alike(decoder, given, 3, NEVER)
