"""Stories of tasks and threads that load attributes of objects of one session at a time."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, select, text

from session_tracer.testing import Captured, capture
from tests.good_code.silence import assert_silent, only_async, only_sync
from tests.library import Author, Book, authors, keep
from tests.stories.findings.due import Due, assert_found, until
from tests.stories.findings.gates import gate
from tests.stories.findings.mappings import Badge, Company, Employee, tables
from tests.stories.findings.remedies import pasted, to_write, use
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncSession

    from session_tracer import Finding
    from tests.twins import Twin

ONE_EACH = "async with SessionLocal() as session:  # one for each task"
OWN = "the attributes of an object can be loaded by its own session alone"
ALL = "with all that the tasks load"
ALL_OF_THREADS = "with all that the threads load"
REFRESH = 'await session.refresh(employee, ["badges", "company"])'
REFRESH_BOOKS = 'session.refresh(author, ["books"])'


def companies() -> list[Any]:
    return [Company(name="one of them") for _ in range(3)]


def employees() -> list[Any]:
    return [Employee(company=Company(name="one"), badges=[Badge()])]


async def the_only(session: AsyncSession) -> Employee:
    return (await session.scalars(select(Employee))).one()  # <- selected


async def both(employee: Employee) -> None:
    await asyncio.gather(  # <- gathers
        employee.awaitable_attrs.company, employee.awaitable_attrs.badges
    )


async def one(employee: Employee, attribute: str) -> None:
    await getattr(employee.awaitable_attrs, attribute)  # <- gathers


async def in_group(employee: Employee) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(one(employee, "company"))
        group.create_task(one(employee, "badges"))


@only_async
@pytest.mark.parametrize(("load", "line"), [(both, both), (in_group, one)])
def test_tasks_that_load_attributes_of_one_object(twin: Twin, load: Any, line: Any) -> None:
    async def story() -> None:
        async with tables(twin):
            await keep(twin, *employees())
            with capture(twin.factory) as captured:
                async with twin.session() as session:  # <- opened
                    await load(await the_only(session))
            options = "selectinload(Employee.badges), joinedload(Employee.company)"
            write = f"select(Employee).options({options})"
            assert_found(
                captured,
                Due(
                    id="concurrent-use",
                    site=marked(line, "<- gathers"),
                    opened=marked(story, "<- opened"),
                    remedy=f"{write} at {marked(the_only, '<- selected')}  # {ALL}",
                    entity="Employee",
                    evidence={
                        "why": OWN,
                        "loaded_at": str(marked(the_only, "<- selected")),
                        "attributes": ["Employee.badges", "Employee.company"],
                        "alternatives": [
                            f"{REFRESH}  # before the tasks begin, {ALL}",
                            "await Employee.badges and Employee.company one after the other",
                        ],
                    },
                ),
            )
            found = found_in(captured)

            with capture(twin.factory) as captured:
                async with twin.session() as session:
                    employee = (await session.scalars(pasted(to_write(found)))).one()
                    await load(employee)
                async with twin.session() as session:
                    employee = await the_only(session)
                    await pasted(REFRESH.removeprefix("await "), session=session, employee=employee)
                    await load(employee)
                async with twin.session() as session:
                    employee = await the_only(session)
                    await employee.awaitable_attrs.company
                    await employee.awaitable_attrs.badges
            assert_silent(captured, sessions=3)

    twin.run(story)


def found_in(captured: Captured) -> Finding:
    (found,) = captured.findings
    assert found.id == "concurrent-use"
    return found


@only_async
def test_an_attribute_of_each_of_many_objects(twin: Twin) -> None:
    async def read(session: AsyncSession) -> None:
        every = (await session.scalars(select(Company))).all()
        await asyncio.gather(*[one.awaitable_attrs.staff for one in every])

    async def story() -> None:
        async with tables(twin):
            await keep(twin, *companies())
            with capture(twin.factory) as captured:
                async with twin.session() as session:
                    await read(session)
            found = found_in(captured)
            assert (found.entity, found.attribute) == ("Company", "staff")
            assert to_write(found) == "select(Company).options(selectinload(Company.staff))"
            assert "attributes" not in found.evidence

            async with twin.session() as session:
                with capture(twin.factory) as captured:
                    every = (await session.scalars(pasted(to_write(found)))).all()
                    await asyncio.gather(*[one.awaitable_attrs.staff for one in every])
                    assert captured.findings == []

    twin.run(story)


@only_async
def test_attributes_that_a_commit_expired(twin: Twin) -> None:
    async def read(session: AsyncSession) -> None:
        every = (await session.scalars(select(Company))).all()
        await session.commit()
        await session.connection()
        await asyncio.gather(*[one.awaitable_attrs.name for one in every])

    async def story() -> None:
        async with tables(twin):
            await keep(twin, *companies())
            with capture(twin.factory) as captured:
                async with twin.session() as session:
                    await read(session)
            found = found_in(captured)
            assert found.remedy == "async_sessionmaker(expire_on_commit=False)"
            use(twin, found.remedy)
            with capture(twin.factory) as captured:
                async with twin.session() as session:
                    await read(session)
            assert_silent(captured, sessions=1)

    twin.run(story)


@only_async
def test_attributes_of_an_object_that_was_added(twin: Twin) -> None:
    async def story() -> None:
        async with tables(twin):
            with capture(twin.factory) as captured:
                async with twin.session() as session:
                    (employee,) = employees()
                    session.add(employee)
                    await session.flush()
                    session.expire(employee, ["company", "badges"])
                    await both(employee)
                    await session.rollback()
            remedy = found_in(captured).remedy
            assert remedy.startswith("await session.refresh(employee, [")
            assert remedy.endswith(f"])  # before the tasks begin, {ALL}")

    twin.run(story)


# Beside it: a session of its own is possible.


async def execute(session: AsyncSession) -> None:
    await session.execute(text("SELECT 2"))


@only_async
@pytest.mark.parametrize("is_own", [True, False], ids=["got itself", "given"])
def test_an_attribute_while_another_task_runs_a_statement(twin: Twin, is_own: bool) -> None:
    async def read(session: AsyncSession, given: Employee | None) -> None:
        # It may be in the identity map.
        employee: Any = given or await session.get_one(Employee, 1)
        is_begun.set()
        await goes_on.wait()
        await employee.awaitable_attrs.badges

    is_begun, goes_on = asyncio.Event(), asyncio.Event()

    async def story() -> None:
        async with tables(twin), gate(twin) as waits:
            await keep(twin, *employees())
            with capture(twin.factory) as captured:
                async with twin.session() as session:
                    employee = None if is_own else await the_only(session)
                    second = asyncio.create_task(read(session, employee))
                    await is_begun.wait()
                    first = asyncio.create_task(session.execute(waits.statement))
                    await waits.reached()
                    goes_on.set()
                    await until(lambda: captured.findings, is_async=True)
                    await waits.open()
                    await asyncio.gather(first, second)
            found = found_in(captured)
            if is_own:
                assert (found.remedy, found.entity, found.attribute) == (ONE_EACH, None, None)
                assert "alternatives" not in found.evidence
            else:
                assert to_write(found) == "select(Employee).options(selectinload(Employee.badges))"

    twin.run(story)


@only_async
def test_a_statement_while_another_task_loads_an_attribute(twin: Twin) -> None:
    async def story() -> None:
        async with tables(twin):
            await keep(twin, *employees())
            with capture(twin.factory) as captured:
                async with twin.session() as session:
                    employee = await the_only(session)
                    await asyncio.gather(employee.awaitable_attrs.badges, execute(session))
            assert found_in(captured).remedy == ONE_EACH

    twin.run(story)


# Threads.


@pytest.fixture
def slowly(twin: Twin) -> Callable[[Any, Any], None]:
    """Has two threads work at a time, the second one while the first is inside a statement."""
    is_inside, goes_on = threading.Event(), threading.Event()

    def wait(_: Any, statement: str, *__: Any) -> None:
        if threading.current_thread().name == "first":
            is_inside.set()
            goes_on.wait(20)

    def run(first: Any, second: Any) -> None:
        def last() -> None:
            try:
                second()
            finally:
                goes_on.set()

        event.listen(twin.engine, "do_execute", wait)
        threads = [
            threading.Thread(target=first, name="first"),
            threading.Thread(target=last, name="second"),
        ]
        threads[0].start()
        is_inside.wait(20)
        threads[1].start()
        for thread in threads:
            thread.join()
        event.remove(twin.engine, "do_execute", wait)

    return run


def books_of(author: Author) -> int:
    return len(author.books)  # <- read


@only_sync
def test_threads_that_load_attributes_of_objects_of_one_session(twin: Twin, slowly: Any) -> None:
    async def story() -> None:
        await keep(twin, *authors(2, books_each=1))
        with capture(twin.factory) as captured, twin.factory() as session:  # <- opened
            one, two = session.scalars(select(Author)).all()  # <- selected
            slowly(partial(books_of, one), partial(books_of, two))
        write = "select(Author).options(selectinload(Author.books))"
        assert_found(
            captured,
            Due(
                id="concurrent-use",
                site=marked(books_of, "<- read"),
                opened=marked(story, "<- opened"),
                remedy=f"{write} at {marked(story, '<- selected')}  # {ALL_OF_THREADS}",
                entity="Author",
                attribute="books",
                evidence={
                    "why": OWN,
                    "alternatives": [
                        f"{REFRESH_BOOKS}  # before the threads begin, {ALL_OF_THREADS}",
                        "read Author.books before the threads begin",
                    ],
                },
            ),
        )
        with capture(twin.factory) as captured, twin.factory() as session:
            one, two = session.scalars(pasted(write)).all()
            for author in (one, two):
                thread = threading.Thread(target=books_of, args=(author,))
                thread.start()
                thread.join()
        assert_silent(captured, sessions=1)

    twin.run(story)


@only_sync
def test_a_thread_that_runs_its_own_statements(twin: Twin, slowly: Any) -> None:
    async def story() -> None:
        await keep(twin, *authors(2, books_each=1))
        with capture(twin.factory) as captured, twin.factory() as session:
            one, _ = session.scalars(select(Author)).all()
            slowly(partial(books_of, one), partial(session.scalars, select(Book)))
        remedy = "with SessionLocal() as session:  # one for each thread"
        assert found_in(captured).remedy == remedy

    twin.run(story)
