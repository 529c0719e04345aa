"""What two runs of the same work have in common: everything but what a clock said."""

from typing import Any


def timeless(value: Any, *apart: str) -> Any:
    """Without the entries of dictionaries, at any depth, whose key speaks of seconds or is in `apart`."""
    if isinstance(value, dict):
        return {key: timeless(x, *apart) for key, x in value.items() if "second" not in key and key not in apart}
    return [timeless(x, *apart) for x in value] if isinstance(value, list) else value
