"""The engine, the traced sessions, and the dependency that gives a request its session."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends
from sqlalchemy import AsyncAdaptedQueuePool
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from examples.fastapi_app.config import DATABASE_URL, POOL_SECONDS
from session_tracer import instrument

engine = create_async_engine(
    DATABASE_URL,
    # Older releases of SQLAlchemy have another default for SQLite.
    poolclass=AsyncAdaptedQueuePool,
    pool_size=5,
    max_overflow=0,
    pool_timeout=POOL_SECONDS,
)
SessionLocal = async_sessionmaker(engine, expire_on_commit=False)

instrument(SessionLocal, name="shop")


async def get_session() -> AsyncIterator[AsyncSession]:
    """Give one request its session."""
    async with SessionLocal() as session:
        yield session


SessionDep = Annotated[AsyncSession, Depends(get_session)]
