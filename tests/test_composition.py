"""A composition: its equations, its cache, and its folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.studies import same
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from workbench.backbone import Backbone
from workbench.composition import CalmForCausalLM, Connection, uniform_pairs
from workbench.model_folder import check_folder
from workbench.testing.tiny import tiny_backbone, tiny_tasks

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
IDS = torch.tensor([[5, 40, 7, 300, 12, 9, 801, 33], [6, 6, 71, 1000, 2, 52, 18, 450]])
NARROW = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 3}


def model(family: str = "llama", **changes: Any) -> Any:
    return tiny_backbone(family, **changes).model.eval()


def narrow(seed: int = 1, family: str = "llama") -> Any:
    """An augmenting model with another width, depth and number of heads."""
    return model(family, seed=seed, **NARROW)


def composed(anchor: Any = None, augmenting: Any = None, connections: Any = 2, **settings: Any) -> CalmForCausalLM:
    torch.manual_seed(0)
    return CalmForCausalLM.compose(anchor or model(), augmenting or [narrow()], connections, **settings).eval()


def state(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


@torch.no_grad()
def greedy(decoder: Any, row: list[int], steps: int, **given: Any) -> list[int]:
    """Argmax token by token, everything anew for each."""
    tokens = list(row)
    for _ in range(steps):
        tokens.append(int(decoder(torch.tensor([tokens]), use_cache=False, **given).logits[0, -1].argmax()))
    return tokens


def generated(decoder: Any, ids: Tensor, steps: int, **given: Any) -> list[list[int]]:
    settings = {"max_new_tokens": steps, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return decoder.generate(ids, **{"attention_mask": torch.ones_like(ids), **settings, **given}).tolist()


def run_layer(stack: Any, number: int, states: Tensor) -> Tensor:
    """One layer by itself, with the rotary angles and the causal mask that it needs."""
    time = states.shape[1]
    angles = stack.rotary_emb(states, torch.arange(time)[None])
    mask = torch.full((time, time), float("-inf")).triu(1)[None, None]
    return stack.layers[number](states, attention_mask=mask, position_embeddings=angles)


def attend(connection: Connection, states: Tensor, hidden: Tensor, heads: int) -> Tensor:
    """Concat_k softmax(q_t K_k^T / sqrt(d)) V_k W_O over positions up to t, in plain loops, for one row."""
    given = states @ connection.f_proj.weight.T
    query, key, value = (
        x @ w.weight.T
        for x, w in zip((hidden, given, given), (connection.q_proj, connection.k_proj, connection.v_proj), strict=True)
    )
    size = hidden.shape[1] // heads
    mixed = torch.zeros_like(hidden)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for t in range(len(hidden)):
            weights = (key[: t + 1, part] @ query[t, part] / size**0.5).softmax(0)
            mixed[t, part] = weights @ value[: t + 1, part]
    return mixed @ connection.o_proj.weight.T


@torch.no_grad()
def test_the_equations_of_the_paper_in_plain_loops() -> None:
    """H_B + sum of f_cross(f_proj(H_A), H_B), with two augmenting models and two connections at one layer."""
    anchor, one, two = model(), narrow(), narrow(seed=2)
    calm = composed(anchor, [one, two], [(0, 1), (2, 1), (2, 3)])
    links = [
        [(pair, link) for pair, link in zip(pairs, ways, strict=True)]
        for pairs, ways in zip(calm.config.connections, calm.model.connections, strict=True)
    ]
    outputs = []
    for other in (one, two):
        states, kept = other.model.embed_tokens(IDS[:1]), []
        for number in range(3):
            states = run_layer(other.model, number, states)
            kept.append(states[0])
        outputs.append(kept)
    hidden = anchor.model.embed_tokens(IDS[:1])
    for number in range(4):
        hidden = run_layer(anchor.model, number, hidden)
        hidden = hidden + sum(
            (
                attend(link, kept[lower], hidden[0], heads=4)
                for kept, own in zip(outputs, links, strict=True)
                for (lower, upper), link in own
                if upper == number
            ),
            torch.zeros(()),
        )
    expected = anchor.lm_head(anchor.model.norm(hidden))
    torch.testing.assert_close(calm(IDS[:1]).logits, expected, rtol=1e-4, atol=1e-4)
    assert (expected - anchor(IDS[:1]).logits).abs().max() > 0.1


@pytest.mark.parametrize(
    ("sizes", "pairs"),
    [
        ((8, 8, 4), [(1, 1), (3, 3), (5, 5), (7, 7)]),
        ((6, 3, 3), [(0, 1), (1, 3), (2, 5)]),
        ((4, 3, 2), [(0, 1), (2, 3)]),
        ((32, 22, 1), [(21, 31)]),
        ((5, 4, 3), [(0, 0), (1, 2), (3, 4)]),
    ],
)
def test_uniform_pairs_by_hand(sizes: tuple[int, int, int], pairs: list[tuple[int, int]]) -> None:
    assert uniform_pairs(*sizes) == pairs


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_with_zero_output_weights_it_is_the_anchor(family: str, tied: bool) -> None:
    anchor = model(family, tie_word_embeddings=tied)
    expected, before = anchor(IDS).logits, state(anchor)
    assert torch.equal(composed(anchor, [narrow(family="qwen3")], zero_init=True)(IDS).logits, expected)
    other = composed(anchor, [narrow(family="qwen3")])
    assert (other(IDS).logits - expected).abs().max() > 0.1
    assert same(before, state(anchor))
    assert torch.equal(anchor(IDS).logits, expected)
    assert all(weight.requires_grad for weight in anchor.parameters())
    assert not any(layer._forward_hooks for layer in anchor.model.layers)
    assert (other.lm_head.weight is other.model.anchor.embed_tokens.weight) == tied


@pytest.mark.parametrize("family", FAMILIES)
def test_a_future_token_changes_no_earlier_logit(family: str) -> None:
    calm, other = composed(model(family)), IDS.clone()
    other[:, 5] = 77
    change = (calm(IDS).logits - calm(other).logits).abs().amax((0, 2))
    assert change[:5].tolist() == [0.0] * 5
    assert change[5:].min() > 0.01


def test_the_number_of_parameters() -> None:
    """n (D_A D_B + 4 D_B^2), no biases: 5 connections of TinyLlama and LLaMA-2-7B are 377M."""
    calm = composed(augmenting=[narrow(), model(seed=4)])
    trains = [weight for weight in calm.parameters() if weight.requires_grad]
    assert sum(map(Tensor.numel, trains)) == 2 * (24 * 32 + 4 * 32**2) + 2 * (32 * 32 + 4 * 32**2)
    small = AutoConfig.for_model("llama", hidden_size=2048)
    with torch.device("meta"):
        connection = Connection(small, AutoConfig.for_model("llama", hidden_size=4096), zero_init=False)
    assert round(5 * sum(map(Tensor.numel, connection.parameters())) / 1e6) == 377


def test_training_changes_the_connections_and_not_one_other_bit() -> None:
    calm = composed().train()
    before = state(calm)
    optimizer = torch.optim.AdamW([weight for weight in calm.parameters() if weight.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = calm(IDS, labels=IDS).loss
        loss.backward()
        assert {name for name, weight in calm.named_parameters() if weight.grad is not None and weight.grad.any()} == {
            name for name in before if name.startswith("model.connections.")
        }
        optimizer.step()
        losses.append(loss.item())
    after = state(calm)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        name for name in before if name.startswith("model.connections.")
    }
    assert losses[-1] < losses[0] - 0.1


def test_the_loss_is_that_of_the_logits() -> None:
    calm = composed()
    expected = functional.cross_entropy(calm(IDS).logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    torch.testing.assert_close(calm(IDS, labels=IDS).loss, expected)


def test_at_first_only_zeroed_output_weights_feel_the_loss() -> None:
    calm = composed(zero_init=True)
    calm(IDS, labels=IDS).loss.backward()
    felt = {name for name, weight in calm.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert felt == {f"model.connections.0.{number}.o_proj.weight" for number in (0, 1)}


@pytest.mark.parametrize("encoder", [False, True])
def test_each_model_processes_each_position_once(encoder: bool) -> None:
    """N tokens after a prompt of P: P + N - 1 positions in each model; an encoder reads the P of the prompt."""
    calm, seen = composed(augmenting=[narrow(), narrow(seed=2)], encoder=encoder), Counter[int]()
    stacks = [calm.model.anchor, *calm.model.augmenting]
    for number, stack in enumerate(stacks):
        stack.layers[0].register_forward_pre_hook(
            lambda _, given, number=number: seen.update({number: given[0].shape[1]})
        )
    generated(calm, IDS, 16)
    read = 8 if encoder else 8 + 16 - 1
    assert seen == {0: 8 + 16 - 1, 1: read, 2: read}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"head_dim": 16},
        {"family": "qwen3", "num_attention_heads": 5, "num_key_value_heads": 5},
    ]
    + [{"family": family} for family in FAMILIES[1:]]
    + [{"family": "mistral", "sliding_window": 5}],
)
def test_cached_greedy_decoding_beside_a_longer_row_is_the_uncached(changes: dict[str, Any]) -> None:
    calm = composed(model(**changes), [narrow(), narrow(2, "qwen3")])
    short = IDS[1, :5].tolist()
    rows = torch.tensor([IDS[0].tolist(), [0, 0, 0, *short]])
    mask = (rows > 0).long()
    made = generated(calm, rows, 20, attention_mask=mask)
    assert made[0] == greedy(calm, IDS[0].tolist(), 20)
    assert made[1][3:] == greedy(calm, short, 20)


def test_left_padding_changes_nothing() -> None:
    calm = composed()
    padded = functional.pad(IDS, (4, 0), value=9)
    mask = functional.pad(torch.ones_like(IDS), (4, 0))
    plain = calm(IDS).logits
    positions = (mask.cumsum(1) - 1).clamp(0)
    beside = calm(padded, attention_mask=mask, position_ids=positions).logits[:, 4:]
    torch.testing.assert_close(beside, plain, rtol=1e-5, atol=1e-5 * plain.abs().max().item())


def test_beams_reorder_every_cache() -> None:
    calm = composed()
    assert generated(calm, IDS, 8, num_beams=3) == generated(calm, IDS, 8, num_beams=3, use_cache=False)


LOAD_ALONE = """
import sys
sys.modules["workbench"] = None  # nothing of ours can be imported
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
ids = torch.tensor(eval(sys.argv[2]))
made = model.generate(ids[:1], max_new_tokens=4, do_sample=False)
torch.save({"logits": model(ids).logits, "made": made}, sys.argv[3])
model.save_pretrained(sys.argv[4])
"""


def composed_backbone(family: str = "llama", dtype: torch.dtype = torch.float32, **settings: Any) -> Backbone:
    backbone = tiny_backbone(family, dtype=dtype)
    backbone.model = composed(backbone.model, [narrow(), narrow(2, "qwen3")], **settings)
    return backbone


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_folder_loads_with_equal_logits_and_the_same_frozen(family: str, tied: bool, tmp_path: Path) -> None:
    backbone = tiny_backbone(family, tie_word_embeddings=tied)
    backbone.model = composed(backbone.model, [narrow(family="qwen2"), narrow(2)], encoder=tied)
    backbone.save(tmp_path / "model")
    expected = backbone.model(IDS).logits
    loaded = Backbone.load(tmp_path / "model")
    assert torch.equal(loaded.model.eval()(IDS).logits, expected)
    assert loaded.trainable().keys() == backbone.trainable().keys()
    assert {name.split(".")[1] for name in loaded.trainable()} == {"connections"}
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert same(state(plain), state(backbone.model))
    assert plain.config.encoder == tied
    assert (plain.lm_head.weight is plain.model.anchor.embed_tokens.weight) == tied


def test_plain_transformers_loads_it_where_nothing_of_ours_is(tmp_path: Path) -> None:
    backbone = composed_backbone()
    backbone.save(tmp_path / "model")
    arguments = [str(tmp_path / "model"), str(IDS.tolist()), str(tmp_path / "out.pt"), str(tmp_path / "again")]
    cache = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-I", "-c", LOAD_ALONE, *arguments]
    subprocess.run(command, cwd=tmp_path, env=cache, check=True, capture_output=True)
    out = torch.load(tmp_path / "out.pt")
    assert torch.equal(out["logits"], backbone.model(IDS).logits)
    assert out["made"].tolist() == [greedy(backbone.model, IDS[0].tolist(), 4)]
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.float32)
    assert same(state(again), state(backbone.model))


def test_in_half_precision_the_connections_stay_in_full_and_the_rotary_angles_exact(tmp_path: Path) -> None:
    backbone = composed_backbone(dtype=torch.bfloat16)
    parts = backbone.model.model
    assert {weight.dtype for part in (parts.anchor, parts.augmenting) for weight in part.parameters()} == {
        torch.bfloat16
    }
    assert {weight.dtype for weight in backbone.trainable().values()} == {torch.float32}
    backbone.save(tmp_path / "model")
    loaded = Backbone.load(tmp_path / "model", dtype="bfloat16")
    assert {weight.dtype for weight in loaded.trainable().values()} == {torch.float32}
    assert torch.equal(loaded.model.eval()(IDS).logits, backbone.model(IDS).logits)
    assert generated(loaded.model, IDS[:1], 6) == [greedy(loaded.model, IDS[0].tolist(), 6)]


def test_under_autocast_the_gradients_are_those_of_full_precision_nearly() -> None:
    gradients = []
    for half in (False, True):
        calm = composed()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = calm(IDS, labels=IDS).loss
        loss.backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in calm.model.connections.parameters()]))
    assert functional.cosine_similarity(*gradients, dim=0) > 0.98
    assert not torch.equal(*gradients)


def test_the_models_run_without_dropout_in_any_mode() -> None:
    calm = composed(model(attention_dropout=0.5), [model(seed=1, attention_dropout=0.5)])
    expected = calm(IDS).logits
    assert torch.equal(calm.train()(IDS).logits, expected)
    assert calm.training
    calm.model.anchor.train()
    assert torch.equal(calm(IDS).logits, expected)


def test_an_encoder_sees_the_prompt_alone() -> None:
    """Whatever m_A's embeddings are at the answer changes nothing, and at the prompt something."""
    changes = {}
    for encoder in (False, True):
        backbone = composed_backbone(encoder=encoder)
        batch = backbone.collate(backbone.encode(tiny_tasks()[0].train).to_list())
        answers = batch.labels != -100
        assert 0 < answers.sum() < batch.attention_mask.sum()
        losses = [backbone(batch).token_nats]
        for spoiled in (answers, ~answers):
            embed = backbone.model.model.augmenting[0].embed_tokens
            hook = embed.register_forward_hook(lambda _, __, out, spoiled=spoiled: out + spoiled[..., None] * 5.0)
            losses.append(backbone(batch).token_nats)
            hook.remove()
        changes[encoder] = [(loss - losses[0]).abs().max().item() for loss in losses[1:]]
    assert changes[True][0] == 0.0
    assert min(changes[False][0], changes[False][1], changes[True][1]) > 0.01


def test_an_encoder_decodes_with_a_cache_as_without() -> None:
    calm = composed(encoder=True)
    rows = torch.tensor([IDS[0].tolist(), [0, 0, 0, *IDS[1, :5].tolist()]])
    made = generated(calm, rows, 20, attention_mask=(rows > 0).long())
    for row, prompt in zip(made, (IDS[0].tolist(), IDS[1, :5].tolist()), strict=True):
        assert row[-20:] == greedy(calm, prompt, 20, prompt_mask=torch.ones(1, len(prompt)))[-20:]
    assert made[0] != greedy(calm, IDS[0].tolist(), 20)


def test_without_a_prompt_an_encoder_is_the_anchor() -> None:
    anchor = model()
    calm = composed(anchor, encoder=True)
    assert torch.equal(calm(IDS, prompt_mask=torch.zeros_like(IDS)).logits, anchor(IDS).logits)


def test_one_more_model_joins_and_nothing_else_changes() -> None:
    calm = composed(connections=[(2, 3)])
    before = state(calm)
    calm.model.connections.requires_grad_(False)
    calm.join(narrow(seed=5), 2)
    after = state(calm)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {name for name, weight in calm.named_parameters() if weight.requires_grad} == {
        name for name in after if name.startswith("model.connections.1.")
    }
    assert calm.config.connections == [[[2, 3]], [[0, 1], [2, 3]]]
    assert generated(calm, IDS[:1], 12) == [greedy(calm, IDS[0].tolist(), 12)]


def test_the_order_of_the_augmenting_models_does_not_matter() -> None:
    one, two = narrow(), narrow(seed=2)
    first, second = composed(augmenting=[one, two]), composed(augmenting=[two, one])
    for own, other in ((0, 1), (1, 0)):
        second.model.connections[own].load_state_dict(first.model.connections[other].state_dict())
    torch.testing.assert_close(first(IDS).logits, second(IDS).logits, rtol=1e-5, atol=1e-5)


def test_what_was_made_by_hand_is_not_drawn_anew() -> None:
    anchor = model()
    anchor.model.layers[1].mlp.up_proj = nn.Linear(32, 64, bias=False)
    calm = composed(anchor)
    assert torch.equal(calm.model.anchor.layers[1].mlp.up_proj.weight, anchor.model.layers[1].mlp.up_proj.weight)


def test_eager_attention_stays_eager_and_causal() -> None:
    anchor = model(attn_implementation="eager")
    assert torch.equal(composed(anchor, zero_init=True)(IDS).logits, anchor(IDS).logits)
    assert anchor.config._attn_implementation == "eager"


def test_the_positions_are_those_of_the_shortest_model() -> None:
    calm = composed(augmenting=[narrow(), model(max_position_embeddings=100)])
    assert calm.config.max_position_embeddings == 100


def test_every_part_of_a_folder_is_checked(tmp_path: Path) -> None:
    composed_backbone().save(tmp_path)
    assert check_folder(tmp_path) == []
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["augmenting"][1]["model_type"] = "gpt2"
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    expected = "config.json: model_type is 'gpt2'; expected one of llama, mistral, qwen2, qwen3."
    assert check_folder(tmp_path) == [f"{tmp_path}/{expected}"]


PAIRS = "expected different pairs of layers of the augmenting model (0 to 2) and the anchor (0 to 3)."


@pytest.mark.parametrize(
    ("augmenting", "connections", "message"),
    [
        ({}, 4, "connections=4: the anchor has 4 layers and the augmenting model 3. Choose 1 to 3."),
        ({}, 0, "connections=0: the anchor has 4 layers and the augmenting model 3. Choose 1 to 3."),
        ({}, [], f"connections=[]: {PAIRS}"),
        ({}, [(0, 4)], f"connections=[(0, 4)]: {PAIRS}"),
        ({}, [(-1, 0)], f"connections=[(-1, 0)]: {PAIRS}"),
        ({}, [(1, 2), (1, 2)], f"connections=[(1, 2), (1, 2)]: {PAIRS}"),
        (
            {"vocab_size": 1200},
            2,
            "Unless a table fits, both read the same tokens, but the anchor has 1191 embeddings and the augmenting "
            "model 1200. Give models of one tokenizer.",
        ),
    ],
)
def test_what_cannot_be_joined(augmenting: dict[str, Any], connections: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        CalmForCausalLM.compose(model(), [model(seed=1, **NARROW, **augmenting)], connections)
    assert str(caught.value) == message


def test_a_composition_is_not_composed_again() -> None:
    with pytest.raises(ValueError, match="CalmForCausalLM cannot be composed: expected a decoder of the LLaMA"):
        CalmForCausalLM.compose(composed(), [narrow()], 1)


def test_more_connections_than_layers_are_refused_by_number() -> None:
    with pytest.raises(ValueError, match="connections=9: the anchor has 8 layers and the augmenting model 16"):
        uniform_pairs(8, 16, 9)
