"""How a command can end other than well or by a wrong request."""


class WorkFailed(Exception):
    """The request was right but the work did not get done; the message says where to look."""


class Interrupted(Exception):
    """Ctrl-C, or SIGTERM, during work that can be resumed; the message says how."""
