"""The algorithms on a language model: the same files, whole responses as episodes."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch

import algos
import textsafe_gym  # noqa: F401 (registers the environment)
from algos.core.trust_region import trust_region
from tests.helpers.algorithms import SAMPLING
from tests.helpers.clock import timeless
from tests.helpers.rounding import rounding
from textsafe_gym import embedded_world
from textsafe_gym.errors import RunError
from textsafe_gym.experiments.spec import build_spec
from textsafe_gym.models import make_actor, make_critics
from textsafe_gym.offline.demonstrations import Demonstrations

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL: dict[str, Any] = {
    "preset": "paper",
    "episodes": 32,
    "episodes_per_iteration": 8,
    "minibatch_size": 4,
    "learning_rate": 1e-3,
}
SEPARATE = {
    "critics": "separate",
    "reward_critic": embedded_world.ASSETS / "reward",
    "cost_critic": embedded_world.ASSETS / "cost",
}


@pytest.mark.parametrize("critics", ["heads", "separate"])
def test_a_loaded_run_continues_bit_for_bit(critics: str, tmp_path: Path) -> None:
    env = gym.make_vec("SafeRLHF-v0", num_envs=8)
    options = SEPARATE if critics == "separate" else {}

    def start() -> dict[str, Any]:
        actor: Any = make_actor(env)
        rows = embedded_world.demonstrations(64)
        lengths = embedded_world.MAX_PROMPT_LENGTH, embedded_world.MAX_RESPONSE_LENGTH
        made = make_critics(actor, env, ("reward", "cost"), **options)
        return {"policy": actor, "demonstrations": Demonstrations.encode(rows, actor, *lengths), "critics": made}

    whole = algos.make("ppo_lagrangian", env, **start(), **SMALL)
    rows = whole.learn()
    part = algos.make("ppo_lagrangian", env, **start(), **SMALL)
    early = part.learn(16)
    part.save(tmp_path / "half")
    resumed = algos.load(tmp_path / "half", env, **start())
    assert timeless(early + resumed.learn()) == timeless(rows)
    final, reached = whole.algorithm.agent.state_dict(), resumed.algorithm.agent.state_dict()
    assert all(torch.equal(final[key], reached[key]) for key in final)
    assert abs(rows[-1]["kl"]) > 10 * abs(rows[0]["kl"])
    assert all(row["ptx_loss"] > 0 for row in rows)


@pytest.mark.parametrize("partial", [{}, {"lora_rank": 2}])
def test_bfloat16_weights_learn_at_small_rates_and_continue_bit_for_bit(
    partial: dict[str, int], tmp_path: Path
) -> None:
    env = gym.make_vec("SafeRLHF-v0", num_envs=8)
    # These steps are below half the spacing of most bfloat16 weights, which alone would stand still.
    rates = {**SMALL, "learning_rate": 1e-5, "critic_learning_rate": 1e-5, "learning_rate_schedule": "constant"}

    def start(dtype: str) -> Any:
        torch.manual_seed(0)
        return algos.make("ppo_lagrangian", env, make_actor(env, dtype=dtype, **partial), **rates)

    def actor(trainer: Any) -> torch.Tensor:
        engine = trainer.algorithm.optimizer.engine
        return torch.cat([engine.copies.get(x, x).detach().flatten() for x in engine.groups["actor"]])

    wide, low = start("float32"), start("bfloat16")
    begin = {trainer: actor(trainer).clone() for trainer in (wide, low)}
    wide.learn()
    rows = low.learn(16)
    low.save(tmp_path / "half")
    rows += low.learn()
    moved = {trainer: (actor(trainer) - begin[trainer]).norm() for trainer in (wide, low)}
    assert 0.7 < moved[low] / moved[wide] < 1.4
    engine = low.algorithm.optimizer.engine
    assert all(torch.equal(x, copy.to(torch.bfloat16)) for x, copy in engine.copies.items())
    assert bool(engine.copies) != bool(partial)  # an adapter is kept in float32 itself
    torch.manual_seed(0)
    again = algos.load(tmp_path / "half", env, make_actor(env, dtype="bfloat16", **partial))
    assert timeless(again.learn()) == timeless(rows[2:])
    assert torch.equal(actor(again), actor(low))


@pytest.mark.parametrize("partial", [{}, {"lora_rank": 2}], ids=["weights", "adapter"])
@pytest.mark.parametrize("name", ["cpo", "pcpo", "trpo_lagrangian"])
def test_a_trust_regions_step_of_bfloat16_weights_is_that_of_the_same_weights_in_float32(
    name: str, partial: dict[str, int]
) -> None:
    """Without the copies in float32 the difference quotients are rounding, and most of a step is lost when stored."""
    env = gym.make_vec("SafeRLHF-v0", num_envs=8)
    # Without a KL in the reward, whose log-probs a rollout in bfloat16 rounds.
    settings = {**SMALL, "kl_coefficient": 0.0}
    torch.manual_seed(0)
    actor: Any = make_actor(env, dtype="bfloat16", **partial)
    wide: Any = algos.make(name, env, copy.deepcopy(actor).float(), **settings)
    low: Any = algos.make(name, env, actor, **settings)
    for seed in range(2):  # the second starts from the copy that the first has left, not from its rounding
        played = low.source.play(seed)
        parts = [played[index] for index in torch.arange(8).split(low.config.at_once)]
        with torch.no_grad():
            exact = torch.cat([wide.actor.evaluate(x.observations, x.actions, x.mask).log_probs for x in parts])
        before = {key: x.clone() for key, x in actor.model.state_dict().items()}
        rows = [
            trainer.algorithm.update(batch, torch.Generator().manual_seed(seed))
            for trainer, batch in ((low, played), (wide, replace(played, log_probs=exact)))
        ]
        assert 0 < rows[0]["step_kl"] == rows[1]["step_kl"] <= 0.01
        copies = low.algorithm.optimizer.engine.copies
        assert bool(copies) != bool(partial)  # an adapter is in float32 itself, on weights that are not
        pairs = list(zip(actor.trained_parameters(), wide.actor.trained_parameters(), strict=True))
        assert all(torch.equal(copies.get(own, own), other) for own, other in pairs)
        assert all(torch.equal(own, other.to(own.dtype)) for own, other in pairs)
        after = actor.model.state_dict()
        assert {key: x.dtype for key, x in after.items()} == {key: x.dtype for key, x in before.items()}
        frozen = before.keys() - {key for key, x in actor.model.named_parameters() if x.requires_grad}
        assert all(torch.equal(before[key], after[key]) for key in frozen if partial)


def test_a_trust_region_that_fails_leaves_the_policy_as_it_was() -> None:
    env = gym.make_vec("SafeRLHF-v0", num_envs=8)
    actor: Any = make_actor(env, dtype="bfloat16")
    trainer: Any = algos.make("cpo", env, actor, **SMALL)
    played, optimizer = trainer.source.play(0), trainer.algorithm.optimizer
    before = [x.clone() for x in actor.parameters()]
    config, generator = trainer.config.model_copy(update={"max_kl": 1e9}), torch.Generator().manual_seed(0)
    with (
        pytest.raises(RunError, match="not finite"),
        trust_region(actor, played, config, generator, optimizer) as region,
    ):
        region.search(torch.ones_like(region.start), lambda: bool(region.search(region.start / 0, lambda: True)))
    assert all(torch.equal(own, was) for own, was in zip(actor.parameters(), before, strict=True))
    assert all(torch.equal(wide, x.float()) for x, wide in optimizer.engine.copies.items())


def test_the_environments_own_policy_is_found_again(tmp_path: Path) -> None:
    trainer = algos.make("ppo", gym.make("SafeRLHF-v0"), **SMALL)
    assert trainer.source.env.num_envs == 8
    assert trainer.algorithm.constraints.cost_limit == trainer.source.env.unwrapped.cost_limit
    first = trainer.learn(8)
    trainer.save(tmp_path / "checkpoint")
    resumed = algos.load(tmp_path / "checkpoint", "SafeRLHF-v0")
    assert timeless(first + resumed.learn()) == timeless(first + trainer.learn())
    assert (tmp_path / "checkpoint" / "policy" / "config.json").is_file()


@pytest.mark.parametrize("name", SAMPLING)
def test_every_algorithm_with_its_yaml_trains_the_embedded_world(name: str) -> None:
    request = ["episodes=32", "episodes_per_iteration=16"]
    spec = build_spec(name, env=None, config=None, assignments=request, episodes=None, seed=1)
    env = gym.make_vec("SafeRLHF-v0", num_envs=16)
    trainer = algos.make(name, env, **spec.config)
    before = {key: x.clone() for key, x in trainer.algorithm.agent.state_dict().items()}
    rows = trainer.learn()
    # It begins as its reference, up to the rounding of up to 32 tokens by 2 layers of 7 sums of 192 and the head; and
    # moves: what is estimated from 16 responses has either sign and is about 0.03.
    assert abs(rows[0]["kl"]) <= 32 * rounding(terms=192, depth=15)
    assert abs(rows[1]["kl"]) > 10 * abs(rows[0]["kl"])
    state = trainer.algorithm.agent.state_dict()
    moved = {key.split(".")[1] for key, x in state.items() if not torch.equal(x, before[key])}
    single = {"ppo": "reward_critic", "reward_shaping": "reward_critic"}
    critics = (
        set() if {"reward_critic_loss"}.isdisjoint(rows[0]) else {single.get(name, "cost_critic"), "reward_critic"}
    )
    assert moved == {"model"} | critics
