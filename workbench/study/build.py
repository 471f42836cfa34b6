"""Build the objects that a config names: backbone, benchmark, strategies, data, optimizers and Trainers."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.optim import Optimizer, SparseAdam

from workbench.backbone import Backbone
from workbench.backbone.encoding import TextPolicy
from workbench.benchmark import Benchmark, Task, published_protocol
from workbench.config import Component, StudyConfig, TaskSettings, instantiate
from workbench.config.components import build, import_class
from workbench.config.orders import chosen_orders
from workbench.config.validation import STEP_ARGUMENTS
from workbench.errors import ConfigError
from workbench.model_folder import dequantised_from
from workbench.runtime.distributed import world
from workbench.strategy import Composition, ContinualStrategy, needs_task_id
from workbench.study.resume import fingerprint_model, fingerprint_tasks
from workbench.study.trainer import TRAINER_DEFAULTS, callback_problems, logger_problems, loggers, trainer_arguments
from workbench.train import ContinualDataModule
from workbench.train.callbacks import combine_callbacks, trainer_conflicts
from workbench.train.evaluation import Reach, reach
from workbench.train.loop import MakeTrainer, count_parameters
from workbench.train.module import OptimizerFactory

SMALL_MODEL = 20_000_000
"""Parameters below which several threads take longer than one."""
UNMIXED = ("32-true", "32", "bf16-true", "16-true", "64-true", "64", "None")
"""Values of `trainer.precision` with which gradients are neither scaled nor cast."""
SCHEDULER_PARTS = ("optimizer", "step", "state_dict", "load_state_dict")


class Assembly:
    """Objects that a study's config names, built when they are first needed.

    Args:
        config: A checked config (`workbench.config.validation.check`, `workbench.study.preflight.built_problems`).
    """

    def __init__(self, config: StudyConfig) -> None:
        self.config = config
        self.benchmark: Benchmark = instantiate(config.benchmark)
        names = [self.benchmark[index].name for index in range(len(self.benchmark))]
        self.orders = chosen_orders(config.orders, self.benchmark.orders, names)
        self._trainers: dict[str, Trainer] = {}

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """The benchmark's tasks by name, with the rows that `data.score_on` chooses as their test rows.

        Validation rows replace the test rows here, before anything else sees a task, so that nothing chosen by
        validation scores has seen a test row.
        """
        tasks = list(map(self.benchmark.__getitem__, range(len(self.benchmark))))
        if self.config.data.score_on == "validation":
            tasks = [task.scored_on_validation() for task in tasks]
        return {task.name: task for task in tasks}

    @cached_property
    def backbone(self) -> Backbone:
        """The model as loaded.

        Raises:
            ConfigError: The folder cannot be loaded, or the limits of text are out of range.
        """
        policy = self.text_policy
        try:
            loaded = Backbone.load(
                **vars(self.config.backbone),
                text=policy,
                eval_batch_size=self.config.data.eval_batch_size,
                eval_batch_tokens=self.config.data.eval_batch_tokens,
            )
        except ValueError as error:
            raise ConfigError([f"backbone: {error}"]) from error
        _choose_threads(loaded)
        return loaded

    @cached_property
    def inputs(self) -> dict[str, str]:
        """Fingerprints of the study's inputs: "data" and "model"."""
        general = [self.benchmark.general] if self.benchmark.general else []
        everything = [*self.tasks.values(), *self.benchmark.probes, *general]
        return {"data": fingerprint_tasks(everything), "model": fingerprint_model(self.config.backbone.path)}

    def length_problems(self) -> list[str]:
        """Return the tasks whose longest prompt and answer together exceed the model's positions."""
        problems = []
        for task in [*self.tasks.values(), *self.benchmark.probes]:
            try:
                self.backbone.encoder.limits(task.max_new_tokens)
                if not task.is_corpus and any(chain(task.test["prompt"], task.train["prompt"])):
                    self.backbone.encoder.check_room(task.max_new_tokens)
            except ValueError as error:
                problems.append(f"data: {task.name}: {error}")
        return problems

    @cached_property
    def reaches(self) -> list[Reach]:
        """The tasks and probes with right answers that the model cannot produce exactly as they are written."""
        reaches = [reach(self.backbone, task) for task in [*self.tasks.values(), *self.benchmark.probes]]
        return [item for item in reaches if item]

    @cached_property
    def text_policy(self) -> TextPolicy:
        """Limits and format of every text, from the `data` section.

        Where it gives no prompt length, the longest of the tasks' protocols applies; jointly tokenized rows then have
        room for such a prompt and the longest answer of any task.

        Raises:
            ConfigError: A limit is too low to hold any text, or the date is none.
        """
        data = self.config.data
        stated = [task.max_prompt_length for task in self.tasks.values() if task.max_prompt_length]
        prompt = data.max_prompt_length or max(stated, default=None)
        tokenization = data.tokenization or published_protocol(self.benchmark).tokenization
        length = data.max_length
        if tokenization == "joint" and length is None and prompt:
            answers = [task.max_new_tokens for task in self.tasks.values() if not task.is_corpus]
            longest = max(answers, default=0)
            length = prompt + min(longest, data.max_answer_length or longest)
        limits = (length, prompt, data.max_answer_length)
        try:
            return TextPolicy(*limits, data.truncation, data.template, tokenization, data.template_date)
        except ValueError as error:
            raise ConfigError([str(error)]) from error

    @property
    def carries_optimizer(self) -> bool:
        """Whether optimizer state is carried from task to task."""
        choice = self.config.carry_optimizer
        return published_protocol(self.benchmark).carry_optimizer if choice is None else choice

    @property
    def stated_policy(self) -> dict[str, Any]:
        """The text policy as it is recorded beside the results, with a date only where a template may print it."""
        stated = dict(vars(self.text_policy))
        if stated["template"] != "chat":
            del stated["template_date"]
        return stated

    @cached_property
    def benchmark_notes(self) -> str | None:
        """The benchmark's own remarks on its data (duplicates, overlaps), if it has any."""
        return str(self.benchmark) if type(self.benchmark).__str__ is not object.__str__ else None

    @cached_property
    def device(self) -> torch.device:
        """Device on which the Trainer will put the model."""
        return self.trainer(next(iter(self.config.strategies))).strategy.root_device

    def trainer(self, strategy: str, task: Task | None = None) -> Trainer:
        """Return a Trainer that trains nothing: to ask for the device and precision of a strategy or one of its tasks.

        Equal `trainer` sections share one.
        """
        key = self._trainer_key(strategy, task)
        if key not in self._trainers:
            self._trainers[key] = Trainer(**self._trainer_arguments(strategy, task))
        return self._trainers[key]

    def tested_names(self, order: str) -> tuple[list[str], list[str]]:
        """Return the names of the tasks in an order, and of what is tested beside them."""
        data = self.data(order, 0)
        tasks = [task.name for task in data.tasks]
        return tasks, [task.name for task in data.tested[len(tasks) :]]

    def strategy(self, name: str) -> ContinualStrategy:
        """Build a strategy; several components become a composition."""
        members = [instantiate(component) for component in self.config.strategies[name].components]
        return members[0] if len(members) == 1 else Composition(members)

    def data(self, order: str, seed: int, strategy: str | None = None) -> ContinualDataModule:
        """Build the data of one run.

        Args:
            order: Name of the order of the tasks.
            seed: Of the run.
            strategy: Strategy whose settings give the tasks' `max_epochs`, which a curriculum may use. None: the tasks
                as the benchmark gives them.
        """
        tasks, data = [self.tasks[name] for name in self.orders[order][: self.config.first_tasks]], self.config.data
        return ContinualDataModule(
            tasks if strategy is None else [self._with_passes(strategy, task) for task in tasks],
            probes=self.benchmark.probes,
            general=self.benchmark.general,
            batch_size=data.batch_size,
            batch_tokens=data.batch_tokens,
            bucket=data.bucket,
            num_workers=data.num_workers,
            frozen_states_gb=data.frozen_states_gb,
            score_options=data.score_options,
            seed=seed,
        )

    def protocol(self, name: str, order: str, seed: int) -> dict[str, Any]:
        """Return the protocol that is recorded beside the results of a run."""
        config, strategy = self.config, self.strategy(name)
        return {
            "strategy": name,
            "order_name": order,
            "seed": seed,
            "task_id_at_test": needs_task_id(strategy),
            "bound": next((member.bound for member in strategy.modules() if getattr(member, "bound", None)), None),
            "trial_of": config.strategies[name].trial_of,
            "strategies": list(config.strategies),
            "references": [member.reference for member in _citing(strategy)],
            "bibtex": [getattr(member, "bibtex", "") for member in _citing(strategy)],
            "backbone": config.backbone.path,
            "dtype": config.backbone.dtype or "float32",
            "dequantised": dequantised_from(config.backbone.path),
            "end_token": self.backbone.tokenizer.eos_token,
            "decoding": "greedy",
            "processes": world(),
            "precision": config.trainer.get("precision", "32-true"),
            "deterministic": (TRAINER_DEFAULTS | config.settings(name).trainer)["deterministic"],
            "text": self.stated_policy,
            "carry_optimizer": self.carries_optimizer,
            "published": self._beside_published(name, order),
            "scored_on": config.data.score_on,
            "benchmark": config.benchmark.class_path,
            "benchmark_notes": self.benchmark_notes,
        }

    def _beside_published(self, name: str, order: str) -> dict[str, Any] | None:
        """Compare each part of the publication's protocol with the run's own; None where the benchmark has none."""
        published, config, text = published_protocol(self.benchmark), self.config, self.text_policy
        if not published.name:
            return None
        settings, data = config.settings(name), config.data
        batches = int(settings.trainer.get("accumulate_grad_batches") or 1)
        tasks = [self.tasks[task] for task in self.orders[order][: config.first_tasks]]
        arguments = settings.optimizer.init_args
        clipped = settings.trainer.get("gradient_clip_val")
        optimizer = [
            settings.optimizer.class_path,
            *(f"{key} {value}" for key, value in arguments.items() if key != "lr"),
        ]
        optimizer += [f"clipped at {clipped}"] if clipped else []
        optimizer += ["one for all tasks" if self.carries_optimizer else "anew with each task"]
        here = {
            "tokenization": f"{text.tokenization}, {text.max_length or self.backbone.encoder.positions} tokens; "
            f"prompts at test: {text.max_prompt_length} tokens",
            "training rows": "all" if data.score_on == "test" else "without those that validate",
            "optimizer": ", ".join(optimizer),
            "rate": f"{arguments.get('lr')}, {'scheduled' if settings.scheduler else 'constant'}",
            "rows in a step": f"{data.batch_size * batches}" + (" at most" if data.batch_tokens else ""),
            "loss": "mean over all labelled tokens of a step",
            "epochs": ", ".join(str(self.length(name, task)[0]) for task in tasks),
            "decoding": "greedy",
        }
        parts = {part: {"there": there, "here": here[part]} for part, there in published.parts.items()}
        return {"name": published.name, "parts": parts}

    def optimizer_factory(self, strategy: str) -> OptimizerFactory:
        """Return a function that builds a task's optimizer and scheduler with this strategy's settings."""

        def make(task: str, parameters: list[Any], steps: Callable[[], int]) -> tuple[Any, Any]:
            settings = self.config.settings(strategy, task)
            fused = {"fused": True} if _fuses(settings, parameters) else {}
            optimizer = build(settings.optimizer, "optimizer", params=parameters, **fused)
            if refusal := optimizer_refusal(optimizer):
                raise ConfigError([refusal])
            if settings.scheduler is None:
                return optimizer, None
            filled_in = {name: steps() for name in counting_arguments(settings.scheduler)}
            scheduler = build(settings.scheduler, "scheduler", optimizer=optimizer, **filled_in)
            if missing := [name for name in SCHEDULER_PARTS if not hasattr(scheduler, name)]:
                message = f"scheduler: {settings.scheduler.class_path} makes no scheduler: it has no {missing[0]!r}."
                raise ConfigError([f"{message} Give a class such as torch.optim.lr_scheduler.LinearLR."])
            return optimizer, scheduler

        return make

    def trainer_factory(self, strategy: str, folder: Path) -> MakeTrainer:
        """Return a function that builds a task's Trainer; the loggers are the same for the whole sequence."""
        logger = loggers(self.config.settings(strategy).trainer.get("logger", False), "-".join(folder.parts[-3:]))

        def make(task: Task, callbacks: list[Callback]) -> Trainer:
            arguments = self._trainer_arguments(strategy, task) | {"default_root_dir": folder}
            own = arguments.pop("callbacks", None) or []
            own = own if isinstance(own, list) else [own]
            return Trainer(**arguments | {"callbacks": combine_callbacks(callbacks, own), "logger": logger})

        return make

    def length(self, strategy: str, task: Task) -> tuple[int, int]:
        """Return how long an item is trained: the most epochs and the most optimizer steps; -1: not limited.

        In order of precedence: the config's settings for this item, the steps or epochs that an inserted item brings
        along, the config's settings for all items, the task's own protocol, one epoch.
        """
        settings = self.config.settings(strategy, task.name).trainer
        epochs, steps = settings.get("max_epochs"), int(settings.get("max_steps", -1))
        own = [changes.get("trainer", {}) for _, changes in self.config.layers(strategy, task.name)[2:]]
        own_keys = {key for changes in own for key in changes}
        if task.max_steps and not own_keys & {"max_epochs", "max_steps"}:
            return -1, task.max_steps
        if task.max_steps and "max_epochs" not in own_keys:
            return -1, steps
        if task.max_epochs and task.name not in self.tasks and "max_epochs" not in own_keys:
            return task.max_epochs, steps
        if epochs is None and (steps > 0 or settings.get("max_time") is not None):
            return -1, steps
        return int(epochs if epochs is not None else task.max_epochs or 1), steps

    def _with_passes(self, strategy: str, task: Task) -> Task:
        """Set a task's `max_epochs` to that of this run; None where steps or time limit it."""
        epochs, _ = self.length(strategy, task)
        return replace(task, max_epochs=epochs if epochs > 0 else None)

    def trainer_problems(self) -> list[str]:
        """Return what is wrong with the `trainer` sections: callbacks and loggers, and what Lightning refuses."""
        sections = {
            self._trainer_key(strategy, task): (strategy, task)
            for strategy in self.config.strategies
            for task in (None, *map(self.tasks.get, self.config.tasks(strategy)))
        }
        problems, processes = [], set()
        for strategy, task in sections.values():
            given = self._trainer_section(strategy, task)
            try:
                built = self._trainer_arguments(strategy, task).get("callbacks")
                refused = [*logger_problems(given.get("logger")), *callback_problems(built, given.get("logger"))]
                if not refused:
                    trainer = self.trainer(strategy, task)
                    processes.add(trainer.world_size)
                    refused = trainer_conflicts(trainer)
                problems += refused
            except ConfigError as error:
                problems += error.problems
            except Exception as error:
                text = " ".join(str(error).split()).rstrip(".")
                problems.append(f"trainer: {text or type(error).__name__}. Fix the section `trainer`.")
        if len(processes) > 1:
            message = f"{' and '.join(map(str, sorted(processes)))} in one study"
            problems.append(f"trainer.devices: {message}. Give all strategies and tasks the same number.")
        return list(dict.fromkeys(problems))

    def _trainer_section(self, strategy: str, task: Task | None) -> dict[str, Any]:
        return self.config.settings(strategy, task.name if task else None).trainer

    def _trainer_key(self, strategy: str, task: Task | None) -> str:
        return repr((self._trainer_section(strategy, task), self.length(strategy, task) if task else None))

    def _trainer_arguments(self, strategy: str, task: Task | None) -> dict[str, Any]:
        length = self.length(strategy, task) if task else None
        return trainer_arguments(self._trainer_section(strategy, task), length)


def _citing(strategy: ContinualStrategy) -> list[Any]:
    """Return a strategy and its members, as far as they name a paper."""
    return [member for member in strategy.modules() if getattr(member, "reference", "")]


def _choose_threads(backbone: Backbone) -> None:
    """Use one thread for a small model, unless OMP_NUM_THREADS is set.

    On a busy machine, threads that wait for one another make a small step several times slower. With one thread, sums
    do not depend on the number of cores either.
    """
    if "OMP_NUM_THREADS" not in os.environ and count_parameters(backbone) < SMALL_MODEL:
        torch.set_num_threads(1)


def _fuses(settings: TaskSettings, parameters: Sequence[Any]) -> bool:
    """Return True if Adam is to use its fused kernel, which is several times faster on a CPU.

    The config decides where it names a kernel. In mixed precision Lightning refuses to clip for a fused optimizer, and
    does not unscale for it before a strategy edits the gradients; a plugin may bring such a precision.
    """
    adam = import_class(settings.optimizer.class_path) in (torch.optim.Adam, torch.optim.AdamW)
    chosen = {"fused", "foreach", "capturable", "differentiable"} & set(settings.optimizer.init_args)
    mixed = "plugins" in settings.trainer or str(settings.trainer.get("precision", "32-true")) not in UNMIXED
    plain = all(type(value.data) is Tensor and value.device.type in ("cpu", "cuda") for value in parameters)
    return adam and not chosen and not mixed and plain


def counting_arguments(scheduler: Component) -> list[str]:
    """Return the arguments of a scheduler that are a task's number of steps and that the config leaves out."""
    known = inspect.signature(import_class(scheduler.class_path)).parameters
    return [name for name in STEP_ARGUMENTS if name in known and name not in scheduler.init_args]


def optimizer_refusal(optimizer: Any) -> str:
    """Return why an object cannot be a task's optimizer; "" if it can."""
    name = type(optimizer).__name__
    if not isinstance(optimizer, Optimizer):
        return f"optimizer: {name} is no torch.optim.Optimizer. Give a class that is one."
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    remedy = "Choose another, such as torch.optim.AdamW."
    if closure is not None and closure.default is closure.empty:
        return f"optimizer: {name} computes the loss several times in a step, which a strategy's hooks forbid. {remedy}"
    if isinstance(optimizer, SparseAdam):
        return f"optimizer: {name} works on sparse gradients, and those of a language model are dense. {remedy}"
    for group in optimizer.param_groups:
        if not math.isfinite(rate := float(group.get("lr", 0.0))):
            return f"optimizer.init_args.lr: {rate} is out of range; it has to be finite."
    return ""
