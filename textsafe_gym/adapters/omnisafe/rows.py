"""Observations as rows of numbers, the only ones that OmniSafe knows, and rows as episodes, which policies read."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from textsafe_gym.models.mlp import as_box, flat_vector, vectors
from textsafe_gym.types import Rollout


class TokenRows:
    """Text observations as rows of numbers: token ids, then the attention mask, (n, 2·W) float32."""

    def __init__(self, task: Any) -> None:
        self.prompt, self.width = task.max_prompt_length, task.max_prompt_length + task.max_response_length
        self.columns = 2 * self.width

    def flat(self, observation: Mapping[str, object]) -> Tensor:
        """Rows of a vector environment's observation."""
        parts = [np.asarray(observation[name], dtype=np.float32) for name in ("input_ids", "attention_mask")]
        return torch.as_tensor(np.concatenate(parts, axis=-1))

    def one(self, observation: Mapping[str, object]) -> Tensor:
        """The row (2·W,) of one observation."""
        return self.flat(observation)

    def of(self, rollout: Rollout) -> Tensor:
        """(N, 2·W) what stood before each step of a rollout, episode after episode."""
        episode, step = rollout.mask.nonzero(as_tuple=True)
        ids, attention = (rollout.observations[name][episode] for name in ("input_ids", "attention_mask"))
        seen = torch.arange(self.width, device=ids.device) < self.prompt + step[:, None]
        return torch.cat([ids * seen, attention * seen], 1).float()

    def episodes(self, rows: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
        """Sequences that contain the rows: one that begins like another is read as a part of it.

        Returns:
            Observations, actions (without meaning) and a mask as `Actor.evaluate` takes them, and the index (N,) of
            each row among the true entries of the mask.
        """
        table = rows.detach().cpu().numpy().astype(np.int64)
        ids, attention = table[:, : self.width], table[:, self.width : self.columns]
        # Padding below every token: in sorted order a row stands directly before those that continue it.
        known, which = np.unique(np.where(attention > 0, ids, -1), axis=0, return_inverse=True)
        same = known[:-1] == known[1:]
        same[:, self.prompt :] |= known[:-1, self.prompt :] < 0
        last = np.flatnonzero(np.append(~same.all(1), True))
        sequence = np.searchsorted(last, which.reshape(-1))
        step = attention[:, self.prompt :].sum(1)
        mask = np.zeros((len(last), self.width - self.prompt), dtype=bool)
        mask[sequence, step] = True
        number = np.cumsum(mask).reshape(mask.shape) - 1
        padded = torch.as_tensor(known[last])
        observations = {"input_ids": padded.clamp_min(0), "attention_mask": (padded >= 0).long()}
        shape = torch.as_tensor(mask)
        return observations, torch.zeros(shape.shape, dtype=torch.long), shape, torch.as_tensor(number[sequence, step])


class BoxRows:
    """Observations that are vectors or make one as rows, (n, D) float32; each row is an episode of one step."""

    def __init__(self, env: gym.vector.VectorEnv) -> None:
        self.env = env
        self.columns = int(np.prod(as_box(env.single_observation_space).shape))
        self.action_shape = env.single_action_space.shape or ()

    def flat(self, observation: object) -> Tensor:
        """Rows of a vector environment's observation."""
        return torch.as_tensor(vectors(self.env, observation)).reshape(self.env.num_envs, -1)

    def one(self, observation: object) -> Tensor:
        """The row (D,) of one observation."""
        flat = flat_vector(self.env.single_observation_space, observation)
        return torch.as_tensor(np.asarray(flat, dtype=np.float32)).reshape(-1)

    def of(self, rollout: Rollout) -> Tensor:
        """(N, D) what stood before each step of a rollout, episode after episode."""
        return rollout.observations["observation"][rollout.mask]

    def episodes(self, rows: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
        """One-step episodes, so that a row is an episode; see `TokenRows.episodes`."""
        n = len(rows)
        dtype = torch.float32 if self.action_shape else torch.long
        actions = torch.zeros((n, 1, *self.action_shape), dtype=dtype)
        observations = {"observation": rows[:, None, : self.columns]}
        return observations, actions, torch.ones((n, 1), dtype=torch.bool), torch.arange(n)


Rows = TokenRows | BoxRows
