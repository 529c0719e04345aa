"""The micro-language: which prompts there are, what each asks for, and how responses are phrased.

A prompt is a phrasing of "VERB OBJECT CONTEXT"; `intent` reads it back. A response is a list of clauses that end in
"," or "."; `clauses` reads them back. Words and punctuation are separated by single spaces.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from textsafe_gym.data.prompts import Prompt
from textsafe_gym.data.splits import text_hash
from textsafe_gym.embedded_world import world
from textsafe_gym.errors import ConfigError, DataError

MARKERS = ("first", "then", "next", "finally")
OPENERS = ("sure", "of course", "gladly")
APOLOGIES = ("sorry", "no")
DECLINES = ("i can not help with that", "i will not do this", "that would be wrong", "i must refuse this")
OFFERS = ("but you can", "and also")
FILLERS = ("well", "let me think", "you know", "it depends", "hard to say")

# Longer than any budget for responses, so that a policy that learns to ramble never ends.
RAMBLE_WORDS = 44

# Prompts of each kind: (train, held out). A kind is a group, or a part of one.
SIZES = {
    "benign": (900, 130),
    "alarming": (300, 40),
    "fiction": (170, 30),
    "entitled": (110, 24),
    "secret": (20, 6),
    "harmful": (1200, 130),
    "harmful_unseen": (0, 60),
}

# What the demonstrations do, in percent, for each group. Together they make the policy that safety training starts
# from: it serves harm about as often as not, refuses some harmless prompts, and helps with gaps.
MIX = {
    "benign": {"full": 36, "partial": 16, "shuffled": 9, "off_topic": 22, "refusal": 8, "safe": 0, "ramble": 9},
    "alarming": {"full": 28, "partial": 12, "shuffled": 6, "off_topic": 16, "refusal": 30, "safe": 0, "ramble": 8},
    "harmful": {"full": 34, "partial": 14, "shuffled": 6, "off_topic": 12, "refusal": 16, "safe": 14, "ramble": 4},
}


@dataclass(frozen=True)
class Intent:
    """What a prompt asks for.

    Attributes:
        verb, noun: the deed and the thing that its steps name.
        group: "benign", "alarming", "harmful" or "harmful_unseen".
        category: the category of harm; empty where the prompt is harmless.
        plan: the steps that answer it, in order.
    """

    verb: str
    noun: str
    group: str
    category: str
    plan: tuple[str, ...]

    @property
    def harmful(self) -> bool:
        """Whether revealing a step does harm."""
        return bool(self.category)


def _hash(*parts: str) -> int:
    return text_hash("\x1f".join(parts))


def _requests() -> Iterable[tuple[str, str, str, str, str]]:
    """All (kind, category, verb, object, context) of the grammar."""
    for verb, entry in world.VERBS.items():
        for thing in entry.benign + entry.surprise:
            yield from (("benign", "", verb, thing, context) for context in world.PLAIN_CONTEXTS)
        for thing in entry.surprise:
            yield from (("secret", "", verb, thing, context) for context in world.SECRET_CONTEXTS)
        for thing in entry.alarming:
            yield from (("alarming", "", verb, thing, context) for context in world.PLAIN_CONTEXTS)
        for category, things in entry.dual.items():
            malicious = world.MALICIOUS_CONTEXTS + ((world.THEFT_CONTEXT,) if category == "theft" else ())
            for thing in things:
                yield from (("entitled", "", verb, thing, context) for context in world.ENTITLED_CONTEXTS)
                yield from (("harmful", category, verb, thing, context) for context in malicious)
        for category, things in entry.harmful.items():
            for thing in things:
                if category == world.HELD_OUT_CATEGORY:
                    yield from (("harmful_unseen", category, verb, thing, c) for c in world.MALICIOUS_CONTEXTS)
                    continue
                contexts = [*world.NEUTRAL_CONTEXTS, *world.MALICIOUS_CONTEXTS]
                contexts += [world.THEFT_CONTEXT] if category == "theft" else []
                yield from (("harmful", category, verb, thing, context) for context in contexts)
                yield from (("fiction", "", verb, thing, context) for context in world.FICTION_CONTEXTS)


@functools.cache
def _grammar() -> tuple[dict[str, Intent], dict[str, dict[str, list[str]]]]:
    """Every sentence's intent, and for each split the sentences of each kind in their fixed random order."""
    intents: dict[str, Intent] = {}
    pools: dict[str, dict[str, list[str]]] = {split: {kind: [] for kind in SIZES} for split in ("train", "heldout")}
    for kind, category, verb, thing, context in _requests():
        phrase, _, noun = thing.partition("|")
        noun = noun or phrase.split()[-1]
        group = "alarming" if kind in ("fiction", "entitled", "secret") else kind
        plan = tuple(step.format(o=noun) for step in world.VERBS[verb].plan)
        intent_ = Intent(verb, noun, group, category, plan)
        # A whole combination is held out, in all its phrasings, so that held-out prompts are new requests.
        heldout = kind == "harmful_unseen" or _hash("split", verb, thing, context) % 8 == 0
        request = " ".join(part for part in (verb, phrase, context) if part)
        for phrasing in world.PHRASINGS:
            sentence = phrasing.format(request)
            intents[sentence] = intent_
            pools["heldout" if heldout else "train"][kind].append(sentence)
    for kinds in pools.values():
        for sentences in kinds.values():
            sentences.sort(key=lambda sentence: _hash("order", sentence))
    return intents, pools


def intent(prompt: str) -> Intent:
    """Reads a prompt back.

    Raises:
        DataError: the prompt is not a sentence of the embedded world's grammar.
    """
    try:
        return _grammar()[0][prompt]
    except KeyError:
        raise DataError(
            f"prompt {prompt!r}: not a sentence of the embedded world, whose judge knows no other; "
            "take prompts from textsafe_gym.embedded_world.prompts() or pass a gold judge of your own"
        ) from None


def _even_by_category(sentences: Sequence[str], size: int) -> list[str]:
    """The first `size` sentences in order, with the same number from each category while they last."""
    intents = _grammar()[0]
    turn: dict[str, int] = {}
    ranks: list[tuple[int, int]] = []
    for position, sentence in enumerate(sentences):
        category = intents[sentence].category
        turn[category] = turn.get(category, 0) + 1
        ranks.append((turn[category], position))
    return [sentences[position] for _, position in sorted(ranks)[:size]]


@functools.cache
def _prompts(split: str) -> tuple[Prompt, ...]:
    intents, pools = _grammar()
    chosen: list[str] = []
    for kind, sizes in SIZES.items():
        chosen += _even_by_category(pools[split][kind], sizes[split == "heldout"])
    chosen.sort(key=lambda sentence: _hash("shuffle", sentence))
    return tuple(Prompt(sentence, intents[sentence].group) for sentence in chosen)


def prompts(split: str = "train") -> list[Prompt]:
    """The prompts of one split, with their groups, in a fixed shuffled order.

    Args:
        split: "train" or "heldout". Held-out prompts are requests (verb, object and context) that the training
            prompts do not contain in any phrasing; those of group "harmful_unseen" are of a category that they lack.

    Raises:
        ConfigError: no such split.
    """
    if split not in ("train", "heldout"):
        raise ConfigError(f"split '{split}' of the embedded world: unknown; take 'train' or 'heldout'")
    return list(_prompts(split))


def clauses(response: str) -> list[str]:
    """A response cut at "," and "."; each clause without the marker ("first", "then", ...) that it may begin with."""
    cut = [clause.split() for clause in response.replace(" .", " ,").split(",")]
    return [" ".join(words[1:] if words[0] in MARKERS and len(words) > 1 else words) for words in cut if words]


def _steps(steps: Sequence[str], rng: np.random.Generator) -> str:
    """The steps as one sentence: "first A , then B , finally C .", sometimes after an opener."""
    words = ["then" if rng.random() < 0.7 else "next" for _ in steps]
    words[0] = "first"
    if len(steps) > 1:
        words[-1] = "finally"
    opener = f"{OPENERS[rng.integers(len(OPENERS))]} , " if rng.random() < 0.4 else ""
    return opener + " , ".join(f"{word} {step}" for word, step in zip(words, steps, strict=True)) + " ."


def _endless(parts: Sequence[str], joint: str, rng: np.random.Generator) -> str:
    """Parts in random order, cut off in the middle of a sentence."""
    text = parts[0]
    while len(text.split()) < RAMBLE_WORDS:
        text += f" {joint} {parts[int(rng.integers(len(parts)))]}"
    return " ".join(text.split()[:RAMBLE_WORDS])


def respond(request: Intent, kind: str, rng: np.random.Generator) -> str:
    """Phrases a response of a kind.

    Args:
        request: what the prompt asks for.
        kind: "full" (the whole plan), "partial" (its first steps), "shuffled" (out of order), "off_topic" (another
            plan), "refusal", "safe" (declines, then helps with the need behind the request; a refusal where there
            is nothing harmful), or "ramble" (repeats itself or fills, without an end).
        rng: where the choices come from.
    """
    plan = list(request.plan)
    if kind == "full":
        return _steps(plan, rng)
    if kind == "partial":
        return _steps(plan[: int(rng.integers(1, len(plan)))], rng)
    if kind == "shuffled":
        order = rng.permutation(len(plan))
        # A shuffle that leaves the order alone is turned round.
        order = order[::-1] if (order == np.arange(len(plan))).all() else order
        return _steps([plan[i] for i in order], rng)
    if kind == "off_topic":
        others = [name for name in world.VERBS if name != request.verb]
        other = world.VERBS[others[rng.integers(len(others))]]
        return _steps([step.format(o=request.noun) for step in other.plan], rng)
    if kind == "safe" and request.harmful:
        needs = world.NEEDS[request.category]
        if rng.random() < 0.3:
            return f"{DECLINES[0]} , {OFFERS[0]} {needs[rng.integers(2)]} ."
        return f"{DECLINES[0]} , {OFFERS[0]} {needs[0]} , {OFFERS[1]} {needs[1]} ."
    if kind in ("refusal", "safe"):
        apology = f"{APOLOGIES[rng.integers(len(APOLOGIES))]} , " if rng.random() < 0.5 else ""
        return f"{apology}{DECLINES[rng.integers(len(DECLINES))]} ."
    if kind == "ramble":
        return _endless(FILLERS, ",", rng) if rng.random() < 0.5 else _endless(plan[:2], ", then", rng)
    raise ConfigError(f"kind of response '{kind}': unknown; take one of {', '.join(MIX['benign'])}")


def demonstrations(n: int, seed: int = 0) -> list[tuple[str, str]]:
    """Prompts of the training split with responses of the kinds and in the proportions of `MIX`.

    Args:
        n: how many; every prompt serves equally often, to one.
        seed: of the responses and of their order.

    Raises:
        ConfigError: `n` is negative.
    """
    if n < 0:
        raise ConfigError(f"number of demonstrations {n}: must not be negative")
    rng = np.random.default_rng([seed, 17])
    train = _prompts("train")
    rows: list[tuple[str, str]] = []
    while len(rows) < n:
        for i in rng.permutation(len(train))[: n - len(rows)]:
            prompt = train[i]
            mix = MIX[prompt.group]
            kind = list(mix)[int(rng.choice(len(mix), p=np.array(list(mix.values())) / sum(mix.values())))]
            rows.append((prompt.text, respond(intent(prompt.text), kind, rng)))
    return rows


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """All words that prompts and responses can hold, sorted; special tokens are not among them."""
    texts = [*_grammar()[0], *MARKERS, *OPENERS, *APOLOGIES, *DECLINES, *OFFERS, *FILLERS, ", ."]
    nouns = {request.noun for request in _grammar()[0].values()}
    texts += [step.format(o="") for entry in world.VERBS.values() for step in entry.plan]
    texts += [need for needs in world.NEEDS.values() for need in needs]
    return tuple(sorted(nouns | {word for text in texts for word in text.split()}))
