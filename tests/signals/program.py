"""A small program with a mistake in it, run by itself: where its telemetry goes, OTEL_* say."""

import sys

from sqlalchemy import create_engine, select
from sqlalchemy.orm import sessionmaker
from sqlalchemy.orm.exc import DetachedInstanceError

from session_tracer import instrument
from tests.library import Author, Base, authors


def main(name: str) -> None:
    """Write an author, let the session go, and read what was not loaded."""
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    factory = sessionmaker(engine)
    instrument(factory, name=name, exporter="otlp")
    with factory() as session:
        session.add_all(authors(1, books_each=2))
        session.commit()
        author = session.scalars(select(Author)).one()
    try:
        print(len(author.books))
    except DetachedInstanceError:
        print("detached")


if __name__ == "__main__":
    main(sys.argv[1])
