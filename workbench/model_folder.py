"""Check a model folder or a GGUF file before anything heavy is imported: that it is complete and can be loaded."""

from __future__ import annotations

import json
import os
import re
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import try_to_load_from_cache

from workbench.gguf_header import MAGIC, SUFFIX, check_gguf, read_gguf_header

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
    return isinstance(source, Path) and source.suffix.lower() == SUFFIX and not source.is_dir()


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
        return check_gguf(folder)
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
            magic = file.read(len(MAGIC)) == MAGIC
        remedy = f"Rename it to end with {SUFFIX}" if magic else "Give a Hugging Face model folder"
        return f"{folder} is a file whose name does not end with {SUFFIX}; expected a folder or a GGUF file. {remedy}."
    *names, last = map(repr, (*SHIPPED, *FETCHED))
    expected = f"a Hugging Face model folder, a GGUF file, a hub id, {', '.join(names)} or {last}"
    return f"{folder}: there is no such folder. Give {expected}."


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
