"""Stories of reads in a loop that flush what the loop has changed, and of reads that do not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import (
    Insert,
    __version__,
    delete,
    func,
    insert,
    literal,
    select,
    text,
    update,
)

from tests.library import Author, Book, authors, keep
from tests.stories.findings.due import Due, assert_found
from tests.stories.findings.reading import tell
from tests.stories.findings.remedies import pasted
from tests.stories.lines import marked

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from tests.twins import Twin

IS_20 = __version__.startswith("2.0.")
NO_AUTOFLUSH = "with session.no_autoflush:"


def add_and_select(session: Session, names: range = range(10)) -> None:
    for name in names:
        session.add(Author(name=f"new {name}"))  # <- began
        session.scalar(select(Book).where(Book.title == f"book {name}"))  # <- read
    session.commit()


def add_and_get(session: Session) -> None:
    for number in range(3):
        session.add(Author(name=f"new {number}"))  # <- began
        assert session.get(Author, 100 + number) is None  # <- read
    session.commit()


def change_and_read_lazily(session: Session) -> None:
    for author in session.scalars(select(Author).order_by(Author.id)).all():  # <- began
        author.name += "."
        assert author.books  # <- read
    session.commit()


def delete_and_select(session: Session) -> None:
    for author in session.scalars(select(Author).order_by(Author.id)).all():  # <- began
        session.delete(author)
        session.scalar(select(Book).where(Book.title == f"none of {author.name}"))  # <- read
    session.commit()


def change_and_refresh(session: Session) -> None:
    for author in session.scalars(select(Author).order_by(Author.id)).all():  # <- began
        author.biography = "known"
        session.refresh(author, ["name"])  # <- read
    session.commit()


def write_to_a_dynamic_relationship(session: Session) -> None:
    for author in session.scalars(select(Author).order_by(Author.id)).all():  # <- began
        author.biography = "known"
        assert author.letters.all() == []  # <- read
    session.commit()


NEEDS_NOTHING = "load what the loop needs before the loop"
KEEP_AUTHORS = (
    "run one SELECT of Author with .in_(...) before the loop, and add each new Author to its result"
)


def storm(
    how: Any, count: int, remedy: str, others: list[str] | None = None, **written: Any
) -> Due:
    return Due(
        id="autoflush-storm",
        site=marked(how, "<- read"),
        opened=marked(tell, "<- opened"),
        remedy=remedy,
        entity="Author",
        count=count,
        evidence={
            **written,
            "began_at": str(marked(how, "<- began")),
            "alternatives": others,
        },
    )


def without_autoflush(session: Session, how: Any) -> None:
    with pasted(NO_AUTOFLUSH.removeprefix("with ").removesuffix(":"), session=session):
        how(session)


def test_ten_autoflushes_from_one_line(twin: Twin) -> None:
    async def story() -> None:
        captured = await tell(twin, lambda session: add_and_select(session, range(9)))
        assert_found(captured)
        captured = await tell(twin, lambda session: add_and_select(session, range(20, 40)))
        due = storm(add_and_select, 10, NEEDS_NOTHING, [NO_AUTOFLUSH], new={"Author": 10})
        assert_found(captured, due)
        assert captured.findings[0].message == (
            "reads at one line caused at least 10 autoflushes in one transaction (10 Author)"
        )

        def loop(session: Session) -> None:
            add_and_select(session, range(40, 49))

        assert_found(await tell(twin, lambda session: without_autoflush(session, loop)))

    twin.run(story)


# What is flushed, the remedy, and whether the loop may do without its autoflushes. What refresh()
# reads may be what the loop has changed, and the query of a dynamic relationship is not known.
STORMS: dict[str, tuple[Any, dict[str, Any], str, list[str] | None]] = {
    "get()": (add_and_get, {"new": {"Author": 3}}, KEEP_AUTHORS, None),
    "a lazy load": (
        change_and_read_lazily,
        {"dirty": {"Author": 3}},
        NEEDS_NOTHING,
        [NO_AUTOFLUSH],
    ),
    "refresh()": (change_and_refresh, {"dirty": {"Author": 3}}, NEEDS_NOTHING, None),
    "a dynamic relationship": (
        write_to_a_dynamic_relationship,
        {"dirty": {"Author": 3}},
        NEEDS_NOTHING,
        None,
    ),
    "a select after deletes": (
        delete_and_select,
        {"deleted": {"Author": 3, "Book": 3}},
        f"{NEEDS_NOTHING}, and update it with each Book that the loop writes",
        None,
    ),
}


@pytest.mark.parametrize("what", STORMS)
def test_autoflushes_by(twin: Twin, what: str) -> None:
    how, written, remedy, others = STORMS[what]

    async def story() -> None:
        await keep(twin, *authors(3, books_each=1))
        captured = await tell(twin, how, autoflushes_from_one_site=3)
        assert_found(captured, storm(how, 3, remedy, others, **written))

    twin.run(story)


# What asks for the rows that are flushed. Each of these fails if they are not written.


def add_and_find(session: Session) -> None:
    for number in range(3):
        session.add(Author(name=f"new {number}"))
        found = session.scalars(select(Author).where(Author.name == f"new {number}"))  # <- read
        assert found.one().books == []
    session.commit()


def add_and_find_by_query(session: Session) -> None:
    for number in range(3):
        session.add(Author(name=f"new {number}"))
        assert session.query(Author).filter_by(name=f"new {number}").one()  # <- read
    session.commit()


def add_and_join(session: Session) -> None:
    for number in range(3):
        session.add(Author(name=f"new {number}", books=[Book(title="")]))
        books = select(Book).join(Author).where(Author.name == f"new {number}")
        assert session.scalar(books)  # <- read
    session.commit()


def add_and_ask_whether_it_exists(session: Session) -> None:
    for number in range(3):
        session.add(Author(name=f"new {number}"))
        is_there = select(Author.id).where(Author.name == f"new {number}").exists()
        assert session.scalar(select(literal(1)).where(is_there))  # <- read
    session.commit()


def change_and_count(session: Session) -> None:
    for number, author in enumerate(session.scalars(select(Author)).all(), 1):
        author.biography = "known"
        known = select(func.count(Author.id)).where(Author.biography == "known")
        assert session.scalar(known) == number  # <- read
    session.commit()


def add_and_update(session: Session) -> None:
    for number in range(3):
        session.add(Author(name=f"new {number}"))
        changed = update(Author).where(Author.name == f"new {number}").values(biography="known")
        assert session.execute(changed).rowcount == 1  # type: ignore[attr-defined] # <- read
    session.commit()


def add_and_refer_to_it(session: Session) -> None:
    for number in range(3):
        session.add(Author(id=10 + number, name=f"new {number}"))
        session.execute(insert_book(10 + number))  # <- read
    session.flush()
    unknown = select(Book).where(Book.author_id.not_in(select(Author.id)))
    assert session.scalar(unknown) is None
    session.commit()


UPDATED = f"{NEEDS_NOTHING}, and update it with each Author that the loop writes"
DEPENDING: dict[Any, str] = {
    add_and_find: KEEP_AUTHORS,
    add_and_find_by_query: KEEP_AUTHORS,
    add_and_join: KEEP_AUTHORS.replace("Author", "Book"),
    add_and_ask_whether_it_exists: UPDATED,
    change_and_count: UPDATED,
    add_and_update: "collect the new values and execute one UPDATE for all of them after the loop",
    add_and_refer_to_it: "collect the rows and execute one INSERT for all of them after the loop",
}


@pytest.mark.parametrize("how", DEPENDING)
def test_what_asks_for_the_flushed_rows_keeps_its_autoflush(twin: Twin, how: Any) -> None:
    async def story() -> None:
        await keep(twin, *authors(3))
        captured = await tell(twin, how, autoflushes_from_one_site=2)
        (finding,) = captured.findings
        assert (finding.id, finding.site) == ("autoflush-storm", marked(how, "<- read"))
        assert finding.remedy == DEPENDING[how]
        assert "alternatives" not in finding.evidence

    twin.run(story)


def get_or_create(session: Session) -> None:
    for name in ("new 1", "new 2", "author 1", "new 1", "new 2", "new 3"):
        if session.scalar(select(Author).where(Author.name == name)) is None:  # <- read
            session.add(Author(name=name))
    session.commit()


def get_or_create_from_one_select(session: Session) -> None:
    names = ("new 4", "new 5", "author 1", "new 4", "new 5", "new 6")
    known = {one.name: one for one in session.scalars(select(Author).where(Author.name.in_(names)))}
    for name in names:
        if name not in known:
            known[name] = Author(name=name)
            session.add(known[name])
    session.commit()


def test_one_select_before_the_loop_finds_what_the_loop_adds(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        captured = await tell(twin, get_or_create, autoflushes_from_one_site=3)
        (finding,) = captured.findings
        assert (finding.id, finding.site) == ("autoflush-storm", marked(get_or_create, "<- read"))
        assert finding.remedy == KEEP_AUTHORS
        captured = await tell(twin, get_or_create_from_one_select, autoflushes_from_one_site=2)
        assert_found(captured)

    twin.run(story)


def change_each(session: Session, write: Any) -> None:
    for author in session.scalars(select(Author).order_by(Author.id)).all():  # <- began
        author.name += "."
        session.execute(write(author.id))  # <- read
    session.commit()


def insert_book(author: int) -> Insert:
    return insert(Book).values(title="new", author_id=author)


WRITES: dict[str, tuple[Any, str, Any]] = {
    "INSERT": (insert_book, "rows", insert(Book).values(title="new", author_id=1)),
    "UPDATE": (
        lambda author: update(Book).where(Book.author_id == author).values(copies=7),
        "new values",
        update(Book).values(copies=7),
    ),
    "DELETE": (
        lambda author: delete(Book).where(Book.author_id == author),
        "keys",
        delete(Book),
    ),
}


@pytest.mark.parametrize("verb", WRITES)
def test_what_a_loop_writes_by_itself_is_one_statement_after_it(twin: Twin, verb: str) -> None:
    write, what, for_all = WRITES[verb]

    def cured(session: Session) -> None:
        for author in session.scalars(select(Author)).all():
            author.name += "."
        session.execute(for_all)
        session.commit()

    def in_block(session: Session) -> None:
        without_autoflush(session, lambda session: change_each(session, write))

    async def story() -> None:
        await keep(twin, *authors(4, books_each=1))
        captured = await tell(
            twin, lambda session: change_each(session, write), autoflushes_from_one_site=3
        )
        (finding,) = captured.findings
        assert finding.site == marked(change_each, "<- read")
        assert finding.message == (
            f"{verb}s at one line caused at least 3 autoflushes in one transaction (3 Author)"
        )
        assert finding.remedy == (
            f"collect the {what} and execute one {verb} for all of them after the loop"
        )
        assert finding.evidence["alternatives"] == [NO_AUTOFLUSH]
        for how in (cured, in_block):
            assert_found(await tell(twin, how, autoflushes_from_one_site=2))

    twin.run(story)


@pytest.mark.skipif(IS_20, reason="SQLAlchemy 2.0 flushes for mapped classes alone")
@pytest.mark.parametrize(
    "statement",
    [
        insert(Book.metadata.tables["books"]).values(title="new", author_id=1),
        text("INSERT INTO books (title, copies, author_id) VALUES ('new', 1, 1)"),
    ],
)
def test_an_insert_of_no_mapped_class_is_not_called_a_read(twin: Twin, statement: Any) -> None:
    async def story() -> None:
        await keep(twin, *authors(3))
        captured = await tell(
            twin,
            lambda session: change_each(session, lambda _: statement),
            autoflushes_from_one_site=2,
        )
        (finding,) = captured.findings
        assert finding.message.startswith("INSERTs at one line caused at least 2 autoflushes")

    twin.run(story)


def count_and_insert(session: Session) -> None:
    for author in session.scalars(select(Author).order_by(Author.id)).all():  # <- began
        author.name += "."
        copies = select(func.count(Book.id))
        session.execute(insert_book(author.id).values(copies=session.scalar(copies)))  # <- read
    session.commit()


def test_a_line_that_reads_before_it_inserts_flushes_by_reading(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(4))
        captured = await tell(twin, count_and_insert, autoflushes_from_one_site=3)
        storms = [finding for finding in captured.findings if finding.id == "autoflush-storm"]
        assert [finding.remedy for finding in storms] == [
            "load what the loop needs before the loop"
        ]

    twin.run(story)


def merge_each(session: Session) -> None:
    for number in range(1, 5):
        session.merge(Author(id=number, name=f"merged {number}"))  # <- read
    session.commit()


def merge_what_is_loaded(session: Session) -> None:
    kept = session.scalars(select(Author)).all()
    for author in kept:
        session.merge(Author(id=author.id, name=f"merged {author.id}"))  # <- read
    session.commit()


@pytest.mark.parametrize("how", [merge_each, merge_what_is_loaded])
def test_merge_flushes_also_what_the_loop_has_loaded_before(twin: Twin, how: Any) -> None:
    async def story() -> None:
        await keep(twin, *authors(4))
        captured = await tell(twin, how, autoflushes_from_one_site=3)
        (finding,) = captured.findings
        assert (finding.id, finding.site) == ("autoflush-storm", marked(how, "<- read"))
        assert finding.remedy == f"{NO_AUTOFLUSH}  # around the loop"
        assert "alternatives" not in finding.evidence
        cured = await tell(
            twin, lambda session: without_autoflush(session, how), autoflushes_from_one_site=3
        )
        assert_found(cured)

    twin.run(story)


# One mistake: where what the loop reads is read once, nothing flushes.


TITLE = select(Book.title).where(Book.id == 1)


def read_the_same_in_each_turn(session: Session) -> None:
    for author in session.scalars(select(Author).order_by(Author.id)).all():
        author.biography = session.scalars(TITLE).one()  # <- read
    session.commit()


def read_the_same_once(session: Session) -> None:
    title = session.scalars(TITLE).one()
    for author in session.scalars(select(Author).order_by(Author.id)).all():
        author.biography = title
    session.commit()


def get_each(session: Session) -> None:
    for author in session.scalars(select(Author).order_by(Author.id)).all():
        author.biography = session.get_one(Book, author.id).title  # <- read
    session.commit()


READ_ONCE: dict[Any, tuple[str, dict[str, int]]] = {
    read_the_same_in_each_turn: ("repeated-select", {"repeats_of_one_select": 2}),
    get_each: ("get-in-loop", {"gets_from_one_site": 2}),
    change_and_read_lazily: ("n-plus-one", {"lazy_loads_from_one_site": 2}),
}


@pytest.mark.parametrize("how", READ_ONCE)
def test_what_is_read_one_by_one_is_no_storm_too(twin: Twin, how: Any) -> None:
    id_, first = READ_ONCE[how]

    async def story() -> None:
        await keep(twin, *authors(6, books_each=1))
        captured = await tell(twin, how, autoflushes_from_one_site=4, **first)
        assert [(one.id, one.site) for one in captured.findings] == [
            (id_, marked(how, "<- read")),
        ]
        # Where that is not reported, the storm is.
        captured = await tell(twin, how, autoflushes_from_one_site=4, ignore={id_}, **first)
        assert [one.id for one in captured.findings] == ["autoflush-storm"]

    twin.run(story)


def test_a_select_that_was_a_storm_is_not_reported_again(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(9, books_each=1))
        captured = await tell(twin, read_the_same_in_each_turn, autoflushes_from_one_site=2)
        assert [one.id for one in captured.findings] == ["autoflush-storm"]
        assert_found(await tell(twin, read_the_same_once, autoflushes_from_one_site=2))

    twin.run(story)


def read_the_same_and_flush_elsewhere(session: Session) -> None:
    for author in session.scalars(select(Author).order_by(Author.id)).all():
        author.biography = "known"
        session.scalar(select(Book.title).where(Book.id == author.id))  # <- flushes
        session.scalars(TITLE).one()  # <- repeats
    session.commit()


def test_what_is_repeated_at_another_line_is_another_mistake(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(6, books_each=1))
        captured = await tell(twin, read_the_same_and_flush_elsewhere, autoflushes_from_one_site=4)
        assert {(one.id, one.site) for one in captured.findings} == {
            ("autoflush-storm", marked(read_the_same_and_flush_elsewhere, "<- flushes")),
            ("repeated-select", marked(read_the_same_and_flush_elsewhere, "<- repeats")),
        }

    twin.run(story)


# Near-misses: each flushes three times, or reads so often, where two would be a storm.


def read_with_nothing_changed(session: Session) -> None:
    for number in range(3):
        session.scalar(select(Book).where(Book.id == number))


def read_with_nothing_to_write(session: Session) -> None:
    for author in session.scalars(select(Author)).all():
        author.name = str(author.name)
        session.scalar(select(Book).where(Book.id == author.id))


def read_before_the_loop(session: Session) -> None:
    known = {author.name for author in session.scalars(select(Author))}
    session.add_all([Author(name=f"new {number}") for number in range(3)])
    assert len(known) == 3
    session.commit()


def flush_by_hand(session: Session) -> None:
    for number in range(3):
        session.add(Author(name=f"new {number}"))
        session.flush()
        session.scalar(select(Book).where(Book.id == number))
    session.commit()


def commit_each(session: Session) -> None:
    for number in range(3):
        session.add(Author(name=f"new {number}"))
        session.scalar(select(Book).where(Book.id == number))
        session.commit()


def read_what_the_identity_map_holds(session: Session) -> None:
    kept = session.scalars(select(Author)).all()
    for number in range(3):
        session.add(Author(name=f"new {number}"))
        assert session.get(Author, number + 1) in kept
    session.commit()


def begin_savepoints(session: Session) -> None:
    for number in range(3):
        session.add(Author(name=f"new {number}"))
        with session.begin_nested():
            pass
    session.commit()


def read_without_autoflush(session: Session) -> None:
    without_autoflush(session, lambda session: add_and_select(session, range(3)))


def read_at_two_lines(session: Session) -> None:
    session.add(Author(name="one"))
    session.scalar(select(Book).where(Book.id == 1))
    session.add(Author(name="another"))
    session.scalar(select(Book).where(Book.id == 2))
    session.commit()


@pytest.mark.parametrize(
    "how",
    [
        read_with_nothing_changed,
        read_with_nothing_to_write,
        read_before_the_loop,
        flush_by_hand,
        commit_each,
        read_what_the_identity_map_holds,
        begin_savepoints,
        read_without_autoflush,
        read_at_two_lines,
    ],
)
def test_what_is_no_storm(twin: Twin, how: Any) -> None:
    async def story() -> None:
        await keep(twin, *authors(3))
        assert_found(await tell(twin, how, autoflushes_from_one_site=2))

    twin.run(story)


def link_what_is_not_saved(session: Session) -> None:
    """Books that are made to be looked at, and are in no session."""
    author = session.get_one(Author, 1)
    assert len(author.books) == 1
    for number in range(3):
        assert Book(title=str(number), author=author).author is author
        session.scalar(select(Book).where(Book.id == number))


@pytest.mark.filterwarnings("default:Object of type <Book> not in session")
def test_links_to_what_is_in_no_session_are_not_written(twin: Twin) -> None:
    """Nor are they lost as the session is closed."""

    async def story() -> None:
        await keep(twin, *authors(1, books_each=1))
        captured = await tell(twin, link_what_is_not_saved, autoflushes_from_one_site=2)
        assert {finding.id for finding in captured.findings} <= {"lost-link"}
        (session,) = captured.sessions
        assert (session.new, session.dirty, session.unchanged) == ({}, {}, {})

    twin.run(story)


def test_a_session_that_does_not_autoflush(twin: Twin) -> None:
    async def story() -> None:
        twin.factory.configure(autoflush=False)
        assert_found(await tell(twin, add_and_get, autoflushes_from_one_site=2))

    twin.run(story)
