"""Small models as GGUF files, written as llama.cpp's converter writes them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TEXTS = [
    "The cat sat on 3.14 mats, wasn't it? IT'S 12345 and 67 more.",
    "for i in range(10):\n    print(i)\n\n1\n\n2",
    "In 1999  there were   three spaces.\r\nÀ la carte, naïve café; e\u0301 in two parts: 你好 ٣٤",
    "a  12 b",
    "\n\n1",
]
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN_2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + REST
LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + REST
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,
}


def tokenizer_of(split: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that splits text as a value of `tokenizer.ggml.pre` says, trained on a few texts."""
    made = Tokenizer(models.BPE(ignore_merges=split == "llama-bpe"))
    regex = {"llama-bpe": LLAMA_3, "qwen2": QWEN_2}.get(split)
    parts: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex is None)]
    if regex:
        parts.insert(0, pre_tokenizers.Split(Regex(regex), behavior="isolated"))
    if split == "smollm":
        parts.insert(0, pre_tokenizers.Digits(individual_digits=True))
    made.pre_tokenizer = pre_tokenizers.Sequence(parts)
    made.decoder = decoders.ByteLevel()
    if split == "qwen2":
        made.normalizer = normalizers.NFC()
    ends = ["<|begin|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    # Trained without digits apart: there are merges of numbers, and only the split keeps them from being used.
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=ends, initial_alphabet=alphabet, show_progress=False)
    split_in_text, made.pre_tokenizer = made.pre_tokenizer, pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.train_from_iterator(TEXTS * 4, trainer)
    made.pre_tokenizer = split_in_text
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=ends[0], eos_token=ends[1], add_bos_token=split == "llama-bpe"
    )


def model_of(family: str, tokens: int, **changes: Any) -> PreTrainedModel:
    """A random model; a size that is None is left to its family."""
    torch.manual_seed(0)
    sizes = {name: size for name, size in {**SIZES, **changes}.items() if size is not None}
    config = AutoConfig.for_model(family, vocab_size=tokens, bos_token_id=0, eos_token_id=1, **sizes)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "norm.weight")):
            torch.nn.init.normal_(parameter, 1.0, 0.2)
    return model


def write_gguf(
    file: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    split: str = "gpt-2",
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    leave_out: tuple[str, ...] = (),
    **more: Any,
) -> Path:
    """Write a model and its tokenizer as llama.cpp's converter does; matrices in a type of ggml.

    Args:
        file: The file.
        model: The model.
        tokenizer: Its tokenizer.
        split: Value of `tokenizer.ggml.pre`.
        kind: Type of the matrices; vectors stay F32.
        leave_out: Keys that are not written.
        more: Keys that are added or replaced, such as **{"llama.rope.scaling.type": "yarn"}.
    """
    config = model.config
    family = str(more.pop("general.architecture", config.model_type))
    values: dict[str, Any] = {
        f"{family}.context_length": config.max_position_embeddings,
        f"{family}.embedding_length": config.hidden_size,
        f"{family}.block_count": config.num_hidden_layers,
        f"{family}.feed_forward_length": config.intermediate_size,
        f"{family}.attention.head_count": config.num_attention_heads,
        f"{family}.attention.head_count_kv": config.num_key_value_heads,
        f"{family}.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        f"{family}.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": split,
        "tokenizer.ggml.bos_token_id": tokenizer.bos_token_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
    }
    if getattr(config, "head_dim", None):
        values |= {f"{family}.attention.key_length": config.head_dim}
        if family == "llama":
            values |= {f"{family}.rope.dimension_count": config.head_dim}
    writer = gguf.GGUFWriter(file, family)
    for key, value in {**values, **more}.items():
        if key not in leave_out:
            add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
            add[type(value)](key, value)
    backend = tokenizer.backend_tokenizer
    vocabulary = sorted(backend.get_vocab().items(), key=lambda entry: entry[1])
    writer.add_token_list([token for token, _ in vocabulary])
    special = set(tokenizer.all_special_tokens)
    writer.add_token_types([3 if token in special else 1 for token, _ in vocabulary])
    merges = json.loads(backend.to_str())["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    for name, weight in stored(model, kind).items():
        writer.add_tensor(name, weight, raw_dtype=kind if weight.dtype == np.uint8 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def stored(model: PreTrainedModel, kind: gguf.GGMLQuantizationType) -> dict[str, np.ndarray]:
    """The weights as they are in a file."""
    tied = model.config.tie_word_embeddings
    found = {}
    for name, weight in model.state_dict().items():
        if not (tied and name.startswith("lm_head")):
            values = _ordered(model, name, weight.float().numpy())
            quantised = values.ndim > 1 and kind != gguf.GGMLQuantizationType.F32
            found[_renamed(name)] = gguf.quantize(values, kind) if quantised else values
    return found


def rounded(model: PreTrainedModel, kind: gguf.GGMLQuantizationType) -> None:
    """Round a model's own matrices to a type of ggml and back, row by row, as a file does."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.from_numpy(gguf.dequantize(gguf.quantize(parameter.numpy(), kind), kind)))


def _renamed(name: str) -> str:
    module, _, kind = name.rpartition(".")
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
    return f"blk.{layer[1]}.{NAMES[layer[2]]}.{kind}" if layer else f"{NAMES[module]}.{kind}"


def _ordered(model: PreTrainedModel, name: str, weight: np.ndarray) -> np.ndarray:
    """The rows of LLaMA's queries and keys in the order of llama.cpp's rotary embedding: pairs beside each other."""
    config = model.config
    heads = {"q_proj.weight": config.num_attention_heads, "k_proj.weight": config.num_key_value_heads}
    count = next((count for end, count in heads.items() if name.endswith(end)), None)
    if count is None or config.model_type != "llama":
        return weight
    halves = weight.reshape(count, 2, weight.shape[0] // count // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))
