"""A composition saved and loaded anywhere, run by the backbone, grown, and what cannot be composed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.studies import same
from test_composition import IDS, NARROW, composed, generated, greedy, model, narrow, state
from torch import nn
from transformers import AutoModelForCausalLM

from workbench.backbone import Backbone
from workbench.composition import CalmForCausalLM, uniform_pairs
from workbench.model_folder import check_folder
from workbench.testing.tiny import tiny_backbone, tiny_tasks

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
    assert nn.functional.cosine_similarity(*gradients, dim=0) > 0.98
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
