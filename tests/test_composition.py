"""A composition against its equations worked in loops, against its anchor, and against itself without a cache."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from helpers.studies import same
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig

from workbench.composition import CalmForCausalLM, Connection, uniform_pairs
from workbench.testing.tiny import tiny_backbone

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
