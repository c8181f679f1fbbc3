"""Objects that left their session, each by its own way, and those who read them too late."""

from __future__ import annotations

import gc
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy import Select

    from session_tracer import Finding
    from tests.library import Author, Book, Essay
    from tests.twins import Twin


def steady(finding: Finding) -> Finding:
    """The finding without what differs from run to run: how long ago the object left."""
    evidence = dict(finding.evidence)
    assert evidence.pop("departed_ago_ms") >= 0
    message = re.sub(r"read .* after", "read a moment after", finding.message)
    return replace(finding, message=message, evidence=evidence)


async def closed(twin: Twin, query: Select[Any]) -> Any:
    async with twin.session() as session:  # opened # departed
        return (await session.scalars(query)).first()  # loaded


async def reset(twin: Twin, query: Select[Any]) -> Any:
    session = twin.session()  # opened
    found = (await session.scalars(query)).first()  # loaded
    await session.reset()  # departed
    return found


async def invalidated(twin: Twin, query: Select[Any]) -> Any:
    session = twin.session()  # opened
    found = (await session.scalars(query)).first()  # loaded
    await session.invalidate()  # departed
    return found


async def expunged(twin: Twin, query: Select[Any]) -> Any:
    async with twin.session() as session:  # opened
        found = (await session.scalars(query)).first()  # loaded
        session.expunge(found)  # departed
    return found


async def expunged_with_all(twin: Twin, query: Select[Any]) -> Any:
    async with twin.session() as session:  # opened
        found = (await session.scalars(query)).first()  # loaded
        session.expunge_all()  # departed
        (await session.scalars(query)).all()
    return found


async def collected(twin: Twin, query: Select[Any]) -> Any:
    session = twin.session()  # opened
    found = (await session.scalars(query)).first()  # loaded # departed
    del session
    gc.collect()
    return found


async def deleted(twin: Twin, query: Select[Any]) -> Any:
    async with twin.session(expire_on_commit=False) as session:  # opened
        found = (await session.scalars(query)).first()  # loaded
        await session.delete(found)
        await session.commit()  # departed
    return found


async def deleted_and_expired(twin: Twin, query: Select[Any]) -> Any:
    async with twin.session() as session:  # opened
        found = (await session.scalars(query)).first()  # loaded
        await session.delete(found)
        await session.flush()
        await session.commit()  # departed
    return found


async def expired_by_commit(twin: Twin, query: Select[Any]) -> Any:
    async with twin.session() as session:  # opened # departed
        found = (await session.scalars(query)).first()  # loaded
        await session.commit()  # expired
    return found


async def expired_by_rollback(twin: Twin, query: Select[Any]) -> Any:
    async with twin.session() as session:  # opened # departed
        found = (await session.scalars(query)).first()  # loaded
        await session.rollback()  # expired
    return found


async def expired_by_hand(twin: Twin, query: Select[Any]) -> Any:
    async with twin.session() as session:  # opened # departed
        found = (await session.scalars(query)).first()  # loaded
        session.expire(found)  # expired
    return found


async def expired_with_all(twin: Twin, query: Select[Any]) -> Any:
    async with twin.session() as session:  # opened # departed
        found = (await session.scalars(query)).first()  # loaded
        session.expire_all()  # expired
    return found


def read_books(author: Author) -> object:
    return author.books  # read


def read_author(book: Book) -> object:
    return book.author  # read


def read_biography(author: Author) -> object:
    return author.biography  # read


def read_text(essay: Essay) -> object:
    return essay.text  # read


def read_letters(author: Author) -> object:
    return author.letters.filter_by(id=1)  # read


def read_name(author: Author) -> object:
    return author.name  # read


def read_title(book: Book) -> object:
    return f"{book.title} ({book.copies})"  # read
