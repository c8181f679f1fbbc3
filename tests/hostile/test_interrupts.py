"""That an interrupt, or a lack of memory, amid our own code harms nothing.

A unit of work is run again and again, and each time the error is raised at another moment of ours.
The default run takes a sample; SESSION_TRACER_TEST_MOMENTS is how many moments it is to try (`all`
for each one, some minutes), SESSION_TRACER_TEST_SEED picks others.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import context as context_api
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import Engine, delete, event
from sqlalchemy.exc import ResourceClosedError
from sqlalchemy.orm import sessionmaker
from sqlalchemy.orm.session import SessionTransactionOrigin

from session_tracer import Exporter, instrument, live_sessions
from session_tracer.ledger import watchdog
from tests.hostile.interrupts import Moment, Strike
from tests.hostile.worlds import GOT, library, unit_of_work
from tests.library import Author
from tests.outline import outline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from session_tracer.facts import Fact

_SEED = int(os.environ.get("SESSION_TRACER_TEST_SEED", "4"))
_MOMENTS = os.environ.get("SESSION_TRACER_TEST_MOMENTS", "30")


def sample(moments: list[int]) -> list[int]:
    """Which of these moments are tried."""
    print(f"of {len(moments)} moments {_MOMENTS}, with the seed {_SEED}")
    if _MOMENTS == "all" or int(_MOMENTS) >= len(moments):
        return moments
    return sorted(random.Random(_SEED).sample(moments, int(_MOMENTS)))


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = library(tmp_path / "library.db")
    yield engine
    engine.dispose()


@contextmanager
def traced(maker: Any) -> Iterator[list[Fact]]:
    """Trace with all that can be told, and hear the facts."""
    told: list[Fact] = []
    exporter = Exporter(
        tracer_provider=TracerProvider(shutdown_on_exit=False),
        on_log=lambda event: None,
        on_session=lambda summary: None,
        on_fact=told.append,
    )
    instrumentation = instrument(maker, exporter=exporter, statement_spans=True, log_level="debug")
    try:
        yield told
    finally:
        # A lock that is still held would have this wait for ever.
        ending = threading.Thread(target=instrumentation.uninstrument, daemon=True)
        ending.start()
        ending.join(20)
        assert not ending.is_alive(), "a lock is still held"


def as_before(engine: Engine) -> list[str]:
    """What is not as it was before the unit of work, once nobody holds its objects any more."""
    gc.collect()
    watchdog.settle()  # what was lost is told of by a thread of its own
    wrong = []
    if engine.pool.checkedout():  # type: ignore[attr-defined] # a QueuePool
        wrong.append("a connection is not back in its pool")
    if live_sessions():
        wrong.append("a session is still live")
    with engine.begin() as connection:  # waits for whoever has the database locked
        connection.execute(delete(Author).where(Author.name.in_(["Ada", "Bea"])))
    return wrong


def is_interrupt(error: BaseException | None) -> bool:
    """Whether it is the interrupt, or what SQLAlchemy makes of one that strikes as a flush ends.

    Its transaction is closed by then, and cannot be rolled back: so it says, and the interrupt is
    the context of that. The same becomes of one that strikes in an application's own listener.
    """
    if isinstance(error, ResourceClosedError):
        return isinstance(error.__context__, KeyboardInterrupt)
    return isinstance(error, KeyboardInterrupt)


def test_an_interrupt_in_an_applications_own_listener_becomes_the_same(engine: Engine) -> None:
    maker = sessionmaker(engine)

    @event.listens_for(maker, "after_transaction_end")
    def interrupted(session: Any, ended: Any) -> None:
        if ended.origin is SessionTransactionOrigin.SUBTRANSACTION:
            raise KeyboardInterrupt

    with maker() as session:
        session.add(Author(name="Ada"))
        with pytest.raises(ResourceClosedError) as raised:
            session.flush()
    assert is_interrupt(raised.value)


def sweep(
    error: type[BaseException],
    engine: Engine,
    is_tried: Callable[[Moment, bool], bool],
    judge: Callable[[Any, Moment], Iterator[str]],
) -> list[str]:
    """Strike at each moment that is tried, and say what is wrong then or in the next session.

    `is_tried` is asked about a moment, and whether a context of ours is in force at it.
    """
    maker = sessionmaker(engine)
    wrong: list[str] = []
    before = context_api.get_current()
    with traced(maker) as told:
        unit_of_work(maker)
        story = outline(told)
        with Strike(error) as counted:
            unit_of_work(maker)
        tried = [
            number
            for number, moment in enumerate(counted.moments, 1)
            if is_tried(moment, moment.context is not before)
        ]
        for number in sample(tried):
            strike = Strike(error, number)
            got: Any = None
            try:
                with strike:
                    got = unit_of_work(maker)
            except BaseException as raised:
                got = raised
            if not strike.moments:
                continue  # this time there were fewer
            (moment,) = strike.moments
            found = list(judge(got, moment))
            del got
            if context_api.get_current() is not before:
                found.append("a context is left attached")
                context_api.attach(before)
            if not is_tried(moment, moment.context is not before):
                found.clear()  # this time it was another one
            found += as_before(engine)
            del told[:]
            if unit_of_work(maker) != GOT or outline(told) != story:
                found.append("the next session is another one")
            wrong += [f"{number}, {moment.where}: {what}" for what in found]
        # Another thread has states of its own, and waits for the same locks.
        del told[:]
        elsewhere = threading.Thread(target=unit_of_work, args=(maker,), daemon=True)
        elsewhere.start()
        elsewhere.join(20)
        if outline(told) != story:
            wrong.append("another thread's session is another one")
    return wrong


def _interrupted(got: Any, _: Moment) -> Iterator[str]:
    if not is_interrupt(got):
        yield f"the application got {got!r}"


def test_an_interrupt_reaches_the_application_and_harms_no_other_session(engine: Engine) -> None:
    wrong = sweep(KeyboardInterrupt, engine, lambda _, ours: not ours, _interrupted)
    assert not wrong, "\n".join(wrong)


def test_an_interrupt_while_our_context_is_in_force_leaves_the_callers(engine: Engine) -> None:
    wrong = sweep(KeyboardInterrupt, engine, lambda _, ours: ours, _interrupted)
    assert not wrong, "\n".join(wrong)


# Where SQLAlchemy calls one of our functions, nothing of ours can catch that there is no memory for
# it; nor could SQLAlchemy for its own. These are called next to that, outside of what catches.
_DOORS = 1
_NEXT_TO_THEM = 3


def _unharmed(got: Any, moment: Moment) -> Iterator[str]:
    if got != GOT:
        yield f"the application got {got!r} from a depth of {moment.depth}"


@pytest.fixture
def _unsaid(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "session_tracer")


@pytest.mark.usefixtures("_unsaid")
def test_a_lack_of_memory_of_ours_does_not_reach_the_application(engine: Engine) -> None:
    wrong = sweep(MemoryError, engine, lambda one, _: one.depth > _NEXT_TO_THEM, _unharmed)
    assert not wrong, "\n".join(wrong)


@pytest.mark.usefixtures("_unsaid")
def test_a_lack_of_memory_next_to_the_doors_does_not_reach_it_either(engine: Engine) -> None:
    wrong = sweep(
        MemoryError, engine, lambda one, _: _DOORS < one.depth <= _NEXT_TO_THEM, _unharmed
    )
    assert not wrong, "\n".join(wrong)
