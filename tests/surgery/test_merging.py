"""Merged models against formulas in numpy and torch; what cannot be merged is told by name, all of it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from workbench.backbone.weights import slerp_shares
from workbench.surgery import merge
from workbench.surgery.safetensors_io import CHUNK
from workbench.testing.tiny import tiny_backbone

State = dict[str, Tensor]


def saved(folder: Path, seed: int, dtype: torch.dtype = torch.float32, **changes: Any) -> State:
    """A random model's folder, and its weights."""
    backbone = tiny_backbone(seed=seed, **{"num_hidden_layers": 2, **changes})
    backbone.model.to(dtype)
    backbone.save(folder)
    return load_file(folder / "model.safetensors")


def merged(folder: Path, **arguments: Any) -> State:
    merge(folder / "a", folder / "b", folder / "out", **arguments)
    state = load_file(folder / "out" / "model.safetensors")
    shutil.rmtree(folder / "out")
    return state


def on_the_arc(one: Tensor, other: Tensor, weight: float) -> np.ndarray:
    """SLERP with the angle from the part of B that is across A, by arctangent, where the other takes an arc cosine."""
    a, b = (tensor.double().flatten().numpy() for tensor in (one, other))
    across = b - (b @ a) / (a @ a) * a
    omega = math.atan2(np.linalg.norm(across), (b @ a) / np.linalg.norm(a))
    result = math.sin((1 - weight) * omega) * a + math.sin(weight * omega) * b
    return (result / math.sin(omega)).reshape(one.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("weight", [0, 0.25, 0.5, 1])
def test_an_average_is_taken_in_float32_and_rounded_once(weight: float, dtype: torch.dtype, tmp_path: Path) -> None:
    a, b = saved(tmp_path / "a", 0, dtype), saved(tmp_path / "b", 1, dtype)
    made = merged(tmp_path, weight=weight)
    assert made.keys() == a.keys()
    for name in a:
        expected = ((1 - weight) * a[name].float() + weight * b[name].float()).to(dtype)
        assert made[name].dtype == dtype
        assert torch.equal(made[name], expected), name
    if weight in (0, 1):
        assert all(torch.equal(made[name], (a, b)[int(weight)][name]) for name in a)
    elif weight == 0.25 and dtype != torch.float32:  # in half precision each product would be rounded as well
        name = "model.layers.0.mlp.up_proj.weight"
        assert not torch.equal(made[name], 0.75 * a[name] + 0.25 * b[name])


@pytest.mark.parametrize("weight", [0.0, 0.4, 0.5, 1.0])
def test_slerp_is_a_turn_by_a_share_of_the_angle(weight: float, tmp_path: Path) -> None:
    a, b = saved(tmp_path / "a", 0), saved(tmp_path / "b", 1)
    made = merged(tmp_path, method="slerp", weight=weight)
    moved = 0
    for name in a:
        if torch.equal(a[name], b[name]):  # norm scales, which begin at one: no arc between them
            assert torch.allclose(made[name], a[name], rtol=1e-6, atol=0), name
            continue
        moved += 1
        np.testing.assert_allclose(made[name].numpy(), on_the_arc(a[name], b[name], weight), rtol=1e-5, atol=1e-6)
    assert moved == 2 + 2 * 7


def test_slerp_by_hand() -> None:
    """Right angle, a third of the way: 30° from A; on a unit circle the average would fall inside it."""
    first, second = slerp_shares(0.0, 1.0, 1.0, 1 / 3)
    assert first == pytest.approx(math.cos(math.pi / 6), abs=1e-15)
    assert second == pytest.approx(0.5, abs=1e-15)
    first, second = slerp_shares(0.0, 1.0, 1.0, 0.5)
    assert math.hypot(first, second) == pytest.approx(1.0, abs=1e-15)
    first, second = slerp_shares(8 * math.cos(2.0), 2.0, 4.0, 0.25)  # lengths do not change the shares
    assert first == pytest.approx(math.sin(1.5) / math.sin(2.0), rel=1e-12)
    assert second == pytest.approx(math.sin(0.5) / math.sin(2.0), rel=1e-12)


@pytest.mark.parametrize(
    ("dot", "first", "second"),
    [(2.0, 1.0, 2.0), (-2.0, 1.0, 2.0), (0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1 + 1e-15, 1.0, 1.0)],
    ids=["parallel", "opposite", "zero", "zero second", "rounded above one"],
)
def test_without_an_arc_slerp_is_the_average(dot: float, first: float, second: float) -> None:
    assert slerp_shares(dot, first, second, 0.3) == (0.7, 0.3)


def test_two_tuned_models_are_close_and_slerp_is_then_near_the_average_but_not_it() -> None:
    """At 1° the two still differ, by 1 - cos(0.5°) = 4e-5: the fallback is for far smaller angles."""
    first, second = slerp_shares(math.cos(math.radians(1)), 1.0, 1.0, 0.5)
    assert first == pytest.approx(0.5 / math.cos(math.radians(0.5)), rel=1e-9)
    assert first == second != 0.5


def test_a_tensor_longer_than_a_chunk_has_one_angle(tmp_path: Path) -> None:
    a, b = (saved(tmp_path / name, seed, vocab_size=40_000) for seed, name in enumerate("ab"))
    name = "model.embed_tokens.weight"
    assert a[name].nbytes > CHUNK
    made = merged(tmp_path, method="slerp", weight=0.3)
    np.testing.assert_allclose(made[name].numpy(), on_the_arc(a[name], b[name], 0.3), rtol=1e-5, atol=1e-6)


def test_a_merged_model_answers_as_one_that_was_averaged_in_memory(tmp_path: Path) -> None:
    saved(tmp_path / "a", 0)
    saved(tmp_path / "b", 1)
    (tmp_path / "a" / "generation_config.json").write_text('{"temperature": 0.5, "do_sample": true}')
    assert merge(tmp_path / "a", tmp_path / "b", tmp_path / "out", weight=0.6, shard_bytes=60_000) == 21
    expected, other = tiny_backbone(seed=0, num_hidden_layers=2).model, tiny_backbone(seed=1, num_hidden_layers=2).model
    with torch.no_grad():
        for parameter, second in zip(expected.parameters(), other.parameters(), strict=True):
            parameter.copy_(0.4 * parameter + 0.6 * second)
    tokens = torch.tensor([[1, 40, 7, 300, 12, 9]])
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(made(tokens).logits, expected.eval()(tokens).logits)
    assert made.generation_config.temperature == 0.5
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    sources = {"first": str(tmp_path / "a"), "second": str(tmp_path / "b")}
    assert config["merged"] == {**sources, "method": "average", "weight": 0.6}
    merge(tmp_path / "out", tmp_path / "b", tmp_path / "again")  # how one was made does not keep it from merging


@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan])
def test_a_share_out_of_range(weight: float, model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        merge(model_folder, model_folder, tmp_path / "out", weight=weight)
    assert str(caught.value) == (
        f"weight={weight} is out of range; it has to be in [0, 1], where 1 gives the second model."
    )


def test_another_method(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        merge(model_folder, model_folder, tmp_path / "out", method="ties")  # type: ignore[arg-type]
    assert str(caught.value) == "method='ties': choose 'average' or 'slerp'."


def refused(folder: Path) -> list[str]:
    with pytest.raises(ValueError) as caught:
        merge(folder / "a", folder / "b", folder / "out")
    assert not (folder / "out").exists()
    heading, *problems = str(caught.value).splitlines()
    assert heading == f"{folder}/a and {folder}/b cannot be merged. Give two that agree in this:"
    return problems


def test_shapes_are_told_by_name_together_with_the_config(tmp_path: Path) -> None:
    saved(tmp_path / "a", 0)
    saved(tmp_path / "b", 1, intermediate_size=48)
    assert refused(tmp_path) == [
        "config.json: intermediate_size is 64 in the first, 48 in the second.",
        "model.layers.0.mlp.down_proj.weight and 1 like it: shape [32, 64] in the first, [32, 48] in the second.",
        "model.layers.0.mlp.gate_proj.weight and 1 like it: shape [64, 32] in the first, [48, 32] in the second.",
        "model.layers.0.mlp.up_proj.weight and 1 like it: shape [64, 32] in the first, [48, 32] in the second.",
    ]


def test_dtypes_and_a_tied_head_are_told_by_name(tmp_path: Path) -> None:
    saved(tmp_path / "a", 0, torch.bfloat16)
    state = saved(tmp_path / "b", 1, torch.bfloat16, tie_word_embeddings=True)
    norm = "model.norm.weight"
    save_file(state | {norm: state[norm].float()}, tmp_path / "b" / "model.safetensors", metadata={"format": "pt"})
    assert sorted(refused(tmp_path)) == [
        "config.json: tie_word_embeddings is False in the first, True in the second.",
        "lm_head.weight: only in the first.",
        "model.norm.weight: BF16 in the first, F32 in the second.",
    ]


def test_a_tensor_that_only_the_second_has(tmp_path: Path) -> None:
    saved(tmp_path / "a", 0)
    saved(tmp_path / "b", 1, num_hidden_layers=3)
    problems = refused(tmp_path)
    assert problems[0] == "config.json: num_hidden_layers is 2 in the first, 3 in the second."
    assert "model.layers.2.self_attn.q_proj.weight: only in the second." in problems
    assert len(problems) == 1 + 9


def test_vocabularies_are_told_by_a_token(tmp_path: Path) -> None:
    saved(tmp_path / "a", 0)
    saved(tmp_path / "b", 1)
    file = tmp_path / "b" / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    (one, first), (other, second) = sorted(vocabulary.items())[700:702]
    vocabulary[one], vocabulary[other] = second, first
    file.write_text(json.dumps(content))
    problem = f"vocabulary: 2 tokens differ, the first {one!r}: {first} in the first, {second} in the second."
    assert refused(tmp_path) == [problem]


def test_models_that_were_grown_in_different_ways_share_no_layers(tmp_path: Path) -> None:
    for name, plan in (("a", [[0, False], [0, True]]), ("b", [[0, False], [1, False]])):
        saved(tmp_path / name, 0)
        file = tmp_path / name / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"layer_plan": plan}))
    assert refused(tmp_path) == [
        "config.json: layer_plan is [[0, False], [0, True]] in the first, [[0, False], [1, False]] in the second."
    ]


def test_a_folder_that_is_there_or_holds_an_adapter(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is there\. Choose another name"):
        merge(model_folder, model_folder, tmp_path)
    adapter = Path(shutil.copytree(model_folder, tmp_path / "adapter"))
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="adapter holds a peft adapter"):
        merge(model_folder, adapter, tmp_path / "out")


def test_a_tokenizer_that_is_broken(model_folder: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(model_folder, tmp_path / "broken"))
    (broken / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="broken: its tokenizer cannot be loaded: "):
        merge(broken, model_folder, tmp_path / "out")
