"""Rows laid end to end: the same numbers as a padded batch, and only where nothing else looks along a row."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from strategies import BlockExpansion, DownProjectionMoE, LoRA
from workbench.backbone import Backbone, Batch, unpadded
from workbench.backbone.batch import IGNORED
from workbench.backbone.loading import checkpoint_blocks
from workbench.testing.tiny import VARIANTS, tiny_backbone
from workbench.train.activation_cache import FrozenStates, constant_parts

LENGTHS = (5, 9, 2, 12)


@pytest.fixture(autouse=True)
def small_models_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpadded, "LEAST_WIDTH", 32)


def batch_of(lengths: tuple[int, ...] = LENGTHS) -> Batch:
    generator = torch.Generator().manual_seed(0)
    shape = len(lengths), max(lengths)
    real = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    tokens = torch.randint(5, 60, shape, generator=generator).where(real, 0)
    labels = tokens.where(real & (torch.arange(shape[1]) % 3 > 0), IGNORED)
    return Batch(tokens, real.long(), labels, torch.arange(shape[0]))


def loss_and_gradients(backbone: Backbone, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    backbone.zero_grad(set_to_none=True)
    torch.manual_seed(1)  # of dropout
    output = backbone(batch)
    output.loss.backward()
    grown = {name: weight.grad for name, weight in backbone.trainable().items() if weight.grad is not None}
    return output.token_nats.detach(), {name: gradient.clone() for name, gradient in grown.items()}


def passes_of(backbone: Backbone, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Loss and gradients end to end, and padded."""
    assert unpadded.lay_end_to_end(batch, backbone.decoder) is not None
    end_to_end = loss_and_gradients(backbone, batch)
    with monkeypatch.context() as patch:
        patch.setattr(unpadded, "LEAST_WIDTH", 10**6)
        return end_to_end, loss_and_gradients(backbone, batch)


def assert_equal(end_to_end: Any, padded: Any) -> None:
    (nats, gradients), (padded_nats, padded_gradients) = end_to_end, padded
    torch.testing.assert_close(nats, padded_nats, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == padded_gradients.keys() != set()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, padded_gradients[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("variant", ["gqa", "tied", "biased", "head_dim"])
def test_loss_and_gradients_are_those_of_a_padded_batch(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone(**VARIANTS[variant])
    assert_equal(*passes_of(backbone, batch_of(), monkeypatch))


@pytest.mark.parametrize("strategy", [LoRA(rank=2, dropout=0.0), BlockExpansion(groups=2), DownProjectionMoE()])
def test_so_are_those_of_adapters_new_blocks_and_mixtures(strategy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone()
    strategy.setup(backbone)
    assert_equal(*passes_of(backbone, batch_of(), monkeypatch))


def test_blocks_that_are_computed_again_in_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone()
    checkpoint_blocks(backbone.model)
    assert_equal(*passes_of(backbone, batch_of(), monkeypatch))


def test_cached_states_of_frozen_layers_lie_end_to_end_too(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, batch = tiny_backbone(), batch_of()
    backbone.model.requires_grad_(False)
    backbone.decoder.get_submodule("layers.3").requires_grad_(True)
    plain, _ = passes_of(backbone, batch, monkeypatch)
    with FrozenStates(backbone, constant_parts(backbone), [batch]).replaying(batch):
        assert unpadded.lay_end_to_end(batch, backbone.decoder) is not None
        assert_equal(loss_and_gradients(backbone, batch), plain)


def test_a_row_does_not_see_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, batch = tiny_backbone().eval(), batch_of()
    other = batch_of()
    other.input_ids[0, :5] += 1
    changed = backbone(other).token_nats != backbone(batch).token_nats
    assert bool(changed.any())
    assert set(backbone(batch).sample[changed].tolist()) == {0}


class Neighbours(nn.Module):
    """A feed-forward that looks along its row."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, states: Tensor) -> Tensor:
        return torch.as_tensor(self.inner(states)) + states.cumsum(1)


def _with_a_module_of_its_own(backbone: Backbone) -> None:
    layer: Any = backbone.decoder.get_submodule("layers.1")
    layer.mlp = Neighbours(layer.mlp)


def _with_a_hook(backbone: Backbone) -> None:
    backbone.decoder.get_submodule("layers.1").register_forward_hook(lambda *_: None)


def _with_another_forward(backbone: Backbone) -> None:
    layer = backbone.decoder.get_submodule("layers.1")
    layer.forward = lambda states, *_, **__: states.cumsum(1)  # type: ignore[method-assign]


def _with_eager_attention(backbone: Backbone) -> None:
    backbone.model.set_attn_implementation("eager")


class Doubled(nn.Module):
    """A parametrization: a weight twice as large."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def _with_a_parametrized_module_of_its_own(backbone: Backbone) -> None:
    layer: Any = backbone.decoder.get_submodule("layers.1")
    layer.mlp = Neighbours(layer.mlp)
    layer.mlp.scale = nn.Parameter(torch.ones(()))
    parametrize.register_parametrization(layer.mlp, "scale", Doubled())


def _with_a_layer_of_torch_that_attends(backbone: Backbone) -> None:
    layer: Any = backbone.decoder.get_submodule("layers.1")
    inner = nn.TransformerEncoderLayer(32, 2, 32, dropout=0.0, batch_first=True)
    inner.self_attn = CausalAttention()
    layer.mlp = nn.Sequential(layer.mlp, inner)


class CausalAttention(nn.MultiheadAttention):
    """Attends to what stands before, so that padding behind a row does not count."""

    def __init__(self) -> None:
        super().__init__(32, 2, batch_first=True)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Any:  # type: ignore[override]
        mask = nn.Transformer.generate_square_subsequent_mask(query.shape[1])
        return super().forward(query, key, value, attn_mask=mask, need_weights=False)


def _with_a_layer_that_attends_in_its_own_way(backbone: Backbone) -> None:
    decoder: Any = backbone.decoder
    config = copy.deepcopy(decoder.config)
    config._attn_implementation = "eager"
    layer = decoder.layers[1]
    layer.self_attn = type(layer.self_attn)(config, 1)
    layer.self_attn.config._attn_implementation = "sdpa"


@pytest.mark.parametrize(
    "change",
    [
        _with_a_module_of_its_own,
        _with_a_parametrized_module_of_its_own,
        _with_a_layer_of_torch_that_attends,
        _with_a_layer_that_attends_in_its_own_way,
        _with_a_hook,
        _with_another_forward,
        _with_eager_attention,
    ],
)
def test_what_may_look_along_a_row_gets_a_padded_batch(change: Any) -> None:
    backbone, batch = tiny_backbone(), batch_of()
    assert unpadded.lay_end_to_end(batch, backbone.decoder) is not None
    change(backbone)
    assert unpadded.lay_end_to_end(batch, backbone.decoder) is None
    alone = torch.cat([backbone(_row(batch, row)).token_nats for row in range(len(LENGTHS))])
    torch.testing.assert_close(backbone(batch).token_nats, alone, rtol=1e-4, atol=1e-5)


def test_hooks_on_gradients_and_on_all_modules_see_padded_batches() -> None:
    backbone, batch = tiny_backbone(), batch_of()
    with torch.nn.modules.module.register_module_forward_hook(lambda *_: None):
        assert unpadded.lay_end_to_end(batch, backbone.decoder) is None
    with backbone.decoder.get_submodule("layers.0.mlp").register_full_backward_hook(lambda *_: None):
        assert unpadded.lay_end_to_end(batch, backbone.decoder) is None
    assert unpadded.lay_end_to_end(batch, backbone.decoder) is not None


def _row(batch: Batch, row: int) -> Batch:
    parts = (tensor[row : row + 1, : LENGTHS[row]] for tensor in (batch.input_ids, batch.attention_mask, batch.labels))
    return Batch(*parts, batch.row[row : row + 1])


def test_a_sliding_window_counts_only_where_a_row_is_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone("mistral", sliding_window=8)
    assert unpadded.lay_end_to_end(batch_of(), backbone.decoder) is None
    short = batch_of((3, 8, 5))
    assert_equal(*passes_of(backbone, short, monkeypatch))


def test_a_batch_without_padding_stays_as_it_is() -> None:
    decoder = tiny_backbone().decoder
    assert unpadded.lay_end_to_end(batch_of((7, 7, 7)), decoder) is None
    assert unpadded.lay_end_to_end(batch_of((7,)), decoder) is None


def test_a_narrow_model_stays_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpadded, "LEAST_WIDTH", 33)
    assert unpadded.lay_end_to_end(batch_of(), tiny_backbone().decoder) is None


def test_nothing_of_it_is_saved(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    backbone.save(tmp_path / "model")
    saved = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    assert not [key for key in saved if "attn_implementation" in key]
    again = Backbone.load(tmp_path / "model")
    torch.testing.assert_close(again(batch_of()).token_nats, backbone(batch_of()).token_nats)
