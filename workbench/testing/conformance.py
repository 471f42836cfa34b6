"""Conformance suites for strategies and benchmarks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from pickle import UnpicklingError
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig

from workbench.backbone import Backbone
from workbench.benchmark import Benchmark, Task
from workbench.config.orders import benchmark_problems
from workbench.errors import ConfigError, describe_error
from workbench.results import RunFolder
from workbench.strategy import Composition, ContinualStrategy, answers_itself
from workbench.testing.recorder import Trial, Unfinished, structure, weights
from workbench.testing.tiny import VARIANTS, tiny_backbone

DECODED_TOKENS = 8


def cites_its_paper(trial: Trial) -> Iterator[str]:
    """The strategy cites its paper in `reference`."""
    for module in trial.make().modules():  # a composition cites what its members cite
        if isinstance(module, ContinualStrategy) and not isinstance(module, Composition) and not module.reference:
            yield f"{type(module).__name__}'s is empty."


def runs(trial: Trial) -> Iterator[str]:
    """Two tasks are learnt in sequence, and every score of the last row is there."""
    if trial.failure:
        yield describe_error(trial.failure, named=True)
    elif not RunFolder(trial.folder / "watched").has_row(2):
        yield "There is none."


def learns(trial: Trial) -> Iterator[str]:
    """What is trainable does change."""
    before, after = trial.fresh_backbone(), trial.learnt
    rows = Dataset.from_list([{"prompt": "Task 0: t1 b\nAnswer:", "answer": "b"}])
    same = bool(before.nats(before.encode(rows))[0] == after.nats(after.encode(rows))[0])
    if same and (trial.folder / "watched" / "train.csv").is_file():
        yield "The model is what it was."
    yield from (f"{name} is trainable and got no gradient." for name in trial.seen.idle[:1])


def keeps_no_backbone(trial: Trial) -> Iterator[str]:
    """The strategy keeps no reference to the backbone, nor to the memory of its weights."""
    own = {_identity(thing) for thing in (*trial.learnt.modules(), *trial.learnt.parameters())}
    if held := [name for name, thing in _possessions(trial.finished.watched) if _identity(thing) in own]:
        yield f"It holds one in {held[0]!r}."


def frozen_stays(trial: Trial) -> Iterator[str]:
    """What is frozen does not change while a task is trained."""
    yield from trial.seen.changed


def frozen_gets_no_gradient(trial: Trial) -> Iterator[str]:
    """What is frozen gets no gradient."""
    yield from trial.seen.gradients[:1]


def penalties_are_scalars(trial: Trial) -> Iterator[str]:
    """Penalties are finite scalars, by name."""
    yield from trial.seen.penalties_wrong[:1]


def leaves_the_rest(trial: Trial) -> Iterator[str]:
    """Every hook leaves mode, dtype and device of what is there as it found them."""
    yield from trial.seen.disturbed[:1]


def decodes_with_a_cache(trial: Trial) -> Iterator[str]:
    """Decoding with a cache, beside a longer row, gives the logits of one pass without, over eight tokens."""
    backbone = trial.learnt
    rows = [list(range(3, 12)), list(range(20, 24))]
    with torch.no_grad(), backbone.evaluating(), backbone.merged():
        answers, cached = _decode_with_cache(backbone, rows)
        for row, answer, steps in zip(rows, answers, cached, strict=True):
            batch = backbone.collate([{"input_ids": row + answer, "prompt_length": len(row), "row": 0}])
            plain = backbone(batch.to(backbone.device)).logits()
            difference = (steps - plain).abs().amax(dim=1)
            rounding = max(1e-5, 4 * torch.finfo(plain.dtype).eps) * plain.abs().amax(dim=1)
            if wrong := (~(difference < rounding)).nonzero().flatten().tolist():
                yield f"At token {wrong[0] + 1} of {DECODED_TOKENS} they differ by {difference[wrong[0]].item():.2g}."
                return


def keeps_its_state(trial: Trial) -> Iterator[str]:
    """The strategy's state, in a file read with `weights_only`, is the same again in a strategy built anew."""
    file = trial.folder / "state.pt"
    torch.save(trial.finished.watched.state_dict(), file)
    try:
        state = torch.load(file, weights_only=True)
    except UnpicklingError:
        yield "It holds more than tensors and plain values."
        return
    strategy, _ = trial.replayed
    try:
        strategy.load_state_dict(state)
    except RuntimeError as error:
        yield f"It does not load into one: {' '.join(str(error).split())}"
        return
    now = strategy.state_dict()
    if different := [name for name in state if not _same(state[name], now[name])]:
        yield f"{different[0]} differs."


def saves_plain(trial: Trial) -> Iterator[str]:
    """The saved model loads with plain transformers and gives the same logits, bit for bit."""
    backbone = trial.learnt
    plain = AutoModelForCausalLM.from_pretrained(
        trial.folder / "watched" / "model",
        dtype=backbone.model.dtype,
        trust_remote_code=True,  # a file of our own, where one was saved along
    )
    tokens = torch.arange(3, 13).unsqueeze(0)
    with torch.no_grad(), backbone.evaluating(), backbone.merged():
        difference = (backbone.model(tokens).logits - plain(tokens).logits).abs().max().item()
    if difference != 0:
        yield f"The logits differ by {difference:.2g}."


def rebuilds(trial: Trial) -> Iterator[str]:
    """Replaying `setup` and `before_task` rebuilds what is there and what trains, so that a stopped run can go on."""
    built, rebuilt = trial.finished.built, structure(trial.replayed[1])
    if built and rebuilt != built:  # nothing is built where nothing is learnt
        wrong = sorted(set(rebuilt.items()) ^ set(built.items()))
        yield f"{wrong[0][0]} is another one."


def repeats(trial: Trial) -> Iterator[str]:
    """Two runs with one seed end with the same weights, bit for bit, also where one is stopped and gone on with."""
    one = weights(trial.learnt)
    try:
        problem = weights_differ(one, weights(trial.run_in_parts("in parts")))
    except ConfigError as error:
        problem = str(error)
    if problem:
        unstopped = weights_differ(one, weights(trial.run(trial.make(), "again")))
        yield unstopped or f"{problem} Only where it is stopped: what changes has to be in buffers or extra state."


def restores(trial: Trial) -> Iterator[str]:
    """`restore` brings back the model and the tokenizer that were loaded."""
    backbone, fresh = trial.learnt, trial.fresh_backbone()
    backbone.restore()
    loaded, now = weights(fresh), weights(backbone)
    if backbone.encoder.state != fresh.encoder.state:
        yield "The tokenizer is another one."
    if loaded.keys() != now.keys() or any(not torch.equal(loaded[name], now[name]) for name in loaded):
        yield "It does not."


STRATEGY_CHECKS = (
    cites_its_paper,
    runs,
    learns,
    keeps_no_backbone,
    frozen_stays,
    frozen_gets_no_gradient,
    penalties_are_scalars,
    leaves_the_rest,
    decodes_with_a_cache,
    keeps_its_state,
    saves_plain,
    rebuilds,
    repeats,
    restores,  # the last one: after it the run's model is gone
)


def weights_differ(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> str:
    """In what two models differ, bit for bit, in a sentence; "" where they are the same."""
    if one.keys() != other.keys():
        return f"Only one has {min(one.keys() ^ other.keys())}."
    return next((f"{name} differs." for name in one if not torch.equal(one[name], other[name])), "")


def _possessions(strategy: nn.Module) -> Iterator[tuple[str, Any]]:
    """Everything in a strategy's attributes, collections opened, by the attribute's name."""
    yield from (*strategy.named_modules(), *strategy.named_parameters(), *strategy.named_buffers())
    for module in strategy.modules():
        for name, value in vars(module).items():
            items = value.values() if isinstance(value, Mapping) else value
            yield from ((name, item) for item in (items if isinstance(items, Collection) else [value]))


def _identity(thing: Any) -> int:
    """The same for all tensors that share their memory, such as a weight and what `detach` makes of it."""
    return int(thing.untyped_storage().data_ptr()) if isinstance(thing, Tensor) else id(thing)


def _decode_with_cache(backbone: Backbone, rows: Sequence[list[int]]) -> tuple[list[list[int]], list[Tensor]]:
    """Greedy tokens of each row, and the logits that they were chosen by, (tokens, vocabulary) each."""
    size = max(map(len, rows))
    made = backbone.model.generate(
        input_ids=_tokens(backbone, [[backbone.pad_id] * (size - len(row)) + row for row in rows]),
        attention_mask=_tokens(backbone, [[0] * (size - len(row)) + [1] * len(row) for row in rows]),
        generation_config=GenerationConfig(
            max_new_tokens=DECODED_TOKENS,
            min_new_tokens=DECODED_TOKENS,  # the end token is never chosen
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            eos_token_id=backbone.tokenizer.eos_token_id,
            pad_token_id=backbone.pad_id,
        ),
    )
    return made.sequences[:, size:].tolist(), list(torch.stack(made.logits, dim=1))


def _tokens(backbone: Backbone, rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows, device=backbone.device)


def _same(one: Any, other: Any) -> bool:
    """Whether two states are equal, tensors bit for bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and bool(one == other)


HOOKS = tuple(name for name, value in vars(ContinualStrategy).items() if callable(value) and name[0] != "_")
CLOSE = 0.7
"""How like a hook's name another has to be (difflib's ratio) to be taken for it."""


class ConformanceError(AssertionError):
    """What a strategy or a benchmark does not keep to.

    Args:
        failures: One sentence each.
    """

    def __init__(self, failures: Sequence[str]) -> None:
        self.failures = list(failures)
        super().__init__("\n".join(self.failures))


def check_strategy(
    make: Callable[[], ContinualStrategy], backbone: Callable[[], Backbone] = tiny_backbone
) -> list[str]:
    """Runs a strategy through everything that the loop relies on, on a tiny model.

    Args:
        make: Gives a fresh strategy each time, such as a class or a lambda.
        backbone: Gives the tiny model each time; `workbench.testing.tiny.VARIANTS` names further ones.

    Returns:
        What was checked, a sentence each.

    Raises:
        ConformanceError: All that failed.
    """
    passed, failures = [], []
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(make, backbone, folder)
        for check in STRATEGY_CHECKS:
            try:
                problems = list(check(trial))
            except Unfinished:  # said once, by `runs`
                continue
            except Exception as error:  # what a stranger's class may raise, and the other checks still say something
                problems = [describe_error(error, named=True)]
            sentence = (check.__doc__ or "").strip()
            failures += [f"{sentence} {problem}" for problem in problems]
            passed += [] if problems else [sentence]
    if failures:
        raise ConformanceError(failures)
    return passed


def check_on_variants(make: Callable[[], ContinualStrategy]) -> list[str]:
    """`check_strategy` on each tiny model of `VARIANTS`, as far as the first on which anything fails.

    Args:
        make: Gives a fresh strategy each time.

    Returns:
        What was checked, a sentence each, and on which models.

    Raises:
        ConformanceError: All that failed on one model, which is named unless it is the plain one.
    """
    passed: list[str] = []
    for name, changes in VARIANTS.items():
        try:
            passed = check_strategy(make, partial(tiny_backbone, **changes))
        except ConformanceError as error:
            where = f"on the variant {name!r}: " if changes else ""
            raise ConformanceError([where + failure for failure in error.failures]) from error
    return [*passed, f"All of it on {len(VARIANTS)} tiny models: {', '.join(VARIANTS)}."]


def strategy_warnings(make: Callable[[], ContinualStrategy]) -> list[str]:
    """What is no failure, and most likely a mistake: a method that is nearly a hook, a strategy that does nothing.

    Args:
        make: Gives a fresh strategy each time.

    Returns:
        A sentence each.
    """
    made = make()
    members = [member for member in made.modules() if isinstance(member, ContinualStrategy)]
    told = [sentence for member in members for sentence in _nearly_hooks(type(member))]
    if made.bound is None and not answers_itself(made) and any(_own(type(member)) - {"setup"} for member in members):
        told += _does_nothing(make)
    return told


def _nearly_hooks(kind: type[ContinualStrategy]) -> Iterator[str]:
    own = _own(kind)
    for name in sorted(own - set(dir(ContinualStrategy))):
        close = get_close_matches(name.lower(), HOOKS, n=1, cutoff=CLOSE) if not name.startswith("_") else []
        if close and close[0] not in own:
            yield f"{kind.__name__}.{name} is no hook, so nobody calls it. Did you mean '{close[0]}'?"


def _own(kind: type[ContinualStrategy]) -> set[str]:
    """The functions that a class and its bases define, below `ContinualStrategy`."""
    classes = [one for one in kind.__mro__ if issubclass(one, ContinualStrategy) and one is not ContinualStrategy]
    return {name for one in classes if one is not Composition for name, value in vars(one).items() if callable(value)}


def _does_nothing(make: Callable[[], ContinualStrategy]) -> list[str]:
    """Compares the weights after two tiny tasks with those of plain fine-tuning, bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        trial, plain = Trial(make, tiny_backbone, folder), Trial(ContinualStrategy, tiny_backbone, f"{folder}/plain")
        if trial.failure:  # which the checks tell
            return []
        if weights_differ(weights(trial.learnt), weights(plain.learnt)):
            return []
    what = "after the two tasks of the trial the weights are those of plain fine-tuning, bit for bit"
    return [f"{what}: the strategy has changed nothing. Look at the names and the conditions of its hooks."]


def check_benchmark(benchmark: Benchmark) -> list[str]:
    """Looks at a benchmark's names, orders, splits and scorers.

    Test prompts that are also in train are a failure, unless the benchmark states them: with an attribute
    `overlaps`, of entries whose `task` is the task's name.

    Returns:
        What was checked, a sentence each.

    Raises:
        ConformanceError: All that failed.
    """
    tasks = [benchmark[index] for index in range(len(benchmark))]
    failures = benchmark_problems(benchmark)
    shared = {task.name: count for task in tasks if (count := _test_prompts_in_train(task))}
    stated = {entry.task for entry in getattr(benchmark, "overlaps", ())}
    failures += [
        f"{name}: {count} test prompts are also in train." for name, count in shared.items() if name not in stated
    ]
    for task in [*tasks, *benchmark.probes]:
        failures += [f"{task.name}: {problem}" for problem in _score_problems(task)]
    if failures:
        raise ConformanceError(failures)
    return [
        "Names are unique.",
        "Every order is a permutation of the tasks.",
        "Probes are never trained.",
        f"No test prompt is trained on{_but_for(shared)}.",
        "Right answers score 1, and wrong ones less.",
    ]


def _test_prompts_in_train(task: Task) -> int:
    """Different prompts, each counted once."""
    if task.is_corpus or not len(task.train):
        return 0
    return len(set(task.test["prompt"][:]) & set(task.train["prompt"][:]))


def _but_for(shared: Mapping[str, int]) -> str:
    counts = ", ".join(f"{count} of {name}" for name, count in shared.items())
    return f", but for overlaps that the benchmark states: {counts}" if shared else ""


def _score_problems(task: Task) -> Iterator[str]:
    if task.is_corpus:
        return
    prompts, answers = task.test["prompt"][:], task.test["answer"][:]
    right, wrong = (_primary(task, prompts, given, answers) for given in (answers, ["\x00"] * len(answers)))
    if not right > 0.99:
        yield f"the right answers score {right:.3f} under {task.primary}, not 1."
    if not wrong < right:
        yield f"nonsense scores as much as the right answers under {task.primary}."


def _primary(task: Task, prompts: list[str], predictions: list[str], answers: list[str]) -> float:
    scorer = task.scorers[task.primary].clone()
    scorer.reset()
    scorer.update(prompts, predictions, answers)
    return float(scorer.compute())
