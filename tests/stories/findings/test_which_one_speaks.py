"""Stories of one mistake that could be called by several names, and gets one."""

from __future__ import annotations

import gc
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError, PendingRollbackError
from sqlalchemy.orm.exc import DetachedInstanceError

from session_tracer.testing import capture
from tests.good_code.silence import assert_silent, only_sync
from tests.library import Author, Book, authors, keep
from tests.stories import detached
from tests.stories.findings import shop
from tests.stories.findings.due import look_ahead
from tests.stories.findings.shop import Customer
from tests.stories.lines import marked

if TYPE_CHECKING:
    from session_tracer.testing import Captured
    from tests.twins import Twin

# An abandoned session's connection goes back to its pool by the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:The garbage collector is trying to clean up")


def ids(captured: Captured) -> list[str]:
    """The findings, in the order they were drawn; nothing of ours failed."""
    assert captured.metrics.get("session_tracer.errors", []) == []
    return [finding.id for finding in captured.findings]


# "abandoned-session tells what was lost; discarded-changes then stays silent."


@only_sync
@pytest.mark.parametrize("ending", ["collected", "closed"])
def test_lost_with_its_session_or_discarded_by_close(twin: Twin, ending: str) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            session = twin.factory()
            session.add(Author(name="lost"))
            session.flush()
            session.add(Author(name="never flushed"))
            if ending == "closed":
                session.close()
            del session
            gc.collect()
            assert len(captured.sessions) == 1
        (finding,) = captured.findings
        assert ids(captured) == [
            {"collected": "abandoned-session", "closed": "discarded-changes"}[ending]
        ]
        assert finding.evidence["flushed_new"] == {"Author": 1}

    twin.run(story)


# "A live suspicion escalates and is not said in parallel."


PATIENCE: dict[str, Any] = {
    "idle_in_transaction_seconds": 10,
    "long_transaction_seconds": 20,
    "leak_after_seconds": 30,
}


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        ((9,), []),
        ((11,), ["idle-in-transaction"]),
        ((11, 21), ["idle-in-transaction"]),
        ((31,), ["leaked-session"]),
        ((31, 32, 61), ["leaked-session"]),
        ((11, 31), ["idle-in-transaction", "leaked-session"]),
        ((11, 21, 31, 61), ["idle-in-transaction", "leaked-session"]),
    ],
)
def test_a_session_that_waits(twin: Twin, seconds: tuple[int, ...], said: list[str]) -> None:
    async def story() -> None:
        with capture(twin.factory, **PATIENCE) as captured:
            async with twin.session() as session:
                await session.connection()
                for later in seconds:
                    look_ahead(later)
        assert ids(captured) == said
        if len(said) == 2:
            assert captured.findings[1].evidence["earlier"] == ["idle-in-transaction"]
        elif said == ["leaked-session"]:
            assert "earlier" not in captured.findings[0].evidence

    twin.run(story)


# "pending-rollback follows the failed-flush it refers to; both are said, at their own lines."


async def use_without_a_rollback(twin: Twin) -> None:
    async with twin.session() as session:
        session.add_all([Author(name="twice"), Author(name="twice")])
        with suppress(IntegrityError):
            await session.flush()  # <- fails
        for _ in range(3):
            with suppress(PendingRollbackError):
                await session.scalars(select(Author))  # <- uses
        await session.rollback()


async def roll_back_at_once(twin: Twin) -> None:
    async with twin.session() as session:
        session.add_all([Author(name="twice"), Author(name="twice")])
        with suppress(IntegrityError):
            await session.flush()  # <- fails
        await session.rollback()
        await session.scalars(select(Author))


def test_a_failure_and_the_use_after_it(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await use_without_a_rollback(twin)
        assert ids(captured) == ["failed-flush", "pending-rollback"]
        failed, pending = captured.findings
        assert failed.site == marked(use_without_a_rollback, "<- fails")
        assert pending.site == marked(use_without_a_rollback, "<- uses")
        assert pending.evidence["failed_at"] == str(failed.site)

    twin.run(story)


def test_a_failure_that_is_rolled_back(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await roll_back_at_once(twin)
        assert ids(captured) == []

    twin.run(story)


# "reload-after-commit is about expired attributes, n-plus-one about relationships and deferred
# columns never loaded; an expired relationship read in a loop is reload-after-commit if a commit
# of the same scope expired it."


READS: dict[str, tuple[Any, bool, list[str]]] = {
    "columns after a commit": (lambda author: author.name, True, ["reload-after-commit"]),
    "collections after a commit": (lambda author: author.books, True, ["reload-after-commit"]),
    "both after a commit": (
        lambda author: (author.name, author.books),
        True,
        ["reload-after-commit"],
    ),
    "collections": (lambda author: author.books, False, ["n-plus-one"]),
    "deferred columns": (lambda author: author.biography, False, ["n-plus-one"]),
    "columns": (lambda author: author.name, False, []),
}


@pytest.mark.parametrize("what", READS)
def test_what_is_loaded_one_by_one(twin: Twin, what: str) -> None:
    read, commits, said = READS[what]

    async def story() -> None:
        await keep(twin, *authors(8, books_each=1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                found = (await session.scalars(select(Author))).all()
                if commits:
                    await session.commit()
                await session.run_sync(lambda _: [read(author) for author in found])
        assert ids(captured) == said

    twin.run(story)


def test_what_a_flush_expired_no_commit_did(twin: Twin) -> None:
    async def change(session: Any) -> None:
        for customer in (await session.scalars(select(Customer))).all():
            customer.name += "!"
        await session.flush()

    async def story() -> None:
        async with shop.opened(twin):
            await keep(twin, *[Customer(name=f"customer {n}") for n in range(8)])  # type: ignore[arg-type] # mapped with another base
            with capture(twin.factory) as captured:
                async with twin.session() as session:
                    await session.scalars(select(Customer))
                    await session.commit()
                    found = (await session.scalars(select(Customer))).all()
                    await change(session)
                    await session.run_sync(lambda _: [one.changed_at for one in found])
                    await session.rollback()
        assert ids(captured) == []
        assert captured.sessions[0].lazy_loads == {"expired": 9}

    twin.run(story)


# "get-in-loop counts loads that reach the database for different keys; the same SELECT with the
# same parameters is repeated-select; a get served by the identity map is nothing."


KEYS: dict[str, tuple[list[int], bool, list[str]]] = {
    "different keys": (list(range(1, 13)), False, ["get-in-loop"]),
    "one key that is not there": ([99] * 12, False, ["repeated-select"]),
    "keys that are held": (list(range(1, 13)), True, []),
}


@pytest.mark.parametrize("what", KEYS)
def test_what_is_looked_up_one_by_one(twin: Twin, what: str) -> None:
    keys, held, said = KEYS[what]

    async def story() -> None:
        await keep(twin, *authors(12))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                kept = (await session.scalars(select(Author))).all() if held else []
                for key in keys:
                    kept.append(await session.get(Author, key))
        assert ids(captured) == said

    twin.run(story)


# "nested-sessions and split-writes are different harms and may both be said."


async def write_beside(twin: Twin) -> None:
    async with twin.session() as outer:
        outer.add(Author(name="outer"))
        await outer.flush()
        async with twin.session() as inner:
            (await inner.scalars(select(Book))).all()  # <- nests
            await inner.rollback()
            await outer.commit()
            inner.add(Author(name="inner"))
            await inner.commit()  # <- splits


def test_two_sessions_side_by_side(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await write_beside(twin)
        assert [(one.id, one.site) for one in captured.findings] == [
            ("nested-sessions", marked(write_beside, "<- nests")),
            ("split-writes", marked(write_beside, "<- splits")),
        ]
        assert ids(captured)

    twin.run(story)


# One mistake, one finding.


async def read_too_late(twin: Twin) -> None:
    async with twin.session() as session:
        found = (await session.scalars(select(Author))).all()
        await session.commit()
    for author in found:
        with suppress(DetachedInstanceError):
            detached.read_name(author)


def test_a_detached_object_that_a_commit_expired_is_no_reload(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(8))
        with capture(twin.factory) as captured:
            await read_too_late(twin)
        assert set(ids(captured)) == {"detached-lazy-load"}

    twin.run(story)


async def commit_twice_the_same(twin: Twin) -> None:
    async with twin.session() as session:
        session.add_all([Author(name="twice"), Author(name="twice")])
        await session.commit()


def test_a_failed_commit_is_one_failure(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured, suppress(Exception):
            await commit_twice_the_same(twin)
        assert ids(captured) == ["failed-flush"]

    twin.run(story)


def test_no_mistake_is_no_finding(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(8, books_each=1))
        with capture(twin.factory, **PATIENCE) as captured:
            async with twin.session() as session:
                (await session.scalars(select(Author))).all()
                session.add(Author(name="one more"))
                await session.commit()
                look_ahead(9)
        assert_silent(captured, sessions=1)

    twin.run(story)
