"""Tests what `dump()` writes: about the process and its pools, then about each open session."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from session_tracer import Exporter, dump, instrument, work
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine

ONE = text("SELECT 1")
KEPT: list[Any] = []


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path / 'shop.db'}", pool_size=2, max_overflow=1)
    yield engine
    KEPT.clear()
    engine.dispose()


def written() -> list[str]:
    file = io.StringIO()
    dump(file)
    return file.getvalue().splitlines()


def as_json() -> dict[str, Any]:
    file = io.StringIO()
    dump(file, format="json")
    found: dict[str, Any] = json.loads(file.getvalue())
    return found


def leave_open(factory: Any) -> None:
    with work("GET /export"):
        KEPT.append(factory())  # <- opened
    KEPT[0].execute(ONE)  # <- used


def test_the_first_line_is_about_the_process_its_pools_and_what_is_left_behind(
    engine: Engine,
) -> None:
    factory = sessionmaker(engine)
    with instrument(factory, name="shop", exporter=Exporter()):
        assert written()[0].startswith(f"process {os.getpid()} on ")
        assert written()[0].endswith("0 open; 0 left behind; 0 waiting for a connection")
        thread = threading.Thread(target=leave_open, args=(factory,), name="export-3")
        thread.start()
        thread.join()
        with factory() as session:
            session.execute(ONE)
            first, *rest = written()
            about = "2 open; 1 left behind; 0 waiting for a connection; pool "
            assert about in first
            assert first.endswith("shop.db: 2 of 3 used, 0 idle")
            assert f"  1 at {marked(leave_open, '<- used')}" in rest
            (head,) = [one for one in rest if one.startswith("session ") and "GET /export" in one]
            block = rest[rest.index(head) :]
            assert head.startswith(f"session {as_json()['sessions'][0]['id'][:6]} (shop) for GET")
            assert f"  opened          {marked(leave_open, '<- opened')}" in block
            assert '  owner           thread "export-3", ended' in block
            assert any(line.startswith("  connection      held for 0.") for line in block)
        KEPT[0].close()
    assert written()[0].endswith("0 open; 0 left behind; 0 waiting for a connection")


def test_json_has_the_sessions_and_the_pools_for_programs(engine: Engine) -> None:
    factory = sessionmaker(engine)
    with instrument(factory, name="shop", exporter=Exporter()):
        leave_open(factory)
        found = as_json()
        assert (found["open"], found["waiting"], found["process_pid"]) == (1, 0, os.getpid())
        (pool,) = found["pools"]
        assert (pool["used"], pool["idle"], pool["most"]) == (1, 0, 3)
        (session,) = found["sessions"]
        assert session["work"] == "GET /export"
        assert session["opened_site"] == str(marked(leave_open, "<- opened"))
        assert (session["holds_connection"], session["statements"]) == (True, 1)
        KEPT[0].close()


def test_it_is_written_in_any_thread_while_the_main_thread_hangs(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    factory = sessionmaker(engine)
    with instrument(factory, exporter=Exporter()), factory() as session:
        session.execute(ONE)
        thread = threading.Thread(target=dump)
        thread.start()
        thread.join(20)  # hangs here
        assert not thread.is_alive()
    assert "1 open; 0 left behind" in capsys.readouterr().err


def test_it_is_written_while_other_threads_make_engines_and_sessions(tmp_path: Path) -> None:
    stop = threading.Event()
    failed: list[str] = []

    def make_engines() -> None:
        while not stop.is_set():
            engine = create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
            with Session(engine) as session:
                session.execute(ONE)
            engine.dispose()

    threads = [threading.Thread(target=make_engines) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with instrument(exporter=Exporter()) as tracing:
            tracing._tracer.failed = lambda where, error: failed.append(f"{where}: {error}")  # type: ignore[method-assign] # what it would log
            for thread in threads:
                thread.start()
            for _ in range(150):
                assert written()[0].startswith("process ")
                as_json()
            stop.set()
            for thread in threads:
                thread.join()
    finally:
        stop.set()
        sys.setswitchinterval(interval)
    assert failed == []


def test_an_asynchronous_session_is_written_with_its_task(tmp_path: Path) -> None:
    async def main() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}")
        factory = async_sessionmaker(engine)
        with instrument(factory, exporter=Exporter()):
            async with factory() as session:
                await session.execute(ONE)
                (found,) = (await asyncio.to_thread(as_json))["sessions"]
                assert found["owner"].startswith('task "')
                assert found["holds_connection"]
        await engine.dispose()

    asyncio.run(main())


def test_an_unknown_format_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"Invalid format='jsn': .*Did you mean 'json'\?"):
        dump(format="jsn")  # type: ignore[arg-type] # the point
