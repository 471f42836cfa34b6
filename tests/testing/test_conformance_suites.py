"""What third parties test with: the benchmark suite and each way to fail it, and the tiny model itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from datasets import Dataset

from workbench.benchmark import Benchmark, Task
from workbench.scorers import ExactMatch, RowMean
from workbench.testing import check_either
from workbench.testing.conformance import ConformanceError, check_benchmark
from workbench.testing.tiny import VARIANTS, tiny_backbone, tiny_tasks

SENTENCES = [
    "Names are unique.",
    "Every order is a permutation of the tasks.",
    "Probes are never trained.",
    "No test prompt is trained on.",
    "Right answers score 1, and wrong ones less.",
]
FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}


@dataclass
class Fake:
    """A benchmark of whatever tasks it is given."""

    tasks: Sequence[Task] = field(default_factory=lambda: tiny_tasks(3)[:2])
    probes: Sequence[Task] = field(default_factory=lambda: tiny_tasks(3)[2:])
    orders: dict[str, Sequence[str]] = field(
        default_factory=lambda: {"default": ["task_0", "task_1"], "back": ["task_1", "task_0"]}
    )
    general: Task | None = None

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> Task:
        return self.tasks[index]


@dataclass
class Entry:
    """What a benchmark says of one task's overlaps."""

    task: str


@dataclass
class Frank(Fake):
    """A benchmark that states overlaps."""

    overlaps: Sequence[Entry] = ()


class Generous(RowMean):
    def score(self, prompt: str, prediction: str, answer: str) -> float:
        return 1.0


class Strict(RowMean):
    def score(self, prompt: str, prediction: str, answer: str) -> float:
        return 0.5 * (prediction == answer)


def first_task(**changes: object) -> list[Task]:
    first, second = tiny_tasks(2)
    return [replace(first, **changes), second]


def test_a_sound_benchmark_passes() -> None:
    corpus = Task("prose", test=Dataset.from_dict({"text": ["a cat", "a dog"]}))
    assert isinstance(Fake(), Benchmark)
    assert check_benchmark(Fake(general=corpus)) == SENTENCES
    assert check_benchmark(Fake(probes=[corpus])) == SENTENCES


EVERY = "An order has every task; `first_tasks` and workbench.benchmark.Subset leave some out."
TWICE = [*tiny_tasks(2), tiny_tasks(1)[0]]
LEAKING = first_task(train=Dataset.from_list([*tiny_tasks(1)[0].train.to_list(), *tiny_tasks(1)[0].test.to_list()[:2]]))


@pytest.mark.parametrize(
    ("benchmark", "failures"),
    [
        (
            Fake(tasks=TWICE, orders={}),
            [
                "task 'task_0' is listed more than once. Give each a name of its own.",
                "Fake has no orders. Give one or more, such as {'default': ['task_0', 'task_1', 'task_0']}.",
            ],
        ),
        (
            Fake(orders={"short": ["task_0"]}),
            [f"orders.short: task_1 missing. {EVERY}"],
        ),
        (
            Fake(orders={"other": ["task_0", "task_9"], "double": ("task_0", "task_0", "task_1")}),
            [
                "orders.other: Fake has no task 'task_9'. Did you mean 'task_1'? There are task_0, task_1.",
                f"orders.other: task_1 missing. {EVERY}",
                "orders.double: 'task_0' is listed more than once.",
            ],
        ),
        (Fake(probes=tiny_tasks(1)), ["probe 'task_0' is also a task. Give each a name of its own."]),
        (
            Fake(general=Task("Task_0", test=Dataset.from_dict({"text": ["a cat"]}))),
            [
                "task 'task_0' and general corpus 'Task_0' differ only by case: some disks take them for one. "
                "Give each a name of its own."
            ],
        ),
        (Fake(tasks=LEAKING), ["task_0: 2 test prompts are also in train."]),
        (
            Fake(tasks=first_task(scorers={"kind": Generous()})),
            ["task_0: nonsense scores as much as the right answers under kind."],
        ),
        (
            Fake(tasks=first_task(scorers={"half": Strict(), "accuracy": ExactMatch()})),
            ["task_0: the right answers score 0.500 under half, not 1."],
        ),
        (
            Fake(probes=[replace(tiny_tasks(3)[2], scorers={"kind": Generous()})]),
            ["task_2: nonsense scores as much as the right answers under kind."],
        ),
    ],
)
def test_each_failure_by_its_words(benchmark: Fake, failures: list[str]) -> None:
    with pytest.raises(ConformanceError) as caught:
        check_benchmark(benchmark)
    assert caught.value.failures == failures
    assert str(caught.value) == "\n".join(failures)


def test_overlaps_that_are_stated_are_no_failure() -> None:
    sentences = check_benchmark(Frank(tasks=LEAKING, overlaps=[Entry("task_1"), Entry("task_0")]))
    said = "No test prompt is trained on, but for overlaps that the benchmark states: 2 of task_0."
    assert sentences == [*SENTENCES[:3], said, SENTENCES[4]]
    assert check_benchmark(Frank(overlaps=[Entry("task_0")])) == SENTENCES


def test_overlaps_of_another_task_excuse_nothing() -> None:
    with pytest.raises(ConformanceError) as caught:
        check_benchmark(Frank(tasks=LEAKING, overlaps=[Entry("task_1")]))
    assert caught.value.failures == ["task_0: 2 test prompts are also in train."]


def test_all_failures_come_at_once() -> None:
    with pytest.raises(ConformanceError) as caught:
        check_benchmark(Fake(tasks=LEAKING, probes=tiny_tasks(1), orders={"short": ["task_1"]}))
    assert len(caught.value.failures) == 3


def test_scoring_leaves_the_benchmarks_own_scorer_empty() -> None:
    benchmark = Fake()
    check_benchmark(benchmark)
    assert float(benchmark.tasks[0].scorers["accuracy"].count) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tiny_model_is_a_function_of_family_and_seed(family: str) -> None:
    first, again, other = tiny_backbone(family), tiny_backbone(family), tiny_backbone(family, seed=1)
    assert type(first.model).__name__ == f"{FAMILIES[family]}ForCausalLM"
    state = first.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.model.state_dict().items())
    assert not torch.equal(other.model.lm_head.weight, first.model.lm_head.weight)
    assert all(value.abs().min() > 0 for name, value in state.items() if name.endswith("bias"))


def test_each_variant_is_what_its_name_says() -> None:
    models = {name: tiny_backbone(**changes).model for name, changes in VARIANTS.items()}
    tied = {name for name, model in models.items() if model.lm_head.weight is model.get_input_embeddings().weight}
    biased = {name for name, model in models.items() if any("bias" in key for key, _ in model.named_parameters())}
    layers = {name: model.model.layers[0].self_attn for name, model in models.items()}
    assert tied == {"tied"}
    assert biased == {"biased"}
    assert models["biased"].model.layers[0].mlp.down_proj.bias is not None
    assert {name for name, model in models.items() if model.dtype == torch.bfloat16} == {"bf16"}
    assert {name for name, layer in layers.items() if layer.o_proj.in_features != 32} == {"head_dim"}
    assert all(layer.q_proj.out_features == 2 * layer.k_proj.out_features for layer in layers.values())
    windows = [getattr(layer.self_attn, "sliding_window", None) for layer in models["layer_types"].model.layers]
    assert windows == [6, None, 6, None]


def test_the_sliding_window_of_the_variant_is_felt() -> None:
    """Through two windowed layers of 6 tokens position 12 sees as far as 2; the full ones see all."""
    types = ["sliding_attention"] * 2
    changes = VARIANTS["layer_types"] | {"layer_types": types, "num_hidden_layers": 2}
    model = tiny_backbone(**changes).model.eval()
    tokens = torch.arange(3, 16).unsqueeze(0)
    other = tokens.clone()
    other[0, 0] = 99
    with torch.no_grad():
        before, after = model(tokens).logits[0, :, :], model(other).logits[0, :, :]
    changed = [position for position in range(13) if not torch.equal(before[position], after[position])]
    assert changed == list(range(11))


def test_what_is_neither_is_refused() -> None:
    with pytest.raises(ConformanceError, match=r"^int is neither a ContinualStrategy nor a Benchmark"):
        check_either(lambda: 3)
    assert check_either(Fake) == SENTENCES


def test_building_a_tiny_model_draws_nothing_from_the_callers_random_state() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    tiny_backbone()
    assert torch.equal(torch.rand(4), expected)


def test_the_tiny_models_size_and_its_ends() -> None:
    """V·D twice, per layer 2·D² + 2·D·16 + 3·D·F + 2·D, and the final norm: D=32, F=64, V=800."""
    backbone = tiny_backbone(num_hidden_layers=3)
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32
    vocabulary = len(backbone.tokenizer)
    assert sum(value.numel() for value in backbone.model.parameters()) == 2 * vocabulary * 32 + 3 * layer + 32
    assert backbone.model.config.eos_token_id == backbone.tokenizer.eos_token_id
    assert backbone.model.config.bos_token_id == backbone.tokenizer.bos_token_id
