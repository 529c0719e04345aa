"""What a model may be loaded from, and messages that stay on one line."""

from pathlib import Path

import pytest

from textsafe_gym.errors import ModelError
from textsafe_gym.models.files import check_source, one_line


@pytest.mark.parametrize("source", ["gpt2", "owner/name"])
def test_what_may_be_a_hub_id_is_one(source: str) -> None:
    assert check_source(source, "policy") == source


@pytest.mark.parametrize("source", ["no/such/folder", "", "two words", Path("gpt2"), Path("owner/name")])
def test_what_cannot_be_one_has_to_be_a_folder(source: str | Path) -> None:
    with pytest.raises(ModelError, match=f"policy '{source}'"):
        check_source(source, "policy")


def test_a_long_message_is_cut_to_200_characters() -> None:
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(ValueError()) == "ValueError"
    assert one_line(ValueError("x" * 200)) == "x" * 200
    assert one_line(ValueError("x" * 201)) == "x" * 197 + "..."
