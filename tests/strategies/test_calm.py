"""CALM as a strategy: what is composed and what trains, and models with different tokenizers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.studies import column, learn, same, weights
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from strategies import CALM, BlockExpansion, DepthUpScaling
from strategies.calm import spelling
from workbench.backbone import Backbone
from workbench.benchmark import Task
from workbench.composition import CalmForCausalLM
from workbench.model_folder import SHIPPED
from workbench.strategy import Composition
from workbench.testing.conformance import check_strategy
from workbench.testing.tiny import tiny_backbone, tiny_tasks

MICRO: dict[str, Any] = {"augmenting": "micro", "connections": 3}
PROMPTS = ["Task 0: t1 b\nAnswer:", "once upon a time"]


def small(**changes: Any) -> Backbone:
    return tiny_backbone(seed=3, num_hidden_layers=2, hidden_size=16, num_attention_heads=2, **changes)


@pytest.mark.parametrize(
    "settings",
    [
        {"policy": "each_task"},
        {"encoder": True},
        {"zero_init": True},
        {"augmenting": ["micro", "micro"]},
    ],
)
def test_it_conforms_in_each_of_its_ways(settings: dict[str, Any]) -> None:
    """The default is checked with all strategies."""
    assert len(check_strategy(lambda: CALM(**{**MICRO, **settings}))) == 14


def test_what_setup_makes() -> None:
    """The backbone as anchor and micro below it, three connections each of D_A D_B + 4 D_B^2, which alone train."""
    backbone, plain = tiny_backbone(), tiny_backbone()
    CALM(**MICRO).setup(backbone)
    assert isinstance(backbone.model, CalmForCausalLM)
    assert same(
        {name: value for name, value in backbone.model.model.anchor.state_dict().items()},
        {name: value for name, value in plain.model.model.state_dict().items()},
    )
    micro = AutoModelForCausalLM.from_pretrained(SHIPPED["micro"], dtype=torch.float32)
    assert same(dict(backbone.model.model.augmenting[0].state_dict()), dict(micro.model.state_dict()))
    assert (
        backbone.model.config.connections == [[[0, 0], [1, 1], [2, 3]]] == [[[0, 4 // 3 - 1], [1, 8 // 3 - 1], [2, 3]]]
    )
    assert sum(map(Tensor.numel, backbone.trainable().values())) == 3 * (64 * 32 + 4 * 32**2)
    assert all(name.startswith("model.connections.0.") for name in backbone.trainable())
    assert backbone.model.training


def test_with_zero_init_it_answers_as_the_backbone_at_first() -> None:
    backbone, plain = tiny_backbone(), tiny_backbone()
    CALM(**MICRO, zero_init=True).setup(backbone)
    assert backbone.generate(PROMPTS, 6) == plain.generate(PROMPTS, 6)
    assert backbone.log_likelihood(PROMPTS, ["b", "c"]).tolist() == plain.log_likelihood(PROMPTS, ["b", "c"]).tolist()
    other = tiny_backbone()
    CALM(**MICRO).setup(other)
    assert other.log_likelihood(PROMPTS, ["b", "c"]).tolist() != plain.log_likelihood(PROMPTS, ["b", "c"]).tolist()


def test_a_backbone_given_is_never_changed(tmp_path: Path) -> None:
    given = small()
    before = weights(given)
    for policy in ("one", "each_task"):
        learn(CALM(given, connections=2, policy=policy), tmp_path / policy)
        assert same(weights(given), before)
        assert all(weight.requires_grad for weight in given.model.parameters())
        assert not any(layer._forward_hooks for layer in given.decoder.layers)


def test_one_composition_learns_every_task(tmp_path: Path) -> None:
    strategy, start = CALM(small(), connections=2), tiny_backbone()
    backbone = learn(strategy, tmp_path)
    torch.manual_seed(0)
    CALM(small(), connections=2).setup(start)
    old, new = weights(start), weights(backbone)
    assert old.keys() == new.keys()
    assert {name for name in new if not torch.equal(old[name], new[name])} == set(backbone.trainable())
    assert column(tmp_path / "train.csv", "item") == ["task_0"] * 3 + ["task_1"] * 3


class Notes(CALM):
    """Keeps what is there before and after each item."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.notes: list[tuple[str, set[str], dict[str, Tensor], dict[str, Tensor]]] = []

    def before_task(self, backbone: Backbone, task: Task, batches: Any) -> None:
        super().before_task(backbone, task, batches)
        self.notes.append((task.name, set(backbone.trainable()), weights(backbone), {}))

    def after_task(self, backbone: Backbone, task: Task, batches: Any) -> None:
        self.notes[-1][3].update(weights(backbone))


def test_each_task_brings_a_model_of_its_own(tmp_path: Path) -> None:
    """A fresh copy learns the task with all its weights, then joins; only its own connections train then."""
    strategy = Notes(augmenting=small(), connections=2, policy="each_task")
    backbone = learn(strategy, tmp_path)
    names, trained, before, after = zip(*strategy.notes, strict=True)
    assert names == ("task_0:augmenting", "task_0", "task_1:augmenting", "task_1")
    for copy in (0, 2):
        assert same(before[copy], weights(small()))
        assert trained[copy] == set(before[copy])
        assert not any(torch.equal(before[copy][name], after[copy][name]) for name in trained[copy])
    for place, joined in ((0, 1), (1, 3)):
        assert {name.rsplit(".", 3)[0] for name in trained[joined]} == {f"model.connections.{place}"}
        stack = {name: value for name, value in before[joined].items() if f".augmenting.{place}." in name}
        copied = {name.replace(f"augmenting.{place}.", ""): value for name, value in stack.items()}
        assert same(copied, {name: after[joined - 1][name] for name in copied})
        assert {name for name, old in before[joined].items() if not torch.equal(old, after[joined][name])} == trained[
            joined
        ]
    assert all(torch.equal(before[3][name], value) for name, value in after[1].items())
    assert strategy.parked is None
    assert same(weights(backbone), after[3])


def test_an_augmenting_models_own_training_is_not_scored(tmp_path: Path) -> None:
    learn(CALM(small(), connections=2, policy="each_task"), tmp_path)
    items = column(tmp_path / "train.csv", "item")
    assert items == [name for name in ("task_0:augmenting", "task_0", "task_1:augmenting", "task_1") for _ in range(3)]
    assert sorted(set(column(tmp_path / "scores.csv", "after"))) == ["0", "1", "2"]


def test_the_parked_composition_is_part_of_the_state() -> None:
    strategy, backbone = CALM(small(), connections=2, policy="each_task"), tiny_backbone()
    strategy.setup(backbone)
    assert backbone.trainable() == {}
    items = strategy.curriculum(tiny_tasks(), None)
    for item in items[:3]:
        strategy.before_task(backbone, item, [])
    assert any(name.startswith("parked.model.connections.0.") for name in strategy.state_dict())
    assert not any(weight.requires_grad for weight in strategy.parameters())
    strategy.before_task(backbone, items[3], [])
    assert len(backbone.model.model.augmenting) == 2
    assert strategy.state_dict() == {}


def test_a_saved_composition_is_read_by_the_backbone(tmp_path: Path) -> None:
    backbone = learn(CALM(small(), connections=2, encoder=True, policy="each_task"), tmp_path)
    loaded = Backbone.load(tmp_path / "model")
    assert loaded.generate(PROMPTS, 6) == backbone.generate(PROMPTS, 6)
    assert loaded.log_likelihood(PROMPTS, ["b", "c"]).tolist() == backbone.log_likelihood(PROMPTS, ["b", "c"]).tolist()


def swapped() -> Backbone:
    """Two tokens of the same vocabulary in each other's place."""
    backbone = small()
    vocabulary = backbone.tokenizer.get_vocab()
    one, two = sorted(vocabulary)[50:52]
    changed = {**vocabulary, one: vocabulary[two], two: vocabulary[one]}
    backbone.tokenizer.get_vocab = lambda: changed
    return backbone


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"augmenting": swapped()},
            "augmenting: its tokenizer has 1191 tokens and the backbone's 1191; 2 are not the same in both. Both "
            "models read the same tokens: give models of one tokenizer or, with policy 'one', alignment: characters.",
        ),
        ({"connections": 4}, "connections=4: the anchor has 4 layers and the augmenting model 3. Choose 1 to 3."),
        (
            {"augmenting": small(vocab_size=1300), "connections": 1},
            "Unless a table fits, both read the same tokens, but the anchor has 1191 embeddings and the augmenting "
            "model 1300. Give models of one tokenizer.",
        ),
    ],
)
@pytest.mark.parametrize("policy", ["one", "each_task"])
def test_what_setup_refuses_and_leaves_alone(arguments: dict[str, Any], message: str, policy: Any) -> None:
    backbone = tiny_backbone()
    before = backbone.model
    with pytest.raises(ValueError) as caught:
        CALM(**{**MICRO, **arguments}, policy=policy).setup(backbone)
    assert str(caught.value) == message
    assert backbone.model is before
    assert len(backbone.trainable()) == len(list(before.parameters()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": "all"}, "policy='all': choose 'one' or 'each_task'."),
        ({"alignment": "offsets"}, "alignment='offsets': choose 'same' or 'characters'."),
        (
            {"alignment": "characters", "policy": "each_task"},
            "policy='each_task' trains copies on tasks as the backbone's tokenizer encodes them, which a model of "
            "another tokenizer cannot read. Choose policy='one' or alignment='same'.",
        ),
        ({"augmenting": []}, "augmenting is empty: there is nothing to join the backbone with. Name a model."),
        (
            {"augmenting": ["micro", "mini"], "policy": "each_task"},
            "policy='each_task' trains copies of one model, but augmenting names 2. Name one.",
        ),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        CALM(**{**MICRO, **arguments})
    assert str(caught.value) == message


@pytest.mark.parametrize("policies", [("one", True), ("each_task", False)])
def test_one_composition_may_stand_beside_others(policies: tuple[Any, bool]) -> None:
    policy, allowed = policies
    members: Sequence[Any] = [CALM(**MICRO, policy=policy), CALM(**MICRO)]
    if allowed:
        assert Composition(members).members[0].policy == policy
    else:
        with pytest.raises(ValueError, match="CALM cannot be combined with other strategies"):
            Composition(members)


@pytest.mark.parametrize("grower", [BlockExpansion(groups=2), DepthUpScaling(dropped=1)])
def test_a_composition_is_not_grown(grower: Any) -> None:
    message = "CalmForCausalLM is no decoder of the LLaMA family: its layers cannot be stacked anew"
    with pytest.raises(ValueError, match=message):
        Composition([CALM(**MICRO), grower]).setup(tiny_backbone())


CORPUS = [
    "once upon a time there was a little grey dog",
    "the dog was happy, and said: hello, Anna!",
    "7 + 15 = 22",
] * 3
IDS = torch.tensor([[1, 500, 7, 300, 620, 9, 801, 1046], [1, 6, 71, 1000, 12, 652, 18, 450]])
BYTES = {letter: byte for byte, letter in bytes_to_unicode().items()}


@cache
def tokenizer(kind: str) -> Any:
    """Two kinds, each trained on the corpus: GPT-2's byte-level one, and LLaMA's with bytes for unknown characters."""
    if kind == "byte-level":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        special, alphabet = ["</s>", "<s>"], pre_tokenizers.ByteLevel.alphabet()
    else:
        made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        parts = decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)
        made.decoder = decoders.Sequence(list(parts))
        special, alphabet = ["<unk>", "</s>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))], []
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + len(special) + 60, special_tokens=special, initial_alphabet=alphabet
    )
    made.train_from_iterator(CORPUS, trainer)
    names = {"bos_token": "<s>", "eos_token": "</s>"} | ({"unk_token": "<unk>"} if "<unk>" in special else {})
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


def stranger(kind: str = "byte-level", seed: int = 1) -> Backbone:
    """A small model that reads another tokenizer than the shipped one."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 3}
    backbone = tiny_backbone(seed=seed, vocab_size=1300, **sizes)
    backbone.tokenizer = tokenizer(kind)
    return backbone


def composed(*others: Backbone, **settings: Any) -> Backbone:
    backbone = tiny_backbone()
    torch.manual_seed(0)
    CALM(others or (stranger(),), 2, alignment="characters", **settings).setup(backbone)
    backbone.model.eval()
    return backbone


def table_of(calm: Any, number: int = 0) -> Tensor:
    table: Tensor = calm.model.augmenting[number].pieces
    return table


def text(tokens: list[str], bytewise: bool) -> bytes:
    """What tokens stand for, from their names alone."""
    if bytewise:
        return bytes(BYTES[letter] for letter in "".join(tokens))
    return b"".join(
        bytes([int(name[3:5], 16)]) if name[:3] == "<0x" else name.replace("▁", " ").encode() for name in tokens
    )


def check_spelling(other: Any, bytewise: bool) -> tuple[int, int]:
    """Every token of the shipped tokenizer: how many have a spelling, and the longest of them."""
    own = tiny_backbone().tokenizer
    table, names = spelling(own, other, len(own)), own.convert_ids_to_tokens(range(len(own)))
    spelt = 0
    for token, row in enumerate(table.tolist()):
        pieces = [piece for piece in row if piece >= 0]
        assert pieces + [-1] * (len(row) - len(pieces)) == row
        if token in own.all_special_ids:
            continue
        try:
            text([names[token]], True).decode()
        except UnicodeDecodeError:  # a part of a character
            assert pieces == [other.eos_token_id if other.unk_token_id is None else other.unk_token_id]
            continue
        assert text(other.convert_ids_to_tokens(pieces), bytewise) == text([names[token]], True)
        spelt += 1
    assert table[own.bos_token_id].tolist()[:2] == [other.bos_token_id, -1]
    assert table[own.eos_token_id].tolist()[:2] == [other.eos_token_id, -1]
    return spelt, table.shape[1]


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
def test_the_spelling_of_every_token_has_its_characters(kind: str) -> None:
    """1,004 of the 1,191 tokens; 3 are special, and 184 are bytes of a longer character."""
    spelt, longest = check_spelling(tokenizer(kind), kind == "byte-level")
    assert spelt == 1191 - 3 - 184
    assert longest > 3


@pytest.mark.skipif(not os.environ.get("WORKBENCH_MODEL"), reason="WORKBENCH_MODEL is not set to a model's folder")
def test_the_spelling_in_the_tokens_of_a_published_model() -> None:
    other = Backbone.load(os.environ["WORKBENCH_MODEL"]).tokenizer
    assert check_spelling(other, bytewise=False) == (1004, 9)


def test_a_token_is_spelt_as_in_the_middle_of_a_text() -> None:
    """No space comes before a part of a word, and what the other knows whole stays whole."""
    own, other = tiny_backbone().tokenizer, tokenizer("byte-fallback")
    table = spelling(own, other, len(own))
    expected = {"Ġdog": "▁ dog", "Ġa": "▁a", "on": "on", "Ġon": "▁ on", "Ċ": "<0x0A>", "çİĭ": "<0xE7> <0x8E> <0x8B>"}
    for name, pieces in expected.items():
        row = table[own.convert_tokens_to_ids(name)]
        assert other.convert_ids_to_tokens(row[row >= 0].tolist()) == pieces.split()


def test_embeddings_without_a_token_and_roles_that_the_other_has_not() -> None:
    own, other = tiny_backbone().tokenizer, tokenizer("byte-fallback")
    table = spelling(own, other, len(own) + 2)
    assert table[[own.pad_token_id, -2, -1], 0].tolist() == [other.unk_token_id] * 3
    nameless = PreTrainedTokenizerFast(tokenizer_object=other.backend_tokenizer)
    with pytest.raises(ValueError, match="The augmenting model's tokenizer has neither an unk nor an eos token"):
        spelling(own, nameless, len(own))


def test_of_equal_tokenizers_it_is_the_same_composition() -> None:
    """By the strategy, which sees that no table is needed; and with a table that says so, of one piece each."""
    logits = []
    for alignment in ("same", "characters"):
        backbone = tiny_backbone()
        torch.manual_seed(0)
        CALM(tiny_backbone(seed=1), 2, alignment=alignment).setup(backbone)
        logits.append(backbone.model.eval()(IDS).logits)
    torch.manual_seed(0)
    tabled = CalmForCausalLM.compose(tiny_backbone().model, [], 2)
    tabled.join(tiny_backbone(seed=1).model, 2, torch.arange(1191)[:, None])
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], tabled.eval()(IDS).logits)
    mask = nn.functional.pad(torch.ones(2, 5, dtype=torch.long), (3, 0))
    positions = (mask.cumsum(1) - 1).clamp(0)
    plain, spelt = (
        calm(IDS, attention_mask=mask, position_ids=positions).logits[:, 3:] for calm in (backbone.model, tabled)
    )
    torch.testing.assert_close(spelt, plain, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_state_that_stands_for_a_token_is_that_of_its_last_piece() -> None:
    """m_A by itself over the pieces of one row, one after the other."""
    other = stranger()
    calm, seen = composed(other).model, []
    calm.model.connections[0][1].f_proj.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    calm(IDS)
    for row in (0, 1):
        spelt = [[piece for piece in table_of(calm)[token].tolist() if piece >= 0] for token in IDS[row].tolist()]
        assert max(map(len, spelt)) > 2
        stack, taps = other.model.model.eval(), []
        hook = stack.layers[2].register_forward_hook(lambda _, __, out, taps=taps: taps.append(out[0]))
        stack(torch.tensor([[piece for pieces in spelt for piece in pieces]]))
        hook.remove()
        last = torch.tensor([len(pieces) for pieces in spelt]).cumsum(0) - 1
        torch.testing.assert_close(seen[0][row], taps[0][last], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def greedy(calm: Any, row: list[int], steps: int, **given: Any) -> list[int]:
    tokens = list(row)
    for _ in range(steps):
        tokens.append(int(calm(torch.tensor([tokens]), use_cache=False, **given).logits[0, -1].argmax()))
    return tokens


def generated(calm: Any, ids: Tensor, steps: int, **given: Any) -> list[list[int]]:
    made: Tensor = calm.generate(
        ids, attention_mask=(ids > 0).long(), max_new_tokens=steps, eos_token_id=None, pad_token_id=0, **given
    )
    return made.tolist()


@pytest.mark.parametrize("encoder", [False, True])
def test_cached_greedy_decoding_beside_a_longer_row_is_the_uncached(encoder: bool) -> None:
    calm = composed(stranger(), stranger("byte-fallback", seed=2), encoder=encoder).model
    long, short = IDS[0].tolist(), IDS[1, :5].tolist()
    made = generated(calm, torch.tensor([long, [0, 0, 0, *short]]), 20, do_sample=False)
    asked = [{"prompt_mask": torch.ones(1, len(row))} if encoder else {} for row in (long, short)]
    assert made[0] == greedy(calm, long, 20, **asked[0])
    assert made[1][3:] == greedy(calm, short, 20, **asked[1])
    widths = {int((table_of(calm)[token] >= 0).sum()) for token in made[0][8:]}
    assert len(widths) > 1


def test_beams_reorder_what_was_read() -> None:
    calm = composed().model
    assert generated(calm, IDS, 8, num_beams=3) == generated(calm, IDS, 8, num_beams=3, use_cache=False)


def test_each_piece_is_read_once() -> None:
    calm, read = composed().model, []
    calm.model.augmenting[0].layers[0].register_forward_pre_hook(lambda _, given: read.append(given[0].shape[1]))
    made = generated(calm, IDS[:1], 16, do_sample=False)[0]
    lengths = (table_of(calm)[torch.tensor(made[:-1])] >= 0).sum(1)
    assert read == [int(lengths[:8].sum()), *lengths[8:].tolist()]


@torch.no_grad()
def test_a_future_token_changes_no_earlier_logit() -> None:
    """Nor does one of another number of pieces; a longer row beside them keeps the shape."""
    calm, rows = composed().model, torch.stack([IDS[0], torch.full((8,), 1046)])
    lengths = (table_of(calm)[torch.tensor([9, 652])] >= 0).sum(1)
    assert lengths[0] != lengths[1]
    other = rows.clone()
    other[0, 5] = 652
    change = (calm(rows).logits - calm(other).logits).abs().amax(2)[0]
    assert change[:5].tolist() == [0.0] * 5
    assert change[5:].min() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_loads_with_equal_logits(dtype: torch.dtype, tmp_path: Path) -> None:
    backbone = tiny_backbone(dtype=dtype)
    CALM(stranger(), 2, alignment="characters").setup(backbone)
    backbone.save(tmp_path)
    loaded = Backbone.load(tmp_path, dtype=str(dtype).removeprefix("torch."))
    assert same(weights(loaded), weights(backbone))
    assert table_of(loaded.model).dtype == torch.long
    assert torch.equal(loaded.model.eval()(IDS).logits, backbone.model.eval()(IDS).logits)
    assert loaded.generate(["once upon a time", "7"], 6) == backbone.generate(["once upon a time", "7"], 6)


def test_it_conforms() -> None:
    assert len(check_strategy(lambda: CALM(stranger(), 2, alignment="characters"))) == 14


def test_different_tokenizers_are_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match=r"of one tokenizer or, with policy 'one', alignment: characters\.$"):
        CALM(stranger(), 2).setup(tiny_backbone())


@pytest.mark.parametrize("table", [torch.zeros(1190, 2).long(), torch.full((1191, 2), 1300)])
def test_a_table_that_does_not_fit_is_refused(table: Tensor) -> None:
    calm, other = CalmForCausalLM.compose(tiny_backbone().model, [], 2), stranger()
    with pytest.raises(ValueError, match="Unless a table fits, both read the same tokens, but the anchor has 1191"):
        calm.join(other.model, 2, table)
