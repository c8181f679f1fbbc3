"""The shop's database: one SQLite file in a temporary directory, and who connects to it."""

import atexit
import shutil
import tempfile
import warnings
from pathlib import Path

from sqlalchemy import NullPool, create_engine
from sqlalchemy.exc import SAWarning
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker

from examples.misuse.models import Author, Book, Model

DIRECTORY = Path(tempfile.mkdtemp(prefix="misuse-"))
atexit.register(shutil.rmtree, DIRECTORY, ignore_errors=True)

engine = create_engine(f"sqlite:///{DIRECTORY / 'shop.sqlite'}")
# Each scene has its own event loop, and a connection belongs to its loop.
async_engine = create_async_engine(
    f"sqlite+aiosqlite:///{DIRECTORY / 'shop.sqlite'}", poolclass=NullPool
)
# One connection for all, and little patience.
narrow_engine = create_engine(engine.url, pool_size=1, max_overflow=0, pool_timeout=0.2)

SessionLocal = sessionmaker(engine)
AsyncSessionLocal = async_sessionmaker(async_engine)
NarrowSessionLocal = sessionmaker(narrow_engine)

# SQLAlchemy 2.1 drops a coroutine of aiosqlite where it raises MissingGreenlet.
warnings.filterwarnings("ignore", "coroutine 'Connection.cursor' was never awaited", RuntimeWarning)
# The scene of `lost-link` is what SQLAlchemy warns of. A warning that is ignored is no finding.
warnings.filterwarnings("default", "Object of type <Author> not in session", SAWarning)


def open_shop() -> None:
    """Create the tables, with twelve authors of two books each."""
    Model.metadata.drop_all(engine)
    Model.metadata.create_all(engine)
    with SessionLocal.begin() as session:
        session.add_all(
            Author(
                name=f"Author {number}",
                books=[Book(title=f"Book {number}.1"), Book(title=f"Book {number}.2")],
            )
            for number in range(1, 13)
        )


def close_shop() -> None:
    """Close every connection."""
    engine.dispose()
    narrow_engine.dispose()
