"""Reading and writing model folders tensor by tensor, against safetensors, transformers and the hub's own splitter."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import load_file, save_file
from torch import Tensor

from workbench.surgery.safetensors_io import (
    CHUNK,
    PlannedTensor,
    StoredTensor,
    copied,
    plain_folder,
    read_config,
    read_stored,
    write_model,
    zeros,
)
from workbench.testing.tiny import tiny_backbone

CONFIG = {"model_type": "llama", "num_hidden_layers": 1}


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def loaded(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    alike = one.keys() == other.keys() and all(one[name].dtype == other[name].dtype for name in one)
    return alike and all(one[name].shape == other[name].shape and bits(one[name]) == bits(other[name]) for name in one)


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """Of four dtypes and odd sizes, so that a careless writer misaligns them; one is longer than two chunks."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    return {
        "embed": random(3, 7, dtype=torch.bfloat16),
        "long": random(CHUNK // 2 + 3, dtype=torch.float32),
        "b.half": random(5, dtype=torch.float16),
        "a.double": random(3, 3, dtype=torch.float64),
        "scalar": random(dtype=torch.bfloat16),
        "empty": random(0, 4, dtype=torch.float32),
        "norm": random(11, dtype=torch.float32),
    }


@pytest.fixture
def source(tensors: dict[str, Tensor], tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    for name in ("tokenizer.json", "generation_config.json", "LICENSE.txt", "README.md", "training_args.bin"):
        (folder / name).write_text(name)
    return folder


def plan(source: Path) -> dict[str, PlannedTensor]:
    return {name: copied(stored) for name, stored in read_stored(source).items()}


def test_what_is_read_are_the_bytes_that_safetensors_reads(source: Path, tensors: dict[str, Tensor]) -> None:
    stored = read_stored(source)
    assert stored.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert stored[name].shape == tuple(tensor.shape)
        assert stored[name].size == tensor.numel() * tensor.element_size()
        assert b"".join(bytes(chunk) for chunk in stored[name].read()) == bits(tensor)


def test_a_tensor_passes_in_chunks(source: Path) -> None:
    sizes = [len(chunk) for chunk in read_stored(source)["long"].read()]
    assert sizes == [CHUNK, CHUNK, 12]
    assert [len(chunk) for chunk in zeros(read_stored(source)["long"]).read()] == sizes


@pytest.mark.parametrize("shard_bytes", [10**9, 200, 1])
def test_what_is_written_loads_with_safetensors(
    shard_bytes: int, source: Path, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    narrow_first = dict(reversed(plan(source).items()))
    write_model(tmp_path / "out", narrow_first, CONFIG, source, shard_bytes)
    assert same_bits(loaded(tmp_path / "out"), tensors)
    for stored in read_stored(tmp_path / "out").values():
        assert stored.start % {"F64": 8, "F32": 4}.get(stored.dtype, 2) == 0
    assert not (tmp_path / "out.partial").exists()


def test_zeros_are_zeros_without_a_sign(source: Path, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    write_model(tmp_path / "out", {name: zeros(stored) for name, stored in read_stored(source).items()}, CONFIG, source)
    assert same_bits(loaded(tmp_path / "out"), {name: torch.zeros_like(tensor) for name, tensor in tensors.items()})


@pytest.mark.parametrize("shard_bytes", [30_000, 60_000, 10**9])
def test_the_shards_are_those_of_the_hubs_own_splitter(shard_bytes: int, tmp_path: Path) -> None:
    state = tiny_backbone(vocab_size=1191).model.state_dict()
    state = {name: tensor for name, tensor in state.items() if tensor.nbytes <= shard_bytes}
    (tmp_path / "source").mkdir()
    save_file(state, tmp_path / "source" / "model.safetensors")
    stored = read_stored(tmp_path / "source")
    ordered = {name: copied(stored[name]) for name in state}
    write_model(tmp_path / "out", ordered, CONFIG, tmp_path / "source", shard_bytes)
    expected = split_torch_state_dict_into_shards(
        state, filename_pattern="model{suffix}.safetensors", max_shard_size=shard_bytes
    )
    files = {file.name: set(load_file(file)) for file in (tmp_path / "out").glob("*.safetensors")}
    assert files == {name: set(names) for name, names in expected.filename_to_tensors.items()}
    index = tmp_path / "out" / "model.safetensors.index.json"
    assert index.is_file() == expected.is_sharded
    if expected.is_sharded:
        content = json.loads(index.read_text())
        assert content["weight_map"] == expected.tensor_to_filename
        assert content["metadata"]["total_size"] == expected.metadata["total_size"]
        assert content["metadata"]["total_parameters"] == sum(tensor.numel() for tensor in state.values())


def test_a_folder_of_many_shards_is_read_as_transformers_wrote_it(tmp_path: Path) -> None:
    model = tiny_backbone().model
    model.save_pretrained(tmp_path / "many", max_shard_size="30KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    stored = read_stored(tmp_path / "many")
    assert stored.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert b"".join(bytes(chunk) for chunk in stored[name].read()) == bits(tensor)


def test_what_goes_along(source: Path, tmp_path: Path) -> None:
    """Not the model card, whose scores are another model's, and no file that could hold code."""
    write_model(tmp_path / "out", plan(source), CONFIG, source)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"model.safetensors", "config.json", "tokenizer.json", "generation_config.json", "LICENSE.txt"}
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "tokenizer.json"
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == CONFIG


def test_a_folder_that_is_there_is_not_touched(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError) as caught:
        write_model(tmp_path / "out", plan(source), CONFIG, source)
    assert str(caught.value) == f"{tmp_path}/out is there. Choose another name, or delete it."
    assert list((tmp_path / "out").iterdir()) == []


def test_what_a_stopped_one_left_is_replaced(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "left").touch()
    write_model(tmp_path / "out", plan(source), CONFIG, source)
    assert not (tmp_path / "out" / "left").exists()
    assert not (tmp_path / "out.partial").exists()


def test_a_disk_that_is_too_small_is_told_before_the_first_byte(source: Path, tmp_path: Path) -> None:
    huge = {"huge": zeros(StoredTensor(source / "model.safetensors", 0, 10**18, "F32", (10**18 // 4,)))}
    with pytest.raises(ValueError, match=r"out needs 1000000000\.0 GB, but its disk has .* GB left"):
        write_model(tmp_path / "out", huge, CONFIG, source)
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


@contextmanager
def small_files() -> Iterator[None]:
    """The system refuses to let a file grow above a megabyte, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_leaves_nothing(source: Path, tmp_path: Path) -> None:
    with small_files(), pytest.raises(OSError, match="File too large"):
        write_model(tmp_path / "out", plan(source), CONFIG, source)
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_an_interrupt_leaves_nothing(source: Path, tmp_path: Path) -> None:
    def interrupted() -> Iterator[bytes]:
        assert (tmp_path / "out.partial" / "model.safetensors").is_file()
        os.kill(os.getpid(), signal.SIGINT)
        yield b""

    planned = PlannedTensor(read_stored(source)["norm"], interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_model(tmp_path / "out", {"norm": planned}, CONFIG, source)
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_a_source_that_shrinks_leaves_nothing(source: Path, tmp_path: Path) -> None:
    planned = plan(source)
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(OSError, match="has changed while it was read"):
        write_model(tmp_path / "out", planned, CONFIG, source)
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_of_two_sets_of_files_the_one_that_transformers_loads(source: Path, tensors: dict[str, Tensor]) -> None:
    save_file({"other": torch.ones(2)}, source / "other.safetensors")
    index = {"metadata": {}, "weight_map": {"other": "other.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read_stored(source).keys() == tensors.keys()
    (source / "model.safetensors").unlink()
    assert read_stored(source).keys() == {"other"}


def test_folders_that_cannot_be_read(source: Path) -> None:
    save_file({"q": torch.ones(2, dtype=torch.int8)}, source / "model.safetensors")
    with pytest.raises(ValueError) as caught:
        read_stored(source)
    assert str(caught.value) == (
        f"{source}: q is stored as I8; expected F64, F32, F16, BF16. Take the model as it was before it was quantised."
    )
    (source / "model.safetensors").rename(source / "one.safetensors")
    with pytest.raises(ValueError, match=r"there is neither model\.safetensors nor model\.safetensors\.index\.json"):
        read_stored(source)
    index = source / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"q": "one.safetensors", "absent": "one.safetensors"}}))
    with pytest.raises(ValueError, match=r"one\.safetensors has no absent, although the index says so"):
        read_stored(source)


def test_a_plain_folder_is_a_whole_one_without_an_adapter(model_folder: Path, tmp_path: Path) -> None:
    assert plain_folder(model_folder) == model_folder
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds a peft adapter .* Fold it into its model"):
        plain_folder(tmp_path)
    with pytest.raises(ValueError) as caught:
        plain_folder("some/model")
    assert str(caught.value).endswith("is fetched first: hf download some/model --local-dir FOLDER.")
    with pytest.raises(ValueError, match="there is no such folder"):
        plain_folder(tmp_path / "absent")


def test_a_config_as_it_is_written_and_as_it_is_understood(model_folder: Path, tmp_path: Path) -> None:
    written, understood = read_config(model_folder)
    assert written == json.loads((model_folder / "config.json").read_text())
    assert understood.num_hidden_layers == 2
    (tmp_path / "config.json").write_text(json.dumps(written | {"hidden_size": "many"}))
    with pytest.raises(ValueError, match=r"config\.json cannot be loaded: "):
        read_config(tmp_path)
