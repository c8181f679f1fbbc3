"""Stories of what repeats on after it was reported: its total, its time, and its share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, insert, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import StaticPool

from session_tracer.exporters.wording import in_all
from session_tracer.hooks.sql import shown
from session_tracer.model.totals import Tally, Total
from session_tracer.testing import capture
from tests.library import Author, Base, Book, authors, keep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from session_tracer import Finding
    from session_tracer.testing import Captured
    from tests.twins import Twin


@pytest.fixture
def factory() -> Iterator[sessionmaker[Session]]:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(authors(30, books_each=1))
        session.commit()
    yield sessionmaker(engine)
    engine.dispose()


def read_books(session: Session) -> None:
    for author in session.scalars(select(Author)).all():
        assert author.books


def look_up(session: Session) -> None:
    for key in range(1, 26):
        assert session.get(Author, key)


def ask_again(session: Session) -> None:
    for _ in range(25):
        session.scalars(select(Author.name).where(Author.id == 1)).all()


def read_what_was_expired(session: Session) -> None:
    found = session.scalars(select(Author).limit(25)).all()
    session.commit()
    for author in found:
        assert author.name


def read_after_each_commit(session: Session) -> None:
    found = session.scalars(select(Author).limit(10)).all()
    for _ in range(3):
        session.commit()
        for author in found:
            assert author.name


def refresh_each(session: Session) -> None:
    for number in range(25):
        author = Author(name=f"new {number}")
        session.add(author)
        session.flush()
        session.refresh(author)


def flush_by_reading(session: Session) -> None:
    for number in range(25):
        session.add(Author(name=f"new {number}"))
        session.scalars(select(Author.id).where(Author.id == number)).all()


def commit_each(session: Session) -> None:
    for number in range(25):
        session.add(Author(name=f"new {number}"))
        session.commit()


def insert_each(session: Session) -> None:
    for number in range(25):
        session.execute(insert(Author).values(name=f"new {number}"))
    session.commit()


def update_each(session: Session) -> None:
    for book in session.scalars(select(Book).limit(25)).all():
        book.title = Book.title + "!"  # a SQL expression: one UPDATE each
    session.flush()


def fail_to_flush(session: Session) -> None:
    for _ in range(12):
        try:
            session.add(Author(id=1, name="another"))
            session.flush()
        except IntegrityError:
            session.rollback()


REPEATING: list[tuple[Callable[[Session], None], str, int, str]] = [
    (read_books, "n-plus-one", 30, "SELECT"),
    (look_up, "get-in-loop", 25, "SELECT"),
    (ask_again, "repeated-select", 25, "SELECT"),
    (read_what_was_expired, "reload-after-commit", 25, "SELECT"),
    (read_after_each_commit, "reload-after-commit", 30, "SELECT"),
    (refresh_each, "refresh-after-write", 25, "SELECT"),
    (flush_by_reading, "autoflush-storm", 25, "autoflush"),
    (commit_each, "commit-in-loop", 25, "commit"),
    (insert_each, "row-by-row-writes", 25, "INSERT"),
    (update_each, "row-by-row-writes", 25, "UPDATE"),
    (fail_to_flush, "failed-flush", 12, "flush"),
]
SETTINGS: dict[str, Any] = {"reloads_after_commit": 5, "single_row_writes": 20}


def found_in(factory: sessionmaker[Session], work: Callable[[Session], None], id_: str) -> Captured:
    with capture(factory, log_level="info", **SETTINGS) as captured, factory() as session:
        work(session)
        session.rollback()
    captured.findings[:] = [one for one in captured.findings if one.id == id_]
    return captured


@pytest.mark.parametrize(
    ("work", "id_", "count", "noun"), REPEATING, ids=[work.__name__ for work, *_ in REPEATING]
)
def test_the_total_has_what_was_before_the_finding_and_what_came_after(
    factory: sessionmaker[Session],
    work: Callable[[Session], None],
    id_: str,
    count: int,
    noun: str,
) -> None:
    captured = found_in(factory, work, id_)
    (finding,) = captured.findings
    (summary,) = captured.sessions
    assert finding.total is not None
    assert (finding.total.count, finding.total.noun) == (count, noun)
    assert finding.count < count
    assert 0 < finding.total.ms <= summary.duration_ms
    (closed,) = [event for event in captured.logs if event["event"] == "session.closed"]
    (logged,) = [one for one in closed["findings"] if one["finding_id"] == id_]
    assert (logged["total"], logged["total_ms"]) == (count, finding.total.ms)
    assert logged["share"] == pytest.approx(finding.total.ms / closed["duration_ms"], abs=0.002)
    message = in_all(finding, summary.duration_ms)
    assert f": {count} {noun}" in message
    assert "at least" not in message


def test_reads_after_a_write_are_no_repeats_of_those_before(
    factory: sessionmaker[Session],
) -> None:
    def work(session: Session) -> None:
        for _ in range(8):
            ask(session)
        session.execute(text("UPDATE authors SET name = 'x' WHERE id = 1"))
        for _ in range(3):
            ask(session)

    def ask(session: Session) -> None:
        session.scalars(select(Author.name).where(Author.id == 1)).all()

    (finding,) = found_in(factory, work, "repeated-select").findings
    assert finding.total is not None
    # Eight, and two more of the three: the first of these had to be run.
    assert finding.total.count == 10


def test_lazy_loads_of_either_twin_have_a_total(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(12, books_each=1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                await session.run_sync(read_books)
        (finding,) = captured.findings
        assert finding.total is not None
        assert (finding.count, finding.total.count) == (5, 12)

    twin.run(story)


def test_a_second_session_has_a_total_of_its_own(factory: sessionmaker[Session]) -> None:
    with capture(factory) as captured:
        for _ in range(2):
            with factory() as session:
                read_books(session)
    totals = [one.total.count for one in captured.findings if one.total is not None]
    assert totals == [30, 30]


def test_what_does_not_repeat_has_no_total(factory: sessionmaker[Session]) -> None:
    def work(session: Session) -> None:
        session.add(Author(name="lost"))

    with capture(factory) as captured, factory() as session:
        work(session)
    (finding,) = captured.findings
    assert finding.total is None
    assert in_all(finding, 1.0) == finding.message


def test_a_total_counts_on_with_another_tally() -> None:
    first, second = Tally(), Tally()
    first.add(1_000_000)
    total = Total("SELECT", first)
    total.follow(first)
    second.add(2_000_000)
    total.follow(second)
    second.add(500_000)
    first.add(9_000_000)  # no longer followed
    assert (total.count, total.ms) == (3, 3.5)
    assert repr(total) == "Total(3 SELECT, 3.5 ms)"


def statement_of(factory: sessionmaker[Session], work: Callable[[Session], None], id_: str) -> str:
    (finding,) = found_in(factory, work, id_).findings
    return str(finding.evidence["statement"])


def test_the_statement_that_repeats_is_shown_without_values(
    factory: sessionmaker[Session],
) -> None:
    def ask(session: Session) -> None:
        for _ in range(6):
            session.execute(text("SELECT name\n  FROM authors WHERE name = 'Secret' AND id = 4711"))

    assert statement_of(factory, ask, "repeated-select") == (
        "SELECT name FROM authors WHERE name = ? AND id = ?"
    )
    assert statement_of(factory, read_books, "n-plus-one").endswith("= books.author_id")


def test_a_long_statement_keeps_its_beginning_and_its_end() -> None:
    columns = ", ".join(f"column_{number}" for number in range(200))
    text = shown(f"SELECT {columns} FROM wide WHERE wide.id = 17", "sqlite")
    assert len(text) == 400
    assert text.startswith("SELECT column_0, ")
    assert text.endswith("FROM wide WHERE wide.id = ?")
    assert " ... " in text


@pytest.fixture
def mistakes(factory: sessionmaker[Session]) -> list[Finding]:
    def work(session: Session) -> None:
        ask_again(session)
        read_books(session)
        session.add(Author(name="lost"))

    with capture(factory, log_level="info") as captured, factory() as session:
        work(session)
    (closed,) = [event for event in captured.logs if event["event"] == "session.closed"]
    captured.findings.append(closed["findings"])
    return captured.findings


def test_a_session_lists_first_what_took_the_most_time(mistakes: list[Any]) -> None:
    *findings, logged = mistakes
    times = {one.id: one.total.ms if one.total else 0.0 for one in findings}
    assert [one["finding_id"] for one in logged] == sorted(times, key=lambda id_: -times[id_])
