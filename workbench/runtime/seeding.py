"""Random state derived from the position in a run, so that none has to be saved; process-wide torch settings."""

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
    """Derive a 32-bit seed from numbers and words; the same in every process and on every machine.

    >>> derived_seed(0, "epoch", 1) == derived_seed(0, "epoch", 1)
    True
    """
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def seed_all(*parts: int | str) -> None:
    """Seed torch (all devices), numpy and random with `derived_seed(*parts)`."""
    seed = derived_seed(*parts)
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Restore the random state of torch, numpy and random after the context."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python_state)
    np.random.set_state(numpy_state)


@contextmanager
def preserved_kernel_settings() -> Iterator[None]:
    """Restore torch's settings of deterministic and benchmarked kernels after the context.

    A Trainer's `deterministic` and `benchmark` apply to the whole process, also after the Trainer is gone.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, workspace = torch.backends.cudnn.benchmark, os.environ.get(WORKSPACE)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
        os.environ.pop(WORKSPACE, None)
        os.environ.update({} if workspace is None else {WORKSPACE: workspace})
