"""L2P: what trains, the choice of prompts, the keys' penalty by hand, and the query of the plain model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from strategies import L2P
from strategies.l2p import NearestKeys
from workbench.backbone import Backbone, Batch, soft_embedding
from workbench.testing.tiny import tiny_backbone, tiny_tasks

TASKS = tiny_tasks(2)


def set_up(**arguments: Any) -> tuple[L2P, Backbone, Any]:
    backbone, strategy = tiny_backbone(), L2P(**{"pool": 5, "length": 2, "chosen": 2, **arguments})
    torch.manual_seed(0)
    strategy.setup(backbone)
    embedding = soft_embedding(backbone.model)
    assert embedding is not None
    return strategy, backbone, embedding.selector


def batch_of(backbone: Backbone, number: int = 0) -> Batch:
    return backbone.collate(backbone.encode(TASKS[number].train, TASKS[number].max_new_tokens).to_list())


@torch.no_grad()
def queries(feature: str) -> Tensor:
    """Read each prompt alone with the plain model."""
    plain, found = tiny_backbone(), []
    for row in plain.encode(TASKS[0].train, TASKS[0].max_new_tokens).to_list():
        token_ids = torch.tensor([row["input_ids"][: row["prompt_length"]]])
        states = plain.decoder.eval()(input_ids=token_ids).last_hidden_state[0]
        found.append(states[-1] if feature == "last" else states.mean(0))
    return torch.stack(found)


def test_the_nearest_keys_by_hand() -> None:
    """The cosines of (3, 4) with (1, 0), (0, −2) and (0, 5) are 0.6, −0.8 and 0.8: first prompt 2, then prompt 0."""
    selector = NearestKeys(pool=3, length=2, chosen=2, width=2, query="last")
    selector.keys.data = torch.tensor([[1.0, 0.0], [0.0, -2.0], [0.0, 5.0]])
    query = torch.tensor([[3.0, 4.0]])
    torch.testing.assert_close(selector.cosines(query), torch.tensor([[0.6, -0.8, 0.8]]))
    assert selector(query).tolist() == [[4, 5, 0, 1]]


def test_exactly_pool_and_keys_train() -> None:
    strategy, backbone, _ = set_up()
    names = {"model.embed_tokens.prompts.pool.vectors": (10, 32), "model.embed_tokens.selector.keys": (5, 32)}
    assert {name: tuple(value.shape) for name, value in backbone.trainable().items()} == names
    base = tiny_backbone().model.state_dict()
    for number, task in enumerate(TASKS):
        strategy.before_task(backbone, task, [])
        before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
        optimizer = torch.optim.AdamW(backbone.trainable().values(), lr=1e-2)
        batch = batch_of(backbone, number)
        output = backbone(batch)
        (output.loss + strategy.penalties(backbone, batch, output)["l2p_keys"]).backward()
        optimizer.step()
        after = backbone.model.state_dict()
        assert {name for name in after if not torch.equal(after[name], before[name])} == set(names)
        assert all(torch.equal(after[name], value) for name, value in base.items())


@pytest.mark.parametrize("feature", ["last", "mean"])
def test_the_query_is_the_plain_models_reading_of_the_prompt_alone(feature: str) -> None:
    _, backbone, selector = set_up(query=feature)
    backbone(batch_of(backbone))
    torch.testing.assert_close(selector.last[0], queries(feature), rtol=1e-4, atol=1e-5)
    for vectors in soft_embedding(backbone.model).prompts.values():  # type: ignore[union-attr]
        vectors.vectors.data += 1.0
    backbone(batch_of(backbone))
    torch.testing.assert_close(selector.last[0], queries(feature), rtol=1e-4, atol=1e-5)


def test_the_penalty_and_the_keys_gradient_by_the_formula() -> None:
    """d cos(q, k) / dk = (q/‖q‖ − cos(q, k) k/‖k‖) / ‖k‖, summed over the chosen keys, mean over rows, in float64."""
    strategy, backbone, selector = set_up(strength=0.7)
    batch = batch_of(backbone)
    output = backbone(batch)
    penalty = strategy.penalties(backbone, batch, output)["l2p_keys"]
    penalty.backward()
    keys, rows = selector.keys.detach().double(), queries("last").double()
    value, gradient = 0.0, torch.zeros_like(keys)
    for query in rows:
        query = query / query.norm()
        cosines = torch.stack([query @ key / key.norm() for key in keys])
        for index in cosines.argsort(descending=True)[:2]:
            key = keys[index]
            value += float(cosines[index])
            gradient[index] += (query - cosines[index] * key / key.norm()) / key.norm()
    assert penalty.item() == pytest.approx(-0.7 * value / len(rows), rel=1e-4)
    torch.testing.assert_close(selector.keys.grad.double(), -0.7 * gradient / len(rows), rtol=1e-3, atol=1e-5)
    loss_alone = torch.autograd.grad(output.loss, selector.keys, allow_unused=True)[0]
    assert loss_alone is None


def test_the_loss_trains_only_the_chosen_prompts() -> None:
    _, backbone, selector = set_up()
    backbone(batch_of(backbone)).loss.backward()
    pool = backbone.trainable()["model.embed_tokens.prompts.pool.vectors"].grad
    assert pool is not None
    used = {int(index) for index in selector.last[1].flatten()}
    assert {index for index in range(5) if pool[2 * index : 2 * index + 2].any()} == used
    assert used < set(range(5))


def test_the_keys_move_towards_the_queries() -> None:
    strategy, backbone, selector = set_up()
    batch = Batch(*(tensor[:1] for tensor in vars(batch_of(backbone)).values()))
    optimizer = torch.optim.Adam([selector.keys], lr=0.1)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        penalty = strategy.penalties(backbone, batch, backbone(batch))["l2p_keys"]
        penalty.backward()
        optimizer.step()
        values.append(penalty.item())
    assert values[-1] < -1.99 < values[0]  # -2 at best, -1 for each of the two chosen keys


def test_an_answer_does_not_depend_on_the_other_prompts() -> None:
    _, backbone, _ = set_up()
    prompts = TASKS[0].test["prompt"][:]
    assert [backbone.generate([prompt], 3)[0] for prompt in prompts] == backbone.generate(prompts, 3)


def test_a_process_without_a_row_in_the_first_batch_still_has_a_gradient() -> None:
    strategy, backbone, selector = set_up()
    batch = backbone.collate([])
    strategy.penalties(backbone, batch, backbone(batch))["l2p_keys"].backward()
    assert torch.equal(selector.keys.grad, torch.zeros(5, 32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pool": 0}, "pool=0 is out of range; it has to be at least 1."),
        ({"length": 0}, "length=0 is out of range; it has to be at least 1."),
        ({"chosen": 11}, "chosen=11 is more than the 10 prompts of the pool. Lower it, or raise pool."),
        ({"strength": -0.5}, "strength=-0.5 is out of range; it has to be at least 0."),
        ({"query": "cls"}, "query='cls': choose 'last' or 'mean'."),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        L2P(**arguments)
    assert str(caught.value) == message


def test_sharded_keys_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy, backbone, _ = set_up()
    monkeypatch.setattr("strategies.l2p.DTensor", torch.Tensor)
    with pytest.raises(ValueError, match=r"L2P needs whole keys; .* Give trainer.strategy=ddp\."):
        strategy.penalties(backbone, None, None)  # type: ignore[arg-type]
