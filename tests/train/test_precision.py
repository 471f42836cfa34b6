"""Every row of a matrix is scored in the precision of training, row 0 too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from helpers.studies import learn

from strategies import LoRA
from workbench.backbone import Backbone
from workbench.benchmark import Task
from workbench.strategy import ContinualStrategy
from workbench.testing.tiny import tiny_backbone, tiny_tasks
from workbench.train import score_task


class Listener(ContinualStrategy):
    """Remembers the type of a product of two weights while it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[torch.dtype] = []

    def answer(self, backbone: Backbone, task: Task, prompts: Sequence[str]) -> list[str]:
        weight = next(backbone.model.parameters())
        self.heard.append((weight @ weight.T).dtype)
        return super().answer(backbone, task, prompts)


@pytest.mark.parametrize(
    ("precision", "expected"),
    [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16), ("bf16-true", torch.bfloat16)],
)
def test_scores_have_the_precision_of_training(tmp_path: Path, precision: str, expected: torch.dtype) -> None:
    listener = Listener()
    learn(listener, tmp_path, precision=precision)
    assert listener.heard == [expected] * 6  # two tasks after 0, 1 and 2


def test_the_factors_of_a_half_precision_model_are_whole(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    backbone.model.to(torch.bfloat16)
    LoRA(rank=2).setup(backbone)
    assert {parameter.dtype for parameter in backbone.trainable().values()} == {torch.float32}
    assert backbone.generate(["Task 0: t1 b\nAnswer:"], 2)
    with backbone.merged():
        backbone.generate(["Task 0: t1 b\nAnswer:"], 2)
    assert backbone.model.get_input_embeddings().weight.dtype == torch.bfloat16


@pytest.mark.parametrize("mixed", [True, False])
def test_adapters_score_in_half_precision_as_they_trained(mixed: bool) -> None:
    """W + ΔW would keep few bits of a small ΔW."""
    backbone, task = tiny_backbone(), tiny_tasks(1)[0]
    backbone.add_adapter("one", r=4, target_modules=["q_proj", "v_proj"])
    torch.manual_seed(0)
    for name, parameter in backbone.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    if not mixed:
        backbone.model.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        scored = score_task(backbone, ContinualStrategy(), task)
        nats, tokens = backbone.nats(backbone.encode(task.test, task.max_new_tokens))
        with backbone.merged():
            folded, _ = backbone.nats(backbone.encode(task.test, task.max_new_tokens))
    assert scored.nats_per_token == float(nats.sum()) / int(tokens.sum())
    assert float(folded.sum()) != float(nats.sum())
