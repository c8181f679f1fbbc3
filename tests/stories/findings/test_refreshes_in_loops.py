"""Stories of `refresh()` called for each object of a loop, and called for a reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, update

from tests.library import Author, authors, keep
from tests.stories.findings.due import Due, assert_found
from tests.stories.findings.mappings import Course, Exam, Student, tables
from tests.stories.findings.reading import tell
from tests.stories.findings.remedies import pasted, to_write
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session

    from tests.twins import Twin

EACH = "select(Author).where(Author.id.in_(keys)).execution_options(populate_existing=True)"


def refresh_each(session: Session) -> None:
    for author in session.scalars(select(Author).order_by(Author.id)).all():
        session.refresh(author)  # <- refreshed


def refresh_names(session: Session) -> None:
    for author in session.scalars(select(Author).order_by(Author.id)).all():
        session.refresh(author, ["name"])  # <- refreshed


def refresh_books(session: Session) -> None:
    for author in session.scalars(select(Author).order_by(Author.id)).all():
        session.refresh(author, ["books"])  # <- refreshed


def refresh_to_lock(session: Session) -> None:
    for author in session.scalars(select(Author).order_by(Author.id)).all():
        session.refresh(author, with_for_update=True)  # <- refreshed


def refresh_after_a_flush_of_nothing(session: Session) -> None:
    for author in session.scalars(select(Author).order_by(Author.id)).all():
        session.flush()
        session.refresh(author)  # <- refreshed


def refreshed(how: Any, count: int) -> Due:
    return Due(
        id="refresh-in-loop",
        site=marked(how, "<- refreshed"),
        opened=marked(tell, "<- opened"),
        remedy=f"{EACH}  # before the loop",
        entity="Author",
        count=count,
        evidence={"loop": str(marked(how, "<- refreshed"))},
    )


@pytest.mark.parametrize(
    "how",
    [
        refresh_each,
        refresh_names,
        refresh_books,
        refresh_to_lock,
        refresh_after_a_flush_of_nothing,
    ],
)
def test_a_refresh_of_each_object(twin: Twin, how: Callable[[Session], None]) -> None:
    async def story() -> None:
        await keep(twin, *authors(4))
        assert_found(await tell(twin, how))
        assert_found(await tell(twin, how, refreshes_from_one_site=4), refreshed(how, 4))
        await keep(twin, Author(name="another"))
        assert_found(await tell(twin, how), refreshed(how, 5))

    twin.run(story)


def test_what_it_reports_and_its_remedy(twin: Twin) -> None:
    found: list[Any] = []

    def select_them_again(session: Session) -> None:
        (finding,) = found
        known = session.scalars(select(Author)).all()
        session.execute(update(Author).values(name=Author.name + "!"), execution_options=NOTHING)
        keys = [author.id for author in known]
        session.scalars(pasted(to_write(finding).partition("  #")[0], keys=keys)).all()
        assert all(author.name.endswith("!") for author in known)
        session.rollback()

    async def story() -> None:
        await keep(twin, *authors(7))
        (finding,) = (await tell(twin, refresh_each)).findings
        assert finding.message == "at least 5 Author objects were refreshed, one SELECT each"
        assert finding.total is not None
        assert finding.total.count == 7
        found.append(finding)
        assert_found(await tell(twin, select_them_again, refreshes_from_one_site=2))

    twin.run(story)


NOTHING = {"synchronize_session": False}


def test_a_key_of_two_columns(twin: Twin) -> None:
    def each(session: Session) -> None:
        for exam in session.scalars(select(Exam)).all():
            session.refresh(exam)

    async def story() -> None:
        async with tables(twin):
            async with twin.session() as session:
                session.add(Student(exams=[Exam(course=Course()) for _ in range(3)]))
                await session.commit()
            (finding,) = (await tell(twin, each, refreshes_from_one_site=3)).findings
            assert finding.remedy == (
                "select(Exam).execution_options(populate_existing=True)  # before the loop"
            )

    twin.run(story)


# Near-misses: each refreshes three times, where two would be a loop.


def refresh_one(session: Session) -> None:
    author = session.get_one(Author, 1)
    for _ in range(3):
        session.refresh(author)


def refresh_each_after_a_change(session: Session) -> None:
    for author in session.scalars(select(Author)).all():
        session.execute(update(Author).where(Author.id == author.id).values(name=f"{author.id}"))
        session.refresh(author)
    session.commit()


def refresh_each_in_a_transaction_of_its_own(session: Session) -> None:
    for author in session.scalars(select(Author)).all():
        session.rollback()
        session.refresh(author)


def _again(session: Session, author: Author) -> None:
    session.refresh(author)


def refresh_one_after_the_other(session: Session) -> None:
    first, second, third = session.scalars(select(Author)).all()
    _again(session, first)
    _again(session, second)
    _again(session, third)


@pytest.mark.parametrize(
    "how",
    [
        refresh_one,
        refresh_each_after_a_change,
        refresh_each_in_a_transaction_of_its_own,
        refresh_one_after_the_other,
    ],
)
def test_what_is_no_refresh_in_a_loop(twin: Twin, how: Callable[[Session], None]) -> None:
    async def story() -> None:
        await keep(twin, *authors(3))
        assert_found(await tell(twin, how, refreshes_from_one_site=2))

    twin.run(story)
