"""Models of different tokenizers: what a token is spelt as, and that the composition reads just that, once."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.studies import same, weights
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from strategies import CALM
from strategies.calm import spelling
from workbench.backbone import Backbone
from workbench.composition import CalmForCausalLM
from workbench.testing.conformance import check_strategy
from workbench.testing.tiny import tiny_backbone

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
