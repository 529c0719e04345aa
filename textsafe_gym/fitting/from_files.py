"""Fits from data files, with the defaults that suit the model; the command line's `fit`."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from textsafe_gym.config import Values
from textsafe_gym.data.readers import Columns, read_demonstrations, read_score_data
from textsafe_gym.files import Row
from textsafe_gym.fitting.losses import LossType
from textsafe_gym.fitting.output import check_lora, check_output, check_settings, is_tiny

# What the official Safe RLHF scripts use; a tiny model from scratch and a LoRA (2e-4 for GPT-3 in its own paper,
# arXiv 2106.09685) want larger steps.
_EPOCHS = {"sft": 3, "reward": 2, "cost": 2}
_RATES = {"whole": 2e-5, "lora": 2e-4, "tiny": 1e-3}


def fit(
    kind: Literal["sft", "reward", "cost"],
    data: str | Path | Iterable[str | Path],
    model: str = "tiny",
    *,
    out: str | Path,
    columns: Columns | None = None,
    positive: Sequence[str] = (),
    skip_inconsistent: bool = False,
    loss: LossType = "sequence",
    regularization: float = 0.001,
    epochs: int | None = None,
    learning_rate: float | None = None,
    lora_rank: int | None = None,
    minibatch_size: int = 16,
    max_length: int = 512,
    test_fraction: float = 0.1,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> Row:
    """Fits a policy to demonstrations, or a reward or cost model to preferences or labels, as `textsafe fit` does.

    Args:
        kind: what to fit.
        data: files or hub data sets, see `data.readers`.
        model: folder or hub id to start from, or "tiny[:sizes]" for a new model.
        out: new folder for the model and metrics.json.
        columns: names of the data's columns, where they are others than prompt, response and label.
        positive: labels that mean good (reward) or unsafe (cost).
        skip_inconsistent: leave out pairs whose labels contradict their order.
        loss: see `fit_score`; so for the others that are not said here.
        regularization: see `fit_score`.
        epochs: passes over the data; by default 3 for sft, 2 for reward and cost.
        learning_rate: its peak; by default 2e-5, 2e-4 with `lora_rank`, 1e-3 for a tiny model.
        lora_rank: fit a LoRA (and the head) alone.
        minibatch_size: rows a step.
        max_length: tokens of prompt and response.
        test_fraction: share of prompts held out.
        seed: of the split, of new weights and of the order of rows.
        device: a torch device; by default a GPU if there is one.
        progress: show progress bars.

    Returns:
        What `metrics.json` holds, see `fit_score`.

    Raises:
        TextsafeError: data, model or a setting is wrong; nothing was written.
    """
    rate = _RATES["tiny" if is_tiny(model) else "whole" if lora_rank is None else "lora"]
    settings: Values = {
        "epochs": _EPOCHS[kind] if epochs is None else epochs,
        "learning_rate": rate if learning_rate is None else learning_rate,
        "minibatch_size": minibatch_size,
        "test_fraction": test_fraction,
        "max_length": max_length,
    }
    check_settings(**settings)
    check_lora(model, lora_rank)
    check_output(out)
    counts, columns = Counter[str](), columns or Columns()
    settings |= {"seed": seed, "lora_rank": lora_rank, "device": device, "progress": progress}
    sources = [str(data)] if isinstance(data, str | Path) else [str(source) for source in data]
    if kind == "sft":
        demonstrations = []
        for source in sources:
            read = read_demonstrations(source, columns)
            demonstrations += read
            counts[source] += len(read)
        from textsafe_gym.fitting.sft import fit_sft

        return fit_sft(demonstrations, model, None, out, data=counts, **settings)
    rows, origins, skipped = [], [], 0
    for source in sources:
        found = read_score_data(source, kind, columns, positive, skip_inconsistent)
        rows += found.rows
        origins += [Path(source).name] * len(found.rows)
        counts[source] += len(found.rows)
        skipped += found.skipped
    from textsafe_gym.fitting.fit import fit_score

    return fit_score(
        kind,
        rows,
        model,
        None,
        out,
        loss=loss,
        regularization=regularization,
        sources=origins,
        skipped=skipped,
        data=counts,
        **settings,
    )
