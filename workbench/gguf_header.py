"""Read the header of a GGUF file, and check that the model in it would be read exactly; needs no torch."""

from __future__ import annotations

import math
import mmap
import struct
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

SUFFIX, MAGIC, VERSIONS = ".gguf", b"GGUF", (2, 3)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Value types of a header by number, as `struct` writes them; 8 is a text and 9 an array."""
TEXT, ARRAY = 8, 9
FAMILIES = ("llama", "qwen2", "qwen3")
"""Architectures that are read; files of Mistral models say "llama"."""
SPLITS = {"gpt-2", "smollm", "starcoder", "refact", "llama3", "llama-v3", "llama-bpe", "qwen2"}
"""Values of `tokenizer.ggml.pre` that say exactly how text is split before the merges."""
UNQUANTISED = "Take the model's Hugging Face folder."
UPDATE = "Run: pip install -U gguf. Or take the model's Hugging Face folder."


class GgufTensor(NamedTuple):
    """A tensor of a GGUF file.

    Attributes:
        name: Its name in the file, such as "blk.0.attn_q.weight".
        shape: Its shape as torch has it.
        type: Number of its type in ggml.
        start: Offset of its first byte in the file.
        size: Size in bytes.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    start: int
    size: int


class GgufHeader(NamedTuple):
    """Header of a GGUF file.

    Attributes:
        values: The metadata by key; of an array only its length, as a `range`.
        tensors: The tensors, in the order of the file.
    """

    values: Mapping[str, Any]
    tensors: tuple[GgufTensor, ...]

    @property
    def family(self) -> str:
        """The architecture, such as "llama"."""
        return str(self.values.get("general.architecture"))

    @property
    def types(self) -> dict[str, int]:
        """Number of tensors of each type by its name in ggml, the commonest first."""
        kind = import_module("gguf").GGMLQuantizationType
        return {kind(number).name: count for number, count in Counter(one.type for one in self.tensors).most_common()}

    def of_model(self, key: str, default: Any = None) -> Any:
        """Return a value whose key begins with the architecture."""
        return self.values.get(f"{self.family}.{key}", default)


def read_gguf_header(file: Path) -> GgufHeader:
    """Read the header of a GGUF file; needs the package gguf, whose own reader takes seconds for a large vocabulary.

    The header is kept until the file changes, since a model that is loaded asks for it several times.

    Raises:
        ValueError: It is no GGUF file, or not a whole one, or has a tensor of a type that is not known.
    """
    stat = file.stat()
    return _read(file.resolve(), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=8)
def _read(file: Path, size: int, _: int) -> GgufHeader:
    """Read a header; the last argument is the time of the file's last change."""
    with file.open("rb") as content:
        if content.read(len(MAGIC)) != MAGIC:
            raise ValueError(f"it is no GGUF file (it does not begin with {MAGIC.decode()}). Give one.")
        with mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            try:
                version, values, table, first = _parse(mapped)
            except (struct.error, ValueError, KeyError, IndexError, TypeError, ArithmeticError) as error:
                raise ValueError(f"its header is broken or cut off ({size} bytes). Copy it again.") from error
    if version not in VERSIONS:
        expected = " or ".join(map(str, VERSIONS))
        raise ValueError(f"its GGUF version is {version}; expected {expected}. Convert the model again.")
    header = GgufHeader(MappingProxyType(values), tuple(_tensor(*entry, first) for entry in table))
    if (end := max((one.start + one.size for one in header.tensors), default=0)) > size:
        raise ValueError(f"{size} bytes, but its header says {end}: truncated or damaged. Copy it again.")
    return header


def _parse(content: mmap.mmap) -> tuple[int, dict[str, Any], list[tuple[str, list[int], int, int]], int]:
    """Return the version, and unless it is not supported the metadata, the table of tensors, and where they begin.

    An entry of the table is a tensor's name, its dimensions, innermost first, its type, and its offset.
    """
    place = len(MAGIC)

    def number(code: str) -> Any:
        nonlocal place
        place += struct.calcsize(code)
        return struct.unpack_from(f"<{code}", content, place - struct.calcsize(code))[0]

    def raw() -> bytes:
        nonlocal place
        size = number("Q")
        if size > len(content) - place:
            raise ValueError("a text goes beyond the file")
        place += size
        return content[place - size : place]

    def value(kind: int) -> Any:
        nonlocal place
        if kind == TEXT:
            return raw().decode()
        if kind != ARRAY:
            return number(SCALARS[kind])
        of, count = number("I"), number("Q")
        if of == TEXT:
            for _ in range(count):
                raw()
        else:
            place += count * struct.calcsize(SCALARS[of])
        return range(count)

    if (version := number("I")) not in VERSIONS:
        return version, {}, [], 0
    tensors, keys = number("Q"), number("Q")
    values = {raw().decode(): value(number("I")) for _ in range(keys)}
    table = [
        (raw().decode(), [number("Q") for _ in range(number("I"))], number("I"), number("Q")) for _ in range(tensors)
    ]
    first = -(-place // (alignment := values.get("general.alignment", 32))) * alignment
    return version, values, table, first


def _tensor(name: str, sizes: list[int], number: int, offset: int, first: int) -> GgufTensor:
    """Return a tensor with its place in the file.

    Raises:
        ValueError: The package gguf does not know its type, which is then newer, and so not its size either.
    """
    gguf = import_module("gguf")
    if number not in set(gguf.GGMLQuantizationType):
        raise ValueError(f"{name} has a type of ggml ({number}) that the package gguf does not know. {UPDATE}")
    block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)]
    return GgufTensor(name, tuple(reversed(sizes)), number, first + offset, math.prod(sizes) // block * block_bytes)


def check_gguf(file: Path) -> list[str]:
    """Check a GGUF file by its header: a whole one, of a family and with a tokenizer that can be read exactly.

    Args:
        file: The file.

    Returns:
        One sentence for each problem.
    """
    if not file.is_file():
        return [f"{file}: there is no such file. Give a GGUF file, or a Hugging Face model folder."]
    if find_spec("gguf") is None:
        remedy = "Run: pip install 'continual-workbench[gguf]'. Or give a Hugging Face folder"
        return [f"{file}: a GGUF file needs the package gguf to be read. {remedy}."]
    try:
        header = read_gguf_header(file)
    except ValueError as error:
        return [f"{file}: {error}"]
    if (parts := header.values.get("split.count", 1)) != 1:
        problem = f"it is one of the {parts} files of a model that was split; expected one file"
        return [f"{file}: {problem}. Join them (llama-gguf-split --merge), or take the model's Hugging Face folder."]
    found = [f"{one} {UNQUANTISED}" for one in (_architecture_problem(header), _tokenizer_problem(header)) if one]
    return [f"{file}: {one}" for one in [*found, *_type_problems(header)]]


def _architecture_problem(header: GgufHeader) -> str | None:
    """Say what in the architecture could not be read exactly."""
    if header.family not in FAMILIES:
        return f"its architecture is {header.family!r}; expected one of {', '.join(FAMILIES)}."
    scaled = header.of_model("rope.scaling.type", "none") != "none" or header.of_model("rope.scale_linear", 1) != 1
    if scaled or any(one.name.startswith("rope_f") for one in header.tensors):
        return "its rotary frequencies are scaled for long texts, which is not read from GGUF."
    head = header.of_model("attention.key_length", _even_share(header))
    if head is not None and (rotated := header.of_model("rope.dimension_count", head)) != head:
        return f"only {rotated} of the {head} dimensions of each head are rotated, which is not read from GGUF."
    if (window := header.of_model("attention.sliding_window")) and not _covers(window, header):
        size = "differs by layer" if isinstance(window, range) else f"is {window}"
        return f"its attention is limited to a window (attention.sliding_window {size}), which is not read from GGUF."
    if header.of_model("expert_count", 0):
        return "it is a mixture of experts; expected a dense model."
    return None


def _even_share(header: GgufHeader) -> int | None:
    """Return the size of a head where it is not stated; None if it cannot be told, as where heads differ by layer."""
    width, heads = header.of_model("embedding_length"), header.of_model("attention.head_count")
    return width // heads if isinstance(width, int) and isinstance(heads, int) and heads else None


def _covers(window: Any, header: GgufHeader) -> bool:
    """Return True if a window of attention is as long as the longest text, so that it limits nothing."""
    context = header.of_model("context_length")
    return isinstance(window, int) and isinstance(context, int) and window >= context


def _tokenizer_problem(header: GgufHeader) -> str | None:
    """Say what in the tokenizer could not be read exactly."""
    kind, split = (header.values.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if kind != "gpt2":
        return f"its tokenizer is of the kind {kind!r}; expected 'gpt2' (byte-level BPE), which is read exactly."
    if split not in SPLITS:
        known = ", ".join(sorted(SPLITS))
        return f"its tokenizer splits text as {split!r} (tokenizer.ggml.pre), which is not known; expected {known}."
    if "tokenizer.ggml.eos_token_id" not in header.values:
        return "its tokenizer has no end token (tokenizer.ggml.eos_token_id), so that generation could never stop."
    return None


def _type_problems(header: GgufHeader) -> list[str]:
    """Name the types that the package gguf knows but cannot dequantise: a block of each is tried."""
    gguf, numpy = import_module("gguf"), import_module("numpy")
    problems = []
    for one in {one.type: one for one in reversed(header.tensors)}.values():
        kind = gguf.GGMLQuantizationType(one.type)
        try:
            gguf.dequantize(numpy.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), dtype=numpy.uint8), kind)
        except NotImplementedError:
            problems.append(f"{one.name} is stored as {kind.name}, which the package gguf does not read. {UPDATE}")
    return problems
