"""Tests that are shown what detectors have evidence of, or that it is for machines on purpose."""

from __future__ import annotations

import ast
import logging
from pathlib import Path
from typing import Any

from session_tracer import CallSite
from session_tracer.exporters.evidence import LABELS, evidence_rows, places
from session_tracer.ledger.ledger import FLUSHED

ROOT = Path(__file__).parents[2]
DETECTORS = ROOT / "session_tracer" / "detectors"

# What a person has seen already, or has no use for.
FOR_MACHINES = frozenset(
    {
        # The block shows the session, and where it was opened.
        "opened_at", "other_session_id", "other_session_name",
        # The message contains it.
        "added", "modified", "removed", "flushed_new", "flushed_dirty", "flushed_deleted",
        "written", "other_written", "rows_per_commit", "from_one_site", "commits", "flushes",
        "table", "kind", "unchanged", "unchanged_attributes", "reloaded", "loaded",
        "error_type", "missing", "reason", "rows", "other_findings",
        "failed_ago_ms", "age_ms", "idle_ms", "timeout_ms", "other_held_ms", "outcome", "ending",
        "entities", "used_by", "in_use_by", "loop_thread", "first_loop_thread",
        # Its age is shown where there is one.
        "transaction",
    }
)  # fmt: skip


# What makes or shows one object in a list of evidence: the object has keys of its own.
OF_HOLDERS = frozenset({"_holder", "_held_at", "_held_by"})


def evidence_keys(source: str, of: frozenset[str] = frozenset()) -> set[str]:
    """The keys of the dictionaries that a module's functions make, however they make them.

    Without a name, these are all its functions but those of holders.
    """
    keys: set[str] = set()
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef) and (
            function.name in of if of else function.name not in OF_HOLDERS
        ):
            for node in ast.walk(function):
                keys |= _keys_of(node)
    return keys


def _keys_of(node: ast.AST) -> set[str]:
    match node:
        case ast.Dict(keys=keys):
            named = (key.value for key in keys if isinstance(key, ast.Constant))
            return {name for name in named if isinstance(name, str)}
        case ast.Subscript(slice=ast.Constant(value=str(key)), ctx=ast.Store()):
            return {key}
        case ast.Call(func=ast.Name("known"), keywords=keywords):
            return {keyword.arg for keyword in keywords if keyword.arg}
        case ast.Tuple(elts=[ast.Constant(value=str(key)), ast.Attribute()]):
            return {key}  # ("new", fact.new)
    return set()


KEYS = {
    **{
        key: file.name for file in DETECTORS.glob("*.py") for key in evidence_keys(file.read_text())
    },
    **dict.fromkeys(FLUSHED, "ledger.py"),
}


def texts(node: ast.AST) -> set[Any]:
    return {inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant)}


# The keys that the rows are made of.
ROWS = ast.parse((ROOT / "exporters" / "evidence.py").read_text())
IN_HOLDERS = {
    text
    for node in ROWS.body
    if isinstance(node, ast.FunctionDef) and node.name in OF_HOLDERS
    for text in texts(node)
}
SHOWN = {
    text
    for node in ROWS.body
    if not isinstance(node, ast.FunctionDef) or node.name not in OF_HOLDERS
    for text in texts(node)
    if text in KEYS
}


def test_all_evidence_is_shown_or_meant_for_machines() -> None:
    assert {key: file for key, file in KEYS.items() if key not in SHOWN | FOR_MACHINES} == {}


def test_what_is_known_of_a_holder_is_shown_or_meant_for_machines() -> None:
    source = (DETECTORS / "connections.py").read_text()
    keys = evidence_keys(source, frozenset({"_holder"}))
    by_owner = {"owner", "owner_state"}  # the row of an owner shows them
    assert keys - IN_HOLDERS - by_owner == {"session_id", "last_statement_at", "findings"}


def test_what_is_shown_is_not_for_machines_alone() -> None:
    assert set() == FOR_MACHINES & SHOWN


def test_no_label_is_left_of_evidence_that_there_is_no_more() -> None:
    assert ({key for key, _ in LABELS} | FOR_MACHINES) - set(KEYS) == set()


# The keys that the log event of a finding has already.
LOGGED = {
    "session_id", "session_name", "trace_id", "span_id", "finding_id", "severity", "explanation",
    "remedy", "site", "session_site", "entity", "attribute", "count", "suppressed", "help", "event",
    "level", "timestamp", "logger", "message",
}  # fmt: skip


def test_no_evidence_takes_the_place_of_a_log_events_keys() -> None:
    # The standard library refuses a field that has the name of one of its own.
    taken = LOGGED | set(logging.makeLogRecord({}).__dict__) | {"asctime", "taskName"}
    assert {key: file for key, file in KEYS.items() if key in taken} == {}


SITE = CallSite("/srv/shop/views.py", 120, "upload")


def rows_of(site: CallSite | None = None, **evidence: Any) -> list[tuple[str, str]]:
    """The labels that are shown, and their values."""
    return [(row.label, row.value) for row in evidence_rows(evidence, site)]


def test_what_is_not_known_has_no_row() -> None:
    assert rows_of() == []
    assert rows_of(unheard_of=1, held_ms=None, doing=[], holders=[], new={}, departure="") == []


def test_the_rows_come_in_the_order_in_which_a_person_asks() -> None:
    labels = [label for label, _ in rows_of(identity="id=7", owner="x", why="y", loaded_at="z")]
    assert labels == ["why", "loaded at", "owner", "primary key"]


def test_where_the_owner_is_now_goes_outwards_from_there() -> None:
    frames = [str(SITE), "/srv/shop/jobs.py:31 in export()", "/srv/shop/jobs.py:9 in <module>"]
    assert rows_of(doing=frames) == [
        ("now at", frames[0]), ("called from", frames[1]), ("", frames[2]),
    ]  # fmt: skip
    # The site is above, with its line of source.
    assert rows_of(SITE, doing=frames) == [("called from", frames[1]), ("", frames[2])]


def test_a_frame_comes_with_its_line_of_source(tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text("import that\n\n    client.put(chunk)\n")
    frame = f"{tmp_path}/jobs.py:3 in export()"
    assert rows_of(doing=[frame]) == [("now at", f"{frame}  client.put(chunk)")]


def test_what_belongs_together_is_shown_together() -> None:
    assert rows_of(
        held_ms=250_400.0,
        process_id=31877,
        sql_ms=812.5,
        statements=1,
        pending={"Invoice": 412, "Line": 2},
        modified_objects=3,
        deleted_objects=1,
        closed_at="/srv/shop/db.py:15 in get_db()",
        closed_by='task "export"',
        last_statement_at="/srv/shop/jobs.py:31 in export()",
        last_statement_ago_ms=1_500.0,
        last_activity_ago_ms=35.0,
        trigger="savepoint",
        new={"Order": 2},
        dirty={"Stock": 1},
        deleted={"Cart": 3},
        sizes_after_commits=[100, 200],
    ) == [
        ("flushed by", "begin_nested()"),
        ("objects", "+2 Order ~1 Stock −3 Cart"),
        ("after commits", "100 → 200"),
        ("connection held", "4 min 10 s, server process 31877"),
        ("in SQL", "812 ms, 1 statement"),
        ("not flushed", "412 Invoice, 2 Line added, 3 modified, 1 deleted"),
        ("last statement", "1.50 s ago at /srv/shop/jobs.py:31 in export()"),
        ("last used", "35.0 ms ago"),
        ("closed at", '/srv/shop/db.py:15 in get_db(), by task "export"'),
    ]


def test_what_stands_alone_is_shown_alone() -> None:
    assert rows_of(sql_ms=0.0, statements=0) == []
    assert rows_of(sql_ms=2.0) == [("in SQL", "2.0 ms")]
    assert rows_of(held_ms=2.0) == [("connection held", "2.0 ms")]
    assert rows_of(deleted_objects=1) == [("not flushed", "1 deleted")]
    assert rows_of(deleted={"Cart": 3}) == [("objects", "−3 Cart")]


def test_sessions_that_wait_for_a_connection_are_shown_by_line() -> None:
    line, page = "/srv/shop/pay.py:40 in pay()", "/srv/shop/views.py:7 in page()"
    waiters = [
        {"waits_at": line, "work": "GET /a", "sessions": 2, "waiting_ms": 10.0},
        {"waits_at": page, "sessions": 1, "waiting_ms": 2_000.0},
        {"waits_at": line, "work": "GET /b", "sessions": 1, "waiting_ms": 30.0},
    ]
    assert rows_of(waiters=waiters) == [
        ("waited for at", f"{line}: 3, the first for 30.0 ms, GET /a, GET /b"),
        ("", f"{page}: 1 for 2.00 s"),
    ]
    many = [
        {"waits_at": line, "work": f"job {number}", "sessions": 1, "waiting_ms": 1.0}
        for number in range(5)
    ]
    assert rows_of(waiters=many) == [
        ("waited for at", f"{line}: 5, the first for 1.0 ms, job 0, job 1, job 2, …")
    ]
    lines = [
        {"waits_at": f"app.py:{number}", "sessions": 1, "waiting_ms": 1.0} for number in range(8)
    ]
    assert rows_of(waiters=lines)[-1] == ("", "… 2 more lines")


def test_the_holders_of_connections_are_shown_by_line() -> None:
    line, page = "/srv/shop/export.py:58 in export()", "/srv/shop/views.py:7 in page()"
    held = {"first_used_at": line, "held_ms": 2.0, "owner": "thread 1", "owner_state": "returned"}
    other = {
        "opened_at": page,
        "held_ms": 1.0,
        "work": "GET /orders",
        "owner": "thread 2",
        "now_at": page,
        "process_id": 31877,
    }
    assert rows_of(holders=[held, held, other]) == [
        ("held by", f"{line}: 2, the first for 2.0 ms, thread 1, goes on with other work"),
        (
            "",
            f"{page}: 1 for 1.0 ms, GET /orders, thread 2, now at {page}, server process 31877",
        ),
    ]


def test_the_lines_that_hold_connections_the_longest_are_shown() -> None:
    lines = [{"opened_at": f"app.py:{line}", "held_ms": 1.0} for line in range(9)]
    rows = rows_of(holders=lines, other_holders=2, untraced=1)
    assert rows[:2] == [("held by", "app.py:0: 1 for 1.0 ms"), ("", "app.py:1: 1 for 1.0 ms")]
    assert rows[5:] == [
        ("", "app.py:5: 1 for 1.0 ms"),
        ("", "… 3 more lines"),
        ("", "… 2 more sessions"),
        ("", "no traced session: 1 connection"),
    ]
    assert rows_of(holders=[], untraced=2) == [("held by", "no traced session: 2 connections")]


def test_the_numbers_of_a_pool_are_shown_together() -> None:
    rows = rows_of(checked_out=7, pool_size=5, pool_overflow=2)
    assert rows == [("pool", "7 in use, size 5, overflow 2")]
    assert rows_of(checked_out=7) == []


def test_what_the_database_refused_is_shown() -> None:
    labels = rows_of(
        error_code="23505", constraint="uq_email", column="email", relationship="orders"
    )
    assert [label for label, _ in labels] == ["error code", "constraint", "column", "relationship"]


def test_how_an_object_left_its_session() -> None:
    where = "/srv/shop/db.py:15 in get_db()"
    assert rows_of(departure="expunge", departed_at=where, departed_ago_ms=35.0) == [
        ("expunged at", f"{where}, 35.0 ms before")
    ]
    assert rows_of(departure="collected", departed_ago_ms=35.0) == [
        ("session collected", "35.0 ms before")
    ]
    assert rows_of(departure="close") == []


def test_a_retraction_shows_only_sites() -> None:
    where = "/srv/shop/db.py:15 in get_db()"
    rows = places({"closed_at": where, "transaction_ms": 12.0, "outcome": "committed"})
    assert [(row.label, row.value) for row in rows] == [("closed at", where)]


def test_words_of_the_application_stay_on_their_line() -> None:
    assert rows_of(owner='thread "a\x1b[2J\nb"') == [("owner", 'thread "a\\x1b[2J b"')]
