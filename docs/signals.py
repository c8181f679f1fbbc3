"""Writes the tables of docs/signals.md from the names of the signals: `python docs/signals.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from session_tracer.signals import names  # noqa: E402 - after the path is set

PATH: Final = ROOT / "docs" / "signals.md"
BEGIN: Final = "<!-- written by docs/signals.py -->"


class Attribute(NamedTuple):
    """The type of an attribute or of a log key, with its unit, and its meaning."""

    type: str
    meaning: str


STRING, INT, DOUBLE, BOOLEAN = "string", "int", "double", "boolean"
MILLISECONDS: Final = f"{DOUBLE}, ms"
STRINGS, INTS, OBJECTS = "list of strings", "list of ints", "list of objects"
OBJECTS_OR_STRINGS: Final = "list of objects or strings"
PYTHON_TYPES: Final = {STRING: str, INT: int, DOUBLE: float, BOOLEAN: bool}
# Of the elements of a list.
ELEMENTS: Final[dict[str, set[type]]] = {
    STRINGS: {str},
    INTS: {int},
    OBJECTS: {dict},
    OBJECTS_OR_STRINGS: {dict, str},
}

ATTRIBUTES: Final = {
    names.SESSION_ID: Attribute(STRING, "the session scope, in all signals but metrics"),
    names.SESSION_NAME: Attribute(STRING, "the name that was given to `instrument()`"),
    names.SESSION_OUTCOME: Attribute(
        STRING, "`committed`, `rolled_back`, `closed`, `failed`, `abandoned` or `unused`"
    ),
    names.SESSION_ASYNC: Attribute(BOOLEAN, "whether it is an `AsyncSession`"),
    names.SESSION_WORK: Attribute(
        STRING, "[what the session works for](deployment.md#what-a-session-works-for)"
    ),
    names.TRANSACTION_OUTCOME: Attribute(STRING, "`committed`, `rolled_back` or `closed`"),
    names.TRANSACTION_NESTED: Attribute(BOOLEAN, "whether it is a savepoint"),
    names.FLUSH_TRIGGER: Attribute(STRING, "`explicit`, `autoflush`, `commit` or `savepoint`"),
    names.FLUSH_NEW: Attribute(INT, "number of objects inserted"),
    names.FLUSH_DIRTY: Attribute(INT, "number of objects of `session.dirty`"),
    names.FLUSH_DELETED: Attribute(INT, "number of objects deleted"),
    names.FLUSH_UNCHANGED: Attribute(INT, "number of objects of `session.dirty` without a change"),
    names.ENTITY: Attribute(STRING, "the mapped class"),
    names.ATTRIBUTE: Attribute(STRING, "the mapped attribute"),
    names.OBJECT_STATE: Attribute(
        STRING, "`loaded`, `new`, `dirty`, `unchanged`, `deleted` or `detached`"
    ),
    names.IDENTITY_MAP_SIZE: Attribute(INT, "number of objects as the session was closed"),
    names.IDENTITY_MAP_PEAK: Attribute(INT, "the most objects at one time"),
    names.FINDING_ID: Attribute(STRING, "the [finding](findings.md)"),
    names.FINDING_SEVERITY: Attribute(STRING, "`info`, `warning` or `error`"),
    names.FINDING_MESSAGE: Attribute(STRING, "what happened, where and how often"),
    names.FINDING_REMEDY: Attribute(STRING, "what to change"),
    names.STATEMENTS: Attribute(INT, "number of statements"),
    names.STATEMENT_DURATION: Attribute(f"{DOUBLE}, s", "time in the driver's execute calls"),
    names.CONNECTION_HELD: Attribute(f"{DOUBLE}, s", "how long connections were held"),
    names.POOL_NAME: Attribute(STRING, "the pool, by the address of its engine"),
    names.POOL_STATE: Attribute(STRING, "`used` or `idle`"),
    names.KIND: Attribute(
        STRING, "of a load: `relationship`, `deferred`, `expired`, `refresh` or `detached`"
    ),
    names.WHERE: Attribute(STRING, "the part of session_tracer that failed"),
    names.DB_SYSTEM_NAME: Attribute(STRING, "`postgresql`, `mysql`, `sqlite` and others"),
    names.DB_NAMESPACE: Attribute(STRING, "the database"),
    names.DB_QUERY_TEXT: Attribute(STRING, "the SQL, without its parameters"),
    names.DB_QUERY_SUMMARY: Attribute(STRING, "the operation and the table"),
    names.DB_OPERATION_NAME: Attribute(STRING, "`SELECT`, `INSERT` and others, `BATCH` before it"),
    names.DB_OPERATION_BATCH_SIZE: Attribute(INT, "number of sets of parameters, from 2 on"),
    names.DB_COLLECTION_NAME: Attribute(STRING, "the table"),
    names.DB_RESPONSE_STATUS_CODE: Attribute(STRING, "the driver's code of an error: SQLSTATE"),
    names.SERVER_ADDRESS: Attribute(STRING, "the host of the database"),
    names.SERVER_PORT: Attribute(INT, "its port"),
    names.ERROR_TYPE: Attribute(STRING, "the class of the exception"),
    names.EXCEPTION_TYPE: Attribute(STRING, "the same, in the event `exception`"),
    names.CODE_FUNCTION_NAME: Attribute(STRING, "the function of the application"),
    names.CODE_FILE_PATH: Attribute(STRING, "its file"),
    names.CODE_LINE_NUMBER: Attribute(INT, "its line"),
    names.CODE_STACKTRACE: Attribute(STRING, "more lines, with `site_frames` above 1"),
}

_SITE: Final = (names.CODE_FUNCTION_NAME, names.CODE_FILE_PATH, names.CODE_LINE_NUMBER)
_STACK: Final = (*_SITE, names.CODE_STACKTRACE)
_DATABASE: Final = (
    names.DB_SYSTEM_NAME,
    names.DB_NAMESPACE,
    names.SERVER_ADDRESS,
    names.SERVER_PORT,
)
_EACH: Final = (names.SESSION_NAME, names.SESSION_ID, *_STACK, *_DATABASE, names.ERROR_TYPE)
_LOST: Final = (names.ENTITY, names.ATTRIBUTE)

# Of each span: what it is, and its attributes.
SPANS: Final = {
    "session {name}": (
        "a session scope that began a transaction",
        (
            *_EACH,
            names.SESSION_ASYNC,
            names.SESSION_OUTCOME,
            names.SESSION_WORK,
            names.STATEMENTS,
            names.STATEMENT_DURATION,
            names.CONNECTION_HELD,
            names.IDENTITY_MAP_SIZE,
            names.IDENTITY_MAP_PEAK,
        ),
    ),
    names.TRANSACTION_SPAN: (
        "a transaction",
        (*_EACH, names.TRANSACTION_NESTED, names.TRANSACTION_OUTCOME),
    ),
    names.SAVEPOINT_SPAN: (
        "a savepoint",
        (*_EACH, names.TRANSACTION_NESTED, names.TRANSACTION_OUTCOME),
    ),
    names.FLUSH_SPAN: (
        "a flush",
        (
            *_EACH,
            names.FLUSH_TRIGGER,
            names.FLUSH_NEW,
            names.FLUSH_DIRTY,
            names.FLUSH_DELETED,
            names.FLUSH_UNCHANGED,
        ),
    ),
    names.DETACHED_LOAD_SPAN: (
        "a load that is refused because its object is detached, with a link to the session's span",
        (
            names.SESSION_NAME,
            names.SESSION_ID,
            names.SESSION_ASYNC,
            names.SESSION_WORK,
            *_LOST,
            *_STACK,
            names.ERROR_TYPE,
        ),
    ),
    "{summary}": (
        "a statement, with `statement_spans=True`; its kind is CLIENT",
        (
            names.DB_QUERY_TEXT,
            names.DB_QUERY_SUMMARY,
            names.DB_OPERATION_NAME,
            names.DB_OPERATION_BATCH_SIZE,
            names.DB_COLLECTION_NAME,
            names.DB_RESPONSE_STATUS_CODE,
            *_DATABASE,
            *_STACK,
            names.ERROR_TYPE,
        ),
    ),
}

# Of each event of these spans: what it reports, and its attributes.
EVENTS: Final = {
    names.FINDING_EVENT: (
        "a finding",
        (
            names.FINDING_ID,
            names.FINDING_SEVERITY,
            names.FINDING_MESSAGE,
            names.FINDING_REMEDY,
            *_LOST,
            *_STACK,
        ),
    ),
    names.FINDING_RETRACTED_EVENT: (
        "the end of what a finding reported",
        (names.FINDING_ID, names.FINDING_MESSAGE),
    ),
    names.EXCEPTION_EVENT: ("an error, without its message", (names.EXCEPTION_TYPE,)),
}

# By what they are about: each key of a log event. `_by_entity` and the like are described once.
LOG_KEYS: Final = {
    "In each event": {
        "timestamp": Attribute(STRING, "ISO 8601, UTC"),
        "level": Attribute(STRING, "`debug`, `info`, `warning` or `error`"),
        "event": Attribute(STRING, "the event's name"),
        "logger": Attribute(STRING, "`session_tracer`"),
        "session_id": Attribute(
            STRING, "the session scope's id, in all signals but metrics; not in `suppressed`"
        ),
        "session_name": Attribute(STRING, "the factory's name"),
        "work": Attribute(
            STRING, "[what the session works for](deployment.md#what-a-session-works-for)"
        ),
        "thread": Attribute(STRING, "name of the thread that used the session last"),
        "task": Attribute(
            STRING, "name of the asyncio task that used it last, instead of `thread`"
        ),
        "trace_id": Attribute(STRING, "hexadecimal; of the session's span, else of the caller's"),
        "span_id": Attribute(STRING, "hexadecimal; the innermost open span"),
        "process_pid": Attribute(INT, "id of the process"),
        "host": Attribute(STRING, "name of the machine or container"),
        "service": Attribute(
            STRING, "`service.name` of the OpenTelemetry resource, else `OTEL_SERVICE_NAME`"
        ),
        "service_version": Attribute(
            STRING, "`service.version` of the resource, else of `OTEL_RESOURCE_ATTRIBUTES`"
        ),
        "site": Attribute(
            STRING,
            "the line to look at: of a finding, of the end of a session or transaction, of a flush",
        ),
    },
    "About sessions, transactions and flushes": {
        "session_site": Attribute(STRING, "where the session was opened"),
        "outcome": Attribute(
            STRING, "`committed`, `rolled_back`, `closed`, `failed`, `abandoned` or `unused`"
        ),
        "ending": Attribute(
            STRING,
            "what ended the session: `close`, `reset`, `invalidate`, `collected`, `exit` (the "
            "process ended) or `shutdown` (its ASGI application did)",
        ),
        "error_type": Attribute(STRING, "the class of the exception"),
        "constraint": Attribute(
            STRING, "the constraint that a row violated, where the driver has its name"
        ),
        "async": Attribute(BOOLEAN, "true for an `AsyncSession`"),
        "reopened": Attribute(BOOLEAN, "true if the session was closed before"),
        "nested": Attribute(BOOLEAN, "true for a savepoint"),
        "two_phase": Attribute(BOOLEAN, "true for a two-phase transaction"),
        "trigger": Attribute(
            STRING, "what caused a flush: `explicit`, `autoflush`, `commit` or `savepoint`"
        ),
        "duration_ms": Attribute(MILLISECONDS, "how long it lasted"),
        "held_ms": Attribute(MILLISECONDS, "how long connections were held"),
        "sql_ms": Attribute(MILLISECONDS, "how much of it was spent in the driver's execute calls"),
        "statements": Attribute(INT, "number of statements"),
        "transactions": Attribute(INT, "number of transactions"),
        "savepoints": Attribute(INT, "number of savepoints"),
        "commits": Attribute(INT, "number of commits"),
        "rollbacks": Attribute(INT, "number of rollbacks"),
        "flushes": Attribute(INT, "number of flushes"),
        "failed_flushes": Attribute(INT, "number of flushes that raised"),
        "new": Attribute(INT, "objects inserted"),
        "dirty": Attribute(INT, "objects of `session.dirty`"),
        "unchanged": Attribute(INT, "objects of `session.dirty` without a net change"),
        "deleted": Attribute(INT, "objects deleted"),
        "loaded": Attribute(INT, "objects loaded"),
        "pending": Attribute(INT, "objects added and not flushed"),
        "lazy_loads": Attribute(INT, "number of loads of single objects"),
        "lazy_loads_by_kind": Attribute(
            STRING, "the same for `relationship`, `deferred`, `expired` and `refresh`, as text"
        ),
        "expired": Attribute(INT, "number of objects that `expire()` or `expire_all()` expired"),
        "expunged": Attribute(INT, "number of objects expunged"),
        "merged": Attribute(INT, "number of calls of `merge()`"),
        "transitions": Attribute(INT, "number of changes of object states"),
        "transitions_by_event": Attribute(STRING, "the same by SQLAlchemy's event, as text"),
        "identity_map_size": Attribute(
            INT, "objects in the identity map as the session was closed"
        ),
        "identity_map_peak": Attribute(INT, "the most objects in it"),
        "findings": Attribute(
            OBJECTS_OR_STRINGS,
            "a list of the session's findings, at most 20, the worst first: `finding_id`, "
            "`site`, `entity` and `attribute`, and `total`, `total_ms` and `share` of what "
            "repeats; of a holder, their ids",
        ),
        "total": Attribute(INT, "how often it has happened in the whole session"),
        "total_ms": Attribute(MILLISECONDS, "how long that took"),
        "share": Attribute(DOUBLE, "its part of the session's duration, from 0 to 1"),
        "db_system": Attribute(STRING, "OpenTelemetry's `db.system.name`"),
        "db_namespace": Attribute(STRING, "OpenTelemetry's `db.namespace`"),
        "suppressed": Attribute(INT, "number of events held back since the last one"),
        "suppressed_event": Attribute(STRING, "their name"),
    },
    "About findings; what a finding has of these is its evidence": {
        "finding_id": Attribute(STRING, "the [finding](findings.md)"),
        "severity": Attribute(STRING, "`info`, `warning` or `error`"),
        "explanation": Attribute(STRING, "what happened, where and how often"),
        "remedy": Attribute(STRING, "what to change"),
        "alternatives": Attribute(STRINGS, "other remedies"),
        "help": Attribute(STRING, "where the finding is explained"),
        "entity": Attribute(STRING, "the mapped class"),
        "entities": Attribute(INT, "objects of several mapped classes that one line loads for"),
        "attribute": Attribute(STRING, "the mapped attribute"),
        "attributes": Attribute(STRINGS, "the mapped attributes"),
        "count": Attribute(INT, "number of occurrences when it was reported"),
        "loop": Attribute(STRING, "the line of the loop that repeats it"),
        "statement": Attribute(
            STRING, "the SQL that is repeated, without values, with at most 400 characters"
        ),
        "why": Attribute(STRING, "why SQLAlchemy had to load, repeat or refuse"),
        "reason": Attribute(
            STRING,
            "why an object has no row: `gone`, `pending`, `rolled_back`, `merged`, "
            "`never_added`, `deleted`, `detached` or `elsewhere`",
        ),
        "cause_at": Attribute(STRING, "the line that took the row away"),
        "missing": Attribute(STRING, "the class of the object that is not in the session"),
        "identity": Attribute(STRING, "the primary key, only with `record_identity=True`"),
        "loaded_at": Attribute(STRING, "where the objects were loaded"),
        "read_at": Attribute(STRING, "where a streamed result was read on"),
        "streamed_at": Attribute(STRING, "where it was selected"),
        "rows": Attribute(INT, "number of rows read from it"),
        "first_at": Attribute(STRING, "where the repeated statement ran first"),
        "opened_at": Attribute(STRING, "where the session that held the object was opened"),
        "departure": Attribute(
            STRING, "how an object left its session: `close`, `expunge`, `collected` and the like"
        ),
        "departed_at": Attribute(STRING, "where it left it"),
        "departed_ago_ms": Attribute(MILLISECONDS, "how long ago"),
        "dropped_at": Attribute(STRING, "where the generator that closed the session was dropped"),
        "expired_at": Attribute(STRING, "what expired the object"),
        "committed_at": Attribute(STRING, "the commit that expired it, or that ended the work"),
        "reloaded": Attribute(INT, "objects that were loaded again"),
        "began_at": Attribute(STRING, "where the transaction began"),
        "ended_at": Attribute(STRING, "where the transaction ended"),
        "closed_at": Attribute(STRING, "where the session was closed"),
        "closed_by": Attribute(STRING, "the thread or task that closed it"),
        "failed_at": Attribute(STRING, "where the first failure was"),
        "failed_ago_ms": Attribute(MILLISECONDS, "how long ago"),
        "swallowed_at": Attribute(STRING, "the handler that caught it"),
        "error_code": Attribute(STRING, "SQLSTATE, SQLite's name of the error, or MySQL's number"),
        "column": Attribute(STRING, "the column that must not be NULL"),
        "relationship": Attribute(STRING, "the relationship whose objects lost their parent"),
        "added": Attribute(INT, "objects added and never flushed"),
        "modified": Attribute(INT, "objects modified and never flushed"),
        "removed": Attribute(INT, "objects marked as deleted and never flushed"),
        "flushed_new": Attribute(INT, "objects inserted and never committed"),
        "flushed_dirty": Attribute(INT, "objects updated and never committed"),
        "flushed_deleted": Attribute(INT, "objects deleted and never committed"),
        "added_at": Attribute(STRING, "where an object was added last"),
        "flushed_at": Attribute(STRING, "where a flush was last"),
        "unchanged_attributes": Attribute(STRINGS, "attributes set to the value that they had"),
        "written": Attribute(INT, "objects that the transaction wrote"),
        "rows_per_commit": Attribute(DOUBLE, "rows written for each commit"),
        "table": Attribute(STRING, "the table written"),
        "kind": Attribute(STRING, "`INSERT`, `UPDATE` or `DELETE`"),
        "from_one_site": Attribute(INT, "number of them from one line"),
        "objects": Attribute(INT, "number of objects"),
        "came": Attribute(INT, "objects that were loaded or added"),
        "sizes_after_commits": Attribute(
            INTS, "size of the identity map after the first and the last commits"
        ),
        "owner": Attribute(STRING, "the thread or task that used the session last"),
        "owner_state": Attribute(
            STRING,
            "whether it can still close the session: `running`, `waiting`, `suspended`, "
            "`returned`, `ended`, `cancelled` or `failed`",
        ),
        "doing": Attribute(
            STRINGS, "the owner's lines now, the innermost first, where they are the session's"
        ),
        "owners": Attribute(STRINGS, "threads, tasks or requests that used the session"),
        "used_by": Attribute(STRING, "the thread or task of `site`"),
        "used_at": Attribute(STRING, "where the session was used meanwhile"),
        "in_use_by": Attribute(STRING, "the other thread or task"),
        "in_use_at": Attribute(STRING, "its line"),
        "first_used_site": Attribute(
            STRING, "the line that used the session first, where other code opened it"
        ),
        "first_used_at": Attribute(STRING, "where it was used on the first event loop"),
        "first_loop_thread": Attribute(STRING, "the thread of the first event loop"),
        "loop_thread": Attribute(STRING, "the thread of this event loop"),
        "lasting_ms": Attribute(MILLISECONDS, "time since the finding was reported"),
        "age_ms": Attribute(MILLISECONDS, "age of the session"),
        "idle_ms": Attribute(MILLISECONDS, "time since the last statement"),
        "transaction": Attribute(STRING, "`none`, `open` or `savepoint`"),
        "transaction_ms": Attribute(MILLISECONDS, "age of the transaction"),
        "last_statement_at": Attribute(STRING, "where the last statement ran"),
        "last_statement_ago_ms": Attribute(MILLISECONDS, "how long ago"),
        "last_activity_at": Attribute(STRING, "where the session was used last"),
        "last_activity_ago_ms": Attribute(MILLISECONDS, "how long ago"),
        "modified_objects": Attribute(INT, "objects modified and not flushed"),
        "deleted_objects": Attribute(INT, "objects marked as deleted and not flushed"),
        "process_id": Attribute(INT, "the database server's process of the connection"),
        "earlier": Attribute(STRINGS, "findings of the session before this one"),
        "called_at": Attribute(STRING, "the call of what opened the session, or commits"),
        "other_session_id": Attribute(STRING, "the other session"),
        "other_session_name": Attribute(STRING, "its factory's name"),
        "other_opened_at": Attribute(STRING, "where it was opened"),
        "other_acquired_at": Attribute(STRING, "where it took its connection"),
        "other_held_ms": Attribute(MILLISECONDS, "how long it has held it"),
        "other_committed_at": Attribute(STRING, "where it committed"),
        "other_called_at": Attribute(STRING, "the call of what committed"),
        "other_written": Attribute(INT, "objects that it wrote"),
        "other_findings": Attribute(STRINGS, "what was reported of it"),
        "timeout_ms": Attribute(MILLISECONDS, "how long the session waited for a connection"),
        "pool_size": Attribute(INT, "the pool's size"),
        "pool_overflow": Attribute(INT, "connections beyond it"),
        "checked_out": Attribute(INT, "connections in use"),
        "untraced": Attribute(INT, "how many of them no session holds that is traced"),
        "connecting": Attribute(INT, "how many of them are being opened for sessions"),
        "waiting": Attribute(INT, "threads and tasks that still wait for a connection"),
        "waiters": Attribute(OBJECTS, "the sessions that wait, by line and work, each an object"),
        "waits_at": Attribute(STRING, "the line at which sessions wait"),
        "sessions": Attribute(INT, "number of sessions that wait there"),
        "waiting_ms": Attribute(MILLISECONDS, "how long the first of them has waited"),
        "holders": Attribute(OBJECTS, "the sessions that hold the others, each an object"),
        "now_at": Attribute(STRING, "the line at which the owner of a holder is"),
        "other_holders": Attribute(INT, "number of sessions that are not listed"),
    },
}

# The attributes of metrics next to the name of the session. A metric that is not listed has none.
OF_METRICS: Final = {
    names.SESSION_DURATION: (names.SESSION_OUTCOME,),
    names.SUSPECTS: (names.FINDING_ID,),
    names.OBJECTS: (names.OBJECT_STATE, names.ENTITY),
    names.TRANSACTION_DURATION: (names.TRANSACTION_OUTCOME,),
    names.CONNECTION_HOLDERS: _SITE,
    names.FLUSH_DURATION: (names.FLUSH_TRIGGER, names.ERROR_TYPE),
    names.LAZY_LOADS: (names.KIND, names.SESSION_WORK),
    names.FINDINGS: (names.FINDING_ID, names.FINDING_SEVERITY, names.SESSION_WORK),
    names.ERRORS: (names.WHERE,),
    names.POOL_CONNECTIONS: (names.POOL_NAME, names.POOL_STATE),
    names.POOL_MOST: (names.POOL_NAME,),
    names.POOL_WAITING: (names.POOL_NAME,),
    names.POOL_TIMEOUTS: (names.POOL_NAME,),
    names.POOL_WAIT: (names.POOL_NAME,),
    names.CLIENT_OPERATION_DURATION: (
        *_DATABASE,
        names.DB_OPERATION_NAME,
        names.DB_COLLECTION_NAME,
        names.DB_RESPONSE_STATUS_CODE,
        names.ERROR_TYPE,
    ),
}

_INSTRUMENTS: Final = {
    "histogram": "histogram",
    "counter": "counter",
    "up_down_counter": "up-down counter",
    "gauge": "gauge",
}


def tables() -> str:
    """The tables, from the names of the signals."""
    return "\n".join(
        [
            "## Metrics",
            "",
            f"Each metric has `{names.SESSION_NAME}`, and the attributes of its row.",
            "",
            "| metric | instrument | unit | meaning | attributes |",
            "|---|---|---|---|---|",
            *(
                f"| `{metric.name}` | {_INSTRUMENTS[metric.instrument]} | `{metric.unit}` "
                f"| {metric.description.rstrip('.')} | {_listed(OF_METRICS.get(metric, ()))} |"
                for metric in names.METRICS
            ),
            "",
            "## Spans and their events",
            "",
            "An attribute is left out where it has no value.",
            "",
            "| span | what it is | attributes |",
            "|---|---|---|",
            *(f"| `{name}` | {what} | {_listed(has)} |" for name, (what, has) in SPANS.items()),
            "",
            "| event | what it reports | attributes |",
            "|---|---|---|",
            *(f"| `{name}` | {what} | {_listed(has)} |" for name, (what, has) in EVENTS.items()),
            "",
            "## Attributes",
            "",
            "| attribute | type | meaning |",
            "|---|---|---|",
            *(f"| `{name}` | {one.type} | {one.meaning} |" for name, one in ATTRIBUTES.items()),
            "",
            "## Log keys",
            "",
            "[Log events](logs.md#keys) describes how a value is written, and when it is absent.",
            "",
            *(line for about, keys in LOG_KEYS.items() for line in _keys(about, keys)),
        ]
    )


def _keys(about: str, keys: Mapping[str, Attribute]) -> list[str]:
    return [
        f"{about}:",
        "",
        "| key | type | meaning |",
        "|---|---|---|",
        *(f"| `{key}` | {one.type} | {one.meaning} |" for key, one in keys.items()),
        "",
    ]


def _listed(attributes: tuple[str, ...]) -> str:
    return ", ".join(f"`{one}`" for one in attributes)


def page() -> str:
    """The page: what a person wrote above the mark, and the tables below it."""
    written, _, _ = PATH.read_text().partition(BEGIN)
    return f"{written}{BEGIN}\n\n{tables()}"


if __name__ == "__main__":
    PATH.write_text(page())
    print(f"Wrote {PATH.relative_to(ROOT)}")
