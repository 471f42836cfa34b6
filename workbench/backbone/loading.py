"""Read a model and its tokenizer from disk or the hub; add rows for new tokens; activation checkpointing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from workbench.backbone import gguf
from workbench.model_folder import ADAPTER, is_gguf, sentencepiece_alone

PROBE = "The cat  sat on 3.14 mats, wasn't it?"
"""Text with which two tokenizers are compared: words, digits, and two spaces in a row, which not every one keeps."""
NOISE = 0.01
"""Noise of a new token's row, relative to the standard deviation of the other rows."""


def read_config(source: str | Path) -> Any:
    """Return transformers' config of a folder, GGUF file or hub id, with all defaults.

    Raises:
        ValueError: transformers cannot load it.
    """
    if is_gguf(source):
        with refusing(source, "its header cannot be read as a config", "Take the model's Hugging Face folder."):
            return gguf.read_config(Path(source))
    with refusing(source, "its config.json cannot be loaded", "Fix it."):
        return AutoConfig.from_pretrained(source, trust_remote_code=False)


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder, GGUF file or hub id, without remote code.

    Raises:
        ValueError: It cannot be loaded, or splits text otherwise than its sentencepiece model.
    """
    read_config(source)  # the tokenizer's class depends on it
    only_sentencepiece = isinstance(source, Path) and sentencepiece_alone(source)
    with refusing(source, "its tokenizer cannot be loaded", "Copy its tokenizer's files again."):
        if is_gguf(source):
            return gguf.read_tokenizer(Path(source))
        if not only_sentencepiece:
            return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(source, trust_remote_code=False))
        tokenizer, encode = _from_sentencepiece(Path(source))
    refuse_other_tokens(tokenizer, encode)
    return tokenizer


def _from_sentencepiece(folder: Path) -> tuple[PreTrainedTokenizerBase, Callable[[str], list[int]]]:
    """Load a tokenizer.model that has no tokenizer.json, and return sentencepiece's own `encode` beside it.

    Without a stated class, transformers would omit the space before a text; without `add_bos_token`, it would omit the
    begin token, which this family's tokenizers add.
    """
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    loader = AutoTokenizer if "tokenizer_class" in config else LlamaTokenizer
    tokenizer = loader.from_pretrained(folder, add_bos_token=config.get("add_bos_token", True))
    processor = import_module("sentencepiece").SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return tokenizer, processor.encode


def refuse_other_tokens(tokenizer: PreTrainedTokenizerBase, encode: Callable[[str], list[int]]) -> None:
    """Raise if a tokenizer splits text otherwise than the program it comes from.

    Args:
        tokenizer: As transformers loads it.
        encode: The original program: text to token ids.

    Raises:
        ValueError: The two disagree.
    """
    if tokenizer(PROBE, add_special_tokens=False).input_ids != encode(PROBE):
        message = "transformers splits text into other tokens than sentencepiece does with this tokenizer.model"
        raise ValueError(f"{message}. Give a folder with tokenizer.json.")


def load_weights(source: str | Path, dtype: torch.dtype, checkpointed: bool = False) -> PreTrainedModel:
    """Load the model of a folder or hub id: safetensors only, no remote code, every weight in its place.

    The weights of a GGUF file are dequantised.

    Args:
        source: Folder, GGUF file or hub id.
        dtype: Precision of the weights.
        checkpointed: Whether to turn on activation checkpointing (`checkpoint_blocks`).

    Raises:
        ValueError: A weight is missing, has another shape, or has no place in the model; the model comes with an
            adapter; or it cannot be loaded at all.
    """
    config = read_config(source)
    with refusing(source, "it cannot be loaded", "Copy it again."):
        loader: Any = AutoModelForCausalLM
        place: str | Path | None = source
        given: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False}
        if is_gguf(source):
            given = {"state_dict": gguf.read_tensors(Path(source), config, dtype)}
            loader, place = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], None
        model, info = loader.from_pretrained(
            place,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # raised below
            **given,
        )
    if hasattr(model, "peft_config"):  # from the hub; in a folder it is found earlier
        raise ValueError(ADAPTER)
    if missing := sorted(info["missing_keys"]) + sorted(str(key[0]) for key in info["mismatched_keys"]):
        raise ValueError(
            f"{len(missing)} weights are missing or of another shape, the first: {missing[0]}. Copy them again."
        )
    if surplus := sorted(info["unexpected_keys"]):  # transformers leaves out known obsolete buffers
        raise ValueError(
            f"{len(surplus)} weights are stored that config.json has no place for, the first: {surplus[0]}. "
            "Fix config.json (num_hidden_layers, attention_bias), or copy it again."
        )
    if model.config.tie_word_embeddings and _head(model) is not model.get_input_embeddings().weight:
        raise ValueError(
            "config.json ties the head to the embeddings, but the two are stored with different values. "
            "Set tie_word_embeddings to false in config.json, or leave lm_head.weight out of the file."
        )
    return checkpoint_blocks(model) if checkpointed else cast(PreTrainedModel, model)


@contextmanager
def refusing(source: str | Path, problem: str, remedy: str) -> Iterator[None]:
    """Convert any exception of a loader into a ValueError of one sentence and a remedy.

    Args:
        source: The folder or hub id that is loaded.
        problem: Says what cannot be done.
        remedy: Advice for errors without a more specific one.

    Raises:
        ValueError: An exception was raised within the context.
    """
    try:
        yield
    except Exception as error:  # transformers, tokenizers and the hub client each raise classes of their own
        sentence = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ValueError(f"{problem}: {sentence}. {_specific_remedy(error, source) or remedy}") from error


def _specific_remedy(error: Exception, source: str | Path) -> str:
    """Return advice for an error that does not come from broken files; empty if there is none."""
    if isinstance(error, ImportError):
        return "Get the package that is missing."
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return "Free some memory, or give a smaller model or backbone.dtype=bfloat16."
    if isinstance(error, PermissionError):
        return "Give yourself the right to read it."
    if isinstance(source, str):
        remedy = f"hf download {source} --local-dir FOLDER, and give that folder."
        return f"Look at the id and the connection; where the model asks for a login, use `hf auth login`; or {remedy}"
    return ""


def _head(model: PreTrainedModel) -> Any:
    head = model.get_output_embeddings()
    return None if head is None else head.weight


@torch.no_grad()
def extend_rows(model: PreTrainedModel, first: int, size: int) -> None:
    """Initialise the rows of new tokens in the embeddings and the head, and add rows where there are too few.

    Each new row is the mean of the old ones, which changes the other tokens' probabilities little (Hewitt, 2021,
    "Initializing new word embeddings for pretrained language models"), plus a little noise from torch's CPU generator.

    Args:
        model: Its vocabulary may be padded: rows that exist are used before any is added.
        first: The first new token.
        size: Number of tokens including the new ones.
    """
    embeddings = model.get_input_embeddings()
    shape = (size - first, embeddings.weight.shape[1])
    noise = [torch.randn(shape) for _ in range(2)]  # drawn first, so that it is the same on every device
    if size > embeddings.num_embeddings:
        model.resize_token_embeddings(size, mean_resizing=False)
    weights = {id(weight): weight for weight in (embeddings.weight, _head(model)) if weight is not None}
    for weight, drawn in zip(weights.values(), noise, strict=False):
        rows = weight[:first].float()
        mean, deviation = rows.mean(0), rows.std(0)
        weight[first:size] = (mean + NOISE * deviation * drawn.to(weight.device)).to(weight.dtype)
        weight.grad = None  # it has the old shape


def blocks(model: nn.Module) -> list[Any]:
    """Return all transformer blocks of a model, including those of the models it is composed of."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def checkpoint_blocks(model: PreTrainedModel) -> PreTrainedModel:
    """Turn on activation checkpointing in each block; copies of a block keep it.

    In training, a block stores only its input and recomputes its other activations in the backward pass.
    """
    for block in blocks(model):
        block.gradient_checkpointing = True
        block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    return model


def agree_on_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the tokenizer's special tokens into the model's configs where those disagree.

    A model whose generation config names another end token than the one it was trained with never stops in plain
    transformers. A list of end tokens stays as it is if it contains the tokenizer's.
    """
    configs = [model.config, model.config.get_text_config(), model.generation_config]
    for config in filter(None, configs):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            stated, token = getattr(config, name, None), getattr(tokenizer, name)
            required = name == "eos_token_id" and config is model.generation_config
            if token is not None and (required if stated is None else token not in _as_list(stated)):
                setattr(config, name, token)


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]
