"""Conformance suites: does a strategy, or a benchmark, keep to the contracts?"""

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
from workbench.testing.recorder import RecordedRun, Unfinished, structure, weights
from workbench.testing.tiny import VARIANTS, tiny_backbone

DECODED_TOKENS = 8
HOOKS = tuple(name for name, value in vars(ContinualStrategy).items() if callable(value) and name[0] != "_")
CLOSE = 0.7
"""Similarity (difflib's ratio) from which on a method's name is taken for a misspelt hook."""


class ConformanceError(AssertionError):
    """A strategy or benchmark does not keep to the contracts.

    Args:
        failures: One sentence for each failure.
    """

    def __init__(self, failures: Sequence[str]) -> None:
        self.failures = list(failures)
        super().__init__("\n".join(self.failures))


def check_either(make: Callable[[], object]) -> list[str]:
    """Run the suite that fits an object, `check_on_variants` or `check_benchmark`.

    Args:
        make: Function that returns a new strategy or a benchmark.

    Returns:
        One sentence for each check.

    Raises:
        ConformanceError: A check failed, or the object is neither a strategy nor a benchmark.
    """
    checked = make()
    if isinstance(checked, ContinualStrategy):
        return check_on_variants(make)  # type: ignore[arg-type]
    if isinstance(checked, Benchmark):
        return check_benchmark(checked)
    raise ConformanceError(
        [f"{type(checked).__name__} is neither a ContinualStrategy nor a Benchmark. Give one of these."]
    )


def check_on_variants(make: Callable[[], ContinualStrategy]) -> list[str]:
    """Run `check_strategy` on each tiny model of `VARIANTS`, up to the first with a failure.

    Args:
        make: Function that returns a new strategy.

    Returns:
        One sentence for each check, and one with the names of the models.

    Raises:
        ConformanceError: A check failed; the message names the model unless it is the default one.
    """
    passed: list[str] = []
    for name, changes in VARIANTS.items():
        try:
            passed = check_strategy(make, partial(tiny_backbone, **changes))
        except ConformanceError as error:
            where = f"on the variant {name!r}: " if changes else ""
            raise ConformanceError([where + failure for failure in error.failures]) from error
    return [*passed, f"All of it on {len(VARIANTS)} tiny models: {', '.join(VARIANTS)}."]


def check_strategy(
    make: Callable[[], ContinualStrategy], backbone: Callable[[], Backbone] = tiny_backbone
) -> list[str]:
    """Check everything that the training loop requires of a strategy, on a tiny model.

    Args:
        make: Function that returns a new strategy, such as a class or a lambda.
        backbone: Function that returns a new tiny model; `VARIANTS` lists further ones.

    Returns:
        One sentence for each check.

    Raises:
        ConformanceError: A check failed; the message lists all failures.
    """
    passed, failures = [], []
    with tempfile.TemporaryDirectory() as folder:
        run = RecordedRun(make, backbone, folder)
        for check in STRATEGY_CHECKS:
            try:
                problems = list(check(run))
            except Unfinished:  # reported once, by `runs`
                continue
            except Exception as error:  # a strategy may raise anything; the other checks still run
                problems = [describe_error(error, named=True)]
            sentence = (check.__doc__ or "").strip()
            failures += [f"{sentence} {problem}" for problem in problems]
            passed += [] if problems else [sentence]
    if failures:
        raise ConformanceError(failures)
    return passed


def likely_mistakes(make: Callable[[], object]) -> list[str]:
    """Return `strategy_warnings` of a strategy, and nothing for any other object.

    Args:
        make: Function that returns a new strategy or a benchmark.
    """
    return strategy_warnings(make) if isinstance(make(), ContinualStrategy) else []  # type: ignore[arg-type]


def strategy_warnings(make: Callable[[], ContinualStrategy]) -> list[str]:
    """Return a sentence for each likely mistake: a misspelt hook, or a strategy without effect.

    Args:
        make: Function that returns a new strategy.
    """
    strategy = make()
    members = [member for member in strategy.modules() if isinstance(member, ContinualStrategy)]
    sentences = [sentence for member in members for sentence in _misspelt_hooks(type(member))]
    acts = any(_own_methods(type(member)) - {"setup"} for member in members)
    if strategy.bound is None and not answers_itself(strategy) and acts and _has_no_effect(make):
        sentences.append(
            "after two tiny tasks the weights are those of plain fine-tuning, bit for bit: the strategy has changed "
            "nothing. Check the names and the conditions of its hooks."
        )
    return sentences


def check_benchmark(benchmark: Benchmark) -> list[str]:
    """Check a benchmark's names, orders, splits and scorers.

    Test prompts that also occur in train are a failure, unless the benchmark has an attribute `overlaps` with an entry
    whose `task` is the task's name.

    Args:
        benchmark: The benchmark.

    Returns:
        One sentence for each check.

    Raises:
        ConformanceError: A check failed; the message lists all failures.
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
    counts = ", ".join(f"{count} of {name}" for name, count in shared.items())
    return [
        "Names are unique.",
        "Every order is a permutation of the tasks.",
        "Probes are never trained.",
        f"No test prompt is trained on{f', except for stated overlaps: {counts}' if shared else ''}.",
        "Right answers score 1, and wrong ones less.",
    ]


# The checks of a strategy. The docstring of each is the sentence that is shown; it yields what is wrong.


def cites_its_paper(run: RecordedRun) -> Iterator[str]:
    """The strategy cites its paper in `reference`."""
    for module in run.make().modules():  # a composition cites what its members cite
        if isinstance(module, ContinualStrategy) and not isinstance(module, Composition) and not module.reference:
            yield f"{type(module).__name__}'s is empty."


def runs(run: RecordedRun) -> Iterator[str]:
    """Two tasks are learnt in sequence, and the last row of scores is complete."""
    if run.failure:
        yield describe_error(run.failure, named=True)
    elif not RunFolder(run.recorded_folder).has_row(2):
        yield "It is missing."


def learns(run: RecordedRun) -> Iterator[str]:
    """Trainable parameters change in training."""
    before, after = run.fresh_backbone(), run.learnt
    rows = Dataset.from_list([{"prompt": "Task 0: t1 b\nAnswer:", "answer": "b"}])
    same = bool(before.nats(before.encode(rows))[0] == after.nats(after.encode(rows))[0])
    if same and (run.recorded_folder / "train.csv").is_file():
        yield "The model has not changed."
    yield from (f"{name} is trainable and got no gradient." for name in run.record.idle[:1])


def keeps_no_backbone(run: RecordedRun) -> Iterator[str]:
    """The strategy keeps no reference to the backbone, nor to the memory of its weights."""
    parts = {_identity(thing) for thing in (*run.learnt.modules(), *run.learnt.parameters())}
    if held := [name for name, thing in _possessions(run.finished.strategy) if _identity(thing) in parts]:
        yield f"It holds one in {held[0]!r}."


def frozen_stays(run: RecordedRun) -> Iterator[str]:
    """Frozen parameters do not change while a task is trained."""
    yield from run.record.changed


def frozen_gets_no_gradient(run: RecordedRun) -> Iterator[str]:
    """Frozen parameters get no gradient."""
    yield from run.record.gradients[:1]


def penalties_are_scalars(run: RecordedRun) -> Iterator[str]:
    """Penalties are finite scalars in a dict, by name."""
    yield from run.record.wrong_penalties[:1]


def leaves_the_rest(run: RecordedRun) -> Iterator[str]:
    """No hook changes the mode, dtype or device of a module or parameter that was there before it."""
    yield from run.record.disturbed[:1]


def decodes_with_a_cache(run: RecordedRun) -> Iterator[str]:
    """Decoding eight tokens with a cache, next to a longer row, gives the logits of a single pass without a cache."""
    backbone = run.learnt
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


def keeps_its_state(run: RecordedRun) -> Iterator[str]:
    """The strategy's state, saved and read with `weights_only`, is the same after loading into a new strategy."""
    file = run.folder / "state.pt"
    torch.save(run.finished.strategy.state_dict(), file)
    try:
        state = torch.load(file, weights_only=True)
    except UnpicklingError:
        yield "It holds more than tensors and plain values."
        return
    strategy, _ = run.replayed
    try:
        strategy.load_state_dict(state)
    except RuntimeError as error:
        yield f"It cannot be loaded: {' '.join(str(error).split())}"
        return
    loaded = strategy.state_dict()
    if different := [name for name in state if not _same(state[name], loaded[name])]:
        yield f"{different[0]} differs."


def saves_plain(run: RecordedRun) -> Iterator[str]:
    """The saved model loads with plain transformers and gives the same logits, bit for bit."""
    backbone = run.learnt
    plain = AutoModelForCausalLM.from_pretrained(
        run.recorded_folder / "model",
        dtype=backbone.model.dtype,
        trust_remote_code=True,  # the code of a composition is this project's, saved with the model
    )
    tokens = torch.arange(3, 13).unsqueeze(0)
    with torch.no_grad(), backbone.evaluating(), backbone.merged():
        difference = (backbone.model(tokens).logits - plain(tokens).logits).abs().max().item()
    if difference != 0:
        yield f"The logits differ by {difference:.2g}."


def rebuilds(run: RecordedRun) -> Iterator[str]:
    """Replaying `setup` and `before_task` rebuilds the structure and what trains, so that a run can be resumed."""
    built, rebuilt = run.finished.built, structure(run.replayed[1])
    if built and rebuilt != built:  # nothing is built if nothing is trained
        different = sorted(set(rebuilt.items()) ^ set(built.items()))
        yield f"{different[0][0]} differs."


def repeats(run: RecordedRun) -> Iterator[str]:
    """Two runs with one seed end with the same weights, bit for bit, also if one is stopped and resumed."""
    first = weights(run.learnt)
    try:
        problem = weights_differ(first, weights(run.run_in_parts("in parts")))
    except ConfigError as error:
        problem = str(error)
    if problem:
        unstopped = weights_differ(first, weights(run.run(run.make(), "again")))
        yield unstopped or f"{problem} Only if it is stopped: what changes has to be in buffers or extra state."


def restores(run: RecordedRun) -> Iterator[str]:
    """`restore` brings back the model and the tokenizer as loaded."""
    backbone, fresh = run.learnt, run.fresh_backbone()
    backbone.restore()
    loaded, restored = weights(fresh), weights(backbone)
    if backbone.encoder.state != fresh.encoder.state:
        yield "The tokenizer differs."
    if loaded.keys() != restored.keys() or any(not torch.equal(loaded[name], restored[name]) for name in loaded):
        yield "The model differs."


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
    restores,  # last, since it discards the trained model
)


def weights_differ(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> str:
    """Return a sentence with the first difference of two models' weights; "" if they are equal, bit for bit.

    Args:
        first: Weights of one model by name, of any shapes (...,).
        second: Weights of the other.
    """
    if first.keys() != second.keys():
        return f"Only one has {min(first.keys() ^ second.keys())}."
    return next((f"{name} differs." for name in first if not torch.equal(first[name], second[name])), "")


def _possessions(strategy: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield everything in a strategy's attributes, and in collections there, with the attribute's name."""
    yield from (*strategy.named_modules(), *strategy.named_parameters(), *strategy.named_buffers())
    for module in strategy.modules():
        for name, value in vars(module).items():
            items = value.values() if isinstance(value, Mapping) else value
            yield from ((name, item) for item in (items if isinstance(items, Collection) else [value]))


def _identity(thing: Any) -> int:
    """Return a number that tensors share if they share their memory, such as a weight and its `detach`."""
    return int(thing.untyped_storage().data_ptr()) if isinstance(thing, Tensor) else id(thing)


def _decode_with_cache(backbone: Backbone, rows: Sequence[list[int]]) -> tuple[list[list[int]], list[Tensor]]:
    """Return the greedy tokens of each row, and the logits that chose them, (tokens, vocabulary) for each row."""
    size = max(map(len, rows))
    generated = backbone.model.generate(
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
    return generated.sequences[:, size:].tolist(), list(torch.stack(generated.logits, dim=1))


def _tokens(backbone: Backbone, rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows, device=backbone.device)


def _same(first: Any, second: Any) -> bool:
    """Return True if two states are equal, tensors bit for bit."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(_same(first[name], second[name]) for name in first)
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(map(_same, first, second))
    return type(first) is type(second) and bool(first == second)


def _misspelt_hooks(kind: type[ContinualStrategy]) -> Iterator[str]:
    """Yield a sentence for each method whose name is close to that of a hook that the class does not define."""
    methods = _own_methods(kind)
    for name in sorted(methods - set(dir(ContinualStrategy))):
        close = get_close_matches(name.lower(), HOOKS, n=1, cutoff=CLOSE) if not name.startswith("_") else []
        if close and close[0] not in methods:
            yield f"{kind.__name__}.{name} is no hook, so nobody calls it. Did you mean '{close[0]}'?"


def _own_methods(kind: type[ContinualStrategy]) -> set[str]:
    """Return the names of the methods that a class and its bases define, without those of `ContinualStrategy`."""
    bases = [base for base in kind.__mro__ if issubclass(base, ContinualStrategy) and base is not ContinualStrategy]
    return {name for base in bases if base is not Composition for name, value in vars(base).items() if callable(value)}


def _has_no_effect(make: Callable[[], ContinualStrategy]) -> bool:
    """Return True if the weights after two tiny tasks are those of plain fine-tuning, bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        run = RecordedRun(make, tiny_backbone, folder)
        plain = RecordedRun(ContinualStrategy, tiny_backbone, f"{folder}/plain")
        if run.failure:  # which the checks report
            return False
        return not weights_differ(weights(run.learnt), weights(plain.learnt))


def _test_prompts_in_train(task: Task) -> int:
    """Return the number of distinct test prompts that also occur in train."""
    if task.is_corpus or not len(task.train):
        return 0
    return len(set(task.test["prompt"][:]) & set(task.train["prompt"][:]))


def _score_problems(task: Task) -> Iterator[str]:
    """Yield what is wrong with the primary score of the right answers and of nonsense."""
    if task.is_corpus:
        return
    prompts, answers = task.test["prompt"][:], task.test["answer"][:]
    right, wrong = (_primary_score(task, prompts, given, answers) for given in (answers, ["\x00"] * len(answers)))
    if not right > 0.99:
        yield f"the right answers score {right:.3f} under {task.primary}, not 1."
    if not wrong < right:
        yield f"nonsense scores as much as the right answers under {task.primary}."


def _primary_score(task: Task, prompts: list[str], predictions: list[str], answers: list[str]) -> float:
    scorer = task.scorers[task.primary].clone()
    scorer.reset()
    scorer.update(prompts, predictions, answers)
    return float(scorer.compute())
