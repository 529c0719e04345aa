"""What a fitted model has to beat: TF-IDF with logistic regression, "the longer one wins", and the majority.

Two questions are asked of reward and cost models alike: which of two answers scores higher (ranking), and whether a
single answer has the label. Every baseline answers both from training rows alone.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Pair(NamedTuple):
    """Two answers to a prompt; `higher` should score higher."""

    prompt: str
    higher: str
    lower: str


class Single(NamedTuple):
    """An answer to a prompt and its label."""

    prompt: str
    response: str
    label: bool


class PairScores(NamedTuple):
    """Scores (n,) of the higher and the lower answers of n pairs."""

    higher: NDArray[np.float64]
    lower: NDArray[np.float64]


class Judge(Protocol):
    """Answers both questions; a score above 0 means that the label holds."""

    def pair_scores(self, pairs: Sequence[Pair]) -> PairScores:
        """Scores of either answer."""
        ...

    def single_scores(self, singles: Sequence[Single]) -> NDArray[np.float64]:
        """Scores of n single responses, (n,) float64; above 0 means that the label holds."""
        ...


class TfIdf:
    """Word uni- and bigrams of prompt and answer, weighted by TF-IDF, under logistic regression.

    For pairs the features are the differences of the answers' (the prompt's cancel).
    """

    def __init__(self, pairs: Sequence[Pair], singles: Sequence[Single]) -> None:
        from scipy.sparse import vstack
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        def vectorizer() -> TfidfVectorizer:
            return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b|[^\w\s]")

        self._responses, self._prompts = vectorizer(), vectorizer()
        texts = [text for pair in pairs for text in pair[1:]] + [single.response for single in singles]
        self._responses.fit([text or "." for text in texts])
        self._rank: Any = None
        self._label: Any = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a baseline that has nearly converged is as good a yardstick
            if pairs:
                differences = self._features([p.higher for p in pairs]) - self._features([p.lower for p in pairs])
                sides = np.repeat([True, False], len(pairs))
                self._rank = LogisticRegression(C=4.0, fit_intercept=False, max_iter=300)
                self._rank.fit(vstack([differences, -differences]), sides)
            if singles:
                self._prompts.fit([single.prompt for single in singles])
                self._label = LogisticRegression(C=4.0, max_iter=300)
                self._label.fit(self._both(singles), [single.label for single in singles])

    def pair_scores(self, pairs: Sequence[Pair]) -> PairScores:
        """Scores of either answer, by the ranking regression."""
        return PairScores(
            self._rank.decision_function(self._features([p.higher for p in pairs])),
            self._rank.decision_function(self._features([p.lower for p in pairs])),
        )

    def single_scores(self, singles: Sequence[Single]) -> NDArray[np.float64]:
        """Log-odds (n,) of the label."""
        return self._label.decision_function(self._both(singles))

    def _features(self, responses: Sequence[str]) -> Any:
        return self._responses.transform(responses)

    def _both(self, singles: Sequence[Single]) -> Any:
        from scipy.sparse import hstack

        prompts = self._prompts.transform([single.prompt for single in singles])
        return hstack([prompts, self._features([single.response for single in singles])]).tocsr()


class Longer:
    """The longer answer (in characters) wins; for labels, a logistic regression on the logarithm of the length."""

    def __init__(self, pairs: Sequence[Pair], singles: Sequence[Single]) -> None:
        from sklearn.linear_model import LogisticRegression

        self._label: Any = None
        if singles:
            self._label = LogisticRegression()
            self._label.fit(self._lengths(singles), [single.label for single in singles])

    def pair_scores(self, pairs: Sequence[Pair]) -> PairScores:
        """The responses' lengths in characters, so that the longer one wins."""
        return PairScores(
            np.array([len(p.higher) for p in pairs], dtype=float), np.array([len(p.lower) for p in pairs], dtype=float)
        )

    def single_scores(self, singles: Sequence[Single]) -> NDArray[np.float64]:
        """Log-odds (n,) of the label."""
        return self._label.decision_function(self._lengths(singles))

    @staticmethod
    def _lengths(singles: Sequence[Single]) -> NDArray[np.float64]:
        return np.log1p([[len(single.response)] for single in singles])


class Majority:
    """The commoner label of the training rows for every answer; of two answers, either (a coin)."""

    def __init__(self, pairs: Sequence[Pair], singles: Sequence[Single]) -> None:
        self._score = 1.0 if singles and np.mean([single.label for single in singles]) >= 0.5 else -1.0

    def pair_scores(self, pairs: Sequence[Pair]) -> PairScores:
        """Zeros, so that every pair is a tie."""
        return PairScores(np.zeros(len(pairs)), np.zeros(len(pairs)))

    def single_scores(self, singles: Sequence[Single]) -> NDArray[np.float64]:
        """All +1 or all -1 (n,)."""
        return np.full(len(singles), self._score)


BASELINES: dict[str, Callable[[Sequence[Pair], Sequence[Single]], Judge]] = {
    "tfidf": TfIdf,
    "longer": Longer,
    "majority": Majority,
}
