"""Two fine-tuned models merged into one folder, as SOLAR merges its candidates: tensor by tensor, from disk to disk."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from workbench.backbone.loading import load_tokenizer
from workbench.surgery.safetensors_io import (
    SHARD_BYTES,
    Planned,
    Stored,
    plain_folder,
    read_config,
    read_stored,
    write_model,
)

METHODS = ("average", "slerp")
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NEARLY_PARALLEL = 1e-6
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
    """Merges two models of one architecture and one origin; SOLAR merges its tuned candidates so.

    "average": (1 - weight) · A + weight · B. "slerp": each tensor, flattened, on the great circle from A's direction
    to B's; see `slerp_shares`. Computed in float32 (float64 for a float64 model), stored in the models' dtype.

    Args:
        first: The folder of A. Tokenizer, generation config and config are its own.
        second: The folder of B.
        out: The new folder; its config.json says under "merged" how it was made.
        method: "average" or "slerp" (Kim et al., 2023, arXiv 2312.15166).
        weight: B's share, in [0, 1].
        shard_bytes: Above so many bytes the weights are split into several files.

    Returns:
        How many tensors were merged.

    Raises:
        ValueError: All in which the two do not match, by name; or `out` is there.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: choose 'average' or 'slerp'.")
    if not 0 <= weight <= 1:  # not a number is not in it either
        raise ValueError(f"weight={weight} is out of range; it has to be in [0, 1], where 1 gives the second model.")
    folders = [plain_folder(first), plain_folder(second)]
    one, other = (read_stored(folder) for folder in folders)
    if problems := _differences(folders[0], folders[1]) + _unlike(one, other):
        raise ValueError(f"{first} and {second} cannot be merged. Give two that agree in this:\n" + "\n".join(problems))
    tensors = {name: _merged(tensor, other[name], method, weight) for name, tensor in one.items()}
    made = {"first": str(first), "second": str(second), "method": method, "weight": weight}
    write_model(Path(out), tensors, read_config(folders[0])[0] | {"merged": made}, folders[0], shard_bytes)
    return len(tensors)


def slerp_shares(dot: float, first: float, second: float, weight: float) -> tuple[float, float]:
    """With what two tensors are multiplied before they are added, to go a share of the angle from A to B.

    Shoemake, 1985, "Animating rotation with quaternion curves", with ω the angle between the flattened tensors:

        sin((1 - weight) ω) / sin ω · A + sin(weight ω) / sin ω · B

    The tensors go in as they are, not scaled to length 1: where both have the same norm the result has it too,
    which an average of the two falls short of. Where sin ω is below 1e-6, or a tensor is zero, the two are on one
    line and there is no arc: their average.

    Args:
        dot: The inner product of the two, flattened.
        first: The norm of A.
        second: The norm of B.
        weight: B's share.

    >>> round(slerp_shares(0.0, 1.0, 2.0, 1 / 3)[1], 9)  # sin 30° / sin 90°
    0.5
    """
    if first == 0 or second == 0:
        return 1 - weight, weight
    angle = math.acos(max(-1.0, min(1.0, dot / first / second)))
    if math.sin(angle) < NEARLY_PARALLEL:
        return 1 - weight, weight
    return math.sin((1 - weight) * angle) / math.sin(angle), math.sin(weight * angle) / math.sin(angle)


def _merged(one: Stored, other: Stored, method: str, weight: float) -> Planned:
    dtype = DTYPES[one.dtype]

    def read() -> Iterator[memoryview]:
        shares = slerp_shares(*_geometry(one, other), weight) if method == "slerp" else (1 - weight, weight)
        for a, b in _pairs(one, other):
            mixed = (shares[0] * a + shares[1] * b).to(dtype)
            yield mixed.view(torch.uint8).numpy().data

    return Planned(one, read)


def _geometry(one: Stored, other: Stored) -> tuple[float, float, float]:
    """Inner product and both norms of two tensors, summed in float64."""
    dot = first = second = 0.0
    for a, b in _pairs(one, other):
        x, y = a.double(), b.double()
        dot, first, second = dot + float(x @ y), first + float(x @ x), second + float(y @ y)
    return dot, math.sqrt(first), math.sqrt(second)


def _pairs(one: Stored, other: Stored) -> Iterator[tuple[Tensor, Tensor]]:
    """Two tensors in step, flat, in float32 or wider."""
    dtype = DTYPES[one.dtype]
    wide = torch.promote_types(dtype, torch.float32)
    for a, b in zip(one.read(), other.read(), strict=True):
        yield torch.frombuffer(a, dtype=dtype).to(wide), torch.frombuffer(b, dtype=dtype).to(wide)


def _unlike(one: Mapping[str, Stored], other: Mapping[str, Stored]) -> list[str]:
    """Tensors that only one has, or that differ in shape or dtype; those of many layers in one sentence."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in (*one, *(name for name in other if name not in one)):
        if wrong := _mismatch(one.get(name), other.get(name)):
            found.setdefault((re.sub(r"\d+", "*", name), wrong), []).append(name)
    return [
        f"{names[0]}{f' and {len(names) - 1} like it' if len(names) > 1 else ''}: {wrong}."
        for (_, wrong), names in found.items()
    ]


def _mismatch(a: Stored | None, b: Stored | None) -> str:
    if a is None or b is None:
        return "only in the second" if a is None else "only in the first"
    if a.shape != b.shape:
        return f"shape {list(a.shape)} in the first, {list(b.shape)} in the second"
    return "" if a.dtype == b.dtype else f"{a.dtype} in the first, {b.dtype} in the second"


def _differences(first: Path, second: Path) -> list[str]:
    """Where two configs or vocabularies differ; what no weight depends on is taken from the first."""
    configs = [read_config(folder)[1].to_dict() for folder in (first, second)]
    problems = [
        f"config.json: {key} is {configs[0].get(key)} in the first, {configs[1].get(key)} in the second."
        for key in sorted({*configs[0], *configs[1]} - {*CHANGE_NO_WEIGHT})
        if configs[0].get(key) != configs[1].get(key)
    ]
    one, other = (_vocabulary(folder) for folder in (first, second))
    if apart := sorted(token for token in {*one, *other} if one.get(token) != other.get(token)):
        problems.append(
            f"vocabulary: {len(apart)} tokens differ, the first {apart[0]!r}: "
            f"{one.get(apart[0], 'absent')} in the first, {other.get(apart[0], 'absent')} in the second."
        )
    return problems


def _vocabulary(folder: Path) -> dict[str, int]:
    try:
        vocabulary: dict[str, int] = load_tokenizer(folder).get_vocab()
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    return vocabulary
