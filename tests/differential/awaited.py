"""What programs under asyncio are made of: AsyncSession's ways, and a Session's within them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import inspect, select, text

from tests.differential.listeners import Refusal
from tests.differential.mapped import CLASSES, Author, Book, Item, Tag
from tests.differential.operations import OPERATIONS, held, made, one_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.differential.world import World

__all__ = ["AWAITED"]


async def a_commit(world: World, a: int, b: int, c: int) -> object:
    return await world.session(a).commit()


async def a_rollback(world: World, a: int, b: int, c: int) -> object:
    return await world.session(a).rollback()


async def a_flush(world: World, a: int, b: int, c: int) -> object:
    return await world.session(a).flush()


async def a_close(world: World, a: int, b: int, c: int) -> object:
    return await world.session(a).close()


async def a_reset(world: World, a: int, b: int, c: int) -> object:
    return await world.session(a).reset()


async def a_invalidate(world: World, a: int, b: int, c: int) -> object:
    return await world.session(a).invalidate()


async def a_add(world: World, a: int, b: int, c: int) -> object:
    return world.session(a).add(world.hold(made(b)))


async def a_delete(world: World, a: int, b: int, c: int) -> object:
    return await world.session(a).delete(held(world, b))


async def a_refresh(world: World, a: int, b: int, c: int) -> object:
    return await world.session(a).refresh(held(world, b))


async def a_merge(world: World, a: int, b: int, c: int) -> object:
    return await world.session(a).merge(held(world, b))


async def a_expire(world: World, a: int, b: int, c: int) -> object:
    return world.session(a).expire(held(world, b))


async def a_expunge(world: World, a: int, b: int, c: int) -> object:
    return world.session(a).expunge(held(world, b))


async def a_get(world: World, a: int, b: int, c: int) -> object:
    return await world.session(a).get(one_of(CLASSES[:-1], b), 1 + c % 5)


async def a_get_one(world: World, a: int, b: int, c: int) -> object:
    return await world.session(a).get_one(Book, 1 + c)


async def a_select(world: World, a: int, b: int, c: int) -> object:
    result = await world.session(a).scalars(select(one_of(CLASSES, b)).limit(3))
    return result.unique().all()


async def a_execute(world: World, a: int, b: int, c: int) -> object:
    statement = one_of(("SELECT 1", "SELECT * FROM nowhere", "UPDATE tags SET slug = 'x'"), b)
    return (await world.session(a).execute(text(statement))).returns_rows


async def a_stream(world: World, a: int, b: int, c: int) -> object:
    result = await world.session(a).stream_scalars(
        select(one_of((Author, Item), b)).execution_options(yield_per=2)
    )
    found = []
    async for one in result:
        found.append(one)
        if c % 2:
            break
    if c % 3:
        await result.close()
    return found


async def a_read(world: World, a: int, b: int, c: int) -> object:
    """What is not loaded cannot be loaded here."""
    found = held(world, b)
    return getattr(found, one_of(list(inspect(found).attrs.keys()), c))


async def a_await_read(world: World, a: int, b: int, c: int) -> object:
    found = held(world, b)
    return await getattr(found.awaitable_attrs, one_of(list(inspect(found).attrs.keys()), c))


async def a_block(world: World, a: int, b: int, c: int) -> object:
    async with world.session(a) as session:
        session.add(made(b))
        if c % 3 == 0:
            raise Refusal("in a session's block")
        if c % 3 == 1:
            await session.commit()
    return None


async def a_begin_block(world: World, a: int, b: int, c: int) -> object:
    session = world.session(a)
    async with session.begin():
        session.add(made(b))
        if c % 2:
            raise Refusal("in a transaction's block")
    return None


async def a_nested_block(world: World, a: int, b: int, c: int) -> object:
    session = world.session(a)
    async with session.begin_nested() as savepoint:
        session.add(made(b))
        if c % 3 == 0:
            raise Refusal("in a savepoint's block")
        if c % 3 == 1:
            await savepoint.rollback()
    return None


async def a_swallow(world: World, a: int, b: int, c: int) -> object:
    session = world.session(a)
    session.add(made(b))
    try:
        await session.flush()
    except Exception as error:
        return str(type(error))
    return "no error"


async def a_connection(world: World, a: int, b: int, c: int) -> object:
    connection = await world.session(a).connection()
    return (await connection.execute(select(Tag.id))).scalars().all()


async def a_driver(world: World, a: int, b: int, c: int) -> object:
    connection = await world.session(a).connection()
    raw = await connection.get_raw_connection()
    cursor = await raw.driver_connection.execute("SELECT count(*) FROM tags")
    try:
        return await cursor.fetchone()
    finally:
        await cursor.close()


def _within(name: str) -> Callable[[World, int, int, int], Awaitable[object]]:
    operation = OPERATIONS[name]

    async def within(world: World, a: int, b: int, c: int) -> object:
        return await world.session(a).run_sync(lambda _: operation(world, a, b, c))

    return within


def _alone(name: str) -> Callable[[World, int, int, int], Awaitable[object]]:
    operation = OPERATIONS[name]

    async def alone(world: World, a: int, b: int, c: int) -> object:
        return operation(world, a, b, c)

    return alone


# These need no session, and some are to leave none.
_WITHOUT: Final = (
    "let_go",
    "collect",
    "drop_session",
    "drop_object",
    "drop_objects",
    "change",
    "stale",
)


AWAITED: Final[dict[str, Callable[[World, int, int, int], Awaitable[Any]]]] = {
    **{
        operation.__name__: operation
        for operation in (
            a_commit, a_rollback, a_flush, a_close, a_reset, a_invalidate, a_add, a_delete,
            a_refresh, a_merge, a_expire, a_expunge, a_get, a_get_one, a_select, a_execute,
            a_stream, a_read, a_await_read, a_block, a_begin_block, a_nested_block, a_swallow,
            a_connection, a_driver,
        )
    },
    **{name: _alone(name) if name in _WITHOUT else _within(name) for name in OPERATIONS},
}  # fmt: skip
