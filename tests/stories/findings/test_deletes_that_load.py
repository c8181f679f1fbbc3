"""Stories of what session.delete() loads: the rows that refer to each object."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Column, ForeignKey, Integer, Table, func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from session_tracer.hooks.deletes import on_delete
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
                "with the ondelete that its foreign key has"
            )
            option = f"select({kind}).options(selectinload({kind}.songs))"
            others = found.evidence.get("alternatives")
            if kind == "PlainAlbum":  # whose songs the database would delete
                assert (found.remedy[: len(option)], others) == (option, None)
            elif twin.url.get_backend_name() == "sqlite":
                assert found.remedy.startswith(option)
                assert others == [f"{passive} and PRAGMA foreign_keys = ON"]
            else:
                assert found.remedy == passive
                assert others is not None
                assert others[0].startswith(option)

    twin.run(story)


class Person(Base):
    """Has rows that refer to it in each way."""

    __tablename__ = "people"

    id: Mapped[int] = mapped_column(primary_key=True)
    kept: Mapped[list[Kept]] = relationship()
    owned: Mapped[list[Owned]] = relationship(cascade="all, delete")
    forgotten: Mapped[list[Forgotten]] = relationship()
    lost: Mapped[list[Forgotten]] = relationship(cascade="all, delete", overlaps="forgotten")
    tags: Mapped[list[Tag]] = relationship(secondary="tags_of_people")
    owned_tags: Mapped[list[Tag]] = relationship(
        secondary="tags_of_people", cascade="all, delete", overlaps="tags"
    )
    labels: Mapped[list[Tag]] = relationship(
        secondary="labels",
        primaryjoin="Person.id == foreign(labels.c.id)",
        secondaryjoin="Tag.id == foreign(labels.c.tag)",
    )


class Kept(Base):
    """Is kept, and refers to no person afterwards."""

    __tablename__ = "kept"

    id: Mapped[int] = mapped_column(primary_key=True)
    person_id: Mapped[int | None] = mapped_column(ForeignKey("people.id"))


class Owned(Base):
    """Is deleted with its person."""

    __tablename__ = "owned"

    id: Mapped[int] = mapped_column(primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("people.id", ondelete="restrict"))


class Forgotten(Base):
    """Is kept by the database."""

    __tablename__ = "forgotten"

    id: Mapped[int] = mapped_column(primary_key=True)
    person_id: Mapped[int | None] = mapped_column(ForeignKey("people.id", ondelete="set null"))


class Tag(Base):
    """May belong to anything."""

    __tablename__ = "tags"

    id: Mapped[int] = mapped_column(primary_key=True)


Table(
    "tags_of_people",
    Base.metadata,
    Column("person", ForeignKey("people.id"), primary_key=True),
    Column("tag", ForeignKey("tags.id"), primary_key=True),
)
Table(
    "labels",
    Base.metadata,
    Column("id", Integer, primary_key=True),
    Column("tag", ForeignKey("tags.id"), primary_key=True),
)


@pytest.mark.parametrize(
    ("attribute", "action"),
    [
        ("kept", "SET NULL"),
        ("owned", "CASCADE"),
        ("forgotten", "declared"),
        ("lost", ""),  # the database would keep what the session deletes
        ("tags", "CASCADE"),
        ("owned_tags", ""),
        ("labels", ""),  # no foreign key refers to the person
    ],
)
def test_what_the_database_may_do_in_place_of_the_session(attribute: str, action: str) -> None:
    """It may neither delete what the session keeps, nor keep what it deletes."""
    assert on_delete(Person.__mapper__, attribute) == action


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
