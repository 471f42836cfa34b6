"""Model folders that are not there, not whole or not of a kind, each given to a command; and what disks do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bad_inputs import Place, Row
from safetensors.torch import load_file, save_file

from workbench.backbone import Backbone
from workbench.backbone.adapters import save_adapters
from workbench.backbone.loading import load_weights, refuse_other_tokens
from workbench.depth import PlannedLayer
from workbench.surgery import restack_folder
from workbench.surgery.safetensors_io import CHUNK, PlannedTensor, StoredTensor, read_stored, write_model

Damage = Callable[[Path], object]


def edited(name: str, **changes: Any) -> Damage:
    """Other values in a JSON file; None takes a key out."""

    def damage(folder: Path) -> None:
        content = {**json.loads((folder / name).read_text()), **changes}
        (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return damage


def written(name: str, content: bytes) -> Damage:
    """Other bytes in a file."""
    return lambda folder: (folder / name).write_bytes(content)


def without(name: str) -> Damage:
    """No such file."""
    return lambda folder: (folder / name).unlink()


def weights(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Other tensors."""

    def damage(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def indexed(content: object) -> Damage:
    """The weights in one shard with an index beside it."""

    def damage(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "one.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))

    return damage


INDEX = "model.safetensors.index.json: expected"
NULL_END = written("tokenizer_config.json", b'{"eos_token": null}')
DAMAGED: list[tuple[str, Damage, str]] = [
    ("no config", without("config.json"), "there is no config.json, so it is not a Hugging Face model folder. Give"),
    ("half a config", written("config.json", b'{"model_type": '), "config.json: not readable as JSON"),
    ("a config of bytes", written("config.json", b"\xff\xfe"), "config.json: not readable as JSON"),
    ("a deep config", written("config.json", b"[" * 100_000), "config.json: not readable as JSON"),
    ("a list", written("config.json", b"[]"), "config.json: expected a JSON object, got list."),
    ("gpt2", edited("config.json", model_type="gpt2"), "model_type is 'gpt2'; expected one of llama, mistral, qwen2"),
    ("a family in a list", edited("config.json", model_type=["llama"]), "model_type is ['llama']; expected one of"),
    ("calm in words", edited("config.json", model_type="calm", augmenting="x"), "model_type is"),
    ("calm with a number", edited("config.json", model_type="calm", augmenting=3), "model_type is"),
    (
        "no weights",
        without("model.safetensors"),
        "there are no safetensors weights",
    ),
    ("cut weights", cut, "truncated or damaged. Copy it again."),
    ("a strange header", written("model.safetensors", b"\2\0\0\0\0\0\0\0[]"), "its header is broken. Copy it again."),
    (
        "an end in words",
        written("model.safetensors", b'\x21\0\0\0\0\0\0\0{"a": {"data_offsets": [0, "b"]}}'),
        "Copy it",
    ),
    ("an index of nothing", indexed({}), f"{INDEX} a weight_map"),
    ("an index of a list", indexed({"weight_map": []}), f"{INDEX} a weight_map"),
    ("an index of numbers", indexed({"weight_map": {"a": 1}}), f"{INDEX} a weight_map"),
    (
        "an index of shards that are not there",
        indexed({"weight_map": {"a": "b"}}),
        "b: named in the index, but not there",
    ),
    ("no tokenizer", without("tokenizer.json"), "there is no tokenizer (tokenizer.json"),
    ("an adapter beside", written("adapter_config.json", b"{}"), "broken holds a peft adapter (adapter_config.json), "),
    (
        "a quantised folder",
        edited("config.json", quantization_config={"quant_method": "gptq"}),
        "config.json: its weights are quantised (gptq), and do not train. Take the model as it was before",
    ),
    (
        "quantised weights",
        weights(lambda found: found.update({"model.norm.weight": torch.zeros(32, dtype=torch.int8)})),
        "model.norm.weight is stored as I8; expected F64, F32, F16, BF16. Take the model as it was before",
    ),
    ("no end", NULL_END, "tokenizer_config.json: the tokenizer has no end token (eos_token)"),
]
UNLOADABLE: list[tuple[str, Damage, str]] = [
    ("a broken tokenizer", written("tokenizer.json", b"{"), "broken: its tokenizer cannot be loaded: "),
    ("an odd config", edited("config.json", hidden_size="many"), "broken: its config.json cannot be loaded: "),
    ("an end that is absent", edited("tokenizer_config.json", eos_token=None), "The tokenizer has no end token"),
    ("few embeddings", edited("config.json", vocab_size=3), "2 weights are missing or of another shape, the first: "),
    (
        "a layer more",
        edited("config.json", num_hidden_layers=1),
        "9 weights are stored that config.json has no place for, the first: model.layers.1.input_layernorm.weight.",
    ),
    (
        "a tied head of its own",
        edited("config.json", tie_word_embeddings=True),
        "are stored with different values. Set tie_word_embeddings to false",
    ),
    (
        "a weight less",
        weights(lambda found: found.pop("model.layers.1.mlp.up_proj.weight")),
        "1 weights are missing or of another shape, the first: model.layers.1.mlp.up_proj.weight. Copy",
    ),
]


def damaged(name: str, damage: Damage, says: str, *argv: str) -> Row:
    """A copy of a model's folder that is damaged, given to a command as "broken"."""

    def lay(place: Place) -> None:
        place.config()
        damage(place.copied("broken"))

    return Row(f"{argv[0]}, {name}", ("broken", says), argv=argv, lay=lay)


def command(name: str, argv: str, *says: str, status: int = 2, **edits: Any) -> Row:
    """A command on the shipped model, and on a copy of another whose config is edited."""

    def lay(place: Place) -> None:
        if edits:
            edited("config.json", **edits)(place.copied("other"))
        (place.folder / "there").write_text("a file")

    return Row(f"{argv} {name}".strip(), says, argv=argv.split(), lay=lay, status=status)


RUN = ("run", "small.yaml", "backbone.path=broken")
CHAT = (*RUN, "data.template=chat")
END = (*RUN, "backbone.end_token=<no>")
BLOCKS, SOLAR = "grow mini out strategies.BlockExpansion", "grow mini out strategies.DepthUpScaling"
OTHER = "grow other out strategies.DepthUpScaling dropped=0"
GROWTH = [
    command("", f"{BLOCKS} grops=3", "BlockExpansion has no argument 'grops'. Did you mean 'groups'?"),
    command("", "grow mini out strategies.BlockExpansoin", "Did you mean 'BlockExpansion'?"),
    command("", f"{BLOCKS} groups", "'groups' is not an override. Write key=value"),
    command("an odd plan", OTHER, "layer_plan", "expected", layer_plan=[1, 2]),
    command("", "grow mini there/out strategies.DepthUpScaling dropped=0", "there", "Nothing was written.", status=1),
]
MERGING = [
    command("", "merge mini mini out methd=slerp", "merge has no argument 'methd'. Did you mean 'method'?"),
    command("", "merge mini mini out weight=half", "weight: expected float, got 'half' (str)."),
]
OUTPUTS = [
    Row("check, no class", ("'strategies' has no class 'LoRa'. Did you",), argv=("check", "strategies.LoRa")),
]


def shrunk(place: Place) -> None:
    """A file that gets shorter while it is copied."""
    tensor = read_stored(place.copied())["model.norm.weight"]
    tensor.file.write_bytes(tensor.file.read_bytes()[: tensor.start])
    for _ in tensor.read():
        pass


def too_large(place: Place) -> None:
    """More bytes than any disk has."""
    like = StoredTensor(place.model / "model.safetensors", 0, 10**18, "F32", (10**18 // 4,))
    write_model(place.folder / "out", {"norm": PlannedTensor(like, like.read)}, {}, place.model)


def interrupted(place: Place) -> None:
    """A Ctrl-C while a folder is written."""

    def read() -> Any:
        yield bytes(CHUNK)
        raise KeyboardInterrupt

    like = StoredTensor(place.model / "model.safetensors", 0, 2 * CHUNK, "F32", (CHUNK // 2,))
    write_model(place.folder / "out", {"norm": PlannedTensor(like, read)}, {}, place.model)


def surgery(name: str, damage: Damage, *says: str, source: int = 0) -> Row:
    """A folder that is whole to look at, and that cannot be grown."""

    def lay(place: Place) -> None:
        damage(place.copied("broken"))

    def call(place: Place) -> None:
        restack_folder(place.folder / "broken", [PlannedLayer(source)], place.folder / "out")

    return Row(name, ("broken", *says), call, lay=lay)


def retyped(place: Place) -> None:
    """Whole numbers, as in a quantised model."""
    folder = place.copied("broken")
    weights(lambda found: found.update({"model.norm.weight": torch.zeros(32, dtype=torch.int8)}))(folder)
    read_stored(folder)


def beside(place: Place) -> None:
    """An adapter in a model's folder, which only transformers looks at, as on the hub."""
    folder, backbone = place.copied("broken"), Backbone.load(place.model)
    backbone.add_adapter("one", r=2, target_modules=["q_proj"])
    save_adapters(backbone.model, folder)
    for file in (folder / "one").iterdir():
        file.rename(folder / file.name)
    load_weights(folder, torch.float32)


STORED = [
    Row(
        "a quantised model",
        ("broken", "model.norm.weight is stored as I8; expected F64", "Take the model as it was"),
        retyped,
        leaves=True,
    ),
    Row("an adapter on the hub", ("holds a peft adapter", "Fold it"), beside, leaves=True),
    Row(
        "other tokens",
        ("transformers splits text into other tokens than sentencepiece does", "Give a folder with tokenizer.json."),
        lambda place: refuse_other_tokens(Backbone.load(place.model).tokenizer, lambda text: [0]),
    ),
    surgery(
        "calm in surgery",
        edited("config.json", model_type="calm", text_config={"model_type": "llama"}),
        "is a composition of several models. Give the folder of a single one.",
    ),
    Row("a file that shrinks", ("has changed while it was read", "Leave it alone"), shrunk, error=OSError, leaves=True),
    Row("a disk that is too small", ("out needs 1000000000.0 GB", "GB left. Free some."), too_large),
    Row("an interrupt while writing", (), interrupted, error=KeyboardInterrupt),
    Row("a dtype", ("dtype='int8': choose 'float32'",), lambda place: Backbone.load(place.model, dtype="int8")),
]
ROWS = [
    *(damaged(*row, *RUN) for row in [*DAMAGED, *UNLOADABLE]),
    damaged(
        "no chat", lambda _: None, "broken: template: 'chat' needs a tokenizer with a chat template. Choose", *CHAT
    ),
    damaged("no such end", lambda _: None, "broken: end_token='<no>' is not in the tokenizer's", *END),
    *GROWTH,
    *MERGING,
    *OUTPUTS,
    *STORED,
]
