"""Stories of loops that commit, or make a savepoint, each time round."""

from __future__ import annotations

from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from session_tracer.testing import capture
from tests.library import Author, Book, authors
from tests.stories.findings.due import Due, assert_found
from tests.stories.lines import marked
from tests.twins import Twin, on_postgresql

if TYPE_CHECKING:
    from collections.abc import Callable


async def commit_each(twin: Twin, count: int) -> None:
    async with twin.session() as session:  # <- opened
        for author in authors(count):
            session.add(author)
            await session.commit()  # <- commits


async def commit_each_with_its_books(twin: Twin, count: int) -> None:
    async with twin.session() as session:  # <- opened
        for author in authors(count, books_each=2):
            session.add(author)
            await session.commit()  # <- commits


async def begin_a_block_for_each(twin: Twin, count: int) -> None:
    async with twin.session() as session:  # <- opened
        for author in authors(count):
            async with session.begin():  # <- commits
                session.add(author)


async def insert_each(twin: Twin, count: int) -> None:
    async with twin.session() as session:  # <- opened
        for number in range(count):
            await session.execute(insert(Author).values(name=f"author {number}"))
            await session.commit()  # <- commits


LOOPS: dict[Any, tuple[str | None, dict[str, Any]]] = {
    commit_each: ("Author", {"rows_per_commit": 1.0, "written": {"Author": 4}}),
    commit_each_with_its_books: (
        None,
        {"rows_per_commit": 3.0, "written": {"Author": 4, "Book": 8}},
    ),
    begin_a_block_for_each: ("Author", {"rows_per_commit": 1.0, "written": {"Author": 4}}),
    insert_each: ("Author", {"rows_per_commit": 1.0, "written": {"Author": 4}}),
}


@pytest.mark.parametrize("loop", LOOPS, ids=lambda story: story.__name__)
def test_a_loop_that_commits(twin: Twin, loop: Callable[[Twin, int], Any]) -> None:
    entity, evidence = LOOPS[loop]

    async def story() -> None:
        with capture(twin.factory, commits_from_one_site=4) as captured:
            await loop(twin, 6)
        assert_found(
            captured,
            Due(
                id="commit-in-loop",
                site=marked(loop, "<- commits"),
                opened=marked(loop, "<- opened"),
                remedy=f"{'await ' if twin.is_async else ''}session.commit()  "
                "# once after the loop, or once for each batch",
                entity=entity,
                count=4,
                evidence=evidence,
            ),
        )

    twin.run(story)


@pytest.mark.parametrize("loop", LOOPS, ids=lambda story: story.__name__)
def test_a_loop_that_ends_before_the_threshold(
    twin: Twin, loop: Callable[[Twin, int], Any]
) -> None:
    async def story() -> None:
        with capture(twin.factory, commits_from_one_site=4) as captured:
            await loop(twin, 3)
        assert_found(captured)

    twin.run(story)


async def commit_once(twin: Twin) -> None:
    async with twin.session() as session:
        session.add_all(authors(6))
        await session.commit()


async def commit_what_is_only_read(twin: Twin) -> None:
    async with twin.session() as session:
        for number in range(6):
            await session.scalar(select(Author).where(Author.id == number))
            await session.commit()


async def commit_nothing(twin: Twin) -> None:
    async with twin.session() as session:
        for _ in range(6):
            await session.commit()


async def commit_in_batches(twin: Twin) -> None:
    async with twin.session() as session:
        for number in range(6):
            session.add_all([Author(name=f"author {number}.{one}") for one in range(5)])
            await session.commit()


async def open_a_session_for_each(twin: Twin) -> None:
    for author in authors(6):
        async with twin.session() as session:
            session.add(author)
            await session.commit()


async def commit_at_several_lines(twin: Twin) -> None:
    async with twin.session() as session:
        session.add(Author(name="Ada"))
        await session.commit()
        session.add(Author(name="Grace"))
        await session.commit()
        session.add(Author(name="Mary"))
        await session.commit()
        session.add(Author(name="Jean"))
        await session.commit()


async def work_off_a_queue(twin: Twin) -> None:
    jobs: SimpleQueue[Author] = SimpleQueue()
    for author in authors(4):
        jobs.put(author)
    async with twin.session() as session:
        while not jobs.empty():
            session.add(jobs.get())
            await session.commit()


async def roll_back_each(twin: Twin) -> None:
    async with twin.session() as session:
        for author in authors(6):
            session.add(author)
            await session.flush()
            await session.rollback()


async def update_none(twin: Twin) -> None:
    async with twin.session() as session:
        for _ in range(6):
            await session.execute(update(Author).values(name="Ada").where(Author.id == 404))
            await session.execute(delete(Book).where(Book.id == 404))
            await session.commit()


GOOD = (
    commit_once,
    commit_what_is_only_read,
    commit_nothing,
    commit_in_batches,
    open_a_session_for_each,
    commit_at_several_lines,
    work_off_a_queue,
    roll_back_each,
    update_none,
)


@pytest.mark.parametrize("work", GOOD, ids=lambda story: story.__name__)
def test_commits_that_are_no_loop_of_small_ones(twin: Twin, work: Callable[[Twin], Any]) -> None:
    async def story() -> None:
        with capture(twin.factory, commits_from_one_site=4, batch_commit_objects=5) as captured:
            await work(twin)
        assert_found(captured)

    twin.run(story)


# Savepoints.


NAMES = ["Ada", "Grace", "Kurt", "Grace", "Alan", "Emmy"]


async def hire(session: Any, name: str) -> None:
    try:
        session.add(Author(name=name))
        await session.commit()  # <- commits
    except IntegrityError:
        await session.rollback()
        raise


async def hire_who_can_be(twin: Twin) -> list[str]:
    refused = []
    async with twin.session() as session:  # <- opened
        for name in NAMES:
            try:
                await hire(session, name)  # <- loops
            except IntegrityError:
                refused.append(name)
    return refused


async def hire_in_savepoints(twin: Twin) -> list[str]:
    refused = []
    async with twin.session() as session:
        for name in NAMES:
            try:
                async with session.begin_nested():
                    session.add(Author(name=name))
            except IntegrityError:
                refused.append(name)
        await session.commit()
    return refused


async def hire_until_one_is_refused(twin: Twin) -> None:
    async with twin.session() as session:
        for name in NAMES[:3]:
            try:
                await hire(session, name)
            except IntegrityError:
                break


def test_items_that_may_fail_are_kept_apart_by_savepoints(twin: Twin) -> None:
    """One commit after the loop alone would lose the items before the one that fails."""

    async def hired() -> list[str]:
        async with twin.session() as session:
            names = list(await session.scalars(select(Author.name).order_by(Author.id)))
            await session.execute(delete(Author))
            await session.commit()
        return names

    async def story() -> None:
        with capture(twin.factory, commits_from_one_site=3) as captured:
            assert await hire_who_can_be(twin) == ["Grace"]
        loop = marked(hire_who_can_be, "<- loops")
        (finding,) = captured.findings
        assert (finding.id, finding.site) == ("commit-in-loop", marked(hire, "<- commits"))
        assert finding.remedy == (
            f"{'async ' if twin.is_async else ''}with session.begin_nested():  # around each item, "
            "in place of its commit and any rollback; session.commit() once after the loop at "
            f"{loop}, or once for each batch"
        )
        written = await hired()
        with capture(twin.factory, commits_from_one_site=3) as captured:
            assert await hire_in_savepoints(twin) == ["Grace"]
        assert_found(captured)
        assert await hired() == written
        with capture(twin.factory, commits_from_one_site=3) as captured:
            await hire_until_one_is_refused(twin)
        (finding,) = captured.findings
        assert "begin_nested" not in finding.remedy

    twin.run(story)


async def keep(session: Any, name: str, *, commit: bool = True) -> None:
    session.add(Author(name=name))
    if commit:
        await session.commit()  # <- commits


async def keep_one_more(session: Any) -> None:
    await keep(session, "one more")


async def keep_all(twin: Twin) -> None:
    async with twin.session() as session:
        await keep(session, "Ada")
        await keep(session, "Grace")
        await keep_one_more(session)  # <- calls
        await keep(session, "Barbara")


async def keep_all_at_once(twin: Twin) -> None:
    async with twin.session() as session:
        await keep(session, "Ada at once", commit=False)
        await keep(session, "Grace at once", commit=False)
        await keep(session, "one more at once", commit=False)
        await keep(session, "Barbara at once", commit=False)
        await session.commit()


async def keep_each(twin: Twin) -> None:
    async with twin.session() as session:
        for name in ("Ada of all", "Grace of all", "Barbara of all"):
            await keep(session, name)  # <- loops


def test_calls_in_a_row_are_no_loop(twin: Twin) -> None:
    write = f"{'await ' if twin.is_async else ''}session.commit()  # once"

    async def story() -> None:
        with capture(twin.factory, commits_from_one_site=3) as captured:
            await keep_all(twin)
        (finding,) = captured.findings
        line, commits = marked(keep_all, "<- calls"), marked(keep, "<- commits")
        assert (finding.id, finding.site) == ("commit-in-loop", commits)
        after = f", after the last of the calls at {line}, and not at {commits}"
        assert finding.remedy == write + after
        assert finding.evidence["called_at"] == str(line)
        with capture(twin.factory, commits_from_one_site=3) as captured:
            await keep_all_at_once(twin)
        assert_found(captured)
        with capture(twin.factory, commits_from_one_site=3) as captured:
            await keep_each(twin)
        (finding,) = captured.findings
        loop = marked(keep_each, "<- loops")
        assert finding.remedy == f"{write} after the loop at {loop}, or once for each batch"
        assert "called_at" not in finding.evidence

    twin.run(story)


class RefusedError(Exception):
    """What the application raises itself, before it writes anything or in place of an error."""


async def hire_if_known(session: Any, name: str) -> None:
    if not name:
        raise RefusedError
    session.add(Author(name=name))
    await session.commit()


async def hire_or_refuse(session: Any, name: str) -> None:
    try:
        await hire_if_known(session, name)
    except IntegrityError as error:
        raise RefusedError from error


async def skip_refusals(session: Any, names: list[str]) -> None:
    for name in names:
        try:
            await hire_if_known(session, name)
        except RefusedError:
            continue


async def skip_refusals_and_leave_at_an_error(session: Any, names: list[str]) -> None:
    for name in names:
        try:
            await hire_if_known(session, name)
        except IntegrityError:
            break
        except RefusedError:
            continue


async def skip_refusals_in_a_block(session: Any, names: list[str]) -> None:
    try:
        for name in names:
            try:
                await hire_if_known(session, name)
            except RefusedError:
                continue
    except IntegrityError:
        await session.rollback()


async def roll_back_refusals(session: Any, names: list[str]) -> None:
    for name in names:
        try:
            await hire_if_known(session, name)
        except RefusedError:
            await session.rollback()


async def skip_what_a_helper_refuses(session: Any, names: list[str]) -> None:
    for name in names:
        try:
            await hire_or_refuse(session, name)
        except RefusedError:
            continue


async def skip_any_error(session: Any, names: list[str]) -> None:
    for name in names:
        try:
            await hire_if_known(session, name)
        except Exception:
            names = []


ONCE = (skip_refusals, skip_refusals_and_leave_at_an_error, skip_refusals_in_a_block)
APART = (roll_back_refusals, skip_what_a_helper_refuses, skip_any_error)


@pytest.mark.parametrize("loop", [*ONCE, *APART], ids=lambda story: story.__name__)
def test_savepoints_are_for_loops_that_go_on_after_a_commit_has_failed(
    twin: Twin, loop: Callable[[Any, list[str]], Any]
) -> None:
    async def once(session: Any, names: list[str]) -> None:
        session.add_all([Author(name=name) for name in names if name])
        await session.commit()

    async def apart(session: Any, names: list[str]) -> None:
        for name in names:
            async with session.begin_nested():
                session.add(Author(name=name))
        await session.commit()

    async def story() -> None:
        with capture(twin.factory, commits_from_one_site=3) as captured:
            async with twin.session() as session:
                await loop(session, ["Ada", "Grace", "Kurt"])
        (finding,) = captured.findings
        assert ("begin_nested" in finding.remedy) == (loop in APART)
        with capture(twin.factory, commits_from_one_site=2) as captured:
            async with twin.session() as session:
                await (apart if loop in APART else once)(session, ["Alan", "Emmy"])
        assert_found(captured)

    twin.run(story)


async def begin_nested_for_each(twin: Twin, count: int) -> None:
    async with twin.session() as session, session.begin():  # <- opened # <- began
        for author in authors(count):
            async with session.begin_nested():  # <- savepoint
                session.add(author)


def test_a_transaction_of_many_savepoints(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory, savepoints_per_transaction=4) as captured:
            await begin_nested_for_each(twin, 6)
        assert_found(
            captured,
            Due(
                id="savepoint-churn",
                site=marked(begin_nested_for_each, "<- savepoint"),
                opened=marked(begin_nested_for_each, "<- opened"),
                remedy=f"{'async with' if twin.is_async else 'with'} session.begin_nested():  "
                "# around the loop, or around each batch of it",
                count=4,
                evidence={
                    "from_one_site": 4,
                    "began_at": str(marked(begin_nested_for_each, "<- began")),
                },
            ),
        )

    twin.run(story)


async def roll_back_each_savepoint(twin: Twin, count: int) -> None:
    async with twin.session() as session, session.begin():
        for author in authors(count):
            with suppress(LookupError):
                async with session.begin_nested():
                    session.add(author)
                    raise LookupError


async def begin_nested_in_each_transaction(twin: Twin) -> None:
    async with twin.session() as session:
        for number in range(3):
            async with session.begin():
                for each in range(3):
                    async with session.begin_nested():
                        session.add(Author(name=f"another {number}.{each}"))


def test_savepoints_that_are_rolled_back_count_as_well(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory, savepoints_per_transaction=4) as captured:
            await roll_back_each_savepoint(twin, 3)
            assert_found(captured)
            await roll_back_each_savepoint(twin, 4)
        assert [finding.id for finding in captured.findings] == ["savepoint-churn"]

    twin.run(story)


def test_savepoints_below_the_threshold_in_each_transaction(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory, savepoints_per_transaction=4) as captured:
            await begin_nested_for_each(twin, 3)
            await begin_nested_in_each_transaction(twin)
        assert_found(captured)

    twin.run(story)


# Two phases.


async def commit_each_in_two_phases(twin: Twin, count: int) -> None:
    async with twin.session(twophase=True) as session:  # <- opened
        for author in authors(count):
            session.add(author)
            await session.commit()  # <- commits


@on_postgresql
def test_a_loop_that_commits_in_two_phases(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory, commits_from_one_site=4) as captured:
            await commit_each_in_two_phases(twin, 4)
        loop = commit_each_in_two_phases
        assert_found(
            captured,
            Due(
                id="commit-in-loop",
                site=marked(loop, "<- commits"),
                opened=marked(loop, "<- opened"),
                remedy=captured.findings[0].remedy,
                entity="Author",
                count=4,
            ),
        )

    twin.run(story)
