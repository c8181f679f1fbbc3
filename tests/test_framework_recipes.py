"""Tests each application of docs/frameworks.md under its real server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.servers.lifeline import free_port
from tests.servers.running import SECONDS, running

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "frameworks.md").read_text()
SERVERS = {
    "FastAPI": ["uvicorn", "app:app", "--port={port}"],
    "Starlette": ["uvicorn", "app:app", "--port={port}"],
    "SQLModel": ["uvicorn", "app:app", "--port={port}"],
    "Litestar with advanced-alchemy": ["uvicorn", "app:app", "--port={port}"],
    "Flask-SQLAlchemy": ["gunicorn", "app:app", "--bind=127.0.0.1:{port}"],
    "Pyramid with zope.sqlalchemy": ["waitress", "--port={port}", "--call", "app:make_app"],
    "Celery": ["celery", "--app=app", "worker", "--pool=threads", "--concurrency=1"],
}


def recipe(title: str) -> str:
    """The one application in the section of that title."""
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return str(code)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of an application, with the classes that they share."""
    (tmp_path / "shop.py").write_text(re.findall(r"```python\n(# shop.*?)```", PAGE, re.DOTALL)[0])
    return tmp_path


def serving(folder: Path, title: str, port: int) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """The application under its server, which is asked to end after the block."""
    (folder / "app.py").write_text(recipe(title))
    command = [part.format(port=port) for part in SERVERS[title]]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "SESSION_TRACER_EXPORTER": "jsonl",
        "SESSION_TRACER_JSONL_PATH": str(folder / "events.jsonl"),
        "SESSION_TRACER_LOG_LEVEL": "debug",
    }
    return running(command, folder=folder, environment=environment, output=folder / "output")


def answer(server: subprocess.Popen[bytes], port: int) -> dict[str, int]:
    """What the server answers to `GET /authors`, once it has started."""
    until = time.monotonic() + SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/authors", timeout=SECONDS) as got:
                return dict(json.load(got))
        except OSError as error:
            has_failed = getattr(error, "code", 0) >= 500 or server.poll() is not None
            if has_failed or time.monotonic() > until:
                raise
            time.sleep(0.05)


def event(folder: Path, name: str) -> dict[str, Any]:
    """The first event of that name, waited for."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        path = folder / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        for line in lines:
            found = json.loads(line)
            if found["event"] == name and found["session_name"] == "shop-db":
                return dict(found)
        time.sleep(0.05)
    raise AssertionError(f"there is no {name}")


def line_of(title: str, words: str) -> int:
    return recipe(title).partition(words)[0].count("\n") + 1


@pytest.mark.parametrize("title", [title for title in SERVERS if title != "Celery"])
def test_a_request_is_named_and_its_n_plus_one_is_at_the_line_of_the_view(
    folder: Path, title: str
) -> None:
    port = free_port()
    with serving(folder, title, port) as server:
        assert set(answer(server, port).values()) == {2}
        finding = event(folder, "finding")
        closed = event(folder, "session.closed")
    assert (finding["finding_id"], finding["work"]) == ("n-plus-one", "GET /authors")
    assert finding["site"].startswith(f"app.py:{line_of(title, 'len(author.books)')} in authors()")
    assert "selectinload(Author.books)" in finding["remedy"]
    assert closed["work"] == "GET /authors"
    assert closed["outcome"] in ("closed", "committed", "rolled_back")


def test_a_task_is_named_and_its_n_plus_one_is_at_its_line(folder: Path) -> None:
    (folder / "queue").mkdir()
    (folder / "celeryconfig.py").write_text(
        "broker_url = 'filesystem://'\n"
        "broker_transport_options = {\n"
        "    'data_folder_in': 'queue', 'data_folder_out': 'queue', 'control_folder': 'queue'\n"
        "}\n"
    )
    (folder / "app.py").write_text(recipe("Celery"))
    subprocess.run(
        [sys.executable, "-c", "import shop, app; shop.create(); app.count_books.delay()"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SESSION_TRACER_EXPORTER": "none"},
        check=True,
        timeout=SECONDS,
    )
    with serving(folder, "Celery", 0):
        finding = event(folder, "finding")
    assert (finding["finding_id"], finding["work"]) == ("n-plus-one", "task shop.count_books")
    assert "app.py" in finding["site"]


def test_every_framework_of_the_page_is_run() -> None:
    assert set(re.findall(r"^## (.*)$", PAGE, re.MULTILINE)) == set(SERVERS)
