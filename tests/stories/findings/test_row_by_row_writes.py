"""Stories of rows that are written by one statement each, or together."""

from __future__ import annotations

import importlib
import itertools
import sys
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import delete, func, insert, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite

from session_tracer.testing import Captured, capture
from tests.library import Author, Book, authors, keep
from tests.stories.findings.due import Due, assert_found
from tests.stories.findings.mappings import Manager, Part, tables
from tests.stories.findings.remedies import pasted, to_write
from tests.stories.lines import marked
from tests.twins import on_each_database

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from sqlalchemy.orm import Session

    from session_tracer import Finding
    from tests.twins import Twin


async def tell(twin: Twin, work: Callable[[Any], Awaitable[object]], **settings: Any) -> Captured:
    with capture(twin.factory, **settings) as captured:
        async with twin.session() as session:  # <- opened
            await work(session)
    return captured


def one_by_one(how: Any, entity: str, remedy: str, **evidence: Any) -> Due:
    return Due(
        id="row-by-row-writes",
        site=marked(how, "<- written"),
        opened=marked(tell, "<- opened"),
        remedy=remedy,
        entity=entity,
        count=3,
        evidence=evidence,
    )


def awaited(twin: Twin) -> str:
    return "await " if twin.is_async else ""


async def write(finding: Finding, session: Any, rows: Any) -> None:
    """Write the rows as the finding says, which leaves open what rows those are."""
    code = to_write(finding).removeprefix("one ").removesuffix(" for all rows")
    code = code.removeprefix("await ").replace("[{...}, {...}, ...]", "rows")
    await pasted(code.replace("(...)", "(Author.id.in_(rows))"), session=session, rows=rows)
    await session.commit()


# By statements of the application's own.


async def insert_each(session: Any) -> None:
    for number in (1, 2, 3):
        await session.execute(insert(Author).values(name=f"new {number}"))  # <- written
    await session.commit()


async def update_each(session: Any) -> None:
    for number in (1, 2, 3):
        changed = update(Author).where(Author.id == number).values(name=f"new {number}")
        await session.execute(changed)  # <- written
    await session.commit()


async def delete_each(session: Any) -> None:
    for number in (1, 2, 3):
        await session.execute(delete(Author).where(Author.id == number))  # <- written
    await session.commit()


ROWS = [{"id": number, "name": f"new {number}"} for number in (1, 2, 3)]
STATEMENTS: dict[str, tuple[Any, str, Any]] = {
    "INSERT": (
        insert_each,
        "session.execute(insert(Author), [{...}, {...}, ...])",
        [{"name": row["name"]} for row in ROWS],
    ),
    "UPDATE": (update_each, "session.execute(update(Author), [{...}, {...}, ...])", ROWS),
    "DELETE": (
        delete_each,
        "session.execute(delete(Author).where(...))",
        [1, 2, 3],
    ),
}


@pytest.mark.parametrize("kind", STATEMENTS)
def test_an_execute_for_each_row(twin: Twin, kind: str) -> None:
    how, code, rows = STATEMENTS[kind]

    async def story() -> None:
        await keep(twin, *authors(0 if kind == "INSERT" else 3))
        captured = await tell(twin, how, single_row_writes=3)
        remedy = f"{awaited(twin)}{code}"
        due = one_by_one(
            how,
            "Author",
            f"one {remedy} for all rows" if kind == "DELETE" else remedy,
            table="authors",
            kind=kind,
            why="there is one execute() for each row",
        )
        assert_found(captured, due)
        await again()
        assert_found(await tell(twin, how, single_row_writes=4))
        await again()
        (finding,) = captured.findings
        captured = await tell(
            twin, lambda session: write(finding, session, rows), single_row_writes=2
        )
        assert_found(captured)

    async def again() -> None:
        await twin.execute(Author.metadata.drop_all)
        await twin.execute(Author.metadata.create_all)
        await keep(twin, *authors(0 if kind == "INSERT" else 3))

    twin.run(story)


UPSERTS = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
# By the clause: what is added to an INSERT by it, and the remedy's comment.
CLAUSES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "on_conflict_do_nothing(...)": (lambda made: made.on_conflict_do_nothing(), ""),
    "on_conflict_do_update(...)": (
        lambda made: made.on_conflict_do_update(
            index_elements=["name"], set_={"biography": made.excluded.name}
        ),
        "  # take the new values from excluded",
    ),
    "returning(...)": (lambda made: made.returning(Author.id), ""),
    "on_conflict_do_nothing(...).returning(...)": (
        lambda made: made.on_conflict_do_nothing().returning(Author),
        "",
    ),
}


@on_each_database
@pytest.mark.parametrize("clause", CLAUSES)
def test_a_list_of_rows_keeps_the_clauses_of_the_insert(
    twin: Twin, database: str, clause: str
) -> None:
    add, comment = CLAUSES[clause]
    statement = add(UPSERTS[database](Author))

    async def insert_each_with_it(session: Any) -> None:
        for row in [*ROWS, *ROWS] if "conflict" in clause else ROWS:
            await session.execute(statement.values(name=row["name"]))  # <- written
        await session.commit()

    async def cured(session: Any) -> None:
        rows = [{"name": row["name"]} for row in ROWS]
        await session.execute(statement, rows)
        await session.commit()

    async def story() -> None:
        captured = await tell(twin, insert_each_with_it, single_row_writes=3)
        remedy = f"session.execute(insert(Author).{clause}, [{{...}}, {{...}}, ...]){comment}"
        due = one_by_one(
            insert_each_with_it,
            "Author",
            f"{awaited(twin)}{remedy}",
            why="there is one execute() for each row",
        )
        assert_found(captured, due)
        if "conflict" not in clause:
            await twin.execute(Author.metadata.drop_all)
            await twin.execute(Author.metadata.create_all)
        assert_found(await tell(twin, cured, single_row_writes=2))

    twin.run(story)


async def insert_each_from_a_select(session: Any) -> None:
    for number in (1, 2, 3):
        name = select(literal(f"new {number}"))
        await session.execute(insert(Author).from_select(["name"], name))  # <- written
    await session.commit()


def test_an_insert_from_a_select_takes_no_list_of_rows(twin: Twin) -> None:
    async def story() -> None:
        (finding,) = (await tell(twin, insert_each_from_a_select, single_row_writes=3)).findings
        assert finding.remedy == (
            f"one {awaited(twin)}session.execute(insert(Author).from_select(...)) for all rows"
        )

    twin.run(story)


# What a list of rows with their keys cannot have.


async def update_if_unknown(session: Any) -> None:
    for number in (1, 2, 3):
        of_one = update(Author).where(Author.id == number, Author.biography == "")
        await session.execute(of_one.values(biography="known"))  # <- written
    await session.commit()


async def update_by_name(session: Any) -> None:
    for number in (1, 2, 3):
        of_one = update(Author).where(Author.name == f"author {number - 1}")
        await session.execute(of_one.values(biography="known"))  # <- written
    await session.commit()


async def update_by_an_expression(session: Any) -> None:
    for number in (1, 2, 3):
        of_one = update(Author).where(Author.id == number)
        await session.execute(of_one.values(biography=Author.name + "'s life"))  # <- written
    await session.commit()


async def update_and_count(session: Any) -> None:
    for number in (1, 2, 3):
        of_one = update(Author).where(Author.id == number).values(biography="known")
        result = await session.execute(of_one)  # <- written
        assert result.rowcount == 1
    await session.commit()


async def delete_and_count(session: Any) -> None:
    for number in (1, 2, 3):
        result = await session.execute(delete(Author).where(Author.id == number))  # <- written
        assert result.rowcount == 1
    await session.commit()


UPDATE_ALL = (
    "one {}session.execute(update(Author).where(...).values(...)) for all rows that get the same "
    "values, with the conditions they share"
)
COUNTED = "  # its rowcount is that of all these rows"
ONE_STATEMENT: dict[Any, tuple[str, Any]] = {
    update_if_unknown: (
        UPDATE_ALL,
        update(Author)
        .where(Author.id.in_([1, 2, 3]), Author.biography == "")
        .values(biography="known"),
    ),
    update_by_name: (
        UPDATE_ALL,
        update(Author).where(Author.name.like("author %")).values(biography="known"),
    ),
    update_by_an_expression: (
        UPDATE_ALL,
        update(Author).where(Author.id.in_([1, 2, 3])).values(biography=Author.name + "'s life"),
    ),
    update_and_count: (
        UPDATE_ALL + COUNTED,
        update(Author).where(Author.id.in_([1, 2, 3])).values(biography="known"),
    ),
    delete_and_count: (
        "one {}session.execute(delete(Author).where(...)) for all rows" + COUNTED,
        delete(Author).where(Author.id.in_([1, 2, 3])),
    ),
}


@pytest.mark.parametrize("how", ONE_STATEMENT)
def test_a_statement_for_all_rows_keeps_the_conditions(twin: Twin, how: Any) -> None:
    remedy, for_all = ONE_STATEMENT[how]

    async def cured(session: Any) -> None:
        result = await session.execute(for_all)
        assert result.rowcount == 3
        await session.commit()

    async def story() -> None:
        await keep(twin, *authors(3))
        await twin.execute(lambda connection: connection.execute(update(Author).values(BLANK)))
        (finding,) = (await tell(twin, how, single_row_writes=3)).findings
        assert (finding.site, finding.remedy) == (
            marked(how, "<- written"),
            remedy.format(awaited(twin)),
        )
        await twin.execute(Author.metadata.drop_all)
        await twin.execute(Author.metadata.create_all)
        await keep(twin, *authors(3))
        await twin.execute(lambda connection: connection.execute(update(Author).values(BLANK)))
        assert_found(await tell(twin, cured, single_row_writes=2))

    twin.run(story)


BLANK = {"biography": ""}


# By flushes.


async def flush_each(session: Any) -> None:
    for number in (1, 2, 3):
        session.add(Author(name=f"new {number}"))
        await session.flush()  # <- written
    await session.commit()


async def flush_after_the_loop(session: Any) -> None:
    for number in (4, 5, 6):
        session.add(Author(name=f"new {number}"))
    await session.flush()
    await session.commit()


def test_a_flush_for_each_row(twin: Twin) -> None:
    async def story() -> None:
        captured = await tell(twin, flush_each, single_row_writes=3)
        due = one_by_one(
            flush_each,
            "Author",
            f"one {awaited(twin)}session.flush() after the loop, none inside it",
            table="authors",
            kind="INSERT",
            flushes=3,
            why="one statement can only write rows of the same flush",
        )
        assert_found(captured, due)
        assert_found(await tell(twin, flush_after_the_loop, single_row_writes=2))

    twin.run(story)


# By a helper: the loop is in the function that calls it.


async def insert_rows(session: Any, rows: list[dict[str, Any]]) -> None:
    await session.execute(insert(Author), rows)  # <- written


async def delete_one(session: Any, key: int) -> None:
    await session.execute(delete(Author).where(Author.id == key))  # <- written


async def save(session: Any, made: Author) -> None:
    session.add(made)
    await session.flush()  # <- written


async def insert_each_by_helper(session: Any) -> None:
    for row in ROWS:
        await insert_rows(session, [{"name": row["name"]}])  # <- loop
    await session.commit()


async def insert_all_by_helper(session: Any) -> None:
    await insert_rows(session, [{"name": row["name"]} for row in ROWS])
    await session.commit()


async def delete_each_by_helper(session: Any) -> None:
    for key in (1, 2, 3):
        await delete_one(session, key)  # <- loop
    await session.commit()


async def delete_after_the_loop(session: Any) -> None:
    await session.execute(delete(Author).where(Author.id.in_([1, 2, 3])))
    await session.commit()


async def save_each(session: Any) -> None:
    for number in (1, 2, 3):
        await save(session, Author(name=f"new {number}"))  # <- loop
    await session.commit()


HELPERS: dict[Any, tuple[Any, str, Any]] = {
    insert_each_by_helper: (
        insert_rows,
        (
            "collect the rows in the loop at {}, "
            "then {}session.execute(insert(Author), [{{...}}, {{...}}, ...])"
        ),
        insert_all_by_helper,
    ),
    delete_each_by_helper: (
        delete_one,
        (
            "collect the rows in the loop at {}, "
            "then one {}session.execute(delete(Author).where(...)) for all rows"
        ),
        delete_after_the_loop,
    ),
    save_each: (
        save,
        "one {1}session.flush() after the loop at {0}, none inside it",
        flush_after_the_loop,
    ),
}


@pytest.mark.parametrize("how", HELPERS)
def test_the_loop_around_a_helper_is_named(twin: Twin, how: Any) -> None:
    helper, remedy, cured = HELPERS[how]
    loop = marked(how, "<- loop")

    async def story() -> None:
        await keep(twin, *authors(3))
        (finding,) = (await tell(twin, how, single_row_writes=3)).findings
        assert finding.site == marked(helper, "<- written")
        assert finding.evidence["loop"] == str(loop)
        assert finding.remedy == remedy.format(loop, awaited(twin))
        await twin.execute(Author.metadata.drop_all)
        await twin.execute(Author.metadata.create_all)
        await keep(twin, *authors(3))
        assert_found(await tell(twin, cured, single_row_writes=2))

    twin.run(story)


async def call_in_turn(session: Any) -> None:
    await save(session, Author(name="new 1"))
    await save(session, Author(name="new 2"))
    await save(session, Author(name="new 3"))
    await session.commit()


def test_calls_that_follow_one_another_are_no_loop(twin: Twin) -> None:
    async def story() -> None:
        (finding,) = (await tell(twin, call_in_turn, single_row_writes=3)).findings
        assert "loop" not in finding.evidence
        assert finding.remedy == (
            f"one {awaited(twin)}session.flush() after the loop, none inside it"
        )

    twin.run(story)


async def set_expressions(session: Any) -> None:
    for author in (await session.scalars(select(Author))).all():
        author.name = func.upper(Author.name)
    await session.commit()  # <- written


async def set_now_this_now_that(session: Any) -> None:
    for book in (await session.scalars(select(Book).order_by(Book.id))).all():
        if book.id == 2:
            book.title = "another"
        else:
            book.copies = 2
    await session.commit()  # <- written


async def add_a_chain(session: Any) -> None:
    session.add(Part(parts=[Part(parts=[Part()])]))
    await session.commit()  # <- written


OTHERS = (
    "each row sets other columns, or another SQL expression, than the row before: "
    "one statement can only write consecutive rows that set the same columns"
)
EXPRESSIONS = (
    "rows are updated one by one if they set a SQL expression, if the mapper has a "
    "version_id_col, or if eager_defaults=True reads back generated values"
)
CHAINED = (
    "rows are inserted one by one if they set a SQL expression, if they depend on each other, "
    "or if the database cannot return the generated keys of many rows"
)
FLUSHED: dict[str, tuple[Any, str, str, str, str]] = {
    "set by SQL expressions": (set_expressions, "Author", "authors", "UPDATE", EXPRESSIONS),
    "that set other columns": (set_now_this_now_that, "Book", "books", "UPDATE", OTHERS),
    "that depend on each other": (add_a_chain, "Part", "parts", "INSERT", CHAINED),
}


@on_each_database
@pytest.mark.parametrize("what", FLUSHED)
def test_one_flush_of_rows(twin: Twin, what: str) -> None:
    how, entity, table, kind, why = FLUSHED[what]

    async def story() -> None:
        async with tables(twin):
            await keep(twin, *authors(3, books_each=1))
            captured = await tell(twin, how, single_row_writes=3)
            bulk = f"session.execute({kind.lower()}({entity}), [{{...}}, {{...}}, ...])"
            due = one_by_one(
                how,
                entity,
                f"{awaited(twin)}{bulk}",
                table=table,
                kind=kind,
                flushes=1,
                why=why,
            )
            assert_found(captured, due)

    twin.run(story)


# Near-misses: each writes three rows or more, where two statements would be row by row.


async def add_all(session: Any) -> None:
    session.add_all([Author(name=f"new {number}", books=[Book(title="")]) for number in range(3)])
    await session.commit()


async def change_all(session: Any) -> None:
    for author in (await session.scalars(select(Author))).all():
        author.name += "."
    await session.commit()


async def delete_all(session: Any) -> None:
    for book in (await session.scalars(select(Book))).all():
        await session.delete(book)
    await session.commit()


async def insert_all(session: Any) -> None:
    await session.execute(insert(Author), [{"name": f"new {number}"} for number in range(3)])
    await session.execute(insert(Author).values([{"name": "new 3"}, {"name": "new 4"}]))
    await session.commit()


async def insert_all_and_return(session: Any) -> None:
    returning = insert(Author).returning(Author)
    made = await session.scalars(returning, [{"name": f"new {number}"} for number in range(3)])
    assert len(made.all()) == 3
    await session.commit()


async def update_all(session: Any) -> None:
    await session.execute(update(Book).values(copies=2))
    await session.execute(update(Book), [{"id": number, "copies": 3} for number in (1, 2, 3)])
    await session.commit()


async def delete_all_at_once(session: Any) -> None:
    await session.execute(delete(Book))
    await session.commit()


async def commit_each(session: Any) -> None:
    for number in range(3):
        session.add(Author(name=f"new {number}"))
        await session.commit()


async def read_each(session: Any) -> None:
    for number in range(3):
        session.add(Author(name=f"new {number}"))
        assert await session.scalar(select(Author).where(Author.name == f"new {number}"))
    await session.commit()


async def one_of_each_kind(session: Any) -> None:
    session.add(Author(name="new"))
    await session.delete(await session.get(Book, 1))
    (await session.get(Book, 2)).copies = 2
    await session.commit()


async def write_what_is_not_there(session: Any) -> None:
    for number in (7, 8, 9):
        await session.execute(update(Author).where(Author.id == number).values(name="nobody"))
        await session.execute(delete(Author).where(Author.id == number))
    await session.commit()


TOGETHER = [
    add_all,
    change_all,
    delete_all,
    insert_all,
    insert_all_and_return,
    update_all,
    delete_all_at_once,
    commit_each,
    read_each,
    one_of_each_kind,
    write_what_is_not_there,
]


@pytest.mark.parametrize("how", TOGETHER)
def test_rows_that_go_together(twin: Twin, how: Any) -> None:
    async def story() -> None:
        await keep(twin, *authors(3, books_each=1))
        assert_found(await tell(twin, how, single_row_writes=2))

    twin.run(story)


def test_objects_with_rows_in_two_tables(twin: Twin) -> None:
    async def add_managers(session: Any) -> None:
        session.add_all([Manager() for _ in range(3)])
        await session.commit()

    async def story() -> None:
        async with tables(twin):
            assert_found(await tell(twin, add_managers, single_row_writes=2))

    twin.run(story)


LIBRARY = """
def create(session, make):
    session.add(make())
    session.flush()

def create_batch(session, make, count):
    for _ in range(count):
        create(session, make)
"""


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A library that makes rows, and flushes each."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "row_factory.py").write_text(LIBRARY)
    monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module("row_factory")
    del sys.modules["row_factory"]


def test_rows_that_a_library_flushes_one_by_one(twin: Twin, factory: Any) -> None:
    numbers = itertools.count()

    def make() -> Author:
        return Author(name=f"new {next(numbers)}")

    def by_the_library(session: Session) -> None:
        factory.create_batch(session, make, 5)
        session.commit()

    def by_the_application(session: Session) -> None:
        for _ in range(5):
            factory.create(session, make)
        session.commit()

    async def story() -> None:
        def once(session: Any) -> Any:
            return session.run_sync(by_the_library)

        def each(session: Any) -> Any:
            return session.run_sync(by_the_application)

        assert_found(await tell(twin, once, single_row_writes=3))
        (finding,) = (await tell(twin, each, single_row_writes=3)).findings
        assert finding.id == "row-by-row-writes"

    twin.run(story)
