"""Which critics an algorithm gets: those that it uses, and no others."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import algos
from tests.helpers.cmdps import Crossing, vector
from tests.helpers.models_doubles import TextVectorEnv, agent_of, make_lm, make_tokenizer
from textsafe_gym.errors import ConfigError, ModelError
from textsafe_gym.models import make_actor, make_critics
from textsafe_gym.models.causal_lm import CausalLMActor
from textsafe_gym.models.critics import HeadCritics
from textsafe_gym.models.mlp import MLPCritics

KINDS = {"grpo_lagrangian": (), "ppo": ("reward",), "reward_shaping": ("reward",), "ppo_lagrangian": ("reward", "cost")}
SETTINGS = {"episodes": 16, "episodes_per_iteration": 8, "minibatch_size": 4, "learning_rate": 1e-2}


def make(name: str, kind: str, **more: Any) -> Any:
    if kind == "language":
        return algos.make(name, TextVectorEnv(8, make_tokenizer()), CausalLMActor(make_lm(), make_tokenizer()), **more)
    return algos.make(name, vector(Crossing, 8), **more)


@pytest.mark.parametrize("kind", ["language", "mlp"])
@pytest.mark.parametrize("name", KINDS)
def test_an_agent_has_the_critics_that_its_algorithm_uses(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, valued = [], []
    for critics in (HeadCritics, MLPCritics):
        init, values = critics.__init__, critics.values

        def counted(self: Any, *args: Any, init: Any = init, **kwargs: Any) -> None:
            made.append(self)
            init(self, *args, **kwargs)

        def asked(self: Any, *args: Any, values: Any = values) -> Any:
            valued.append(self)
            return values(self, *args)

        monkeypatch.setattr(critics, "__init__", counted)
        monkeypatch.setattr(critics, "values", asked)
    more = {"cost_limit": 5.0} if "lagrangian" in name else {}
    trainer = make(name, kind, **SETTINGS, **more)
    agent, kinds = trainer.algorithm.agent, KINDS[name]
    assert algos.critics_of(name) == kinds
    assert made == [agent.critics] * bool(kinds)
    assert (agent.critics.kinds if kinds else ()) == kinds
    groups = agent.parameter_groups()
    assert set(groups) == {"actor", *(f"{own}_critic" for own in kinds)}
    assert all(groups.values())

    rollout = trainer.source.draw(0)
    for own in ("reward", "cost"):
        assert (getattr(rollout, f"{own}_values") is not None) == (own in kinds)
        assert (getattr(agent.evaluate(*rollout.inputs), f"{own}_values") is not None) == (own in kinds)
    rows = trainer.learn()
    norms = {key for row in rows for key in row if key.endswith("_grad_norm")}
    assert norms == {f"{group}_grad_norm" for group in groups}
    assert bool(valued) == bool(kinds)

    trainer.save(tmp_path / "checkpoint")
    with safe_open(tmp_path / "checkpoint" / "state.safetensors", "pt") as file:
        names = list(file.keys())
    assert any(key.startswith("agent.actor.") for key in names)
    kept = {key.split(".")[2] for key in names if key.startswith("agent.critics.")}
    assert kept == {f"{own}_critic" for own in kinds}
    assert not any("critic" in key for key in names if not key.startswith("agent.critics."))
    moments = sum(key.endswith(".exp_avg") for key in names)
    assert moments == sum(len(group) for group in groups.values())


def test_no_kinds_are_no_critics() -> None:
    env = TextVectorEnv(2, make_tokenizer())
    actor = CausalLMActor(make_lm(), make_tokenizer())
    assert make_critics(actor, env, ()) is None
    mlp = make_actor(vector(Crossing, 2))
    with pytest.raises(ConfigError, match="are for language models; an MLP's are MLPs"):
        make_critics(mlp, env, ("reward",), critics="separate")


def test_a_state_with_other_critics_is_refused() -> None:
    agents = [agent_of(CausalLMActor(make_lm(), make_tokenizer()), kinds) for kinds in ((), ("reward",), ("cost",))]
    for ours in agents:
        for theirs in agents:
            if ours is theirs:
                ours.load_state_dict(theirs.state_dict())
                continue
            with pytest.raises(ModelError, match="not of this policy") as caught:
                ours.load_state_dict(theirs.state_dict())
            assert "\n" not in str(caught.value)


def test_heads_begin_alike_whichever_there_are() -> None:
    actor = CausalLMActor(make_lm(), make_tokenizer())
    alone, both = HeadCritics(actor, ("cost",)), HeadCritics(actor)
    for name, x in alone.state_dict().items():
        assert torch.equal(both.state_dict()[name], x)
