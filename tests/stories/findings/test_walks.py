"""Stories of SELECTs whose key is in the row that the SELECT before has read."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import inspect, select
from sqlalchemy.orm import aliased

from session_tracer.testing import capture
from tests.stories.findings.mappings import Manager, Part, Report, tables
from tests.stories.findings.reading import tell
from tests.stories.findings.remedies import pasted, to_write
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.orm import Session

    from tests.twins import Twin

LAST = 12
RECURSIVE = (
    "read the whole tree with one recursive CTE: select(Part).where(...).cte(recursive=True)"
)


@asynccontextmanager
async def chain(twin: Twin) -> AsyncIterator[None]:
    """Twelve parts, each a part of the one before."""
    async with tables(twin):
        async with twin.session() as session:
            session.add_all(Part(id=key, whole_id=key - 1 or None) for key in range(1, LAST + 1))
            await session.commit()
        yield


def up_by_get(session: Session) -> list[int]:
    part, found = session.get(Part, LAST), []
    while part is not None and part.whole_id is not None:
        part = session.get(Part, part.whole_id)  # <- asked
        found.append(part.id if part else 0)
    return found


def of_whole(session: Session, key: int) -> list[Part]:
    return list(session.scalars(select(Part).where(Part.whole_id == key)))  # <- asked


def down_by_query(session: Session) -> list[int]:
    found, level = [], of_whole(session, 1)
    while level:
        found += [part.id for part in level]
        level = of_whole(session, level[0].id)  # <- level
    return found


def down_by_recursion(session: Session, key: int = 1) -> list[int]:
    found: list[int] = []
    for part in of_whole(session, key):
        found += [part.id, *down_by_recursion(session, part.id)]  # <- recursion
    return found


# The finding, the line that asks, and the one that loops if it is another.
WALKS: dict[Any, tuple[str, Any, str]] = {
    up_by_get: ("get-in-loop", up_by_get, ""),
    down_by_query: ("query-in-loop", of_whole, "<- level"),
    down_by_recursion: ("query-in-loop", of_whole, "<- recursion"),
}


@pytest.mark.parametrize("walk", WALKS)
def test_a_walk_of_a_tree(twin: Twin, walk: Any) -> None:
    id_, asking, loop = WALKS[walk]
    instead = f"  # in place of the loop at {marked(walk, loop)}" if loop else ""

    async def story() -> None:
        async with chain(twin):
            settings = {"gets_from_one_site": 3, "queries_from_one_site": 3}
            (finding,) = (await tell(twin, walk, **settings)).findings
            assert (finding.id, finding.remedy) == (id_, RECURSIVE + instead)
            assert finding.site == marked(asking, "<- asked")

    twin.run(story)


def test_one_recursive_select_reads_the_tree(twin: Twin) -> None:
    async def story() -> None:
        tree = select(Part).where(Part.id == 1).cte(recursive=True)
        tree = tree.union_all(select(Part).join(tree, Part.whole_id == tree.c.id))
        async with chain(twin), twin.session() as session:
            with capture(twin.factory, queries_from_one_site=2) as captured:
                rows = await session.scalars(select(aliased(Part, tree)))
                assert len(rows.all()) == LAST
            assert captured.findings == []

    twin.run(story)


# Near-misses: nothing replaces the first ones, and the keys of the others are there before.


def by_level(session: Session) -> None:
    keys = [1]
    while keys:
        wholes = select(Part.id).where(Part.whole_id.in_([*keys, 0][: 1 if keys[0] > 3 else 2]))
        keys = list(session.scalars(wholes))


def by_level_of_one(session: Session) -> None:
    keys = [1]
    while keys:
        keys = list(session.scalars(select(Part.id).where(Part.whole_id.in_(keys))))


def by_counted_levels(session: Session) -> None:
    key = 1
    for _ in range(LAST):
        reports = list(session.scalars(select(Report).where(Report.manager_id == key)))
        key = max((report.id for report in reports), default=key + 1)


def in_chunks_of_one(session: Session) -> None:
    keys = list(range(1, LAST))
    for start in range(0, len(keys), 1):
        session.scalars(select(Part).where(Part.id.in_(keys[start : start + 1]))).all()


def along_a_list_of_no_tree(session: Session) -> None:
    key = 1
    while key < LAST:
        session.scalars(select(Report).where(Report.manager_id == key)).all()
        key += 1


def one_after_the_other(session: Session) -> None:
    def get(key: int) -> Any:
        return session.get(Part, key)

    get(3)
    get(5)
    get(7)


@pytest.mark.parametrize(
    "walk",
    [
        by_level,
        by_level_of_one,
        by_counted_levels,
        in_chunks_of_one,
        along_a_list_of_no_tree,
        one_after_the_other,
    ],
)
def test_what_is_no_loop_over_known_keys(twin: Twin, walk: Any) -> None:
    async def story() -> None:
        async with chain(twin):
            settings = {"gets_from_one_site": 3, "queries_from_one_site": 3}
            assert (await tell(twin, walk, **settings)).findings == []

    twin.run(story)


def in_a_comprehension(session: Session) -> None:
    assert all(session.get(Part, key) for key in range(1, LAST))  # <- asked


def in_a_comprehension_of_a_while(session: Session) -> None:
    keys = list(range(1, LAST))
    while keys:
        assert all(session.get(Part, key) for key in keys)  # <- asked
        keys = []


def by_index(session: Session) -> None:
    keys, at = list(range(1, LAST)), 0
    while at < len(keys):
        session.get(Part, keys[at])  # <- asked
        at += 1


def of_each_in_a_recursion(session: Session, keys: tuple[int, ...] = tuple(range(1, 9))) -> None:
    for key in keys:
        session.get(Part, key)  # <- asked
    if len(keys) == 8:
        of_each_in_a_recursion(session, (1,))


@pytest.mark.parametrize(
    "how", [in_a_comprehension, in_a_comprehension_of_a_while, by_index, of_each_in_a_recursion]
)
def test_keys_that_are_known_before_the_loop(twin: Twin, how: Any) -> None:
    async def story() -> None:
        async with chain(twin):
            (finding,) = (await tell(twin, how, gets_from_one_site=3)).findings
            assert finding.remedy == "select(Part).where(Part.id.in_(keys))"
            assert finding.site == marked(how, "<- asked")

    twin.run(story)


def test_a_loop_after_calls_in_a_row(twin: Twin) -> None:
    """Calls that follow one another do not hide the loop after them."""

    def mixed(session: Session) -> None:
        def get(key: int) -> Any:
            return session.get(Part, key)  # <- asked

        get(1)
        get(2)
        get(3)
        for key in range(4, LAST + 1):
            get(key)

    async def story() -> None:
        async with chain(twin):
            (finding,) = (await tell(twin, mixed, gets_from_one_site=3)).findings
            assert (finding.id, finding.count) == ("get-in-loop", 5)

    twin.run(story)


# What is refreshed is known only by the refresh before.


def refresh_upwards(session: Session, option: Any = None) -> None:
    options = () if option is None else (option,)
    part: Part | None = session.get_one(Part, LAST, options=options)  # <- selected
    while part is not None:
        if option is None:
            session.refresh(part, ["whole"])  # <- refreshed
        else:
            assert "whole" in inspect(part).dict
        part = part.whole


def refresh_downwards(session: Session, option: Any = None) -> None:
    options = () if option is None else (option,)
    todo = [session.get_one(Part, 1, options=options)]  # <- selected
    while todo:
        part = todo.pop()
        if option is None:
            session.refresh(part, ["parts"])  # <- refreshed
        else:
            assert "parts" in inspect(part).dict
        todo += part.parts


@pytest.mark.parametrize("walk", [refresh_upwards, refresh_downwards])
def test_a_walk_of_a_tree_that_refreshes_its_relationship(twin: Twin, walk: Any) -> None:
    attribute = "whole" if walk is refresh_upwards else "parts"
    option = f"selectinload(Part.{attribute}, recursion_depth=-1)"

    async def story() -> None:
        async with chain(twin):
            settings = {"refreshes_from_one_site": 3, "lazy_loads_from_one_site": 100}
            (finding,) = (await tell(twin, walk, **settings)).findings
            assert (finding.id, finding.site) == ("refresh-in-loop", marked(walk, "<- refreshed"))
            get = "await session" if twin.is_async else "session"
            assert to_write(finding) == f"{get}.get_one(Part, key, options=[{option}])"
            assert "alternatives" not in finding.evidence
            cured = await tell(twin, lambda session: walk(session, pasted(option)), **settings)
            assert cured.findings == []

    twin.run(story)


def refresh_whole_objects(session: Session) -> None:
    part: Part | None = session.get_one(Part, LAST)
    while part is not None:
        session.refresh(part)
        part = None if part.whole_id is None else session.get(Part, part.whole_id)


def refresh_by_recursion(session: Session, part: Part | None = None) -> None:
    part = session.get_one(Part, 1) if part is None else part
    session.refresh(part)
    for one in part.parts:
        refresh_by_recursion(session, one)


def refresh_another_relationship(session: Session) -> None:
    manager: Manager | None = session.scalars(select(Manager).order_by(Manager.id)).first()
    while manager is not None:
        session.refresh(manager, ["office"])
        manager = session.scalar(
            select(Manager).where(Manager.id > manager.id).order_by(Manager.id).limit(1)
        )


@pytest.mark.parametrize(
    "walk", [refresh_whole_objects, refresh_by_recursion, refresh_another_relationship]
)
def test_a_walk_that_no_select_replaces(twin: Twin, walk: Any) -> None:
    async def story() -> None:
        async with chain(twin):
            async with twin.session() as session:
                session.add_all(Manager() for _ in range(6))
                await session.commit()
            found = (await tell(twin, walk, refreshes_from_one_site=3)).findings
            assert [one for one in found if one.id == "refresh-in-loop"] == []

    twin.run(story)


def refresh_each_level(session: Session) -> None:
    level = list(session.scalars(select(Part)))
    while level:
        for part in level:
            session.refresh(part)  # <- refreshed
        level = []


def refresh_by_index(session: Session) -> None:
    parts, at = list(session.scalars(select(Part))), 0
    while at < len(parts):
        session.refresh(parts[at])  # <- refreshed
        at += 1


@pytest.mark.parametrize("how", [refresh_each_level, refresh_by_index])
def test_refreshed_objects_that_are_known_before_the_loop(twin: Twin, how: Any) -> None:
    async def story() -> None:
        async with chain(twin):
            (finding,) = (await tell(twin, how, refreshes_from_one_site=3)).findings
            assert (finding.id, finding.site) == ("refresh-in-loop", marked(how, "<- refreshed"))

    twin.run(story)
