"""Model cards in Hugging Face's format: what a saved model is, what it was trained on, and what it is not for."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from textsafe_gym.extras import version
from textsafe_gym.files import write_text
from textsafe_gym.models.files import HUB_ID, LORA_CONFIG

CARD = "README.md"
PLACEHOLDER = "ORG/NAME"  # stands for the hub id until the model has one
_HUB_DATA = re.compile(r"hub:([\w.-]+/[\w.-]+)")

_ABOUT = {
    "policy": "A policy that writes a response to a prompt, trained by safe reinforcement learning: it earns the score "
    "of a reward model, and a cost model scores its harm.",
    "mlp": "A policy for a Gymnasium environment with `info['cost']`: small networks on its observations.",
    "sft": "A language model fitted to demonstrations (SFT), to start safe reinforcement learning from.",
    "reward": "A reward model: scores a response to a prompt; high is helpful.",
    "cost": "A cost model: scores a response to a prompt; above 0 is harmful, at or below 0 is safe.",
}
_USE = {
    "policy": """```
textsafe evaluate {name} --env ENV.yaml --out runs/again
textsafe chat {name} --env ENV.yaml
```

```python
from textsafe_gym.models.causal_lm import CausalLMActor

policy = CausalLMActor.load("{name}")
```
{plain}""",
    "mlp": """```python
from textsafe_gym.models.mlp import MLPActor

policy = MLPActor.load("{name}")
```
""",
    "score": """```
textsafe train ppo_lagrangian --set env.{kind}_model={name}
```

```python
from textsafe_gym.models.score import ScoreModel

{kind} = ScoreModel.load("{name}", "{kind}")
{kind}(["How do I bake bread?"], ["Mix flour and water."])  # one normalised score
```
""",
}
_PLAIN = """
It is an ordinary causal language model too:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained("{name}"), AutoTokenizer.from_pretrained("{name}")
```
"""
_LIMITS = {
    "policy": "Reward and cost are learned models' opinions, not the truth: what is rated helpful need not be, what is "
    "rated safe can be harmful, and both can be exploited by the policy that was trained on them. A limit on the mean "
    "cost allows single harmful responses. The measurements hold for the evaluation prompts and for no others. Not to "
    "be put before people without checks of one's own.",
    "mlp": "Reward and cost are what the environment pays, which need not be all that matters. A limit on the mean "
    "cost allows single episodes above it. The measurements hold for episodes of that environment, begun as it begins "
    "them, and for no others.",
    "score": "It imitates the labels that it was fitted to, with their errors and the views of those who gave them, "
    "and is unreliable on texts unlike them. A policy that is trained on it finds its mistakes. It is not a content "
    "filter.",
}


def write_card(
    directory: Path,
    kind: str,
    facts: Mapping[str, object] | None = None,
    measured: Mapping[str, object] | None = None,
    *,
    base: object = None,
    sources: Sequence[str] = (),
    tags: Sequence[str] = (),
) -> None:
    """Writes README.md into a model's folder, over an earlier one; it names no place on this machine.

    Args:
        directory: holds the model already, whose files say which library reads it.
        kind: "policy", "mlp", "sft", "reward" or "cost".
        facts: how it was trained, in words; None values are left out.
        measured: what came out.
        base: folder or hub id that training started from, if any.
        sources: what the data were read from; those on the hub become metadata.
        tags: further ones, such as the algorithm.
    """
    from huggingface_hub import ModelCard, ModelCardData

    lora = (directory / LORA_CONFIG).is_file()
    library = "textsafe-gym" if kind == "mlp" else "peft" if lora else "transformers"
    task = {"mlp": "reinforcement-learning", "reward": "text-classification", "cost": "text-classification"}
    datasets = list(dict.fromkeys(found[1] for source in sources if (found := _HUB_DATA.match(source))))
    data = ModelCardData(
        library_name=library,
        pipeline_tag=task.get(kind, "text-generation"),
        base_model=str(base) if is_hub_id(base) else None,
        datasets=datasets or None,
        tags=["textsafe-gym", "safe-rlhf", *(["lora"] if lora else []), *tags],
    )
    scores = kind in ("reward", "cost")
    family = "score" if scores else "mlp" if kind == "mlp" else "policy"
    whole = "" if lora else _PLAIN.format(name=PLACEHOLDER)
    facts = {**({"base model": public(base)} if base else {}), **(facts or {})}
    title = {"policy": "Policy", "mlp": "Policy", "sft": "Language model"}.get(kind, f"{kind.capitalize()} model")
    parts = [
        f"---\n{data.to_yaml()}\n---\n\n# {title}\n\n{_ABOUT[kind]}",
        f"Made by textsafe-gym {version()}.",
        _table("Training", facts),
        _table("Measured", measured or {}),
        "## Use\n\n" + _USE[family].format(name=PLACEHOLDER, kind=kind, plain=whole).strip(),
        "## Limits\n\n" + _LIMITS[family],
    ]
    write_text(directory / CARD, str(ModelCard("\n\n".join(filter(None, parts)) + "\n")))


def is_hub_id(source: object) -> bool:
    """Whether a source is a model on the hub as far as its form shows: a name that is not a place here."""
    return isinstance(source, str) and bool(HUB_ID.fullmatch(source)) and not Path(source).exists()


def public(source: object) -> str:
    """A folder, file or hub id as a card may show it: without where it lies."""
    text = str(source)
    return text if is_hub_id(text) or text.startswith("hub:") else Path(text).name


def _table(title: str, rows: Mapping[str, object]) -> str:
    shown = [(key, _cell(value)) for key, value in rows.items() if value is not None]
    if not shown:
        return ""
    return f"## {title}\n\n| | |\n|---|---|\n" + "\n".join(f"| {key} | {value} |" for key, value in shown)


def _cell(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")
