"""The ways to train that are compared: the workbench's loop, HF Trainer (with peft), and a bare PyTorch loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from lightning.pytorch import Callback, Trainer
from paired import now
from transformers import DataCollatorForSeq2Seq, PrinterCallback, TrainerCallback, TrainingArguments
from transformers import Trainer as HFTrainer

from workbench.backbone import Backbone
from workbench.backbone.batch import collate
from workbench.benchmark import Task
from workbench.results import RunFolder
from workbench.runtime.seeding import derived_seed
from workbench.strategy import ContinualStrategy
from workbench.study.trainer import trainer_arguments
from workbench.train import ContinualDataModule, ContinualModule, learn_in_sequence
from workbench.train.data import EncodedRows, EpochBatches

RATE = 1e-4


@dataclass
class Taken:
    """What a training took.

    Args:
        seconds: From the first batch to the end of the last step, by task.
        losses: Nats per labelled token, step by step.
        peak_bytes: The most memory allocated on a GPU meanwhile, weights included; NaN on a CPU.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    peak_bytes: float = math.nan

    @property
    def total(self) -> float:
        """Seconds of all tasks."""
        return sum(self.seconds.values())


class Stopwatch:
    """Times the steps of one task after the first few; a GPU's work is waited for only as it starts and stops.

    Args:
        task: Its name.
        taken: Where to write.
        uncounted: Steps at the beginning that are not timed: those in which a GPU chooses kernels and finds memory.
    """

    def __init__(self, task: str, taken: Taken, uncounted: int = 0) -> None:
        self.task, self.taken, self.uncounted = task, taken, uncounted
        self.losses: list[torch.Tensor] = []

    def begin(self) -> None:
        """Start."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.started = now()

    def loss(self, value: torch.Tensor) -> None:
        """Keep the loss of a step as it is: to read its value now would make a GPU wait."""
        self.losses.append(value.detach())

    def step(self) -> None:
        """A step has ended."""
        if len(self.losses) == self.uncounted:
            self.started = now()

    def end(self) -> None:
        """Stop."""
        self.taken.seconds[self.task] = now() - self.started
        self.taken.losses += [float(value) for value in self.losses]
        if torch.cuda.is_available():
            most = float(torch.cuda.max_memory_allocated())
            self.taken.peak_bytes = most if math.isnan(self.taken.peak_bytes) else max(most, self.taken.peak_bytes)


class Clock(Callback):
    """Times the training of one task, without what is scored before and after."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.watch.begin()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.watch.loss(outputs["loss"])
        self.watch.step()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.watch.end()


def workbench(
    backbone: Backbone,
    strategy: ContinualStrategy,
    tasks: Sequence[Task],
    *,
    batch_size: int,
    epochs: int = 1,
    bucket: int = 1,
    frozen_states_gb: float = 1.0,
    trainer: Mapping[str, Any] | None = None,
    uncounted: int = 0,
    saves: bool = True,
) -> Taken:
    """The main loop as a study runs it, with its callbacks, its log and its files; but nothing is answered.

    Scoring is no part of what is timed here, and would take longer than it.

    Args:
        backbone: The model.
        strategy: The method.
        tasks: What is learnt.
        batch_size: Rows in a batch.
        epochs: Of each task.
        bucket: Batches within which rows are sorted by length.
        frozen_states_gb: The most that is kept of frozen layers.
        trainer: Arguments of the Trainer; None: on the CPU.
        uncounted: Steps of each task that are not timed.
        saves: Whether the last model is written, which is not timed either.
    """
    taken = Taken()
    if not saves:
        backbone.save = lambda _: None  # type: ignore[method-assign]
    strategy.answer = lambda _, __, prompts: [""] * len(prompts)  # type: ignore[method-assign]

    def make_trainer(task: Task, callbacks: list[Callback]) -> Trainer:
        given = {"accelerator": "cpu", **(trainer or {}), "max_epochs": epochs}
        clock = Clock(Stopwatch(task.name, taken, uncounted))
        return Trainer(**trainer_arguments(given, None) | {"callbacks": [clock, *callbacks]})

    module = ContinualModule(backbone, strategy, lambda _, parameters, __: (adam(parameters), None))
    with TemporaryDirectory() as folder:
        rows = ContinualDataModule(tasks, batch_size=batch_size, bucket=bucket)
        rows.frozen_states_gb = frozen_states_gb
        learn_in_sequence(module, rows, make_trainer, RunFolder(Path(folder) / "run"))
    return taken


def adam(parameters: Any) -> torch.optim.Optimizer:
    """AdamW as all ways use it: fused, without decay."""
    return torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=True)


def bare(backbone: Backbone, task: Task, *, batch_size: int, bucket: int = 1) -> Taken:
    """The least that the same training takes: the same batches through the same model, and nothing beside it."""
    rows = EncodedRows(backbone.encode(task.train, task.max_new_tokens))
    optimizer = adam(backbone.trainable().values())
    order = EpochBatches(rows.lengths, batch_size, derived_seed(0, "task", 0), bucket)
    backbone.train()
    taken = Taken()
    started = time.perf_counter()
    for indices in order:
        output = backbone(collate([rows[index] for index in indices], backbone.pad_id))
        loss = output.loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        taken.losses.append(float(loss.detach()))
    taken.seconds[task.name] = time.perf_counter() - started
    return taken


def labelled(backbone: Backbone, task: Task) -> Dataset:
    """The same tokens as HF's collator wants them."""
    made = []
    for row in backbone.encode(task.train, task.max_new_tokens):
        tokens, prompt = row["input_ids"], row["prompt_length"]
        labels = [-100] * prompt + tokens[prompt:]
        made.append({"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": labels})
    return Dataset.from_list(made)


class HFClock(TrainerCallback):
    """As `Clock`."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.watch.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.watch.step()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.watch.end()


class Noting(HFTrainer):
    """HF Trainer, which keeps the losses, and takes given batches where there are such."""

    def __init__(self, *args: Any, watch: Stopwatch, batches: Any = None, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self.watch, self.batches = watch, batches

    def compute_loss(self, *args: Any, **rest: Any) -> Any:
        loss = super().compute_loss(*args, **rest)
        self.watch.loss(loss)
        return loss

    def get_train_dataloader(self) -> Any:
        if self.batches is None:
            return super().get_train_dataloader()
        loader = torch.utils.data.DataLoader(
            self.train_dataset,
            batch_sampler=list(self.batches),
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory and not self.args.use_cpu,
        )
        return self.accelerator.prepare(loader)


def _arguments(folder: str, batch_size: int, **given: Any) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=batch_size,
        num_train_epochs=1,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=0.0,
        optim="adamw_torch_fused",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        report_to="none",
        **{"use_cpu": True, **given},
    )


def hf_trainer(
    model: Any,
    backbone: Backbone,
    tasks: Sequence[Task],
    *,
    batch_size: int,
    batches: Callable[[Dataset], Any] | None = None,
    uncounted: int = 0,
    **given: Any,
) -> Taken:
    """HF Trainer with its seq2seq collator, one after the other task.

    Args:
        model: A transformers model, or one that peft has wrapped.
        backbone: Encodes the rows.
        tasks: What is learnt.
        batch_size: Rows in a batch.
        batches: The rows of each batch, where it is not to draw its own at random.
        uncounted: Steps of each task that are not timed.
        given: Further arguments of HF's `TrainingArguments`; it runs on the CPU otherwise.
    """
    taken = Taken()
    for task in tasks:
        data, watch = labelled(backbone, task), Stopwatch(task.name, taken, uncounted)
        with TemporaryDirectory() as folder:
            trainer = Noting(
                model=model,
                args=_arguments(folder, batch_size, **given),
                train_dataset=data,
                data_collator=DataCollatorForSeq2Seq(backbone.tokenizer, padding=True),
                callbacks=[HFClock(watch)],
                watch=watch,
                batches=batches(data) if batches else None,
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
    return taken
