"""Weights & Biases: online for a user who is logged in, else a run on disk for `wandb sync`."""

import logging
import netrc
import os
import secrets
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from textsafe_gym.tracking.base import Tracker

_log = logging.getLogger(__name__)
_ASK_NOBODY = ("offline", "dryrun", "disabled")  # modes without a server
_OLD_NAME = "api.wandb.ai"
_REACH, _UPLOAD = 15, 45  # seconds to wait for the server: at the start, and for what is left at the end


class Wandb(Tracker):
    """One run of W&B; its files lie in WANDB_DIR or in the run's directory, below `wandb/`.

    A run on disk that is continued is written anew, whole, under its id: `wandb sync` then finds it in one piece.
    """

    package = "wandb"

    def _open(self) -> None:
        debug = bool(os.environ.get("TEXTSAFE_DEBUG"))
        if not debug:
            os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._id = self.remembered() or secrets.token_hex(4)
        self.remember(self._id)
        given = wandb.setup().settings  # of the environment and of W&B's own files
        mode = str(given.mode)
        if mode not in _ASK_NOBODY and not _find_key(given.base_url, given.base_url == wandb.Settings().base_url):
            mode = "offline"
        try:
            self._run = self._init(wandb, mode)
        except wandb.Error as error:  # no network, or a key that is not valid
            if mode in _ASK_NOBODY:
                raise
            wandb.teardown()  # or it takes the run for one in use
            self._run = self._init(wandb, "offline")
            reason = " ".join(str(error).split())[:120]
            _log.warning("W&B does not take the run, which is kept on disk for `wandb sync`: %s", reason)

    def _init(self, wandb: Any, mode: str) -> Any:
        place = Path(os.environ.get("WANDB_DIR") or self.directory)
        if mode == "offline":
            for earlier in (place / "wandb").glob(f"offline-run-*-{self._id}"):
                shutil.rmtree(earlier, ignore_errors=True)
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or self.project,
            name=self.name,
            group=self.group,
            config=self.config,
            id=self._id,
            dir=str(place),
            resume="allow" if mode == "online" else None,
            reinit="create_new",
            settings=wandb.Settings(
                mode=mode,
                silent=not os.environ.get("TEXTSAFE_DEBUG"),
                console="off",
                disable_git=True,
                init_timeout=_REACH,
                finish_timeout=_UPLOAD,
            ),
        )
        self.last = run.starting_step - 1
        return run

    def _write(self, values: dict[str, float], step: int) -> None:
        # A server that holds all rows of a continued run already is one step ahead, and drops what comes for the last.
        self._run.log(values, step=max(step, self._run.step))

    def _close(self, complete: bool) -> None:
        self._run.finish(exit_code=0 if complete else 1)


def _find_key(server: str, is_own: bool) -> bool:
    """Whether there is a key for a server, in the environment or as `wandb login` stores it; it is then made known.

    W&B itself would ask on the terminal where it finds none.

    Args:
        server: its address.
        is_own: it is W&B's, whose key may be stored under an older name of it; no other server is given that key.
    """
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    names = [urlsplit(server).netloc, *([_OLD_NAME] if is_own else [])]
    for path in filter(None, (os.environ.get("NETRC"), "~/.netrc", "~/_netrc")):
        try:
            hosts = netrc.netrc(os.path.expanduser(path)).hosts
        except (OSError, netrc.NetrcParseError):
            continue
        for name in names:
            if name in hosts and hosts[name][2]:
                os.environ["WANDB_API_KEY"] = hosts[name][2]
                return True
    return False
