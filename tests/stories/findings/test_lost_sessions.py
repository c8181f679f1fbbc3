"""Stories of sessions that nobody closes: what they lose is told as they are lost."""

from __future__ import annotations

import gc
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from session_tracer.testing import capture
from tests.good_code.silence import only_sync
from tests.library import Author, Book, authors, keep
from tests.stories.findings.due import Above, Due, assert_found
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.twins import Twin

# An asynchronous driver's connection cannot be given back from within the garbage collector:
# SQLAlchemy terminates it and warns.
pytestmark = pytest.mark.filterwarnings("ignore:The garbage collector is trying to clean up")


async def read(twin: Twin) -> None:
    session = twin.session()  # <- opened
    (await session.scalars(select(Author))).all()  # <- last


async def write(twin: Twin) -> None:
    session = twin.session()  # <- opened
    session.add_all([Author(name="Ada"), Author(name="Grace")])
    await session.flush()  # <- last # <- flushed


async def add(twin: Twin) -> None:
    session = twin.session()  # <- opened
    session.add(Author(name="Ada"))  # <- added # <- last


async def write_and_add(twin: Twin) -> None:
    session = twin.session()  # <- opened
    author = Author(name="Ada")
    session.add(author)
    await session.flush()  # <- last # <- flushed
    session.add(Book(title="Notes", author=author))  # <- added


async def write_in_a_savepoint(twin: Twin) -> None:
    session = twin.session()  # <- opened
    session.add(Author(name="Ada"))
    await session.run_sync(lambda plain: plain.begin_nested())
    session.add(Author(name="Grace"))
    await session.flush()  # <- last # <- flushed


async def write_after_a_commit(twin: Twin) -> None:
    session = twin.session()  # <- opened
    session.add(Author(name="Ada"))
    await session.commit()
    session.add(Author(name="Grace"))
    await session.flush()  # <- last # <- flushed


async def write_what_refers_to_its_session(twin: Twin) -> None:
    session = twin.session()  # <- opened
    author: Any = Author(name="Ada")
    author.session = session
    session.add(author)
    await session.flush()  # <- last # <- flushed


LOST: dict[Callable[[Twin], Any], tuple[str | None, int, dict[str, Any]]] = {
    read: (None, 1, {"flushed_new": None, "added": None}),
    write: ("Author", 2, {"flushed_new": {"Author": 2}, "added": None}),
    add: ("Author", 1, {"flushed_new": None, "added": {"Author": 1}}),
    write_and_add: (None, 2, {"flushed_new": {"Author": 1}, "added": {"Book": 1}}),
    write_in_a_savepoint: ("Author", 2, {"flushed_new": {"Author": 2}}),
    write_after_a_commit: ("Author", 1, {"flushed_new": {"Author": 1}}),
    write_what_refers_to_its_session: ("Author", 1, {"flushed_new": {"Author": 1}}),
}


def site_of(story: Callable[..., Any], mark: str) -> str | None:
    """The line so marked, as evidence names it, if there is one."""
    try:
        return str(marked(story, mark))
    except ValueError:
        return None


@pytest.mark.parametrize("lose", LOST, ids=lambda story: story.__name__)
def test_a_session_that_is_lost_during_a_transaction(
    twin: Twin, lose: Callable[[Twin], Any]
) -> None:
    entity, count, lost = LOST[lose]

    async def story() -> None:
        with capture(twin.factory) as captured:
            await lose(twin)
            gc.collect()
            assert [summary.outcome for summary in captured.sessions] == ["abandoned"]
        opened = marked(lose, "<- opened")
        assert_found(
            captured,
            Due(
                id="abandoned-session",
                site=opened,
                opened=opened,
                remedy=f"{'async with' if twin.is_async else 'with'} SessionLocal() as session:\n"
                "    ...",
                entity=entity,
                count=count,
                evidence={
                    "ending": "collected",
                    "age_ms": Above(0),
                    "held_ms": None if lose is add else Above(0),
                    "flushed_at": site_of(lose, "<- flushed"),
                    "added_at": site_of(lose, "<- added"),
                    "last_activity_at": site_of(lose, "<- last"),
                    **lost,
                },
            ),
        )

    twin.run(story)


def read_in_a_thread(session: Any) -> None:
    thread = threading.Thread(target=lambda: session.scalars(select(Author)).all())
    thread.start()
    thread.join()


@only_sync
def test_a_closed_session_that_another_thread_uses_again(twin: Twin) -> None:
    """A framework ends a dependency in one thread, and runs a background task in another one."""

    def respond() -> None:
        with twin.factory() as session:  # <- closed
            session.scalars(select(Author)).all()
        read_in_a_thread(session)

    async def story() -> None:
        with capture(twin.factory) as captured:
            respond()
            gc.collect()
        (finding,) = captured.findings
        assert finding.id == "abandoned-session"
        assert "used again after it was closed, was garbage collected" in finding.message
        assert finding.evidence["closed_at"] == site_of(respond, "<- closed")
        assert finding.remedy.endswith("  # around all uses of the session")

    twin.run(story)


async def read_by_a_registry(twin: Twin) -> Any:
    registry = twin.registry()
    await registry.scalars(select(Author))
    return registry


async def read_by_the_session_of_a_registry(twin: Twin) -> Any:
    registry = twin.registry()
    session = registry() if twin.is_async else registry.sync_session()
    read = session.scalars(select(Author))
    if twin.is_async:
        await read
    return registry


@pytest.mark.parametrize("read_by", [read_by_a_registry, read_by_the_session_of_a_registry])
def test_the_session_of_a_registry_is_to_be_removed(twin: Twin, read_by: Any) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await read_by(twin)
            gc.collect()
        (finding,) = captured.findings
        remove = f"{'await ' if twin.is_async else ''}Session.remove()"
        assert (finding.id, finding.remedy) == (
            "abandoned-session",
            f"{remove}  # at the end of each request or task",
        )
        with capture(twin.factory) as captured:
            registry = await read_by(twin)
            await registry.remove()
            del registry
            gc.collect()
        assert_found(captured)

    twin.run(story)


async def read_by_the_factory_of_a_registry(twin: Twin) -> None:
    registry = twin.registry()
    session = (registry if twin.is_async else registry.sync_session).session_factory()
    read = session.scalars(select(Author))
    if twin.is_async:
        await read


def test_what_the_factory_of_a_registry_makes_is_not_in_the_registry(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await read_by_the_factory_of_a_registry(twin)
            gc.collect()
        (finding,) = captured.findings
        assert finding.remedy.endswith("with SessionLocal() as session:\n    ...")

    twin.run(story)


async def commit(twin: Twin) -> None:
    session = twin.session()
    session.add(Author(name="Ada"))
    await session.commit()


async def roll_back(twin: Twin) -> None:
    session = twin.session()
    session.add(Author(name="Ada"))
    await session.flush()
    await session.rollback()


async def close(twin: Twin) -> None:
    session = twin.session()
    (await session.scalars(select(Author))).all()
    await session.close()


async def leave_the_block(twin: Twin) -> None:
    async with twin.session() as session:
        (await session.scalars(select(Author))).all()


async def open_only(twin: Twin) -> None:
    twin.session()


async def release_a_savepoint_and_commit(twin: Twin) -> None:
    session = twin.session()
    async with session.begin_nested():
        session.add(Author(name="Ada"))
    await session.commit()


@pytest.mark.parametrize(
    "lose",
    [commit, roll_back, close, leave_the_block, open_only, release_a_savepoint_and_commit],
    ids=lambda story: story.__name__,
)
def test_a_session_that_is_lost_with_no_transaction_open(
    twin: Twin, lose: Callable[[Twin], Any]
) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as captured:
            await lose(twin)
            gc.collect()
            assert len(captured.sessions) == 1
        assert_found(captured)

    twin.run(story)


def test_each_lost_session_is_reported(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            await read(twin)
            gc.collect()
            await read(twin)
            gc.collect()
            assert len(captured.sessions) == 2
        assert [finding.id for finding in captured.findings] == ["abandoned-session"] * 2

    twin.run(story)
