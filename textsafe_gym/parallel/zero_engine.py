"""Steps a policy with DeepSpeed's ZeRO engine."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
import torch.distributed as td
from torch import Tensor, nn

from textsafe_gym.errors import ConfigError, RunError
from textsafe_gym.parallel.engine import Group
from textsafe_gym.types import Agent, Evaluation

if TYPE_CHECKING:
    from textsafe_gym.parallel.deepspeed import DeepSpeedProcesses

_MOMENTS = ("exp_avg", "exp_avg_sq")


@runtime_checkable
class Streamed(Protocol):
    """A language model whose layers can be gathered one by one; see `textsafe_gym.models.causal_lm.CausalLMActor`.

    Attributes:
        lora: whether it trains a LoRA of its model alone.
        lockstep: whether all processes make the same passes.
        model: a PEFT model.
    """

    lora: bool
    lockstep: bool
    model: Any


class _GroupAdamW(torch.optim.AdamW):
    """AdamW that leaves groups that are "frozen" as they are: neither moments nor decay nor step count."""

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """One step of the other groups."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["frozen"]]
        try:
            super().step(closure)
        finally:
            self.param_groups = groups


class _Forward(nn.Module):
    """What DeepSpeed wraps: its hooks hang on a forward, and look for tensors in tuples."""

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self.actor, self.critics = agent.actor, agent.critics

    def forward(self, observations: Mapping[str, Tensor], actions: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """`Agent.evaluate`, without what there is no critic for."""
        new = self.actor.evaluate(observations, actions, mask, self.critics)
        return tuple(x for x in vars(new).values() if x is not None)


class ZeroEngine:
    """See `textsafe_gym.parallel.engine.Engine`.

    Raises:
        ConfigError: the policy's weights are bfloat16 at stage 0, where DeepSpeed has no float32 copies; or
            `DeepSpeedProcesses.check` refuses it.
    """

    def __init__(
        self, agent: Agent, rates: Mapping[str, float], weight_decay: float, processes: "DeepSpeedProcesses"
    ) -> None:
        import deepspeed

        processes.check(agent.actor)
        self.processes = processes
        self.copies: dict[nn.Parameter, Tensor] = {}  # DeepSpeed's own, in parts
        config = {name: value for name, value in processes.config.items() if name != "textsafe"}
        config.setdefault("zero_optimization", {"stage": 0})
        self.stage = int(config["zero_optimization"].get("stage", 0))
        low = any(
            x.dtype == torch.bfloat16
            for part in (agent.actor, agent.critics)
            if part is not None
            for x in part.parameters()
        )
        if low and self.stage == 0:
            raise ConfigError("a bfloat16 policy needs ZeRO stage 1, 2 or 3; set zero_optimization.stage")
        config |= {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0,
            "steps_per_print": None,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": low},
        }
        self.parameters = [x for parameters in agent.parameter_groups().values() for x in parameters]
        self.groups = agent.parameter_groups()
        groups = [
            {"params": parameters, "name": name, "rate": rates[name], "lr": rates[name], "frozen": False}
            for name, parameters in self.groups.items()
            if parameters
        ]
        self.adam = _GroupAdamW(groups, betas=(0.9, 0.95), weight_decay=weight_decay, fused=True)
        kinds = () if agent.critics is None else agent.critics.kinds
        self.kinds = [kind for kind in ("reward", "cost") if kind in kinds]  # as `Evaluation` orders them
        forward = _Forward(agent)
        if processes.streams_layers:
            if isinstance(agent.actor, Streamed):
                agent.actor.lockstep = True
            self._distribute(forward, config, torch.bfloat16 if low else torch.float32)
        self.engine = deepspeed.initialize(model=forward, optimizer=self.adam, config=config)[0]
        self.zero = self.engine.optimizer
        self._begin_moments()

    @property
    def param_groups(self) -> list[Group]:
        """Adam's, each with its "name", "rate", "lr" and "frozen"."""
        return self.adam.param_groups

    def evaluate(
        self, observations: Mapping[str, Tensor], actions: Tensor, mask: Tensor, last: bool = True
    ) -> Evaluation:
        """`Agent.evaluate` through DeepSpeed, which is given whether this is the `last` part before a step."""
        self.engine.set_gradient_accumulation_boundary(last)
        log_probs, entropy, *values = self.engine(observations, actions, mask)
        found = dict(zip(self.kinds, values, strict=True))
        return Evaluation(log_probs, entropy, **{f"{kind}_values": x for kind, x in found.items()})

    def backward(self, loss: Tensor) -> None:
        """Adds a part's gradient. DeepSpeed takes the mean over processes, hence the factor.

        A loss that is not finite is found by `step`, in all processes at once.
        """
        self.engine.backward(loss * self.processes.world_size)

    @torch.no_grad()
    def step(self, max_norm: float) -> dict[str, float]:
        """One step, clipped by group; between the two the reduced gradients lie ready in every process.

        Raises:
            RunError: in every process if a gradient is not finite; no parameter has been changed by this step.
        """
        gradients = {name: found for name, found in self._gradients().items() if not self._group(name)["frozen"]}
        squares = torch.zeros(len(gradients), dtype=torch.float64, device=_device())
        for i, found in enumerate(gradients.values()):
            for x in found:
                squares[i] += x.double().square().sum().to(squares.device)
        if self.stage > 0:
            td.all_reduce(squares)
        norms = dict(zip(gradients, squares.sqrt().tolist(), strict=True))
        for name, norm in norms.items():
            if not norm < float("inf"):
                raise RunError(
                    f"the gradient of '{name}' has norm {norm}; no parameter was changed by this step; look at rewards "
                    "and costs, or lower learning_rate"
                )
            for x in gradients[name]:
                x.mul_(min(1.0, max_norm / (norm + 1e-6)))
        self.engine.step()
        return norms

    def zero_grad(self) -> None:
        """Forgets what has been accumulated."""
        self.engine.zero_grad()

    @contextmanager
    def training(self, only: Collection[str]) -> Iterator[None]:
        """Freezes the groups that are not named; empty: none."""
        frozen = [group for group in self.param_groups if only and group["name"] not in only]
        parameters = [x for group in frozen for x in self.groups[group["name"]]]
        self._freeze(frozen, parameters, True)
        try:
            yield
        finally:
            self._freeze(frozen, parameters, False)

    @contextmanager
    def gathered_policy(self, writing: bool = False) -> Iterator[None]:
        """At stage 3, all parameters in every process and no hooks; each may run as many passes as it likes.

        Where layers are gathered for each pass, the trained parameters alone are whole, and there can be no pass.
        """
        if self.stage < 3:
            yield
            return
        import deepspeed

        rank = 0 if writing else None
        if self.processes.streams_layers:
            with deepspeed.zero.GatheredParameters(self.parameters, modifier_rank=rank):
                yield
            return
        offload = self.zero.parameter_offload
        self.zero._partition_all_parameters()
        every = list(self.engine.module.parameters())
        with deepspeed.zero.GatheredParameters(every, modifier_rank=rank):
            for hook in [*offload.forward_hooks, *offload.backward_hooks]:
                hook.remove()
            offload.forward_hooks, offload.backward_hooks = [], []
            try:
                yield
            finally:
                offload._register_deepspeed_module(offload.module)

    @contextmanager
    def generating(self) -> Iterator[None]:
        """As `gathered_policy`, or with hooks that gather a layer for each pass, which all processes make together."""
        if not self.processes.streams_layers:
            with self.gathered_policy():
                yield
            return
        self.zero._partition_all_parameters()
        coordinator = self.zero.parameter_offload.get_param_coordinator()
        # The order of a step's passes, by which DeepSpeed gathers ahead and keeps, would be wrong for these.
        if not coordinator.is_invalid_trace():
            coordinator._invalidate_trace()
        yield

    def state_dict(self) -> dict[str, Tensor]:
        """As `SingleProcessEngine.state_dict`, whole on the CPU in every process."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        state: dict[str, Tensor] = {}
        for i, parameter in enumerate(self.parameters):
            group = next(name for name, found in self.groups.items() if any(x is parameter for x in found))
            state[f"{i}.step"] = torch.tensor(self._steps(self._group(group)))
            for key in _MOMENTS:
                moment = (
                    safe_get_full_optimizer_state(parameter, key) if self.stage else self.adam.state[parameter][key]
                )
                state[f"{i}.{key}"] = moment.detach().float().cpu().clone()
            if parameter.dtype != torch.float32:
                state[f"{i}.copy"] = safe_get_full_fp32_param(parameter).detach().float().cpu().clone()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`, of any engine's; the policy's parameters are loaded already."""
        with self.gathered_policy():
            values = [x.detach().float().clone() for x in self.parameters]
        if self.stage == 3:
            self.zero._partition_all_parameters()
        for i, parameter in enumerate(self.parameters):
            value = state.get(f"{i}.copy", values[i]).to(values[i].device)
            self._set(parameter, value, None)
            for key in _MOMENTS:
                self._set(parameter, state.get(f"{i}.{key}", torch.zeros_like(value)).to(value.device), key)
        first = 0
        for group in self.param_groups:
            for x in self._stepped(group):
                self.adam.state[x]["step"].fill_(float(state.get(f"{first}.step", 0.0)))
            first += len(self.groups[group["name"]])

    def _set(self, parameter: Any, value: Tensor, key: str | None) -> None:
        """Sets a whole tensor of Adam's state, or the float32 parameter where `key` is none."""
        from deepspeed.utils import (
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        if self.stage == 3:  # where setting by the whole fails unless the processes divide its size
            size, rank = parameter.ds_tensor.numel(), self.processes.rank
            padded = nn.functional.pad(value.flatten(), (0, size * self.processes.world_size - value.numel()))
            part = padded[rank * size : (rank + 1) * size]
            if key is None:
                safe_set_local_fp32_param(parameter, part)
            else:
                safe_set_local_optimizer_state(parameter, part, key)
        elif self.stage > 0 and key is None:
            safe_set_full_fp32_param(parameter, value)
        elif self.stage > 0:
            safe_set_full_optimizer_state(parameter, value, key)
        elif key is not None:
            self.adam.state[parameter][key].copy_(value)

    @staticmethod
    def _distribute(forward: nn.Module, config: dict[str, object], dtype: torch.dtype) -> None:
        """Splits each parameter before the next one comes to the device, where `initialize` would move all first."""
        import deepspeed

        for x in forward.parameters():
            x.data = x.data.to(dtype)
        for buffer in forward.buffers():
            buffer.data = buffer.data.to(_device())
        deepspeed.zero.Init(module=forward, config_dict_or_path=config)

    def _begin_moments(self) -> None:
        """Adam's state from the start; left alone, DeepSpeed links its views of it at the first group's first step."""
        for group in self.param_groups:
            for x in self._stepped(group):
                # Under fused the step count lies next to the parameter.
                zeros = {key: torch.zeros_like(x, memory_format=torch.preserve_format) for key in _MOMENTS}
                self.adam.state[x].update(step=torch.zeros((), device=x.device), **zeros)
        if self.stage in (1, 2):
            self.zero._lazy_init_hp_params_optimizer_state()

    def _group(self, name: str) -> Group:
        return next(group for group in self.param_groups if group["name"] == name)

    def _steps(self, group: Group) -> float:
        return float(self.adam.state[self._stepped(group)[0]]["step"])

    def _stepped(self, group: Group) -> list[Tensor]:
        """The tensors that Adam steps: parameters at stage 0, this process's flat shares of them otherwise."""
        if self.stage < 3:
            return list(group["params"])
        owners = self.zero.sub_group_to_group_id
        every = range(len(self.zero.fp16_groups))
        return [self.zero.fp32_partitioned_groups_flat[i] for i in every if self.adam.param_groups[owners[i]] is group]

    def _gradients(self) -> dict[str, list[Tensor]]:
        """From group to this process's share of the reduced gradients, to be changed in place."""
        if self.stage == 0:
            return {g["name"]: [x.grad for x in g["params"] if x.grad is not None] for g in self.param_groups}
        found: dict[str, list[Tensor]] = {group["name"]: [] for group in self.param_groups}
        if self.stage == 3:
            for i in range(len(self.zero.fp16_groups)):
                name = self.param_groups[self.zero.sub_group_to_group_id[i]]["name"]
                flat = self.zero.fp32_partitioned_groups_flat[i]
                found[name] += [flat.grad] if self.zero.offload_optimizer else self.zero.averaged_gradients[i]
        else:
            for i, group in enumerate(self.param_groups):
                flat = self.zero.single_partition_of_fp32_groups[i]
                found[group["name"]] += [flat.grad] if self.zero.cpu_offload else self.zero.averaged_gradients[i]
        return {name: [x for x in gradients if x is not None] for name, gradients in found.items()}

    def _freeze(self, groups: list[Group], parameters: Sequence[Tensor], frozen: bool) -> None:
        for group in groups:
            group["frozen"] = frozen
        for parameter in parameters:
            parameter.requires_grad_(not frozen)


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
