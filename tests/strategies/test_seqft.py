"""Sequential fine-tuning: every weight trains, by the plain gradient, and nothing else happens."""

from __future__ import annotations

import pytest
import torch

from strategies import SeqFT
from workbench.strategy import ContinualStrategy
from workbench.testing.tiny import tiny_backbone, tiny_tasks

TASKS = tiny_tasks()


@pytest.mark.parametrize("tied", [False, True])
def test_every_weight_trains_whatever_was_frozen_before(tied: bool) -> None:
    backbone = tiny_backbone(tie_word_embeddings=tied)
    backbone.freeze()
    SeqFT().setup(backbone)
    assert backbone.trainable().keys() == dict(backbone.model.named_parameters()).keys()


def test_one_step_is_minus_the_rate_times_the_gradient_in_every_tensor() -> None:
    """θ ← θ - lr · ∇L with L from plain transformers: its loss is the mean over labels too."""
    backbone, plain = tiny_backbone(), tiny_backbone().model
    SeqFT().setup(backbone)
    batch = backbone.collate(backbone.encode(TASKS[0].train).to_list())
    plain(batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss.backward()
    optimizer = torch.optim.SGD(backbone.trainable().values(), lr=0.5)
    backbone(batch).loss.backward()
    optimizer.step()
    for (name, moved), start in zip(backbone.model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(moved, start - 0.5 * start.grad, rtol=1e-5, atol=1e-5, msg=name)
        assert start.grad.any(), name


def test_it_is_the_base_class_with_nothing_frozen() -> None:
    overridden = {name for name in vars(SeqFT) if name in vars(ContinualStrategy) and not name.startswith("_")}
    assert overridden == {"setup", "reference", "bibtex"}
    assert not list(SeqFT().parameters())
