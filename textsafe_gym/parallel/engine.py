"""What steps an agent's parameters: what is asked of it, and the one of a single process."""

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from textsafe_gym.errors import RunError
from textsafe_gym.types import Agent, Evaluation

BETAS = (0.9, 0.95)
Group = dict[str, Any]  # a parameter group of a torch optimiser
ADVICE = "no parameter was changed by this step; look at rewards and costs, or lower learning_rate"


class Engine(Protocol):
    """Steps an agent's parameters; in many processes each has a part of the work and all end with the same agent."""

    @property
    def copies(self) -> Mapping[nn.Parameter, Tensor]:
        """Of parameters of less than float32 the float32 copies that are stepped; empty where they are in parts."""
        ...

    @property
    def param_groups(self) -> list[Group]:
        """AdamW's, under the names of `Agent.parameter_groups`: "name", "rate" (given) and "lr" (to be set)."""
        ...

    def evaluate(
        self, observations: Mapping[str, Tensor], actions: Tensor, mask: Tensor, last: bool = True
    ) -> Evaluation:
        """`Agent.evaluate`; `last` says that no further part of the minibatch comes before the step."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of this process's part of a loss; the parts of all processes add up."""
        ...

    def step(self, max_norm: float) -> dict[str, float]:
        """One step down the accumulated gradient, each group's clipped to `max_norm`; refuses what is not finite.

        Returns:
            The norms before clipping, of the groups that learn.
        """
        ...

    def zero_grad(self) -> None:
        """Forgets what has been accumulated."""
        ...

    def training(self, only: Collection[str]) -> AbstractContextManager[None]:
        """In the block, only the named groups learn; with no name, all."""
        ...

    def gathered_policy(self, writing: bool = False) -> AbstractContextManager[None]:
        """In the block, what a checkpoint has of the policy is whole in this process; what is `writing` to it stays."""
        ...

    def generating(self) -> AbstractContextManager[None]:
        """In the block, the policy can play; if `ProcessGroup.streams_layers`, as often in each process."""
        ...

    def state_dict(self) -> Mapping[str, Tensor]:
        """The optimiser's whole state, the same for any number of processes."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        ...


class SingleProcessEngine:
    """See `textsafe_gym.parallel.engine.Engine`.

    Parameters of less than float32 are stepped in a float32 copy, as steps are smaller than such numbers' spacing.
    """

    def __init__(self, agent: Agent, rates: Mapping[str, float], weight_decay: float) -> None:
        self.agent = agent
        self.groups = agent.parameter_groups()
        self.parameters = [x for parameters in self.groups.values() for x in parameters]
        wide = {x: torch.promote_types(x.dtype, torch.float32) for x in self.parameters}
        self.copies = {x: x.detach().to(wide[x]) for x in self.parameters if x.dtype != wide[x]}
        groups = [
            {"params": [self.copies.get(x, x) for x in parameters], "name": name, "rate": rates[name]}
            for name, parameters in self.groups.items()
        ]
        self.adam = torch.optim.AdamW(groups, betas=BETAS, weight_decay=weight_decay, fused=True)

    @property
    def param_groups(self) -> list[Group]:
        """Adam's, each with its "name", "rate" and "lr"."""
        return self.adam.param_groups

    def evaluate(
        self, observations: Mapping[str, Tensor], actions: Tensor, mask: Tensor, last: bool = True
    ) -> Evaluation:
        """`Agent.evaluate` without more; `last` has no meaning in one process."""
        return self.agent.evaluate(observations, actions, mask)

    def backward(self, loss: Tensor) -> None:
        """Adds a loss's gradient to what has been accumulated since the last step.

        Raises:
            RunError: the loss is not finite.
        """
        if not torch.isfinite(loss):
            raise RunError(f"the loss is {loss.item()}; {ADVICE}")
        loss.backward()
        for parameter, copy in self.copies.items():
            if parameter.grad is not None:
                grad = parameter.grad.to(copy.dtype)
                copy.grad = grad if copy.grad is None else copy.grad.add_(grad)
                parameter.grad = None

    def step(self, max_norm: float) -> dict[str, float]:
        """See `Engine.step`.

        Raises:
            RunError: a gradient is not finite; no parameter has been changed by this step.
        """
        norms: dict[str, float] = {}
        for group in self.adam.param_groups:
            norm = torch.nn.utils.clip_grad_norm_(group["params"], max_norm, foreach=True).item()
            if not math.isfinite(norm):
                raise RunError(f"the gradient of '{group['name']}' has norm {norm}; {ADVICE}")
            if any(x.grad is not None for x in group["params"]):
                norms[group["name"]] = norm
        self.adam.step()
        with torch.no_grad():
            for parameter, copy in self.copies.items():
                if copy.grad is not None:
                    parameter.copy_(copy)
        self.zero_grad()
        return norms

    def zero_grad(self) -> None:
        """Forgets what has been accumulated."""
        self.adam.zero_grad(set_to_none=True)
        for parameter in self.copies:
            parameter.grad = None

    @contextmanager
    def training(self, only: Collection[str]) -> Iterator[None]:
        """Freezes the groups that are not named, so that neither gradient nor decay reaches them; empty: none."""
        frozen = [x for name, group in self.groups.items() if only and name not in only for x in group]
        frozen = [x for x in frozen if x.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)

    def gathered_policy(self, writing: bool = False) -> AbstractContextManager[None]:
        """The policy's parameters are whole anyway."""
        return nullcontext()

    def generating(self) -> AbstractContextManager[None]:
        """It can play anyway."""
        return nullcontext()

    def state_dict(self) -> dict[str, Tensor]:
        """Adam's tensors "PARAMETER_NUMBER.NAME" and the float32 copies "PARAMETER_NUMBER.copy"."""
        state = self.adam.state_dict()["state"]
        tensors = {f"{number}.{key}": x for number, entry in state.items() for key, x in entry.items()}
        copies = {f"{i}.copy": self.copies[x] for i, x in enumerate(self.parameters) if x in self.copies}
        return {**tensors, **copies}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`, of any engine's for the same policy."""
        entries: dict[int, dict[str, Tensor]] = {}
        for name, x in state.items():
            number, key = name.split(".")
            if key == "copy":
                parameter = self.parameters[int(number)]
                self.copies.get(parameter, parameter.data).copy_(x)
            else:
                entries.setdefault(int(number), {})[key] = x
        self.adam.load_state_dict({"state": entries, "param_groups": self.adam.state_dict()["param_groups"]})
