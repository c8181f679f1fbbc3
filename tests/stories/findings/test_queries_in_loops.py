"""Stories of one SELECT that a loop runs for each of its items, and of its remedies."""

from __future__ import annotations

import importlib
import sys
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.orm import aliased, with_parent

from session_tracer.testing import Captured, capture
from tests.good_code.silence import only_sync
from tests.library import Author, Book, Letter, authors, keep
from tests.stories.findings.due import Due, assert_found
from tests.stories.findings.mappings import Company, Visit, tables
from tests.stories.findings.reading import tell
from tests.stories.lines import marked
from tests.twins import on_each_database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from sqlalchemy.orm import Session

    from tests.twins import Twin


async def by_key(session: Any, author: Author) -> Any:
    return await session.scalar(select(Author.name).where(Author.id == author.id))  # <- asked


async def by_filter(session: Any, author: Author) -> Any:
    query = select(Author.name).filter_by(id=author.id)
    return (await session.execute(query)).all()  # <- asked


async def by_foreign_key(session: Any, author: Author) -> Any:
    query = select(Book).where(Book.author_id == author.id)
    return (await session.scalars(query)).all()  # <- asked


async def of_its_parent(session: Any, author: Author) -> Any:
    query = select(Book).where(with_parent(author, Author.books))
    return (await session.scalars(query)).all()  # <- asked


async def count(session: Any, author: Author) -> Any:
    books = select(func.count()).select_from(Book).where(Book.author_id == author.id)
    return await session.scalar(books)  # <- asked


async def in_a_list_of_one(session: Any, author: Author) -> Any:
    query = select(Book).where(Book.author_id.in_([author.id]))
    return (await session.scalars(query)).all()  # <- asked


async def to_lock_it(session: Any, author: Author) -> Any:
    query = select(Book).where(Book.author_id == author.id).with_for_update()
    return (await session.scalars(query)).all()  # <- asked


async def as_text(session: Any, author: Author) -> Any:
    query = text("SELECT title FROM books WHERE author_id = :id").bindparams(id=author.id)
    return (await session.execute(query)).all()  # <- asked


async def as_text_with_its_value(session: Any, author: Author) -> Any:
    query = text(f"SELECT title FROM books WHERE author_id = {author.id}")
    return (await session.execute(query)).all()  # <- asked


async def from_a_table(session: Any, author: Author) -> Any:
    books = Book.__table__
    query = select(books.c.title).where(books.c.author_id == author.id)
    return (await session.execute(query)).all()  # <- asked


async def one_row_after_the_other(session: Any, author: Author) -> Any:
    row = select(Book).order_by(Book.id).limit(1).offset(author.id)
    return (await session.scalars(row)).all()  # <- asked


async def the_first_page_of_each(session: Any, author: Author) -> Any:
    page = select(Book).where(Book.author_id == author.id).order_by(Book.id).limit(3)
    return (await session.scalars(page)).all()  # <- asked


async def windows_that_overlap(session: Any, author: Author) -> Any:
    page = select(Book).order_by(Book.id).limit(40).offset(author.id)
    return (await session.scalars(page)).all()  # <- asked


async def of_a_dynamic_relationship(session: Any, author: Author) -> Any:
    return await session.run_sync(lambda _: author.letters.count())  # <- asked


async def of_the_legacy_query(session: Any, author: Author) -> Any:
    return await session.run_sync(
        lambda plain: plain.query(Book).filter_by(author_id=author.id).first()  # <- asked
    )


SPELLINGS: dict[str, tuple[Callable[[Any, Author], Awaitable[Any]], str | None]] = {
    "by primary key": (by_key, "Author"),
    "by filter_by()": (by_filter, "Author"),
    "by foreign key": (by_foreign_key, "Book"),
    "by with_parent()": (of_its_parent, "Book"),
    "a count for each": (count, "Book"),
    "a list of one": (in_a_list_of_one, "Book"),
    "FOR UPDATE": (to_lock_it, "Book"),
    "text": (as_text, None),
    "text that contains the value": (as_text_with_its_value, None),
    "a table": (from_a_table, None),
    "LIMIT 1 OFFSET n": (one_row_after_the_other, "Book"),
    "the first page of each": (the_first_page_of_each, "Book"),
    "windows that overlap": (windows_that_overlap, "Book"),
}


IN_A_LIST = "with .in_(...) or a join"
FIRST = "func.row_number().over(partition_by=...)"
ONE = f"with .in_(...), and {FIRST} if a key has several rows,"
# What reads for all keys at once something else than all of their rows.
FOR_ALL = {
    count: "with .group_by(...) for all keys",
    one_row_after_the_other: "without .offset(...)",
    windows_that_overlap: "without .offset(...)",
    the_first_page_of_each: f"with {FIRST}",
}


async def ask(
    twin: Twin, how: Callable[[Any, Author], Awaitable[Any]], times: int, **settings: Any
) -> Captured:
    """What is reported of a session that asks about each of a few authors."""
    with capture(twin.factory, **settings) as captured:
        async with twin.session() as session:  # <- opened
            for author in (await session.scalars(select(Author).limit(times))).all():
                await how(session, author)  # <- loops
    return captured


def queried(how: Any, entity: str | None, count: int, loop: Any = None) -> Due:
    loop = marked(ask, "<- loops") if loop is None else loop
    of = entity or "books"
    return Due(
        id="query-in-loop",
        site=marked(how, "<- asked"),
        opened=marked(ask, "<- opened"),
        remedy=f"run one SELECT of {of} {FOR_ALL.get(how, IN_A_LIST)} before the loop at {loop}",
        entity=entity,
        count=count,
        evidence={"loop": str(loop)},
    )


@pytest.mark.parametrize("what", SPELLINGS)
def test_the_same_select_with_ten_different_parameters(twin: Twin, what: str) -> None:
    how, entity = SPELLINGS[what]

    async def story() -> None:
        await keep(twin, *authors(12, books_each=2))
        assert_found(await ask(twin, how, 9))
        assert_found(await ask(twin, how, 10), queried(how, entity, 10))

    twin.run(story)


@on_each_database
@pytest.mark.parametrize("what", SPELLINGS)
def test_three_are_enough_for_a_test(twin: Twin, what: str) -> None:
    how, entity = SPELLINGS[what]

    async def story() -> None:
        await keep(twin, *authors(4, books_each=2))
        assert_found(await ask(twin, how, 2, queries_from_one_site=3))
        captured = await ask(twin, how, 4, queries_from_one_site=3)
        assert_found(captured, queried(how, entity, 3))

    twin.run(story)


def test_what_it_reports(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(12))
        (finding,) = (await ask(twin, count, 12)).findings
        assert finding.message == (
            "the same SELECT of Book ran with at least 10 different parameters from one line"
        )
        assert finding.evidence == {
            "loop": str(marked(ask, "<- loops")),
            "table": "books",
            "statement": "SELECT count(*) AS count_1 FROM books WHERE books.author_id = ?",
        }
        assert finding.total is not None
        assert (finding.total.count, finding.total.noun) == (12, "SELECT")
        assert "author 1" not in str(finding)

    twin.run(story)


@pytest.mark.parametrize("how", [of_a_dynamic_relationship, of_the_legacy_query])
def test_what_only_a_plain_session_has(twin: Twin, how: Any) -> None:
    async def story() -> None:
        await keep(twin, *authors(4))
        (finding,) = (await ask(twin, how, 4, queries_from_one_site=3)).findings
        assert (finding.id, finding.count) == ("query-in-loop", 3)
        assert finding.evidence["loop"] == str(marked(ask, "<- loops"))

    twin.run(story)


def test_a_write_only_relationship(twin: Twin) -> None:
    async def story() -> None:
        async with tables(twin):
            async with twin.session() as session:
                session.add_all(Company() for _ in range(3))
                await session.commit()
            with capture(twin.factory, queries_from_one_site=3) as captured:
                async with twin.session() as session:
                    for company in (await session.scalars(select(Company))).all():
                        await session.scalars(company.visits.select())
            (finding,) = captured.findings
            assert (finding.id, finding.entity) == ("query-in-loop", Visit.__name__)

    twin.run(story)


def each_of_a_stream(session: Any) -> None:
    for author in session.scalars(select(Author).execution_options(yield_per=2)):
        session.scalar(select(Book).where(Book.author_id == author.id))  # <- asked


def test_the_query_of_each_streamed_object(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(4, books_each=2))
        (finding,) = (await tell(twin, each_of_a_stream, queries_from_one_site=3)).findings
        assert (finding.id, finding.site) == ("query-in-loop", marked(each_of_a_stream, "<- asked"))

    twin.run(story)


def titled(session: Session, title: str) -> Any:
    return session.scalar(select(Book).where(Book.title == title))


def three_before_its_first_item(session: Session) -> Iterator[int]:
    titled(session, "one")
    titled(session, "two")
    titled(session, "three")
    yield from range(5)


def one_before_its_first_item(session: Session, number: int) -> Iterator[int]:
    titled(session, f"title {number}")
    yield from range(2)


async def atitled(session: Any, title: str) -> Any:
    return await session.scalar(select(Book).where(Book.title == title))


async def athree_before_its_first_item(session: Any) -> AsyncIterator[int]:
    await atitled(session, "one")
    await atitled(session, "two")
    await atitled(session, "three")
    for number in range(5):
        yield number


async def aone_before_its_first_item(session: Any, number: int) -> AsyncIterator[int]:
    await atitled(session, f"title {number}")
    yield number


def consumed_once(session: Session) -> None:
    for _ in three_before_its_first_item(session):
        pass


def consumed_by_a_comprehension(session: Session) -> list[int]:
    return [one for one in three_before_its_first_item(session) if one]


def consumed_by_a_generator(session: Session) -> list[int]:
    return [*(one for _, one in enumerate(three_before_its_first_item(session)))]


async def awaited_once(session: Any) -> None:
    async for _ in athree_before_its_first_item(session):
        pass


async def awaited_by_a_comprehension(session: Any) -> list[int]:
    return [one async for one in athree_before_its_first_item(session)]


async def found_in(twin: Twin, work: Any) -> list[Any]:
    with capture(twin.factory, queries_from_one_site=3) as captured:
        async with twin.session() as session:
            await (work(session) if iscoroutinefunction(work) else session.run_sync(work))
    return captured.findings


@pytest.mark.parametrize(
    "work",
    [
        *(consumed_once, consumed_by_a_comprehension, consumed_by_a_generator),
        *(awaited_once, awaited_by_a_comprehension),
    ],
)
def test_a_for_does_not_repeat_what_its_generator_runs_before_the_first_item(
    twin: Twin, work: Any
) -> None:
    async def story() -> None:
        assert await found_in(twin, work) == []

    twin.run(story)


def a_generator_each(session: Session) -> None:
    for number in range(4):
        for _ in one_before_its_first_item(session, number):  # <- loops
            break


def a_generator_each_in_a_comprehension(session: Session) -> list[list[int]]:
    return [[*one_before_its_first_item(session, number)] for number in range(4)]  # <- loops


async def an_awaited_generator_each(session: Any) -> None:
    for number in range(4):
        async for _ in aone_before_its_first_item(session, number):  # <- loops
            pass


class Titles:
    """Runs a SELECT for each of its items."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._number = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._number == 4:
            raise StopIteration
        self._number += 1
        return titled(self._session, f"title {self._number}")


def an_iterators_items(session: Session) -> None:
    for _ in Titles(session):  # <- loops
        pass


def letters_of(author: Author) -> dict[int, int]:
    return dict((one.id, one.author_id) for one in author.letters)  # noqa: C402


def the_letters_of_each(session: Session) -> None:
    for author in session.scalars(select(Author)).all():
        letters_of(author)  # <- loops


@pytest.mark.parametrize(
    "work",
    [
        *(a_generator_each, a_generator_each_in_a_comprehension, an_awaited_generator_each),
        *(an_iterators_items, the_letters_of_each),
    ],
)
def test_the_loop_that_runs_another_generator_in_each_turn(twin: Twin, work: Any) -> None:
    async def story() -> None:
        await keep(twin, *authors(4, books_each=0))
        (finding,) = await found_in(twin, work)
        assert finding.evidence["loop"] == str(marked(work, "<- loops"))

    twin.run(story)


async def others_before_the_same_in_a_loop(session: Any) -> None:
    await atitled(session, "one")
    await atitled(session, "two")
    for _ in range(6):
        await atitled(session, "three")  # <- loops


async def others_before_others_in_a_loop(session: Any) -> None:
    await atitled(session, "one")
    await atitled(session, "two")
    for number in range(3):
        await atitled(session, f"title {number}")  # <- loops


async def others_at_two_lines_of_a_loop(session: Any) -> None:
    for number in range(3):
        if number % 2:
            await atitled(session, f"odd {number}")
        else:
            await atitled(session, f"even {number}")  # <- loops


async def others_in_a_function_with_a_loop(session: Any, number: int) -> None:
    await atitled(session, f"title {number}")
    for name in ["name"]:
        await atitled(session, f"{name} {number}")


async def others_in_a_loop_around_it(session: Any) -> None:
    for number in range(3):
        await others_in_a_function_with_a_loop(session, number)  # <- loops


@pytest.mark.parametrize(
    ("work", "id_"),
    [
        (others_before_the_same_in_a_loop, "repeated-select"),
        (others_before_others_in_a_loop, "query-in-loop"),
        (others_at_two_lines_of_a_loop, "query-in-loop"),
        (others_in_a_loop_around_it, "query-in-loop"),
    ],
)
def test_what_ran_before_a_loop_does_not_count_for_it(twin: Twin, work: Any, id_: str) -> None:
    async def story() -> None:
        (finding,) = await found_in(twin, work)
        assert (finding.id, finding.evidence["loop"]) == (id_, str(marked(work, "<- loops")))

    twin.run(story)


async def the_same_before_the_loop(session: Any) -> None:
    await atitled(session, "one")
    await atitled(session, "two")
    await atitled(session, "three")
    for _ in range(6):
        pass


def test_the_remedy_of_what_is_the_same_in_the_loop(twin: Twin) -> None:
    async def story() -> None:
        (finding,) = await found_in(twin, others_before_the_same_in_a_loop)
        assert finding.remedy.startswith("run it once before the loop at ")
        assert await found_in(twin, the_same_before_the_loop) == []

    twin.run(story)


def test_pages_of_each_of_many(twin: Twin) -> None:
    """The pages of one author are one result; those of another are another one."""

    async def all_pages(session: Any, author: Author) -> None:
        for number in range(2):
            page = select(Book).where(Book.author_id == author.id).order_by(Book.id).limit(2)
            await session.scalars(page.offset(2 * number))  # <- asked

    async def story() -> None:
        await keep(twin, *authors(4, books_each=3))
        captured = await ask(twin, all_pages, 3, queries_from_one_site=4)
        assert_found(captured)
        (finding,) = (await ask(twin, all_pages, 4, queries_from_one_site=4)).findings
        assert (finding.id, finding.site) == ("query-in-loop", marked(all_pages, "<- asked"))

    twin.run(story)


async def next_of_each(session: Any) -> None:
    for author in (await session.scalars(select(Author).order_by(Author.id))).all():
        after = select(Author.id).where(Author.id > author.id).order_by(Author.id).limit(3)
        await session.scalars(after)  # <- asked


async def next_of_each_in_a_comprehension(session: Any) -> dict[str, Any]:
    names = (await session.scalars(select(Author.name).order_by(Author.name))).all()
    after = select(Author.id).order_by(Author.name).limit(2)
    return {
        name: await session.scalars(after.where(Author.name > name))  # <- asked
        for name in names
    }


async def a_list_of_each(session: Any) -> None:
    by_author: dict[int, list[int]] = {}
    for book in (await session.scalars(select(Book))).all():
        by_author.setdefault(book.author_id, []).append(book.id)
    for keys in by_author.items():
        titles = select(Book.title).where(Book.id.in_(keys[1]))
        await session.scalars(titles)  # <- asked


@pytest.mark.parametrize("how", [next_of_each, next_of_each_in_a_comprehension, a_list_of_each])
def test_what_only_looks_like_parts_of_one_result(twin: Twin, how: Any) -> None:
    async def story() -> None:
        await keep(twin, *authors(12, books_each=2))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                await how(session)
        (finding,) = captured.findings
        assert (finding.id, finding.count) == ("query-in-loop", 10)
        assert finding.site == marked(how, "<- asked")

    twin.run(story)


async def a_list_for_each_result(session: Any) -> None:
    ids = (await session.scalars(select(Book.id))).all()
    for divisor, keys in dict.fromkeys(range(2, 14), ids).items():
        of_each = select(Book.author_id, func.sum(Book.id % divisor)).group_by(Book.author_id)
        await session.execute(of_each.where(Book.id.in_(keys)))


def test_a_list_is_no_other_one_where_only_the_result_differs(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(12, books_each=2))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                await a_list_for_each_result(session)
        assert_found(captured)

    twin.run(story)


async def two_at_once(session: Any, author: Author) -> Any:
    for entity in (Book, Letter):
        of_author = select(entity).where(entity.author_id == author.id)
        await session.scalars(of_author)  # <- asked


def test_two_queries_of_one_line_are_one_finding(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(5))
        (finding,) = (await ask(twin, two_at_once, 5, queries_from_one_site=3)).findings
        assert "the same SELECT of Book and Letter ran " in finding.message
        assert finding.remedy.startswith("run one SELECT of Book and Letter with .in_(...) or ")

    twin.run(story)


async def one_of_twelve(session: Any, author: Author) -> Any:
    return await session.scalar(select(Book).where(Book.id == author.id % 12))  # <- asked


async def one_of_three(session: Any, author: Author) -> Any:
    return await session.scalar(select(Book).where(Book.id == author.id % 3))  # <- asked


def test_what_repeats_some_of_its_parameters_is_one_finding(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(100))
        assert_found(await ask(twin, one_of_twelve, 100), queried(one_of_twelve, "Book", 10))
        told = await ask(twin, one_of_three, 100, queries_from_one_site=4)
        assert {finding.id for finding in told.findings} == {"repeated-select"}
        told = await ask(twin, one_of_twelve, 100, ignore={"query-in-loop"})
        assert {finding.id for finding in told.findings} == {"repeated-select"}

    twin.run(story)


def get_or_create(session: Any, names: list[str]) -> None:
    for name in names:
        if session.scalar(select(Author).where(Author.name == name)) is None:  # <- asked
            session.add(Author(name=name))
    session.commit()


def test_a_query_that_flushes_is_one_finding(twin: Twin) -> None:
    names = [f"author {number}" for number in range(15)]

    async def story() -> None:
        told = await tell(twin, lambda session: get_or_create(session, names))
        (finding,) = told.findings
        assert (finding.id, finding.site) == ("query-in-loop", marked(get_or_create, "<- asked"))
        assert finding.count == 10

    twin.run(story)


# What no SELECT for all of them replaces, and what looks like it.


async def by_a_pattern(session: Any, author: Author) -> Any:
    return (await session.scalars(select(Book).where(Book.title.like(f"%{author.name}%")))).all()


async def by_a_pattern_of_each(session: Any, author: Author) -> Any:
    query = select(Book).where(Book.author_id == author.id, Book.title.startswith(author.name))
    return (await session.scalars(query.order_by(Book.title).limit(2))).all()


async def with_room_for(session: Any, author: Author) -> Any:
    query = select(Book).where(Book.author_id == author.id, Book.id + author.id <= 50)
    return (await session.scalars(query)).all()


async def by_what_it_calculates(session: Any, author: Author) -> Any:
    query = select(Author).where(author.id % Author.id == 0)
    return (await session.scalars(query)).all()


async def but_itself(session: Any, author: Author) -> Any:
    return (await session.scalars(select(Author).where(Author.id != author.id))).all()


async def another_sum_of_all(session: Any, author: Author) -> Any:
    query = select(Book.author_id, func.sum(Book.id % author.id)).where(Book.author_id.in_([1, 2]))
    return (await session.execute(query.group_by(Book.author_id))).all()


@pytest.mark.parametrize(
    "how",
    [
        another_sum_of_all,
        by_a_pattern,
        by_a_pattern_of_each,
        with_room_for,
        by_what_it_calculates,
        but_itself,
    ],
)
def test_what_no_list_of_keys_replaces(twin: Twin, how: Any) -> None:
    async def story() -> None:
        await keep(twin, *authors(12, books_each=2))
        assert_found(await ask(twin, how, 12))
        assert_found(await ask(twin, how, 12, queries_from_one_site=3))

    twin.run(story)


async def of_each_by_one_pattern(session: Any, author: Author) -> Any:
    query = select(Book).where(Book.author_id == author.id, Book.title.like("title%"))
    return (await session.scalars(query)).all()  # <- asked


async def of_each_with_the_same_sum(session: Any, author: Author) -> Any:
    query = select(Book).where(Book.id + 1 <= 50, Book.author_id == author.id)
    return (await session.scalars(query)).all()  # <- asked


async def by_a_function_of_its_name(session: Any, author: Author) -> Any:
    query = select(Author).where(func.lower(Author.name) == func.lower(author.name))
    return (await session.scalars(query)).all()  # <- asked


async def of_another_of_its_name(session: Any, author: Author) -> Any:
    query = select(Author.id).where(Author.name == author.name, Author.id != author.id)
    return await session.scalar(query)  # <- asked


async def a_sum_of_each(session: Any, author: Author) -> Any:
    query = select(func.coalesce(func.sum(Book.id), 0)).where(Book.author_id == author.id)
    return await session.scalar(query)  # <- asked


def test_a_sum_of_each(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(5, books_each=1))
        (finding,) = (await ask(twin, a_sum_of_each, 5, queries_from_one_site=3)).findings
        assert finding.site == marked(a_sum_of_each, "<- asked")
        assert f" {FOR_ALL[count]} before " in finding.remedy
        assert finding.evidence["loop"] == str(marked(ask, "<- loops"))
        assert finding.total is not None
        assert finding.total.count == 5

    twin.run(story)


@pytest.mark.parametrize(
    "how",
    [
        of_each_by_one_pattern,
        of_each_with_the_same_sum,
        by_a_function_of_its_name,
        of_another_of_its_name,
    ],
)
def test_what_a_list_of_keys_replaces(twin: Twin, how: Any) -> None:
    async def story() -> None:
        await keep(twin, *authors(12, books_each=2))
        (finding,) = (await ask(twin, how, 12)).findings
        assert (finding.id, finding.site) == ("query-in-loop", marked(how, "<- asked"))
        assert f" {IN_A_LIST} before " in finding.remedy
        assert finding.total is not None
        assert finding.total.count == 12

    twin.run(story)


LIBRARY = """
def find(session, statement):
    return session.scalar(statement)


def find_all(session, statements):
    return [find(session, one) for one in statements]


def find_all_by(sessions, statements):
    with sessions() as session:
        return find_all(session, statements)


def each(items, function):
    for item in items:
        function(item)
"""


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A library that reads one row, or several one by one, and one that calls functions."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "row_reader.py").write_text(LIBRARY)
    monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module("row_reader")
    del sys.modules["row_reader"]


def test_a_loop_in_one_call_of_a_library(twin: Twin, library: Any) -> None:
    asked = [select(Book).where(Book.author_id == number) for number in range(12)]

    def by_the_library(session: Session) -> None:
        library.find_all(session, asked)

    def by_the_application(session: Session) -> None:
        for one in asked:
            library.find(session, one)

    def by_both(session: Session) -> None:
        for number in range(6):
            library.find_all(session, asked[2 * number : 2 * number + 2])

    def around_the_applications_function(session: Session) -> None:
        library.each(asked, lambda one: session.scalar(one))

    async def found(work: Callable[[Session], None]) -> list[str]:
        captured = await tell(twin, work)
        return [one.id for one in captured.findings]

    async def story() -> None:
        assert await found(by_the_library) == []
        assert await found(by_the_application) == ["query-in-loop"]
        assert await found(by_both) == ["query-in-loop"]
        assert await found(around_the_applications_function) == ["query-in-loop"]

    twin.run(story)


@only_sync
def test_calls_of_a_library_that_opens_a_session_for_each(twin: Twin, library: Any) -> None:
    """The application's loop has no part in what one of the sessions does."""
    asked = [select(Book).where(Book.author_id == number) for number in range(12)]

    async def story() -> None:
        with capture(twin.factory) as captured:
            for _ in range(2):
                library.find_all_by(twin.factory, asked)
        assert_found(captured)

    twin.run(story)


def test_calls_of_a_helper_whose_loop_is_not_seen(twin: Twin) -> None:
    def find(session: Session, number: int) -> Any:
        return session.scalar(select(Book).where(Book.author_id == number))

    def work(session: Session) -> None:
        list(map(lambda number: find(session, number), range(12)))  # noqa: C417 - no loop in Python

    async def story() -> None:
        (finding,) = (await tell(twin, work)).findings
        assert finding.evidence.get("loop") is None
        assert finding.remedy == f"run one SELECT of Book {IN_A_LIST} for all calls of find()"

    twin.run(story)


# What it tells to do.


async def all_before_the_loop(session: Any) -> dict[int, list[Book]]:
    keys = (await session.scalars(select(Author.id))).all()
    by_author: dict[int, list[Book]] = {key: [] for key in keys}
    for book in await session.scalars(select(Book).where(Book.author_id.in_(keys))):
        by_author[book.author_id].append(book)
    return by_author


async def a_join(session: Any) -> dict[int, int]:
    books = func.count(Book.id)
    query = select(Author.id, books).outerjoin(Author.books).group_by(Author.id)
    return {row[0]: row[1] for row in await session.execute(query)}


async def the_first_of_each(session: Any, author: Author) -> Any:
    first = select(Book).where(Book.author_id == author.id).order_by(Book.title)
    return await session.scalar(first.limit(1))


async def the_first_of_all(session: Any) -> Any:
    number = func.row_number().over(partition_by=Book.author_id, order_by=Book.title)
    numbered = select(Book, number.label("number")).subquery()
    first = select(numbered.c.author_id, numbered.c.title).where(numbered.c.number == 1)
    return {row[0]: row[1] for row in await session.execute(first)}


async def the_one_of_each(session: Any, author: Author) -> Any:
    named = select(Author).where(Author.name == author.name).order_by(Author.id)
    return await session.scalar(named.limit(1))


async def the_ones_of_all(session: Any) -> Any:
    names = (await session.scalars(select(Author.name))).all()
    found = await session.scalars(select(Author).where(Author.name.in_(names)))
    return {author.name: author for author in found}


async def the_author_after_each(session: Any, author: Author) -> Any:
    after = select(Author).where(Author.name > author.name).order_by(Author.name)
    return await session.scalar(after.limit(1))


async def the_author_after_all(session: Any) -> Any:
    after = aliased(Author)
    number = func.row_number().over(partition_by=Author.id, order_by=after.name)
    pairs = select(Author.id, after.name, number.label("number"))
    pairs = pairs.outerjoin(after, after.name > Author.name)
    first = pairs.subquery()
    rows = await session.execute(select(first.c.id, first.c.name).where(first.c.number == 1))
    return {row[0]: row[1] for row in rows}


async def all_rows(session: Any) -> Any:
    return (await session.scalars(select(Book).order_by(Book.id).limit(12))).all()


@pytest.mark.parametrize(
    ("how", "remedy", "cure"),
    [
        (by_foreign_key, IN_A_LIST, all_before_the_loop),
        (count, FOR_ALL[count], a_join),
        (the_first_of_each, ONE, the_first_of_all),
        (the_one_of_each, ONE, the_ones_of_all),
        (the_author_after_each, f"with a join and {FIRST}", the_author_after_all),
        (one_row_after_the_other, "without .offset(...)", all_rows),
    ],
)
def test_its_remedies(twin: Twin, how: Any, remedy: str, cure: Any) -> None:
    async def story() -> None:
        await keep(twin, *authors(12, books_each=2))
        (finding,) = (await ask(twin, how, 12)).findings
        assert finding.id == "query-in-loop"
        assert f" {remedy} before the loop" in finding.remedy
        with capture(twin.factory, queries_from_one_site=2) as captured:
            async with twin.session() as session:
                assert len(await cure(session)) == 12
        assert_found(captured)

    twin.run(story)


def test_one_row_after_the_other_by_number_in_a_while_loop(twin: Twin) -> None:
    """Its next OFFSET is known before: it is no key that a row brings."""

    async def story() -> None:
        await keep(twin, *authors(6))
        with capture(twin.factory, queries_from_one_site=3) as captured:
            async with twin.session() as session:
                number, found = 0, True
                while found:
                    row = select(Author.name).order_by(Author.id).limit(1).offset(number)
                    found = await session.scalar(row)
                    number += 1
        assert [finding.id for finding in captured.findings] == ["query-in-loop"]

    twin.run(story)


async def add_or_find(session: Any, names: list[str]) -> None:
    for name in names:
        query = select(Author).where(Author.name == name)
        if (await session.scalars(query)).one_or_none() is None:
            session.add(Author(name=name))


async def look_each_up(session: Any, names: list[str]) -> None:
    for name in names:
        query = select(Author).where(Author.name == name)
        assert (await session.scalars(query)).one_or_none() is not None


def test_what_was_added_before_the_loop_is_found_by_the_one_select(twin: Twin) -> None:
    async def story() -> None:
        names = [f"author {number}" for number in range(11)]
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                session.add_all([Author(name=name) for name in names])
                await look_each_up(session, names)
                await session.rollback()
        (finding,) = captured.findings
        assert finding.id == "query-in-loop"
        assert "add each new" not in finding.remedy

    twin.run(story)


async def add_or_find_in_its_result(session: Any, names: list[str]) -> None:
    query = select(Author).where(Author.name.in_(names))
    found = {author.name: author for author in await session.scalars(query)}
    for name in names:
        if name not in found:
            found[name] = Author(name=name)
            session.add(found[name])


def test_what_the_loop_adds_belongs_to_the_result_of_the_one_select(twin: Twin) -> None:
    async def story() -> None:
        names = [f"author {number}" for number in range(11)]
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                await add_or_find(session, [*names, names[0]])
                await session.rollback()
        (finding,) = captured.findings
        assert finding.id == "query-in-loop"
        assert finding.remedy.endswith(", and add each new Author to its result")
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                await add_or_find_in_its_result(session, [*names, names[0]])
                await session.commit()
                assert len((await session.scalars(select(Author))).all()) == 11
        assert_found(captured)

    twin.run(story)
