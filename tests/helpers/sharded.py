"""Two tiny tasks, learnt sharded or not: by the tests themselves, and as `python sharded.py RANK WORLD PORT FOLDER`."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from helpers.studies import QUIET
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed
from torch.utils.data import DataLoader

from strategies import BlockExpansion, LoRA, SeqFT
from workbench.backbone import Batch
from workbench.backbone.loading import checkpoint_blocks
from workbench.benchmark import Task
from workbench.runtime.seeding import seed_all
from workbench.testing.tiny import VARIANTS, tiny_backbone, tiny_tasks
from workbench.train import ContinualModule, Sharded
from workbench.train.optimizer_state import Moments

# A method, a model, whether activations are checkpointed, how far weights may be apart: bfloat16 rounds activations.
CASES: dict[str, tuple[Any, str, bool, float]] = {
    "growth": (lambda: BlockExpansion(groups=2, each_task=True), "gqa", False, 1e-5),
    "adapters": (lambda: LoRA(policy="stack", dropout=0.0), "bf16", True, 2e-3),
    "everything": (SeqFT, "tied", True, 1e-5),
    "carried": (SeqFT, "gqa", False, 1e-5),
}


def begin(case: str) -> ContinualModule:
    """A model as the method sets it up; Adam divides by no small noise."""
    method, variant, *_ = CASES[case]
    seed_all(case)
    strategy, backbone = method(), tiny_backbone(**VARIANTS[variant])
    if CASES[case][2]:
        checkpoint_blocks(backbone.model)
    strategy.setup(backbone)
    make = lambda _, given, __: (torch.optim.Adam(given, lr=0.01, eps=1e-3), None)  # noqa: E731
    module = ContinualModule(backbone, strategy, make)
    module.carried = Moments() if case == "carried" else None
    return module


class Looks(Callback):
    """Scores and saves after two steps, and generates at the end: the first process more often than the others."""

    def __init__(self, task: Task, file: Path, first: bool) -> None:
        self.task, self.file = task, file
        self.prompts = task.test["prompt"][: 3 if first else 1]
        self.found: dict[str, Any] = {}

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if trainer.global_step == 2 and isinstance(module, ContinualModule):
            with module.scoring_context():
                self.found["within"] = module.backbone.nats(module.backbone.encode(self.task.test, 3))[0]
            trainer.save_checkpoint(self.file)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if isinstance(module, ContinualModule):
            if module.carried is not None:
                module.carried.take(trainer.optimizers[0], dict(module.named_parameters()))
            plain = all(type(parameter) is torch.nn.Parameter for parameter in module.backbone.parameters())
            self.found |= {"plain": plain, "answers": module.backbone.generate(self.prompts, 3)}


def fit(
    module: ContinualModule, task: Task, look: Looks, case: str, place: tuple[int, int], saved: Path | None = None
) -> None:
    """Two passes over three batches, of which each process sees its rows."""
    rank, world = place
    encoded = module.backbone.encode(task.train, 3).to_list()
    batches = [module.backbone.collate(encoded[first : first + 4]) for first in (0, 4, 8)]
    mine = [Batch(*(tensor[rank::world] for tensor in vars(batch).values())) for batch in batches]
    trainer = Trainer(
        **{"accelerator": "cpu", "max_epochs": 2, "gradient_clip_val": 1.0, "use_distributed_sampler": False, **QUIET},
        devices=world,
        strategy=Sharded() if world > 1 else "auto",
        default_root_dir=look.file.parent,
        callbacks=[look],
    )
    module.begin(task.name, 0)
    if module.carried is not None:
        module.carried.prepare(dict(module.named_parameters()))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch")
        trainer.fit(module, DataLoader(mine, batch_size=None), ckpt_path=saved, weights_only=True)


def learn(case: str, rank: int, world: int, folder: Path) -> dict[str, Any]:
    """Learns two tasks, the structure growing in between; then the second half of the first once more."""
    found: dict[str, Any] = {}
    for part in ("whole", "resumed"):
        module = begin(case)
        backbone, strategy = module.backbone, module.continual_strategy
        for index, task in enumerate(tiny_tasks() if part == "whole" else tiny_tasks()[:1]):
            seed_all(index)
            strategy.before_task(backbone, task, [])
            file = folder / f"{case}-{world}-{index}.ckpt"
            look = Looks(task, file if part == "whole" else folder / "unused.ckpt", rank == 0)
            fit(module, task, look, case, (rank, world), None if part == "whole" else file)
            strategy.after_task(backbone, task, [])
            found[f"{part} {index}"] = look.found
        found |= {f"{part} weights": backbone.model.state_dict(), f"{part} same": module.backbone is backbone}
    return found


if __name__ == "__main__":
    place = {"LOCAL_RANK": sys.argv[1], "RANK": sys.argv[1], "WORLD_SIZE": sys.argv[2], "NODE_RANK": "0"}
    os.environ.update(place, MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[3])
    torch.set_num_threads(1)
    everything = {case: learn(case, int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[4])) for case in CASES}
    torch.save(everything, Path(sys.argv[4]) / f"found-{sys.argv[1]}.pt")
    distributed.destroy_process_group()
