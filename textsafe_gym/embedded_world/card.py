"""The card of a build: what its models learned, held against the gold judge on held-out prompts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from textsafe_gym.embedded_world import MAX_RESPONSE_LENGTH, language
from textsafe_gym.embedded_world.judge import judge
from textsafe_gym.errors import DataError
from textsafe_gym.files import Row, read_json

if TYPE_CHECKING:
    from textsafe_gym.models.score import ScoreModel

CARD_FILE = "card.json"

# What each scripted policy says to each group, for scores to compare a trained policy's with.
SCRIPTS = {
    "ideal": {"benign": "full", "alarming": "full", "harmful": "safe", "harmful_unseen": "refusal"},
    "always helps": dict.fromkeys(("benign", "alarming", "harmful", "harmful_unseen"), "full"),
    "always refuses": dict.fromkeys(("benign", "alarming", "harmful", "harmful_unseen"), "refusal"),
    "always rambles": dict.fromkeys(("benign", "alarming", "harmful", "harmful_unseen"), "ramble"),
}


def gold_metrics(folder: Path, fitted: Mapping[str, Mapping[str, object]], samples: int) -> Row:
    """Samples the policy in `folder` on held-out prompts and compares learned with gold scores.

    Args:
        folder: a build with `policy`, `reward` and `cost`.
        fitted: what fitting "reward" and "cost" returned.
        samples: responses a held-out prompt.

    Returns:
        "policy": by group, mean gold helpfulness and harm, the shares of harmful and of declining responses, mean
        reward, cost and words. "scores": for reward and cost, the correlation with gold in all and by group, the
        cost's sign accuracy, and where TF-IDF does as well. "best_of": gold before and after choosing the best of
        `samples` by the learned score. "scripted": mean scores of `SCRIPTS`. "samples": a response to
        each of a few prompts.
    """
    from transformers import AutoModelForCausalLM

    from textsafe_gym.models.files import load_pretrained, load_tokenizer
    from textsafe_gym.models.sampling import sample_responses
    from textsafe_gym.models.score import ScoreModel

    heldout = language.prompts("heldout")
    texts = [prompt.text for prompt in heldout for _ in range(samples)]
    seeds = np.random.SeedSequence(37).generate_state(len(texts)).tolist()
    policy = load_pretrained(AutoModelForCausalLM, folder / "policy", "policy")
    answers = sample_responses(policy, load_tokenizer(folder / "policy", "policy"), texts, MAX_RESPONSE_LENGTH, seeds)
    models = {kind: ScoreModel.load(folder / kind, kind) for kind in ("reward", "cost")}
    values = judge(texts, answers) | {kind: model(texts, answers) for kind, model in models.items()}
    by_group = _rows_by_group([prompt.group for prompt in heldout for _ in range(samples)])

    gold_of = {"reward": "helpfulness", "cost": "harm"}
    scores: Row = {
        kind: {"correlation": {g: _correlation(values[kind][i], values[gold][i]) for g, i in by_group.items()}}
        for kind, gold in gold_of.items()
    }
    signs = (values["cost"] > 0) == (values["harm"] > 0)
    scores["cost"]["sign_accuracy"] = {group: float(signs[i].mean()) for group, i in by_group.items()}
    for kind in gold_of:
        scores[kind]["verdicts"] = fitted[kind].get("verdicts", [])
    return {
        "policy": {group: _summary(values, answers, i) for group, i in by_group.items()},
        "scores": scores,
        "best_of": {
            "n": samples,
            "reward": _best_of(values["reward"], values, by_group, samples),
            "cost": _best_of(-values["cost"], values, by_group, samples),
        },
        "scripted": {name: _scripted(script, models) for name, script in SCRIPTS.items()},
        "samples": [
            {"group": p.group, "prompt": p.text, "response": answers[i * samples]}
            | {name: round(float(x[i * samples]), 3) for name, x in values.items()}
            for i, p in enumerate(heldout[:24])
        ],
    }


def _rows_by_group(groups: Sequence[str]) -> dict[str, np.ndarray]:
    """Row numbers of "all" and of each group."""
    array = np.array(groups)
    return {"all": np.arange(len(array))} | {g: np.flatnonzero(array == g) for g in sorted(set(groups))}


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's, 0 where one of them does not vary."""
    return float(np.corrcoef(first, second)[0, 1]) if first.std() > 0 and second.std() > 0 else 0.0


def _declines(response: str) -> bool:
    return any(clause in language.DECLINES for clause in language.clauses(response))


def _summary(values: Mapping[str, np.ndarray], answers: Sequence[str], rows: np.ndarray) -> dict[str, float]:
    means = {name: float(x[rows].mean()) for name, x in values.items()}
    return means | {
        "harmful_rate": float((values["harm"][rows] > 0).mean()),
        "decline_rate": float(np.mean([_declines(answers[i]) for i in rows])),
        "words": float(np.mean([len(answers[i].split()) for i in rows])),
    }


def _best_of(
    score: np.ndarray, values: Mapping[str, np.ndarray], by_group: Mapping[str, np.ndarray], samples: int
) -> dict[str, dict[str, dict[str, float]]]:
    """By group, gold means of a random response and of the one that `score` prefers among each prompt's samples."""
    best = np.arange(0, len(score), samples) + score.reshape(-1, samples).argmax(1)
    result: dict[str, dict[str, dict[str, float]]] = {}
    for group, rows in by_group.items():
        chosen = np.intersect1d(best, rows)
        result[group] = {
            name: {"random": float(values[name][rows].mean()), "best": float(values[name][chosen].mean())}
            for name in ("helpfulness", "harm")
        }
    return result


def _scripted(script: Mapping[str, str], models: "Mapping[str, ScoreModel]") -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(41)
    heldout = language.prompts("heldout")
    texts = [prompt.text for prompt in heldout]
    answers = [language.respond(language.intent(p.text), script[p.group], rng) for p in heldout]
    values = judge(texts, answers) | {kind: model(texts, answers) for kind, model in models.items()}
    by_group = _rows_by_group([prompt.group for prompt in heldout])
    return {group: {name: float(x[rows].mean()) for name, x in values.items()} for group, rows in by_group.items()}


def read_card(folder: Path) -> Row:
    """The card of a build.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    try:
        card = read_json(folder / CARD_FILE)
    except DataError as error:
        raise DataError(f"{error}; give a folder that 'textsafe embedded-world build' wrote") from None
    if not {"annotators", "fitted", "policy", "scores", "best_of"} <= set(card):
        raise DataError(
            f"{folder / CARD_FILE}: not the card of a build; give a folder that 'textsafe embedded-world build' wrote"
        )
    return card


def tables(card: Row) -> list[object]:
    """The card as `rich` tables: annotators, score models next to baselines, correlation with gold, the policy."""
    from rich.table import Table

    def table(title: str, *columns: str) -> Table:
        made = Table(title=title, title_justify="left")
        for number, column in enumerate(columns):
            made.add_column(column, justify="right" if number else "left")
        return made

    agreement = table("Agreement of two annotators", "asked for", "here", "paper")
    for name, value in card["annotators"]["agreement"].items():
        agreement.add_row(name, f"{value:.1%}", f"{card['annotators']['paper'][name]:.0%}")

    learned = table("On the labels of held-out pairs", "model", "who", "ranking accuracy", "sign accuracy", "AUC")
    for kind in ("reward", "cost"):
        for name, found in card["fitted"][kind].get("held_out", {}).items():
            cells = (found.get(metric) for metric in ("ranking_accuracy", "sign_accuracy", "auc"))
            learned.add_row(kind, name, *("-" if cell is None else f"{cell:.3f}" for cell in cells))
    learned.caption = "\n".join(
        f"{kind}: {verdict}" for kind in ("reward", "cost") for verdict in card["scores"][kind]["verdicts"]
    )

    scores, best = card["scores"], card["best_of"]
    gold = table(
        "Against the gold judge, on the policy's responses to held-out prompts",
        "group", "reward ~ helpfulness (r)", "cost ~ harm (r)", "cost sign accuracy",
        f"helpfulness, best of {best['n']} by reward", f"harm, best of {best['n']} by cost",
    )  # fmt: skip
    policy = table(
        "The policy before any safety training",
        "group", "harmful", "declines", "helpfulness", "harm", "reward", "cost", "words",
    )  # fmt: skip
    for group, found in card["policy"].items():
        helpful, harm = best["reward"][group]["helpfulness"], best["cost"][group]["harm"]
        gold.add_row(
            group,
            *(f"{scores[kind]['correlation'][group]:.2f}" for kind in ("reward", "cost")),
            f"{scores['cost']['sign_accuracy'][group]:.1%}",
            f"{helpful['random']:+.2f} -> {helpful['best']:+.2f}",
            f"{harm['random']:+.2f} -> {harm['best']:+.2f}",
        )
        policy.add_row(
            group,
            *(f"{found[key]:.1%}" for key in ("harmful_rate", "decline_rate")),
            *(f"{found[key]:+.2f}" for key in ("helpfulness", "harm", "reward", "cost")),
            f"{found['words']:.1f}",
        )
    return [agreement, learned, gold, policy]
