"""What OmniSafe's `agent.evaluate()` and `agent.render()` call, for policies on our environments."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from textsafe_gym.adapters.omnisafe.env import GymnasiumCMDP
from textsafe_gym.adapters.omnisafe.library import library
from textsafe_gym.adapters.omnisafe.models import PolicyActor
from textsafe_gym.config import read_json_settings
from textsafe_gym.data.prompts import Prompt
from textsafe_gym.envs.text import episode_text, summary_line
from textsafe_gym.errors import ConfigError, RunError
from textsafe_gym.models.files import one_line
from textsafe_gym.protocols import Actor, Info, TextTask
from textsafe_gym.rollouts import collect


class Evaluator(library.Evaluator):
    """OmniSafe's evaluator, which also knows the policies and environments of this package.

    Their actions are drawn as in training, as the cost limit is one on the mean over such draws, and all saved models
    play the same seeds. Other environments are OmniSafe's own affair.

    Attributes:
        policy: what was loaded last; the next `load_saved` from the same folder overwrites its weights.
    """

    policy: Actor

    def load_saved(self, save_dir: str, model_name: str, *args: object, **kwargs: object) -> None:
        """Takes the policy of a saved epoch.

        Args:
            save_dir: where OmniSafe's logger wrote.
            model_name: a file of `torch_save/` there.
            *args: a camera; for OmniSafe's own environments.
            **kwargs: likewise.

        Raises:
            TextsafeError: a file is missing or damaged, or the environment cannot be made again.
        """
        found = read_json_settings(Path(save_dir) / "config.json").values
        self._ours = found["env_id"] in GymnasiumCMDP._support_envs
        if not self._ours:
            super().load_saved(save_dir, model_name, *args, **kwargs)
            return
        if getattr(self, "_save_dir", None) != save_dir:
            cmdp = GymnasiumCMDP(found["env_id"], found["train_cfgs"]["vector_env_nums"], **found["env_cfgs"])
            self._env, self.policy, self._seed = cmdp, cmdp.agent.actor, found["seed"]
            self._actor = PolicyActor(cmdp.agent, cmdp.rows, cmdp.discrete, twice=False)
        self._save_dir, self._model_name = save_dir, model_name
        path = Path(save_dir) / "torch_save" / model_name
        try:
            self._actor.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["pi"])
        except Exception as error:  # torch and pickle raise unrelated types
            raise RunError(f"cannot load the policy in '{path}': {one_line(error)}") from None

    def evaluate(self, num_episodes: int = 10, cost_criteria: float = 1.0) -> tuple[list[float], list[float]]:
        """Plays the loaded policy and prints the means.

        Args:
            num_episodes: how many.
            cost_criteria: discount factor of the costs.

        Returns:
            Each episode's reward and cost.
        """
        if not self._ours:
            return super().evaluate(num_episodes, cost_criteria)
        rewards, costs, lengths = [], [], []
        for episode_reward, step_costs, _ in self._episodes(num_episodes):
            rewards.append(episode_reward)
            costs.append(float((step_costs * cost_criteria ** torch.arange(len(step_costs))).sum()))
            lengths.append(len(step_costs))
        means = (f"{name} {np.mean(x):.3f}" for name, x in (("reward", rewards), ("cost", costs), ("length", lengths)))
        print(f"{self._model_name}: means of {num_episodes} episodes: {', '.join(means)}")
        return rewards, costs

    def render(self, num_episodes: int = 1, *args: object, **kwargs: object) -> None:
        """Prints what the loaded policy wrote, in the environment's "ansi" form.

        Raises:
            ConfigError: the environment's episodes are not texts.
        """
        if not self._ours:
            super().render(num_episodes, *args, **kwargs)
            return
        if not isinstance(self._env.env.unwrapped, TextTask):
            raise ConfigError("render() prints texts; for videos play `agent.agent.policy` in an environment of yours")
        print(f"{self._model_name}:")
        for reward, costs, info in self._episodes(num_episodes):
            summary = summary_line(info["finish_reason"], reward, float(costs.sum()))
            print(episode_text(Prompt(info["prompt"]), info["response"], summary), end="\n\n")

    def _episodes(self, number: int) -> Iterator[tuple[float, Tensor, Info]]:
        """Reward, costs step by step, and last info of episodes."""
        rollouts = (collect(self.policy, self._env.env, seed) for seed in itertools.count(self._seed))
        episodes = (
            (rollout.episode_rewards[i].item(), rollout.costs[i][rollout.mask[i]].cpu(), rollout.infos[i])
            for rollout in rollouts
            for i in range(len(rollout))
        )
        return itertools.islice(episodes, number)
