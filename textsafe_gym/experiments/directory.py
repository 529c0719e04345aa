"""The directory of a run, or of a whole experiment: whether it may be written to, and what settings lie there."""

from pathlib import Path

from textsafe_gym.config import flat, read_yaml
from textsafe_gym.errors import ConfigError, RunError
from textsafe_gym.experiments.spec import RunSpec

CONFIG = "config.yaml"


def folder_of(label: str) -> str:
    """A label as the name of a directory: reward_shaping[nu=0.5] -> reward_shaping-nu=0.5."""
    return "".join(c if c.isalnum() or c in "_-=.," else "-" for c in label).rstrip("-")


def check_out(out: Path, resume: bool | None) -> None:
    """Refuses a directory that holds something already, cannot be made, or has nothing to resume.

    Args:
        out: the directory.
        resume: whether --resume was given; None for a command that has no such option.

    Raises:
        RunError: see above.
    """
    try:
        filled = out.is_dir() and any(out.iterdir())
        blocked = next((part for part in (out, *out.parents) if part.exists() and not part.is_dir()), None)
    except OSError as error:
        raise RunError(f"--out {out}: {error.strerror}") from None
    if blocked is not None:
        raise RunError(f"--out {out}: {blocked} is a file, not a directory")
    if filled and not resume:
        hint = "choose another" if resume is None else "add --resume to continue it, or choose another"
        raise RunError(f"--out {out} exists and is not empty; {hint}")
    if resume and not filled:
        raise RunError(f"--resume: there is nothing to resume in {out}")


def make_directory(out: Path) -> None:
    """Makes a directory and those above it.

    Raises:
        RunError: the system refuses.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make {out}: {error.strerror}") from None


def same_request(spec: RunSpec, directory: Path) -> None:
    """Refuses to continue a run with other settings.

    Raises:
        ConfigError: the saved settings differ, or cannot be read.
    """
    saved = flat(read_yaml(directory / CONFIG).values)
    wanted = flat(spec.as_dict())
    names = sorted(name for name in wanted.keys() | saved.keys() if wanted.get(name) != saved.get(name))
    if names:
        changes = "; ".join(f"{name} was {saved.get(name)!r}, now {wanted.get(name)!r}" for name in names)
        raise ConfigError(f"{directory / 'config.yaml'}: cannot resume with other settings: {changes}")
