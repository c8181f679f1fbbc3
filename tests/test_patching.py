"""Tests that a wrapped method looks like the one it wraps, and that unwrapping leaves nothing."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.orm.exc import DetachedInstanceError

from session_tracer import instrument
from session_tracer.exporter import Exporter
from session_tracer.hooks.patching import Patches
from session_tracer.testing import capture
from tests.library import Author, Base

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

NOWHERE = Exporter()
SESSION_METHODS = (
    "__init__", "close", "reset", "invalidate", "expunge", "expunge_all", "expire", "expire_all",
    "merge", "refresh", "flush", "commit", "rollback", "begin", "__enter__", "__exit__",
)  # fmt: skip
ASYNC_METHODS = (
    "__init__", "close", "reset", "invalidate", "merge", "refresh", "commit", "__aenter__",
    "__aexit__",
)  # fmt: skip
METHODS = [
    *((Session, name) for name in SESSION_METHODS),
    *((AsyncSession, name) for name in ASYNC_METHODS),
]


def face(method: Any) -> dict[str, Any]:
    """All that people and libraries read of a method."""
    return {
        "signature": inspect.signature(method),
        "argspec": inspect.getfullargspec(method),
        "coroutine": inspect.iscoroutinefunction(method),
        "generator": inspect.isgeneratorfunction(method),
        "defaults": method.__defaults__,
        "keyword defaults": method.__kwdefaults__,
        "annotations": method.__annotations__,
        "doc": method.__doc__,
        "name": (method.__module__, method.__qualname__, method.__name__),
        "dict": method.__dict__,
    }


def contents(cls: type) -> Mapping[str, int]:
    """What a class holds, in order, each by its identity."""
    return {name: id(value) for name, value in vars(cls).items()}


def untouched() -> list[tuple[str, int]]:
    """Everything that instrumenting touches."""
    return [
        item
        for cls in (Session, AsyncSession, DetachedInstanceError)
        for item in contents(cls).items()
    ]


@pytest.mark.parametrize(
    ("owner", "name"), METHODS, ids=[f"{owner.__name__}.{name}" for owner, name in METHODS]
)
def test_a_method_of_sqlalchemys_keeps_its_face(owner: type, name: str) -> None:
    before = face(getattr(owner, name))
    with instrument(exporter=NOWHERE):
        during = face(getattr(owner, name))
    assert during == before


@pytest.mark.parametrize("name", SESSION_METHODS)
def test_a_method_that_a_factory_inherits_keeps_its_face(name: str) -> None:
    factory = sessionmaker()
    before = face(getattr(factory.class_, name))
    with instrument(factory, exporter=NOWHERE):
        during = face(getattr(factory.class_, name))
    assert during == before


def test_the_methods_that_begin_and_end_a_scope_are_wrapped() -> None:
    before = {(owner, name): id(getattr(owner, name)) for owner, name in METHODS}
    with instrument(exporter=NOWHERE):
        wrapped = {
            f"{owner.__name__}.{name}"
            for (owner, name), method in before.items()
            if id(getattr(owner, name)) != method
        }
    assert wrapped >= {
        "Session.__init__",
        "Session.close",
        "Session.reset",
        "Session.invalidate",
        "Session.merge",
        "AsyncSession.close",
        "AsyncSession.__aexit__",
    }


def test_uninstrumenting_restores_every_class_exactly() -> None:
    before = untouched()
    with instrument(exporter=NOWHERE):
        assert untouched() != before
    assert untouched() == before


def test_uninstrumenting_a_factory_restores_its_class_exactly() -> None:
    factory = sessionmaker()
    before = list(contents(factory.class_).items())
    everything = untouched()
    with instrument(factory, exporter=NOWHERE):
        assert list(contents(factory.class_).items()) != before
    assert list(contents(factory.class_).items()) == before
    assert untouched() == everything


def test_uninstrumenting_an_async_factory_restores_its_classes_exactly() -> None:
    class OwnSession(Session):
        """What an AsyncSession stands on."""

    class OwnAsyncSession(AsyncSession):
        """What a factory makes."""

        sync_session_class = OwnSession

    factory = async_sessionmaker(class_=OwnAsyncSession)
    classes = (OwnSession, OwnAsyncSession, factory.class_)
    before = [list(contents(cls).items()) for cls in classes]
    everything = untouched()
    with instrument(factory, exporter=NOWHERE):
        assert [list(contents(cls).items()) for cls in classes] != before
    assert [list(contents(cls).items()) for cls in classes] == before
    assert untouched() == everything


def test_instrumentations_that_end_in_any_order_leave_nothing() -> None:
    class Own(Session):
        """A class between a factory and Session."""

    factory = sessionmaker(class_=Own)
    before = [*untouched(), *contents(Own).items(), *contents(factory.class_).items()]
    of_factory = instrument(factory, exporter=NOWHERE)
    of_own = instrument(Own, exporter=NOWHERE)
    of_all = instrument(exporter=NOWHERE)
    for one in (of_factory, of_all, of_own):
        one.uninstrument()
    after = [*untouched(), *contents(Own).items(), *contents(factory.class_).items()]
    assert after == before


@pytest.fixture
def sqlite_session() -> Iterator[Callable[[], Session]]:
    engine = create_engine("sqlite://")
    yield sessionmaker(engine)
    engine.dispose()


def test_another_librarys_wrapper_around_session_tracers_survives(
    sqlite_session: Callable[[], Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[Session] = []
    original = vars(Session)["close"]
    with capture() as captured:
        ours = Session.close

        def theirs(self: Session) -> None:
            closed.append(self)
            ours(self)

        monkeypatch.setattr(Session, "close", theirs)
        with sqlite_session() as first:
            first.execute(text("SELECT 1"))
        assert [session.outcome for session in captured.sessions] == ["closed"]
    assert vars(Session)["close"] is theirs
    with sqlite_session() as second:
        second.execute(text("SELECT 1"))
    assert closed == [first, second]
    assert len(captured.sessions) == 1
    # Once they are gone, monkeypatch would put back ours: they found it there.
    monkeypatch.undo()
    Session.close = original  # type: ignore[method-assign] # as it was


def test_a_wrapper_that_another_library_left_is_wrapped_again(
    sqlite_session: Callable[[], Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = vars(Session)["close"]
    with capture():
        ours = Session.close
        monkeypatch.setattr(Session, "close", lambda self: ours(self))
    with capture() as captured, sqlite_session() as session:
        session.execute(text("SELECT 1"))
    assert [session.outcome for session in captured.sessions] == ["closed"]
    monkeypatch.undo()
    Session.close = original  # type: ignore[method-assign] # as it was


# The wrapper by itself.


def polite(method: Callable[..., str]) -> Callable[..., str]:
    """A decorator, as people write them."""

    @functools.wraps(method)
    def wrapper(*args: object, **kwargs: object) -> str:
        return f"please: {method(*args, **kwargs)}"

    return wrapper


class Shop:
    """Methods of every shape."""

    def plain(self, book: str, copies: int = 1) -> str:
        """Sell."""
        return f"{book} {copies}"

    def positional(self, book: str, /, copies: int = 2) -> str:
        return f"{book} {copies}"

    def only_positional(self, book: str, copies: int = 3, /) -> str:
        return f"{book} {copies}"

    def keyword(self, book: str, *, copies: int = 4, gift: bool = False) -> str:
        return f"{book} {copies} {gift}"

    def all_at_once(
        self, a: str, /, b: str, *rest: str, copies: int = 5, **more: object
    ) -> tuple[object, ...]:
        return (a, b, *rest, copies, *more.items())

    @polite
    def decorated(self, book: str, copies: int = 7) -> str:
        return f"{book} {copies}"

    async def awaited(self, book: str, *, copies: int = 6) -> str:
        """Order."""
        return f"{book} {copies}"

    def fails(self) -> None:
        raise ValueError("sold out")


class Branch(Shop):
    """Inherits them all."""


PLAIN = Shop.plain


CALLS: list[tuple[str, tuple[str, ...], dict[str, Any], object]] = [
    ("plain", ("Emma",), {}, "Emma 1"),
    ("plain", (), {"book": "Emma", "copies": 9}, "Emma 9"),
    ("positional", ("Emma",), {"copies": 9}, "Emma 9"),
    ("only_positional", ("Emma",), {}, "Emma 3"),
    ("keyword", ("Emma",), {"gift": True}, "Emma 4 True"),
    ("all_at_once", ("a", "b", "c", "d"), {"e": "f"}, ("a", "b", "c", "d", 5, ("e", "f"))),
    ("decorated", ("Emma",), {"copies": 9}, "please: Emma 9"),
    ("all_at_once", ("a",), {"b": "c", "copies": 9}, ("a", "c", 9)),
]


@pytest.mark.parametrize("owner", [Shop, Branch])
@pytest.mark.parametrize(("name", "args", "kwargs", "returned"), CALLS)
def test_a_wrapper_passes_on_what_it_was_called_with(
    owner: type[Shop], name: str, args: tuple[str, ...], kwargs: dict[str, Any], returned: object
) -> None:
    seen: list[object] = []

    def before(shop: Shop, *rest: object, **more: object) -> str:
        seen.append(shop)
        return "token"

    shop = owner()
    looks = face(getattr(owner, name))
    patches = Patches()
    patches.wrap(owner, name, before, seen.append)
    try:
        assert getattr(shop, name)(*args, **kwargs) == returned
        assert face(getattr(owner, name)) == looks
    finally:
        patches.undo(owner)
    assert getattr(shop, name)(*args, **kwargs) == returned
    assert seen == [shop, "token"]


@pytest.mark.parametrize("owner", [Shop, Branch])
async def test_a_coroutine_method_stays_one(owner: type[Shop]) -> None:
    seen: list[object] = []
    looks = face(owner.awaited)
    patches = Patches()
    patches.wrap(owner, "awaited", lambda shop, book, copies: (book, copies), seen.append)
    try:
        assert inspect.iscoroutinefunction(owner.awaited)
        assert face(owner.awaited) == looks
        waiting = owner().awaited("Emma")
        assert seen == []
        assert await waiting == "Emma 6"
    finally:
        patches.undo(owner)
    assert seen == [("Emma", 6)]


def test_what_comes_after_comes_when_the_method_raises_too() -> None:
    seen: list[object] = []
    patches = Patches()
    patches.wrap(Shop, "fails", lambda shop: "token", seen.append)
    try:
        with pytest.raises(ValueError, match="sold out"):
            Shop().fails()
    finally:
        patches.undo(Shop)
    assert seen == ["token"]


def test_a_wrapper_that_stays_inside_another_librarys_reports_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[object] = []
    patches = Patches()
    patches.wrap(Shop, "plain", lambda shop, book, copies: "token", seen.append)
    ours = Shop.plain
    with monkeypatch.context() as theirs:
        theirs.setattr(Shop, "plain", lambda self, book, copies=1: f"theirs: {ours(self, book)}")
        patches.undo(Shop)
        assert Shop().plain("Emma") == "theirs: Emma 1"
    assert seen == []
    # What they put back is ours, which is deaf by now.
    assert Shop().plain("Emma") == "Emma 1"
    assert seen == []
    Shop.plain = PLAIN  # type: ignore[method-assign] # as it was


def test_an_inherited_method_that_is_replaced_below_is_the_one_that_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    patches = Patches()
    patches.wrap(Branch, "plain", lambda shop, book, copies: None, lambda token: None)
    try:
        monkeypatch.setattr(Shop, "plain", lambda self, book, copies=1: "another")
        assert Branch().plain("Emma") == "another"
    finally:
        patches.undo(Branch)
    assert "plain" not in vars(Branch)


def test_a_method_that_does_not_exist_is_not_wrapped() -> None:
    patches = Patches()
    patches.wrap(Shop, "closes_early", lambda shop: None, lambda token: None)
    assert not hasattr(Shop, "closes_early")


def test_undoing_one_class_leaves_the_other_wrapped() -> None:
    seen: list[object] = []
    patches = Patches()
    patches.wrap(Shop, "plain", lambda shop, book, copies: "shop", seen.append)
    patches.wrap(Branch, "keyword", lambda shop, book, copies, gift: "branch", seen.append)
    try:
        patches.undo(Shop)
        Branch().plain("Emma")
        Branch().keyword("Emma")
    finally:
        patches.undo(Branch)
    Branch().keyword("Emma")
    assert seen == ["branch"]


class Extended(Session):
    """An application's own session: each method takes more than the one it extends."""

    def __init__(self, *args: Any, tenant: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tenant = tenant

    def close(self, *, quietly: bool = False) -> None:
        super().close()

    def reset(self, quietly: bool = False) -> None:
        super().reset()

    def invalidate(self, quietly: bool = False) -> None:
        super().invalidate()

    def expunge(self, instance: object, quietly: bool = False) -> None:
        super().expunge(instance)

    def expunge_all(self, quietly: bool = False) -> None:
        super().expunge_all()

    def expire(self, instance: object, *names: Any, quietly: bool = False) -> None:
        super().expire(instance, *names)

    def expire_all(self, quietly: bool = False) -> None:
        super().expire_all()

    def commit(self, quietly: bool = False) -> None:
        super().commit()

    def merge(self, instance: Any, *, quietly: bool = False, **options: Any) -> Any:
        return super().merge(instance, **options)


def test_a_session_whose_methods_take_more_is_traced_like_any_other() -> None:
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    factory = sessionmaker(engine, class_=Extended)
    with capture(factory) as captured:
        session = factory(tenant="north")
        author = Author(id=1, name="Ada")
        session.add(author)
        session.commit(quietly=True)
        session.expire(author, ["name"], quietly=True)
        session.expire_all(quietly=True)
        assert session.merge(Author(id=1), quietly=True, load=True) is author
        session.expunge(author, quietly=True)
        session.expunge_all(quietly=True)
        session.close(quietly=True)
        session.reset(quietly=True)
        session.execute(text("SELECT 1"))
        session.reset(quietly=True)
        session.execute(text("SELECT 1"))
        session.invalidate(quietly=True)
    engine.dispose()
    assert [summary.ending for summary in captured.sessions] == ["close", "reset", "invalidate"]
    (first, *_) = captured.sessions
    assert (first.merged, first.expunged) == (1, 1)
    assert captured.metrics.get("session_tracer.errors", []) == []
