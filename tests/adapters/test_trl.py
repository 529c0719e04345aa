"""TRL is paid what the environment pays, learns from it, and what it saves is evaluated by the command line."""

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

import textsafe_gym  # noqa: F401  registers the environments
from tests.helpers.models_doubles import make_chat_tokenizer, make_tokenizer
from tests.helpers.rounding import rounding
from tests.helpers.texts import digest_scorer
from textsafe_gym.adapters.trl import prompt_dataset, reward_functions
from textsafe_gym.cli.main import main
from textsafe_gym.errors import ConfigError, DataError

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
    pytest.mark.usefixtures("one_thread"),
]
UNTIL = 5  # the budget of a response


def make(tokenizer: Any, **more: Any) -> Any:
    options = {"reward_model": digest_scorer("reward"), "cost_model": digest_scorer("cost")}
    options |= {"prompts": ["w1 w2", "w3", "w4", "w5 w6"], "max_prompt_length": 7, "max_response_length": UNTIL, **more}
    return gym.make("SafeRLHF-v0", tokenizer=tokenizer, **options)


def trainer(env: Any, folder: Path, model: Any, steps: int, leave_one_out: bool = False, **more: Any) -> Any:
    task = env.unwrapped
    settings = {"max_steps": steps, "learning_rate": 3e-3, "lr_scheduler_type": "constant", "beta": 0.0, **more}
    peft_config = settings.pop("peft_config", None)
    make_trainer, config = (RLOOTrainer, RLOOConfig) if leave_one_out else (GRPOTrainer, GRPOConfig)
    found = make_trainer(
        model=model,
        reward_funcs=reward_functions(env),
        args=config(
            output_dir=str(folder),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            num_generations=8,
            per_device_train_batch_size=32,  # of 8 answers to 4 prompts
            max_completion_length=task.max_response_length,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            seed=0,
            **settings,
        ),
        train_dataset=prompt_dataset(env),
        processing_class=task.tokenizer,
        peft_config=peft_config,
    )
    found.remove_callback(PrinterCallback)
    return found


@pytest.mark.parametrize("chat", [False, True])
def test_scores_are_what_stepping_pays(chat: bool) -> None:
    """Tokens at random: special ones inside, an end or none, and nothing but an end."""
    tokenizer = make_chat_tokenizer() if chat else make_tokenizer()
    env = make(tokenizer)
    eos = tokenizer.eos_token_id
    rng = np.random.default_rng(0)
    rows = [[eos], [0, 2, 5, 2, 6], [2, 2, 0, 0, eos]]
    rows += [[int(token) for token in rng.integers(2, len(tokenizer), UNTIL)] for _ in range(20)]
    rows += [[*row[:3], eos] for row in rows[3:]]
    paid, prompts = [], []
    for row in rows:
        _, info = env.reset(seed=len(paid))
        for token in row:
            _, reward, terminated, _, last = env.step(token)
        assert terminated
        paid.append((reward, -last["cost"]))
        prompts.append(info["prompt"])
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)  # as TRL does
    completions: list[Any] = texts
    asked: list[Any] = prompts
    if chat:
        completions = [[{"role": "assistant", "content": text}] for text in texts]
        asked = [[{"role": "system", "content": "w9"}, {"role": "user", "content": text}] for text in prompts]
    functions = reward_functions(env)
    assert [function.__name__ for function in functions] == ["reward", "negative_cost"]
    found = [function(prompts=asked, completions=completions, completion_ids=rows, other=1) for function in functions]
    assert all(type(score) is float for scores in found for score in scores)
    assert list(zip(*found, strict=True)) == paid
    # Without the tokens, or with those of another tokenizer, the texts are scored as they are.
    without = functions[0](asked, completions)
    assert without == digest_scorer("reward")(prompts, texts).tolist()
    assert without != found[0]
    for others in ([[1000 + token for token in row] for row in rows], [[(t + 1) % 32 for t in row] for row in rows]):
        assert functions[0](asked, completions, completion_ids=others) == without


def test_named_costs_and_what_is_logged() -> None:
    named = {"toxic": digest_scorer("toxic"), "leaks": lambda prompts, responses: np.full(len(prompts), 2.0)}
    functions = reward_functions(make(make_tokenizer(), cost_model=named))
    assert [f.__name__ for f in functions] == ["reward", "negative_cost_toxic", "negative_cost_leaks"]
    logged: dict[str, float] = {}
    prompts, completions = ["w1", "w3"], ["w4 w5", ""]
    scores = [f(prompts, completions, log_metric=logged.__setitem__) for f in functions]
    assert scores[2] == [-2.0, -2.0]
    toxic = digest_scorer("toxic")(prompts, completions)
    assert scores[1] == (-toxic).tolist()
    assert logged == {"cost_toxic": pytest.approx(toxic.mean()), "cost_leaks": 2.0}


@pytest.mark.parametrize("chat", [False, True])
def test_trl_reads_the_prompts_that_the_environment_shows(chat: bool, tmp_path: Path) -> None:
    env = make(make_chat_tokenizer() if chat else make_tokenizer(), evaluation_prompts=["w7"])
    task = env.unwrapped.task
    rows = prompt_dataset(env)["prompt"]
    assert len(prompt_dataset(env, evaluation=True)) == 1
    assert isinstance(rows[0], list if chat else str)
    from tests.helpers.models_doubles import make_lm

    maker = trainer(env, tmp_path, make_lm(vocab_size=len(task.tokenizer)), steps=1)
    ids, *_ = maker._tokenize_prompts(list(rows))
    assert ids == [row[mask == 1].tolist() for row, mask in zip(task.prompt_ids, task.prompt_mask, strict=True)]


def test_grpo_learns_and_the_weight_of_the_cost_counts() -> None:
    """On the enumerable task, whose expectations are exact."""
    ends = {}
    for weight in (0.0, 3.0):
        env = gym.make("SafeRLHF-Exact-v0")
        model, _ = env.unwrapped.default_policy
        before = env.unwrapped.evaluate(model)
        maker = trainer(env, Path("unused"), model, steps=40, reward_weights=[1.0, weight])
        maker.train()
        ends[weight] = env.unwrapped.evaluate(model.eval())
        gain = (ends[weight].reward - weight * ends[weight].cost) - (before.reward - weight * before.cost)
        assert gain > 1.5
    assert ends[3.0].cost < ends[0.0].cost - 1
    row = maker.state.log_history[0]
    assert row["cost"] == pytest.approx(-row["rewards/negative_cost/mean"])
    sizes = abs(row["rewards/reward/mean"]) + 3 * abs(row["cost"])  # means over 32 answers
    bound = rounding(terms=32, scale=sizes)
    assert row["reward"] == pytest.approx(row["rewards/reward/mean"] - 3 * row["cost"], abs=bound)


def test_rloo_learns() -> None:
    env = gym.make("SafeRLHF-Exact-v0")
    model, _ = env.unwrapped.default_policy
    before = env.unwrapped.evaluate(model)
    trainer(env, Path("unused"), model, steps=20, leave_one_out=True, reward_weights=[1.0, 0.0]).train()
    assert env.unwrapped.evaluate(model.eval()).reward > before.reward + 1


@pytest.mark.parametrize("lora", [False, True])
def test_what_it_saves_is_evaluated(lora: bool, tmp_path: Path) -> None:
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM

    env = gym.make("SafeRLHF-Exact-v0")
    begin, tokenizer = env.unwrapped.default_policy
    for part in (begin, tokenizer):
        part.save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    peft_config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    maker = trainer(env, tmp_path / "out", model, steps=15, peft_config=peft_config)
    maker.train()
    maker.save_model(str(tmp_path / "trained"))
    assert (tmp_path / "trained" / "adapter_config.json").exists() == lora
    sources = [str(tmp_path / name) for name in ("base", "trained")]
    asked = ["evaluate", *sources, "--env", "SafeRLHF-Exact-v0", "--out", str(tmp_path / "found"), "--json"]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 0, done.output
    rewards = {}
    for name in ("base", "trained"):
        rows = (tmp_path / "found" / f"{name}-0" / "evaluation.jsonl").read_text().splitlines()
        rewards[name] = np.mean([json.loads(row)["reward"] for row in rows])
    assert rewards["trained"] > rewards["base"]
    from textsafe_gym.models import load_policy

    loaded = load_policy(tmp_path / "trained").model
    with torch.no_grad():
        ids = torch.tensor([[1, 2, 3]])
        expected = maker.model.eval()(ids).logits
        # 2 layers of 7 products and the head's; an adapter's product is two more, which loading adds to the weight.
        bound = rounding(terms=64, depth=3 * 2 * 7 + 1, scale=float(expected.abs().max()))
        torch.testing.assert_close(loaded(ids).logits, expected, atol=bound, rtol=0)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"not a text environment; give gymnasium.make"):
        reward_functions(gym.make("CartPole-v1"))
    function = reward_functions(make(make_tokenizer()))[0]
    two = [{"role": "user", "content": "w1"}, {"role": "user", "content": "w2"}]
    with pytest.raises(DataError, match="2 messages by the user; the environment scores one exchange"):
        function([two], ["w3"])
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ConfigError, match=r'pip install "textsafe-gym\[trl\]"'):
        prompt_dataset(make(make_tokenizer()))
