"""How little memory the surgery on a folder takes, at the size of a real model; slow, so left out by default."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.studies import ROOT
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from workbench.model_folder import SHIPPED

MEASURED = """
import json, sys, threading, time
from pathlib import Path
import strategies
from workbench.surgery import grow
from workbench.model_folder import SHIPPED
from workbench.surgery.safetensors_io import read_config

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])

def sample():
    global peak
    while not done.wait(0.005):
        peak = max(peak, anonymous())

source, out, name, arguments = sys.argv[1:]
component = getattr(strategies, name)(**json.loads(arguments))
read_config(SHIPPED["mini"])  # what transformers imports for the first config is no part of the work
before = peak = anonymous()
done = threading.Event()
thread = threading.Thread(target=sample)
thread.start()
started = time.monotonic()
made = grow(source, out, component)
seconds = time.monotonic() - started
done.set()
thread.join()
print(json.dumps({"peak": peak - before, "seconds": seconds, "after": made.after, "size": made.size}))
"""


def write_llama_7b(folder: Path, divisor: int) -> int:
    """A folder shaped like LLaMA-2-7B, its widths divided, of random bits; a shard a layer.

    Returns:
        The bytes of its largest layer or embedding.
    """
    width, inner, vocabulary = 4096 // divisor, 11008 // divisor, 32000
    shapes = {f"self_attn.{name}_proj": (width, width) for name in "qkvo"}
    shapes |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
    shapes |= {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
    ends = {"model.embed_tokens": (vocabulary, width), "lm_head": (vocabulary, width), "model.norm": (width,)}
    generator = torch.Generator().manual_seed(0)
    groups = [ends] + [{f"model.layers.{i}.{name}": shape for name, shape in shapes.items()} for i in range(32)]
    folder.mkdir()
    places = {}
    for index, group in enumerate(groups):
        shard = {
            f"{name}.weight": torch.randint(-(2**15), 2**15, shape, dtype=torch.int16, generator=generator).view(
                torch.bfloat16
            )
            for name, shape in group.items()
        }
        save_file(shard, folder / f"model-{index + 1:05d}-of-00033.safetensors", metadata={"format": "pt"})
        places |= dict.fromkeys(shard, f"model-{index + 1:05d}-of-00033.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    sizes = {"hidden_size": width, "intermediate_size": inner, "vocab_size": vocabulary, "num_hidden_layers": 32}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 32, "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": "bfloat16", **sizes, **heads}))
    shutil.copy(SHIPPED["mini"] / "tokenizer.json", folder)
    layer = 2 * sum(torch.Size(shape).numel() for shape in shapes.values())
    return max(layer, 2 * vocabulary * width)


def tensor_of(folder: Path, name: str) -> Tensor:
    """A tensor's bits, found by the index where there is one."""
    index, file = folder / "model.safetensors.index.json", "model.safetensors"
    if index.is_file():
        file = json.loads(index.read_text())["weight_map"][name]
    with safe_open(folder / file, framework="pt") as content:
        return content.get_tensor(name).view(torch.int16)


@pytest.fixture
def passing(tmp_path: Path) -> Iterator[Path]:
    """A folder that is not kept: pytest leaves those of the last three sessions."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.slow
def test_seven_billion_weights_pass_through_a_little_memory(passing: Path) -> None:
    """At LLaMA-2-7B's own widths with WIDTH_DIVISOR=1, which takes 34 GB of disk; else at a quarter of them."""
    divisor = int(os.environ.get("WIDTH_DIVISOR", "4"))
    source, out = passing / "source", passing / "out"
    largest = write_llama_7b(source, divisor)
    twelve = [index for start in range(0, 32, 4) for index in (*range(start, start + 4), start + 3)]
    cases = {
        "BlockExpansion": ({"groups": 8}, twelve, range(4, 40, 5)),
        "DepthUpScaling": ({"dropped": 8}, [*range(24), *range(8, 32)], ()),
    }
    for name, (arguments, layers, identities) in cases.items():
        command = [sys.executable, "-c", MEASURED, str(source), str(out), name, json.dumps(arguments)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        measured = json.loads(done.stdout)
        shards = [file.stat().st_size for file in out.glob("*.safetensors")]
        print(f"\n{name}: {measured}, {len(shards)} shards, the largest {max(shards)}, layer or embedding {largest}")
        assert measured["after"] == len(layers)
        assert measured["peak"] <= 1.3 * max(*shards, largest)
        assert measured["peak"] <= 40e6
        for index in (0, 4, 23, 24, len(layers) - 1):
            for inside in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj", "input_layernorm"):
                made = tensor_of(out, f"model.layers.{index}.{inside}.weight")
                expected = tensor_of(source, f"model.layers.{layers[index]}.{inside}.weight")
                if index in identities and inside in ("self_attn.o_proj", "mlp.down_proj"):
                    expected = torch.zeros_like(expected)
                assert torch.equal(made, expected), (name, index, inside)
        for end in ("model.embed_tokens", "lm_head", "model.norm"):
            assert torch.equal(tensor_of(out, f"{end}.weight"), tensor_of(source, f"{end}.weight"))
        shutil.rmtree(out)
