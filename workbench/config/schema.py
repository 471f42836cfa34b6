"""What a study's YAML may say: its keys, their types and ranges, and who overrules whom.

Nothing is imported or built here, so that a misspelt key is answered at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, TypedDict

from workbench.config.components import Component, as_component, joined
from workbench.config.orders import Entry

DEFAULT_OPTIMIZER = "torch.optim.AdamW"
DEFAULT_EXECUTOR = "workbench.executors.InProcess"
SEED = "{seed}"
"""Where it stands in a text of a config, each run puts its own seed; alone it becomes the number."""

KEEPS_NUMBERS = (
    *("name", "output", "existing", "executor"),
    *("save_every_n_steps", "save_every_seconds", "data.num_workers"),
)
"""Keys that change no number: where a run is written, who makes it, how often it is saved."""
OBSERVES = (
    *("default_root_dir", "detect_anomaly", "enable_autolog_hparams", "enable_checkpointing", "enable_model_summary"),
    *("enable_progress_bar", "log_every_n_steps", "logger", "model_registry", "profiler"),
)
"""Arguments of a Trainer that watch a training and change no number of it."""


class Changes(TypedDict, total=False):
    """What a strategy or a task does otherwise than the study; a key that is absent changes nothing.

    A component here may lack its `class_path`: then its `init_args` are laid over those it changes.
    """

    optimizer: dict[str, Any]
    scheduler: dict[str, Any] | None
    trainer: dict[str, Any]


@dataclass
class BackboneConfig:
    """The model that a study starts from.

    Args:
        path: A folder or hub id of a LLaMA-family model; "mini" and "micro" are the shipped ones.
        dtype: What its weights are loaded as; None: float32.
        end_token: What ends an answer; None: the tokenizer's end token.
        activation_checkpointing: Whether each transformer block keeps its input alone in training and computes the
            rest again for the gradients: less memory for more time, and the same numbers. A composition takes no heed
            of it, for its models run in evaluation mode.
    """

    path: str = "mini"
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    end_token: str | None = None
    activation_checkpointing: bool = False


@dataclass
class DataConfig:
    """How rows become batches, and which of them are scored.

    Args:
        batch_size: Rows in a batch of training; with `batch_tokens`, the most.
        batch_tokens: Tokens in a batch of training, padding among them: as many rows as fit into rows times longest
            row; a longer row is alone. None: not limited.
        bucket: Batches whose rows are sorted by length together, which saves padding where lengths differ much
            and can cost learning where they tell of the answer; 1: plain shuffling, or 16 with `batch_tokens`.
        max_length: Tokens of prompt and answer together; None: not limited.
        max_prompt_length: Tokens of the prompt.
        max_answer_length: Tokens of the answer.
        template: What is written around a prompt.
        template_date: The day, as YYYY-MM-DD, that a chat template takes for today.
        truncation: Where a prompt that is too long is cut.
        tokenization: Whether prompt and answer become tokens each by itself ("apart") or as one text that is cut on
            the left ("joint"; see `TextPolicy`). None: as the benchmark's `protocol` says, else "apart".
        eval_batch_size: The most rows in a batch of scoring.
        eval_batch_tokens: The most tokens, of prompts and of answers as long as may be, that are generated from at
            once, so that short prompts have more beside them than long ones; None: `eval_batch_size` alone counts.
        num_workers: Processes that make batches beside the one that trains; they change no number.
        frozen_states_gb: Memory, in 10^9 bytes, for what frozen layers make of a task's rows: where a task is trained
            for more than one epoch by one process and all of it fits, it is computed once; 0: in each step. The last
            bits of a result depend on which it is.
        score_on: The split of each task that is scored, wherever a task is: "validation" while learning rates and
            the like are chosen, so that the test rows have no part in the choice. Probes and the general corpus
            are scored on their test rows all the same.
        score_options: Whether a task whose answers begin with one of a few options is also scored by which of them the
            model finds likeliest ("likeliest_option", not a primary metric); no answer is generated for that.
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
    """One method, or several whose hooks run in order, and what it does otherwise than the study.

    Args:
        components: The `ContinualStrategy` classes, one or more.
        changes: The strategy's own optimizer, scheduler and trainer arguments.
        per_task: The same for single tasks, by the task's name.
        trial_of: The method that this is a trial of, with other settings, to choose among them; None: it is no trial.
    """

    components: list[Component]
    changes: Changes = field(default_factory=Changes)
    per_task: dict[str, Changes] = field(default_factory=dict)
    trial_of: str | None = None


@dataclass(frozen=True)
class TaskSettings:
    """What one strategy learns one task with, after all that overrules has been laid over.

    Args:
        optimizer: To be built with `params`.
        scheduler: To be built with `optimizer`; steps are optimizer steps of the task.
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
        strategies: The methods to compare, by the name of their folder.
        seeds: One run each.
        orders: The benchmark's by name, written out, or random ones by seed (`config.orders`); None: its first.
        first_tasks: How many tasks of each order are learnt and scored; None: all.
        bounds: Whether the strategies that are yardsticks (`ContinualStrategy.bound`) are added, those that are not
            there yet. The untouched model is row 0 of every run.
        executor: Where the runs are made (`workbench.executors`); it changes no number.
        prepare: What has to be made before a seed's runs, such as the models that they compose: callables, each called
            with the study's display. They are asked every time, so one that finds its work done has to leave it.
        optimizer: To be built with `params`, anew for each task.
        carry_optimizer: Whether parameters that train on in the next task keep their optimizer state, such as Adam's
            moments, as under one optimizer for all tasks. The rate's schedule begins anew all the same. None: as the
            benchmark's `protocol` says, else false.
        scheduler: To be built with `optimizer`; it steps with it. None: the rate stays.
        per_task: What single tasks do otherwise, by the task's name; a strategy's own goes before it.
        data: Batches and the limits of text.
        trainer: Arguments of `lightning.Trainer`, word for word.
        score_every_n_steps: Also score in mid-task, after so many optimizer steps; None: only after each task.
        save_every_n_steps: Save the state, from which the same command goes on, after so many optimizer steps and
            between tasks; None: by the clock.
        save_every_seconds: Save it after so many seconds, or less often where saving takes long: all of it stays below
            3 % of the time.
        existing: What to do with a run's folder that is there.
        output: The folder of all studies.
    """

    name: str
    benchmark: Component
    strategies: dict[str, StrategyConfig]
    seeds: list[int] = field(default_factory=lambda: [0])
    orders: list[Entry] | None = None
    first_tasks: int | None = None
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
    score_every_n_steps: int | None = None
    save_every_n_steps: int | None = None
    save_every_seconds: float = 60.0
    existing: Literal["resume", "refuse", "replace"] = "resume"
    output: str = "runs"

    def layers(self, strategy: str, task: str | None = None) -> list[tuple[str, Changes]]:
        """List what bears on a task, the weakest first: study, strategy, the study's task, the strategy's.

        Returns:
            The key where each stands, and what it says.
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
        """List the tasks that are changed for this strategy; only a benchmark knows if it has them."""
        return list(dict.fromkeys([*self.per_task, *self.strategies[strategy].per_task]))

    def settings(self, strategy: str, task: str | None = None) -> TaskSettings:
        """Lay the layers over one another.

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
    """Put a seed into what a config says of models, data and methods, wherever it leaves room for one."""
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
    return for_seed(replace(one, existing="resume", executor=Component(DEFAULT_EXECUTOR)), seed)


def _filled(value: Any, seed: int) -> Any:
    """Put a seed into every text inside a value."""
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
    """Lay changes over others: a `class_path` replaces a component, `init_args` alone are added to it."""
    result: Changes = {**weak, **strong}
    if "optimizer" in weak and "optimizer" in strong:
        result["optimizer"] = _over(weak["optimizer"], strong["optimizer"])
    old, new = weak.get("scheduler"), strong.get("scheduler")
    if old is not None and new is not None:
        result["scheduler"] = _over(old, new)
    if "trainer" in weak or "trainer" in strong:
        result["trainer"] = {**weak.get("trainer", {}), **strong.get("trainer", {})}
    return result


def _over(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Lay a component over another."""
    if "class_path" in new:
        return new
    return {**old, "init_args": {**(old.get("init_args") or {}), **(new.get("init_args") or {})}}


def _mapping(component: Component) -> dict[str, Any]:
    """Write a component as a YAML does."""
    return {"class_path": component.class_path, "init_args": component.init_args}


def leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value of a config with its dotted key; an empty mapping has none.

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
