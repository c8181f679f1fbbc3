"""What is found to hold a session, and that no object is asked for anything or kept."""

from __future__ import annotations

import gc
import sys
import weakref
from typing import Any

import pytest
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from session_tracer.pytest_plugin.holders import Holder, Holders

MODULE = sys.modules[__name__]


@pytest.fixture(autouse=True)
def _no_object_is_frozen() -> None:
    """The garbage collector does not see what this project's own tests set aside."""
    gc.unfreeze()


def asked(*_: object) -> Any:
    raise AssertionError("an object of the application was asked")


class Meta(type):
    def __getattribute__(cls, name: str) -> Any:
        asked()


class Guarded:
    """An object that refuses to be asked for anything."""

    __eq__ = __hash__ = __repr__ = __bool__ = __len__ = asked
    __class__ = property(asked)

    def __getattribute__(self, name: str) -> Any:
        asked()


def guarded_by_its_class() -> Any:
    return type.__call__(Meta("GuardedByItsClass", (), {}))


@pytest.fixture
def kept() -> list[Any]:
    return []


def holder_of(session: Session, registry: Any = None) -> Holder:
    return Holders().of(session, None if registry is None else weakref.ref(registry), "lines")


def test_nothing_holds_a_session_that_only_functions_use() -> None:
    assert holder_of(Session()) == "nothing"


@pytest.mark.parametrize("around", [lambda it: [it], lambda it: (it,), lambda it: iter([it])])
def test_a_collection_is_no_holder(kept: list[Any], around: Any) -> None:
    session = Session()
    kept.append(around(session))
    assert holder_of(session) == "nothing"


def test_an_object_that_nothing_holds_is_none() -> None:
    session, thing = Session(), Guarded()
    object.__setattr__(thing, "session", session)
    object.__setattr__(thing, "itself", thing)
    del thing
    assert holder_of(session) == "nothing"


@pytest.mark.parametrize("make", [Guarded, guarded_by_its_class])
def test_a_modules_object_holds_it(monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    session, thing = Session(), make()
    object.__setattr__(thing, "session", session)
    monkeypatch.setattr(MODULE, "THINGS", [{"thing": thing}], raising=False)
    assert holder_of(session) == "others"


def test_a_modules_registry_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = scoped_session(sessionmaker())
    monkeypatch.setattr(MODULE, "REGISTRY", registry, raising=False)
    assert holder_of(registry(), registry) == "others"


def test_a_registry_of_a_function_does_not() -> None:
    registry = scoped_session(sessionmaker())
    assert holder_of(registry(), registry) == "nothing"


def test_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    class Thing:
        session: Session

    holders, thing = Holders(), Thing()
    thing.session = Session()
    holders.of(thing.session, None, "lines")
    known = weakref.ref(thing), weakref.ref(thing.session)
    del thing
    gc.collect()
    assert [one() for one in known] == [None, None]


def test_what_is_known_of_a_line_is_not_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    look = gc.get_referrers

    def counting(*of: object) -> list[Any]:
        looks.append(len(of))
        return look(*of)

    monkeypatch.setattr(gc, "get_referrers", counting)
    holders, session = Holders(), Session()
    for _ in range(3):
        assert holders.of(session, None, "one line") == "nothing"
    looks.clear()
    assert holders.of(session, None, "one line") == "nothing"
    assert not looks
    assert holders.of(session, None, "another line") == "nothing"
    assert looks


def test_a_search_takes_a_small_part_of_the_runs_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process with millions of objects each step of it takes half a second."""
    now, look = [100.0], gc.get_referrers

    def slow(*of: object) -> list[Any]:
        now[0] += 0.4
        return look(*of)

    monkeypatch.setattr(gc, "get_referrers", slow)
    holders, session = Holders(lambda: now[0]), Session()
    found = [holders.of(session, None, number) for number in range(9)]
    assert set(found) == {"nothing", "others"}
    assert found[-1] == "others"
    assert now[0] < 104
    now[0] += 60
    # What is left is enough for another one.
    assert holders.of(session, None, 8) == "nothing"
