"""Read and write the weights of model folders tensor by tensor, without building a model."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from workbench.backbone import loading
from workbench.model_folder import COMPOSITION, ORIGIN, WHOLE, check_folder, is_gguf, locate
from workbench.runtime.files import sync_folder, sync_tree

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Supported dtypes and their sizes in bytes."""
CHUNK = 1 << 22
"""Bytes that are read or written at a time."""
SHARD_BYTES = 5_000_000_000
"""Default maximum size of a weights file in bytes."""
COPIED = (
    *("tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*"),
    *("generation_config.json", ORIGIN, "LICENSE*", "NOTICE*"),
)
"""Files that are copied from the source folder."""


class StoredTensor(NamedTuple):
    """A tensor in a safetensors file.

    Attributes:
        file: The file.
        start: Offset of its first byte in the file.
        size: Size in bytes.
        dtype: Name of the dtype in the file's header, such as "BF16".
        shape: Shape of the tensor.
    """

    file: Path
    start: int
    size: int
    dtype: str
    shape: tuple[int, ...]

    def read(self) -> Iterator[memoryview]:
        """Yield its bytes in chunks of at most `CHUNK`; a chunk is valid until the next one is requested.

        Raises:
            OSError: The file was truncated in the meantime.
        """
        buffer = memoryview(bytearray(min(CHUNK, self.size)))
        with self.file.open("rb") as file:
            file.seek(self.start)
            for start in range(0, self.size, CHUNK):
                wanted = min(CHUNK, self.size - start)
                if file.readinto(buffer[:wanted]) != wanted:
                    raise OSError(f"{self.file} has changed while it was read. Leave it alone until this ends")
                yield buffer[:wanted]


class PlannedTensor(NamedTuple):
    """A tensor to write.

    Attributes:
        like: A stored tensor with the same dtype, shape and size.
        read: Function that yields its bytes in chunks.
    """

    like: StoredTensor
    read: Callable[[], Iterator[bytes | memoryview]]


def copied(stored: StoredTensor) -> PlannedTensor:
    """Return a tensor with the same bytes."""
    return PlannedTensor(stored, stored.read)


def zeros(stored: StoredTensor) -> PlannedTensor:
    """Return a tensor of zero bytes, which are +0.0 in each floating-point dtype."""

    def read() -> Iterator[bytes]:
        for start in range(0, stored.size, CHUNK):
            yield bytes(min(CHUNK, stored.size - start))

    return PlannedTensor(stored, read)


def plain_folder(source: str | Path) -> Path:
    """Return the local folder of a complete model without an adapter.

    Args:
        source: A folder, or the name of a shipped or fetched model.

    Raises:
        ValueError: The folder does not exist or is incomplete, `source` is a hub id, or the folder contains an
            adapter or a composition.
    """
    folder = locate(source)
    if isinstance(folder, str):
        raise ValueError(
            f"{folder}: there is no such folder. A model on the hub is fetched first: "
            f"hf download {folder} --local-dir FOLDER."
        )
    if problems := check_folder(folder):
        raise ValueError("\n".join(problems))
    if is_gguf(folder):
        remedy = f'Backbone.load("{folder}").save("FOLDER") in Python, and give that folder'
        raise ValueError(f"{folder} is a GGUF file; expected a model folder. Run {remedy}.")
    if json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"] == COMPOSITION:
        raise ValueError(f"{folder} is a composition of several models. Give the folder of a single one.")
    return folder


def read_config(folder: Path) -> tuple[dict[str, Any], Any]:
    """Return the config of a folder, as in its file and as loaded by transformers with all defaults.

    Raises:
        ValueError: transformers cannot load it.
    """
    try:
        config = loading.read_config(folder)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    return json.loads((folder / "config.json").read_text(encoding="utf-8")), config


def read_stored(folder: Path) -> dict[str, StoredTensor]:
    """Return all tensors of a folder by name, reading only the headers; like transformers, it prefers a single file.

    Raises:
        ValueError: There is no weights file, the index names a tensor that does not exist, or a dtype is not
            supported, as in a quantised model.
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
    if other := sorted(name for name, tensor in stored.items() if tensor.dtype not in ITEM_BYTES):
        raise ValueError(
            f"{folder}: {other[0]} is stored as {stored[other[0]].dtype}; expected {', '.join(ITEM_BYTES)}. {WHOLE}"
        )
    return stored


def _read_header(file: Path) -> dict[str, StoredTensor]:
    with file.open("rb") as content:
        size = int.from_bytes(content.read(8), "little")
        header = json.loads(content.read(size))
    stored = {}
    for name, tensor in header.items():
        if name != "__metadata__":
            start, end = tensor["data_offsets"]
            stored[name] = StoredTensor(file, 8 + size + start, end - start, tensor["dtype"], tuple(tensor["shape"]))
    return stored


def write_model(
    out: Path,
    tensors: Mapping[str, PlannedTensor],
    config: Mapping[str, Any],
    beside: Path,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model folder that transformers can load; it is written completely or not at all.

    A terminal shows a progress bar.

    Args:
        out: The folder; until it is complete, its name ends with `.partial`.
        tensors: Tensors by name, in the order of storage.
        config: Contents of config.json.
        beside: Folder from which tokenizer, generation config and licence are copied.
        shard_bytes: Maximum size of a weights file in bytes; larger models are split into several.

    Raises:
        ValueError: The folder exists, or the disk has too little space.
    """
    total = sum(planned.like.size for planned in tensors.values())
    with _new_folder(out, total) as partial, _progress_bar(out.name, total) as advance:
        shards = _split(tensors, shard_bytes)
        width = len(shards)
        names = [f"model-{place:05d}-of-{width:05d}.safetensors" for place in range(1, width + 1)]
        names = names if width > 1 else [SINGLE]
        for name, shard in zip(names, shards, strict=True):
            _write_shard(partial / name, shard, advance)
        if width > 1:
            sizes = {"total_parameters": count_parameters(tensors), "total_size": total}
            places = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
            _write_json(partial / INDEX, {"metadata": sizes, "weight_map": dict(sorted(places.items()))})
        _write_json(partial / "config.json", config)
        for file in sorted({file for pattern in COPIED for file in beside.glob(pattern) if file.is_file()}):
            shutil.copyfile(file, partial / file.name)


def count_parameters(tensors: Mapping[str, PlannedTensor]) -> int:
    """Return the number of parameters; a tied head is counted once."""
    return sum(math.prod(planned.like.shape) for planned in tensors.values())


def _split(tensors: Mapping[str, PlannedTensor], limit: int) -> list[dict[str, PlannedTensor]]:
    """Divide tensors into files of at most `limit` bytes, in order; a larger tensor has its own file."""
    shards: list[dict[str, PlannedTensor]] = [{}]
    filled = 0
    for name, planned in tensors.items():
        if shards[-1] and filled + planned.like.size > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = planned
        filled += planned.like.size
    return shards


def _write_shard(file: Path, shard: Mapping[str, PlannedTensor], advance: Callable[[int], None]) -> None:
    """Write one file; wider dtypes come first, so that each tensor is aligned to the size of its items."""
    ordered = dict(sorted(shard.items(), key=lambda item: -ITEM_BYTES[item[1].like.dtype]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (like, _) in ordered.items():
        start, end = end, end + like.size
        header[name] = {"dtype": like.dtype, "shape": list(like.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as target:
        target.write(len(text).to_bytes(8, "little") + text)
        for planned in ordered.values():
            for chunk in planned.read():
                target.write(chunk)
                advance(len(chunk))


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def _new_folder(out: Path, size: int) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `out` once it is synced to disk; a failure leaves nothing."""
    if os.path.lexists(out):
        raise ValueError(f"{out} is there. Choose another name, or delete it.")
    partial = out.with_name(out.name + ".partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial, ignore_errors=True)
    free = shutil.disk_usage(out.parent).free
    if size > free:
        raise ValueError(f"{out} needs {size / 1e9:.1f} GB, but its disk has {free / 1e9:.1f} GB left. Free some.")
    partial.mkdir()
    try:
        yield partial
        sync_tree(partial)
        os.replace(partial, out)
        sync_folder(out.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def _progress_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes a number of written bytes; the bar is shown only in a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(title, total=total)
        yield lambda written: progress.advance(task, written)
