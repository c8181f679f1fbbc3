"""Stories of `refresh()` called for what was just written, and called for a reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import joinedload, selectinload

from tests.library import Author, Book, Essay, authors, keep
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


def save(session: Session, author: Author, *, refresh: bool) -> None:
    session.add(author)
    session.flush()
    if refresh:
        session.refresh(author)


def update_each(session: Session, *, refresh: bool = True) -> None:
    for number in range(3):
        save(session, Author(name=f"new {number}"), refresh=refresh)  # <- loops
    session.commit()


def test_a_helper_that_others_call_too_keeps_its_refresh(twin: Twin) -> None:
    async def story() -> None:
        (finding,) = (await tell(twin, update_each, refreshes_from_one_site=3)).findings
        assert finding.remedy == (
            f"remove refresh() or leave it out in the loop at {marked(update_each, '<- loops')}"
        )
        await twin.execute(Author.metadata.drop_all)
        await twin.execute(Author.metadata.create_all)
        told = await tell(
            twin, lambda one: update_each(one, refresh=False), refreshes_from_one_site=2
        )
        assert_found(told)

    twin.run(story)


def change_each(session: Session, *, refresh: bool = True) -> None:
    for number, author in enumerate(session.scalars(select(Author)).all()):
        author.name = f"changed {number}"
        with session.begin_nested():
            session.flush()  # <- written
        if refresh:
            session.refresh(author, ["name"])  # <- refreshed
        assert author.name == f"changed {number}"
    session.commit()


def change_all(session: Session, *, refresh: bool = True) -> None:
    known = session.scalars(select(Author)).all()
    for number, author in enumerate(known):
        author.name = f"changed {number}"
    session.commit()  # <- written
    for number, author in enumerate(known):
        if refresh:
            session.refresh(author)  # <- refreshed
        assert author.name == f"changed {number}"


@pytest.mark.parametrize("how", [change_each, change_all])
@pytest.mark.parametrize("expires", [True, False])
def test_what_is_refreshed_after_an_update(twin: Twin, how: Any, expires: bool) -> None:
    settings = {"refreshes_from_one_site": 3, "reloads_after_commit": 2}

    async def story() -> None:
        await keep(twin, *authors(3))
        twin.factory.configure(expire_on_commit=expires)
        (finding,) = (await tell(twin, how, **settings)).findings
        assert (finding.id, finding.site) == ("refresh-after-write", marked(how, "<- refreshed"))
        maker = unexpiring(twin)
        assert finding.remedy == (
            f"remove refresh(), and use {maker}"
            if expires and how is change_all
            else "remove refresh()"
        )
        assert finding.evidence["why"] == "an object has the values that its UPDATE has written"
        if maker in finding.remedy:
            use(twin, maker)
        told = await tell(twin, lambda session: how(session, refresh=False), **settings)
        assert_found(told)
        assert [summary.loaded for summary in told.sessions] == [{"Author": 3}]

    twin.run(story)


# What a loop reads again after a write, and what to select once in its place.


def refresh_others_after_a_commit(session: Session) -> None:
    known = session.scalars(select(Author)).all()
    session.add(Essay(title="on others"))
    session.commit()
    for author in known:
        session.refresh(author)  # <- refreshed


def refresh_others_after_a_commit_of_new_ones(session: Session) -> None:
    known = session.scalars(select(Author)).all()
    session.add(Author(name="one more"))
    session.commit()
    for author in known:
        session.refresh(author)  # <- refreshed


def refresh_others_after_a_flush(session: Session) -> None:
    known = session.scalars(select(Author).order_by(Author.id)).all()
    known[0].name = "changed"
    session.flush()
    for author in known[1:]:
        session.refresh(author)  # <- refreshed
    session.rollback()


def refresh_after_a_commit_of_nothing(session: Session) -> None:
    known = session.scalars(select(Author)).all()
    session.commit()
    for author in known:
        session.refresh(author)  # <- refreshed


def refresh_after_an_update_of_all(session: Session) -> None:
    known = session.scalars(select(Author)).all()
    session.execute(update(Author).values(name=Author.name + "!"), execution_options=UNSEEN)
    session.commit()
    for author in known:
        session.refresh(author)  # <- refreshed


UNSEEN = {"synchronize_session": False}


@pytest.mark.parametrize(
    "how",
    [
        refresh_others_after_a_commit,
        refresh_others_after_a_commit_of_new_ones,
        refresh_others_after_a_flush,
        refresh_after_a_commit_of_nothing,
        refresh_after_an_update_of_all,
    ],
)
def test_what_was_not_written_is_refreshed_in_a_loop(
    twin: Twin, how: Callable[[Session], None]
) -> None:
    async def story() -> None:
        await keep(twin, *authors(4))
        twin.factory.configure(expire_on_commit=False)
        (finding,) = (await tell(twin, how, refreshes_from_one_site=3)).findings
        assert (finding.id, finding.site) == ("refresh-in-loop", marked(how, "<- refreshed"))
        assert finding.remedy == (
            "select(Author).where(Author.id.in_(keys)).execution_options(populate_existing=True)"
            "  # before the loop"
        )

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


def refresh_the_other_side(session: Session) -> None:
    """No SELECT is needed for the author, who is in the session."""
    known = session.scalars(select(Author)).all()
    for author in known:
        for book in author.books:
            book.author_id = known[0].id
            session.flush()
            session.refresh(book, ["author"])
            assert book.author is known[0]
    session.rollback()


def refresh_what_came_by_a_join(session: Session) -> None:
    for book in session.scalars(select(Book).options(joinedload(Book.author))).all():
        book.author_id = 1
        session.commit()
        session.refresh(book)
        assert book.author.id == 1


def refresh_what_came_by_another_select(session: Session) -> None:
    for author in session.scalars(select(Author).options(selectinload(Author.books))).all():
        session.add(Book(title="new", author_id=author.id))
        author.name += "!"
        session.flush()
        session.refresh(author)
        assert len(author.books) == 2
    session.rollback()


def refresh_a_deferred_column(session: Session) -> None:
    for author in session.scalars(select(Author)).all():
        author.name += "!"
        session.flush()
        session.refresh(author, ["biography"])
    session.rollback()


def refresh_another_one(session: Session) -> None:
    *written, other = session.scalars(select(Author)).all()
    for author in written:
        author.name += "!"
        session.flush()
        session.refresh(other)
    session.rollback()


def refresh_one_of_another_class(session: Session) -> None:
    books = session.scalars(select(Book)).all()
    for book in books:
        session.add(Author(name=f"by {book.id}"))
        session.commit()
        session.refresh(book)


def refresh_after_a_rollback_to_a_savepoint(session: Session) -> None:
    for author in session.scalars(select(Author)).all():
        savepoint = session.begin_nested()
        author.name += "!"
        session.flush()
        savepoint.rollback()
        session.refresh(author)


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
        refresh_the_other_side,
        refresh_what_came_by_a_join,
        refresh_what_came_by_another_select,
        refresh_a_deferred_column,
        refresh_another_one,
        refresh_one_of_another_class,
        refresh_after_a_rollback_to_a_savepoint,
        refresh_at_two_lines,
    ],
)
def test_what_is_no_refresh_after_a_write(twin: Twin, how: Callable[[Session], None]) -> None:
    async def story() -> None:
        await keep(twin, *authors(3, books_each=1))
        assert_found(await tell(twin, how, refreshes_from_one_site=2))

    twin.run(story)
