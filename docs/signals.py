"""Writes the tables of docs/signals.md from the names of the signals: `python docs/signals.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from session_tracer.signals import names  # noqa: E402 - after the path is set

PATH: Final = ROOT / "docs" / "signals.md"
BEGIN: Final = "<!-- written by docs/signals.py -->"


class Attribute(NamedTuple):
    """The type of an attribute, with its unit, and its meaning."""

    type: str
    meaning: str


STRING, INT, DOUBLE, BOOLEAN = "string", "int", "double", "boolean"
PYTHON_TYPES: Final = {STRING: str, INT: int, DOUBLE: float, BOOLEAN: bool}

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
        ]
    )


def _listed(attributes: tuple[str, ...]) -> str:
    return ", ".join(f"`{one}`" for one in attributes)


def page() -> str:
    """The page: what a person wrote above the mark, and the tables below it."""
    written, _, _ = PATH.read_text().partition(BEGIN)
    return f"{written}{BEGIN}\n\n{tables()}"


if __name__ == "__main__":
    PATH.write_text(page())
    print(f"Wrote {PATH.relative_to(ROOT)}")
