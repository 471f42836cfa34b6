"""The surgery on a folder against the surgery in memory, bit for bit; and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from workbench.backbone import Backbone
from workbench.depth import PlannedLayer, restack
from workbench.surgery import grow, restack_folder
from workbench.testing.tiny import tiny_backbone

EXPANSION = [PlannedLayer(source, identity) for source, identity in ((0, 0), (0, 1), (1, 0), (2, 0), (3, 0), (3, 1))]
UPSCALING = [PlannedLayer(source) for source in (0, 1, 2, 1, 2, 3)]
SLIDING = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"layer_types": SLIDING, "sliding_window": 4, "use_sliding_window": True}),
}


def saved(folder: Path, variant: str, dtype: torch.dtype = torch.float32) -> Path:
    family, changes = VARIANTS[variant]
    backbone = tiny_backbone(family, **changes)
    backbone.model.to(dtype)
    backbone.save(folder)
    return folder


def bits(folder: Path) -> dict[str, tuple[torch.dtype, torch.Size, bytes]]:
    """Everything that safetensors finds in a folder, the sign of zeros too."""
    tensors = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    return {
        name: (tensor.dtype, tensor.shape, tensor.view(torch.uint8).numpy().tobytes())
        for name, tensor in tensors.items()
    }


def described(folder: Path) -> dict[str, Any]:
    return {key: value for key, value in AutoConfig.from_pretrained(folder).to_dict().items() if key[0] != "_"}


def in_memory(source: Path, plan: list[PlannedLayer], out: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    restack(model, plan)
    model.save_pretrained(out)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("plan", [EXPANSION, UPSCALING], ids=["expansion", "upscaling"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_folder_is_bit_for_bit_what_memory_gives(
    variant: str, plan: list[PlannedLayer], dtype: torch.dtype, tmp_path: Path
) -> None:
    source = saved(tmp_path / "source", variant, dtype)
    expected = in_memory(source, plan, tmp_path / "expected")
    made = restack_folder(source, plan, tmp_path / "out")
    assert bits(tmp_path / "out") == bits(expected)
    assert described(tmp_path / "out") == described(expected)
    weights = load_file(expected / "model.safetensors").values()
    counted = sum(tensor.numel() for tensor in weights), sum(tensor.nbytes for tensor in weights)
    assert made == (tmp_path / "out", 4, 6, sum(layer.identity for layer in plan), *counted, False)


def test_many_shards_in_and_out_are_the_same_model(tmp_path: Path) -> None:
    source = saved(tmp_path / "source", "llama")
    tiny_backbone().model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, tmp_path / "many" / name)
    restack_folder(tmp_path / "many", EXPANSION, tmp_path / "out", shard_bytes=50_000)
    restack_folder(source, EXPANSION, tmp_path / "single")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3
    assert bits(tmp_path / "out") == bits(tmp_path / "single")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    base = tiny_backbone().model.eval()
    tokens = torch.tensor([[1, 40, 7, 300, 12, 9]])
    assert torch.equal(plain(tokens).logits, base(tokens).logits)
    made = Backbone.load(tmp_path / "out")
    assert made.model.config.layer_plan == [[0, False], [0, True], [1, False], [2, False], [3, False], [3, True]]
    assert made.generate(["Task 0: a"], 8) == tiny_backbone().generate(["Task 0: a"], 8)


def test_a_second_surgery_is_one_of_both(tmp_path: Path) -> None:
    """In memory and on the disk, the record of layers counts from the layers that there were at first."""
    source = saved(tmp_path / "source", "qwen3")
    restack_folder(source, EXPANSION, tmp_path / "once")
    again = [PlannedLayer(source) for source in (0, 1, 2, 3, 4, 5, 4, 5)]
    expected = in_memory(tmp_path / "once", again, tmp_path / "expected")
    restack_folder(tmp_path / "once", again, tmp_path / "twice")
    assert bits(tmp_path / "twice") == bits(expected)
    assert described(tmp_path / "twice") == described(expected)
    plan = json.loads((tmp_path / "twice" / "config.json").read_text())["layer_plan"]
    assert plan[4:] == [[3, False], [3, True], [3, False], [3, True]]


def test_a_sliding_pattern_that_only_the_family_knows_moves_with_its_layers(tmp_path: Path) -> None:
    """A Qwen2 folder may hold `max_window_layers` alone; then transformers derives the types from the depth."""
    source = saved(tmp_path / "source", "qwen2")
    config = json.loads((source / "config.json").read_text())
    del config["layer_types"]
    sliding = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}
    (source / "config.json").write_text(json.dumps(config | sliding))
    restack_folder(source, UPSCALING, tmp_path / "out")
    types = ["full_attention", "full_attention", "sliding_attention", "sliding_attention"]
    assert described(source)["layer_types"] == types
    assert described(tmp_path / "out")["layer_types"] == [types[layer.source] for layer in UPSCALING]


def drop(folder: Path, name: str) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({key: value for key, value in weights.items() if key != name}, folder / "model.safetensors")


def test_weights_that_do_not_make_whole_layers(tmp_path: Path) -> None:
    source = saved(tmp_path / "source", "llama")
    drop(source, "model.layers.2.mlp.up_proj.weight")
    with pytest.raises(ValueError) as caught:
        restack_folder(source, EXPANSION, tmp_path / "out")
    assert (
        str(caught.value)
        == f"{source}: model.layers.2.mlp.up_proj.weight is missing; other layers have it. Copy it again."
    )
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ValueError) as caught:
        restack_folder(source, UPSCALING[:2], tmp_path / "out")
    assert str(caught.value) == f"{source}: config.json says 3 layers, but there are tensors of 4. Copy it again."
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ([], "The layer plan is empty: a model needs at least one layer."),
        (
            [PlannedLayer(0), PlannedLayer(2)],
            "The layer plan names layer 2, but the model has 0 to 1. Choose among these.",
        ),
        ([PlannedLayer(-1)], "The layer plan names layer -1, but the model has 0 to 1. Choose among these."),
    ],
)
def test_a_plan_that_cannot_be(plan: list[PlannedLayer], message: str, model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        restack_folder(model_folder, plan, tmp_path / "out")
    assert str(caught.value) == message
    assert not (tmp_path / "out").exists()


def doubling(**attributes: object) -> SimpleNamespace:
    """A component that stacks a model on itself."""
    return SimpleNamespace(
        plan=lambda depth: [PlannedLayer(index) for index in (*range(depth), *range(depth))], **attributes
    )


def test_a_component_says_how_a_folder_grows_and_whether_again(model_folder: Path, tmp_path: Path) -> None:
    made = grow(model_folder, tmp_path / "once", doubling())
    assert (made.before, made.after, made.identities) == (2, 4, 0)
    with pytest.raises(ValueError, match=r"The model was grown before: its 4 layers come from 2, .* again=true"):
        grow(tmp_path / "once", tmp_path / "twice", doubling())
    assert not (tmp_path / "twice").exists()
    assert grow(tmp_path / "once", tmp_path / "twice", doubling(again=True)).after == 8
    plan = json.loads((tmp_path / "twice" / "config.json").read_text())["layer_plan"]
    assert plan == [[0, False], [1, False]] * 4


def test_a_component_without_a_plan(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        grow(model_folder, tmp_path / "out", SimpleNamespace())
    assert str(caught.value) == (
        "SimpleNamespace has no plan(depth), so there is no surgery to make. "
        "Give a strategy that adds layers, such as strategies.BlockExpansion."
    )


def test_adapters_stay_behind(model_folder: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(model_folder, tmp_path / "source"))
    (source / "adapters").mkdir()
    assert grow(source, tmp_path / "out", doubling()).adapters
    assert not (tmp_path / "out" / "adapters").exists()
    (source / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a peft adapter"):
        grow(source, tmp_path / "other", doubling())
