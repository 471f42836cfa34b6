"""What makes MiniTrace worth having: methods learn on it, they forget, and they do so differently.

The slow tests look at the shipped study `mini_trace`, which takes half an hour. Name its folder in
WORKBENCH_MINI_TRACE to look at one that is there already.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from statistics import fmean

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from benchmarks.mini_trace import MiniTrace
from strategies import SeqFT
from workbench.backbone import Backbone
from workbench.config import load
from workbench.metrics import backward_transfer, learning_accuracy, overall_performance
from workbench.results import RunFolder
from workbench.study import Study
from workbench.train import ContinualDataModule, ContinualModule, learn_in_sequence

SEEDS = (0, 1, 2)
LABELS = ("topic_stance", "policy_stance", "choice")
Runs = Mapping[tuple[str, int], RunFolder]
Mean = Callable[[str], Tensor]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The runs of the shipped study by strategy and seed."""
    folder = os.environ.get("WORKBENCH_MINI_TRACE")
    if folder is None:
        output = tmp_path_factory.mktemp("runs")
        Study("mini_trace", [f"output={output}"]).run()
        folder = str(output / "mini_trace")
    names = ("per_task_ft", "joint", "seqft", "replay", "lora", "block_expansion")
    return {
        (name, seed): RunFolder(Path(folder) / name / "default" / f"seed-{seed}") for name in names for seed in SEEDS
    }


@pytest.fixture(scope="module")
def mean(runs: Runs) -> Mean:
    """The score matrix of a strategy, (9, 8), averaged over the seeds."""
    return lambda name: torch.stack([runs[name, seed].matrix() for seed in SEEDS]).mean(0)


def probe_scores(run: RunFolder, after: int) -> float:
    """The mean over the probes after so many tasks."""
    return fmean(run.value(after, name, "accuracy") for name in run.environment()["protocol"]["probes"])


@pytest.mark.slow
def test_the_untouched_model_knows_the_probes_and_not_the_domains(runs: Runs, mean: Mean) -> None:
    assert float(mean("seqft")[0].mean()) <= 0.35
    assert float(mean("seqft")[0, :7].max()) <= 0.35  # simplify's score is SARI, which never falls far
    assert probe_scores(runs["seqft", 0], 0) >= 0.85
    assert set(runs["seqft", 0].environment()["protocol"]["majority"]) == set(LABELS)


@pytest.mark.slow
def test_the_domains_can_be_learnt_together_and_each_alone(mean: Mean) -> None:
    assert int((mean("joint")[-1] >= 0.9).sum()) >= 6
    assert float(mean("per_task_ft")[1:].diagonal().min()) >= 0.85


@pytest.mark.slow
def test_they_are_learnt_in_sequence(runs: Runs, mean: Mean) -> None:
    protocol = runs["seqft", 0].environment()["protocol"]
    learnt = dict(zip(protocol["order"], mean("seqft")[1:].diagonal().tolist(), strict=True))
    assert fmean(learnt.values()) >= 0.75
    for name in LABELS:
        assert learnt[name] >= protocol["majority"][name][1] + 0.3
    for name in ("lora", "block_expansion"):
        assert learning_accuracy(mean(name)) >= 0.5


@pytest.mark.slow
def test_fine_tuning_forgets_without_hitting_the_floor(runs: Runs, mean: Mean) -> None:
    matrix = mean("seqft")
    assert backward_transfer(matrix) <= -0.15
    last, untouched, learnt = matrix[-1, :7], matrix[0, :7], matrix[1:].diagonal()[:7]
    assert int(((last >= untouched + 0.1) & (last <= learnt - 0.1)).sum()) >= 4
    assert fmean(probe_scores(runs["seqft", seed], 8) - probe_scores(runs["seqft", seed], 0) for seed in SEEDS) <= -0.1


@pytest.mark.slow
def test_a_tenth_of_the_old_rows_brings_back_half_of_what_is_forgotten(mean: Mean) -> None:
    assert backward_transfer(mean("replay")) >= 0.5 * backward_transfer(mean("seqft"))


@pytest.mark.slow
def test_seeds_differ_less_than_methods(runs: Runs) -> None:
    """At least two pairs of methods lie further apart in OP than the seeds of either."""
    scores = {
        name: [float(overall_performance(runs[name, seed].matrix())) for seed in SEEDS]
        for name in ("seqft", "replay", "lora", "block_expansion")
    }
    spread = {name: max(values) - min(values) for name, values in scores.items()}
    apart = [
        (one, other)
        for one, other in combinations(scores, 2)
        if abs(fmean(scores[one]) - fmean(scores[other])) > max(spread[one], spread[other])
    ]
    assert len(apart) >= 2, (scores, spread)


def test_two_domains_are_learnt_in_48_steps_each_and_the_first_is_forgotten_in_part(tmp_path: Path) -> None:
    """The shipped model, the first two domains and the study's rate: the quick form of the tests above."""
    benchmark = MiniTrace(test_rows=64, validation_rows=0)
    chosen = load("mini_trace").settings("seqft").optimizer
    rate = chosen.init_args["lr"]
    module = ContinualModule(
        Backbone.load("mini"), SeqFT(), lambda _, parameters, __: (torch.optim.AdamW(parameters, lr=rate), None)
    )
    trainer = {"max_epochs": 3, "accelerator": "cpu", "enable_model_summary": False, "default_root_dir": tmp_path}
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    run = RunFolder(tmp_path)
    learn_in_sequence(
        module,
        ContinualDataModule([benchmark[1], benchmark[2]], batch_size=32),
        lambda _, callbacks: Trainer(callbacks=callbacks, **trainer, **quiet),
        run,
    )
    untouched, first, last = run.matrix().tolist()
    assert max(untouched) <= 0.2
    assert min(first[0], last[1]) >= 0.8
    assert untouched[0] + 0.1 <= last[0] <= first[0] - 0.1
