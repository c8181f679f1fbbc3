"""Stories of `refresh()` called for what was just written, and called for a reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from tests.library import Author, Essay, authors, keep
from tests.stories.findings.due import Due, assert_found
from tests.stories.findings.reading import tell
from tests.stories.findings.remedies import unexpiring, use
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session

    from session_tracer.testing import Captured
    from tests.twins import Twin


def refresh_after_commits(session: Session, *, refresh: bool = True) -> None:
    for number in range(3):
        author = Author(name=f"new {number}")
        session.add(author)
        session.commit()  # <- written
        if refresh:
            session.refresh(author)  # <- refreshed
        assert (author.id, author.name) == (number + 1, f"new {number}")


def refresh_after_flushes(session: Session, *, refresh: bool = True) -> None:
    for number in range(3):
        author = Author(name=f"new {number}")
        session.add(author)
        session.flush()  # <- written
        if refresh:
            session.refresh(author)  # <- refreshed
        assert (author.id, author.name) == (number + 1, f"new {number}")
    session.commit()


def refresh_all_after_a_commit(session: Session, *, refresh: bool = True) -> None:
    added = authors(3)
    session.add_all(added)
    session.commit()  # <- written
    for author in added:
        if refresh:
            session.refresh(author)  # <- refreshed
        assert author.id


def refreshed(how: Any, after: str, remedy: str) -> Due:
    return Due(
        id="refresh-after-write",
        site=marked(how, "<- refreshed"),
        opened=marked(tell, "<- opened"),
        remedy=remedy,
        entity="Author",
        count=3,
        evidence={f"{after}_at": str(marked(how, "<- written"))},
    )


REFRESHES = {
    "each commit": (refresh_after_commits, "committed"),
    "each flush": (refresh_after_flushes, "flushed"),
    "one commit": (refresh_all_after_a_commit, "committed"),
}


@pytest.mark.parametrize("what", REFRESHES)
def test_what_is_refreshed_after(twin: Twin, what: str) -> None:
    how, after = REFRESHES[what]
    out = "remove refresh()"
    settings = {"refreshes_from_one_site": 3, "reloads_after_commit": 2}

    async def story() -> None:
        told = await tell(twin, how, **settings)
        remedy = out if after == "flushed" else f"{out}, and use {unexpiring(twin)}"
        assert_found(told, refreshed(how, after, remedy))
        assert_found(await again(lambda session: how(session, refresh=True), {}))
        if after == "committed":
            use(twin, remedy.partition(" and use ")[2])
        told = await again(lambda session: how(session, refresh=False), settings)
        assert_found(told)
        assert [summary.loaded for summary in told.sessions] == [{}]

    async def again(work: Callable[[Session], None], settings: Any) -> Captured:
        await twin.execute(Author.metadata.drop_all)
        await twin.execute(Author.metadata.create_all)
        return await tell(twin, work, **settings)

    twin.run(story)


def create(session: Session, thing: Author | Essay) -> None:
    session.add(thing)
    session.commit()
    session.refresh(thing)


def create_one_after_the_other(session: Session) -> None:
    create(session, Author(name="new"))
    create(session, Essay(title="on names"))
    create(session, Essay(title="on numbers"))


def test_a_helper_that_refreshes_objects_of_any_class(twin: Twin) -> None:
    async def story() -> None:
        captured = await tell(twin, create_one_after_the_other, refreshes_from_one_site=3)
        (finding,) = captured.findings
        assert (finding.id, finding.entity, finding.count) == ("refresh-after-write", None, 3)
        assert finding.message == (
            "Author and Essay were refreshed directly after a commit at least 3 times in all, "
            "one SELECT each"
        )
        assert finding.evidence["entities"] == {"Author": 1, "Essay": 2}

    twin.run(story)


def refresh_books(session: Session) -> None:
    for number in range(3):
        author = Author(name=f"new {number}")
        session.add(author)
        session.commit()
        session.refresh(author, ["books"])
        assert author.books == []


def refresh_after_a_rollback(session: Session) -> None:
    author = session.get_one(Author, 1)
    for number in range(3):
        author.name = f"new {number}"
        session.flush()
        session.rollback()
        session.refresh(author)


def refresh_after_another_select(session: Session) -> None:
    for number in range(3):
        author = Author(name=f"new {number}")
        session.add(author)
        session.flush()
        assert session.scalar(select(Author.id).where(Author.name == f"new {number}"))
        session.refresh(author)
    session.commit()


def refresh_at_two_lines(session: Session) -> None:
    first, second = authors(2)
    first.name, second.name = "first", "second"
    session.add(first)
    session.commit()
    session.refresh(first)
    session.add(second)
    session.commit()
    session.refresh(second)


@pytest.mark.parametrize(
    "how",
    [
        refresh_books,
        refresh_after_a_rollback,
        refresh_after_another_select,
        refresh_at_two_lines,
    ],
)
def test_what_is_no_refresh_after_a_write(twin: Twin, how: Callable[[Session], None]) -> None:
    async def story() -> None:
        await keep(twin, *authors(3))
        assert_found(await tell(twin, how, refreshes_from_one_site=2))

    twin.run(story)
