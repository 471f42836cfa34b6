"""Merge two fine-tuned models tensor by tensor, from disk to disk, as SOLAR merges its candidates."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from workbench.backbone.loading import load_tokenizer
from workbench.backbone.weights import slerp_shares
from workbench.surgery.safetensors_io import (
    SHARD_BYTES,
    PlannedTensor,
    StoredTensor,
    plain_folder,
    read_config,
    read_stored,
    write_model,
)

METHODS = ("average", "slerp")
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CHANGE_NO_WEIGHT = (
    *("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache", "merged"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "attention_dropout", "initializer_range"),
)


def merge(
    first: str | Path,
    second: str | Path,
    out: str | Path,
    *,
    method: Literal["average", "slerp"] = "average",
    weight: float = 0.5,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Merge two models with the same architecture and origin   (Kim et al., 2023, SOLAR, arXiv 2312.15166).

    "average": (1 - weight) · A + weight · B. "slerp": spherical interpolation of each flattened tensor, see
    `workbench.backbone.slerp_shares`. Computed in float32 (float64 for a float64 model) and stored in the models'
    dtype.

    Args:
        first: Folder of A, from which tokenizer, generation config and config are taken.
        second: Folder of B.
        out: The new folder; its config.json records the merge under "merged".
        method: "average" or "slerp".
        weight: Share of B, in [0, 1].
        shard_bytes: Maximum size of a weights file in bytes; larger models are split into several.

    Returns:
        Number of merged tensors.

    Raises:
        ValueError: `method` or `weight` is out of range, the models differ (the message lists all differences), or
            `out` exists.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: choose 'average' or 'slerp'.")
    if not 0 <= weight <= 1:  # also refuses NaN
        raise ValueError(f"weight={weight} is out of range; it has to be in [0, 1], where 1 gives the second model.")
    folders = [plain_folder(first), plain_folder(second)]
    one, other = (read_stored(folder) for folder in folders)
    if problems := _config_differences(folders[0], folders[1]) + _tensor_differences(one, other):
        raise ValueError(f"{first} and {second} cannot be merged. Give two that agree in this:\n" + "\n".join(problems))
    tensors = {name: _merged(tensor, other[name], method, weight) for name, tensor in one.items()}
    record = {"first": str(first), "second": str(second), "method": method, "weight": weight}
    write_model(Path(out), tensors, read_config(folders[0])[0] | {"merged": record}, folders[0], shard_bytes)
    return len(tensors)


def _merged(one: StoredTensor, other: StoredTensor, method: str, weight: float) -> PlannedTensor:
    """Return the merged tensor, which is computed when it is written."""
    dtype = DTYPES[one.dtype]

    def read() -> Iterator[memoryview]:
        shares = slerp_shares(*_geometry(one, other), weight) if method == "slerp" else (1 - weight, weight)
        for a, b in _pairs(one, other):
            mixed = (shares[0] * a + shares[1] * b).to(dtype)
            yield mixed.view(torch.uint8).numpy().data

    return PlannedTensor(one, read)


def _geometry(one: StoredTensor, other: StoredTensor) -> tuple[float, float, float]:
    """Return the inner product and the norms of two flattened tensors, summed in float64."""
    dot = first = second = 0.0
    for a, b in _pairs(one, other):
        x, y = a.double(), b.double()
        dot, first, second = dot + float(x @ y), first + float(x @ x), second + float(y @ y)
    return dot, math.sqrt(first), math.sqrt(second)


def _pairs(one: StoredTensor, other: StoredTensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield matching chunks of two flattened tensors, in float32 or wider."""
    dtype = DTYPES[one.dtype]
    wide = torch.promote_types(dtype, torch.float32)
    for a, b in zip(one.read(), other.read(), strict=True):
        yield torch.frombuffer(a, dtype=dtype).to(wide), torch.frombuffer(b, dtype=dtype).to(wide)


def _tensor_differences(one: Mapping[str, StoredTensor], other: Mapping[str, StoredTensor]) -> list[str]:
    """Return a sentence for each tensor that only one model has, or that differs in shape or dtype.

    Tensors that differ in the same way in several layers share a sentence.
    """
    differing: dict[tuple[str, str], list[str]] = {}
    for name in (*one, *(name for name in other if name not in one)):
        if difference := _difference(one.get(name), other.get(name)):
            differing.setdefault((re.sub(r"\d+", "*", name), difference), []).append(name)
    return [
        f"{names[0]}{f' and {len(names) - 1} like it' if len(names) > 1 else ''}: {difference}."
        for (_, difference), names in differing.items()
    ]


def _difference(a: StoredTensor | None, b: StoredTensor | None) -> str:
    """Return how two tensors differ in presence, shape or dtype; "" if they do not."""
    if a is None or b is None:
        return "only in the second" if a is None else "only in the first"
    if a.shape != b.shape:
        return f"shape {list(a.shape)} in the first, {list(b.shape)} in the second"
    return "" if a.dtype == b.dtype else f"{a.dtype} in the first, {b.dtype} in the second"


def _config_differences(first: Path, second: Path) -> list[str]:
    """Return a sentence for each difference of configs and vocabularies; keys without effect on weights may differ."""
    configs = [read_config(folder)[1].to_dict() for folder in (first, second)]
    problems = [
        f"config.json: {key} is {configs[0].get(key)} in the first, {configs[1].get(key)} in the second."
        for key in sorted({*configs[0], *configs[1]} - {*CHANGE_NO_WEIGHT})
        if configs[0].get(key) != configs[1].get(key)
    ]
    one, other = (_vocabulary(folder) for folder in (first, second))
    if differing := sorted(token for token in {*one, *other} if one.get(token) != other.get(token)):
        problems.append(
            f"vocabulary: {len(differing)} tokens differ, the first {differing[0]!r}: "
            f"{one.get(differing[0], 'absent')} in the first, {other.get(differing[0], 'absent')} in the second."
        )
    return problems


def _vocabulary(folder: Path) -> dict[str, int]:
    try:
        vocabulary: dict[str, int] = load_tokenizer(folder).get_vocab()
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    return vocabulary
