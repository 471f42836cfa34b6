"""Optimizer state that is carried from task to task: held by parameter, saved by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from workbench.train.fsdp import split

State = dict[str, Any]
Parameters = Mapping[str, Tensor]
"""All parameters that may train, by name."""


class Moments:
    """Each parameter's optimizer state, such as Adam's moments, between one task's optimizer and the next.

    A parameter keeps its state as long as it is the same object, even if a strategy moves it to another place in the
    model. A parameter that is new, or that replaces another of the same name, begins without state. The state of a
    parameter that does not train in the next task is dropped. In a saved state a parameter is found by its name.
    """

    def __init__(self) -> None:
        self._states: dict[Tensor, State] = {}
        self._given: dict[str, State] = {}
        self._names: dict[Tensor, str] = {}

    def named(self, parameters: Parameters) -> dict[str, State]:
        """The state of each of these parameters that has one, by its name."""
        return {name: self._states[one] for name, one in parameters.items() if one in self._states}

    def load(self, parameters: Parameters, saved: Mapping[str, State]) -> None:
        """Take what `named` gave for parameters of the same names."""
        self._states = {parameters[name]: state for name, state in saved.items()}

    def prepare(self, parameters: Parameters) -> dict[str, int]:
        """Fix by name what the next optimizer gets; sharding gives it other parameter objects of the same names.

        Returns:
            How many parameters keep their state, begin without one, and have it dropped.
        """
        self._given, before = self.named(parameters), len(self._states)
        self.load(parameters, self._given)  # lets go of parameters that are gone
        trains = {name for name, parameter in parameters.items() if parameter.requires_grad}
        kept = len(trains & set(self._given))
        return {"kept": kept, "begun": len(trains) - kept, "dropped": before - kept}

    def give(self, optimizer: Optimizer, parameters: Parameters) -> None:
        """Put the carried state into a fresh optimizer.

        Args:
            optimizer: Over the trainable parameters, in whatever groups.
            parameters: All, by name; under sharding those that are sharded.
        """
        self._names = {parameter: name for name, parameter in parameters.items()}
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state = {}
        for index, parameter in enumerate(trained):
            given = self._given.get(self._names[parameter], {})
            if given:
                state[index] = {key: split(value, parameter) for key, value in given.items()}
        if state:
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        self._states, self._given = {}, {}

    def take(self, optimizer: Optimizer, parameters: Parameters) -> None:
        """Keep a trained optimizer's state; under sharding every process has to, and each then holds the whole.

        Args:
            optimizer: What `give` was given.
            parameters: All, whole, by name; they stay the same objects from task to task.

        Raises:
            ValueError: It holds state of other tensors than the parameters that `give` was given.
        """
        if optimizer.state and not any(parameter in optimizer.state for parameter in self._names):
            told = "the optimizer's state is not that of the model's parameters, so none of it can be kept"
            raise ValueError(f"carry_optimizer: {told}. Give trainer.strategy ddp or fsdp, or carry_optimizer=false.")
        states = {parameter: optimizer.state[parameter] for parameter in self._names if parameter in optimizer.state}
        self._states = {parameters[self._names[parameter]]: _whole(state) for parameter, state in states.items()}
        self._names = {}


def _whole(state: State) -> State:
    """Whole tensors on the CPU in place of shards; else the same mapping, whose tensors Lightning moves in place."""
    if not any(isinstance(value, DTensor) for value in state.values()):
        return state
    return {key: value.full_tensor().cpu() if isinstance(value, DTensor) else value for key, value in state.items()}
