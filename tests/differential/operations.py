"""What programs are made of: each operation does one thing with a session, as applications do.

`a` chooses the session, `b` the object or the class, and `c` how it is done.
"""

from __future__ import annotations

import copy
import gc
import pickle
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import delete as delete_rows
from sqlalchemy import func, insert, inspect, select, text
from sqlalchemy import update as update_rows
from sqlalchemy.orm import (
    aliased,
    close_all_sessions,
    contains_eager,
    defer,
    joinedload,
    lazyload,
    load_only,
    make_transient,
    make_transient_to_detached,
    object_session,
    raiseload,
    selectin_polymorphic,
    selectinload,
    subqueryload,
    undefer,
    undefer_group,
)

from tests.differential.diary import DIARY
from tests.differential.listeners import ARMED, SESSION_EVENTS, Halt, Refusal
from tests.differential.mapped import CLASSES, Author, Book, Item, Letter, Map, Page, Tag

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session

    from tests.differential.world import World

__all__ = ["OPERATIONS"]


def one_of(choices: Any, number: int) -> Any:
    """The choice with that number, counted round."""
    return choices[number % len(choices)]


def made(number: int) -> Any:
    """A new object; some will not be let in by the database."""
    return one_of(
        (
            lambda: Author(name=f"name {DIARY.number()}", books=[Book(title="first", version=1)]),
            lambda: Author(name=f"author {number % 4}"),  # a name that may be taken
            lambda: Author(name=None),
            lambda: Book(title=f"title {number}", author_id=1 + number % 5),  # nobody's, perhaps
            lambda: Book(title="few", copies=-1, author_id=1),
            lambda: Tag(label=f"label {DIARY.number()}"),
            lambda: Letter(text="new", author_id=None),
            lambda: Item(children=[Map(scale="1:9")]),
            lambda: Page(book_id=1, number=number % 3),  # a key that may be taken
            lambda: Author(id=1, name="with a key that is taken"),
        ),
        number,
    )()


def held(world: World, number: int) -> Any:
    """An object in hand, or a new one."""
    found = world.hand(number)
    return world.hold(made(0)) if found is None else found


# Sessions.


def open_session(world: World, a: int, b: int, c: int) -> object:
    return world.open(a).__class__


def close(world: World, a: int, b: int, c: int) -> object:
    return world.sync(a).close()


def reset(world: World, a: int, b: int, c: int) -> object:
    return world.sync(a).reset()


def invalidate(world: World, a: int, b: int, c: int) -> object:
    return world.sync(a).invalidate()


def close_all(world: World, a: int, b: int, c: int) -> None:
    close_all_sessions()


def drop_session(world: World, a: int, b: int, c: int) -> object:
    if world.setup.factory == "scoped":
        world.factory.registry.clear()
    world.slots[a % len(world.slots)] = None
    return None


def remove_scoped(world: World, a: int, b: int, c: int) -> object:
    if world.setup.factory == "scoped" and not world.setup.is_async:
        return world.factory.remove()
    return None


def session_block(world: World, a: int, b: int, c: int) -> object:
    with world.sync(a) as session:
        session.add(made(b))
        if c % 3 == 0:
            raise Refusal("in a session's block")
        if c % 3 == 1:
            session.commit()
    return None


# Transactions.


def begin(world: World, a: int, b: int, c: int) -> object:
    transaction = world.sync(a).begin()
    world.transactions.append(transaction)
    world.see("transaction", transaction)
    return None


def begin_nested(world: World, a: int, b: int, c: int) -> object:
    transaction = world.sync(a).begin_nested()
    world.transactions.append(transaction)
    world.see("transaction", transaction)
    return None


def end_transaction(world: World, a: int, b: int, c: int) -> object:
    if not world.transactions:
        return None
    transaction = world.transactions.pop(-1 - b % len(world.transactions))
    return one_of((transaction.commit, transaction.rollback, transaction.close), c)()


def commit(world: World, a: int, b: int, c: int) -> object:
    return world.sync(a).commit()


def rollback(world: World, a: int, b: int, c: int) -> object:
    return world.sync(a).rollback()


def prepare(world: World, a: int, b: int, c: int) -> object:
    return world.sync(a).prepare()


def begin_block(world: World, a: int, b: int, c: int) -> object:
    with world.sync(a).begin() as transaction:
        transaction.session.add(made(b))
        if c % 2:
            raise Refusal("in a transaction's block")
    return None


def nested_block(world: World, a: int, b: int, c: int) -> object:
    session = world.sync(a)
    with session.begin_nested():
        session.add(made(b))
        if c % 3 == 0:
            raise Refusal("in a savepoint's block")
        if c % 3 == 1:
            session.rollback()
    return None


def swallow(world: World, a: int, b: int, c: int) -> object:
    session = world.sync(a)
    session.add(made(b))
    try:
        session.flush()
    except Exception as error:
        return str(type(error))
    return "no error"


def nested_swallow(world: World, a: int, b: int, c: int) -> object:
    session = world.sync(a)
    try:
        with session.begin_nested():
            session.add(made(b))
    except Exception as error:
        return str(type(error))
    return "no error"


def transactions(world: World, a: int, b: int, c: int) -> object:
    session = world.sync(a)
    return [session.get_transaction(), session.get_nested_transaction(), session.in_transaction()]


# Objects and the unit of work.


def add(world: World, a: int, b: int, c: int) -> object:
    new = made(b)
    world.hold(new)
    return world.sync(a).add(new)


def add_held(world: World, a: int, b: int, c: int) -> object:
    return world.sync(a).add(held(world, b))


def add_all(world: World, a: int, b: int, c: int) -> object:
    new = [made(b), made(c), *(Tag(label=f"label {DIARY.number()}") for _ in range(3))]
    return world.sync(a).add_all(new)


_VALUES: Final[dict[str, tuple[tuple[str, tuple[Any, ...]], ...]]] = {
    "Author": (
        ("name", ("new name", "author 1", None, "refused")),
        ("age", (1, 2, None)),
        ("biography", ("", "long")),
    ),
    "Book": (
        ("title", ("book 1", "new title", None)),
        ("copies", (1, -1, 2)),
        ("author_id", (1, 9)),
    ),
    "Page": (("text", ("", "new text")), ("number", (0, 1, 7))),
    "Tag": (("label", ("old", "new label")), ("slug", (None, "slug"))),
    "Letter": (("text", ("dear", "cheap")), ("author_id", (1, None, 9))),
    "Item": (("parent_id", (None, 1)),),
    "Map": (("scale", ("1:1", "1:2")), ("parent_id", (None, 1))),
}


def change(world: World, a: int, b: int, c: int) -> None:
    found = held(world, b)
    key, values = one_of(_VALUES[type(found).__name__], c)
    setattr(found, key, one_of(values, a + c))


def change_in_vain(world: World, a: int, b: int, c: int) -> None:
    found = held(world, b)
    key, _ = one_of(_VALUES[type(found).__name__], c)
    setattr(found, key, getattr(found, key))


def change_many(world: World, a: int, b: int, c: int) -> object:
    for found in world.hands:
        if isinstance(found, Author):
            found.age = c
        elif isinstance(found, Tag):
            found.slug = None
    return None


def change_in_place(world: World, a: int, b: int, c: int) -> object:
    found = held(world, b)
    if isinstance(found, Author):
        found.notes[f"note {c}"] = a
    return None


def relate(world: World, a: int, b: int, c: int) -> object:
    found, other = held(world, b), held(world, c)
    match found, other:
        case Author(), Book():
            found.books.append(other)
        case Book(), Author():
            found.author = other
        case Book(), Tag():
            found.tags.append(other)
        case Book(), Page():
            found.pages.append(other)
        case Item(), Item():
            found.parent = other
        case Author(), Letter():
            found.letters.append(other)
        case Letter(), Author():
            other.letters.add(found)
        case Book(), Letter():
            found.letters.add(other)
        case Letter(), Book():
            found.book = other
        case _:
            return "unrelated"
    return None


def unrelate(world: World, a: int, b: int, c: int) -> object:
    found = held(world, b)
    match found:
        case Author():
            found.books.pop()
        case Book():
            found.tags.clear()
        case Item():
            found.parent = None
        case Letter():
            found.author = None
        case _:
            return "unrelated"
    return None


def delete(world: World, a: int, b: int, c: int) -> object:
    return world.sync(a).delete(held(world, b))


def delete_attribute(world: World, a: int, b: int, c: int) -> None:
    found = held(world, b)
    delattr(found, one_of(_VALUES[type(found).__name__], c)[0])


def flush(world: World, a: int, b: int, c: int) -> object:
    return world.sync(a).flush()


def flush_some(world: World, a: int, b: int, c: int) -> object:
    return world.sync(a).flush([held(world, b)])


def expire(world: World, a: int, b: int, c: int) -> object:
    return world.sync(a).expire(held(world, b))


def expire_attribute(world: World, a: int, b: int, c: int) -> object:
    found = held(world, b)
    return world.sync(a).expire(found, [one_of(list(inspect(found).attrs.keys()), c)])


def expire_all(world: World, a: int, b: int, c: int) -> object:
    return world.sync(a).expire_all()


def refresh(world: World, a: int, b: int, c: int) -> object:
    return world.sync(a).refresh(held(world, b))


def refresh_attribute(world: World, a: int, b: int, c: int) -> object:
    found = held(world, b)
    names = [one_of(list(inspect(found).attrs.keys()), c)]
    return world.sync(a).refresh(found, names, with_for_update=bool(c % 2))


def merge(world: World, a: int, b: int, c: int) -> object:
    return world.sync(a).merge(held(world, b))


def merge_unloaded(world: World, a: int, b: int, c: int) -> object:
    return world.sync(a).merge(held(world, b), load=False)


def merge_new(world: World, a: int, b: int, c: int) -> object:
    return world.sync(a).merge(
        Author(id=1 + b % 5, name=f"merged {c}"), options=[undefer(Author.biography)]
    )


def expunge(world: World, a: int, b: int, c: int) -> object:
    return world.sync(a).expunge(held(world, b))


def expunge_all(world: World, a: int, b: int, c: int) -> object:
    return world.sync(a).expunge_all()


def expunge_stranger(world: World, a: int, b: int, c: int) -> object:
    return one_of((world.sync(a).expunge, world.sync(a).expire, world.sync(a).refresh), b)(
        "a stranger"
    )


def transient(world: World, a: int, b: int, c: int) -> None:
    make_transient(held(world, b))


def transient_to_detached(world: World, a: int, b: int, c: int) -> None:
    make_transient_to_detached(held(world, b))


def drop_object(world: World, a: int, b: int, c: int) -> object:
    if world.hands:
        world.hands.pop(b % len(world.hands))
    return None


def drop_objects(world: World, a: int, b: int, c: int) -> None:
    world.hands.clear()


def let_go(world: World, a: int, b: int, c: int) -> None:
    world.let_go()


def collect(world: World, a: int, b: int, c: int) -> object:
    gc.collect()
    return None


def pickled(world: World, a: int, b: int, c: int) -> object:
    return pickle.loads(pickle.dumps(held(world, b)))


def copied(world: World, a: int, b: int, c: int) -> object:
    return copy.copy(held(world, b))


def session_of(world: World, a: int, b: int, c: int) -> object:
    found = held(world, b)
    session = world.sync(a)
    return [object_session(found) is session, found in session, len(list(session))]


def is_modified(world: World, a: int, b: int, c: int) -> object:
    return world.sync(a).is_modified(held(world, b))


# Reading.


def get(world: World, a: int, b: int, c: int) -> object:
    return world.sync(a).get(one_of(CLASSES[:-1], b), 1 + c % 5)


def get_anew(world: World, a: int, b: int, c: int) -> object:
    return world.sync(a).get(
        one_of(CLASSES[:-1], b), 1 + c % 5, populate_existing=True, with_for_update=True
    )


def get_one(world: World, a: int, b: int, c: int) -> object:
    return world.sync(a).get_one(Book, 1 + c, options=[joinedload(Book.author)])


def get_pair(world: World, a: int, b: int, c: int) -> object:
    return world.sync(a).get(Page, {"book_id": 1 + b % 3, "number": c % 5})


def read(world: World, a: int, b: int, c: int) -> object:
    """A lazy load, a deferred one, a reload, or an object that is detached."""
    found = held(world, b)
    return getattr(found, one_of(list(inspect(found).attrs.keys()), c))


def read_all(world: World, a: int, b: int, c: int) -> object:
    """A relationship or a column of everything in hand: one statement for each."""
    keys = {"Author": "books", "Book": "author", "Page": "text", "Letter": "author", "Tag": "label"}
    return [getattr(one, keys.get(type(one).__name__, "children")) for one in list(world.hands)]


def read_property(world: World, a: int, b: int, c: int) -> object:
    found = held(world, b)
    return found.is_old if isinstance(found, Author) else None


def read_collection(world: World, a: int, b: int, c: int) -> object:
    found = held(world, b)
    if isinstance(found, Author):
        return found.letters.filter_by(text="dear").all()
    if isinstance(found, Book):
        return world.sync(a).scalars(found.letters.select()).unique().all()
    return None


def select_entities(world: World, a: int, b: int, c: int) -> object:
    return world.sync(a).scalars(select(one_of(CLASSES, b)).limit(4)).unique().all()


def select_columns(world: World, a: int, b: int, c: int) -> object:
    return world.sync(a).execute(select(Book.id, Book.title, Book.copies + 1)).all()


def select_join(world: World, a: int, b: int, c: int) -> object:
    other = aliased(Author)
    statement = (
        select(Book, other).join(other, Book.author_id == other.id).order_by(Book.id).limit(2)
    )
    return [tuple(row) for row in world.sync(a).execute(statement)]


_OPTIONS: Final[tuple[Callable[[], Any], ...]] = (
    lambda: select(Author).options(joinedload(Author.books)),
    lambda: select(Author).options(selectinload(Author.books).selectinload(Book.pages)),
    lambda: select(Author).options(subqueryload(Author.books)),
    lambda: select(Author).options(raiseload("*")),
    lambda: select(Author).options(load_only(Author.name, raiseload=True)),
    lambda: select(Author).join(Author.books).options(contains_eager(Author.books)),
    lambda: select(Book).options(lazyload(Book.tags), defer(Book.title)),
    lambda: select(Page).options(undefer_group("body")),
    lambda: select(Item).options(selectin_polymorphic(Item, [Map]), selectinload(Item.children)),
    lambda: select(Letter).options(joinedload(Letter.book), lazyload(Letter.author)),
    lambda: select(Author).execution_options(populate_existing=True),
    lambda: select(Author).execution_options(autoflush=False),
    lambda: select(Author).with_for_update(),
    lambda: select(Author).options(undefer(Author.biography)).order_by(Author.id.desc()),
)


def select_eagerly(world: World, a: int, b: int, c: int) -> object:
    return world.sync(a).scalars(one_of(_OPTIONS, b + c)()).unique().all()


def select_from_text(world: World, a: int, b: int, c: int) -> object:
    statement = select(Author).from_statement(text("SELECT id, name FROM authors ORDER BY id"))
    return world.sync(a).scalars(statement).all()


def stream(world: World, a: int, b: int, c: int) -> object:
    statement = select(one_of((Author, Item), b)).execution_options(yield_per=1 + c % 2)
    result = world.sync(a).scalars(statement)
    world.streams.append(result)
    world.see("result", result)
    return result.fetchmany(1)


def stream_on(world: World, a: int, b: int, c: int) -> object:
    return world.streams[b % len(world.streams)].fetchmany(1) if world.streams else None


def stream_close(world: World, a: int, b: int, c: int) -> object:
    return world.streams.pop(b % len(world.streams)).close() if world.streams else None


def partitions(world: World, a: int, b: int, c: int) -> object:
    result = world.sync(a).scalars(select(Tag)).partitions(2)
    return [next(result)] if c % 2 else list(result)


def count(world: World, a: int, b: int, c: int) -> object:
    return world.sync(a).scalar(select(func.count()).select_from(one_of(CLASSES, b)))


def one(world: World, a: int, b: int, c: int) -> object:
    statement = select(Tag).where(Tag.label == ("old", "nothing", "new")[c % 3])
    result = world.sync(a).execute(statement)
    return one_of((result.one, result.scalar_one_or_none, result.first), b)()


def query(world: World, a: int, b: int, c: int) -> object:
    found = world.sync(a).query(one_of((Author, Tag, Item), b))
    return one_of((found.all, found.first, found.count, found.one, found.exists), c)()


def query_writes(world: World, a: int, b: int, c: int) -> object:
    found = world.sync(a).query(Tag).filter(Tag.id > 1)
    if c % 2:
        return found.update({"slug": "by query"}, synchronize_session=one_of(_SYNCHRONIZE, b))
    return found.filter(Tag.books_tagged == 0).delete(synchronize_session="fetch")


def text_statement(world: World, a: int, b: int, c: int) -> object:
    statements = (
        "SELECT 1",
        "SELECT * FROM nowhere",
        "UPDATE tags SET slug = :slug",
        "DELETE FROM letters WHERE id = 4",
        "INSERT INTO tags (label) VALUES ('old')",
    )
    result = world.sync(a).execute(
        text(one_of(statements, b)), {"slug": f"{c}"} if b % 5 == 2 else {}
    )
    return result.fetchall() if result.returns_rows else result.rowcount


def connection(world: World, a: int, b: int, c: int) -> object:
    found = world.sync(a).connection(**({"bind_arguments": {"mapper": Author}} if c % 2 else {}))
    return [found.execute(select(func.count(Tag.id))).scalar(), found.in_transaction(), found.info]


def driver_statement(world: World, a: int, b: int, c: int) -> object:
    return world.sync(a).connection().exec_driver_sql("SELECT count(*) FROM books").scalar()


# Writing without the unit of work.

_SYNCHRONIZE: Final = ("fetch", "evaluate", "auto", False)


def bulk_insert(world: World, a: int, b: int, c: int) -> object:
    labels = [{"label": f"label {DIARY.number()}"} for _ in range(1 + b)]
    session = world.sync(a)
    if c % 3 == 0:
        return session.execute(insert(Tag), labels).rowcount
    if c % 3 == 1:
        return session.scalars(insert(Tag).returning(Tag), labels).all()
    return session.execute(insert(Tag).values(labels)).rowcount


def bulk_insert_refused(world: World, a: int, b: int, c: int) -> object:
    return world.sync(a).execute(insert(Tag), [{"label": "fresh"}, {"label": "old"}])


def bulk_update(world: World, a: int, b: int, c: int) -> object:
    return world.sync(a).execute(update_rows(Tag), [{"id": 1, "slug": "a"}, {"id": 2, "slug": "b"}])


def bulk_save(world: World, a: int, b: int, c: int) -> object:
    session = world.sync(a)
    if c % 3 == 0:
        return session.bulk_save_objects([Tag(label=f"label {DIARY.number()}"), made(b)])
    if c % 3 == 1:
        return session.bulk_insert_mappings(inspect(Tag), [{"label": f"label {DIARY.number()}"}])
    return session.bulk_update_mappings(inspect(Tag), [{"id": 1, "slug": "bulk"}])


def update_where(world: World, a: int, b: int, c: int) -> object:
    statement = update_rows(Author).where(Author.id > 1).values(age=Author.age + 1)
    options = {"synchronize_session": one_of(_SYNCHRONIZE, b)}
    return world.sync(a).execute(statement, execution_options=options).rowcount


def update_returning(world: World, a: int, b: int, c: int) -> object:
    statement = update_rows(Tag).where(Tag.id <= 2).values(slug=f"slug {c}").returning(Tag)
    return world.sync(a).scalars(statement).all()


def delete_where(world: World, a: int, b: int, c: int) -> object:
    statement = delete_rows(one_of((Letter, Tag, Author), c)).where(text("id > 3"))
    options = {"synchronize_session": one_of(("fetch", False), b)}
    return world.sync(a).execute(statement, execution_options=options).rowcount


# What others do meanwhile.


def stale(world: World, a: int, b: int, c: int) -> object:
    statements = (
        "UPDATE books SET version = version + 1",
        "DELETE FROM pages",
        "DELETE FROM letters",
        "UPDATE authors SET age = 9",
        "UPDATE tags SET slug = 'theirs'",
    )
    return world.outside.execute(one_of(statements, b)).rowcount


def in_no_autoflush(world: World, a: int, b: int, c: int) -> object:
    session = world.sync(a)
    with session.no_autoflush:
        session.add(made(b))
        return session.scalars(select(one_of((Author, Tag), c))).all()


def _refuse(session: Session | None) -> None:
    raise Refusal("a listener refuses")


def _halt(session: Session | None) -> None:
    raise Halt("a listener halts")


def _read(session: Session | None) -> None:
    if session is not None:
        session.scalars(select(Tag)).all()


def _add(session: Session | None) -> None:
    if session is not None:
        session.add(Tag(label=f"label {DIARY.number()}"))


def _flush(session: Session | None) -> None:
    if session is not None:
        session.flush()


def _end(session: Session | None) -> None:
    if session is not None:
        session.rollback()


def _close(session: Session | None) -> None:
    if session is not None:
        session.close()


def _expunge(session: Session | None) -> None:
    if session is not None:
        session.expunge_all()


def _lazy_load(session: Session | None) -> None:
    for found in list(session or ()):
        if isinstance(found, Author):
            len(found.books)
            break


_ACTIONS: Final = (
    _refuse, _halt, _read, _add, _flush, _end, _close, _expunge, _lazy_load, _refuse
)  # fmt: skip
_ELSEWHERE: Final = (
    "before_insert",
    "after_insert",
    "before_update",
    "after_delete",
    "load",
    "refresh",
    "before_cursor_execute",
    "after_cursor_execute",
    "do_execute",
    "do_executemany",
    "begin",
    "commit",
    "checkin",
    "handle_error",
    "savepoint",
)


_OF_A_COMMIT: Final = (
    "before_flush",
    "after_flush",
    "after_flush_postexec",
    "before_insert",
    "after_insert",
    "before_commit",
    "after_commit",
    "after_rollback",
    "after_begin",
)


def arm(world: World, a: int, b: int, c: int) -> object:
    """The next such event finds its listener in a bad mood."""
    event_name = one_of((*SESSION_EVENTS, *_ELSEWHERE), 8 * a + b)
    ARMED[event_name] = one_of(_ACTIONS, c)
    return event_name


def arm_flush(world: World, a: int, b: int, c: int) -> object:
    """So does one of a flush's or a commit's."""
    names = ("before_flush", "after_flush", "after_flush_postexec", "before_insert", "after_insert")
    event_name = one_of(
        (*names, "before_commit", "after_commit", "after_rollback", "after_begin"), b
    )
    ARMED[event_name] = one_of(_ACTIONS, c)
    return event_name


OPERATIONS: Final[dict[str, Callable[[World, int, int, int], object]]] = {
    operation.__name__: operation
    for operation in (
        open_session, close, reset, invalidate, close_all, drop_session, remove_scoped,
        session_block,
        begin, begin_nested, end_transaction, commit, rollback, prepare, begin_block, nested_block,
        swallow, nested_swallow, transactions,
        add, add_held, add_all, change, change_in_vain, change_many, change_in_place, relate,
        unrelate, delete, delete_attribute, flush, flush_some, expire, expire_attribute, expire_all,
        refresh, refresh_attribute, merge, merge_unloaded, merge_new, expunge, expunge_all,
        expunge_stranger, transient, transient_to_detached, drop_object, drop_objects, let_go,
        collect, pickled, copied, session_of, is_modified,
        get, get_anew, get_one, get_pair, read, read_all, read_property, read_collection,
        select_entities, select_columns, select_join, select_eagerly, select_from_text,
        stream, stream_on, stream_close, partitions, count, one, query, query_writes,
        text_statement, connection, driver_statement,
        bulk_insert, bulk_insert_refused, bulk_update, bulk_save, update_where, update_returning,
        delete_where, stale, in_no_autoflush, arm, arm_flush,
    )
}  # fmt: skip
