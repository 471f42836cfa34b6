"""The mixture variant: it starts as the base, trains what it added, and is saved as one plain matrix."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from strategies import DownProjectionMoE
from workbench.testing.tiny import tiny_backbone, tiny_tasks

TOKENS = torch.arange(3, 13).unsqueeze(0)
TASK = tiny_tasks()[0]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_it_mixes_two_matrices_by_softmax(family: str, tmp_path: Path) -> None:
    backbone, base = tiny_backbone(family), tiny_backbone(family)
    DownProjectionMoE().setup(backbone)
    batch = backbone.collate(backbone.encode(TASK.train).to_list())
    assert torch.equal(backbone(batch).token_nats, base(batch).token_nats)
    assert {name.rpartition(".")[2] for name in backbone.trainable()} == {"second", "balance"}
    assert len(backbone.trainable()) == 2 * 4
    optimizer = torch.optim.AdamW(backbone.trainable().values(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        backbone(batch).loss.backward()
        optimizer.step()
    for new, old in zip(backbone.decoder.layers, base.decoder.layers, strict=True):
        mixture = new.mlp.down_proj.parametrizations.weight[0]
        assert torch.equal(new.mlp.down_proj.parametrizations.weight.original, old.mlp.down_proj.weight)
        share = torch.exp(mixture.balance) / torch.exp(mixture.balance).sum()
        assert share[0] != share[1]
        by_hand = share[0] * old.mlp.down_proj.weight + share[1] * mixture.second
        assert torch.allclose(new.mlp.down_proj.weight, by_hand, atol=1e-7)
    backbone.save(tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert {name for name, _ in plain.named_parameters()} == {name for name, _ in base.model.named_parameters()}
    with torch.no_grad(), backbone.evaluating():
        assert torch.equal(plain(TOKENS).logits, backbone.model(TOKENS).logits)


def test_a_model_without_down_projections_is_refused() -> None:
    backbone = tiny_backbone()
    backbone.model.model.layers = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    with pytest.raises(ValueError, match=r"LlamaForCausalLM has no mlp\.down_proj"):
        DownProjectionMoE().setup(backbone)
