"""OmniSafe's algorithms on our environments: through its own Agent, and in our training loop."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Normal, kl_divergence

import algos
import textsafe_gym  # noqa: F401
from algos.core.objectives import gae
from tests.helpers.clock import timeless
from tests.helpers.cmdps import Crossing, Halves, Reusing, Tracking, vector
from tests.helpers.rounding import EXACT_LM, FLOAT32, MLP, rounding
from textsafe_gym.adapters import omnisafe
from textsafe_gym.adapters.omnisafe import files as omnisafe_files
from textsafe_gym.adapters.omnisafe.env import GymnasiumCMDP, given
from textsafe_gym.adapters.omnisafe.models import Tokens
from textsafe_gym.adapters.omnisafe.rows import TokenRows
from textsafe_gym.errors import ConfigError, RunError, UnknownNameError
from textsafe_gym.models import make_actor, make_critics
from textsafe_gym.rollouts import collect
from textsafe_gym.types import Agent

ROOT = Path(__file__).parents[2]
NAMES = omnisafe_files.names()
EXACT = "SafeRLHF-Exact-v0"
TINY = {"update_iters": 1, "batch_size": 64}
UNLIMITED = {"PPO", "TRPO", "NaturalPG", "PolicyGradient"}
BUDGETED = {name for name in NAMES if "Saute" in name or "Simmer" in name}


def made(name: str, env: Any = EXACT, **more: Any) -> Any:
    settings = {"episodes": 32, "episodes_per_iteration": 16, "kl_coefficient": 0.2, "algo_cfgs": TINY, **more}
    if name in BUDGETED:
        settings.setdefault("cost_limit", 0.5)
    return algos.make(f"omnisafe:{name}", env, preset="paper", **settings)


def agent(name: str, env_id: str, steps: int, envs: int, tmp_path: Path, **more: Any) -> Any:
    config = {
        "train_cfgs": {"total_steps": 2 * steps, "vector_env_nums": envs, "torch_threads": 1},
        "algo_cfgs": {"steps_per_epoch": steps, "update_iters": 1, "batch_size": 64},
        "logger_cfgs": {"log_dir": str(tmp_path), "use_tensorboard": False},
        **more,
    }
    return omnisafe.Agent(name, env_id, custom_cfgs=config)


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """OmniSafe's own Agent makes the whole process deterministic."""
    cudnn = torch.backends.cudnn.enabled
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.enabled = cudnn


def test_an_environment_may_use_its_arrays_again() -> None:
    kept = []
    for wrapper in (gym.vector.VectorWrapper, Reusing):
        env = wrapper(gym.vector.SyncVectorEnv([Crossing] * 3, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP))
        token = given.set((env, Agent(make_actor(env, hidden=[4]), None, None)))
        ours = GymnasiumCMDP("Crossing-v0", 3)
        given.reset(token)
        kept.append([ours.reset(seed=7)[:1], *(ours.step(torch.full((3, 1), t % 2))[:5] for t in range(12))])
    for plainly, again in zip(*kept, strict=True):
        assert all(map(torch.equal, plainly, again))


def weights(agent: Any) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in agent.state_dict().items()}


@pytest.mark.parametrize("name", NAMES)
def test_every_on_policy_algorithm_trains_the_language_model(name: str) -> None:
    trainer = made(name)
    before = weights(trainer.algorithm.agent)
    rows = trainer.learn()
    assert not list(Path(trainer.algorithm.files.name).rglob("*.pt"))
    assert [row["episodes"] for row in rows] == [16, 32]
    assert np.isfinite([row["entropy"] for row in rows]).all()
    moved = {name for name, x in trainer.algorithm.agent.state_dict().items() if not torch.equal(x, before[name])}
    assert any(name.startswith("actor.model.") for name in moved)
    assert any(name.startswith("critics.reward_critic.") for name in moved)


def test_there_are_enough_of_them() -> None:
    assert len(NAMES) >= 15
    assert {"PPOLag", "CPO", "FOCOPS", "CUP", "PCPO", "P3O", "TRPOLag", "CPPOPID", "IPO", "OnCRPO"} <= set(NAMES)


@pytest.mark.parametrize("name", ["PPOLag", "CPO"])
@pytest.mark.parametrize("options", [{"lora_rank": 2}, {"critics": "separate"}], ids=str)
def test_adapters_and_critics_of_their_own(name: str, options: dict[str, Any]) -> None:
    env = gym.make_vec("SafeRLHF-v0", num_envs=4)
    own = {name: x for name, x in options.items() if name == "critics"}
    actor: Any = make_actor(env, **{name: x for name, x in options.items() if name not in own})
    critics = make_critics(actor, env, ("reward", "cost"), **own)
    agent = Agent(actor, critics, actor.reference())
    before = weights(agent)
    sizes = {"episodes": 4, "episodes_per_iteration": 4, "algo_cfgs": {**TINY, "batch_size": 512}}
    algos.make(f"omnisafe:{name}", env, actor, critics=critics, preset="paper", **sizes).learn()
    groups = agent.parameter_groups()
    assert all(x.requires_grad for group in groups.values() for x in group)
    moved = [name for name, x in agent.state_dict().items() if not torch.equal(x, before[name])]
    assert {name.split(".")[1] for name in moved} == {"model", "reward_critic", "cost_critic"}
    assert all("lora_" in name for name in moved if name.startswith("actor.model.")) == ("lora_rank" in options)


@pytest.mark.parametrize("name", ["PPOLag", "CPO"])
@pytest.mark.parametrize("env", [Tracking, Crossing])
def test_networks_on_boxes(name: str, env: type[gym.Env]) -> None:
    rows = made(name, vector(env, 16)).learn()
    assert np.isfinite([row["reward"] for row in rows]).all()


@pytest.mark.parametrize("name", ["PPOLag", "CPO", "CPPOPID", "PPOSimmerPID", "OnCRPO"])
def test_a_resumed_run_is_the_same_run(name: str, tmp_path: Path) -> None:
    whole, halved = made(name), made(name)
    rows = whole.learn()
    halved.learn(16)
    halved.save(tmp_path / "half")
    resumed = algos.load(tmp_path / "half", EXACT)
    assert timeless(resumed.learn()) == timeless(rows[1:])
    for name, x in whole.algorithm.agent.state_dict().items():
        assert torch.equal(x, resumed.algorithm.agent.state_dict()[name])


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler")  # there is no update here
@pytest.mark.parametrize("discrete", [True, False])
def test_what_the_buffer_holds_is_the_rollout(discrete: bool) -> None:
    env = None if discrete else vector(Tracking, 16)
    settings = {**TINY, "gamma": 0.9, "lam": 0.8, "lam_c": 0.7, "standardized_rew_adv": False}
    trainer = made("PPOLag", env or EXACT, algo_cfgs={**settings, "standardized_cost_adv": False})
    rollout = trainer.source.play(3)
    updater, seen = trainer.algorithm.updater, {}
    updater.algorithm._update = lambda: seen.update(updater.algorithm._buf.get())
    rewards = rollout.rewards - 0.2 * (rollout.log_probs - rollout.reference_log_probs) * rollout.mask
    updater.update(rollout, rewards, rollout.costs, 0)
    for sign, lam, values, pay in (
        ("r", 0.8, rollout.reward_values, rewards),
        ("c", 0.7, rollout.cost_values, rollout.costs),
    ):
        advantages, returns = gae(pay, values, rollout.mask, 0.9, lam)
        bound = rounding(terms=3 * rollout.mask.shape[1], scale=float(returns.abs().max()))  # reward, next value, value
        torch.testing.assert_close(seen[f"adv_{sign}"], advantages[rollout.mask], atol=bound, rtol=0)
        torch.testing.assert_close(seen[f"target_value_{sign}"], returns[rollout.mask], atol=bound, rtol=0)
    # The actor finds again what the rollout recorded, from the rows alone and in any order.
    order = torch.randperm(len(seen["obs"]), generator=torch.Generator().manual_seed(0))
    actor = updater.algorithm._actor_critic.actor
    actor(seen["obs"][order])
    found = actor.log_prob(seen["act"][order])
    bound = EXACT_LM if discrete else MLP
    torch.testing.assert_close(found, rollout.log_probs[rollout.mask][order], atol=bound, rtol=0)
    for kind in ("reward", "cost"):
        critic = getattr(updater.algorithm._actor_critic, f"{kind}_critic")
        values = getattr(rollout, f"{kind}_values")[rollout.mask][order]
        torch.testing.assert_close(critic(seen["obs"][order])[0], values, atol=MLP, rtol=0)  # a head is one as well


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler")
def test_a_cut_episode_goes_on_with_the_critics_value() -> None:
    cut = gym.vector.SyncVectorEnv([lambda: gym.wrappers.TimeLimit(Tracking(), 5)] * 16)
    trainer = made("PPOLag", cut, algo_cfgs={**TINY, "gamma": 0.9, "lam": 0.8, "standardized_rew_adv": False})
    trainer.learn(16)
    rollout = trainer.source.play(3)
    assert rollout.final_reward_values.abs().min() > 0
    updater, seen = trainer.algorithm.updater, {}
    updater.algorithm._update = lambda: seen.update(updater.algorithm._buf.get())
    updater.update(rollout, rollout.rewards, rollout.costs, 0)
    values, final = rollout.reward_values, rollout.final_reward_values
    advantages, _ = gae(rollout.rewards, values, rollout.mask, 0.9, 0.8, final)
    bound = rounding(terms=3 * 5, scale=float((advantages + values).abs().max()))
    torch.testing.assert_close(seen["adv_r"], advantages[rollout.mask], atol=bound, rtol=0)


def test_the_fisher_matrix_is_estimated_from_whole_episodes() -> None:
    trainer = made("TRPO", algo_cfgs={**TINY, "fvp_sample_freq": 4, "standardized_rew_adv": False})
    rollout = trainer.source.play(3)
    updater, seen = trainer.algorithm.updater, {}
    updater.algorithm._update = lambda: seen.update(updater.algorithm._buf.get())
    updater.update(rollout, rollout.rewards, rollout.costs, 0)
    rows = updater.env.rows.of(rollout)
    count = -(-len(rows) // 4)
    assert torch.equal(seen["obs"][::4], rows[:count])
    assert torch.equal(seen["logp"][::4], rollout.log_probs[rollout.mask][:count])
    assert sorted(seen["logp"].tolist()) == sorted(rollout.log_probs[rollout.mask].tolist())


def test_prefixes_are_read_with_what_continues_them() -> None:
    task = gym.make_vec(EXACT, num_envs=8).unwrapped
    rows = TokenRows(task)
    actor = made("PPO").actor
    rollout = collect(actor, gym.make_vec(EXACT, num_envs=8), 0)
    table = rows.of(rollout)
    observations, _, mask, index = rows.episodes(table)
    assert len(mask) <= 8 < len(table)
    assert int(mask.sum()) == len(table.unique(dim=0)) == index.max() + 1
    together = actor.distributions(observations, torch.zeros(mask.shape, dtype=torch.long), mask)[index]
    for row, logits in zip(table, together, strict=True):
        single, _, one, _ = rows.episodes(row[None])
        alone = actor.distributions(single, torch.zeros(one.shape, dtype=torch.long), one)
        torch.testing.assert_close(alone[0], logits, atol=EXACT_LM, rtol=0)


def test_kl_to_stored_means_is_that_of_tokens() -> None:
    torch.manual_seed(0)
    p, q = torch.randn(5, 7), torch.randn(5, 7)
    new, old = Tokens(p), Tokens(q)
    stored = kl_divergence(new, Normal(old.mean, old.stddev))
    expected = kl_divergence(Categorical(logits=p), Categorical(logits=q))
    torch.testing.assert_close(stored.sum(-1), expected)
    torch.testing.assert_close(kl_divergence(new, old).sum(-1), expected)


@pytest.mark.parametrize("name", NAMES)
def test_one_cost_limit(name: str) -> None:
    cfgs = made(name, cost_limit=0.7).algorithm.updater.algorithm._cfgs
    places = [
        cfgs[section][key]
        for section in ("lagrange_cfgs", "algo_cfgs")
        for key in ("cost_limit", "safety_budget", "upper_budget")
        if key in cfgs.get(section, {})
    ]
    assert all(place == 0.7 for place in places)
    assert bool(places) == (name not in UNLIMITED) == omnisafe_files.has_limit(name)


def test_the_environments_own_limit_and_names_of_omnisafes_own(tmp_path: Path) -> None:
    own = agent("CPO", EXACT, 64, 8, tmp_path, env_cfgs={"cost_limit": 0.3})
    assert own.cfgs.algo_cfgs.cost_limit == 0.3
    both = agent("PPOLag", EXACT, 64, 8, tmp_path, cost_limit=0.2, lagrange_cfgs={"cost_limit": 0.1})
    assert both.cfgs.lagrange_cfgs.cost_limit == 0.1
    with pytest.raises(ConfigError, match=r"PPOSaute spends the cost limit as a budget.* above 0, not -1"):
        made("PPOSaute", cost_limit=-1.0)


@pytest.mark.parametrize("name", sorted(set(NAMES) - BUDGETED - UNLIMITED))
def test_a_limit_that_is_set_later_is_the_one_that_is_kept(name: str) -> None:
    """Costs lie between the two limits, so that each algorithm has to act on one and not on the other."""
    loose, tight, changed = (made(name, cost_limit=limit) for limit in (9.0, -9.0, 9.0))
    changed.set_cost_limit(-9.0)
    assert [row["cost_violation"] for row in loose.learn(16)] == [0.0]
    expected, found = tight.learn(16), changed.learn(16)
    assert timeless(found) == timeless(expected)
    ours, theirs, other = (each.algorithm.agent.state_dict() for each in (changed, tight, loose))
    assert all(torch.equal(x, theirs[key]) for key, x in ours.items())
    assert any(not torch.equal(x, other[key]) for key, x in ours.items())


@pytest.mark.parametrize("name", ["PPOLag", "CPO", "CPPOPID"])  # which keep it in three places
def test_a_limit_that_was_set_later_is_in_the_checkpoint(name: str, tmp_path: Path) -> None:
    tight, changed = (made(name, cost_limit=limit) for limit in (-9.0, 9.0))
    changed.set_cost_limit(-9.0)
    assert timeless(changed.learn(16)) == timeless(tight.learn(16))
    changed.save(tmp_path / "half")
    resumed = algos.load(tmp_path / "half", EXACT)
    assert resumed.cost_limit == -9.0
    assert timeless(resumed.learn()) == timeless(tight.learn())


@pytest.mark.parametrize(
    ("name", "limit", "cost", "message"),
    [
        ("PPOSaute", 1.0, "", "omnisafe:PPOSaute begins with its cost limit as a budget"),
        ("TRPOSimmerPID", 1.0, "", "begins with its cost limit as a budget"),
        ("TRPO", 1.0, "", "omnisafe:TRPO keeps no cost limit"),
        ("CPO", float("nan"), "", "cost_limit = nan: expected a finite number"),
        ("CPO", 1.0, "harm", "no limit on a cost 'harm'"),
    ],
)
def test_limits_that_cannot_be_set(name: str, limit: float, cost: str, message: str) -> None:
    trainer = made(name)
    before = trainer.cost_limit
    with pytest.raises(ConfigError, match=message):
        trainer.set_cost_limit(limit, cost)
    assert trainer.cost_limit == before


PLAIN = {"gamma": 1.0, "lam": 1.0, "lam_c": 1.0, "use_critic_norm": False, "update_iters": 2}
LEARNING: dict[str, tuple[float, float, dict[str, Any]]] = {
    # The limit, the share of the way to the optimum that is asked for, and settings.
    "PPOLag": (
        0.0,
        0.6,
        {
            "episodes": 30 * 128,
            "episodes_per_iteration": 128,
            "algo_cfgs": {**PLAIN, "batch_size": 128, "kl_early_stop": False},
            "model_cfgs": {"linear_lr_decay": True, "actor": {"lr": 2e-3}, "critic": {"lr": 5e-3}},
            "lagrange_cfgs": {"lagrangian_multiplier_init": 0.5, "lambda_lr": 0.05},
        },
    ),
    "CPO": (
        0.5,
        0.4,
        {
            "episodes": 16 * 256,
            "episodes_per_iteration": 256,
            "algo_cfgs": {**PLAIN, "batch_size": 256, "target_kl": 0.03, "cg_iters": 6, "fvp_sample_freq": 4},
            "model_cfgs": {"critic": {"lr": 5e-3}},
        },
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("name", LEARNING)
def test_it_learns_towards_the_exact_optimum(name: str) -> None:
    """The study `configs/study/omnisafe.yaml` goes all the way; this is its beginning."""
    limit, wanted, settings = LEARNING[name]
    env: Any = gym.make(EXACT, cost_limit=limit, kl_coefficient=0.2).unwrapped
    trainer = made(name, cost_limit=limit, **settings)
    trainer.learn()
    found, start = env.evaluate(trainer.actor.model), env.evaluate(env.exact_task.reference)
    best = env.solve()
    assert (found.reward - 0.2 * found.kl - start.reward) / (best.objective - start.reward) > wanted
    assert found.cost < limit + 0.2  # of a range of 6.9
    assert env.solve(1e6).cost > limit + 0.5  # which would not be so without the limit


def test_steps_are_the_environments(tmp_path: Path) -> None:
    cmdp = omnisafe.GymnasiumCMDP(EXACT, num_envs=4, cost_limit=0.3)
    assert cmdp.cost_limit == 0.3
    ours = gym.make_vec(EXACT, num_envs=4, autoreset_mode="SameStep", cost_limit=0.3)
    rng = np.random.default_rng(0)
    rows, _ = cmdp.reset(seed=5)
    observation, _ = ours.reset(seed=5)
    ended = 0
    for _ in range(20):
        np.testing.assert_array_equal(rows[:, :6].numpy(), observation["input_ids"])
        np.testing.assert_array_equal(rows[:, 6:].numpy(), observation["attention_mask"])
        moves = rng.integers(7, size=4)
        rows, reward, cost, over, cut, info = cmdp.step(torch.as_tensor(moves)[:, None].float())
        observation, rewards, overs, _, infos = ours.step(moves)
        np.testing.assert_allclose(reward, rewards, rtol=FLOAT32)
        np.testing.assert_allclose(cost, infos["cost"], rtol=FLOAT32)
        np.testing.assert_array_equal(over, overs)
        assert not cut.any()
        for i in np.flatnonzero(overs):
            ended += 1
            np.testing.assert_array_equal(info["final_observation"][i, :6].numpy(), infos["final_obs"][i]["input_ids"])
    assert ended > 4


@pytest.mark.parametrize("name", ["PPOLag", "PPOEarlyTerminated", "TRPOSaute"])
def test_agents_of_omnisafe(name: str, tmp_path: Path) -> None:
    one = agent(name, EXACT, 64, 1 if "Early" in name else 8, tmp_path, cost_limit=0.5)
    before = weights(one.agent.policy)
    _, _, length = one.learn()
    assert 1 <= length <= 4
    assert any(not torch.equal(x, before[name]) for name, x in one.agent.policy.state_dict().items())
    one.agent.policy.save(tmp_path / "policy")
    assert (tmp_path / "policy" / "model.safetensors").is_file()


def test_agents_evaluate_render_and_plot_what_they_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    fast = {"actor": {"lr": 0.01}, "linear_lr_decay": False}
    logged = {"log_dir": str(tmp_path), "use_tensorboard": False, "save_model_freq": 1}
    one = agent("PPOSaute", EXACT, 64, 8, tmp_path, cost_limit=0.5, model_cfgs=fast, logger_cfgs=logged)
    first = make_actor(one.agent._env._env.env)
    one.learn()
    capsys.readouterr()
    one.evaluate(num_episodes=10)
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert set(lines) == {"epoch-0.pt", "epoch-1.pt", "epoch-2.pt"}
    env = gym.make_vec(EXACT, num_envs=8)
    for name, policy in (("epoch-0.pt", first), ("epoch-2.pt", one.agent.policy)):
        played = [collect(policy, env, seed) for seed in (0, 1)]
        reward = torch.cat([rollout.episode_rewards for rollout in played])[:10].mean()
        cost = torch.cat([rollout.episode_costs for rollout in played])[:10].mean()
        length = torch.cat([rollout.lengths for rollout in played])[:10].float().mean()
        means = f"reward {reward:.3f}, cost {cost:.3f}, length {length:.3f}"
        assert lines[name] == f"means of 10 episodes: {means}"
    assert lines["epoch-0.pt"] != lines["epoch-2.pt"]
    one.render(num_episodes=2)
    shown = capsys.readouterr().out
    assert shown.count("prompt: ") == shown.count("response: ") == shown.count("] reward ") == 6
    one.plot()
    assert list(Path(one.agent.logger.log_dir).glob("*.png"))


@pytest.mark.long
def test_the_pages_code_runs(tmp_path: Path) -> None:
    page = (ROOT / "textsafe_gym" / "docs" / "omnisafe.md").read_text()
    program = "".join(re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    run = [sys.executable, "-c", program]
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("means of 32 episodes") == 2
    for saved in ("policy", "epoch_0"):
        assert (tmp_path / "runs" / "omnisafe" / saved / "model.safetensors").is_file()


def test_saved_models_can_be_taken_later(tmp_path: Path) -> None:
    one = agent("PPOLag", EXACT, 64, 8, tmp_path, cost_limit=0.5)
    one.learn()
    folder = one.agent.logger.log_dir
    evaluator = omnisafe.Evaluator()
    evaluator.load_saved(folder, "epoch-2.pt")
    trained = one.agent.policy.trained_parameters()
    taken = evaluator.policy.trained_parameters()
    assert all(torch.equal(x, y) for x, y in zip(trained, taken, strict=True))
    rewards, costs = evaluator.evaluate(num_episodes=3, cost_criteria=0.5)
    rollout = collect(one.agent.policy, gym.make_vec(EXACT, num_envs=8), 0)
    assert rewards == pytest.approx(rollout.episode_rewards[:3].tolist())
    late = 0.5 ** (rollout.lengths[:3] - 1)  # the cost of a response falls due with its last token
    assert costs == pytest.approx((late * rollout.episode_costs[:3]).tolist())
    (Path(folder) / "torch_save" / "epoch-2.pt").write_bytes(b"broken")
    for name in ("epoch-2.pt", "epoch-9.pt"):
        with pytest.raises(RunError, match=rf"cannot load the policy in '.*{name}'"):
            evaluator.load_saved(folder, name)
    with pytest.raises(ConfigError, match=r"config\.json"):
        evaluator.load_saved(str(tmp_path), "epoch-2.pt")


def test_agents_on_registered_environments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gym.register("Tracking-of-a-test-v0", Tracking)
    omnisafe.register("Tracking-of-a-test-v0")
    one = agent("PPOLag", "Tracking-of-a-test-v0", 64, 4, tmp_path)
    assert np.isfinite(one.learn()).all()
    capsys.readouterr()
    one.evaluate(num_episodes=3)
    assert capsys.readouterr().out.count("means of 3 episodes") == 2
    with pytest.raises(ConfigError, match="prints texts"):
        one.render()


def test_agents_on_text_with_judges_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def length(prompts: Any, responses: Any) -> np.ndarray:
        return np.array([float(len(response)) for response in responses])

    own: Any = gym.spec("SafeRLHF-v0")
    classes = {"entry_point": own.entry_point, "vector_entry_point": own.vector_entry_point}
    gym.register("Long-of-a-test-v0", **classes, kwargs={"cost_model": length, "cost_limit": 20.0})
    omnisafe.register("Long-of-a-test-v0")
    one = agent("PPOLag", "Long-of-a-test-v0", 64, 2, tmp_path)
    assert one.cfgs.lagrange_cfgs.cost_limit == 20.0
    one.learn()
    capsys.readouterr()
    one.render(num_episodes=1)
    shown = capsys.readouterr().out
    responses = re.findall(r"^response: (.*)$", shown, re.MULTILINE)
    assert re.findall(r"cost \+([\d.]+)$", shown, re.MULTILINE) == [f"{len(text)}.000" for text in responses]
    assert len(responses) == 2


def test_omnisafes_own_environments_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from omnisafe.models.actor_critic.constraint_actor_critic import ConstraintActorCritic

    other = agent("PPOLag", "Simple-v0", 64, 1, tmp_path)
    assert type(other.agent._actor_critic) is ConstraintActorCritic
    assert other.cfgs.lagrange_cfgs.cost_limit == 25.0
    other.learn()
    capsys.readouterr()
    other.evaluate(num_episodes=1)
    assert "Average episode cost" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "section", "message"),
    [
        ("DDPG", {}, "DDPG is off-policy; on SafeRLHF-Exact-v0 only OmniSafe's on-policy algorithms learn"),
        ("PPOLag", {"algo_cfgs": {"steps_per_epoch": 16}}, "steps_per_epoch = 16 is too short .* steps_per_epoch=32"),
        ("PPOLag", {"algo_cfgs": {"steps_per_epoch": 64, "obs_normalize": True}}, "obs_normalize: policies on"),
        ("PPOLag", {"cost_limit": "low"}, "cost_limit = 'low': expected a finite number"),
        ("PPOLag", {"env_cfgs": {"policy": {"lora": 2}}}, "env_cfgs.policy: .*'lora'"),
        ("PPOLag", {"env_cfgs": {"policy": "mine"}}, "env_cfgs.policy: expected options by name, got 'mine'"),
        ("PPOLag", {"env_cfgs": {"cost_model": len}}, "env_cfgs: Object of type .* under an id of its own"),
        ("PPOLag", {"env_cfgs": {"promts": 2}}, "unknown environment argument 'promts'; did you mean 'prompts'"),
    ],
)
def test_agents_that_are_refused(name: str, section: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        agent(name, EXACT, 64, 8, tmp_path, **section)


def test_whole_costs_next_to_fractions() -> None:
    gym.register("Halves-of-a-test-v0", Halves)
    env = omnisafe.GymnasiumCMDP("Halves-of-a-test-v0", num_envs=3)
    env.reset(seed=0)
    assert env.step(torch.tensor([[0.0], [1.0], [1.0]]))[2].tolist() == [0.0, 0.5, 0.5]


def test_the_logged_kl_is_that_of_the_step() -> None:
    row = made("TRPO", episodes=16, algo_cfgs=TINY).learn()[0]
    assert 0.005 < row["step_kl"] <= 0.01  # near the bound, as the first step's quadratic model says


@pytest.mark.parametrize("name", ["episodes", "episodes_per_iteration"])
def test_one_episode_is_the_fewest(name: str) -> None:
    assert getattr(made("PPO", **{name: 1}).config, name) == 1
    with pytest.raises(ConfigError, match=name):
        made("PPO", **{name: 0})


def test_an_environment_without_costs_is_refused(tmp_path: Path) -> None:
    omnisafe.register("CartPole-v1")
    with pytest.raises(ConfigError, match=r"CartPole-v1 gives no info\['cost'\]"):
        agent("PPOLag", "CartPole-v1", 64, 4, tmp_path, cost_limit=1.0).learn()


def test_nothing_of_the_process_is_changed() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    torch.use_deterministic_algorithms(False)
    before = torch.random.get_rng_state(), np.random.get_state()[1].tolist()
    made("PPOLag").learn()
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ppolag", {}, "unknown algorithm 'ppolag'; did you mean 'omnisafe:PPOLag'"),
        ("CPO", {}, "unknown algorithm 'CPO'; did you mean 'cpo'"),
        ("omnisafe:PPOLg", {}, "unknown algorithm 'omnisafe:PPOLg'; did you mean 'omnisafe:PPOLag'"),
        ("omnisafe:PPOLag", {"algo_cfgs": {"clipp": 1}}, "unknown key 'algo_cfgs.clipp'; did you mean 'clip'"),
        ("omnisafe:PPOLag", {"algo_cfgs": {"clip": "x"}}, "algo_cfgs.clip = 'x'"),
        ("omnisafe:PPOLag", {"algo_cfgs": {"target_kl": -1.0}}, "omnisafe:PPOLag: target_kl must be float"),
        ("omnisafe:PPOLag", {"model_cfgs": {"actor": {"lr": -1.0}}}, "omnisafe:PPOLag: Invalid learning rate"),
        ("omnisafe:PPOLag", {"cost_limit": float("inf")}, "cost_limit = inf: input should be a finite number"),
        ("omnisafe:PPOLag", {"minibatch_size": 8}, "unknown key 'minibatch_size'"),
    ],
)
def test_wrong_settings(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, UnknownNameError), match=message.replace("(", r"\(")):
        algos.make(name, EXACT, **settings)


def test_without_omnisafe() -> None:
    program = (
        "import sys; sys.modules['omnisafe'] = None\n"
        "from textsafe_gym.cli.main import main; main(['train', 'omnisafe:PPOLag', '--out', 'no/where'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert 'pip install "textsafe-gym[omnisafe]"' in done.stderr
    assert "pip install --no-deps omnisafe==0.5.0" in done.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train", "omnisafe:PPOLag", "--memory"], "--memory: plans are for this project's own algorithms"),
        (["train", "omnisafe:PPOLag", "--deepspeed", "zero2"], "leave --deepspeed out"),
        (["bench", "iteration", "--algo", "omnisafe:PPOLag"], "this project's own algorithms that sample only"),
    ],
)
def test_what_is_refused(command: list[str], message: str, tmp_path: Path) -> None:
    run = [sys.executable, "-m", "textsafe_gym.cli.main", *command]
    done = subprocess.run(
        run, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_side_by_side_in_the_command_line(tmp_path: Path) -> None:
    command = [
        "compare",
        "ppo_lagrangian",
        "omnisafe:CPO",
        "--env",
        EXACT,
        "--seeds",
        "1",
        "--episodes",
        "32",
        "--json",
    ]
    command += ["--set", "episodes_per_iteration=16", "--set", "omnisafe:CPO.algo_cfgs.update_iters=1"]
    run = [sys.executable, "-m", "textsafe_gym.cli.main", *command, "--out", str(tmp_path / "out")]
    done = subprocess.run(run, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["settings"]) == {"initial", "ppo_lagrangian", "omnisafe:CPO"}
    assert "omnisafe:CPO" in {point["label"] for point in found["pareto"]["points"]}
    card = tmp_path / "out" / "omnisafe-CPO" / "seed_0" / "checkpoints" / "latest" / "policy" / "README.md"
    assert "| constraint | mean cost of a response <= 0 " in card.read_text()
