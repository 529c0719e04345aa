"""The examples run, in a small size."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

OMNISAFE = Path(__file__).parent.parent / "examples" / "omnisafe"


@pytest.fixture
def side_by_side(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(OMNISAFE))
    spec = importlib.util.spec_from_file_location("side_by_side", OMNISAFE / "compare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "side_by_side", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "EPISODES", 2 * module.PER_UPDATE)
    return module


def test_the_cmdp_for_both_libraries(side_by_side: Any) -> None:
    from tracking import BEST, COST_LIMIT, STEPS, Tracking  # type: ignore[import-not-found]

    env = Tracking(1000)
    observation, _ = env.reset(seed=0)
    returns, costs = np.zeros(1000), np.zeros(1000)
    for t in range(STEPS):
        assert observation[0, 1] == pytest.approx(1 - t / STEPS)
        observation, reward, over, _, info = env.step(observation[:, :1] - 0.4)  # the best policy within the limit
        returns, costs = returns + reward, costs + info["cost"]
    assert over.all()
    assert returns.mean() == pytest.approx(BEST, abs=1e-5)
    assert costs.mean() == pytest.approx(COST_LIMIT, abs=0.1)


@pytest.mark.parametrize("name", ["PPOLag", "CPO", "TRPOLag", "FOCOPS"])
def test_our_side(name: str, side_by_side: Any, tmp_path: Path) -> None:
    curve = side_by_side.ours(name, 0, tmp_path)
    assert len(curve) == 2
    assert np.isfinite(curve).all()


def test_omnisafes_side(side_by_side: Any, tmp_path: Path) -> None:
    if importlib.util.find_spec("omnisafe") is None:
        pytest.skip("omnisafe is not installed; examples/omnisafe/compare.py says how")
    curve = side_by_side.omnisafes("PPOLag", 0, tmp_path)
    assert len(curve) == 2
    assert np.isfinite(curve).all()
