"""Sessions, steps and findings as the tracer reports them, and the sources they point to."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from session_tracer.model.findings import Finding, Retraction
from session_tracer.model.summary import SessionSummary
from session_tracer.model.timeline import Step
from session_tracer.where.callsite import CallSite

SOURCES = {
    ("app/report.py", 33): "        total += sum(b.price for b in author.books)",
    ("app/views.py", 42): "    {% for b in author.books %}",
    ("app/db.py", 12): "    with SessionLocal() as session:",
    ("app/jobs/upload.py", 120): "    client.put(url, content=chunk)",
    ("app/jobs/export.py", 71): "            upload(session, chunk)",
}


def write_sources(folder: Path) -> None:
    """Put the lines that sites point to below `folder`, which has to be the working directory."""
    for (file, line), text in SOURCES.items():
        path = folder / file
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("\n" * (line - 1) + text + "\n")


def site(file: str, line: int, function: str) -> CallSite:
    """A line below the working directory."""
    return CallSite(str(Path.cwd() / file), line, function)


def step(at: float, verb: str, subject: str = "", took: float = 0, **more: Any) -> Step:
    """A step whose times are milliseconds."""
    return Step(
        int(at * 1e6), verb, subject, more.pop("site", None), duration=int(took * 1e6), **more
    )


def quiet_session(**changes: Any) -> SessionSummary:
    """It read twelve authors."""
    summary = SessionSummary(
        id="a1b2c3d4e5f6",
        name="orders-db",
        is_async=False,
        outcome="closed",
        opened_unix_ns=0,
        opened_site=site("app/db.py", 12, "get_db"),
        closed_site=site("app/db.py", 15, "get_db"),
        ending="close",
        error="",
        database=None,
        duration_ms=3.14,
        held_ms=2.0,
        sql_ms=1.4,
        statements=1,
        transactions=1,
        savepoints=0,
        commits=0,
        rollbacks=0,
        flushes=0,
        failed_flushes=0,
        loaded={"Author": 12},
        identity_map_peak=12,
        timeline=(step(0.4, "begin"), step(0.6, "select", "Author", 1.1, loaded={"Author": 12})),
    )
    return replace(summary, **changes)


def n_plus_one(**changes: Any) -> Finding:
    """Twelve lazy loads from one line."""
    finding = Finding(
        id="n-plus-one",
        severity="warning",
        message="Author.books was lazily loaded for 12 authors, one SELECT each",
        remedy="select(Author).options(selectinload(Author.books))",
        site=site("app/report.py", 33, "totals"),
        session_id="4f1c9a0d2e7b",
        session_name="orders-db",
        session_site=site("app/db.py", 12, "get_db"),
        entity="Author",
        attribute="books",
        count=12,
        evidence={"loaded_at": "app/repo.py:18 in authors()", "unheard_of": [1, 2]},
    )
    return replace(finding, **changes)


def detached_lazy_load(**changes: Any) -> Finding:
    """A read after the session had closed."""
    finding = Finding(
        id="detached-lazy-load",
        severity="error",
        message="Author.books was read 35 ms after its session was closed",
        remedy="select(Author).options(selectinload(Author.books))",
        site=site("app/views.py", 42, "render"),
        session_id="7f3a2b5c6d7e",
        session_name="orders-db",
        session_site=site("app/db.py", 12, "get_db"),
        entity="Author",
        attribute="books",
        evidence={
            "why": "the relationship was never loaded",
            "departure": "close",
            "departed_ago_ms": 35.2,
            "loaded_at": "app/repo.py:18 in author()",
            "opened_at": "app/db.py:12 in get_db()",
            "departed_at": "app/db.py:15 in get_db()",
        },
    )
    return replace(finding, **changes)


def leaked_session(**changes: Any) -> Finding:
    """A session that is open while its owner uploads a file."""
    finding = Finding(
        id="leaked-session",
        severity="error",
        message="session 9b21e0 (orders-db) has been open for 4 min 12 s and holds a connection "
        "(PostgreSQL process 31877)",
        remedy="commit before the wait at app/jobs/upload.py:120 in upload(), "
        "or open the session after it",
        site=site("app/db.py", 12, "get_db"),
        session_id="9b21e0456789",
        session_name="orders-db",
        session_site=site("app/db.py", 12, "get_db"),
        evidence={
            "age_ms": 252_000.0,
            "owner": 'thread "export-3"',
            "doing": [
                "app/jobs/upload.py:120 in upload()",
                "app/jobs/export.py:71 in run_export()",
                "app/jobs/gone.py:3 in main()",
            ],
            "transaction": "open",
            "transaction_ms": 251_000.0,
            "statements": 31,
            "sql_ms": 812.0,
            "held_ms": 250_400.0,
            "process_id": 31877,
            "pending": {"Invoice": 412},
            "modified_objects": 2,
            "last_statement_at": "app/jobs/export.py:71 in run_export()",
            "last_statement_ago_ms": 250_000.0,
            "earlier": ["idle-in-transaction"],
        },
    )
    return replace(finding, **changes)


def retraction(**changes: Any) -> Retraction:
    """The session was closed after all."""
    whole = Retraction(finding=leaked_session(), message="the session was closed after 4 min 31 s")
    return replace(whole, **changes)


def busy_session(**changes: Any) -> SessionSummary:
    """An order placed, with an N+1 on the way."""
    shop = site("app/shop.py", 92, "place_order")
    summary = quiet_session(
        id="4f1c9a0d2e7b",
        outcome="committed",
        duration_ms=48.2,
        held_ms=41.0,
        sql_ms=12.3,
        statements=15,
        commits=1,
        flushes=2,
        loaded={"Author": 12, "Book": 300},
        new={"Order": 2, "OrderLine": 40},
        dirty={"Stock": 12},
        unchanged={"Stock": 4},
        deleted={"Cart": 1},
        identity_map_peak=312,
        timeline=(
            step(0.4, "begin"),
            step(
                0.6,
                "select",
                "Author",
                1.1,
                site=site("app/repo.py", 18, "authors"),
                loaded={"Author": 12},
            ),
            step(
                2.0,
                "lazy",
                "Author.books",
                8.9,
                site=site("app/report.py", 33, "totals"),
                count=12,
                loaded={"Book": 300},
            ),
            step(
                21.7,
                "flush",
                "autoflush",
                0.9,
                site=site("app/shop.py", 77, "reserve"),
                new={"Order": 2},
                dirty={"Stock": 1},
            ),
            step(
                44.1,
                "flush",
                "commit",
                1.4,
                site=shop,
                new={"OrderLine": 40},
                dirty={"Stock": 11},
                unchanged={"Stock": 4},
                deleted={"Cart": 1},
            ),
            step(46.1, "commit", "", 1.7, site=shop),
            step(48.2, "close", site=site("app/db.py", 15, "get_db")),
        ),
        findings=(n_plus_one(),),
    )
    return replace(summary, **changes)


def failed_session(**changes: Any) -> SessionSummary:
    """A flush that a constraint refused."""
    shop = site("app/shop.py", 92, "place_order")
    summary = quiet_session(
        id="bad00badbad0",
        outcome="failed",
        error="sqlalchemy.exc.IntegrityError",
        duration_ms=312.5,
        held_ms=300.2,
        sql_ms=2.1,
        statements=2,
        failed_flushes=1,
        pending=3,
        loaded={},
        identity_map_peak=0,
        timeline=(
            step(0.4, "begin"),
            step(
                2.0,
                "flush",
                "commit",
                120,
                site=shop,
                new={"Order": 1},
                error="sqlalchemy.exc.IntegrityError",
            ),
            step(122.0, "rollback", site=shop),
            step(
                312.0,
                "close",
                site=site("app/db.py", 15, "get_db"),
                error="sqlalchemy.exc.IntegrityError",
            ),
        ),
    )
    return replace(summary, **changes)
