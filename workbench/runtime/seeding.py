"""Random state as a function of where a run stands, so that none has to be saved; what holds for a whole process."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def derived_seed(*parts: int | str) -> int:
    """A 32-bit seed from any numbers and words; the same in every process and on every machine.

    >>> derived_seed(0, "epoch", 1) == derived_seed(0, "epoch", 1)
    True
    """
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def seed_all(*parts: int | str) -> None:
    """Seeds torch (all devices), numpy and random from `derived_seed(*parts)`."""
    seed = derived_seed(*parts)
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """Whatever is drawn inside, the random state afterwards is the one before."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python_state)
    np.random.set_state(numpy_state)


@contextmanager
def untouched_kernels() -> Iterator[None]:
    """Whatever a Trainer made inside asks of the process's kernels, afterwards they are chosen as before.

    A Trainer's `deterministic` and `benchmark` hold for the whole process, and for all that comes after it.
    """
    chosen, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    measured, workspace = torch.backends.cudnn.benchmark, os.environ.get(WORKSPACE)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(chosen, warn_only=warns)
        torch.backends.cudnn.benchmark = measured
        os.environ.pop(WORKSPACE, None)
        os.environ.update({} if workspace is None else {WORKSPACE: workspace})
