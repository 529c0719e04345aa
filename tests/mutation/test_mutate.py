"""That the list of faults does not rot, and what the seeded mutator draws."""

import ast

import pytest

from tests.mutation import mutate
from tests.mutation.mutate import Fault

WRITTEN = mutate.written()


@pytest.mark.parametrize("fault", WRITTEN, ids=lambda fault: fault.name)
def test_a_fault_is_planted_in_one_place_and_has_tests(fault: Fault) -> None:
    planted = fault.planted()
    assert planted is not None, f"{fault.file} does not have the old text of '{fault.name}' exactly once"
    ast.parse(planted)
    for test in mutate.tests_of(fault):
        assert (mutate.ROOT / test.partition("::")[0]).exists(), test


def test_names_are_unique_and_equivalents_are_faults() -> None:
    names = [fault.name for fault in [*WRITTEN, *mutate.draw(0)]]
    assert len(set(names)) == len(names)
    assert mutate.equivalents().keys() <= set(names)


def test_a_seed_draws_the_same_faults_and_all_of_them_are_python() -> None:
    drawn = mutate.draw(1)
    assert drawn == mutate.draw(1)
    assert len(drawn) == sum(mutate.DRAWN.values())
    for fault in drawn:
        planted = fault.planted()
        assert planted is not None
        ast.parse(planted)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a < b", "a <= b"),
        ("a is not None", "a is None"),
        ("a - b", "a + b"),
        ("a or b", "a and b"),
        ("not a", "a"),
        ("-a", "a"),
        ("a[:b]", "a[:b - 1]"),
        ("a[1:]", "a[2:]"),
        ("f(a, b.c, d)", "f(b.c, a, d)"),
        ("a.detach()", "a"),
        ("torch.maximum(a, 0.0)", "torch.minimum(a, 0.0)"),
        ("isinstance(a, b)", None),
        ('f"{a - b}"', None),
    ],
)
def test_what_the_mutator_changes(before: str, after: str | None) -> None:
    found = [(old, new) for _, _, old, new in mutate._changes(ast.parse(before), before)]
    assert [before.replace(*pair) for pair in found] == ([] if after is None else [after])


def test_a_fault_without_its_text_is_stale() -> None:
    fault = WRITTEN[0]
    assert Fault(fault.name, fault.file, "no such text", "", "").planted() is None
    assert Fault(fault.name, fault.file, "Tensor", "tensor", "").planted() is None  # more than once
