"""Tests the way from the database's row about a transaction to the line of the application."""

from __future__ import annotations

import asyncio
import io
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import String, create_engine, func, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from session_tracer import dump, live_sessions, work
from session_tracer.testing import capture
from tests.database_views.drivers import run
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from sqlalchemy import Row

    from session_tracer.testing import Captured
    from tests.database_views.drivers import Driver
    from tests.twins import Twin

PAGE: Final = (Path(__file__).parents[2] / "docs" / "incident.md").read_text()
QUERIES: Final = re.findall(r"^```sql\n(.*?)```", PAGE, re.M | re.S)
SECONDS: Final = 20.0


class Base(DeclarativeBase):
    """Has a table whose SELECT is longer than what PostgreSQL shows of it."""


class Parcel(Base):
    __tablename__ = "parcels"

    id: Mapped[int] = mapped_column(primary_key=True)
    for number in range(40):
        locals()[f"a_column_with_a_rather_long_name_{number}"] = mapped_column(
            String(8), default="", server_default=""
        )
    del number


class Scene:
    """Three transactions: one is idle, one runs a statement, one waits for the first one's lock."""

    def __init__(self, twin: Twin, driver: Driver) -> None:
        self._twin = twin
        self._sleep = func.pg_sleep(0.5) if driver.is_for_postgresql else func.sleep(0.5)
        self._is_locked = threading.Event()
        self.is_over = threading.Event()

    async def _pause(self) -> None:
        if self._twin.is_async:
            await asyncio.sleep(0.02)
        else:
            time.sleep(0.02)

    async def idle(self) -> None:
        with work("GET /idle"):
            async with self._twin.session() as session:  # <- idle opened
                await session.execute(select(Parcel).with_for_update())  # <- idle used
                self._is_locked.set()
                while not self.is_over.is_set():
                    await self._pause()

    async def active(self) -> None:
        with work("GET /active"):
            async with self._twin.session() as session:  # <- active opened
                while not self.is_over.is_set():
                    await session.execute(select(Parcel, self._sleep))  # <- active used

    async def waiting(self) -> None:
        while not self._is_locked.is_set():
            await self._pause()
        with work("GET /waiting"):
            async with self._twin.session() as session:  # <- waiting opened
                await session.execute(select(Parcel).with_for_update())  # <- waiting used

    @property
    def parts(self) -> dict[str, Callable[[], Coroutine[Any, Any, None]]]:
        return {"idle": self.idle, "active": self.active, "waiting": self.waiting}


async def beside(twin: Twin, scene: Scene, look: Callable[[], None]) -> None:
    """Look at a scene from outside while it is played."""

    def and_end() -> None:
        try:
            look()
        finally:
            scene.is_over.set()

    if twin.is_async:
        await asyncio.gather(*(part() for part in scene.parts.values()), asyncio.to_thread(and_end))
        return
    with ThreadPoolExecutor() as threads:
        played = [threads.submit(twin.drive, part()) for part in scene.parts.values()]
        and_end()
    for one in played:
        one.result()


def name_of(row: Row[Any]) -> str:
    """Which part of the scene a row is about, by what the database says of it."""
    if row.blocked_by:
        return "waiting"
    is_idle = "idle in transaction" in row or "Sleep" in row
    return "idle" if is_idle else "active"


def test_a_row_leads_to_the_line_by_its_comment_and_by_its_number(
    twin: Twin, driver: Driver
) -> None:
    view = "pg_stat_activity" if driver.is_for_postgresql else "processlist"
    (query,) = [one for one in QUERIES if view in one]
    scene = Scene(twin, driver)
    lines = {name: str(marked(part, f"<- {name} used")) for name, part in scene.parts.items()}
    rows: dict[str, Any] = {}
    dumped: dict[int, Any] = {}

    def look() -> None:
        plain = "postgresql+psycopg" if driver.is_for_postgresql else "mysql+pymysql"
        engine = create_engine(twin.url.set(drivername=plain))
        until = time.monotonic() + SECONDS
        while len(rows) < 3 and time.monotonic() < until:
            time.sleep(0.15)  # MariaDB renews its view of transactions after a tenth of a second
            with engine.connect() as connection:
                rows.clear()
                # The server may have those of another test, in another database.
                own = {session.process_id for session in live_sessions()}
                found = (row for row in connection.execute(text(query)) if row[0] in own)
                rows.update({name_of(row): row for row in found})
        file = io.StringIO()
        dump(file, format="json")
        dumped.update({one["process_id"]: one for one in json.loads(file.getvalue())["sessions"]})
        numbers = {row[0] for row in rows.values()}
        while numbers - reported() and time.monotonic() < until:
            time.sleep(0.05)
        engine.dispose()

    def reported() -> set[Any]:
        return {one.evidence.get("process_id") for one in captured.findings}

    async def story() -> None:
        await twin.execute(Base.metadata.drop_all)
        await twin.execute(Base.metadata.create_all)
        await twin.execute(lambda connection: connection.execute(insert(Parcel), [{"id": 1}]))
        try:
            await beside(twin, scene, look)
        finally:
            await twin.execute(Base.metadata.drop_all)

    settings: dict[str, Any] = {"idle_in_transaction_seconds": 0.2, "long_transaction_seconds": 0.4}
    with capture(twin.factory, name="parcels", statement_comment=True, **settings) as captured:
        run(twin, story)

    assert set(rows) == {"idle", "active", "waiting"}
    assert str(rows["idle"][0]) in str(rows["waiting"].blocked_by)
    for name, row in rows.items():
        session = dumped[row[0]]
        assert session["first_used_site"] == lines[name]
        assert session["work"] == f"GET /{name}"
        if name == "idle" and not driver.is_for_postgresql:
            assert row.session in (None, "")
        else:
            assert f"first_used_site='{lines[name]}'" in row.session
            assert "session_name='parcels'" in row.session
            assert f"work='GET /{name}'" in row.session
        opened = marked(scene.parts[name], f"<- {name} opened")
        assert_reported(captured, row[0], str(opened))


def assert_reported(captured: Captured, process: int, opened: str) -> None:
    """A finding and its log event have the number, and the line that opened the session."""
    found = [one for one in captured.findings if one.evidence.get("process_id") == process]
    assert {str(one.session_site) for one in found} == {opened}
    logged = [one for one in captured.logs if one.get("process_id") == process]
    assert {one["session_site"] for one in logged if one["event"] == "finding"} == {opened}
