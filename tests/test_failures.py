"""Tests how errors are observed: invisibly, and restored afterwards."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import exc, select
from sqlalchemy.orm import sessionmaker
from sqlalchemy.orm.exc import DetachedInstanceError

from session_tracer import Exporter, instrument
from session_tracer.hooks import error_frames
from session_tracer.hooks.errors import see
from session_tracer.ledger import object_counter, registry
from session_tracer.testing import Captured, capture
from tests.library import Author, Base, authors
from tests.mistakes import (
    MISTAKES,
    Places,
    Thing,
    crossed,
    described,
    detached,
    expired,
    raised,
    waiting,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import FrameType

SEEN = (DetachedInstanceError, exc.InvalidRequestError, exc.TimeoutError)
NEVER_AWAITED = "ignore:coroutine '.*' was never awaited"
pytestmark = pytest.mark.filterwarnings(NEVER_AWAITED)


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Places]:
    places = Places(tmp_path / "library.db")
    Base.metadata.create_all(places.engine)
    with places.maker() as session:
        session.add_all(authors(2, books_each=2))
        session.commit()
    yield places
    places.engine.dispose()


def errors(captured: Captured) -> dict[str, int]:
    """What is counted in `session_tracer.errors`, by where."""
    return {
        point.attributes["where"]: point.value
        for point in captured.metrics.get("session_tracer.errors", [])
    }


# The application's errors.


@pytest.mark.parametrize("mistake", MISTAKES)
def test_an_error_is_what_it_would_be(places: Places, mistake: str) -> None:
    untraced, _ = MISTAKES[mistake](places)
    with capture(places.maker, statement_spans=True) as captured:
        traced, _ = MISTAKES[mistake](places)
    assert described(traced) == described(untraced)
    assert traced.__notes__ == untraced.__notes__
    assert errors(captured) == {}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_an_error_is_pickled_and_copied_as_it_would_be(places: Places, mistake: str) -> None:
    def again(error: BaseException) -> list[Any]:
        error = error.with_traceback(None)
        error.__context__ = error.__cause__ = None
        try:
            made = [pickle.loads(pickle.dumps(error)), copy.copy(error)]
        except Exception as refused:
            return [repr(refused)]
        return [described(one) for one in made]

    untraced = again(MISTAKES[mistake](places)[0])
    with capture(places.maker):
        traced = again(MISTAKES[mistake](places)[0])
        between = again(MISTAKES[mistake](places)[0])
    assert traced == between == untraced


@pytest.mark.parametrize("mistake", MISTAKES)
def test_nothing_lives_longer_than_it_would(places: Places, mistake: str) -> None:
    MISTAKES[mistake](places)
    gc.collect()
    gc.disable()
    try:
        _, untraced = MISTAKES[mistake](places)
        gc.collect()
        with capture(places.maker):
            _, traced = MISTAKES[mistake](places)
    finally:
        gc.enable()
    assert traced == untraced


async def read_too_early(maker: Any, read: Callable[[Any], object]) -> tuple[Any, list[bool]]:
    thing = Thing()
    let_go: list[Any] = [weakref.ref(thing)]
    async with maker() as session:
        author: Any = (await session.scalars(select(Author))).first()
        let_go += [weakref.ref(session), weakref.ref(author)]
        error = raised(exc.SQLAlchemyError, lambda: read(author))
        thing = author = None  # type: ignore[assignment] # is let go of
        alive = [let_go[0]() is not None]
    session = None
    gc.collect()  # SQLAlchemy's asyncio leaves cycles of its own
    return error, [*alive, *(one() is not None for one in let_go)]


READS: dict[str, Callable[[Any], object]] = {
    "a collection": lambda author: author.books,
    "a deferred column": lambda author: author.biography,
    "a dynamic relationship": lambda author: author.letters.all(),
}


@pytest.mark.parametrize("what", READS)
async def test_an_attribute_that_is_read_too_early(places: Places, what: str) -> None:
    async with places.asynchronous() as maker:
        untraced, lives_untraced = await read_too_early(maker, READS[what])
        with capture(maker) as captured:
            traced, lives = await read_too_early(maker, READS[what])
        assert described(traced) == described(untraced)
        assert traced.__notes__ == untraced.__notes__
        assert lives == lives_untraced == [False] * 4
        assert [finding.id for finding in captured.findings] == ["implicit-async-io"]
        assert errors(captured) == {}


# A function that goes on for ever: until Python 3.13, whoever asks a frame for its variables has it
# keep what they were.


def test_a_function_that_goes_on_keeps_nothing_of_a_detached_load(places: Places) -> None:
    with capture(places.maker) as captured:
        with places.maker() as session:
            author = session.scalars(select(Author)).first()
            assert author is not None
            session.commit()
        thing: Thing | None = Thing()
        lives = weakref.ref(thing)
        for name in ("name", "books"):
            with suppress(DetachedInstanceError):
                getattr(author, name)
        thing = None
        assert lives() is None
    assert len(captured.findings) == 2


def test_a_function_that_goes_on_keeps_nothing_of_a_refused_use(places: Places) -> None:
    with capture(places.maker) as captured, places.maker() as first, places.maker() as second:
        author = first.scalars(select(Author)).first()
        thing: Thing | None = Thing()
        lives = weakref.ref(thing)
        with suppress(exc.InvalidRequestError):
            second.add(author)
        with suppress(exc.TimeoutError):
            second.connection()
        thing = None
        assert lives() is None
    assert [finding.id for finding in captured.findings] == ["crossed-sessions", "pool-exhausted"]


async def test_a_coroutine_that_goes_on_keeps_nothing_of_what_it_read(places: Places) -> None:
    async with places.asynchronous() as maker:
        with capture(maker) as captured:
            async with maker() as session:
                author: Any = (await session.scalars(select(Author))).first()
                thing: Thing | None = Thing()
                lives = weakref.ref(thing)
                with suppress(exc.MissingGreenlet, exc.StatementError):
                    _ = author.books
                thing = None
                assert lives() is None
    assert [finding.id for finding in captured.findings] == ["implicit-async-io"]


# Errors that do not concern session_tracer.


class OwnError(exc.InvalidRequestError):
    """An application's own, with an argument of its own."""

    def __init__(self, order: int) -> None:
        super().__init__(f"order {order}")
        self.order = order


class Made:
    """An application's own code, whose names are those that SQLAlchemy uses."""

    def __init__(self, session: Any, state: Any) -> None:
        self.session = session
        self.state = state
        self.key = "books"

    def flush(self) -> None:
        state = self.state
        assert state is not None
        raise exc.InvalidRequestError("Session is already flushing")

    def _before_attach(self, state: Any) -> None:
        raise exc.InvalidRequestError("already attached")

    def _raise_for_prerequisite_state(self) -> None:
        raise exc.PendingRollbackError("pending")

    def missing(self, state: Any) -> None:
        raise exc.MissingGreenlet("missing")

    def timeout(self) -> None:
        raise exc.TimeoutError("timeout")

    def detached(self, state: Any) -> None:
        raise DetachedInstanceError("detached")

    def illegal(self) -> None:
        raise exc.IllegalStateChangeError("illegal", code="isce")


def test_errors_that_the_application_makes_itself(places: Places) -> None:
    with capture(places.maker) as captured, places.maker() as session:
        author = session.scalars(select(Author)).first()
        state = author.__dict__["_sa_instance_state"]
        made = Made(session, state)
        for refused in (
            made.flush,
            lambda: made._before_attach(state),
            made._raise_for_prerequisite_state,
            lambda: made.missing(state),
            made.timeout,
            lambda: made.detached(state),
            made.illegal,
        ):
            with pytest.raises(exc.SQLAlchemyError):
                refused()
        with pytest.raises(OwnError, match="order 7") as caught:
            raise OwnError(7)
        assert (caught.value.order, caught.value.code) == (7, None)
        assert exc.InvalidRequestError("one", code="isce").code == "isce"
        assert exc.InvalidRequestError().args == ()
    assert (captured.findings, errors(captured)) == ([], {})


# Failures of session_tracer.


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("a failure of session_tracer")

    for name in ("is_sqlalchemys", "session_near", "attribute_read", "detached_read"):
        monkeypatch.setattr(error_frames, name, fail)


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.usefixtures("faulty")
def test_a_fault_of_ours_does_not_reach_the_application(places: Places, mistake: str) -> None:
    untraced, _ = MISTAKES[mistake](places)
    with capture(places.maker):
        traced, _ = MISTAKES[mistake](places)
    assert described(traced) == described(untraced)


def test_a_fault_of_ours_is_counted(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("a failure of session_tracer")

    monkeypatch.setattr(object_counter, "expiry_of", fail)
    monkeypatch.setattr(registry, "holders_of", fail)
    with capture(places.maker) as captured:
        expired(places)
        expired(places)
        waiting(places)
    assert captured.findings == []
    assert errors(captured) == {"failures": 3}


# What is put back.


def contents() -> list[list[tuple[str, int]]]:
    """What the classes of errors hold, in order, each by its identity."""
    return [
        [(name, id(value)) for name, value in vars(error).items() if name != "__doc__"]
        for error in (*SEEN, exc.SQLAlchemyError, exc.MissingGreenlet, exc.PendingRollbackError)
    ]


def quiet(target: Any = None) -> Any:
    return instrument(target, exporter=Exporter())


def test_the_errors_are_put_back_exactly(places: Places) -> None:
    before = contents()
    with quiet(places.maker), capture(places.maker):
        assert all("__init__" in vars(error) for error in SEEN)
        assert contents() != before
    assert contents() == before
    assert not any("__init__" in vars(error) for error in SEEN)


def test_the_errors_are_seen_until_the_last_one_is_gone(places: Places) -> None:
    first = quiet(places.maker)
    second = quiet(sessionmaker(places.engine))
    first.uninstrument()
    assert all("__init__" in vars(error) for error in SEEN)
    second.uninstrument()
    assert not any("__init__" in vars(error) for error in SEEN)


def test_an_error_is_reported_once_however_often_it_is_instrumented(places: Places) -> None:
    with quiet(), quiet(places.maker), capture(places.maker) as captured, capture() as all_told:
        detached(places)
    assert [len(one.findings) for one in (captured, all_told)] == [1, 1]


@pytest.mark.parametrize("error", SEEN)
def test_another_librarys_patch_stays_and_is_passed_through(places: Places, error: Any) -> None:
    calls: list[tuple[Any, ...]] = []
    instrumentation = quiet(places.maker)
    ours = error.__init__

    def theirs(self: Any, *arguments: Any, **keywords: Any) -> None:
        calls.append(arguments)
        ours(self, *arguments, **keywords)

    error.__init__ = theirs
    try:
        instrumentation.uninstrument()
        assert error.__init__ is theirs
        assert error("afterwards").args == ("afterwards",)
        # The error is reported once, although the first wrapper is inside the other library's.
        with capture(places.maker) as captured:
            detached(places)
            crossed(places)
            waiting(places)
        assert error.__init__ is theirs
        ids = ["detached-lazy-load", "crossed-sessions", "pool-exhausted"]
        assert [finding.id for finding in captured.findings] == ids
        assert calls
    finally:
        del error.__init__


def test_after_the_end_nothing_is_seen(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def record(error: Any, frame: FrameType) -> None:
        seen.append(type(error).__name__)

    end = see(exc.TimeoutError, record)
    wrapper: Any = exc.TimeoutError.__init__
    exc.TimeoutError("while it is seen")
    end()
    exc.TimeoutError("after that")
    error = exc.TimeoutError.__new__(exc.TimeoutError)
    wrapper(error, "by code that kept it")
    assert error.args == ("by code that kept it",)
    assert seen == ["TimeoutError"]


def test_a_session_that_is_no_longer_traced_is_not_reported(places: Places) -> None:
    with ExitStack() as stack:
        captured = stack.enter_context(capture(places.maker))
        with places.maker() as session:
            author = session.scalars(select(Author)).first()
            assert author is not None
        stack.close()
        with capture(sessionmaker(places.engine)), pytest.raises(DetachedInstanceError):
            _ = author.books
    assert (captured.findings, errors(captured)) == ([], {})
