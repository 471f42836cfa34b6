"""Why LLaMA Pro zeroes output projections and not norm scales, on mini: `pytest -m slow -s` prints the figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.studies import column, trainer
from torch import Tensor, nn

from benchmarks.mini_trace import MiniTrace
from strategies import BlockExpansion
from workbench.backbone import Backbone
from workbench.backbone.encoding import TextPolicy
from workbench.results import RunFolder
from workbench.train import ContinualDataModule, ContinualModule, learn_in_sequence

DOMAINS = ("policy_stance", "number_cm")


class ZeroedNorms(BlockExpansion):
    """Identity blocks the other way: projections are copied from the block below, both norm scales are zero."""

    def setup(self, backbone: Backbone) -> None:
        super().setup(backbone)
        layers, plan = backbone.decoder.layers, backbone.model.config.layer_plan
        for index, (source, identity) in enumerate(plan):
            if identity:
                layers[index].load_state_dict(layers[plan.index([source, False])].state_dict())
                nn.init.zeros_(layers[index].input_layernorm.weight)
                nn.init.zeros_(layers[index].post_attention_layernorm.weight)


def adamw(_: str, parameters: list[Any], __: Any) -> tuple[torch.optim.Optimizer, None]:
    return torch.optim.AdamW(parameters, lr=3e-4, weight_decay=0.0), None


def run(strategy: BlockExpansion, seed: int, folder: Path) -> tuple[float, float, dict[str, Tensor]]:
    """Both domains in turn: the mean loss of the last ten steps of each, OP, and how far each new tensor moved."""
    backbone = Backbone.load("mini", text=TextPolicy(max_length=256))
    grown = Backbone.load("mini")
    type(strategy)(groups=3).setup(grown)
    before = {name: value.detach().clone() for name, value in grown.trainable().items()}
    benchmark = MiniTrace()
    tasks = [task for task in map(benchmark.__getitem__, range(8)) if task.name in DOMAINS]
    data, results = ContinualDataModule(tasks, batch_size=32, seed=seed), RunFolder(folder)
    module = ContinualModule(backbone, strategy, adamw)
    learn_in_sequence(module, data, lambda _, callbacks: trainer(folder, callbacks, max_epochs=3), results)
    losses = [float(loss) for loss in column(folder / "train.csv", "loss")]
    last = (losses[38:48] + losses[-10:]) if len(losses) == 96 else []
    end = float(results.matrix()[-1].mean())
    return (
        sum(last) / 20,
        end,
        {name: (value.detach() - before[name]).norm() for name, value in backbone.trainable().items()},
    )


@pytest.mark.slow
def test_zeroed_norm_scales_learn_less_and_their_feed_forward_branch_nothing(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        figures = {}
        for strategy in (BlockExpansion(groups=3), ZeroedNorms(groups=3)):
            name = type(strategy).__name__
            loss, end, moved = run(strategy, seed, tmp_path / f"{name}-{seed}")
            figures[name] = loss
            branch = [float(distance) for key, distance in moved.items() if "mlp" in key or "post_attention" in key]
            print(f"seed {seed} {name}: loss {loss:.3f}, OP {end:.3f}, feed-forward moved {max(branch):.3g}")
            assert (max(branch) == 0) == (name == "ZeroedNorms")
        assert figures["ZeroedNorms"] > figures["BlockExpansion"]
