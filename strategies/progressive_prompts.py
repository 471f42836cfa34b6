"""Progressive Prompts: a soft prompt for each task, before those of all earlier tasks, which are frozen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.distributed.tensor import DTensor

from workbench.backbone import SoftPrompt, soft_embedding
from workbench.strategy import ContinualStrategy

if TYPE_CHECKING:
    from torch import Tensor

    from workbench.backbone import Backbone, Batch, Output
    from workbench.benchmark import Task


class ProgressivePrompts(ContinualStrategy):
    """Train the prompt of the current task alone, in front of all earlier ones   (Razdaibiedina et al., 2023).

        input of task t: [P_t; ...; P_1; x],   P_t = E_t + MLP_t(E_t),   MLP_t(E) = W_2 ReLU(W_1 E)

    P_t is (length, width) and trains with its MLP; the model and P_1 to P_{t-1} are frozen. E_t starts as random rows
    of the vocabulary's embeddings. W_2 starts at zero here, so that P_t starts as these rows. After the task, P_t
    replaces E_t, and the MLP is thrown away. The authors' MLP for T5 has a layer norm, which is left out: its values
    of about 1 would bury E_t beside LLaMA's embeddings of about 0.02. Official rate: 0.3.

    At test time the paper gives each task its own prefix [P_k; ...; P_1], which needs the task's identity
    (`test_prefix="task"`). With "full", the default, every row is read behind all prompts, as any method without the
    identity has to. A task that was not learned yet is read behind all prompts in both cases.

    The prompts do not count towards `data.max_length`, but take positions of the model: `length` a task. So a row of
    the last of T tasks is T · length tokens longer, in training and in testing; the weights that are added are
    T · length · width. The saved model is the plain one without prompts; `prompts/prefix` beside it is the full prefix
    as peft's prompt tuning loads it. Sharded training (FSDP) is refused.

    Args:
        length: Tokens of each prompt.
        bottleneck: Width of the MLP's hidden layer; 0: no MLP.
        test_prefix: "full": all prompts before every test row; "task": those up to the row's own task.

    Raises:
        ValueError: A number is out of range; in `penalties`, the weights are sharded.
    """

    reference = "Razdaibiedina et al., 2023 (arXiv 2301.12314)"
    bibtex = """@inproceedings{razdaibiedina2023progressive,
  author = {Razdaibiedina, Anastasia and others},
  title = {Progressive Prompts: Continual Learning for Language Models},
  year = {2023},
  booktitle = {International Conference on Learning Representations},
  eprint = {2301.12314},
  archivePrefix = {arXiv}
}"""

    def __init__(self, length: int = 10, bottleneck: int = 800, test_prefix: Literal["full", "task"] = "full") -> None:
        super().__init__()
        if length < 1:
            raise ValueError(f"length={length} is out of range; it has to be at least 1.")
        if bottleneck < 0:
            raise ValueError(f"bottleneck={bottleneck} is out of range; it has to be at least 0.")
        if test_prefix not in ("full", "task"):
            raise ValueError(f"test_prefix={test_prefix!r}: choose 'full' or 'task'.")
        self.length, self.bottleneck, self.test_prefix = length, bottleneck, test_prefix
        self.task_id_at_test = test_prefix == "task"  # type: ignore[misc]  # depends on the arguments
        self.begun = 0
        self.full: list[int] = []  # token ids of all prompts, the newest first
        self.prefixes: dict[str, list[int]] = {}  # of each task that was begun, the prompts there were then

    def setup(self, backbone: Backbone) -> None:
        """Freeze the model; the first prompt comes with the first task."""
        backbone.freeze()

    def before_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        """Freeze the last task's prompt, and put a new one before it."""
        self.after_task(backbone, task, ())  # where a resume replays only this hook
        vocabulary: Any = backbone.model.get_input_embeddings().weight
        rows = torch.randint(len(vocabulary), (self.length,))
        self.begun += 1
        initial = vocabulary[rows.to(vocabulary.device)]
        self.full = backbone.add_prompt(f"task-{self.begun}", initial, self.bottleneck) + self.full
        self.prefixes[task.name] = self.full
        backbone.put_before(self.full)

    def penalties(self, backbone: Backbone, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Return no penalty; refuse sharded prompts.

        Raises:
            ValueError: The weights are sharded.
        """
        if any(isinstance(value, DTensor) for value in backbone.trainable().values()):
            message = "ProgressivePrompts needs whole prompts; trainer.strategy=fsdp shards them."
            raise ValueError(f"{message} Give trainer.strategy=ddp.")
        return {}

    def after_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        """Keep the trained prompt as it is, and throw its MLP away."""
        embedding = soft_embedding(backbone.model)
        for prompt in embedding.prompts.values() if embedding is not None else ():
            if isinstance(prompt, SoftPrompt):
                prompt.fix()

    @contextmanager
    def scoring(self, backbone: Backbone, task: Task) -> Iterator[None]:
        """Read a task's rows behind its own prefix within the context if `test_prefix` is "task"."""
        if self.test_prefix == "task":
            backbone.put_before(self.prefixes.get(task.name, self.full))
        try:
            yield
        finally:
            backbone.put_before(self.full)
