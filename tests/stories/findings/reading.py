"""Does work in a session that is traced, such as to read attributes of objects one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from session_tracer import CallSite
from session_tracer.testing import capture
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Select
    from sqlalchemy.orm import Session

    from session_tracer.testing import Captured
    from tests.twins import Twin


def each(session: Session, query: Select[Any], read: Callable[[Any], object]) -> None:
    for one in session.scalars(query).unique().all():  # <- selected
        read(one)  # <- reads


async def read_each(
    twin: Twin, query: Select[Any], read: Callable[[Any], object], **settings: Any
) -> Captured:
    """What is told of a session that reads something of each object."""
    with capture(twin.factory, **settings) as captured:
        async with twin.session() as session:  # <- opened
            await session.run_sync(lambda plain: each(plain, query, read))
    return captured


async def tell(twin: Twin, work: Callable[[Session], object], **settings: Any) -> Captured:
    """What is told of a session in which this is done."""
    with capture(twin.factory, **settings) as captured:
        async with twin.session() as session:  # <- opened
            await session.run_sync(work)
    return captured


OPENED = marked(read_each, "<- opened")
SELECTED = marked(each, "<- selected")
READING = marked(each, "<- reads")


def line_of(read: Callable[..., object]) -> CallSite:
    """The line of a function that has no other: a lambda."""
    code = read.__code__
    return CallSite(code.co_filename, code.co_firstlineno, code.co_qualname.rpartition(".")[2])
