"""The loss of many labelled positions, computed in chunks: the same numbers, and never all logits in memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from workbench.backbone import Backbone, batch
from workbench.backbone.batch import logits_held, token_nats
from workbench.testing.tiny import tiny_backbone, tiny_tasks


class Watched(nn.Linear):
    """A head that records how many logits it computes at a time."""

    def __init__(self) -> None:
        super().__init__(8, 50, dtype=torch.float64)
        self.made: list[int] = []

    def forward(self, states: Tensor) -> Tensor:
        logits = super().forward(states)
        self.made.append(logits.numel())
        return logits


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "MAX_LOGITS", 500)
    monkeypatch.setattr(batch, "CHUNK_LOGITS", 170)


def gradients(labelled: int) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    torch.manual_seed(0)
    head = Watched()
    states = torch.randn(labelled, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 50, (labelled,))
    nats = token_nats(head, states, targets, 50)
    (nats * torch.arange(1.0, labelled + 1)).sum().backward()
    assert states.grad is not None
    assert head.weight.grad is not None
    expected = functional.cross_entropy(functional.linear(states, head.weight, head.bias), targets, reduction="none")
    assert torch.allclose(nats, expected, atol=1e-6, rtol=0)
    return nats, states.grad, head.weight.grad, head.made


def test_many_logits_are_computed_in_chunks_with_the_same_gradients(
    small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    nats, to_states, to_head, made = gradients(11)
    assert made[:4] == [150, 150, 150, 100]
    assert sorted(made[4:]) == [100, 150, 150, 150]  # again, on the way back
    monkeypatch.setattr(batch, "MAX_LOGITS", 550)
    whole, expected_states, expected_head, made_at_once = gradients(11)
    assert made_at_once == [550]
    assert torch.allclose(nats, whole, atol=1e-6, rtol=0)
    assert torch.allclose(to_states, expected_states, atol=1e-6, rtol=0)
    assert torch.allclose(to_head, expected_head, atol=1e-6, rtol=0)


def test_few_logits_are_computed_at_once(small_parts: None) -> None:
    assert gradients(10)[3] == [500]
    assert [logits_held(count, 50) for count in (0, 10, 11, 1000)] == [0, 500, 150, 150]
    assert logits_held(2, 1000) == 1000  # one position is the least


def loss_and_gradients(backbone: Backbone) -> tuple[Tensor, dict[str, Tensor]]:
    task = tiny_tasks()[0]
    backbone.zero_grad()
    output = backbone(backbone.collate(backbone.encode(task.train, task.max_new_tokens).to_list()))
    output.loss.backward()
    return output.token_nats.detach(), {name: value.grad for name, value in backbone.trainable().items()}  # type: ignore[misc]


def test_chunks_do_not_change_a_backbones_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone()
    nats, whole = loss_and_gradients(backbone)
    monkeypatch.setattr(batch, "MAX_LOGITS", 0)
    monkeypatch.setattr(batch, "CHUNK_LOGITS", 5 * backbone.model.config.vocab_size)
    again, parts = loss_and_gradients(backbone)
    assert torch.allclose(nats, again, atol=1e-6, rtol=0)
    assert whole.keys() == parts.keys()
    assert all(torch.allclose(whole[name], parts[name], atol=1e-6, rtol=1e-4) for name in whole)
