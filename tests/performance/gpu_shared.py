"""What the parts of `gpu.py` share: the device, random models on it, rows, and what is done when memory runs out."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset
from flops import Shape
from subjects import rows, tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from workbench.backbone import Backbone
from workbench.backbone.encoding import TextPolicy
from workbench.benchmark import Task
from workbench.runtime.seeding import seed_all
from workbench.scorers import ExactMatch

Result = dict[str, Any]
SHORT_OF_MEMORY = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name() -> str:
    """As torch names it, or "cpu"."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"


def accelerator() -> str:
    """The same for Lightning."""
    return "gpu" if torch.cuda.is_available() else "cpu"


def model(shape: Shape, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """Make a random model on the device, each time the same."""
    seed_all("gpu", shape.title)
    with device():
        return LlamaForCausalLM(shape.config()).to(dtype)


@functools.cache
def words(vocabulary: int) -> PreTrainedTokenizerFast:
    """The tokenizer, made once."""
    return tokenizer(vocabulary)


def backbone(shape: Shape, dtype: torch.dtype = torch.float32, answer: int = 512) -> Backbone:
    """Put the same model behind the workbench's operations."""
    policy = TextPolicy(max_prompt_length=1024, max_answer_length=answer)
    return Backbone(lambda: model(shape, dtype), words(shape.vocabulary), text=policy)


def task(name: str, shape: Shape, lengths: Sequence[Sequence[int]], seed: int = 0, test: int = 1) -> Task:
    """Make a task of random words.

    Args:
        name: Its name.
        shape: Of the model, whose vocabulary the words are from.
        lengths: Tokens of each row's prompt and answer.
        seed: Of the words.
        test: Rows to be tested on, the first ones.
    """
    train = rows(lengths, seed, shape.vocabulary)
    longest = max(answer for _, answer in lengths)
    return Task(
        name, Dataset.from_dict(train[:test]), train, scorers={"exact_match": ExactMatch()}, max_new_tokens=longest
    )


def is_short_of_memory(error: BaseException) -> bool:
    """Return True for what torch raises, on a GPU and on a CPU, where memory does not suffice."""
    return isinstance(error, MemoryError) or any(part in str(error) for part in SHORT_OF_MEMORY)


def survived(what: str, work: Callable[[], Iterator[Result]]) -> Iterator[Result]:
    """Yield a measurement's results; if memory does not suffice, yield that as the last one.

    Args:
        what: Is measured.
        work: Measures.
    """
    problem = ""
    try:
        yield from work()
    except (RuntimeError, MemoryError) as error:
        if not is_short_of_memory(error):
            raise
        problem = str(error).splitlines()[0]
    if problem:  # outside of the handler, which keeps the frames and their tensors alive
        release()
        yield {"what": what, "failed": f"out of memory: {problem}"}


def release() -> None:
    """Free the memory of what is no longer used; a Trainer and its module keep each other alive until then."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def time_is_over(until: float) -> bool:
    """Return True after a moment of `time.perf_counter`."""
    return time.perf_counter() > until
