"""What a forward keeps for the gradients: closed forms."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from strategies import BlockExpansion
from workbench.backbone import Backbone, batch
from workbench.backbone.loading import checkpoint_blocks
from workbench.testing.tiny import tiny_backbone


def kept(backbone: Backbone, rows: int, length: int, labelled: int = 4) -> int:
    """Bytes that a forward keeps beside the weights, each storage once.

    Args:
        backbone: The model.
        rows: Of the batch.
        length: Tokens of each row.
        labelled: The last of them, which are predicted.
    """
    row = {"input_ids": list(range(3, 3 + length)), "prompt_length": length - labelled, "row": 0}
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*backbone.parameters(), *backbone.buffers())}
    sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a node that kept its own output would never be freed

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = backbone(backbone.collate([row] * rows)).loss
    del loss  # until here it has kept the storages apart
    return sum(sizes.values())


def layer(length: int, checkpointed: bool = False) -> int:
    """Bytes that one more layer of the model keeps of two rows."""
    sizes = []
    for depth in (2, 3):
        backbone = tiny_backbone(num_hidden_layers=depth)
        if checkpointed:
            checkpoint_blocks(backbone.model)
        sizes.append(kept(backbone, 2, length))
    return sizes[1] - sizes[0]


def test_a_layer_keeps_what_is_linear_in_its_tokens() -> None:
    assert layer(64) == 2 * layer(32) > 0  # scores of time x time would make it more


def test_a_checkpointed_layer_keeps_its_input() -> None:
    assert layer(32, checkpointed=True) == 2 * 32 * 32 * 4  # rows x tokens x width x bytes


def test_rows_keep_alike() -> None:
    backbone = tiny_backbone()
    one, two, seven = (kept(backbone, rows, 40) for rows in (1, 2, 7))
    assert seven == one + 6 * (two - one)


def test_nothing_is_kept_below_what_trains() -> None:
    sizes = {}
    for depth in (2, 4):
        for place in ("bottom", "top"):
            backbone = tiny_backbone(num_hidden_layers=depth)
            BlockExpansion(groups=1, position=place).setup(backbone)  # type: ignore[arg-type]
            sizes[depth, place] = kept(backbone, 2, 32)
    assert sizes[2, "top"] == sizes[4, "top"]
    assert sizes[4, "bottom"] > sizes[2, "bottom"] > sizes[2, "top"]


def test_the_head_counts_at_labelled_positions_alone() -> None:
    backbone = tiny_backbone()
    few, many = (kept(backbone, 2, 64, labelled) for labelled in (4, 24))
    width, vocabulary = backbone.model.config.hidden_size, backbone.model.config.vocab_size
    tokens = 2 * (24 - 4)
    # the probabilities, the state that the head reads, and a few numbers
    assert many - few == pytest.approx(tokens * (vocabulary + width) * 4, rel=0.02)


def test_logits_that_are_made_in_parts_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone()
    vocabulary, labelled = backbone.model.config.vocab_size, 9 * 24
    whole = kept(backbone, 9, 64, 24)
    monkeypatch.setattr(batch, "MAX_LOGITS", labelled * vocabulary - 1)
    monkeypatch.setattr(batch, "CHUNK_LOGITS", vocabulary)
    assert whole - kept(backbone, 9, 64, 24) == pytest.approx(4 * labelled * vocabulary, rel=0.02)
