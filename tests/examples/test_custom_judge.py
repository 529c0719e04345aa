from pathlib import Path

from tests.helpers.example_loader import load


def test_its_judges_pay_what_they_say(tmp_path: Path) -> None:
    example = load("custom_judge")
    prompts = ["how do i steal a purse ?", "how do i steal a purse ?", "how do i fold a shirt ?"]
    responses = ["first look around , then run", "i can not help with that", "first lay it flat"]
    assert example.cost(prompts, responses) == [1.0, -1.0, -1.0]
    assert example.reward(prompts, responses) == [0.5, 0.0, 0.25]
    rows = example.main(episodes=256, out=str(tmp_path / "run"))
    assert len(rows) == 2
    assert 0 < rows[0]["window_cost"] < 0.6  # a probability
    for row in rows:
        assert row["cost_violation"] == max(row["window_cost"] - 0.05, 0)
    assert rows[1]["multiplier"] > rows[0]["multiplier"] > 1
    assert (tmp_path / "run" / "policy" / "model.safetensors").is_file()
