"""Adapters inside a model: the only file that imports peft."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PromptTuningConfig,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from workbench.backbone.prompts import SoftEmbedding

PREFIX = "base_model.model."
"""peft's prefix of a module's name in a saved adapter."""
SUPPORTED = (
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "init_lora_weights"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"),
    *("task_type", "base_model_name_or_path", "revision"),
)
TRAINS_MORE = ("modules_to_save", "trainable_token_indices", "bias", "lora_bias")
"""Arguments that would train and save more than the low-rank factors."""
INITS = (True, False, "gaussian", "orthogonal", "pissa", "olora")
"""Values of `init_lora_weights` that need neither data nor another model, and load again on top of the base model."""
INITS_FROM_WEIGHT = ("pissa", "olora")
"""Initialisations that move a part of the weight into the adapter, so that the adapter alone is not what was learnt."""

KINDS = (
    *("C3A", "DEFT", "DELORA", "FOURIERFT", "GLORA", "GRALORA", "HIRA", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR"),
    *("LORA", "MISS", "OFT", "PEANUT", "PVERA", "RANDLORA", "ROAD", "SHIRA", "SUPERTUNING", "VERA", "WAVEFT"),
)
"""Kinds of adapters, as peft names them: what is trained is what is scored, merged, saved and loaded."""
PROMPT = "it puts trained vectors before the prompt or into the cache, and changes no weight"
SHARED = "it shares trained tensors among layers, which peft can save only within its own wrapper"
REFUSED = {
    "ADALORA": "it distributes ranks by calls within each step, which are not made here. Use LORA",
    "ADAMSS": "it clusters weights with scikit-learn, which is not installed with this project",
    "ADAPTION_PROMPT": PROMPT,
    "BEFT": "it trains biases, and projections of this family have none to merge them into",
    "BOFT": "it compiles a CUDA extension at its first use. Use OFT",
    "CARTRIDGE": PROMPT,
    "CPT": PROMPT,
    "FROD": "its saved files cannot be loaded again without peft's own wrapper",
    "LILY": "its update depends on the input, so that it cannot be merged",
    "MULTITASK_PROMPT_TUNING": PROMPT,
    "OSF": "it projects gradients, which protects nothing under Adam, whose step is another direction",
    "POLY": "it needs the number of the task with each prompt, and cannot be merged",
    "PREFIX_TUNING": PROMPT,
    "PROMPT_TUNING": PROMPT,
    "PSOFT": "a stopped run cannot rebuild the fixed part that it takes out of the weights",
    "P_TUNING": PROMPT,
    "SHADOW": "it runs a second network beside the model, and cannot be merged",
    "TINYLORA": "loaded again by peft, it is another model than the one that was saved",
    "TRAINABLE_TOKENS": "it trains rows of the embeddings, which a tied head shares. Use Backbone.add_tokens",
    "UNILORA": SHARED,
    "VBLORA": SHARED,
    "XLORA": "it mixes adapters by the input, so that it cannot be merged",
}
"""Why the other kinds that peft has are refused."""
NEEDS_FLOAT32 = ("DELORA", "LN_TUNING", "PVERA", "RANDLORA", "VERA")
"""Kinds whose layers compute with their own float32 tensors and cannot read half-precision states."""
NOT_GIVEN = ("peft_type", "peft_version", "auto_mapping")
"""Fields of a config that its user does not set."""
DRAWN_AGAIN = "save_projection"
"""Argument of kinds with random projections; they are not saved but drawn again from the seed in the config."""


def adapter_layers(model: nn.Module) -> list[BaseTunerLayer]:
    """Return the layers of a model that carry adapters, in the model's order."""
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def adapter_names(model: nn.Module) -> list[str]:
    """Return the names of the adapters in a model, oldest first."""
    return list(getattr(model, "peft_config", {}))


def lora_settings(rank: int, alpha: float, dropout: float, targets: Sequence[str] | str) -> dict[str, Any]:
    """Return the arguments of `peft.LoraConfig` for W + (alpha / rank) B A.

    Args:
        rank: Rank of the update.
        alpha: Its scale, which is divided by the rank.
        dropout: Dropout probability of the adapter's inputs in training, in [0, 1).
        targets: Names of projections, a single one, "all-linear", or a regular expression for full names.

    Raises:
        ValueError: A number is out of range, or there are no targets.
    """
    if rank < 1:
        raise ValueError(f"rank={rank} is out of range; it has to be at least 1.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout} is out of range; it has to be at least 0 and less than 1.")
    if alpha <= 0:
        raise ValueError(f"alpha={alpha} is out of range; it has to be more than 0.")
    if not targets:
        raise ValueError("targets is empty: no projection would get an adapter. Name one or more.")
    named = [targets] if isinstance(targets, str) and targets.isidentifier() else targets
    chosen = named if isinstance(named, str) else list(named)
    own = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "target_modules": chosen}
    return {"task_type": "CAUSAL_LM", **own}


def inject(model: PreTrainedModel, name: str, settings: Mapping[str, Any]) -> None:
    """Add an adapter in place; it and all older ones are active, so that they add up.

    Only the new one trains: peft turns `requires_grad` on for whatever it activates, so that an older adapter would
    silently continue to train.

    Args:
        model: The model; its class stays the same.
        name: Name of the new adapter.
        settings: Keyword arguments of `peft.LoraConfig`.

    Raises:
        ValueError: peft rejects the settings; they are not supported here (`refuse_unsupported`); or they name a
            module that does not exist, the embeddings, or a head that is tied to the embeddings.
    """
    refuse_unsupported(settings)
    settings = {**settings, "target_modules": _named_targets(model, settings.get("target_modules"))}
    try:
        config = LoraConfig(**settings)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are wanted
            warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings")  # raised below
            warnings.filterwarnings("ignore", message=".*did not match any targeted module")  # raised below
            warnings.filterwarnings("error", message=".*no modules were excluded")
            inject_adapter_in_model(config, model, adapter_name=name)
    except (TypeError, ValueError, Warning) as error:
        message = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"peft: {message}. Give arguments of its LoraConfig that fit the model.") from error
    _refuse_unused_patterns(model, name, settings)
    _refuse_embeddings(model)
    for layer in adapter_layers(model):
        layer.set_adapter(adapter_names(model))
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(f".{name}." in key and "lora_" in key)
    _train_in_float32(model)


def inject_kind(model: PreTrainedModel, name: str, kind: Any, settings: Mapping[str, Any]) -> None:
    """Add an adapter of any of `KINDS` in place, which is the only thing that trains.

    Only adapters of kind "LORA" add up, so any other has to be alone.

    Args:
        model: The model; its class stays the same.
        name: Name of the new adapter.
        kind: One of `KINDS`, in any case; or a config of peft, whose own arguments come before `settings`.
        settings: Keyword arguments of the kind's config in peft.

    Raises:
        ValueError: The kind is not supported, with the reason; or peft or this module rejects the settings.
    """
    if isinstance(kind, PeftConfig):
        given = {field.name: getattr(kind, field.name) for field in fields(kind) if field.name not in NOT_GIVEN}
        changed = {key: value for key, value in given.items() if value != _neutral(kind, key)}
        kind, settings = kind.peft_type, {**changed, **settings}
    kind = str(getattr(kind, "value", kind)).upper()
    if kind == "LORA":
        inject(model, name, settings)
        return
    settings = _checked_settings(model, kind, settings)
    freeze(model)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings")  # raised below
            warnings.filterwarnings("ignore", message="Specified to not save")  # as intended
            warnings.filterwarnings("ignore", message="Unsupported layer type")  # LN_TUNING copies any norm
            config = PEFT_TYPE_TO_CONFIG_MAPPING[kind](**settings)
            PEFT_TYPE_TO_TUNER_MAPPING[kind](model, config, adapter_name=name)
    except (TypeError, ValueError) as error:
        message = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"peft: {kind}: {message}. Give arguments of its config that fit the model.") from error
    _refuse_embeddings(model)
    _train_in_float32(model)


def _checked_settings(model: PreTrainedModel, kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a kind other than "LORA" for peft, after checking kind, settings and targets."""
    if kind not in KINDS:
        why = REFUSED.get(kind, "it has not been tested here" if kind in PEFT_TYPE_TO_CONFIG_MAPPING else "unknown")
        raise ValueError(f"peft: an adapter of kind {kind} is not supported: {why}. Choose from {', '.join(KINDS)}.")
    if kind in NEEDS_FLOAT32 and model.dtype.itemsize < 4:
        message = f"peft: {kind} computes in float32, and the model's weights are {model.dtype}."
        raise ValueError(f"{message} Give backbone.dtype=float32, with trainer.precision=bf16-mixed for speed.")
    if names := adapter_names(model):
        raise ValueError(f"peft: the model has the adapter {names[0]!r}, to which {kind} cannot be added. Fold it in.")
    for key in (*TRAINS_MORE, DRAWN_AGAIN, "inference_mode"):
        if (given := settings.get(key)) and (key, given) != ("bias", "none"):
            why = "only the adapter trains and is saved, and random projections are drawn again from their seed"
            raise ValueError(f"peft: {kind}: {key}={given!r} is not supported: {why}. Leave it out.")
    config = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    drawn = {DRAWN_AGAIN: False} if any(field.name == DRAWN_AGAIN for field in fields(config)) else {}
    targets = {"target_modules": _named_targets(model, settings.get("target_modules"))}
    return {"task_type": "CAUSAL_LM", **settings, **drawn, **targets}


def _refuse_embeddings(model: PreTrainedModel) -> None:
    """Raise if an adapter is on the embeddings, or on a head that is tied to them."""
    shared = model.get_input_embeddings().weight
    for layer in adapter_layers(model):
        if isinstance(layer.base_layer, nn.Embedding):
            message = "an adapter on the embeddings is not supported: only projections carry one."
            raise ValueError(f"{message} Leave embed_tokens out of its targets.")
        if layer.base_layer.weight is shared and model.config.tie_word_embeddings:
            message = "an adapter on the tied head would change the embeddings as well when it is folded in."
            raise ValueError(f"{message} Leave lm_head out of its targets.")


def _train_in_float32(model: PreTrainedModel) -> None:
    """Convert what trains to float32: small optimizer steps are lost in half precision."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _neutral(config: Any, name: str) -> Any:
    """Return the default of an argument of a config."""
    field: Field[Any] = next(field for field in fields(config) if field.name == name)
    if field.default_factory is not MISSING:
        return field.default_factory()
    return None if field.default is MISSING else field.default


def refuse_unsupported(settings: Mapping[str, Any]) -> None:
    """Refuse arguments of `LoraConfig` with which the scored or saved model would differ from the trained one.

    An argument outside `SUPPORTED` may be given with its default value. Unknown names are left for peft to reject.

    Args:
        settings: Keyword arguments of `peft.LoraConfig`.

    Raises:
        ValueError: An argument is not supported; the message names the first one.
    """
    for field in fields(LoraConfig):
        if field.name not in settings or field.name in SUPPORTED:
            continue
        neutral = _neutral(LoraConfig, field.name)
        if (given := settings[field.name]) != neutral and (field.name, given) != ("peft_type", "LORA"):
            trains_more = "only the low-rank factors train and are saved"
            formula = "what is trained, scored and saved is W + scale · B A"
            why = trains_more if field.name in TRAINS_MORE else formula
            raise ValueError(f"peft: {field.name}={given!r} is not supported: {why}. Leave it out.")
    init, task = settings.get("init_lora_weights", True), settings.get("task_type")
    if init not in INITS:
        why = "it needs a pass over data, freezes a factor, or is random again when the adapter is loaded"
        choices = ", ".join(map(repr, INITS))
        raise ValueError(f"peft: init_lora_weights={init!r} is not supported: {why}. Choose one of {choices}.")
    if task not in (None, "CAUSAL_LM"):
        raise ValueError(f"peft: task_type={task!r}: the model is a causal language model. Leave it out.")


def _named_targets(model: PreTrainedModel, given: Any) -> Any:
    """Return `target_modules` for peft after checking each name: peft silently ignores a name that does not exist.

    A string is "all-linear" or a regular expression for whole paths. A bare name would match nothing as an expression,
    so it is read as a list of one.
    """
    if given is None or (isinstance(given, str) and not given.isidentifier()):
        return given
    names = [given] if isinstance(given, str) else list(given)
    paths = [path for path, _ in model.named_modules()]
    for name in names:
        if not any(path == name or path.endswith(f".{name}") for path in paths):
            linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
            choices = sorted({path.rpartition(".")[2] for path in linear if "lora_" not in path} - {"base_layer"})
            raise ValueError(f"peft: target_modules: the model has no {name!r}. Choose from {', '.join(choices)}.")
    return names


def _refuse_unused_patterns(model: PreTrainedModel, name: str, settings: Mapping[str, Any]) -> None:
    """Raise if a pattern matches no module with the adapter; peft does not check this."""
    paths = [path for path, layer in model.named_modules() if isinstance(layer, BaseTunerLayer) and name in layer.r]
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern in settings.get(key) or {}:
            if not any(re.match(rf"(.*\.)?({pattern})$", path) for path in paths):  # as peft matches it
                raise ValueError(f"peft: {key}: {pattern!r} fits no module that has an adapter. Leave it out.")


def carriers_and_factors(model: nn.Module) -> tuple[set[nn.Parameter], set[nn.Parameter]]:
    """Return the weights into which adapters are folded, and the adapters' own parameters."""
    carriers, factors = set(), set()
    for layer in adapter_layers(model):
        carriers.add(layer.base_layer.weight)
        factors |= {value for name, value in layer.named_parameters() if not name.startswith("base_layer.")}
    return carriers, factors


def update_factors(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Return the factor B of each adapter by name; the update ΔW = scale · B A is linear in it.

    Raises:
        ValueError: An adapter's update is not scale · B A alone.
    """
    for name, config in getattr(model, "peft_config", {}).items():
        if getattr(config, "use_dora", True) or config.init_lora_weights in INITS_FROM_WEIGHT:
            problem = f"the adapter {name!r} is no LoRA, or is DoRA, PiSSA or OLoRA, and cannot be scaled."
            raise ValueError(f"{problem} Fold it into the weights after each task, as LoRA(policy='merge') does.")
    return {name: parameter for name, parameter in model.named_parameters() if ".lora_B." in name}


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Fold the adapters into the weights within the context; afterwards the weights are bitwise the same.

    Adding and subtracting an adapter leaves rounding errors, so the original weights are copied and restored.
    Parametrized weights (`torch.nn.utils.parametrize`) are computed once within the context.
    """
    layers = [layer for layer in adapter_layers(model) if not layer.merged]  # an outer context may have merged them
    modules = [layer.base_layer for layer in layers]
    originals = [{key: value.clone() for key, value in module.state_dict().items()} for module in modules]
    try:
        for layer in layers:
            layer.merge()
        with parametrize.cached():
            yield
    finally:
        for layer, module, state in zip(layers, modules, originals, strict=True):
            if layer.merged and layer.base_layer is not module:  # LN_TUNING swaps whole modules
                layer.unmerge()
            layer.merged_adapters.clear()
            layer.base_layer.load_state_dict(state)


def merged_to_score(model: PreTrainedModel) -> AbstractContextManager[object]:
    """Return `merged(model)`, which makes every forward pass faster; in half precision the adapters stay separate.

    In half precision W + ΔW keeps few bits of a small ΔW, or none: neighbouring bfloat16 values differ by up to 0.8 %.
    """
    half = model.dtype.itemsize < 4 or torch.is_autocast_enabled(model.device.type)
    return parametrize.cached() if half else merged(model)


def fold_in(model: PreTrainedModel) -> None:
    """Fold every adapter into the weights permanently and remove the adapter layers."""
    for path, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, attribute = path.rpartition(".")
            setattr(model.get_submodule(parent), attribute, module.base_layer)
    if hasattr(model, "peft_config"):
        del model.peft_config


def plain_state_dict(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the weights under the plain model's names: without adapters and soft prompts, parametrizations applied.

    Within `merged`, these are the folded weights.
    """
    state: dict[str, Tensor] = dict(model.state_dict())
    for path, module in model.named_modules():
        inside = [key for key in state if key.startswith(f"{path}.")]
        if isinstance(module, BaseTunerLayer):
            base = {key.replace(".base_layer.", "."): state[key] for key in inside if ".base_layer." in key}
            state = {key: value for key, value in state.items() if key not in inside} | base
        elif isinstance(module, SoftEmbedding):
            state = {key: value for key, value in state.items() if key not in inside or key == f"{path}.weight"}
        elif parametrize.is_parametrized(module):
            others = {key: value for key, value in state.items() if not key.startswith(f"{path}.parametrizations.")}
            state = others | {f"{path}.{name}": getattr(module, name).detach() for name in module.parametrizations}
    return state


def save_adapters(model: PreTrainedModel, folder: Path) -> None:
    """Write each adapter to a folder of its name, which plain peft loads on top of the base model."""
    for name in adapter_names(model):
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        tensors = {f"{PREFIX}{key}": value.detach().cpu().contiguous() for key, value in state.items()}
        save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
        model.peft_config[name].save_pretrained(target)


def save_prompts(embedding: SoftEmbedding, prefix: Sequence[int], folder: Path) -> None:
    """Write soft prompts, and the prefix as a prompt that plain peft puts before every text.

    Prompts that are chosen for each row are beyond peft; they are in the file `soft_prompts.safetensors` alone.

    Args:
        embedding: The embeddings with the prompts.
        prefix: Token ids before each row; without any, or with slots, no prompt for peft is written.
        folder: Where to write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = {name: value for name, value in embedding.state_dict().items() if name != "weight"}
    state = {name: value.detach().cpu().contiguous() for name, value in parts.items()}
    save_file(state, folder / "soft_prompts.safetensors", metadata={"format": "pt"})
    if not prefix or embedding.selector is not None:
        return
    with torch.no_grad():
        vectors = embedding(torch.tensor(prefix, device=embedding.weight.device))
    target = folder / "prefix"
    target.mkdir(exist_ok=True)
    tensors = {"prompt_embeddings": vectors.cpu().contiguous()}
    save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=len(vectors), token_dim=vectors.shape[1])
    config.inference_mode = True
    config.save_pretrained(target)


def saved_deltas(model: PreTrainedModel, folder: Path) -> dict[str, Tensor]:
    """Return the weight updates ΔW of a saved adapter, computed by peft; the model is unchanged afterwards.

    Args:
        model: A model without adapters, of the structure that the adapter was trained on.
        folder: A folder written by `save_adapters`.

    Returns:
        ΔW by the weight's name in the plain model. Empty for DoRA and other kinds than "LORA", which are not additive,
        and for PiSSA and OLoRA, whose adapter contains a part of the original weights.
    """
    config = PeftConfig.from_pretrained(folder)
    if not isinstance(config, LoraConfig) or config.use_dora or config.init_lora_weights in INITS_FROM_WEIGHT:
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
    """Freeze all parameters of a module."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
