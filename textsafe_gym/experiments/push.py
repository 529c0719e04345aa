"""A policy or a score model, with its card, to the Hugging Face hub."""

import os
from pathlib import Path

from textsafe_gym.errors import ConfigError, ExecutionError, ModelError, RunError
from textsafe_gym.experiments.directory import CONFIG
from textsafe_gym.experiments.run import CHECKPOINT
from textsafe_gym.files import Row, read_json

# All that reading a model needs. What else lies in its folder, or in the run's, stays here.
_UPLOADED = {
    "README.md", "config.json", "generation_config.json", "model.safetensors.index.json",
    "adapter_config.json", "textsafe.json", "mlp_policy.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model",
}  # fmt: skip
_DESCRIBE = ("config.json", "adapter_config.json", "mlp_policy.json")  # one of them makes a folder a model's


def push(source: str | Path, repo_id: str, *, private: bool = False, dry_run: bool = False) -> Row:
    """Uploads the policy of a finished run, or a model's folder, as `textsafe push` does.

    Weights, settings, tokenizer and card are uploaded and nothing else.

    Args:
        source: a run's directory or a model's folder.
        repo_id: ORG/NAME, which is made if it is new.
        private: into a private repository.
        dry_run: finds out what would be uploaded, and stops.

    Returns:
        "repo", "folder", the names of the "files" and, once uploaded, the "url".

    Raises:
        TextsafeError: the request is wrong, or nobody is logged in.
        ExecutionError: the hub refuses, or does not answer.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConfigError(f"'{repo_id}' is not a hub id: {error}") from None
    if "/" not in repo_id:
        raise ConfigError(f"'{repo_id}' names no owner; give ORG/{repo_id} or your own name for ORG")
    folder = _model_in(Path(source))
    wanted = (path for path in folder.iterdir() if path.name in _UPLOADED or path.suffix == ".safetensors")
    files = sorted(path for path in wanted if path.is_file())
    for path in files:
        if path.suffix == ".json" and not path.name.startswith(("tokenizer.", "vocab.")):
            _check_private(path)
    result: Row = {"repo": repo_id, "folder": str(folder), "files": [path.name for path in files]}
    if not dry_run:
        result["url"] = _upload(files, repo_id, private)
    return result


def _model_in(source: Path) -> Path:
    """The folder of the model that a run or a model's folder is about."""
    if not source.is_dir():
        raise ModelError(f"{source}: no such folder; give a run's or a model's")
    folder = source
    if (source / CONFIG).is_file():
        if not (source / "summary.json").is_file():
            raise RunError(f"{source}: the run is not finished; continue it with --resume, and push it then")
        folder = source / CHECKPOINT / "policy"
    if not any((folder / name).is_file() for name in _DESCRIBE):
        raise ModelError(f"{source}: holds no policy or score model; give a run or a folder with one")
    return folder


def _check_private(path: Path) -> None:
    """Refuses to publish where something lies on this machine, which would be of no use elsewhere.

    Raises:
        ModelError: a value of the file is a path.
        DataError: the file is damaged.
    """
    from textsafe_gym.models.cards import is_hub_id

    for key, value in read_json(path).items():
        if key == "base_model_name_or_path" and not is_hub_id(value):
            how = "set it to the hub id of that model, which has to be pushed first"
            raise ModelError(f"{path}: {key} is {value!r}, which is not on the hub; {how}")
        if isinstance(value, str) and os.path.isabs(value):
            raise ModelError(f"{path}: {key} is the local path '{value}'; edit it")


def _upload(files: list[Path], repo_id: str, private: bool) -> str:
    """Makes the repository and commits the files; returns its address.

    Raises:
        ConfigError: nobody is logged in, the hub must not be asked, or what is to be private would be public.
        ExecutionError: the hub refuses, or does not answer.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError

    from textsafe_gym.models.cards import CARD, PLACEHOLDER

    if constants.is_offline_mode():
        raise ConfigError("HF_HUB_OFFLINE is set, so that nothing can be uploaded; unset it")
    if get_token() is None:
        raise ConfigError(
            "nobody is logged in to the hub; run `hf auth login`, or set HF_TOKEN to a token that may write"
        )
    operations = [
        CommitOperationAdd(
            path.name,
            path.read_text(encoding="utf-8").replace(PLACEHOLDER, repo_id).encode() if path.name == CARD else path,
        )
        for path in files
    ]
    api = HfApi(library_name="textsafe-gym")
    try:
        url = api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise ConfigError(f"{repo_id} is there already and public; make it private first, or leave out --private")
        api.create_commit(repo_id, operations, commit_message="Upload by textsafe-gym")
    except ConfigError:
        raise
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = "; the token may not write there: see `hf auth whoami`" if status in (401, 403) else ""
        raise ExecutionError(
            f"the hub refused {repo_id} ({status}): {(error.server_message or str(error)).rstrip('.')}{hint}"
        ) from None
    except Exception as error:  # its HTTP library, which is not always the same, has types of its own
        reason = f"{type(error).__name__}: {error}"
        raise ExecutionError(f"{constants.ENDPOINT} does not take the upload: {reason}; try again later") from error
    return str(url)
