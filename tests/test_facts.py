"""Tests facts as values."""

from __future__ import annotations

import copy
import pickle
from dataclasses import asdict, replace

import pytest

from session_tracer.facts import ConnectionReleased, Database, ObjectsExpired, ObjectsExpunged


def test_facts_of_one_type_with_the_same_fields_are_equal() -> None:
    expunged = ObjectsExpunged(1, None, 2)
    assert expunged == ObjectsExpunged(at=1, site=None, count=2)
    assert expunged != ObjectsExpunged(1, None, 3)
    assert expunged != ObjectsExpired(1, None, 2)


def test_a_fact_shows_its_fields() -> None:
    database = Database("postgresql", port=5432)
    assert repr(ConnectionReleased(1, 2, 3, database)) == (
        "ConnectionReleased(at=1, held=2, busy=3, database="
        "Database(system='postgresql', namespace='', address='', port=5432))"
    )


def test_a_fact_can_change_and_has_no_hash() -> None:
    fact = ObjectsExpunged(1, None, 2)
    fact.count = 3
    assert fact == ObjectsExpunged(1, None, 3)
    with pytest.raises(TypeError, match="unhashable type: 'ObjectsExpunged'"):
        hash(fact)


def test_a_fact_can_be_copied_changed_and_sent() -> None:
    fact = ObjectsExpunged(1, None, 2)
    assert replace(fact, count=3) == ObjectsExpunged(1, None, 3)
    assert asdict(fact) == {"at": 1, "site": None, "count": 2}
    assert copy.deepcopy(fact) == fact
    assert pickle.loads(pickle.dumps(fact)) == fact
    with pytest.raises(AttributeError):
        fact.other = 1  # type: ignore[attr-defined] # that there is no such is what is tried
