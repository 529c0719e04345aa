"""The example of TRL: the reward rises, and what is saved is a policy."""

from pathlib import Path

import pytest


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_the_reward_rises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    import trl_grpo

    from textsafe_gym.models import load_policy

    first, *_, last = trl_grpo.main(steps=30, cost_weight=0.0, out=str(tmp_path / "model"))
    assert last["rewards/reward/mean"] > first["rewards/reward/mean"] + 0.2
    assert 0 < last["kl"] < 1
    assert load_policy(tmp_path / "model").vocab_size == 613
