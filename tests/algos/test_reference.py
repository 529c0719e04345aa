"""The functions that training uses, held to the numbers of the official Safe RLHF implementation."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from algos.core.constraints import Log
from algos.core.objectives import clipped_surrogate_loss, clipped_value_loss, gae, mix_advantages, shape_with_kl
from algos.core.settings import MultiplierConfig
from tests.helpers.rounding import FLOAT64

FIXTURES = json.loads((Path(__file__).parents[1] / "fixtures" / "safe_rlhf_reference.json").read_text())


def tensor(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(computed: torch.Tensor, expected: Any) -> None:
    torch.testing.assert_close(computed, tensor(expected), atol=FLOAT64, rtol=0)


@pytest.mark.parametrize("case", FIXTURES["ppo_lagrangian"], ids=lambda case: f"lambda={case['inputs']['lambda']:g}")
def test_ppo_lagrangian(case: dict[str, Any]) -> None:
    given, expected = case["inputs"], case["outputs"]
    whole = torch.tensor(given["mask"], dtype=torch.bool)
    old, reference = tensor(given["old_log_probs"]), tensor(given["ref_log_probs"])
    last = whole.shape[1] - 1 - whole.flip(1).int().argmax(1)
    kl, clip = given["kl_coeff"], given["clip_range_score"]
    signals = {}
    for name, sign in (("reward", -1), ("cost", 1)):
        paid = torch.zeros_like(old)
        paid[torch.arange(len(old)), last] = tensor(given[name])
        signals[name] = shape_with_kl(paid, old - reference, sign * kl, clip)
        close(signals[name], expected[f"token_{name}s"])

    # From here on the prompt is out of the picture, as it always is in a rollout.
    start = given["start"]
    mask = whole[:, start:]
    advantages = {}
    for name, signal in signals.items():
        old_values = tensor(given[f"old_{name}_values"])[:, start:]
        advantages[name], returns = gae(signal[:, start:], old_values, mask, given["gamma"], given["gae_lambda"])
        close(advantages[name], expected[f"{name}_advantages"])
        close(returns, expected[f"{name}_returns"])
        new_values = tensor(given[f"new_{name}_values"])[:, start:]
        loss = clipped_value_loss(new_values, old_values, returns, mask, given["clip_range_value"])
        close(loss, expected[f"{name}_critic_loss"])
    mixed = mix_advantages(advantages["reward"], advantages["cost"], given["lambda"])
    new = tensor(given["new_log_probs"])[:, start:]
    close(clipped_surrogate_loss(new, old[:, start:], mixed, mask, given["clip_range_ratio"]), expected["actor_loss"])


@pytest.mark.parametrize("case", FIXTURES["multiplier"], ids=lambda case: f"limit={case['inputs']['limit']:g}")
def test_multiplier(case: dict[str, Any]) -> None:
    given = case["inputs"]
    multiplier = Log(
        MultiplierConfig(
            multiplier_update="log",
            multiplier_init=given["lambda_init"],
            multiplier_learning_rate=given["lambda_lr"],
            multiplier_max=given["lambda_max"],
        )
    )
    after = [multiplier.update(cost - given["limit"]) for cost in given["mean_episode_costs"]]
    close(tensor(after), case["outputs"]["lambda_after_each_update"])
