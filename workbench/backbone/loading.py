"""A model and its tokenizer as they are read, whole or not at all; new tokens' rows; what blocks keep in training."""

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
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from workbench.model_folder import ADAPTER, sentencepiece_alone

PROBE = "The cat  sat on 3.14 mats, wasn't it?"
"""Words, figures and two spaces in a row, which a tokenizer may keep or not."""
NOISE = 0.01
"""Of a new token's row, over the standard deviation of the others."""


def read_config(source: str | Path) -> Any:
    """The config of a folder or a hub id, as transformers understands it, with every default filled in.

    Raises:
        ValueError: transformers refuses it, and what to do about that.
    """
    with refusing(source, "its config.json cannot be loaded", "Mend it."):
        return AutoConfig.from_pretrained(source, trust_remote_code=False)


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or a hub id, without remote code.

    Raises:
        ValueError: It cannot be loaded, and what to do about that.
    """
    read_config(source)  # which its class depends on
    alone = isinstance(source, Path) and sentencepiece_alone(source)
    with refusing(source, "its tokenizer cannot be loaded", "Copy its tokenizer's files again."):
        if not alone:
            return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(source, trust_remote_code=False))
        tokenizer, encode = _from_sentencepiece(Path(source))
    refuse_other_tokens(tokenizer, encode)
    return tokenizer


def _from_sentencepiece(folder: Path) -> tuple[PreTrainedTokenizerBase, Callable[[str], list[int]]]:
    """A tokenizer.model without tokenizer.json as the LLaMA family reads it, and as sentencepiece itself does.

    Where no class is stated, transformers would leave out the space before a text, and where nothing is said of it the
    begin token, which this family's tokenizers add.
    """
    file = folder / "tokenizer_config.json"
    stated = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    loader = AutoTokenizer if "tokenizer_class" in stated else LlamaTokenizer
    tokenizer = loader.from_pretrained(folder, add_bos_token=stated.get("add_bos_token", True))
    processor = import_module("sentencepiece").SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return tokenizer, processor.encode


def refuse_other_tokens(tokenizer: PreTrainedTokenizerBase, encode: Callable[[str], list[int]]) -> None:
    """Compares a tokenizer with the program that it was made by.

    Raises:
        ValueError: They make other tokens of a text.
    """
    if tokenizer(PROBE, add_special_tokens=False).input_ids != encode(PROBE):
        told = "transformers makes other tokens of a text than sentencepiece does with this tokenizer.model"
        raise ValueError(f"{told}. Give a folder with tokenizer.json.")


def load_weights(source: str | Path, dtype: torch.dtype, checkpointed: bool = False) -> PreTrainedModel:
    """The model of a folder or a hub id: from safetensors, without remote code, every weight in its place.

    Args:
        source: The folder or the id.
        dtype: Of the weights.
        checkpointed: Whether its blocks keep their input alone (`checkpoint_blocks`).

    Raises:
        ValueError: A weight is missing, of another shape, or one that the config has no place for; the model comes with
            an adapter; or it cannot be loaded at all.
    """
    config = read_config(source)
    with refusing(source, "it cannot be loaded", "Copy it again."):
        model, info = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below
        )
    if hasattr(model, "peft_config"):  # as on the hub, where no header was read before
        raise ValueError(ADAPTER)
    if missing := sorted(info["missing_keys"]) + sorted(str(key[0]) for key in info["mismatched_keys"]):
        raise ValueError(
            f"{len(missing)} weights are missing or of another shape, the first: {missing[0]}. Copy them again."
        )
    if surplus := sorted(info["unexpected_keys"]):  # without what transformers knows to be of no use, as old buffers
        raise ValueError(
            f"{len(surplus)} weights are stored that config.json has no place for, the first: {surplus[0]}. "
            "Mend config.json (num_hidden_layers, attention_bias), or copy it again."
        )
    if model.config.tie_word_embeddings and _head(model) is not model.get_input_embeddings().weight:
        raise ValueError(
            "config.json ties the head to the embeddings, but the two are stored with different values. "
            "Set tie_word_embeddings to false in config.json, or leave lm_head.weight out of the file."
        )
    return checkpoint_blocks(model) if checkpointed else cast(PreTrainedModel, model)


@contextmanager
def refusing(source: str | Path, told: str, remedy: str) -> Iterator[None]:
    """Turns whatever loading raises into one sentence, and the remedy that fits it.

    Args:
        source: What is loaded: a folder, or an id on the hub.
        told: What cannot be done.
        remedy: What helps where the error itself does not say anything better.

    Raises:
        ValueError: Something was raised.
    """
    try:
        yield
    except Exception as error:  # transformers, tokenizers and the hub client each raise classes of their own
        sentence = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ValueError(f"{told}: {sentence}. {_remedy(error, source) or remedy}") from error


def _remedy(error: Exception, source: str | Path) -> str:
    """What helps against an error that copying a folder again does not help against."""
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
    """Gives the tokens from `first` on rows of their own in the embeddings and the head, so that there are `size`.

    Rows that are there already, as where a vocabulary was padded, are used before any is added. Each is the mean of the
    rows before `first`, which keeps the other tokens' probabilities nearly as they are (Hewitt, 2021, "Initializing
    new word embeddings for pretrained language models"), with a little noise from torch's generator of the CPU.
    """
    embeddings = model.get_input_embeddings()
    shape = (size - first, embeddings.weight.shape[1])
    noise = [torch.randn(shape) for _ in range(2)]  # before anything else draws: the same on each device
    if size > embeddings.num_embeddings:
        model.resize_token_embeddings(size, mean_resizing=False)
    weights = {id(weight): weight for weight in (embeddings.weight, _head(model)) if weight is not None}
    for weight, own in zip(weights.values(), noise, strict=False):
        rows = weight[:first].float()
        mean, deviation = rows.mean(0), rows.std(0)
        weight[first:size] = (mean + NOISE * deviation * own.to(weight.device)).to(weight.dtype)
        weight.grad = None  # of the shape before


def blocks(model: nn.Module) -> list[Any]:
    """The transformer blocks of a model, of all that it is composed of, wherever they came from."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def checkpoint_blocks(model: PreTrainedModel) -> PreTrainedModel:
    """Has each block keep its input alone in training, and compute the rest again for the gradients; copies do too."""
    for block in blocks(model):
        block.gradient_checkpointing = True
        block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    return model


def agree_on_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes the tokenizer's special tokens into the model's configs where those name others.

    A model that was trained to end with one token and whose generation config names another does not stop in plain
    transformers. Several end tokens stay as they are if the tokenizer's is among them.
    """
    configs = [model.config, model.config.get_text_config(), model.generation_config]
    for config in filter(None, configs):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            known, own = getattr(config, name, None), getattr(tokenizer, name)
            needed = name == "eos_token_id" and config is model.generation_config
            if own is not None and (needed if known is None else own not in _listed(known)):
                setattr(config, name, own)


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]
