"""That uninstrumenting leaves SQLAlchemy exactly as it was found."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import itertools
import re
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import context as context_api
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import Engine, create_engine, event, select, text
from sqlalchemy.engine.events import ConnectionEvents, DialectEvents
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    AsyncSessionTransaction,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, SessionEvents, scoped_session, sessionmaker
from sqlalchemy.orm.exc import DetachedInstanceError
from sqlalchemy.pool.events import PoolEvents

from session_tracer import Exporter, instrument, uninstrument
from session_tracer.testing import capture
from tests.library import Author, Base, authors
from tests.outline import outline

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path


def _events(of: type) -> list[str]:
    return sorted(name for name in vars(of) if not name.startswith("_") and name != "dispatch")


def _listeners(target: Any, of: type) -> dict[str, list[Any]]:
    """Who listens to each event of the target, in the order in which they are called."""
    return {name: _in_order(getattr(target.dispatch, name), target) for name in _events(of)}


def _in_order(listeners: Any, target: Any) -> list[Any]:
    return list(listeners._clslevel.get(target, ()) if isinstance(target, type) else listeners)


def _attributes(of: type) -> dict[str, Any]:
    # What SQLAlchemy remembers of its events is compared by who listens.
    return {name: value for name, value in vars(of).items() if name != "dispatch"}


def _session(session: Session) -> dict[str, Any]:
    identity_map: Any = session.identity_map
    connections = {
        connection
        for connection, *_ in getattr(session.get_transaction(), "_connections", {}).values()
    }
    return {
        "attributes": {name for name in session.__dict__ if name != "dispatch"},
        "listeners": _listeners(session, SessionEvents),
        "identity map": set(identity_map.__dict__),
        "reference": type(identity_map._wr),
        "of its objects": {type(state._instance_dict) for state in identity_map.all_states()},
        "objects know": {
            name for state in identity_map.all_states() for name in vars(state) if "trace" in name
        },
        "connections": [sorted(connection.__dict__) for connection in connections],
    }


def snapshot(*things: Any) -> dict[str, Any]:
    """All of SQLAlchemy that could be touched: its classes, and these factories, engines, sessions.

    Two of them are equal where nothing was changed between, or all of it was put back.
    """
    taken: dict[str, Any] = {
        "Session": _attributes(Session),
        "AsyncSession": _attributes(AsyncSession),
        "AsyncSessionTransaction": _attributes(AsyncSessionTransaction),
        "DetachedInstanceError": dict(vars(DetachedInstanceError)),
        "Session listeners": _listeners(Session, SessionEvents),
        "Engine": {"_has_events": Engine._has_events, **_listeners(Engine, ConnectionEvents)},
        "Dialect": {"_has_events": Dialect._has_events, **_listeners(Dialect, DialectEvents)},
        # Those of other libraries come and go in their own time.
        "threads": sorted(
            thread.name
            for thread in threading.enumerate()
            if thread.name.startswith("session_tracer")
        ),
    }
    for number, thing in enumerate(things):
        taken[f"{type(thing).__name__} {number}"] = _thing(thing)
    return dict(_flat("", taken))


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """One line for each thing, so that a difference is easily read."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(f"{path} > {key}" if path else str(key), inner)
    else:
        yield path, value


def _thing(thing: Any) -> Any:
    match thing:
        case sessionmaker():
            return {
                "kw": dict(thing.kw),
                "class": _attributes(thing.class_),
                "listeners": _listeners(thing.class_, SessionEvents),
            }
        case async_sessionmaker():
            return {"kw": dict(thing.kw), "class": thing.class_, **_attributes(thing.class_)}
        case scoped_session() | async_scoped_session():
            return {"factory": _thing(thing.session_factory), "attributes": set(vars(thing))}
        case AsyncEngine():
            return _thing(thing.sync_engine)
        case Engine():
            return {
                "engine": {name for name in vars(thing) if name != "dispatch"},
                "engine listeners": _listeners(thing, ConnectionEvents),
                "dialect": {name for name in vars(thing.dialect) if name != "dispatch"},
                "dialect has events": thing.dialect._has_events,
                "dialect listeners": _listeners(thing.dialect, DialectEvents),
                "pool listeners": _listeners(thing.pool, PoolEvents),
            }
        case Session():
            return _session(thing)
        case AsyncSession():
            return {"attributes": set(vars(thing)), "session": _session(thing.sync_session)}
        case type():
            return _attributes(thing)
    raise TypeError(thing)


class Own(Session):
    """An application's own session class."""

    def close(self) -> None:
        super().close()


class AsyncOwn(AsyncSession):
    """An application's own asynchronous one."""

    sync_session_class = Own


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path / 'library.db'}")
    with engine.begin() as connection:
        Base.metadata.create_all(connection)
    with Session(engine) as session:
        session.add_all(authors(3, books_each=1))
        session.commit()
    yield engine
    engine.dispose()


@pytest.fixture
async def async_engine(engine: Engine) -> AsyncIterator[AsyncEngine]:
    async_engine = create_async_engine(f"sqlite+aiosqlite:///{engine.url.database}")
    async with async_engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
    yield async_engine
    await async_engine.dispose()


# No two of them have the same name.
NUMBERS = itertools.count()


def everything_once(session: Session) -> None:
    """A bit of all that can happen to a session; it ends in a transaction."""
    found = session.scalars(select(Author)).all()
    _ = [author.books for author in found]
    with suppress(LookupError), session.begin_nested():
        session.add(Author(name="never"))
        session.flush()
        raise LookupError
    session.expire(found[0])
    _ = found[0].name
    session.expunge(found[1])
    session.merge(found[1])
    session.commit()
    with session.no_autoflush:
        session.add(Author(name=f"another author {next(NUMBERS)}"))
    session.flush()
    session.rollback()
    session.reset()
    with suppress(DetachedInstanceError):
        _ = found[2].books
    session.scalars(select(Author)).all()


def quiet(target: Any = None) -> Any:
    return instrument(target, exporter=Exporter(), statement_spans=True)


SYNC_TARGETS: dict[str, Callable[[sessionmaker[Any]], Any]] = {
    "factory": lambda maker: maker,
    "scoped": scoped_session,
    "class": lambda _: Own,
    "Session": lambda _: Session,
    "one session": lambda maker: maker(),
    "everything": lambda _: None,
}


@pytest.mark.parametrize("target", SYNC_TARGETS)
def test_nothing_stays_behind(engine: Engine, target: str) -> None:
    maker = sessionmaker(engine, class_=Own)
    meant = SYNC_TARGETS[target](maker)
    open_ = meant if isinstance(meant, Session) else maker()
    everything_once(open_)
    open_.close()
    before = snapshot(maker, engine, Own, open_)
    instrumentation = quiet(meant)
    during = maker()
    for session in (open_, during):
        everything_once(session)
    instrumentation.uninstrument()
    during.close()
    open_.close()
    assert snapshot(maker, engine, Own, open_) == before


@pytest.mark.parametrize("target", SYNC_TARGETS)
def test_sessions_in_a_transaction_are_as_they_would_be(engine: Engine, target: str) -> None:
    maker = sessionmaker(engine, class_=Own)
    untraced = maker()
    kept = untraced.scalars(select(Author)).all()
    expected = snapshot(untraced)
    meant = SYNC_TARGETS[target](maker)
    session = meant if isinstance(meant, Session) else maker()
    instrumentation = quiet(meant)
    kept_too = session.scalars(select(Author)).all()
    instrumentation.uninstrument()
    assert snapshot(session) == expected
    assert len(kept) == len(kept_too)
    session.close()
    untraced.close()


ASYNC_TARGETS: dict[str, Callable[[async_sessionmaker[Any]], Any]] = {
    "factory": lambda maker: maker,
    "scoped": lambda maker: async_scoped_session(maker, asyncio.current_task),
    "class": lambda _: AsyncOwn,
    "AsyncSession": lambda _: AsyncSession,
    "the Session class below": lambda _: Own,
    "one session": lambda maker: maker(),
    "everything": lambda _: None,
}


@pytest.mark.parametrize("target", ASYNC_TARGETS)
async def test_nothing_of_asyncio_stays_behind(async_engine: AsyncEngine, target: str) -> None:
    maker = async_sessionmaker(async_engine, class_=AsyncOwn)
    meant = ASYNC_TARGETS[target](maker)
    open_ = meant if isinstance(meant, AsyncSession) else maker()
    await open_.run_sync(everything_once)
    await open_.close()
    before = snapshot(maker, async_engine, Own, AsyncOwn, open_)
    instrumentation = quiet(meant)
    during = maker()
    for session in (open_, during):
        await session.run_sync(everything_once)
        await session.close()
    instrumentation.uninstrument()
    assert snapshot(maker, async_engine, Own, AsyncOwn, open_) == before


@pytest.mark.parametrize("target", ASYNC_TARGETS)
async def test_async_sessions_in_a_transaction_are_as_they_would_be(
    async_engine: AsyncEngine, target: str
) -> None:
    maker = async_sessionmaker(async_engine, class_=AsyncOwn)
    untraced = maker()
    kept = [(await untraced.scalars(select(Author))).all()]
    expected = snapshot(untraced)
    meant = ASYNC_TARGETS[target](maker)
    session = meant if isinstance(meant, AsyncSession) else maker()
    instrumentation = quiet(meant)
    kept.append((await session.scalars(select(Author))).all())
    instrumentation.uninstrument()
    assert snapshot(session) == expected
    await session.close()
    await untraced.close()
    assert len(kept[0]) == len(kept[1])


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_in_any_order(engine: Engine, order: Sequence[int]) -> None:
    maker = sessionmaker(engine, class_=Own)
    before = snapshot(maker, engine, Own)
    started = [quiet(maker), quiet(Own), quiet(Session), quiet(sessionmaker(engine))]
    session = maker()
    everything_once(session)
    for index in order:
        started[index].uninstrument()
        everything_once(session)
    session.close()
    assert snapshot(maker, engine, Own) == before


def test_uninstrument_without_a_target_ends_all(engine: Engine) -> None:
    maker = sessionmaker(engine, class_=Own)
    before = snapshot(maker, engine, Own)
    for target in (maker, Own, None):
        quiet(target)
    uninstrument()
    assert snapshot(maker, engine, Own) == before


def test_uninstrument_without_a_target_leaves_a_capture_alone(engine: Engine) -> None:
    maker = sessionmaker(engine)
    before = snapshot(maker, engine)
    with capture(maker) as captured:
        quiet(maker)
        uninstrument()
        with maker() as session:
            session.execute(text("SELECT 1"))
    assert outline(captured.facts)[-1] == "session close: closed"
    assert snapshot(maker, engine) == before


def test_a_second_time_changes_nothing(engine: Engine) -> None:
    maker = sessionmaker(engine)
    before = snapshot(maker, engine)
    instrumentation = quiet(maker)
    instrumentation.uninstrument()
    instrumentation.uninstrument()
    uninstrument(maker)
    assert snapshot(maker, engine) == before


def test_what_was_never_instrumented_is_not_touched(engine: Engine) -> None:
    maker, other = sessionmaker(engine), sessionmaker(engine)
    with quiet(maker):
        traced = snapshot(maker, engine)
        uninstrument(other)
        uninstrument(Session)
        assert snapshot(maker, engine) == traced


def test_an_instrumentation_ends_with_its_block_also_by_an_error(engine: Engine) -> None:
    maker = sessionmaker(engine)
    before = snapshot(maker, engine)
    with pytest.raises(LookupError), quiet(maker):
        raise LookupError
    assert snapshot(maker, engine) == before


def test_again_and_again_is_as_once(engine: Engine) -> None:
    maker = sessionmaker(engine)
    before = snapshot(maker, engine)
    for _ in range(3):
        with capture(maker) as captured, maker() as session:
            session.execute(text("SELECT 1"))
        assert outline(captured.facts) == [
            "session opened",
            "transaction began",
            "connection acquired",
            "SELECT",
            "connection released",
            "transaction closed",
            "session close: closed",
        ]
    assert snapshot(maker, engine) == before


# Other people's listeners.


class Calls(list[str]):
    """Listeners that note their own names."""

    def listener(self, name: str, result: Any = None) -> Callable[..., Any]:
        def listener(*arguments: Any) -> Any:
            self.append(name)
            return result

        return listener


def test_other_peoples_session_listeners_stay_and_still_fire(engine: Engine) -> None:
    maker = sessionmaker(engine)
    calls = Calls()
    first, second = calls.listener("first"), calls.listener("second")
    for name in ("after_begin", "before_flush", "do_orm_execute", "after_commit"):
        event.listen(maker, name, first)
    instrumentation = quiet(maker)
    for name in ("after_begin", "before_flush", "do_orm_execute", "after_commit"):
        event.listen(maker, name, second)

    def fired() -> list[str]:
        calls.clear()
        with maker() as session:
            session.scalars(select(Author)).all()
            session.add(Author(name=f"another author {next(NUMBERS)}"))
            session.commit()
        return list(calls)

    traced = fired()
    instrumentation.uninstrument()
    assert traced == fired() == ["first", "second"] * 4


def test_other_peoples_session_listeners_can_go_first(engine: Engine) -> None:
    maker = sessionmaker(engine)
    before = snapshot(maker, engine)
    theirs = Calls().listener("theirs")
    event.listen(maker, "after_begin", theirs)
    instrumentation = quiet(maker)
    event.remove(maker, "after_begin", theirs)
    instrumentation.uninstrument()
    assert snapshot(maker, engine) == before


CURSOR_EVENTS = ("before_cursor_execute", "after_cursor_execute")


@pytest.mark.parametrize("on", ["engine", "Engine class"])
def test_other_peoples_cursor_listeners_stay_and_still_fire(engine: Engine, on: str) -> None:
    maker = sessionmaker(engine)
    target: Any = engine if on == "engine" else Engine
    calls = Calls()
    listeners = [
        (name, calls.listener(f"{name} {turn}")) for turn in (1, 2) for name in CURSOR_EVENTS
    ]
    try:
        for name, listener in listeners[:2]:
            event.listen(target, name, listener)
        untraced = snapshot(maker, engine)
        instrumentation = quiet(maker)
        with maker() as session:
            session.execute(text("SELECT 1"))
        for name, listener in listeners[2:]:
            event.listen(target, name, listener)
        with maker() as session:
            session.execute(text("SELECT 2"))
        instrumentation.uninstrument()
        with maker() as session:
            session.execute(text("SELECT 3"))
        once = ["before_cursor_execute 1", "after_cursor_execute 1"]
        both = [f"{name} {turn}" for name in CURSOR_EVENTS for turn in (1, 2)]
        assert calls == [*once, *both, *both]
        for name, listener in listeners[2:]:
            event.remove(target, name, listener)
        assert snapshot(maker, engine) == untraced
    finally:
        for name, listener in listeners:
            if event.contains(target, name, listener):
                event.remove(target, name, listener)


def test_a_connection_in_use_to_whose_cursor_others_listen_is_as_it_would_be(
    engine: Engine,
) -> None:
    maker = sessionmaker(engine)
    event.listen(engine, "before_cursor_execute", lambda *_: None)
    with maker() as session:
        session.execute(text("SELECT 1"))
        expected = snapshot(engine, session)
    instrumentation = quiet(maker)
    with maker() as session:
        session.execute(text("SELECT 1"))
        instrumentation.uninstrument()
        assert snapshot(engine, session) == expected
        assert session.execute(text("SELECT 2")).scalar() == 2


@pytest.mark.parametrize("turn", ["before ours", "after ours"])
@pytest.mark.parametrize("handles", [False, True], ids=["looks on", "handles it"])
def test_other_peoples_dialect_listeners_stay_and_still_fire(
    engine: Engine, turn: str, handles: bool
) -> None:
    maker = sessionmaker(engine)
    calls = Calls()

    def do_execute(cursor: Any, statement: str, parameters: Any, context: Any) -> bool | None:
        calls.append(statement)
        if not handles:
            return None
        cursor.execute("SELECT 42")
        return True

    def asked() -> Any:
        with maker() as session:
            return session.execute(text("SELECT 1")).scalar()

    if turn == "before ours":
        event.listen(engine, "do_execute", do_execute)
    found = [snapshot(maker, engine)]
    instrumentation = quiet(maker)
    if turn == "after ours":
        asked()  # from now on we listen to the dialect
        event.listen(engine, "do_execute", do_execute)
    context = context_api.get_current()
    answers = [asked()]
    assert context_api.get_current() is context
    instrumentation.uninstrument()
    answers.append(asked())
    assert answers == [42, 42] if handles else [1, 1]
    assert calls == ["SELECT 1"] * 2
    if turn == "before ours":
        assert [snapshot(maker, engine)] == found


@pytest.mark.parametrize("turn", ["before ours", "after ours"])
def test_the_callers_context_survives_a_listener_that_handles_or_raises(
    engine: Engine, turn: str
) -> None:
    maker = sessionmaker(engine)

    def looks_on(*arguments: Any) -> None:
        """Makes the engine take its slower path."""

    def do_execute(cursor: Any, statement: str, parameters: Any, context: Any) -> bool | None:
        if "42" in statement:
            cursor.execute(statement)
            return True
        if "43" in statement:
            raise LookupError
        return None

    event.listen(engine, "before_cursor_execute", looks_on)
    if turn == "before ours":
        event.listen(engine, "do_execute", do_execute)
    exporter = Exporter(tracer_provider=TracerProvider(shutdown_on_exit=False))
    with instrument(maker, exporter=exporter), maker() as session:
        session.execute(text("SELECT 1"))
        if turn == "after ours":
            event.listen(engine, "do_execute", do_execute)
        before = context_api.get_current()
        seen = []
        for statement in ("SELECT 42", "SELECT 43", "SELECT 1"):
            with suppress(LookupError):
                session.execute(text(statement))
            seen.append(context_api.get_current() is before)
    assert seen == [True, True, True]


def test_the_callers_context_survives_a_cursor_listener_that_raises(engine: Engine) -> None:
    maker = sessionmaker(engine)

    def raises(*arguments: Any) -> None:
        if "42" in arguments[2]:
            raise LookupError

    event.listen(engine, "before_cursor_execute", raises)
    exporter = Exporter(tracer_provider=TracerProvider(shutdown_on_exit=False))
    before = context_api.get_current()
    with instrument(maker, exporter=exporter), maker() as session:
        for end in (session.rollback, session.close):
            session.execute(text("SELECT 1"))
            with suppress(LookupError):
                session.execute(text("SELECT 42"))
            assert context_api.get_current() is before
            end()
            assert context_api.get_current() is before


# Other people's patches.


def test_a_method_that_another_library_wrapped_later_stays_wrapped(engine: Engine) -> None:
    maker = sessionmaker(engine)
    before = snapshot(maker, engine)
    calls = Calls()
    instrumentation = quiet(maker)
    ours = maker.class_.close

    def close(self: Session) -> None:
        calls.append("theirs")
        ours(self)

    maker.class_.close = close  # type: ignore[method-assign] # as other people's tools do
    instrumentation.uninstrument()
    maker().close()
    with capture(maker) as captured, maker() as session:
        session.scalars(select(Author.id)).all()
    assert outline(captured.facts) == [
        "session opened",
        "transaction began",
        "connection acquired",
        "SELECT Author",
        "connection released",
        "transaction closed",
        "session close: closed",
    ]
    assert calls == ["theirs", "theirs"]
    assert maker.class_.close is close
    del maker.class_.close
    assert snapshot(maker, engine) == before


def test_a_wrapper_that_another_library_keeps_reports_nothing(engine: Engine) -> None:
    maker = sessionmaker(engine)
    instrumentation = quiet(maker)
    ours = maker.class_.expire_all

    def expire_all(self: Session) -> None:
        ours(self)

    maker.class_.expire_all = expire_all  # type: ignore[method-assign] # as other people's tools do
    instrumentation.uninstrument()
    with capture(maker) as captured, maker() as session:
        session.connection()
        session.expire_all()
    assert outline(captured.facts) == [
        "session opened",
        "transaction began",
        "connection acquired",
        "expired 0",
        "connection released",
        "transaction closed",
        "session close: closed",
    ]


@pytest.mark.parametrize("turn", ["before ours", "after ours"])
def test_another_librarys_patch_of_the_error_stays(engine: Engine, turn: str) -> None:
    maker = sessionmaker(engine)
    calls = Calls()
    found: Any = DetachedInstanceError.__init__

    def patch() -> Callable[..., None]:
        inner: Any = DetachedInstanceError.__init__

        def __init__(self: Any, *arguments: Any, **keywords: Any) -> None:
            calls.append("theirs")
            inner(self, *arguments, **keywords)

        DetachedInstanceError.__init__ = __init__  # type: ignore[method-assign] # as a tool would
        return __init__

    try:
        if turn == "before ours":
            theirs = patch()
        instrumentation = quiet(maker)
        if turn == "after ours":
            theirs = patch()
        DetachedInstanceError("while traced")
        instrumentation.uninstrument()
        assert DetachedInstanceError.__init__ is theirs
        assert DetachedInstanceError("afterwards").args == ("afterwards",)
        assert calls == ["theirs", "theirs"]
    finally:
        del DetachedInstanceError.__init__
    assert DetachedInstanceError.__init__ is found


# Methods as other people write them.


def passing_on(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def passed_on(*arguments: Any, **keywords: Any) -> Any:
        return method(*arguments, **keywords)

    return passed_on


class Decorated(Session):
    """A subclass whose methods went through a decorator that takes whatever comes."""

    @passing_on
    def __init__(self, bind: Any = None, *, tenant: str = "a", **keywords: Any) -> None:
        super().__init__(bind, **keywords)
        self.tenant = tenant

    @passing_on
    def merge(self, instance: Any, *, load: bool = True, options: Any = None) -> Any:
        return super().merge(instance, load=load, options=options)

    @passing_on
    def expire(self, instance: object, attribute_names: Any = None) -> None:
        super().expire(instance, attribute_names)


@pytest.mark.parametrize("traced", [False, True], ids=["untraced", "traced"])
def test_a_decorated_method_takes_what_it_took(engine: Engine, traced: bool) -> None:
    with capture(Decorated if traced else Own) as captured, Decorated(engine) as session:
        author = session.merge(Author(name="Ada"))
        session.flush()
        session.expire(author)
        assert (session.tenant, author.name) == ("a", "Ada")
    merged = [line for line in outline(captured.facts) if line in ("merged Author", "expired 1")]
    assert merged == (["merged Author", "expired 1"] if traced else [])


METHODS = (
    "__init__",
    "close",
    "reset",
    "invalidate",
    "expunge",
    "expunge_all",
    "expire",
    "expire_all",
    "merge",
)


def described(cls: type) -> list[Any]:
    methods = [getattr(cls, name) for name in METHODS]
    return [
        (
            inspect.signature(method),
            method.__doc__,
            method.__qualname__,
            method.__module__,
            getattr(method, "__wrapped__", None),
        )
        for method in methods
    ]


@pytest.mark.parametrize("cls", [Session, Own, Decorated])
def test_a_wrapped_method_describes_itself_as_the_one_it_wraps(cls: type[Session]) -> None:
    before = described(cls)
    with quiet(cls):
        assert described(cls) == before


def test_wrong_arguments_are_refused_in_the_same_words(engine: Engine) -> None:
    calls: list[Callable[[], object]] = [
        lambda: Session(engine, nonsense=True),  # type: ignore[call-arg] # the point of it
        lambda: Session(engine).close(1),  # type: ignore[call-arg] # the point of it
        lambda: Session(engine).merge(),  # type: ignore[call-arg] # the point of it
        lambda: Session(engine).merge(object()),
        lambda: Session(engine).expunge(object()),
        lambda: Session(engine).expire(object()),
        lambda: Session(engine, join_transaction_mode="nonsense"),  # type: ignore[arg-type] # so
    ]

    def refusals() -> list[tuple[type, str]]:
        refused = []
        for call in calls:
            try:
                call()
            except Exception as error:
                refused.append((type(error), re.sub("0x[0-9a-f]+", "0x", str(error))))
        assert len(refused) == len(calls)
        return refused

    untraced = refusals()
    with capture(Session) as captured:
        assert refusals() == untraced
    assert set(outline(captured.facts)) == {"session opened", "session collected: unused"}
    assert "session_tracer.errors" not in captured.metrics


def test_a_session_that_could_not_be_made_is_not_reported(engine: Engine) -> None:
    with capture(Session) as captured:
        with pytest.raises(TypeError):
            Session(engine, nonsense=True)  # type: ignore[call-arg] # the point of it
        with pytest.raises(ArgumentError):
            Session(engine, join_transaction_mode="nonsense")  # type: ignore[arg-type] # so
    assert captured.facts == []


def test_the_sessions_class_is_not_kept_alive(engine: Engine) -> None:
    """Not even where a session is open when its factory is uninstrumented."""
    factory = sessionmaker(engine)
    made = weakref.ref(factory.class_)
    session = factory()
    with instrument(factory, exporter=Exporter()):
        session.execute(text("SELECT 1"))
    session.close()
    del factory, session
    gc.collect()
    assert made() is None
