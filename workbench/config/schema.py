"""Schema of a study's YAML: its keys, their types and ranges, and the order in which settings override each other.

No class of a config is imported or built here, so that a misspelt key is reported at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, TypedDict

from workbench.config.components import Component, as_component
from workbench.config.orders import Entry
from workbench.config.type_check import joined

DEFAULT_OPTIMIZER = "torch.optim.AdamW"
DEFAULT_EXECUTOR = "workbench.executors.ThisMachine"
EXECUTOR_OF_A_RUN = "workbench.executors.InProcess"
SEED = "{seed}"
"""Placeholder in a config's texts for the seed of each run; a text that is nothing else becomes the number."""

KEEPS_NUMBERS = (
    *("name", "output", "existing", "executor"),
    *("save_every_n_steps", "save_every_seconds", "data.num_workers"),
)
"""Keys that change no number of a run: where it is written and executed, and how often it is saved."""
OBSERVES = (
    *("default_root_dir", "detect_anomaly", "enable_autolog_hparams", "enable_checkpointing", "enable_model_summary"),
    *("enable_progress_bar", "log_every_n_steps", "logger", "model_registry", "profiler"),
)
"""Arguments of a Trainer that observe a training and change no number of it."""


class Changes(TypedDict, total=False):
    """Settings of a strategy or a task that override the study's; an absent key changes nothing.

    A component without a `class_path` changes the `init_args` of the component that it overrides.
    """

    optimizer: dict[str, Any]
    scheduler: dict[str, Any] | None
    trainer: dict[str, Any]


@dataclass
class BackboneConfig:
    """The model that a study starts from.

    Args:
        path: Folder, GGUF file or hub id of a LLaMA-family model; or the name of a shipped one, "mini" or "micro", or
            of a fetched one, "smollm2".
        dtype: Data type in which the weights are loaded; None: float32.
        end_token: Token that ends an answer; None: the tokenizer's end token.
        activation_checkpointing: Store only the inputs of transformer blocks in training, and compute the other
            activations again in the backward pass: less memory, more time, the same numbers. Ignored for CALM
            compositions, whose models run in evaluation mode.
    """

    path: str = "mini"
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    end_token: str | None = None
    activation_checkpointing: bool = False


@dataclass
class DataConfig:
    """How rows become batches, and which rows are scored.

    Args:
        batch_size: Rows in a training batch; with `batch_tokens`, the maximum.
        batch_tokens: Maximum of tokens in a training batch, padding included (rows times the longest row); a longer
            row is a batch of its own. None: no limit.
        bucket: Number of batches whose rows are sorted by length together. Sorting saves padding where lengths differ
            much, and can hurt learning where a row's length reveals its answer. 1: plain shuffling, or 16 with
            `batch_tokens`.
        max_length: Maximum of tokens of prompt and answer together; None: no limit.
        max_prompt_length: Maximum of tokens of the prompt.
        max_answer_length: Maximum of tokens of the answer.
        template: Text around each prompt.
        template_date: Date, as YYYY-MM-DD, that a chat template shows as today's.
        truncation: Where a prompt that is too long is cut.
        tokenization: Encode prompt and answer separately ("apart"), or as one text that is truncated on the left
            ("joint"; see `TextPolicy`). None: as the benchmark's `protocol` states, else "apart".
        eval_batch_size: Maximum of rows in an evaluation batch.
        eval_batch_tokens: Maximum of tokens in a batch of generation, for prompts and answers of full length, so that
            batches of short prompts have more rows. None: no limit beside `eval_batch_size`.
        num_workers: Data loader processes beside the training process; they change no number.
        frozen_states_gb: Memory, in 10^9 bytes, for caching the outputs of frozen layers. The cache is used where a
            task is trained for more than one epoch in one process and all of its rows fit; 0: no cache. It can change
            the last bits of a result.
        score_on: Split of each task that is scored. Use "validation" while choosing learning rates and the like, so
            that the test rows have no part in the choice. Probes and the general corpus are always scored on test rows.
        score_options: Also score tasks whose answers begin with one of a few options by the option that the model
            finds likeliest ("likeliest_option", not a primary metric). This needs no generation.
    """

    batch_size: int = field(default=32, metadata={"least": 1})
    batch_tokens: int | None = field(default=None, metadata={"least": 1})
    bucket: int = field(default=1, metadata={"least": 1})
    max_length: int | None = field(default=None, metadata={"least": 1})
    max_prompt_length: int | None = field(default=None, metadata={"least": 1})
    max_answer_length: int | None = field(default=None, metadata={"least": 1})
    template: Literal["none", "alpaca", "chat"] = "none"
    template_date: str = "2024-07-26"
    truncation: Literal["left", "middle"] = "left"
    tokenization: Literal["apart", "joint"] | None = None
    eval_batch_size: int = field(default=64, metadata={"least": 1})
    eval_batch_tokens: int | None = field(default=None, metadata={"least": 1})
    num_workers: int = field(default=0, metadata={"least": 0})
    frozen_states_gb: float = field(default=1.0, metadata={"least": 0})
    score_on: Literal["test", "validation"] = "test"
    score_options: bool = False


@dataclass
class StrategyConfig:
    """One method, or several whose hooks run in order, with its own settings.

    Args:
        components: The `ContinualStrategy` classes, one or more.
        changes: The strategy's own optimizer, scheduler and trainer arguments.
        per_task: The same for single tasks, by the task's name.
        trial_of: Method that this is a trial of, in a sweep over its settings; None: not a trial.
    """

    components: list[Component]
    changes: Changes = field(default_factory=Changes)
    per_task: dict[str, Changes] = field(default_factory=dict)
    trial_of: str | None = None


@dataclass(frozen=True)
class TaskSettings:
    """Settings with which one strategy learns one task, after all overrides.

    Args:
        optimizer: Built with `params`.
        scheduler: Built with `optimizer`; its steps are optimizer steps of the task.
        trainer: Arguments of `lightning.Trainer`.
    """

    optimizer: Component
    scheduler: Component | None
    trainer: dict[str, Any]


@dataclass
class StudyConfig:
    """One YAML: strategies × orders × seeds, on one benchmark and one backbone.

    Args:
        name: The study's folder in `output`.
        benchmark: The tasks.
        backbone: The model that learns.
        strategies: The methods to compare, by the names of their folders.
        seeds: One run for each.
        orders: Orders of the benchmark by name, written out, or drawn by seed (see `config.orders`); None: the
            benchmark's first.
        first_tasks: Number of tasks of each order that are learnt and scored; None: all.
        bounds: Add the strategies that are bounds (`ContinualStrategy.bound`), unless they are listed already. The
            zero-shot model is row 0 of every run.
        executor: Where the runs are executed (see `workbench.executors`): with all that this machine has, unless
            another is given. It changes no number; see `ThisMachine` for the last bits of sums.
        prepare: Callables that are called before a seed's runs, with the study's progress display, such as one that
            trains the models of a composition. They are called every time, and must return at once if their work is
            done.
        optimizer: Built with `params`, anew for each task.
        carry_optimizer: Keep the optimizer state of parameters that also train in the next task, such as Adam's
            moments, as under one optimizer for all tasks. The learning rate schedule starts again all the same. None:
            as the benchmark's `protocol` states, else false.
        scheduler: Built with `optimizer`, and stepped with it. None: constant learning rate.
        per_task: Changes for single tasks, by the task's name; a strategy's own take precedence.
        data: Batches and limits of length.
        trainer: Arguments of `lightning.Trainer`, passed on as they are.
        score_every_n_steps: Also score in mid-task, after every so many optimizer steps; None: only after each task.
        save_every_n_steps: Save the state, from which the same command resumes, after every so many optimizer steps
            and between tasks; None: see `save_every_seconds`.
        save_every_seconds: Save the state after every so many seconds; less often where saving takes long, so that it
            takes less than 3 % of the time.
        existing: What to do with a run's folder that exists already.
        output: The folder of all studies.
    """

    name: str
    benchmark: Component
    strategies: dict[str, StrategyConfig]
    seeds: list[int] = field(default_factory=lambda: [0])
    orders: list[Entry] | None = None
    first_tasks: int | None = field(default=None, metadata={"least": 1})
    bounds: bool = False
    executor: Component = field(default_factory=lambda: Component(DEFAULT_EXECUTOR))
    prepare: list[Component] = field(default_factory=list)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    optimizer: Component = field(default_factory=lambda: Component(DEFAULT_OPTIMIZER, {"lr": 1e-4}))
    carry_optimizer: bool | None = None
    scheduler: Component | None = None
    per_task: dict[str, Changes] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    trainer: dict[str, Any] = field(default_factory=dict)
    score_every_n_steps: int | None = field(default=None, metadata={"least": 1})
    save_every_n_steps: int | None = field(default=None, metadata={"least": 1})
    save_every_seconds: float = field(default=60.0, metadata={"least": 0, "below": math.inf})
    existing: Literal["resume", "refuse", "replace"] = "resume"
    output: str = "runs"

    def layers(self, strategy: str, task: str | None = None) -> list[tuple[str, Changes]]:
        """List the settings for a task, the weakest first: study, strategy, the study's task, the strategy's task.

        Args:
            strategy: The strategy's name.
            task: The task's name; None: without changes for single tasks.

        Returns:
            Key and content of each layer.
        """
        chosen, at = self.strategies[strategy], f"strategies.{strategy}"
        study = Changes(optimizer=_mapping(self.optimizer), trainer=self.trainer, scheduler=None)
        if self.scheduler is not None:
            study["scheduler"] = _mapping(self.scheduler)
        layers = [("", study), (at, chosen.changes)]
        if task is not None:
            layers.append((f"per_task.{task}", self.per_task.get(task, {})))
            layers.append((f"{at}.per_task.{task}", chosen.per_task.get(task, {})))
        return layers

    def tasks(self, strategy: str) -> list[str]:
        """List the tasks with settings of their own for a strategy; whether they exist, only the benchmark knows.

        Args:
            strategy: The strategy's name.
        """
        return list(dict.fromkeys([*self.per_task, *self.strategies[strategy].per_task]))

    def settings(self, strategy: str, task: str | None = None) -> TaskSettings:
        """Combine the layers of settings for a task.

        Args:
            strategy: The strategy's name.
            task: The task's name; None: without changes for single tasks.

        Raises:
            ConfigError: A scheduler's `init_args` are changed where there is no scheduler.
        """
        total, at = Changes(), ""
        for where, changes in self.layers(strategy, task):
            total, at = combined(total, changes), where if changes.get("scheduler") else at
        scheduler = total["scheduler"]
        return TaskSettings(
            as_component(total["optimizer"], "optimizer"),
            None if scheduler is None else as_component(scheduler, joined(at, "scheduler")),
            dict(total["trainer"]),
        )


def for_seed(config: StudyConfig, seed: int) -> StudyConfig:
    """Replace `{seed}` in the models, data and methods of a config.

    Args:
        config: The study's config.
        seed: The seed of a run.
    """
    parts = {name: _filled(getattr(config, name), seed) for name in ("prepare", "backbone", "benchmark", "strategies")}
    parts["backbone"].path = str(parts["backbone"].path)
    return replace(config, **parts)


def for_run(
    config: StudyConfig, strategies: dict[str, StrategyConfig], orders: list[Entry] | None, seed: int
) -> StudyConfig:
    """Narrow a study's config to a single run, which the result reproduces by itself.

    Args:
        config: Config of the study.
        strategies: The run's strategy by its name.
        orders: The run's order.
        seed: The run's seed.
    """
    one = replace(config, strategies=strategies, orders=orders, seeds=[seed])
    return for_seed(replace(one, existing="resume", executor=Component(EXECUTOR_OF_A_RUN)), seed)


def _filled(value: Any, seed: int) -> Any:
    """Replace `{seed}` in every text within a value."""
    if isinstance(value, str):
        return seed if value == SEED else value.replace(SEED, str(seed))
    if isinstance(value, Mapping):
        return {key: _filled(item, seed) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(item, seed) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{item.name: _filled(getattr(value, item.name), seed) for item in fields(value)})
    return value


def combined(weak: Changes, strong: Changes) -> Changes:
    """Override changes by others: a `class_path` replaces a component, `init_args` alone are added to it.

    Args:
        weak: The changes that are overridden; they are not modified.
        strong: The changes that override them.
    """
    result: Changes = {**weak, **strong}
    if "optimizer" in weak and "optimizer" in strong:
        result["optimizer"] = _overridden(weak["optimizer"], strong["optimizer"])
    old, new = weak.get("scheduler"), strong.get("scheduler")
    if old is not None and new is not None:
        result["scheduler"] = _overridden(old, new)
    if "trainer" in weak or "trainer" in strong:
        result["trainer"] = {**weak.get("trainer", {}), **strong.get("trainer", {})}
    return result


def _overridden(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Override a component by another, which may lack its `class_path`."""
    if "class_path" in new:
        return new
    return {**old, "init_args": {**(old.get("init_args") or {}), **(new.get("init_args") or {})}}


def _mapping(component: Component) -> dict[str, Any]:
    """Convert a component to its form in a YAML."""
    return {"class_path": component.class_path, "init_args": component.init_args}


def leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value of a config with its dotted key; lists of plain values are yielded whole.

    >>> list(leaves({"a": {"b": 1}, "c": [{"d": 2}], "e": [3, 4]}))
    [('a.b', 1), ('c.0.d', 2), ('e', [3, 4])]
    """
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        yield where, value
        return
    for key, item in value.items():
        yield from leaves(item, joined(where, key))
