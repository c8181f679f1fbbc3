"""Stories of one SELECT that runs again and again, and of SELECTs that only look alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import func, literal, select, text
from sqlalchemy.orm import selectinload

from session_tracer.facts import StatementExecuted
from session_tracer.testing import Captured, capture
from tests.library import Author, Book, authors, keep
from tests.stories.findings.due import Due, assert_found
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.twins import Twin


async def ask(
    twin: Twin, times: int, how: Callable[[Any, int], Awaitable[Any]], **settings: Any
) -> Captured:
    """What is told of a session that asks so many times."""
    with capture(twin.factory, **settings) as captured:
        async with twin.session() as session:  # <- opened
            for number in range(times):
                await how(session, number)  # <- loops
    return captured


def repeated(how: Any, entity: str | None, count: int) -> Due:
    return Due(
        id="repeated-select",
        site=marked(how, "<- asked"),
        opened=marked(ask, "<- opened"),
        remedy=f"run it once before the loop at {marked(ask, '<- loops')} and keep the result",
        entity=entity,
        count=count,
    )


async def select_all(session: Any, _: int) -> Any:
    return (await session.scalars(select(Author))).all()  # <- asked


async def select_by_name(session: Any, _: int) -> Any:
    named = select(Author.name).where(Author.name == "author 1")
    return await session.scalar(named)  # <- asked


async def count_all(session: Any, _: int) -> Any:
    return await session.scalar(select(func.count(Author.id)))  # <- asked


async def select_by_keys(session: Any, _: int) -> Any:
    some = select(Author).where(Author.id.in_((1, 2)))
    return (await session.scalars(some)).all()  # <- asked


async def execute_text(session: Any, _: int) -> Any:
    named = text("SELECT name FROM authors WHERE id = :id").bindparams(id=1)
    return await session.scalar(named)  # <- asked


async def select_from_a_table(session: Any, _: int) -> Any:
    return (await session.execute(select(Author.__table__))).all()  # <- asked


async def select_with_books(session: Any, _: int) -> Any:
    query = select(Author).options(selectinload(Author.books))
    return (await session.scalars(query)).all()  # <- asked


async def get_nobody(session: Any, _: int) -> Any:
    return await session.get(Author, 404)  # <- asked


async def get_and_forget(session: Any, _: int) -> Any:
    assert await session.get(Author, 1)  # <- asked


AGAIN = {
    "objects": (select_all, "Author"),
    "columns": (select_by_name, "Author"),
    "an aggregate": (count_all, "Author"),
    "a list of keys": (select_by_keys, "Author"),
    "text": (execute_text, None),
    "a table": (select_from_a_table, None),
    "objects and what belongs to them": (select_with_books, "Author"),
    "a row that is not there": (get_nobody, "Author"),
    "an object that nobody keeps": (get_and_forget, "Author"),
}


@pytest.mark.parametrize("what", AGAIN)
def test_the_same_select_five_times(twin: Twin, what: str) -> None:
    how, entity = AGAIN[what]

    async def story() -> None:
        await keep(twin, *authors(2, books_each=1))
        assert_found(await ask(twin, 4, how))
        captured = await ask(twin, 9, how)
        assert_found(captured, repeated(how, entity, 5))
        assert "author 1" not in str(captured.findings)

    twin.run(story)


def test_what_it_reports(twin: Twin) -> None:
    async def story() -> None:
        (selected,) = (await ask(twin, 5, select_all)).findings
        assert selected.message == (
            "the same SELECT of Author with the same parameters ran at least 5 times from one line"
        )
        (got,) = (await ask(twin, 5, get_nobody)).findings
        assert got.message == (
            "Author was looked up by the same primary key at least 5 times from one line"
        )

    twin.run(story)


async def select_here_or_there(session: Any, number: int) -> Any:
    query = select(Author)
    if number:
        return (await session.scalars(query)).all()  # <- asked
    return (await session.scalars(query)).all()  # <- first


def test_the_same_select_from_two_lines(twin: Twin) -> None:
    async def story() -> None:
        captured = await ask(twin, 3, select_here_or_there, repeats_of_one_select=3)
        assert_found(captured, repeated(select_here_or_there, "Author", 3))
        (finding,) = captured.findings
        assert finding.evidence["first_at"] == str(marked(select_here_or_there, "<- first"))

    twin.run(story)


async def select_and_write_elsewhere(session: Any, number: int) -> Any:
    session.add(Author(name=f"new {number}"))
    return (await session.scalars(select(Book))).all()  # <- asked


async def select_and_create_a_savepoint(session: Any, _: int) -> Any:
    async with session.begin_nested():
        return await session.scalar(select(func.count(Author.id)))  # <- asked


MEANWHILE = {
    "another table is written to": (select_and_write_elsewhere, "Book"),
    "savepoints come and go": (select_and_create_a_savepoint, "Author"),
}


@pytest.mark.parametrize("what", MEANWHILE)
def test_the_same_select_while(twin: Twin, what: str) -> None:
    how, entity = MEANWHILE[what]

    async def story() -> None:
        ignored = {"discarded-changes", "autoflush-storm"}
        captured = await ask(twin, 3, how, repeats_of_one_select=3, ignore=ignored)
        assert_found(captured, repeated(how, entity, 3))

    twin.run(story)


def test_the_remedies(twin: Twin) -> None:
    """What is kept is not selected again; and a poll sees what others have committed."""

    async def keep_the_result() -> None:
        async with twin.session() as session:
            every = await select_all(session, 0)
            assert [len(every) for _ in range(6)] == [2] * 6

    async def wait_for_the_name() -> None:
        async with twin.session() as session:
            for number in range(6):
                author = await session.scalar(select(Author).where(Author.id == 1))
                kept.append(author)
                assert author.name == ("changed" if number > 3 else "author 0")
                await session.commit()
                if number == 3:
                    async with twin.session() as other:
                        (await other.get(Author, 1)).name = "changed"
                        await other.commit()

    async def story() -> None:
        await keep(twin, *authors(2))
        with capture(twin.factory) as captured:
            await keep_the_result()
            await wait_for_the_name()
        assert_found(captured)
        kept.clear()

    twin.run(story)


# Near-misses: each runs three times, where twice would be again.


async def select_another(session: Any, number: int) -> Any:
    return await session.scalar(select(Author).where(Author.id == number))


async def select_others(session: Any, number: int) -> Any:
    return (await session.scalars(select(Author).where(Author.id.in_((number, 2))))).all()


async def select_a_page(session: Any, number: int) -> Any:
    return (await session.scalars(select(Author).order_by(Author.id).offset(number))).all()


async def read_books(session: Any, number: int) -> Any:
    def books(_: object) -> Any:
        return author.books

    author = await session.scalar(select(Author).where(Author.id == number + 1))
    return await session.run_sync(books)


async def refresh(session: Any, number: int) -> Any:
    author = session.sync_session.identity_map.values()[0] if number else None
    if author is None:
        kept.append(await session.get(Author, 1))
    else:
        await session.refresh(author)


async def expire_and_read(session: Any, number: int) -> Any:
    def name(_: object) -> Any:
        return author.name

    author = await session.get(Author, 1)
    kept.append(author)
    session.expire(author)
    return await session.run_sync(name)


async def update_all(session: Any, _: int) -> Any:
    await session.execute(text("UPDATE authors SET biography = ''"))


async def flush_nothing_new(session: Any, number: int) -> Any:
    session.add(Author(name=f"new {number}"))
    await session.flush()


async def select_and_commit(session: Any, _: int) -> None:
    await session.scalar(select(func.count(Author.id)))
    await session.commit()


async def select_and_roll_back(session: Any, _: int) -> None:
    await session.scalar(select(func.count(Author.id)))
    await session.rollback()


async def select_and_change(session: Any, number: int) -> None:
    author = await session.scalar(select(Author).where(Author.id == 1))
    author.name = f"name {number}"
    await session.flush()


async def count_and_add(session: Any, number: int) -> None:
    await session.scalar(select(func.count(Author.id)))
    session.add(Author(name=f"new {number}"))


async def select_and_execute_text(session: Any, number: int) -> None:
    await session.scalar(select(func.count(Author.id)))
    await session.execute(text("UPDATE authors SET biography = ''"))


async def select_and_expire(session: Any, _: int) -> None:
    await session.scalar(select(Author.name).where(Author.id == 1))
    session.expire_all()


async def ping(session: Any, _: int) -> None:
    await session.execute(select(1))


async def ping_in_text(session: Any, _: int) -> None:
    await session.execute(text("SELECT 1"))


async def ask_the_clock(session: Any, _: int) -> None:
    await session.scalar(select(Author.id).where(func.now() > "2020"))


async def ask_by_chance(session: Any, _: int) -> None:
    await session.scalar(select(Author.id).order_by(func.random()).limit(1))


async def get_again(session: Any, _: int) -> Any:
    kept.append(await session.get(Author, 1))


# What the application itself keeps of the objects, so that they stay in the identity map.
kept: list[Any] = []
ALIKE = {
    "another parameter": select_another,
    "another list of keys": select_others,
    "another page": select_a_page,
    "a lazy load": read_books,
    "a refresh": refresh,
    "a reload": expire_and_read,
    "an UPDATE": update_all,
    "an INSERT that returns": flush_nothing_new,
    "what the identity map holds": get_again,
    "one in each transaction": select_and_commit,
    "one in each transaction that is rolled back": select_and_roll_back,
    "what the session changes": select_and_change,
    "what the session adds to": count_and_add,
    "what the session updates in text": select_and_execute_text,
    "what is expired": select_and_expire,
    "a ping": ping,
    "a ping in text": ping_in_text,
    "the time": ask_the_clock,
    "a row by chance": ask_by_chance,
}


@pytest.mark.parametrize("what", ALIKE)
def test_what_only_looks_alike(twin: Twin, what: str) -> None:
    async def story() -> None:
        await keep(twin, *authors(3, books_each=1))
        ignored = {"discarded-changes"}
        captured = await ask(twin, 3, ALIKE[what], repeats_of_one_select=2, ignore=ignored)
        assert_found(captured)
        kept.clear()

    twin.run(story)


def test_parameters_that_cannot_be_compared(twin: Twin) -> None:
    """SQLite's driver is given bytes as a view of them, which may change."""

    async def select_bytes(session: Any, _: int) -> Any:
        return await session.scalar(select(literal(b"same")))

    async def story() -> None:
        assert_found(await ask(twin, 3, select_bytes, repeats_of_one_select=2))

    twin.run(story)


def test_the_same_select_of_several_sessions(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory, repeats_of_one_select=2) as captured:
            for _ in range(3):
                async with twin.session() as session:
                    await select_all(session, 0)
        assert_found(captured)

    twin.run(story)


def test_what_is_loaded_eagerly_belongs_to_its_select(twin: Twin) -> None:
    """The books of the same authors are read by the same SELECT, after another one each time."""

    async def select_some(session: Any, number: int) -> Any:
        query = select(Author).options(selectinload(Author.books))
        kept.extend((await session.scalars(query.where(Author.id > -number))).all())
        session.expire_all()

    async def story() -> None:
        await keep(twin, *authors(2, books_each=1))
        captured = await ask(twin, 3, select_some, repeats_of_one_select=2)
        eager = [
            fact for fact in captured.facts if isinstance(fact, StatementExecuted) and fact.eager
        ]
        assert len(eager) == len({fact.fingerprint for fact in eager}) + 2 == 3
        assert_found(captured)
        kept.clear()

    twin.run(story)


async def fill_a_page(session: Any) -> None:
    """The same SELECT for each part of the page."""
    await select_here_or_there(session, 0)
    await select_here_or_there(session, 1)
    await select_here_or_there(session, 0)
    await select_here_or_there(session, 1)
    await select_here_or_there(session, 0)


async def with_a_session_each(twin: Twin) -> None:
    for _ in range(2):
        async with twin.session() as session:
            await fill_a_page(session)


async def close_each(twin: Twin) -> None:
    pages = 2
    while pages:
        session = twin.session()
        try:
            await fill_a_page(session)
        finally:
            await session.close()
        pages -= 1


async def page_by_page(twin: Twin) -> None:
    async def page() -> None:
        async with twin.session() as session:
            await fill_a_page(session)

    for _ in range(2):
        await page()


@pytest.mark.parametrize("how", [with_a_session_each, close_each, page_by_page])
def test_a_loop_around_the_session_waits_for_no_answer(
    twin: Twin, how: Callable[[Twin], Awaitable[None]]
) -> None:
    async def story() -> None:
        await keep(twin, *authors(2))
        with capture(twin.factory) as captured:
            await how(twin)
        found = [(one.id, one.remedy, one.evidence.get("loop")) for one in captured.findings]
        once = "run it once in fill_a_page() and pass the result on"
        assert found == [("repeated-select", once, None)] * 2

    twin.run(story)


async def ask_in_turn(session: Any, number: int) -> Any:
    return await [select_here_or_there, select_all][number % 2](session, 0)


def test_a_commit_before_each_read_is_advised_only_where_it_may_wait(twin: Twin) -> None:
    async def story() -> None:
        for how, is_advised in ((select_all, True), (ask_in_turn, False)):
            (finding,) = (await ask(twin, 5, how)).findings
            alternatives = finding.evidence.get("alternatives", [])
            assert [one.partition("#")[2].strip() for one in alternatives] == (
                ["before each read, to see what others have committed"] if is_advised else []
            )
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                for name in ["Ada", "Grace", "Kurt", "Alan", "Emmy"]:
                    assert name not in await select_all(session, 0)
        (finding,) = captured.findings
        assert "alternatives" not in finding.evidence

    twin.run(story)


async def select_its_author(session: Any, book: Book) -> Any:
    named = select(Author).where(Author.id == book.author_id)
    return await session.scalar(named)  # <- asked


async def select_the_first_author(session: Any, book: Book) -> Any:
    assert book.title
    return await session.scalar(select(Author).where(Author.id == 1))  # <- asked


async def ask_by_book(twin: Twin, how: Callable[[Any, Book], Awaitable[Any]]) -> Captured:
    with capture(twin.factory) as captured:
        async with twin.session() as session:
            for book in (await session.scalars(select(Book))).all():
                await how(session, book)  # <- loops
    return captured


async def ask_within_the_loop(twin: Twin) -> Captured:
    with capture(twin.factory) as captured:
        async with twin.session() as session:
            for book in (await session.scalars(select(Book))).all():
                key = book.author_id
                await session.scalar(select(Author).where(Author.id == key))  # <- loops
    return captured


def test_what_an_item_decides_is_read_for_all_items_at_once(twin: Twin) -> None:
    """All books of the library may have one author; those of the next library need not."""

    async def for_all_at_once() -> list[str]:
        async with twin.session() as session:
            books = (await session.scalars(select(Book))).all()
            wanted = select(Author).where(Author.id.in_({book.author_id for book in books}))
            by_key = {one.id: one for one in (await session.scalars(wanted)).all()}
            return [by_key[book.author_id].name for book in books]

    async def from_a_dict() -> list[str]:
        names: dict[int, str] = {}
        async with twin.session() as session:
            books = (await session.scalars(select(Book))).all()
            for book in books:
                if book.author_id not in names:
                    names[book.author_id] = (await select_its_author(session, book)).name
            return [names[book.author_id] for book in books]

    async def story() -> None:
        await keep(twin, *authors(1, books_each=7))
        loop = marked(ask_by_book, "<- loops")
        for found, where in (
            (await ask_by_book(twin, select_its_author), f" at {loop}"),
            (await ask_within_the_loop(twin), ""),
        ):
            (finding,) = found.findings
            assert (finding.id, finding.remedy, finding.evidence["alternatives"]) == (
                "repeated-select",
                f"run one SELECT of Author with .in_(...) or a join before the loop{where}",
                ["keep its results by their parameters, in a dict"],
            )
        (finding,) = (await ask_by_book(twin, select_the_first_author)).findings
        assert finding.remedy == f"run it once before the loop at {loop} and keep the result"
        for cure in (for_all_at_once, from_a_dict):
            with capture(twin.factory) as captured:
                assert await cure() == ["author 0"] * 7
            assert_found(captured)

    twin.run(story)


async def count_authors(session: Any) -> int:
    counted: int = await session.scalar(select(func.count(Author.id)))  # <- asked
    return counted


async def invite(session: Any, name: str) -> None:
    free = 9 - await count_authors(session)
    free -= await count_authors(session) + await count_authors(session)
    if await count_authors(session) + await count_authors(session) + free:
        session.add(Author(name=name))


def test_the_calls_of_one_turn_are_not_laid_to_the_loop_around_them(twin: Twin) -> None:
    """Each turn writes: what was read before the loop would be wrong from its second turn on."""

    async def story() -> None:
        for names in (["one"], ["two", "three"]):
            with capture(twin.factory) as captured:
                async with twin.session() as session:
                    for name in names:
                        await invite(session, name)
                    await session.commit()
            (finding,) = captured.findings
            assert finding.site == marked(count_authors, "<- asked")
            assert finding.remedy == "run it once in invite() and pass the result on"

    twin.run(story)


async def add_when_free(twin: Twin, *, adds_at: int) -> Captured:
    with capture(twin.factory) as captured:
        async with twin.session() as session:
            for number in range(9):
                await count_authors(session)  # <- loops
                if number == adds_at:
                    session.add(Author(name="another"))
            await session.commit()
    return captured


def test_what_the_loop_may_write_is_not_read_once_before_it(twin: Twin) -> None:
    async def story() -> None:
        loop = marked(add_when_free, "<- loops")
        (finding,) = (await add_when_free(twin, adds_at=2)).findings
        assert finding.remedy == (
            f"run it once in each turn of the loop at {loop}, or until it writes Author"
        )
        (finding,) = (await add_when_free(twin, adds_at=9)).findings
        assert finding.remedy == (
            f"run it once before the loop at {loop} "
            "and keep the result until the loop writes Author"
        )

    twin.run(story)
