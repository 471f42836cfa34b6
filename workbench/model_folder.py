"""Check a model folder or a GGUF file before anything heavy is imported: that it is complete and can be loaded."""

from __future__ import annotations

import json
import math
import mmap
import os
import re
import socket
import struct
from collections import Counter
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import try_to_load_from_cache

SHIPPED = {name: Path(__file__).parent / "models" / name for name in ("mini", "micro")}
FETCHED = {"smollm2": "a download of 93 MB, which takes 269 MB of disk"}
"""Models that `lightning fetch` puts into the cache, with what that costs."""
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
COMPOSITION = "calm"
SENTENCEPIECE = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
"""Packages that read a tokenizer.model: the name to install, and the name to import."""
FLOATS = ("F64", "F32", "F16", "BF16")
WHOLE = "Take the model as it was before it was quantised."
ADAPTER = (
    "holds a peft adapter (adapter_config.json), which transformers would silently load together with its model. "
    "Fold it into its model (peft's merge_and_unload), save that, and give its folder; or move its files elsewhere."
)
ORIGIN = "dequantised.json"
"""File in a folder that says which quantised file its weights come from."""
GGUF, GGUF_MAGIC, GGUF_VERSIONS = ".gguf", b"GGUF", (2, 3)
GGUF_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Value types of a GGUF header by number, as `struct` writes them; 8 is a text and 9 an array."""
GGUF_TEXT, GGUF_ARRAY = 8, 9
GGUF_FAMILIES = ("llama", "qwen2", "qwen3")
"""Architectures of GGUF files that are read; files of Mistral models say "llama"."""
GGUF_SPLITS = {"gpt-2", "smollm", "starcoder", "refact", "llama3", "llama-v3", "llama-bpe", "qwen2"}
"""Values of `tokenizer.ggml.pre` that say exactly how text is split before the merges."""
UNQUANTISED = "Take the model's Hugging Face folder."
HUB_SECONDS = 5.0
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def locate(path: str | Path) -> Path | str:
    """Return the folder or GGUF file of a named model or of a path; a hub id is returned as it is.

    Args:
        path: "mini", "micro", "smollm2", a path, or a hub id; a folder takes precedence over a hub id of the same name.
    """
    if str(path) in SHIPPED:
        return SHIPPED[str(path)]
    if str(path) in FETCHED:
        return cache_folder() / str(path)
    place = Path(path).expanduser()
    hub_id = HUB_ID.fullmatch(str(path)) and not is_gguf(place) and not place.exists()
    return str(path) if hub_id else place


def cache_folder() -> Path:
    """Return the folder of the fetched models: $WORKBENCH_CACHE, or continual-workbench in the user's cache."""
    if chosen := os.environ.get("WORKBENCH_CACHE"):
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "continual-workbench"


def is_gguf(source: Path | str) -> bool:
    """Return True if a model is a GGUF file, by its name."""
    return isinstance(source, Path) and source.suffix.lower() == GGUF and not source.is_dir()


def check_folder(path: str | Path) -> list[str]:
    """Check a model folder or a GGUF file, or that a hub id can be reached.

    Only configs and the headers of the weights are read, so that a model of any size is checked at once.

    Args:
        path: As for `locate`.

    Returns:
        One sentence for each problem.
    """
    folder = locate(path)
    if isinstance(folder, str):
        return _check_hub(folder)
    if is_gguf(folder):
        return _check_gguf(folder)
    if not folder.is_dir():
        return [_no_folder(path, folder)]
    if (folder / "adapter_config.json").is_file():
        return [f"{folder} {ADAPTER}"]
    config, problem = _read_object(folder / "config.json")
    if problem:
        return [problem]
    problems = [f"{folder}/config.json: {problem}" for part in _parts(config) if (problem := _check_config(part))]
    return problems + _check_weights(folder) + _check_tokenizer(folder)


def _no_folder(path: str | Path, folder: Path) -> str:
    """Say what to do where there is no folder."""
    if str(path) in FETCHED:
        return f"{path} is not on this machine yet. Run `lightning fetch {path}` ({FETCHED[str(path)]})."
    if folder.is_file():
        with folder.open("rb") as file:
            magic = file.read(len(GGUF_MAGIC)) == GGUF_MAGIC
        remedy = f"Rename it to end with {GGUF}" if magic else "Give a Hugging Face model folder"
        return f"{folder} is a file whose name does not end with {GGUF}; expected a folder or a GGUF file. {remedy}."
    return f"{folder}: there is no such folder. Give a Hugging Face model folder, a hub id, 'mini' or 'micro'."


def dequantised_from(path: str | Path) -> dict[str, Any] | None:
    """Return which quantised file a model's weights come from; None for other models.

    Args:
        path: As for `locate`.

    Returns:
        "file": the name of the file; "tensors": the number of tensors of each type, such as {"Q4_1": 210, "F32": 61};
        for a fetched model also where the file comes from.
    """
    source = locate(path)
    if isinstance(source, Path) and is_gguf(source) and source.is_file():
        return {"file": source.name, "tensors": read_gguf_header(source).types}
    if isinstance(source, Path) and (source / ORIGIN).is_file():
        return _read_object(source / ORIGIN)[0] or None
    return None


def _parts(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the config of a model, or those of the models of a composition."""
    if config.get("model_type") != COMPOSITION:
        return [config]
    augmenting = config.get("augmenting") or ()
    parts = [config.get("text_config"), *(augmenting if isinstance(augmenting, list | tuple) else [augmenting])]
    return [part if isinstance(part, dict) else {"model_type": part} for part in parts]


def _check_config(config: dict[str, Any]) -> str | None:
    """Say what in a model's config is not supported."""
    if (family := config.get("model_type")) not in FAMILIES:
        return f"model_type is {family!r}; expected one of {', '.join(FAMILIES)}."
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        return f"its weights are quantised ({method or 'quantization_config'}), and do not train. {WHOLE}"
    ropes = [rope for key in ("rope_parameters", "rope_scaling") if isinstance(rope := config.get(key), dict)]
    if any("longrope" in (rope.get("rope_type"), rope.get("type")) for rope in ropes):
        return "rope_type is 'longrope', whose numbers depend on the longest row of a batch. Use another model."
    return None


def _check_hub(name: str) -> list[str]:
    """Report a hub that cannot be reached, which its client would try for minutes.

    The name may also be that of a folder that does not exist.
    """
    if isinstance(try_to_load_from_cache(name, "config.json"), str) or getproxies():
        return []
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    try:
        socket.create_connection((str(host), 443), timeout=HUB_SECONDS).close()
    except OSError as error:
        return [f"{name}: there is no such folder, and the hub ({host}) cannot be reached: {error}."]
    return []


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package
        return False


def _read_object(file: Path) -> tuple[dict[str, Any], str | None]:
    """Read a JSON object; return it, or an empty one and the problem."""
    if not file.is_file():
        return {}, f"{file.parent}: there is no {file.name}, so it is not a Hugging Face model folder. Give one."
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        return {}, f"{file}: not readable as JSON ({error}). Copy it again."
    if not isinstance(content, dict):
        return {}, f"{file}: expected a JSON object, got {type(content).__name__}. Copy it again."
    return content, None


def _check_weights(folder: Path) -> list[str]:
    """Check that the safetensors files exist and are complete."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content, problem = _read_object(index)
        if problem:
            return [problem]
        names = content.get("weight_map")
        if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
            return [f"{index}: expected a weight_map that names each tensor's file. Copy it again."]
        shards = [folder / name for name in sorted(set(names.values()))]
    else:
        shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        return [f"{folder}: there are no safetensors weights (other formats can run code and are not read). Give some."]
    return [problem for shard in shards if (problem := _check_shard(shard))]


def _check_shard(shard: Path) -> str | None:
    """Check a safetensors file by its header, which states where the last tensor ends and each tensor's data type."""
    if not shard.is_file():
        return f"{shard}: named in the index, but not there. Copy it too."
    size = shard.stat().st_size
    with shard.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if size < 8 or header_size > size - 8:
            return f"{shard}: not a whole safetensors file ({size} bytes). Copy it again."
        try:
            header = json.loads(file.read(header_size))
            tensors = {key: tensor for key, tensor in header.items() if key != "__metadata__"}
            ends = [tensor["data_offsets"][1] for tensor in tensors.values()]
            quantised = sorted(key for key, tensor in tensors.items() if _is_quantised(key, tensor["dtype"]))
            expected = 8 + header_size + max(ends, default=0)
        except (ValueError, AttributeError, KeyError, TypeError, IndexError, RecursionError):
            return f"{shard}: its header is broken. Copy it again."
    if size != expected:
        return f"{shard}: {size} bytes, but its header says {expected}: truncated or damaged. Copy it again."
    if quantised:
        problem = f"{quantised[0]} is stored as {tensors[quantised[0]]['dtype']}; expected {', '.join(FLOATS)}"
        return f"{shard}: {problem}. {WHOLE}"
    return None


def _is_quantised(name: str, dtype: str) -> bool:
    """Return True if a tensor is a quantised weight; other tensors, such as position tables, may be integers."""
    return dtype not in FLOATS and (name.endswith("weight") or dtype not in ("I64", "BOOL"))


def sentencepiece_alone(folder: Path) -> bool:
    """Return True if a folder's only tokenizer file is sentencepiece's, which the tokenizers package does not read.

    Args:
        folder: A model folder.
    """
    readable = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    return not readable and (folder / "tokenizer.model").is_file()


def _check_tokenizer(folder: Path) -> list[str]:
    """Check that there is a tokenizer, that it can be read, and that it has an end token."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return [f"{folder}: there is no tokenizer (tokenizer.json, tokenizer.model or vocab.json). Copy it too."]
    missing = [name for name, module in SENTENCEPIECE.items() if not _is_installed(module)]
    if missing and sentencepiece_alone(folder):
        reason = f"its tokenizer is in tokenizer.model alone, which needs {' and '.join(missing)} to be read"
        remedy = f"Run: pip install {' '.join(missing)}. Or give a folder with tokenizer.json."
        return [f"{folder}: {reason}. {remedy}"]
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return []
    config, problem = _read_object(file)
    if problem:
        return [problem]
    if config.get("eos_token", "") is None:
        return [f"{file}: the tokenizer has no end token (eos_token), so that generation could never stop. Set one."]
    return []


# -- GGUF


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
    tensors: list[GgufTensor]

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

    Raises:
        ValueError: It is no GGUF file, or not a whole one.
    """
    size = file.stat().st_size
    with file.open("rb") as content:
        if content.read(len(GGUF_MAGIC)) != GGUF_MAGIC:
            raise ValueError(f"it is no GGUF file (it does not begin with {GGUF_MAGIC.decode()}). Give one.")
        with mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            try:
                version, header = _parse_gguf(mapped)
            except (struct.error, ValueError, KeyError, IndexError, OverflowError) as error:
                raise ValueError(f"its header is broken or cut off ({size} bytes). Copy it again.") from error
    if header is None:
        expected = " or ".join(map(str, GGUF_VERSIONS))
        raise ValueError(f"its GGUF version is {version}; expected {expected}. Convert the model again.")
    if (end := max((one.start + one.size for one in header.tensors), default=0)) > size:
        raise ValueError(f"{size} bytes, but its header says {end}: truncated or damaged. Copy it again.")
    return header


def _parse_gguf(content: mmap.mmap) -> tuple[int, GgufHeader | None]:
    """Return version and header; None for a version that is not supported."""
    place = len(GGUF_MAGIC)

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
        if kind == GGUF_TEXT:
            return raw().decode()
        if kind != GGUF_ARRAY:
            return number(GGUF_SCALARS[kind])
        of, count = number("I"), number("Q")
        if of == GGUF_TEXT:
            for _ in range(count):
                raw()
        else:
            place += count * struct.calcsize(GGUF_SCALARS[of])
        return range(count)

    if (version := number("I")) not in GGUF_VERSIONS:
        return version, None
    tensors, keys = number("Q"), number("Q")
    values = {raw().decode(): value(number("I")) for _ in range(keys)}
    # Name; dimensions, innermost first; type; offset.
    table = [
        (raw().decode(), [number("Q") for _ in range(number("I"))], number("I"), number("Q")) for _ in range(tensors)
    ]
    first = -(-place // (alignment := values.get("general.alignment", 32))) * alignment
    return version, GgufHeader(values, [_gguf_tensor(*entry, first) for entry in table])


def _gguf_tensor(name: str, sizes: list[int], kind: int, offset: int, first: int) -> GgufTensor:
    gguf = import_module("gguf")
    block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    return GgufTensor(name, tuple(reversed(sizes)), kind, first + offset, math.prod(sizes) // block * block_bytes)


def _check_gguf(file: Path) -> list[str]:
    """Check a GGUF file by its header: a whole one, of a family and with a tokenizer that can be read exactly."""
    if not file.is_file():
        return [f"{file}: there is no such file. Give a GGUF file, or a Hugging Face model folder."]
    if not _is_installed("gguf"):
        remedy = "Run: pip install 'continual-workbench[gguf]'. Or give a Hugging Face folder"
        return [f"{file}: a GGUF file needs the package gguf to be read. {remedy}."]
    try:
        header = read_gguf_header(file)
    except ValueError as error:
        return [f"{file}: {error}"]
    found = [_gguf_architecture_problem(header), *_gguf_tokenizer_problems(header)]
    return [f"{file}: {problem} {UNQUANTISED}" for problem in found if problem]


def _gguf_architecture_problem(header: GgufHeader) -> str | None:
    """Say what in the architecture would be read otherwise than it is meant."""
    if header.family not in GGUF_FAMILIES:
        return f"its architecture is {header.family!r}; expected one of {', '.join(GGUF_FAMILIES)}."
    scaled = header.of_model("rope.scaling.type", "none") != "none" or header.of_model("rope.scale_linear", 1) != 1
    if scaled or any(one.name.startswith("rope_f") for one in header.tensors):
        return "its rotary frequencies are scaled for long texts, which is not read from GGUF."
    rotated = header.of_model("rope.dimension_count")
    if rotated != header.of_model("attention.key_length", rotated):
        return f"only {rotated} dimensions of each head are rotated, which this family's models do not do."
    if header.of_model("expert_count", 0):
        return "it is a mixture of experts; expected a dense model."
    return None


def _gguf_tokenizer_problems(header: GgufHeader) -> list[str]:
    """Say what in the tokenizer would be read otherwise than it is meant."""
    kind, split = (header.values.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if kind != "gpt2":
        return [f"its tokenizer is of the kind {kind!r}; expected 'gpt2' (byte-level BPE), which is read exactly."]
    if split not in GGUF_SPLITS:
        known = ", ".join(sorted(GGUF_SPLITS))
        return [f"its tokenizer splits text as {split!r} (tokenizer.ggml.pre), which is not known; expected {known}."]
    if "tokenizer.ggml.eos_token_id" not in header.values:
        return ["its tokenizer has no end token (tokenizer.ggml.eos_token_id), so that generation could never stop."]
    return []
