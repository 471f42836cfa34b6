"""The models that are composed: made once, whole or not at all, the same bytes each time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.key_value_arithmetic import KeyValueArithmetic, Pretrain
from benchmarks.key_value_arithmetic.learning import encode, exact_match
from benchmarks.key_value_arithmetic.tokens import build_tokenizer
from workbench.backbone import Backbone
from workbench.benchmark import seeded_random
from workbench.model_folder import check_folder
from workbench.scorers import ExactMatch

TINY = {"keys": 300}
FEW = {"m_a": 4, "m_b": 3}
NAMES = ("m_a", "m_b", "m_a_untrained", "m_a_random")


class Watching:
    """Keeps what it is told."""

    def __init__(self, stop_at: int = 0) -> None:
        self.begun: list[str] = []
        self.done: list[tuple[int, int]] = []
        self.stop_at = stop_at

    def item_begins(self, name: str, place: str, trainable: str) -> None:
        self.begun.append(name)

    def steps(self, done: int, total: int, loss: float) -> None:
        self.done.append((done, total))
        if len(self.done) == self.stop_at:
            raise KeyboardInterrupt


def made_in(folder: Path, **arguments: Any) -> Pretrain:
    return Pretrain(folder, **{"seed": 3, "expressions": TINY, "steps": FEW, **arguments})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "seed-3"
    made_in(path)(Watching())
    return path


def test_each_folder_loads_as_a_backbone_of_one_size_and_one_tokenizer(folder: Path) -> None:
    backbones = [Backbone.load(folder / name) for name in NAMES]
    assert [check_folder(folder / name) for name in NAMES] == [[]] * 4
    assert len({sum(weight.numel() for weight in one.model.parameters()) for one in backbones}) == 1
    vocabularies = [one.tokenizer.get_vocab() for one in backbones]
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)
    assert {one.tokenizer.eos_token for one in backbones} == {"</s>"}


def test_the_same_seed_makes_the_same_bytes_and_another_does_not(folder: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    made_in(tmp_path / "again")(Watching())
    assert (torch.get_num_threads(), torch.equal(torch.get_rng_state(), state)) == (threads, True)
    for name in NAMES:
        for file in ("model.safetensors", "tokenizer.json", "config.json"):
            assert (folder / name / file).read_bytes() == (tmp_path / "again" / name / file).read_bytes(), name
    assert (folder / "scores.json").read_bytes() == (tmp_path / "again" / "scores.json").read_bytes()
    made_in(tmp_path / "other", seed=4)(Watching())
    assert (folder / "m_a" / "model.safetensors").read_bytes() != (
        tmp_path / "other" / "m_a" / "model.safetensors"
    ).read_bytes()


def test_the_four_models_differ(folder: Path) -> None:
    weights = [load_file(folder / name / "model.safetensors")["model.norm.weight"] for name in NAMES]
    assert torch.equal(weights[3], torch.ones_like(weights[3])), "random weights have an untouched norm"
    for index, one in enumerate(weights):
        assert not any(torch.equal(one, other) for other in weights[index + 1 :])


def test_what_is_there_is_left_and_what_is_missing_is_made_again(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    before = (copy / "m_b" / "model.safetensors").stat().st_mtime_ns
    watching = Watching()
    made_in(copy)(watching)
    assert watching.begun == []
    assert (copy / "m_b" / "model.safetensors").stat().st_mtime_ns == before
    (copy / "m_b" / "model.safetensors").unlink()
    made_in(copy)(watching)
    assert watching.begun == ["m_a", "m_b", "m_a_untrained"]
    assert watching.done[:1] + watching.done[3:5] + watching.done[-1:] == [(1, 4), (4, 4), (1, 3), (4, 4)]
    assert (copy / "m_b" / "model.safetensors").read_bytes() == (folder / "m_b" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"seed": 4}, "expressions: .*'seed': 3.* there, .*'seed': 4.* here"),
        ({"steps": {"m_a": 4, "m_b": 5}}, "steps: .*'m_b': 3.* there, .*'m_b': 5.* here"),
    ],
)
def test_a_folder_made_with_other_arguments_is_refused(folder: Path, changed: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        made_in(folder, **changed)(Watching())


def test_a_folder_of_something_else_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match=r"holds no recipe\.json"):
        made_in(tmp_path)(Watching())
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "mine"


def test_an_interruption_leaves_no_folder_and_the_next_try_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        made_in(tmp_path / "kv")(Watching(stop_at=6))
    assert not (tmp_path / "kv").exists()
    made_in(tmp_path / "kv")(Watching())
    assert [path.name for path in tmp_path.iterdir()] == ["kv"]
    assert (tmp_path / "kv" / "m_b" / "model.safetensors").read_bytes() == (
        folder / "m_b" / "model.safetensors"
    ).read_bytes()


def test_without_a_study_it_shows_a_bar_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_in(tmp_path / "kv", steps={"m_a": 2, "m_b": 2})()
    shown = capsys.readouterr().out
    for name in ("m_a", "m_b", "m_a_untrained"):
        assert name in shown
    assert "2/2" in shown


def test_the_scores_are_those_of_the_workbench_on_the_benchmarks_own_rows(folder: Path) -> None:
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    benchmark = KeyValueArithmetic(3, train_rows=1, expressions=TINY)
    assert list(scores) == list(NAMES)
    for name in ("m_a", "m_b"):
        backbone = Backbone.load(folder / name)
        for task in (benchmark[0], *benchmark.probes[1:]):
            metric = ExactMatch()
            prompts, answers = task.test["prompt"][:], task.test["answer"][:]
            metric.update(prompts, backbone.generate(prompts, task.max_new_tokens), answers)
            assert scores[name][task.name] == pytest.approx(float(metric.compute())), (name, task.name)
    assert {type(value) for row in scores.values() for value in row.values()} == {float}


def test_an_answer_with_one_wrong_token_counts_for_nothing(folder: Path) -> None:
    """A model that says "</s>" wherever it is asked is right about no answer."""
    backbone = Backbone.load(folder / "m_a_random")
    tokenizer, model = backbone.tokenizer, backbone.model
    with torch.no_grad():
        model.model.norm.weight.zero_()
    assert exact_match(model, tokenizer, [("1+2=", "3")]) == 0.0
    ids, answered = encode(tokenizer, [("1+2=", "3"), ("1-4=", "-3")])
    words = [tokenizer.convert_ids_to_tokens(row.tolist()) for row in ids]
    assert words[0] == ["<s>", "1", "+", "2", "=", "3", "</s>", "<pad>"]
    assert answered.int().tolist() == [[0, 0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1, 1, 1]]


def test_half_of_m_a_is_single_keys_and_m_b_never_meets_a_key() -> None:
    recipe = made_in(Path("unused"))
    makers = {learns: recipe._maker(learns) for learns in ("subs", "num")}
    rng = seeded_random("rows")
    subs = [makers["subs"](rng) for _ in range(4000)]
    alone = [row for row in subs if row[0].isalpha()]
    assert 0.46 < len(alone) / len(subs) < 0.54
    assert all(recipe.expressions.numbers[key] == int(answer) for key, answer in alone)
    num = [makers["num"](rng) for _ in range(400)]
    assert not any(sign.isalpha() for prompt, answer in num for sign in prompt + answer)


@pytest.mark.parametrize(
    ("steps", "told"), [({"m_c": 1}, "steps names 'm_c'"), ({"m_a": 0}, "steps.m_a=0 is out of range")]
)
def test_steps_that_cannot_be_are_told(tmp_path: Path, steps: dict[str, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Pretrain(tmp_path / "kv", steps=steps)


@pytest.mark.slow
def test_the_default_recipe_teaches_each_its_part_and_neither_both(tmp_path: Path) -> None:
    Pretrain(tmp_path / "kv", seed=10)()
    scores = json.loads((tmp_path / "kv" / "scores.json").read_text(encoding="utf-8"))
    assert min(scores["m_a"]["subs"], scores["m_b"]["num"]) > 0.98
    assert max(scores[name]["math"] for name in ("m_a", "m_b")) < 0.06


def test_the_tokenizer_of_a_folder_is_the_benchmarks(folder: Path) -> None:
    made = build_tokenizer(KeyValueArithmetic(3, expressions=TINY).expressions)
    assert Backbone.load(folder / "m_a").tokenizer.get_vocab() == made.get_vocab()
