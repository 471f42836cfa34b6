"""Optimizer state that is carried from task to task: kept by parameter, saved by name."""

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
    """Optimizer state of each parameter, such as Adam's moments, between one task's optimizer and the next.

    A parameter keeps its state while it is the same object, even if a strategy moves it within the model. A new
    parameter, or one that replaces another of the same name, starts without state. The state of a parameter that does
    not train in the next task is dropped. In a saved checkpoint, parameters are identified by name.
    """

    def __init__(self) -> None:
        self._states: dict[Tensor, State] = {}
        self._given: dict[str, State] = {}
        self._names: dict[Tensor, str] = {}

    def named(self, parameters: Parameters) -> dict[str, State]:
        """Return the state of each of these parameters that has one, by name."""
        return {name: self._states[value] for name, value in parameters.items() if value in self._states}

    def load(self, parameters: Parameters, saved: Mapping[str, State]) -> None:
        """Load states by name, as returned by `named`."""
        self._states = {parameters[name]: state for name, state in saved.items()}

    def prepare(self, parameters: Parameters) -> dict[str, int]:
        """Fix by name what the next optimizer gets, since sharding replaces the parameter objects.

        Returns:
            The number of parameters that keep their state, start without one, and lose theirs.
        """
        self._given, before = self.named(parameters), len(self._states)
        self.load(parameters, self._given)  # forgets parameters that no longer exist
        trains = {name for name, parameter in parameters.items() if parameter.requires_grad}
        kept = len(trains & set(self._given))
        return {"kept": kept, "begun": len(trains) - kept, "dropped": before - kept}

    def give(self, optimizer: Optimizer, parameters: Parameters) -> None:
        """Load the carried state into a new optimizer.

        Args:
            optimizer: Over the trainable parameters, in any groups.
            parameters: All parameters by name; with sharding, the sharded ones.
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
        """Take over a trained optimizer's state, unsharded; with sharding, all processes have to call this.

        Args:
            optimizer: The one that `give` was called with.
            parameters: All parameters by name, unsharded; they are the same objects from task to task.

        Raises:
            ValueError: The optimizer's state belongs to other tensors than the parameters passed to `give`.
        """
        if optimizer.state and not any(parameter in optimizer.state for parameter in self._names):
            problem = "the optimizer's state is not that of the model's parameters, so none of it can be kept"
            raise ValueError(
                f"carry_optimizer: {problem}. Give trainer.strategy ddp or fsdp, or carry_optimizer=false."
            )
        states = {parameter: optimizer.state[parameter] for parameter in self._names if parameter in optimizer.state}
        self._states = {parameters[self._names[parameter]]: _whole(state) for parameter, state in states.items()}
        self._names = {}


def _whole(state: State) -> State:
    """Replace shards by whole tensors on the CPU; return other states as they are: Lightning moves them in place."""
    if not any(isinstance(value, DTensor) for value in state.values()):
        return state
    return {key: value.full_tensor().cpu() if isinstance(value, DTensor) else value for key, value in state.items()}
