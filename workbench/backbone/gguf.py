"""Read a model of the LLaMA family and its tokenizer from a GGUF file, with its weights dequantised.

The metadata's meaning comes from transformers, the dequantisation and the tensors' names from gguf. Their readers are
not used: transformers' `load_gguf_checkpoint` leaves out tensors that it has no place for, without a word, and takes
several times as long (it builds the table of names for each module), while every run of a study reads the model again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.integrations import GGUF_CONFIG_MAPPING
from transformers.utils import logging

from workbench.gguf_header import GgufHeader, read_gguf_header

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
BEGIN_TOKEN = ("llama3", "llama-v3", "llama-bpe")
"""Splits whose tokenizers begin a text with the begin token and take whole words from the vocabulary, unmerged."""
ENDS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
"""Special tokens by transformers' name: their names in GGUF."""


def read_config(file: Path) -> Any:
    """Return transformers' config of a GGUF file.

    Raises:
        ValueError: A value differs by layer.
    """
    header = read_gguf_header(file)
    stated = {name: header.of_model(key) for key, name in GGUF_CONFIG_MAPPING[header.family].items() if name}
    stated |= {name: header.values.get(f"tokenizer.ggml.{key}") for name, key in _token_ids()}
    stated["head_dim"] = header.of_model("attention.key_length", stated.get("head_dim"))
    stated["vocab_size"] = stated["vocab_size"] or len(header.values["tokenizer.ggml.tokens"])
    stated["tie_word_embeddings"] = all(tensor.name != "output.weight" for tensor in header.tensors)
    if varying := [name for name, value in stated.items() if isinstance(value, range)]:
        raise ValueError(f"its {varying[0]} differs by layer; expected one number")
    given = {name: _shortest(value) for name, value in stated.items() if value is not None}
    return AutoConfig.for_model(header.family, architectures=[_architecture(header.family)], **given)


def _token_ids() -> list[tuple[str, str]]:
    return [(f"{token}_id", key) for token, key in ENDS.items() if token != "unk_token"]


def _architecture(family: str) -> str:
    return f"{family.capitalize()}ForCausalLM"


def _shortest(value: Any) -> Any:
    """Return the shortest decimal of a number that was stored in 32 bits.

    >>> _shortest(9.999999747378752e-06)
    1e-05
    """
    return float(str(np.float32(value))) if isinstance(value, float) else value


def read_tensors(file: Path, config: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the dequantised weights of a GGUF file by transformers' names.

    Args:
        file: The file.
        config: Its config, see `read_config`.
        dtype: Precision of the result; the weights are dequantised in float32.

    Raises:
        ValueError: A tensor has no place in the model.
    """
    header = read_gguf_header(file)
    names = _names(header, config)
    if surplus := [tensor.name for tensor in header.tensors if tensor.name not in names]:
        message = f"{len(surplus)} of its tensors have no place in a {header.family} model, the first: {surplus[0]}"
        raise ValueError(f"{message}. Take the model's Hugging Face folder.")
    return {names[name]: weights.to(dtype) for name, weights in _dequantised(file, header, config)}


def _names(header: GgufHeader, config: Any) -> dict[str, str]:
    """Return transformers' names of a model's weights by their names in GGUF."""
    gguf = import_module("gguf")
    family = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == header.family)
    known = gguf.get_tensor_name_map(family, config.num_hidden_layers)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    weights = ((name, *name.rpartition(".")[::2]) for name in model.state_dict())
    return {f"{known.get_name(module)}.{kind}": name for name, module, kind in weights}


def _dequantised(file: Path, header: GgufHeader, config: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor in float32."""
    gguf = import_module("gguf")
    content = np.memmap(file, mode="r")
    paired = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, shape, number, start, size in logging.tqdm(header.tensors, desc="Dequantising"):
        kind = gguf.GGMLQuantizationType(number)
        stored = content[start : start + size].reshape(gguf.quant_shape_to_byte_shape(shape, kind))
        weights = gguf.dequantize(stored, kind)
        if header.family == "llama" and (heads := paired.get(name.split(".")[-2])):
            weights = _halved(weights, heads)
        yield name, torch.from_numpy(np.array(weights, dtype=np.float32))


def _halved(weights: np.ndarray, heads: int) -> np.ndarray:
    """Return the rows of queries or keys in transformers' order.

    A head's rows rotate in pairs: llama.cpp has the two of a pair beside each other, transformers half a head apart.

    >>> _halved(np.arange(8).reshape(8, 1), heads=2)[:, 0].tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    pairs = weights.reshape(heads, -1, 2, weights.shape[-1])
    return pairs.swapaxes(1, 2).reshape(weights.shape)


def read_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a GGUF file.

    `tokenizer.ggml.pre` names the rule by which text is split before the merges. transformers does not look at it, and
    gives most tokenizers GPT-2's rule; here the named one is used, as in llama.cpp.
    """
    values = read_gguf_header(file).values
    split = values["tokenizer.ggml.pre"]
    # Not by from_pretrained, which would prefer a tokenizer.json that lies beside the file.
    read = PreTrainedTokenizerFast(name_or_path=str(file.absolute().parent), gguf_file=file.name)
    backend = _without_surplus(read.backend_tokenizer, len(values["tokenizer.ggml.tokens"]))
    backend.pre_tokenizer = _pre_tokenizer(split)
    backend.normalizer = normalizers.NFC() if split == "qwen2" else None
    if split in BEGIN_TOKEN:
        backend.model.ignore_merges = True
    ids = {token: values.get(f"tokenizer.ggml.{key}") for token, key in ENDS.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        add_bos_token=values.get("tokenizer.ggml.add_bos_token", split in BEGIN_TOKEN),
        add_eos_token=values.get("tokenizer.ggml.add_eos_token", False),
        chat_template=values.get("tokenizer.chat_template"),
        model_max_length=read_config(file).max_position_embeddings,
        clean_up_tokenization_spaces=False,
        **{token: backend.id_to_token(number) for token, number in ids.items() if number is not None},
    )


def _without_surplus(backend: Tokenizer, tokens: int) -> Tokenizer:
    """Take out GPT-2's own tokens, which transformers adds where the file has no such tokens."""
    state = json.loads(backend.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < tokens]
    return Tokenizer.from_str(json.dumps(state))


def _pre_tokenizer(split: str) -> Any:
    """Return how text is split before the merges.

    Args:
        split: Value of `tokenizer.ggml.pre`, one of `gguf_header.SPLITS`.
    """
    if split == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if split in ("smollm", "starcoder", "refact"):
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    words = pre_tokenizers.Split(Regex(QWEN_2 if split == "qwen2" else LLAMA_3), behavior="isolated")
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
