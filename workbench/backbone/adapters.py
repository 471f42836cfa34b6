"""Low-rank adapters inside a backbone: the one file that knows peft."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

PREFIX = "base_model.model."
"""What plain peft puts before a module's name in a file."""
SUPPORTED = (
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "init_lora_weights"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"),
    *("task_type", "base_model_name_or_path", "revision"),
)
TRAINS_MORE = ("modules_to_save", "trainable_token_indices", "bias", "lora_bias")
STARTS = (True, False, "gaussian", "orthogonal", "pissa", "olora")
"""Values of `init_lora_weights` that need neither data nor another model, and are found again over the base model."""
TAKEN_FROM_WEIGHTS = ("pissa", "olora")
"""Starts that take what the adapter begins with out of the weight, so that the adapter alone is not what was learnt."""


def adapter_layers(model: nn.Module) -> list[BaseTunerLayer]:
    """The layers of a model that carry adapters, in its own order."""
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def adapter_names(model: nn.Module) -> list[str]:
    """The names of the adapters in a model, oldest first."""
    return list(getattr(model, "peft_config", {}))


def inject(model: PreTrainedModel, name: str, settings: Mapping[str, Any]) -> None:
    """Adds one adapter in place; it and all older ones are active, so that they add up.

    Only the new one trains: peft turns `requires_grad` on for whatever it activates, and an older
    adapter would otherwise go on training in silence.

    Args:
        model: The model; its class stays what it is.
        name: Of the new adapter.
        settings: Keyword arguments of `peft.LoraConfig`.

    Raises:
        ValueError: peft refuses the settings, or they ask for what is not supported here (`refuse_unsupported`), for a
            module that is not there, or for an adapter on the embeddings or on a head that is tied to them.
    """
    refuse_unsupported(settings)
    settings = {**settings, "target_modules": _named_targets(model, settings.get("target_modules"))}
    try:
        config = LoraConfig(**settings)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several are wanted here
            warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings")  # refused below
            warnings.filterwarnings("ignore", message=".*did not match any targeted module")  # refused below
            warnings.filterwarnings("error", message=".*no modules were excluded")
            inject_adapter_in_model(config, model, adapter_name=name)
    except (TypeError, ValueError, Warning) as error:
        told = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"peft: {told}. Give arguments of its LoraConfig that fit the model.") from error
    _refuse_idle_patterns(model, name, settings)
    shared = model.get_input_embeddings().weight
    for layer in adapter_layers(model):
        if isinstance(layer.base_layer, nn.Embedding):
            told = "an adapter on the embeddings is not supported: only projections carry one."
            raise ValueError(f"{told} Leave embed_tokens out of its targets.")
        if layer.base_layer.weight is shared and model.config.tie_word_embeddings:
            told = "an adapter on the tied head would change the embeddings as well when it is folded in."
            raise ValueError(f"{told} Leave lm_head out of its targets.")
        layer.set_adapter(adapter_names(model))
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(f".{name}." in key and "lora_" in key)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # small steps are lost in half precision


def refuse_unsupported(settings: Mapping[str, Any]) -> None:
    """Refuses arguments of `LoraConfig` with which something else would be scored or saved than what was trained.

    What is not in `SUPPORTED` may be given with the value that it has anyway. A name that peft does not know is peft's
    to refuse.

    Args:
        settings: Keyword arguments of `peft.LoraConfig`.

    Raises:
        ValueError: Names the first of them.
    """
    for field in fields(LoraConfig):
        if field.name not in settings or field.name in SUPPORTED:
            continue
        neutral: Any = field.default if field.default_factory is MISSING else field.default_factory()
        if (given := settings[field.name]) != neutral and (field.name, given) != ("peft_type", "LORA"):
            more = "only the low-rank factors train and are saved"
            why = more if field.name in TRAINS_MORE else "what is trained, scored and saved is W + scale · B A"
            raise ValueError(f"peft: {field.name}={given!r} is not supported: {why}. Leave it out.")
    start, task = settings.get("init_lora_weights", True), settings.get("task_type")
    if start not in STARTS:
        told = "it needs a pass over data, freezes a factor or starts at random where the adapter is loaded again"
        known = ", ".join(map(repr, STARTS))
        raise ValueError(f"peft: init_lora_weights={start!r} is not supported: {told}. Choose one of {known}.")
    if task not in (None, "CAUSAL_LM"):
        raise ValueError(f"peft: task_type={task!r}: the model is a causal language model. Leave it out.")


def _named_targets(model: PreTrainedModel, given: Any) -> Any:
    """`target_modules` for peft, each name checked: peft passes over one that is not there without a word.

    A string is "all-linear" or a regular expression for whole names; a bare name, which would match nothing as an
    expression, stands for a list of one.
    """
    if given is None or (isinstance(given, str) and not given.isidentifier()):
        return given
    names = [given] if isinstance(given, str) else list(given)
    paths = [path for path, _ in model.named_modules()]
    for name in names:
        if not any(path == name or path.endswith(f".{name}") for path in paths):
            linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
            there = sorted({path.rpartition(".")[2] for path in linear if "lora_" not in path} - {"base_layer"})
            raise ValueError(f"peft: target_modules: the model has no {name!r}. Choose from {', '.join(there)}.")
    return names


def _refuse_idle_patterns(model: PreTrainedModel, name: str, settings: Mapping[str, Any]) -> None:
    """Whether each pattern says something of a module that has got the adapter; peft does not ask."""
    paths = [path for path, layer in model.named_modules() if isinstance(layer, BaseTunerLayer) and name in layer.r]
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern in settings.get(key) or {}:
            if not any(re.match(rf"(.*\.)?({pattern})$", path) for path in paths):  # as peft reads it
                raise ValueError(f"peft: {key}: {pattern!r} fits no module that has an adapter. Leave it out.")


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Adapters folded into their weights while the context lasts, and the very same bits after it.

    Folding and unfolding by arithmetic leaves rounding behind, so the weights are kept and put back. What a
    parametrization (`torch.nn.utils.parametrize`) makes of a weight is computed once while the context lasts.
    """
    layers = [layer for layer in adapter_layers(model) if not layer.merged]  # an outer context may have folded them
    kept = [{key: value.clone() for key, value in layer.base_layer.state_dict().items()} for layer in layers]
    try:
        for layer in layers:
            layer.merge()
        with parametrize.cached():
            yield
    finally:
        for layer, state in zip(layers, kept, strict=True):
            layer.merged_adapters.clear()
            layer.base_layer.load_state_dict(state)


def merged_to_score(model: PreTrainedModel) -> AbstractContextManager[object]:
    """`merged`, which makes every pass shorter; but in half precision adapters stay as they were trained.

    There W + ΔW keeps few bits of a small ΔW, or none: a weight's neighbours in bfloat16 are up to 0.8 % away from it.
    """
    half = model.dtype.itemsize < 4 or torch.is_autocast_enabled(model.device.type)
    return parametrize.cached() if half else merged(model)


def fold_in(model: PreTrainedModel) -> None:
    """Folds every adapter into the weights for good and takes the adapter layers out."""
    for path, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, attribute = path.rpartition(".")
            setattr(model.get_submodule(parent), attribute, module.base_layer)
    if hasattr(model, "peft_config"):
        del model.peft_config


def plain_state_dict(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights under the names that the plain model has: without adapters, parametrized ones as they act.

    Inside `merged` these are the folded weights.
    """
    state: dict[str, Tensor] = dict(model.state_dict())
    for path, module in model.named_modules():
        inside = [key for key in state if key.startswith(f"{path}.")]
        if isinstance(module, BaseTunerLayer):
            base = {key.replace(".base_layer.", "."): state[key] for key in inside if ".base_layer." in key}
            state = {key: value for key, value in state.items() if key not in inside} | base
        elif parametrize.is_parametrized(module):
            kept = {key: value for key, value in state.items() if not key.startswith(f"{path}.parametrizations.")}
            state = kept | {f"{path}.{name}": getattr(module, name).detach() for name in module.parametrizations}
    return state


def save_adapters(model: PreTrainedModel, folder: Path) -> None:
    """Writes each adapter as a folder that plain peft loads over the base model."""
    for name in adapter_names(model):
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        tensors = {f"{PREFIX}{key}": value.detach().cpu().contiguous() for key, value in state.items()}
        save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
        model.peft_config[name].save_pretrained(target)


def saved_deltas(model: PreTrainedModel, folder: Path) -> dict[str, Tensor]:
    """What a saved adapter adds to each weight that it stands on, by the weight's name in the plain model.

    peft itself computes them, whatever scaling the adapter has. The model is the same afterwards.

    Args:
        model: A model without adapters, of the structure that the adapter was made for.
        folder: As `save_adapters` writes it.

    Returns:
        None at all for weight-decomposed ones (DoRA), which do not add up, and for those that began with a part of the
        weights (PiSSA, OLoRA), which are not all that was learnt.
    """
    config = LoraConfig.from_pretrained(folder)
    if config.use_dora or config.init_lora_weights in TAKEN_FROM_WEIGHTS:
        return {}
    state = load_file(folder / "adapter_model.safetensors")
    inject_adapter_in_model(config, model, adapter_name=folder.name)
    set_peft_model_state_dict(
        model, {key.removeprefix(PREFIX): value for key, value in state.items()}, adapter_name=folder.name
    )
    deltas = {}
    for path, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            deltas[f"{path}.weight"] = module.get_delta_weight(folder.name).detach()
            parent, _, attribute = path.rpartition(".")
            setattr(model.get_submodule(parent), attribute, module.base_layer)
    del model.peft_config
    return deltas


def freeze(module: nn.Module) -> None:
    """Nothing in the module trains."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
