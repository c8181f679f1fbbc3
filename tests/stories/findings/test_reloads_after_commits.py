"""Stories of objects that a commit expired, and that are reloaded one by one, or are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session, selectinload

from session_tracer.facts import TransactionEnded
from session_tracer.testing import capture
from tests.good_code.silence import only_sync
from tests.library import Author, Book, authors, keep
from tests.stories.findings.due import Due, assert_found
from tests.stories.findings.mappings import Manager, tables
from tests.stories.findings.reading import tell
from tests.stories.findings.remedies import pasted, unexpiring, use
from tests.stories.lines import marked
from tests.twins import Twin, on_postgresql


def read_names(session: Session) -> None:
    kept = session.scalars(select(Author)).all()
    session.add(Book(title="another", author=kept[0]))
    session.commit()  # <- committed
    assert len({author.name for author in kept}) == len(kept)  # <- read


def read_new_ones(session: Session) -> None:
    added = [Author(name=f"new {number}") for number in range(3)]
    session.add_all(added)
    session.commit()  # <- committed
    assert [author.id for author in added] == [4, 5, 6]  # <- read


def read_books(session: Session) -> None:
    kept = session.scalars(select(Author).options(selectinload(Author.books))).all()
    session.commit()  # <- committed
    assert [len(author.books) for author in kept] == [1, 1, 1]  # <- read


def change_names(session: Session) -> None:
    kept = session.scalars(select(Author)).all()
    session.commit()  # <- committed
    for author in kept:
        author.name += "."  # <- read
    session.commit()


def get_each(session: Session) -> None:
    kept = session.scalars(select(Author)).all()
    session.commit()  # <- committed
    assert [session.get(Author, number) for number in (1, 2, 3)] == kept  # <- read


def delete_each(session: Session) -> None:
    kept = session.scalars(select(Book)).all()
    session.commit()  # <- committed
    for book in kept:
        session.delete(book)
    session.commit()  # <- read


def read_after_two_commits(session: Session) -> None:
    kept = session.scalars(select(Author)).all()
    session.commit()
    kept[0].name = "another name"
    session.commit()  # <- committed
    assert len({author.name for author in kept}) == 3  # <- read


def read_after_a_savepoint(session: Session) -> None:
    kept = session.scalars(select(Author)).all()
    session.commit()  # <- committed
    with session.begin_nested():
        pass
    assert len({author.name for author in kept}) == 3  # <- read


def reloaded(how: Any, entity: str, maker: str, count: int = 3) -> Due:
    return Due(
        id="reload-after-commit",
        site=marked(how, "<- read"),
        opened=marked(tell, "<- opened"),
        remedy=maker,
        entity=entity,
        count=count,
        evidence={
            "committed_at": str(marked(how, "<- committed")),
            "reloaded": {entity: count},
            "alternatives": ["select them again with one statement after the commit"],
        },
    )


RELOADS: dict[str, tuple[Callable[[Session], None], str]] = {
    "columns": (read_names, "Author"),
    "what was added": (read_new_ones, "Author"),
    "a relationship": (read_books, "Author"),
    "columns that are changed": (change_names, "Author"),
    "by get()": (get_each, "Author"),
    "what is deleted": (delete_each, "Book"),
    "after the second commit": (read_after_two_commits, "Author"),
    "after a savepoint": (read_after_a_savepoint, "Author"),
}


@pytest.mark.parametrize("what", RELOADS)
def test_what_a_commit_expired_is_reloaded(twin: Twin, what: str) -> None:
    how, entity = RELOADS[what]

    async def story() -> None:
        await keep(twin, *authors(3, books_each=1))
        told = await tell(twin, how, reloads_after_commit=3)
        assert_found(told, reloaded(how, entity, unexpiring(twin)))

    twin.run(story)


@pytest.mark.parametrize("what", RELOADS)
def test_sessions_that_do_not_expire_on_commit(twin: Twin, what: str) -> None:
    how, _ = RELOADS[what]

    async def story() -> None:
        await keep(twin, *authors(3, books_each=1))
        use(twin, unexpiring(twin))
        assert_found(await tell(twin, how, reloads_after_commit=2))

    twin.run(story)


def test_five_objects_and_four(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(4))
        assert_found(await tell(twin, read_names))
        await keep(twin, Author(name="the fifth"))
        told = await tell(twin, read_names)
        assert_found(told, reloaded(read_names, "Author", unexpiring(twin), 5))
        assert told.findings[0].message == (
            "at least 5 Author objects expired by a commit were reloaded, one SELECT each"
        )

    twin.run(story)


# What a commit expires of relationships and deferred columns may never have been loaded. Then
class OwnSession(Session):
    """An application's own class, of which it makes sessions without a sessionmaker."""


@only_sync
@pytest.mark.parametrize("kind", [Session, OwnSession])
def test_sessions_that_no_sessionmaker_makes(twin: Twin, kind: type[Session]) -> None:
    engine: Any = twin.engine

    async def story() -> None:
        await keep(twin, *authors(3))
        for expires in (True, False):
            session = kind(engine, expire_on_commit=expires)
            with capture(session, reloads_after_commit=3) as captured, session:
                read_names(session)
            remedies = [one.remedy for one in captured.findings]
            advised = f"{kind.__name__}(..., expire_on_commit=False)"
            assert remedies == ([advised] if expires else [])

    twin.run(story)


# expire_on_commit=False keeps nothing, and another SELECT is what helps.


Loop = Callable[[list[Any]], object]


def then_read(read: Loop, entity: type[Any], *statements: Any) -> Callable[[Session], None]:
    """Read something of what a commit expired; in between, run these statements."""

    def work(session: Session) -> None:
        kept = session.scalars(select(entity)).all()
        session.commit()  # <- ended
        again = [session.scalars(statement).unique().all() for statement in statements]
        read([*kept])
        assert len(again) == len(statements)

    return work


def names_and_books(kept: list[Any]) -> None:
    for author in kept:
        assert author.name
        assert len(author.books) == 1


def all_but_letters(kept: list[Any]) -> None:
    assert {(author.biography, len(author.books)) for author in kept} == {("", 1)}


def biographies(kept: list[Any]) -> None:
    assert {author.biography for author in kept} == {""}


def authors_of_books(kept: list[Any]) -> None:
    assert {book.author.biography for book in kept} == {""}


SELECTED_AGAIN: dict[str, tuple[Loop, type[Any], str]] = {
    "columns and a relationship": (
        names_and_books,
        Author,
        "select(Author).options(selectinload(Author.books))",
    ),
    "a deferred column": (
        biographies,
        Author,
        "select(Author).options(undefer(Author.biography))",
    ),
    "a deferred column and a relationship": (
        all_but_letters,
        Author,
        "select(Author).options(undefer(Author.biography), selectinload(Author.books))",
    ),
    "a relationship": (authors_of_books, Book, "select(Book).options(joinedload(Book.author))"),
}


@pytest.mark.parametrize("what", SELECTED_AGAIN)
def test_what_may_not_have_been_loaded_before_is_selected_again(twin: Twin, what: str) -> None:
    read, entity, statement = SELECTED_AGAIN[what]
    rarely = {"lazy_loads_from_one_site": 99}  # what comes of the reloads is not in question

    async def story() -> None:
        await keep(twin, *authors(3, books_each=1))
        told = await tell(twin, then_read(read, entity), reloads_after_commit=3, **rarely)
        (finding,) = told.findings
        assert (finding.id, finding.entity) == ("reload-after-commit", entity.__name__)
        code, _, where = finding.remedy.partition(" after ")
        assert code == statement
        assert where.startswith(
            f"the commit at {marked(then_read, '<- ended')}".partition(" in")[0]
        )
        cured = await tell(
            twin, then_read(read, entity, pasted(code)), reloads_after_commit=2, **rarely
        )
        assert_found(cured)

    twin.run(story)


def keep_one(session: Session, name: str) -> Author:
    author = Author(name=name, books=[Book(title="one")])
    session.add(author)
    session.commit()  # <- kept
    return author


def keep_each_and_read(session: Session, names: str, *statements: Any) -> None:
    kept = [keep_one(session, name) for name in names]
    again = [session.scalars(statement).unique().all() for statement in statements]
    names_and_books(kept)
    assert len(again) == len(statements)


def test_they_are_selected_after_the_last_commit_of_one_line(twin: Twin) -> None:
    few = {"reloads_after_commit": 3, "commits_from_one_site": 9, "lazy_loads_from_one_site": 9}

    async def story() -> None:
        told = await tell(twin, lambda one: keep_each_and_read(one, "abcd"), **few)
        (finding,) = told.findings
        code, _, where = finding.remedy.partition(" after ")
        assert where == f"the last commit at {marked(keep_one, '<- kept')}"
        few["reloads_after_commit"] = 2
        select = pasted(code)
        assert_found(await tell(twin, lambda one: keep_each_and_read(one, "efgh", select), **few))

    twin.run(story)


def read_two_classes(session: Session, *statements: Any) -> None:
    kept = [*session.scalars(select(Book).limit(2)), *session.scalars(select(Author))]
    session.commit()
    again = [session.scalars(statement).unique().all() for statement in statements]
    read = [one.biography if isinstance(one, Author) else one.copies for one in kept]
    assert read == [1, 1, "", "", ""]
    assert len(again) == len(statements)


def test_objects_of_two_classes_are_selected_again(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(3, books_each=1))
        told = await tell(twin, read_two_classes, reloads_after_commit=3)
        (finding,) = told.findings
        assert finding.message == (
            "at least 5 objects (Book and Author) expired by a commit were reloaded, "
            "one SELECT each"
        )
        both = [pasted(one) for one in finding.remedy.partition(" after ")[0].split(" and ")]
        assert len(both) == 2
        assert_found(
            await tell(twin, lambda one: read_two_classes(one, *both), reloads_after_commit=2)
        )

    twin.run(story)


def add_and_refresh(count: int, expire: bool, refresh: bool) -> Callable[[Session], None]:
    def work(session: Session) -> None:
        session.expire_on_commit = expire
        added = [Author(name=f"new {n}", books=[Book(title="one")]) for n in range(count)]
        session.add_all(added)
        session.commit()
        for author in added[: count if refresh else 0]:
            session.refresh(author)  # <- refreshed
        assert [len(author.books) for author in added] == [1] * count

    return work


def test_what_refresh_has_expired_is_its_own_finding(twin: Twin) -> None:
    async def story() -> None:
        told = await tell(twin, add_and_refresh(6, expire=True, refresh=True))
        assert [finding.id for finding in told.findings] == ["refresh-after-write"]
        assert told.findings[0].remedy == f"remove refresh(), and use {unexpiring(twin)}"

    twin.run(story)


def test_the_finding_without_refresh_and_expiry(twin: Twin) -> None:
    async def story() -> None:
        assert_found(await tell(twin, add_and_refresh(6, expire=False, refresh=False)))

    twin.run(story)


def test_a_refresh_that_is_no_finding_is_to_be_removed_too(twin: Twin) -> None:
    few = {"reloads_after_commit": 3, "refreshes_from_one_site": 9}

    async def story() -> None:
        told = await tell(twin, add_and_refresh(3, expire=True, refresh=True), **few)
        (finding,) = told.findings
        place = str(marked(add_and_refresh, "<- refreshed")).partition(" in ")[0]
        assert finding.remedy.startswith(f"remove refresh() at {place}")
        select_again = "select(Author).options(selectinload(Author.books)) after the commit at"
        assert f", and run {select_again}" in finding.remedy

    twin.run(story)


def select_again(session: Session) -> None:
    kept = session.scalars(select(Author)).all()
    session.commit()
    assert set(session.scalars(select(Author))) == set(kept)
    assert len({author.name for author in kept}) == 3


def read_with_a_commit_each(session: Session) -> None:
    for author in session.scalars(select(Author)).all():
        assert author.name
        session.commit()


def read_after_a_rollback(session: Session) -> None:
    kept = session.scalars(select(Author)).all()
    session.rollback()
    assert len({author.name for author in kept}) == 3


def read_what_was_expired(session: Session) -> None:
    kept = session.scalars(select(Author)).all()
    session.expire_all()
    assert len({author.name for author in kept}) == 3


def read_after_a_savepoint_alone(session: Session) -> None:
    kept = session.scalars(select(Author)).all()
    with session.begin_nested():
        kept[0].name = "another name"
    assert len({author.name for author in kept}) == 3
    session.commit()


def replace_each_row(session: Session) -> None:
    kept = session.scalars(select(Author)).all()
    session.execute(text("DELETE FROM authors"))
    session.commit()
    for number in range(1, 4):
        session.add(Author(id=number, name=f"new {number}"))
        session.flush()  # which looks whether the old object's row is still there
    assert len(kept) == 3
    session.commit()


def commit_and_read_nothing(session: Session) -> None:
    kept = session.scalars(select(Author)).all()
    session.commit()
    del kept


def read_one_of_them_often(session: Session) -> None:
    kept = session.scalars(select(Author)).all()
    session.commit()
    assert {kept[0].name for _ in range(5)} == {"author 0"}


@pytest.mark.parametrize(
    "how",
    [
        select_again,
        read_with_a_commit_each,
        read_after_a_rollback,
        read_what_was_expired,
        read_after_a_savepoint_alone,
        replace_each_row,
        commit_and_read_nothing,
        read_one_of_them_often,
    ],
)
def test_what_is_no_reload_after_a_commit(twin: Twin, how: Callable[[Session], None]) -> None:
    async def story() -> None:
        await keep(twin, *authors(3))
        assert_found(await tell(twin, how, reloads_after_commit=2))

    twin.run(story)


def managers() -> list[Any]:
    return [Manager() for _ in range(3)]


def read_managers(session: Session) -> None:
    kept = session.scalars(select(Manager)).all()
    session.commit()  # <- committed
    assert [manager.budget for manager in kept] == [0, 0, 0]  # <- read


def test_objects_of_a_subclass(twin: Twin) -> None:
    async def story() -> None:
        async with tables(twin):
            await keep(twin, *managers())
            told = await tell(twin, read_managers, reloads_after_commit=3)
            assert_found(told, reloaded(read_managers, "Manager", unexpiring(twin)))

    twin.run(story)


@on_postgresql
def test_a_commit_in_two_phases(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(3))
        twin.factory.configure(twophase=True)
        told = await tell(twin, read_names, reloads_after_commit=3)
        assert_found(told, reloaded(read_names, "Author", unexpiring(twin)))
        assert {fact.two_phase for fact in told.facts if isinstance(fact, TransactionEnded)} == {
            True
        }

    twin.run(story)
