"""A score model next to the baselines, on the same rows."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from textsafe_gym.data.readers import Labelled, SafetyPreference, ScoreRow
from textsafe_gym.files import Row
from textsafe_gym.fitting.baselines import BASELINES, Judge, Pair, PairScores, Single
from textsafe_gym.fitting.metrics import auc, interval_by_prompt, ranking_accuracy, sign_accuracy

Scorer = Callable[[Sequence[str], Sequence[str]], NDArray[np.float64]]
TRANSFORMER = "transformer"


class Transformer:
    """A raw (not normalised) scorer in the baselines' shape: zero is its own decision."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def pair_scores(self, pairs: Sequence[Pair]) -> PairScores:
        """Scores of either answer."""
        prompts = [pair.prompt for pair in pairs]
        both = self._scorer(prompts + prompts, [pair.higher for pair in pairs] + [pair.lower for pair in pairs])
        return PairScores(both[: len(pairs)], both[len(pairs) :])

    def single_scores(self, singles: Sequence[Single]) -> NDArray[np.float64]:
        """The model's scores of n single responses, (n,) float64."""
        return self._scorer([single.prompt for single in singles], [single.response for single in singles])


def questions(rows: Sequence[ScoreRow], kind: str) -> tuple[list[Pair], list[Single]]:
    """What rows ask of a model: pairs to rank (a cost model ranks the less safe answer higher) and labels to tell."""
    pairs: list[Pair] = []
    singles: list[Single] = []
    for row in rows:
        if isinstance(row, Labelled):
            singles.append(Single(row.prompt, row.response, row.label))
        elif isinstance(row, SafetyPreference):
            pairs.append(Pair(row.prompt, row.other, row.safer))
            singles.append(Single(row.prompt, row.safer, not row.safer_is_safe))
            singles.append(Single(row.prompt, row.other, not row.other_is_safe))
        elif kind == "reward":
            pairs.append(Pair(row.prompt, row.better, row.worse))
        else:
            pairs.append(Pair(row.prompt, row.worse, row.better))
    return pairs, singles


def measure(
    judge: Judge, pairs: Sequence[Pair], singles: Sequence[Single], intervals: bool = True
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """The metrics that the rows allow, and their 95 % intervals.

    Args:
        judge: what scores.
        pairs: give "ranking_accuracy", the share of pairs ranked right.
        singles: give "sign_accuracy", the share for which score > 0 predicts the label, and "auc".
        intervals: whether to bootstrap.
    """
    values: dict[str, float] = {}
    ranges: dict[str, tuple[float, float]] = {}
    measures: list[tuple[str, Callable[[NDArray[np.int64]], float], list[str]]] = []
    if pairs:
        higher, lower = judge.pair_scores(pairs)
        prompts = [pair.prompt for pair in pairs]
        measures.append(("ranking_accuracy", lambda i: ranking_accuracy(higher[i], lower[i]), prompts))
    if singles:
        scores = judge.single_scores(singles)
        labels = np.array([single.label for single in singles], dtype=bool)
        prompts = [single.prompt for single in singles]
        measures.append(("sign_accuracy", lambda i: sign_accuracy(scores[i], labels[i]), prompts))
        measures.append(("auc", lambda i: auc(scores[i], labels[i]), prompts))
    for name, function, prompts in measures:
        value = function(np.arange(len(prompts)))
        if np.isnan(value):  # an area under a curve where only one label occurs
            continue
        values[name] = value
        if intervals:
            ranges[name] = interval_by_prompt(function, prompts)
    return values, ranges


def compare_with_baselines(
    kind: str,
    scorer: Scorer,
    train: Sequence[ScoreRow],
    test: Sequence[ScoreRow],
    test_sources: Sequence[str] = (),
) -> Row:
    """Held-out metrics of a scorer and of every baseline.

    Args:
        kind: "reward" or "cost".
        scorer: raw scores of (prompts, responses), (n,).
        train: what the baselines learn from.
        test: what all are measured on.
        test_sources: where each test row came from; with several, the metrics of each are given too.

    Returns:
        "held_out" {name: {metric: value}}, "intervals" {name: {metric: (low, high)}}, and, with several sources,
        "by_source" {source: {name: {metric: value}}}.
    """
    pairs, singles = questions(train, kind)
    judges: dict[str, Judge] = {TRANSFORMER: Transformer(scorer)}
    judges |= {name: baseline(pairs, singles) for name, baseline in BASELINES.items()}
    asked = _answerable(questions(test, kind), pairs, singles)
    result: Row = {"held_out": {}, "intervals": {}}
    for name, judge in judges.items():
        result["held_out"][name], result["intervals"][name] = measure(judge, *asked)
    sources = list(dict.fromkeys(test_sources))
    if len(sources) > 1:
        result["by_source"] = {}
        for source in sources:
            rows = [row for row, other in zip(test, test_sources, strict=True) if other == source]
            some = _answerable(questions(rows, kind), pairs, singles)
            result["by_source"][source] = {n: measure(j, *some, intervals=False)[0] for n, j in judges.items()}
    return result


def verdicts(held_out: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A plain sentence for every metric in which TF-IDF does at least as well as the transformer."""
    names = {"ranking_accuracy": "ranking accuracy", "sign_accuracy": "sign accuracy", "auc": "AUC"}
    said = []
    for metric, value in held_out[TRANSFORMER].items():
        other = held_out["tfidf"][metric]
        if other >= value:
            word = "beats" if other > value else "equals"
            said.append(
                f"TF-IDF with logistic regression {word} the transformer in {names[metric]}: {other:.3f} against "
                f"{value:.3f}."
            )
    return said


def _answerable(
    asked: tuple[list[Pair], list[Single]], pairs: Sequence[Pair], singles: Sequence[Single]
) -> tuple[list[Pair], list[Single]]:
    """Without the questions of which no training row gave an example: a baseline cannot answer those."""
    return asked[0] if pairs else [], asked[1] if singles else []
