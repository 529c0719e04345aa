"""Preference losses against numbers that the official Safe RLHF implementation computed, in float64."""

import json
from pathlib import Path

import pytest
import torch

from tests.helpers.rounding import FLOAT64
from textsafe_gym.fitting.losses import cost_loss, end_scores, reward_loss
from textsafe_gym.fitting.metrics import ranking_accuracy, sign_accuracy

REFERENCE = Path(__file__).parents[1] / "fixtures" / "safe_rlhf_reference.json"
CASES = json.loads(REFERENCE.read_text())["preference_losses"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['model']}-{case['inputs']['loss_type']}")
def test_preference_loss_equals_reference(case: dict) -> None:
    inputs, outputs = case["inputs"], case["outputs"]
    sides = ["first", "second"]
    if inputs["first_is"] not in ("better", "safer"):
        sides.reverse()
    scores = [torch.tensor(inputs[f"scores_{side}"], dtype=torch.float64) for side in sides]
    ids = [torch.tensor(inputs[f"{side}_input_ids"]) for side in sides]
    masks = [torch.tensor(inputs[f"{side}_mask"]) for side in sides]
    ends = [end_scores(x, mask) for x, mask in zip(scores, masks, strict=True)]
    options = {"loss_type": inputs["loss_type"].removesuffix("-wise"), "regularization": inputs["regularization"]}
    if case["model"] == "reward":
        loss = reward_loss(*scores, *ids, *masks, **options)
        accuracy = ranking_accuracy(*(x.numpy() for x in ends))
    else:
        safe = [torch.tensor(inputs[f"{side}_is_safe"]) for side in sides]
        loss = cost_loss(*scores, *ids, *masks, *safe, **options)
        accuracy = ranking_accuracy(ends[1].numpy(), ends[0].numpy())
        signs = sign_accuracy(torch.cat(ends).numpy(), ~torch.cat(safe).numpy())
        assert signs == outputs["accuracy_sign"]
    assert loss.item() == pytest.approx(outputs["loss"], abs=FLOAT64)
    assert accuracy == outputs["accuracy"]
