"""Studies that cannot be: each is given to `lightning run`, whose first line has to say what is wrong."""

from __future__ import annotations

from typing import Any

from bad_inputs import Place, Row

LATE = """
from workbench.strategy import ContinualStrategy


class Late:
    def __init__(self, *given, **named): ...


def __getattr__(name):
    raise RuntimeError("the library is too old")
"""
BENCHES = """
from workbench.testing import tiny_corpus, tiny_tasks


class Twice:
    orders = {"default": ["task_0", "task_0"]}
    probes = ()
    general = None

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return tiny_tasks()[0]


class Strange(Twice):
    orders = {"back": ["task_1", "task_9", "task_1"]}

    def __getitem__(self, index):
        return tiny_tasks()[index]


class Orderless(Strange):
    orders = {}
    probes = tiny_tasks(1)


class Long(Twice):
    def __getitem__(self, index):
        from dataclasses import replace

        return replace(tiny_tasks()[0], name="n" * 260)
"""
FILES = {
    "benches.py": BENCHES,
    "late.py": LATE,
    "broken.py": "import no_such_library\n",
    "halved.py": "raise ZeroDivisionError('halves')\n",
    "plain.py": "NUMBER = 3\n\n\nclass Plain:\n    pass\n\n\nclass Still:\n    def __init__(self, folder: str): ...\n",
}


def run(override: str, *says: str, **changes: Any) -> Row:
    """A small study with an override, and what it leaves to say."""

    def lay(place: Place) -> None:
        place.config(**changes)
        for name, text in FILES.items():
            (place.folder / name).write_text(text, encoding="utf-8")

    return Row(f"run {override or changes}", says, argv=("run", "small.yaml", *filter(None, [override])), lay=lay)


def one(class_path: str, **arguments: Any) -> dict[str, Any]:
    """A study's strategies: one, called "it"."""
    return {"it": {"class_path": class_path, "init_args": arguments}}


def file(name: str, content: bytes, *says: str) -> Row:
    """A file that is no study."""
    return Row(
        f"run, a file with {name}",
        says,
        argv=("run", "bad.yaml"),
        lay=lambda place: (place.folder / "bad.yaml").write_bytes(content),
    )


def prepared(class_path: str, **arguments: Any) -> dict[str, Any]:
    """What a study is to make first."""
    return {"prepare": {"class_path": class_path, "init_args": arguments}}


NAMES = [
    run("strategies.seqft.class_path=strategies.SeqFt", "'strategies' has no class 'SeqFt'. Did you mean 'SeqFT'?"),
    run(
        "strategies.seqft.class_path=late.Early", "importing 'late.Early' failed: RuntimeError: the library is too old"
    ),
    run(
        "strategies.seqft.class_path=broken.It",
        "importing 'broken' failed: ModuleNotFoundError",
        "no_such_library",
        "install",
    ),
    run("strategies.seqft.class_path=halved.It", "importing 'halved' failed: ZeroDivisionError: halves", "Fix"),
    run("strategies.seqft.class_path=plain.Plain", "strategies.seqft: Plain is no ContinualStrategy. Give"),
    run("benchmark.class_path=benchmarks.trace.Trase", "has no class 'Trase'. Did you mean 'Trace'?"),
    run("benchmark.class_path=plain.Plain", "benchmark", "Plain", "Benchmark"),
    run("benchmark.init_args.paht=x", "benchmark.init_args.paht: Trace has no argument 'paht'. Did you mean 'path'?"),
    run("benchmark.init_args.tasks=[alpa]", "there is no 'alpa'. Did you mean 'alpha'?"),
]
TEXTS = [
    run("seeds=[a]", "seeds: expected", "got ['a'] (list)."),
    run("benchmark.init_args.path=???", "benchmark.init_args.path: left open (???). Write it in the file, or give"),
]
RANGES = [
    run("per_task.alpha.trainer.devices=2", "trainer.devices: 1 and 2 in one study. Give all strategies and tasks"),
    run(
        "trainer.devices=2",
        "executor: Workers executes each run in one process, and trainer.devices asks for 2. Leave the executor out",
        executor={"class_path": "workbench.executors.Workers"},
    ),
    run(
        "executor.init_args.count=0",
        "count is 0 and threads None; each has to be at least 1.",
        executor={"class_path": "workbench.executors.Workers"},
    ),
    run("trainer.precision=17", "trainer.precision: expected"),
    run("trainer.accelerator=foo", "trainer: You selected an invalid accelerator name", "foo", "auto", "Fix"),
    run("trainer.gradient_clip_algorithm=foo", "trainer: `gradient_clip_algorithm` foo is invalid"),
    run("data.template_date=today", "data.template_date='today' is no date. Give one such as '2024-07-26'."),
    run("data.score_on=test_rows", "data.score_on: expected"),
    run("data.tokenization=whole", "data.tokenization: expected"),
    run(
        "data.truncation=middle",
        "data.truncation=middle: data.tokenization=joint cuts prompt and answer together, on the left. Choose",
        data={"batch_size": 4, "max_length": 64, "tokenization": "joint"},
    ),
    run(
        "per_task.beta.optimizer.class_path=torch.optim.SGD",
        "carry_optimizer: seqft trains with torch.optim.AdamW and torch.optim.SGD, whose states differ. Give all",
        carry_optimizer=True,
        per_task={"beta": {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}}},
    ),
]
COMPONENTS = [
    run(
        "per_task.alpha.scheduler.init_args.x=1",
        "scheduler",
        "class_path",
    ),
    run("", "prepare: plain.Still: it cannot be called. Give a class", **prepared("plain.Still", folder="x")),
    run(
        "backbone.path=absent",
        "backbone.path: absent: there is no such folder. Give a Hugging Face model folder",
        **prepared("torch.nn.Identity"),
    ),
]
LINE = "broken_parts.py, line"
BUILT = [
    run(
        "",
        "strategies.it: broken_parts.Fails: KeyError: 'none' (",
        LINE,
        strategies=one("broken_parts.Fails", key="none"),
    ),
    run(
        "",
        "strategies.it: broken_parts.Asserts: AssertionError (",
        LINE,
        strategies=one("broken_parts.Asserts", rank=4),
    ),
    run("", "strategies.it: Bare.__init__ does not call super().__init__(). Fix", strategies=one("broken_parts.Bare")),
    run(
        "",
        "strategies.it.1: broken_parts.Fails: KeyError: 'b' (",
        LINE,
        strategies={"it": [one("strategies.SeqFT")["it"], one("broken_parts.Fails", key="b")["it"]]},
    ),
    run(
        "executor.class_path=broken_parts.Refuses",
        "executor: broken_parts.Refuses: KeyError: 'no_such_queue' (",
        LINE,
        "Fix",
    ),
    run(
        "benchmark={class_path: broken_parts.Refuses}",
        "benchmark: broken_parts.Refuses: KeyError: 'no_such_queue'",
        "Fix",
    ),
    run("benchmark={class_path: broken_parts.Absent}", "benchmark: Absent: KeyError: 'no_such_task' (", LINE, "Fix"),
    run(
        "optimizer.class_path=broken_parts.Refuses",
        "optimizer: broken_parts.Refuses: Refuses.__init__() got an unexpected",
    ),
    run(
        "optimizer={class_path: broken_parts.Fails, init_args: {key: a}}", "optimizer: broken_parts.Fails: ", "'params'"
    ),
    run("optimizer={class_path: plain.Still, init_args: {folder: a}}", "optimizer: plain.Still: ", "'params'"),
    run("optimizer.class_path=broken_parts.Broken", "optimizer: broken_parts.Broken: AttributeError: ", "(", "Fix"),
    run(
        "optimizer.class_path=broken_parts.Hungry",
        "strategies.seqft: a step needs more memory than there is: no memory is left.",
        "Lower",
    ),
    run(
        "scheduler={class_path: broken_parts.Still}",
        "scheduler: broken_parts.Still makes no scheduler: it has no 'optimizer'. Give",
    ),
]
LONG = [
    run(f"output={'o' * 300}", "output: File name too long. Choose another."),
    run(
        "prepare={class_path: broken_parts.Refuses}",
        "prepare: broken_parts.Refuses: KeyError: 'no_such_queue' (",
        LINE,
        "Fix",
    ),
    run("prepare={class_path: broken_parts.Fetches}", "prepare: broken_parts.Fetches: nothing is there. Choose"),
]
OPTIMIZERS = [
    run("optimizer.class_path=torch.optim.SparseAdam", "optimizer: SparseAdam works on sparse gradients", "Choose"),
    run(
        "optimizer.class_path=torch.optim.LBFGS", "optimizer: LBFGS computes the loss several times in a step", "Choose"
    ),
    run("optimizer={class_path: builtins.dict}", "optimizer: dict is no torch.optim.Optimizer. Give"),
]
CALLBACK = "trainer.callbacks=[{{class_path: lightning.pytorch.callbacks.{}}}]".format
TRAINER = [
    run(
        "trainer.limit_train_batches=0.1",
        "trainer.limit_train_batches: 0.1 of the 2 batches of alpha is less than one. Choose at least 0.5, or a number",
    ),
    run(
        "trainer.overfit_batches=1",
        "trainer.overfit_batches: 1 would not give each epoch the same batches",
        "Set limit",
    ),
    run("trainer.val_check_interval=0.5", "trainer.val_check_interval: 0.5 asks for validation", "Leave it out"),
    run("trainer.check_val_every_n_epoch=2", "trainer.check_val_every_n_epoch: 2 asks for validation", "Leave it out"),
    run(
        CALLBACK("LearningRateFinder"),
        "trainer.callbacks.0: LearningRateFinder trains the model before",
        "Leave it out",
    ),
    run(CALLBACK("BatchSizeFinder"), "trainer.callbacks.0: BatchSizeFinder trains the model before", "Leave it out"),
    run(CALLBACK("BackboneFinetuning"), "trainer.callbacks.0: BackboneFinetuning freezes weights", "Leave it out"),
    run(
        CALLBACK("ModelPruning, init_args: {pruning_fn: l1_unstructured}"),
        "trainer.callbacks.0: ModelPruning replaces parameters",
        "Leave it out",
    ),
    run(
        CALLBACK("EarlyStopping, init_args: {monitor: val_loss}"),
        "trainer.callbacks.0: EarlyStopping monitors 'val_loss', which is not measured. Choose 'train/loss'",
    ),
    *(
        run(CALLBACK(name), f"trainer.callbacks.0: {name} writes to a logger, and there is none. Give trainer.logger")
        for name in ("LearningRateMonitor", "DeviceStatsMonitor")
    ),
    run(
        "trainer.callbacks=[{class_path: broken_parts.Halves, init_args: {every: 0}}]",
        "trainer.callbacks.0: broken_parts.Halves: ZeroDivisionError: integer division or modulo by zero (",
        LINE,
        "Fix",
    ),
    run(
        "trainer.logger=[{class_path: broken_parts.number}]",
        "trainer.logger.0: an object of type int is no Logger",
        "Give",
    ),
    run(
        "trainer.logger={class_path: broken_parts.Odd}",
        "trainer.logger: broken_parts.Odd: KeyError: 'no_such_project' (",
        LINE,
    ),
]
ROWS_OF, LIST = "training_data('alpha')", "an object of type list"
RETURNED = [
    run(
        "",
        "strategies.it: ",
        f"Returns.{hook} returned {told}",
        advice,
        strategies=one("broken_parts.Returns", hook=hook.partition("(")[0], what=what),
    )
    for hook, what, told, advice in (
        ("curriculum", "none", "None; expected a list of tasks.", "Return `tasks`"),
        ("curriculum", "word", "an object of type str; expected a list of tasks.", "Return `tasks`"),
        ("curriculum", "words", f"{LIST}, which holds an object of type str; expected", "Return `tasks`"),
        (ROWS_OF, "none", "None; expected a datasets.Dataset.", "Return `rows`"),
        (ROWS_OF, "words", f"{LIST}; expected a datasets.Dataset.", "Return `rows`"),
        (ROWS_OF, "question", "an object of type Dataset", "columns are question (string), answer (string)"),
        (ROWS_OF, "numbers", "an object of type Dataset", "columns are prompt (int64), answer (string)"),
        ("penalties", "none", "None; expected a dict of scalar tensors by name.", "Return {} where"),
        ("penalties", "floats", "an object of type dict", "The value of 'ewc' is of type float. Return a scalar"),
        ("penalties", "vector", "an object of type dict", "of type Tensor of shape (3,). Return a scalar"),
        ("answer('alpha')", "none", "None; expected a list of texts for 2 prompts.", "Give one text"),
        ("answer('alpha')", "words", "1 answers for 2 prompts.", "Give one text"),
    )
] + [
    run(
        "",
        f"strategies.it: {who}ZeroDivisionError: division by zero (",
        LINE,
        strategies=one("broken_parts.Returns", hook=hook, what="halves"),
    )
    for hook, who in (("setup", ""), ("training_data", ""), ("curriculum", "Returns.curriculum: "))
]
OTHERS = [
    file("no text", b"\xff\xfe\xfa", "bad.yaml: cannot be read", "Save it as UTF-8"),
    Row("run, no file", ("there is no file 'quickstrt'", "Did you mean 'quickstart'?"), argv=("run", "quickstrt")),
]
ROWS = [*NAMES, *TEXTS, *RANGES, *COMPONENTS, *BUILT, *LONG, *OPTIMIZERS, *TRAINER, *RETURNED, *OTHERS]
