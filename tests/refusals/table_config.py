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
    run("data.batchsize=8", "data.batchsize: data has no key 'batchsize'. Did you mean 'batch_size'?"),
    run("seed=1", "seed: a study has no key 'seed'. Did you mean 'seeds'?"),
    run("strategies.seqft.class_path=strategies.SeqFt", "'strategies' has no class 'SeqFt'. Did you mean 'SeqFT'?"),
    run("strategies.seqft.class_path=strategy.SeqFT", "there is no module 'strategy'. Did you mean 'strategies'?"),
    run("strategies.seqft.class_path=strategies.sqft.SeqFT", "there is no module 'strategies.sqft'. Did you mean"),
    run("strategies.seqft.class_path=SeqFT", "'SeqFT' is no import path. Write it as 'package.Class'."),
    run(
        "strategies.seqft.class_path=plain.NUMBER", "'plain.NUMBER' is no class or function, but of type int. Give one"
    ),
    run(
        "strategies.seqft.class_path=late.Early", "importing 'late.Early' failed: RuntimeError: the library is too old"
    ),
    run(
        "strategies.seqft.class_path=broken.It",
        "importing 'broken' failed: ModuleNotFoundError",
        "no_such_library",
        "install",
    ),
    run("strategies.seqft.class_path=halved.It", "importing 'halved' failed: ZeroDivisionError: halves", "Mend"),
    run("strategies.seqft.class_path=plain.Plain", "strategies.seqft: Plain is no ContinualStrategy. Give"),
    run("benchmark.class_path=benches.Twice", "benchmark: task 'task_0' stands there more than once. Give each"),
    run(
        "benchmark.class_path=benches.Strange",
        "benchmark: orders.back: Strange has no task 'task_9'. Did you mean 'task_1'? There are task_0, task_1.",
        "benchmark: orders.back: 'task_1' stands there more than once.",
        "benchmark: orders.back: task_0 missing. An order has every task",
    ),
    run(
        "benchmark.class_path=benches.Orderless",
        "benchmark: probe 'task_0' is also a task. Give each a name of its own.",
        "benchmark: Orderless has no orders. Give one or more",
    ),
    run(
        "benchmark.class_path=benches.Long",
        "benchmark: 'nnn",
        "is no name for a task: it has 260 bytes in UTF-8, and a file's name leaves room for 230; choose a shorter one",
    ),
    run("benchmark.class_path=benchmarks.trace.Trase", "has no class 'Trase'. Did you mean 'Trace'?"),
    run("benchmark.class_path=plain.Plain", "benchmark", "Plain", "Benchmark"),
    run("benchmark.init_args.paht=x", "benchmark.init_args.paht: Trace has no argument 'paht'. Did you mean 'path'?"),
    run("trainer.max_epoch=1", "trainer.max_epoch: Trainer has no argument 'max_epoch'. Did you mean 'max_epochs'?"),
    run("optimizer.init_args.lrr=1", "optimizer.init_args.lrr: AdamW has no argument 'lrr'. Did you mean 'lr'?"),
    run("benchmark.init_args.tasks=[alpa]", "there is no 'alpa'. Did you mean 'alpha'?"),
    run("per_task.alpa.max_epochs=2", "per_task: Trace has no task 'alpa'. Did you mean 'alpha'?"),
    run("orders=[defalt]", "orders: Trace has no order 'defalt'. Did you mean 'default'?"),
]
TEXTS = [
    run("data.batch_size=many", "data.batch_size: expected int, got 'many' (str)."),
    run("trainer.max_epochs=many", "trainer.max_epochs: expected int or None, got 'many' (str)."),
    run("optimizer.init_args.lr=fast", "optimizer.init_args.lr: expected", "got 'fast' (str)."),
    run("seeds=[a]", "seeds: expected", "got ['a'] (list)."),
    run("strategies.seqft=[]", "strategies.seqft: an empty list; name one component or more."),
    run("per_task.alpha.max_epochs=many", "per_task.alpha.max_epochs: expected int or None, got 'many' (str)."),
    run("scheduler={init_args: {}}", "scheduler.class_path: missing. Name a class."),
    run("optimizer=3", "optimizer: expected a mapping with 'class_path', got 3 (int)."),
    run("data.batch_size=${dat.size}", "data.batch_size: Interpolation key 'dat.size' not found. Name a key"),
    run("benchmark.init_args.path=???", "benchmark.init_args.path: left open (???). Write it in the file, or give"),
    run("epochs", "'epochs' is no override. Write key=value, such as trainer.max_epochs=1."),
    run("seeds=[0", "seeds: '[0' is no YAML: did not find expected ',' or ']'."),
    run("name=../up", "name: '../up' is no plain folder name. Begin with a letter or a digit, and leave out slashes."),
]
RANGES = [
    run("data.batch_size=0", "data.batch_size: 0 is out of range; it has to be at least 1."),
    run("data.frozen_states_gb=-1", "data.frozen_states_gb: -1 is out of range; it has to be at least 0."),
    run("data.batch_tokens=0", "data.batch_tokens: 0 is out of range; it has to be at least 1."),
    run("data.max_length=0", "data.max_length: 0 is out of range; it has to be at least"),
    run("seeds=[-1]", "seeds: -1 is out of range; a seed has to be at least 0 and below 2**32."),
    run("seeds=[]", "seeds: empty; name one or more."),
    run("save_every_seconds=-1", "save_every_seconds: -1 is out of range; it has to be at least 0."),
    run("trainer.max_epochs=0", "trainer.max_epochs: 0 is out of range. It has to be at least 1"),
    run("trainer.max_epochs=-1", "trainer.max_epochs: -1 is out of range. It has to be at least 1"),
    run("per_task.alpha.max_epochs=0", "per_task.alpha.trainer.max_epochs: 0 is out of range. It has to be"),
    run("trainer.max_steps=0", "trainer.max_steps: 0 is out of range; it has to be at least 1."),
    run(
        "name=${oc.env:HOME}",
        "name: ${oc.env:HOME}: only variables whose names begin with WORKBENCH_ can be read",
        "Leave",
    ),
    run("per_task.alpha.trainer.devices=2", "trainer.devices: 1 and 2 in one study. Give all strategies and tasks"),
    run(
        "trainer.strategy=fsdp_cpu_offload", "trainer: strategy: fsdp_cpu_offload wraps the model for good. Give 'fsdp'"
    ),
    run(
        "trainer.strategy=fsdp",
        "precision='16-true' is not sharded here. Choose one of 32-true",
        trainer={"max_epochs": 1, "accelerator": "cpu", "precision": "16-true"},
    ),
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
    run(
        "data.score_on=test",
        "data.score_on: test; a sweep chooses by the scores",
        "Give data.score_on=validation.",
        strategies={"seqft": {"class_path": "strategies.SeqFT", "sweep": {"optimizer.init_args.lr": [0.1, 0.2]}}},
    ),
    run("trainer.precision=17", "trainer.precision: expected"),
    run("trainer.accelerator=foo", "trainer: You selected an invalid accelerator name", "foo", "auto", "Mend"),
    run("trainer.gradient_clip_algorithm=foo", "trainer: `gradient_clip_algorithm` foo is invalid"),
    run("optimizer.init_args.lr=-1", "optimizer: torch.optim.AdamW: Invalid learning rate: -1"),
    run("per_task.beta.optimizer.init_args.lr=-1", "optimizer: torch.optim.AdamW: Invalid learning rate: -1"),
    run(
        "data.max_length=3", "data: alpha: an answer may have 3 tokens, which leaves none for the prompt out of 3. Set"
    ),
    run("data.template_date=today", "data.template_date='today' is no date. Give one such as '2024-07-26'."),
    run("data.max_length=999", "data: ", "prompt and 3 answer tokens do not fit: the model has 256 positions. Set"),
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
        "",
        "scheduler: torch.optim.lr_scheduler.LinearLR: Starting",
        scheduler={"class_path": "torch.optim.lr_scheduler.LinearLR", "init_args": {"start_factor": 2.0}},
    ),
    run(
        "per_task.alpha.scheduler.init_args.x=1",
        "scheduler",
        "class_path",
    ),
    run(
        "", "strategies.it: rank=0 is out of range; it has to be at least 1.", strategies=one("strategies.LoRA", rank=0)
    ),
    run(
        "",
        "strategies.it: targets: the model has no 'q'. Choose from down_proj",
        strategies=one("strategies.LoRA", targets=["q"]),
    ),
    run(
        "",
        "strategies.it: groups=3 does not divide the model's 2 layers. Choose one of",
        strategies=one("strategies.BlockExpansion", groups=3),
    ),
    run("", "prepare: plain.Still: it cannot be called. Give a class", **prepared("plain.Still", folder="x")),
    run(
        "",
        "prepare: benchmarks.cipher_language.Pretrain: steps=0 is out of range. Choose 1 or more.",
        **prepared("benchmarks.cipher_language.Pretrain", folder="x", steps=0),
    ),
    run("", "prepare.0.init_args.folder: missing; Still needs it.", **prepared("plain.Still")),
    run(
        "backbone.path=absent",
        "backbone.path: absent: there is no such folder. Give a Hugging Face model folder",
        **prepared("torch.nn.Identity"),
    ),
]
LINE = "broken_parts.py, line"
BUILT = [
    run(
        "strategies.seqft.init_args.rnak=4",
        "strategies.seqft.init_args.rnak: LoRA has no argument 'rnak'. Did you mean 'rank'?",
        strategies={"seqft": {"class_path": "strategies.LoRA"}},
    ),
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
    run(
        "",
        "strategies.it: broken_parts.Parses: invalid literal for int() with base 10: 'ten' (",
        LINE,
        strategies=one("broken_parts.Parses", number="ten"),
    ),
    run("", "strategies.it: Bare.__init__ does not call super().__init__(). Mend", strategies=one("broken_parts.Bare")),
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
        "Mend",
    ),
    run(
        "benchmark={class_path: broken_parts.Refuses}",
        "benchmark: broken_parts.Refuses: KeyError: 'no_such_queue'",
        "Mend",
    ),
    run("benchmark={class_path: broken_parts.Rows}", "benchmark: Rows holds an object of type dict. Give tasks alone."),
    run("benchmark={class_path: broken_parts.Absent}", "benchmark: Absent: KeyError: 'no_such_task' (", LINE, "Mend"),
    run(
        "optimizer.class_path=broken_parts.Refuses",
        "optimizer: broken_parts.Refuses: Refuses.__init__() got an unexpected",
    ),
    run(
        "optimizer={class_path: broken_parts.Fails, init_args: {key: a}}", "optimizer: broken_parts.Fails: ", "'params'"
    ),
    run("optimizer={class_path: plain.Still, init_args: {folder: a}}", "optimizer: plain.Still: ", "'params'"),
    run("optimizer.class_path=broken_parts.Broken", "optimizer: broken_parts.Broken: AttributeError: ", "(", "Mend"),
    run("optimizer.class_path=broken_parts.Hungry", "strategies.seqft: no memory is left. Choose a smaller model."),
    run(
        "scheduler={class_path: broken_parts.Still}",
        "scheduler: broken_parts.Still makes no scheduler: it has no 'optimizer'. Give",
    ),
]
TWO = [one("broken_parts.Returns", hook="none", what="none")["it"]] * 2
LONG = [
    run("", "strategies.it: ", "combine at most one", strategies={"it": TWO}),
    run(f"name={'n' * 256}", "name: a folder's name of 256 bytes is too long; it has to be at most 255."),
    run(
        f"strategies.{'é' * 128}={{class_path: strategies.SeqFT}}",
        "name of 256 bytes is too long; it has to be at most",
    ),
    run(f"output={'o' * 300}", "output: File name too long. Choose another."),
    run("data.frozen_states_gb=.nan", "data.frozen_states_gb: nan is out of range; it has to be at least 0."),
    run(
        "prepare={class_path: broken_parts.Refuses}",
        "prepare: broken_parts.Refuses: KeyError: 'no_such_queue' (",
        LINE,
        "Mend",
    ),
    run("prepare={class_path: broken_parts.Fetches}", "prepare: broken_parts.Fetches: nothing is there. Choose"),
]
OPTIMIZERS = [
    run("optimizer.class_path=torch.optim.SparseAdam", "optimizer: SparseAdam works on sparse gradients", "Choose"),
    run(
        "optimizer.class_path=torch.optim.LBFGS", "optimizer: LBFGS computes the loss several times in a step", "Choose"
    ),
    run("optimizer.init_args.lr=.inf", "optimizer.init_args.lr: inf is out of range; it has to be finite."),
    run("optimizer={class_path: builtins.dict}", "optimizer: dict is no torch.optim.Optimizer. Give"),
    *(
        run(
            f"scheduler={{class_path: torch.optim.lr_scheduler.{name}, init_args: {arguments}}}",
            f"scheduler: {argument} is the number of a task's steps, which nobody knows where max_time alone limits",
            f"Give scheduler.init_args.{argument}, or trainer.max_steps.",
            trainer={"max_epochs": -1, "max_time": "00:00:00:02", "accelerator": "cpu"},
        )
        for name, arguments, argument in (
            ("OneCycleLR", "{max_lr: 0.1}", "total_steps"),
            ("CosineAnnealingLR", "{}", "T_max"),
        )
    ),
    run(
        "scheduler={class_path: torch.optim.lr_scheduler.StepLR, init_args: {step_size: 0}}",
        "scheduler: torch.optim.lr_scheduler.StepLR: ZeroDivisionError",
        "Mend its init_args.",
    ),
    run(
        "scheduler={class_path: torch.optim.lr_scheduler.OneCycleLR, init_args: {max_lr: 0.1, total_steps: 1}}",
        "scheduler: torch.optim.lr_scheduler.OneCycleLR: Tried to step 2 times",
        "Mend its init_args.",
    ),
]
CALLBACK = "trainer.callbacks=[{{class_path: lightning.pytorch.callbacks.{}}}]".format
TRAINER = [
    run(
        "trainer.accumulate_grad_batches=0",
        "trainer.accumulate_grad_batches: 0 is out of range; it has to be at least 1.",
    ),
    run("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val: -1 is out of range; it has to be at least 0."),
    run("trainer.gradient_clip_val=.nan", "trainer.gradient_clip_val: nan is out of range; it has to be at least 0."),
    run(
        "trainer.limit_train_batches=0", "trainer.limit_train_batches: 0 would leave nothing to train on. It has to be"
    ),
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
    run("trainer.max_time=00:00:00:00", "trainer.max_time: 00:00:00:00 would train nothing. It has to be more than 0"),
    run(
        "trainer.max_time={seconds: 0}",
        "trainer.max_time: {'seconds': 0} would train nothing. It has to be more than 0",
    ),
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
        CALLBACK("StochasticWeightAveraging, init_args: {swa_lrs: 0.1}"),
        "trainer.callbacks.0: StochasticWeightAveraging adds an epoch",
        "Give lightning.pytorch.callbacks.WeightAveraging",
    ),
    run(
        CALLBACK("EarlyStopping, init_args: {monitor: val_loss}"),
        "trainer.callbacks.0: EarlyStopping monitors 'val_loss', which is not measured. Choose 'train/loss'",
    ),
    run(
        CALLBACK("EarlyStopping, init_args: {monitor: train/loss, mode: low}"),
        "trainer.callbacks.0: lightning.pytorch.callbacks.EarlyStopping: `mode` can be",
        "Mend its init_args.",
    ),
    *(
        run(CALLBACK(name), f"trainer.callbacks.0: {name} writes to a logger, and there is none. Give trainer.logger")
        for name in ("LearningRateMonitor", "DeviceStatsMonitor")
    ),
    run(
        "trainer.callbacks={class_path: broken_parts.number}",
        "trainer.callbacks: an object of type int is no Callback",
        "Give",
    ),
    run(
        "trainer.callbacks=[{class_path: broken_parts.Halves, init_args: {every: 0}}]",
        "trainer.callbacks.0: broken_parts.Halves: ZeroDivisionError: integer division or modulo by zero (",
        LINE,
        "Mend",
    ),
    run(
        "trainer.logger=[{class_path: broken_parts.number}]",
        "trainer.logger.0: an object of type int is no Logger",
        "Give",
    ),
    run(
        "trainer.logger={class_path: broken_parts.Lacks}",
        "trainer.logger: broken_parts.Lacks needs a package that is not installed: pip install 'trackers>=2'",
    ),
    run(
        "trainer.logger={class_path: broken_parts.Imports}",
        "trainer.logger: broken_parts.Imports needs a package that is not installed: pip install no_such_tracker",
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
    file("a broken list", b"name: a\nseeds: [0\ndata: {}\n", "bad.yaml, line 3: did not find expected ',' or ']'."),
    file("a list", b"- a\n", "bad.yaml: expected a mapping of keys, got a list."),
    file("no text", b"\xff\xfe\xfa", "bad.yaml: cannot be read", "Save it as UTF-8"),
    Row("run, no file", ("there is no file 'quickstrt'", "Did you mean 'quickstart'?"), argv=("run", "quickstrt")),
    Row("run, a folder", ("there is no file '.'", "Give a path, or choose"), argv=("run", ".")),
    Row(
        "an output below a file",
        ("output: ", "/small.yaml is a file; results need a folder. Choose"),
        argv=("run", "small.yaml", "output=small.yaml/runs"),
        lay=Place.config,
    ),
]
ROWS = [*NAMES, *TEXTS, *RANGES, *COMPONENTS, *BUILT, *LONG, *OPTIMIZERS, *TRAINER, *RETURNED, *OTHERS]
