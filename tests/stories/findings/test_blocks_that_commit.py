"""Stories of wrappers that commit as their callers' blocks end: each finding names the caller."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import StaticPool

from session_tracer.testing import capture
from tests.library import Author, Base
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from session_tracer.testing import Captured

    Opener = Callable[[], AbstractContextManager[Session]]


class Committing(Session):
    """A session whose block ends with a commit."""

    def __exit__(self, *error: object) -> None:
        try:
            if error[0] is None:
                self.commit()
        finally:
            super().__exit__(*error)


def by_a_generator(maker: sessionmaker[Session]) -> Opener:
    @contextmanager
    def scope() -> Iterator[Session]:
        with maker() as session:
            yield session
            session.commit()

    return scope


@pytest.fixture(params=["class", "generator"])
def opener(request: pytest.FixtureRequest) -> Iterator[tuple[Opener, sessionmaker[Any]]]:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    maker: Any = sessionmaker(engine, class_=Committing if request.param == "class" else Session)
    yield (maker if request.param == "class" else by_a_generator(maker)), maker
    engine.dispose()


def add_many(opened: Opener) -> None:
    with opened() as session:  # <- opened
        session.add_all([Author(name=f"author {number}") for number in range(20)])  # <- used


def set_the_same(opened: Opener) -> None:
    with opened() as session:  # <- opened
        authors = session.query(Author).all()  # <- used
        for author in authors:
            author.name = str(author.name)


def add_in_two(opened: Opener) -> None:
    with opened() as session:  # <- opened
        assert session.get(Author, 1)  # <- used
        session.add(Author(name="Ada"))
        with opened() as other:
            other.add(Author(name="Grace"))


def told_of(opener: tuple[Opener, sessionmaker[Any]], work: Any) -> Captured:
    opened, maker = opener
    with maker() as session:
        session.add_all([Author(name=f"first {number}") for number in range(12)])
        session.commit()
    with capture(maker, large_flush_objects=10) as captured:
        work(opened)
    return captured


@pytest.mark.parametrize(
    ("work", "id_", "key"),
    [
        (add_many, "large-flush", "flushed_at"),
        (set_the_same, "unchanged-dirty", "flushed_at"),
        (add_in_two, "split-writes", "committed_at"),
    ],
)
def test_the_caller_is_named(opener: Any, work: Any, id_: str, key: str) -> None:
    (finding,) = [one for one in told_of(opener, work).findings if one.id == id_]
    is_class = opener[0] is opener[1]
    assert finding.site == marked(work, "<- opened" if is_class else "<- used")
    ends = finding.evidence[key].partition(" in ")[2]
    assert ends == ("Committing.__exit__()" if is_class else "scope()")


def commit_by_itself(opened: sessionmaker[Session]) -> None:
    with opened() as session:
        session.add_all([Author(name=f"author {number}") for number in range(20)])
        session.commit()  # <- commits


def test_who_opens_and_commits_is_named_where_it_commits() -> None:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    maker = sessionmaker(engine)
    (finding,) = told_of((maker, maker), commit_by_itself).findings
    assert finding.site == marked(commit_by_itself, "<- commits")
    assert "flushed_at" not in finding.evidence
    engine.dispose()
