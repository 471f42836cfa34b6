"""Model folders tensor by tensor, read from the headers alone: what is stored, and where it lies on the disk.

A safetensors file is eight bytes with the size of its header, the header as JSON, and the bytes of the tensors
without a gap. Bytes can be copied under a new name whatever dtype they hold, so that a model of any size passes
through a few megabytes of memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from workbench import weights
from workbench.model_folder import COMPOSITION, WHOLE, check_folder, locate

CHUNK = 1 << 22
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


class Stored(NamedTuple):
    """A tensor in a file.

    Attributes:
        file: The safetensors file.
        start: Its first byte, counted from the file's beginning.
        size: In bytes.
        dtype: As the header calls it, such as "BF16".
        shape: Of the tensor.
    """

    file: Path
    start: int
    size: int
    dtype: str
    shape: tuple[int, ...]

    def read(self) -> Iterator[memoryview]:
        """Its bytes, `CHUNK` at a time; a chunk holds until the next is asked for.

        Raises:
            OSError: The file has become shorter.
        """
        buffer = memoryview(bytearray(min(CHUNK, self.size)))
        with self.file.open("rb") as file:
            file.seek(self.start)
            for start in range(0, self.size, CHUNK):
                wanted = min(CHUNK, self.size - start)
                if file.readinto(buffer[:wanted]) != wanted:
                    raise OSError(f"{self.file} has changed while it was read. Leave it alone until this ends")
                yield buffer[:wanted]


def plain_folder(source: str | Path) -> Path:
    """The folder of a whole LLaMA-family model, on this disk and without an adapter.

    Raises:
        ValueError: It is not there or not whole, it is on the hub, or an adapter lies in it.
    """
    folder = locate(source)
    if isinstance(folder, str):
        raise ValueError(
            f"{folder}: there is no such folder. A model on the hub is fetched first: "
            f"hf download {folder} --local-dir FOLDER."
        )
    if problems := check_folder(folder):
        raise ValueError("\n".join(problems))
    if json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"] == COMPOSITION:
        raise ValueError(f"{folder} is a composition of several models. Give the folder of a single one.")
    return folder


def read_config(folder: Path) -> tuple[dict[str, Any], Any]:
    """A folder's config, as its file has it and as transformers understands it, with every default filled in.

    Raises:
        ValueError: transformers refuses it.
    """
    try:
        understood = weights.read_config(folder)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    return json.loads((folder / "config.json").read_text(encoding="utf-8")), understood


def read_stored(folder: Path) -> dict[str, Stored]:
    """Every tensor of a folder by its name, from the headers alone; of two sets of files the one transformers loads.

    Raises:
        ValueError: There are no such files, the index names a tensor that is not there, or the dtype is none
            of a plain model, as in a quantised one.
    """
    if (folder / SINGLE).is_file():
        stored = _read_header(folder / SINGLE)
    elif (folder / INDEX).is_file():
        names = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        shards = {shard: _read_header(folder / shard) for shard in sorted(set(names.values()))}
        if absent := sorted(name for name, shard in names.items() if name not in shards[shard]):
            raise ValueError(
                f"{folder}: {names[absent[0]]} has no {absent[0]}, although the index says so. Copy it again."
            )
        stored = {name: shards[shard][name] for name, shard in names.items()}
    else:
        raise ValueError(f"{folder}: there is neither {SINGLE} nor {INDEX}. Rename its weights so.")
    if strange := sorted(name for name, tensor in stored.items() if tensor.dtype not in ITEM_BYTES):
        raise ValueError(
            f"{folder}: {strange[0]} is stored as {stored[strange[0]].dtype}; expected {', '.join(ITEM_BYTES)}. {WHOLE}"
        )
    return stored


def _read_header(file: Path) -> dict[str, Stored]:
    with file.open("rb") as content:
        size = int.from_bytes(content.read(8), "little")
        header = json.loads(content.read(size))
    stored = {}
    for name, tensor in header.items():
        if name != "__metadata__":
            start, end = tensor["data_offsets"]
            stored[name] = Stored(file, 8 + size + start, end - start, tensor["dtype"], tuple(tensor["shape"]))
    return stored
