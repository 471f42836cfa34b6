"""Read and write the weights of model folders tensor by tensor, without building the model."""

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

from workbench.backbone import loading as weights
from workbench.model_folder import COMPOSITION, WHOLE, check_folder, locate
from workbench.runtime.files import sync_folder, sync_tree

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


SHARD_BYTES = 5_000_000_000
COPIED = (
    *("tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*"),
    *("generation_config.json", "LICENSE*", "NOTICE*"),
)


class Planned(NamedTuple):
    """A tensor that is to be written.

    Attributes:
        like: Has its dtype, shape and size.
        read: Gives its bytes in chunks.
    """

    like: Stored
    read: Callable[[], Iterator[bytes | memoryview]]


def copied(stored: Stored) -> Planned:
    """The same bytes once more."""
    return Planned(stored, stored.read)


def zeros(stored: Stored) -> Planned:
    """Zero bytes in its place, which are +0.0 in each floating-point dtype."""

    def read() -> Iterator[bytes]:
        for start in range(0, stored.size, CHUNK):
            yield bytes(min(CHUNK, stored.size - start))

    return Planned(stored, read)


def write_model(
    out: Path,
    tensors: Mapping[str, Planned],
    config: Mapping[str, Any],
    beside: Path,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a model's folder that transformers loads; it appears whole or not at all.

    In a terminal a bar shows how far it is.

    Args:
        out: The folder; until it is whole its name ends in `.partial`.
        tensors: In the order in which they are to be stored.
        config: For config.json.
        beside: The folder whose tokenizer, generation config and licence go along.
        shard_bytes: Above so many bytes the weights are split into several files.

    Raises:
        ValueError: The folder is there already, or the disk is too small.
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


def count_parameters(tensors: Mapping[str, Planned]) -> int:
    """The numbers that the tensors hold; a tied head counts once."""
    return sum(math.prod(planned.like.shape) for planned in tensors.values())


def _split(tensors: Mapping[str, Planned], limit: int) -> list[dict[str, Planned]]:
    """Files of at most so many bytes, in order; a tensor above the limit has one to itself."""
    shards: list[dict[str, Planned]] = [{}]
    filled = 0
    for name, planned in tensors.items():
        if shards[-1] and filled + planned.like.size > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = planned
        filled += planned.like.size
    return shards


def _write_shard(file: Path, shard: Mapping[str, Planned], advance: Callable[[int], None]) -> None:
    """Wider dtypes stand first, so that every tensor begins at a multiple of its own width."""
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
    """A folder under another name, which becomes `out` once all in it is on the disk; a failure leaves nothing."""
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
    """Takes the bytes that were written; shows nothing where nobody would see it."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(title, total=total)
        yield lambda written: progress.advance(task, written)
