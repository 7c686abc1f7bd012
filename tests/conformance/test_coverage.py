"""No public class without a row in the table."""

import inspect

import pytest

from tests.conformance.cases import ABSTRACT, TABLES


def public_classes(module):
    return {name for name in module.__all__ if inspect.isclass(getattr(module, name))}


@pytest.mark.parametrize("folder", TABLES)
def test_every_public_class_has_a_row(folder):
    module, rows = TABLES[folder]
    shown = {type(make()).__name__ for make in rows.values()}
    missing = public_classes(module) - shown - set(ABSTRACT)
    assert not missing, f"add rows to tests/conformance/cases.py for {sorted(missing)}"
    assert not shown & set(ABSTRACT)


@pytest.mark.parametrize("folder", TABLES)
def test_rows_are_named_after_their_class(folder):
    _, rows = TABLES[folder]
    for name, make in rows.items():
        assert name.partition(",")[0] == type(make()).__name__


def test_what_is_abstract_is_public_somewhere():
    assert set(ABSTRACT) <= set().union(*(public_classes(module) for module, _ in TABLES.values()))
