"""SmolLM2-135M on TRACE's rows beside HF Trainer (with peft) and `generate`: the same losses and texts first.

Needs the model (`make smollm2`) and TRACE's data (WORKBENCH_TRACE). `python tests/performance/smollm2.py workbench
full` prints the peak of memory of one way in a process of its own, above what the imports take.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from datasets import Dataset
from paired import RUNS, Line, paired, ratios, resident, timed
from peft import LoraConfig, get_peft_model
from scoring import BATCH, file_order, tokens_of
from training import HF_ORDERS, with_adapters_of
from ways import Taken, hf_trainer, workbench

from benchmarks.trace import Trace
from strategies import LoRA, SeqFT
from workbench.backbone import Backbone
from workbench.backbone.encoding import TextPolicy
from workbench.benchmark import Task
from workbench.model_folder import check_folder
from workbench.runtime.seeding import derived_seed, seed_all
from workbench.strategy import ContinualStrategy
from workbench.train.data import EpochBatches

MODEL = "smollm2"
LONGEST = {
    "FOMC": 4,
    "Py150": 16,
    "ScienceQA": 12,
    "NumGLUE-cm": 8,
    "NumGLUE-ds": 8,
}  # as in configs/smollm2_trace.yaml
PROMPT = 160  # tokens at most
ROWS, STEPS = 8, 2  # in a batch; of each task
TESTED = 32  # rows of each task
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
METHODS = ("full", "lora")
FASTER, SMALLER = 1.5, 0.75  # the bars


def loaded() -> Backbone:
    """The model behind the workbench's operations."""
    policy = TextPolicy(max_prompt_length=PROMPT)
    return Backbone.load(MODEL, text=policy, eval_batch_size=BATCH)


def tasks(rows: int) -> list[Task]:
    """The first training rows of each task."""
    return list(Trace(os.environ["WORKBENCH_TRACE"], list(LONGEST), LONGEST, train_rows=rows, test_rows=TESTED))


def strategy(method: str) -> ContinualStrategy:
    """Full fine-tuning, or LoRA on all projections without dropout."""
    return SeqFT() if method == "full" else LoRA(rank=8, alpha=16, dropout=0.0, targets=PROJECTIONS)


def hf_model(method: str, encoder: Backbone) -> Any:
    """The same for HF Trainer: plain, or wrapped by peft with the adapters' first weights of a run."""
    plain = copy.deepcopy(encoder.model)
    plain.config._attn_implementation = "sdpa"
    if method == "full":
        return plain
    wrapped = get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=PROJECTIONS))
    begun = loaded()
    seed_all(0, "setup")
    strategy("lora").setup(begun)
    return with_adapters_of(wrapped, begun)


def own_batches(data: Dataset) -> Iterator[list[int]]:
    """The rows of each batch as the workbench draws them."""
    lengths = [len(row) for row in data["input_ids"]]
    return iter(EpochBatches(lengths, ROWS, derived_seed(0, "task", 0), 1))


def train(name: str, method: str, learnt: list[Task]) -> Taken:
    """Train in one of the ways."""
    encoder = loaded()
    if name == "workbench":
        return workbench(encoder, strategy(method), learnt, batch_size=ROWS, saves=False)
    batches = own_batches if name == "the same batches" else None
    return hf_trainer(hf_model(method, encoder), encoder, learnt, batch_size=ROWS, batches=batches)


def beside_hf(method: str) -> Iterator[Line | str]:
    """Losses first, then seconds of HF Trainer, the faster of its two orders of rows, over the workbench's."""
    learnt = tasks(ROWS * STEPS)
    first = learnt[:1]
    pairs = zip(train("workbench", method, first).losses, train("the same batches", method, first).losses, strict=True)
    apart = max(abs(ours - theirs) / theirs for ours, theirs in pairs)
    if apart > 1e-5:
        raise SystemExit(f"{method}: losses differ from HF Trainer's by {apart:.1e} of them; no speed is told")
    yield f"SmolLM2-135M, {method}: losses of {STEPS} steps within {apart:.1e} of HF Trainer's"
    kept: dict[str, list[Taken]] = {name: [] for name in ("workbench", *HF_ORDERS)}

    def way(name: str) -> Callable[[], float]:
        def run() -> float:
            kept[name].append(train(name, method, learnt))
            return kept[name][-1].total

        return run

    seconds = paired({name: way(name) for name in kept})
    faster = min(HF_ORDERS, key=lambda name: sum(seconds[name]))
    title = f"SmolLM2-135M, {method}: {{}}, HF Trainer ({faster}) / workbench"
    yield Line(title.format("all tasks"), ratios(seconds[faster], seconds["workbench"]), FASTER)
    for task in learnt:
        own, other = ([taken.seconds[task.name] for taken in kept[name][-RUNS:]] for name in ("workbench", faster))
        yield Line(title.format(task.name), ratios(other, own))


def beside_generate() -> Iterator[Line]:
    """Seconds of `generate` over the workbench's for the same texts."""
    model, tested = loaded().eval(), tasks(1)
    plain = copy.deepcopy(model)
    plain.model.config._attn_implementation = "sdpa"
    whole: dict[str, list[float]] = {}
    for task in tested:
        prompts = task.test["prompt"][:]
        tokens = tokens_of(plain, task, prompts)
        ours, theirs = model.generate(prompts, task.max_new_tokens), file_order(plain, task, tokens)
        differing = sum(one != other for one, other in zip(ours, theirs, strict=True))
        if differing:
            raise SystemExit(f"{task.name}: {differing} of {len(ours)} texts differ from generate's; no speed is told")
        ways = {
            "workbench": partial(timed, partial(model.generate, prompts, task.max_new_tokens)),
            "generate": partial(timed, partial(file_order, plain, task, tokens)),
        }
        taken = paired(ways, warm=True)
        for name, seconds in taken.items():
            whole[name] = [sum(pair) for pair in zip(whole.get(name, [0.0] * len(seconds)), seconds, strict=True)]
        yield Line(
            f"SmolLM2-135M: {task.name} ({len(prompts)} rows), generate / workbench",
            ratios(taken["generate"], taken["workbench"]),
        )
    yield Line("SmolLM2-135M: all tasks, generate / workbench", ratios(whole["generate"], whole["workbench"]), FASTER)


def peak(way: str, method: str) -> int:
    """Bytes above those after the imports: two steps of each task."""
    before = resident()
    train(way, method, tasks(ROWS * STEPS))
    return resident("VmHWM") - before


def memory(method: str) -> Line:
    """Peak memory of training over HF Trainer's, each in processes of its own."""
    ways = ("workbench", HF_ORDERS[0])
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(RUNS):
        for way, found in taken.items():
            command = [sys.executable, __file__, way, method]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(float(done.stdout.split()[-1]))
    told = " and ".join(f"{min(found) / 2**20:.0f} MiB" for found in taken.values())
    what = f"SmolLM2-135M, {method}: peak memory of training, workbench / HF Trainer ({told})"
    return Line(what, ratios(*taken.values()), SMALLER, at_least=False)


def measure() -> Iterator[Line | str]:
    """All of it; nothing where the model or the data is not there."""
    if "WORKBENCH_TRACE" not in os.environ or check_folder(MODEL):
        print("smollm2: left out; set WORKBENCH_TRACE, and run `make smollm2`")
        return
    for method in METHODS:
        yield from beside_hf(method)
        yield memory(method)
    yield from beside_generate()


if __name__ == "__main__":
    print(peak(sys.argv[1], sys.argv[2]))
