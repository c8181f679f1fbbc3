"""Stories of what session.delete() loads: the rows that refer to each object."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import ForeignKey, func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from tests.stories.findings.reading import tell
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sqlalchemy.orm import Session

    from tests.twins import Twin


class Base(DeclarativeBase):
    """What all of them are mapped with."""


class Song(Base):
    """Is deleted with its album."""

    __tablename__ = "songs"

    id: Mapped[int] = mapped_column(primary_key=True)
    album_id: Mapped[int] = mapped_column(ForeignKey("albums.id", ondelete="CASCADE"))


class Album(Base):
    """Is deleted, and its songs are loaded to be deleted, too."""

    __tablename__ = "albums"

    id: Mapped[int] = mapped_column(primary_key=True)
    songs: Mapped[list[Song]] = relationship(cascade="all, delete-orphan")


class PlainAlbum(Base):
    """Is deleted, and its songs are loaded to refer to none."""

    __table__ = Album.__table__

    songs: Mapped[list[Song]] = relationship(overlaps="songs")


class PassiveAlbum(Base):
    """Is deleted, and the database deletes its songs."""

    __table__ = Album.__table__

    songs: Mapped[list[Song]] = relationship(
        cascade="all, delete-orphan", passive_deletes=True, overlaps="songs"
    )


class Writer(Base):
    """Is deleted with the last of the books."""

    __tablename__ = "writers"

    id: Mapped[int] = mapped_column(primary_key=True)


class Novel(Base):
    """Deletes its writer with it."""

    __tablename__ = "novels"

    id: Mapped[int] = mapped_column(primary_key=True)
    writer_id: Mapped[int] = mapped_column(ForeignKey("writers.id"))
    writer: Mapped[Writer] = relationship(cascade="all, delete")


@asynccontextmanager
async def albums(twin: Twin) -> AsyncIterator[None]:
    """Six albums with a song each, and six novels."""
    await twin.execute(Base.metadata.create_all)
    try:
        async with twin.session() as session:
            for _ in range(6):
                session.add(Album(songs=[Song()]))
                session.add(Novel(writer=Writer()))
            await session.commit()
        yield
    finally:
        await twin.execute(Base.metadata.drop_all)


def delete_albums(session: Session, kind: Any = Album) -> None:
    for album in session.scalars(select(kind)).all():
        session.delete(album)  # <- deleted
    session.flush()  # <- flushed


def delete_plain_albums(session: Session) -> None:
    delete_albums(session, PlainAlbum)


def delete_passive_albums(session: Session) -> None:
    if session.get_bind().dialect.name == "sqlite":
        session.execute(text("PRAGMA foreign_keys = ON"))
    delete_albums(session, PassiveAlbum)
    assert session.scalar(select(func.count()).select_from(Song)) == 0


@pytest.mark.parametrize(
    ("work", "kind", "line"),
    [
        (delete_albums, "Album", "<- deleted"),
        (delete_plain_albums, "PlainAlbum", "<- flushed"),
    ],
)
def test_what_is_loaded_because_its_parent_is_deleted(
    twin: Twin, work: Any, kind: str, line: str
) -> None:
    async def story() -> None:
        async with albums(twin):
            # A song must have an album.
            ignored = {"failed-flush", "discarded-changes"}
            (found,) = (await tell(twin, rolled_back(work), ignore=ignored)).findings
            assert found.id == "n-plus-one"
            assert found.site == marked(delete_albums, line)
            passive = (
                f"relationship(passive_deletes=True)  # for {kind}.songs, "
                'with ForeignKey(ondelete="CASCADE")'
            )
            option = f"select({kind}).options(selectinload({kind}.songs))"
            others = found.evidence["alternatives"]
            if twin.url.get_backend_name() == "sqlite":
                assert found.remedy.startswith(option)
                assert others == [f"{passive} and PRAGMA foreign_keys = ON"]
            else:
                assert found.remedy == passive
                assert others[0].startswith(option)

    twin.run(story)


def rolled_back(work: Callable[[Session], None]) -> Callable[[Session], None]:
    def done(session: Session) -> None:
        with suppress(IntegrityError):
            work(session)
        session.rollback()

    return done


def test_rows_that_the_database_deletes(twin: Twin) -> None:
    async def story() -> None:
        async with albums(twin):
            captured = await tell(twin, rolled_back(delete_passive_albums))
            assert captured.findings == []

    twin.run(story)


def delete_novels(session: Session) -> None:
    for novel in session.scalars(select(Novel)).all():
        session.delete(novel)
    session.flush()
    session.rollback()


def read_and_delete(session: Session) -> None:
    for album in session.scalars(select(Album)).all():
        assert album.songs
        session.delete(album)
    session.rollback()


@pytest.mark.parametrize(
    ("work", "advised"),
    [
        (delete_novels, "select(Novel).options(joinedload(Novel.writer)) at "),
        (read_and_delete, "select(Album).options(selectinload(Album.songs)) at "),
    ],
)
def test_what_only_a_loader_option_brings(twin: Twin, work: Any, advised: str) -> None:
    async def story() -> None:
        async with albums(twin):
            (finding,) = (await tell(twin, work)).findings
            assert finding.id == "n-plus-one"
            assert finding.remedy.startswith(advised)

    twin.run(story)
