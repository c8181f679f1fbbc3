"""Every name the signals emit, once; dashboards, alert rules and docs are checked against it."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

SCOPE: Final = "session_tracer"

# Spans.
TRANSACTION_SPAN: Final = "transaction"
SAVEPOINT_SPAN: Final = "savepoint"
FLUSH_SPAN: Final = "flush"
DETACHED_LOAD_SPAN: Final = "detached_load"
FINDING_EVENT: Final = "sqlalchemy.finding"
FINDING_RETRACTED_EVENT: Final = "sqlalchemy.finding.retracted"
EXCEPTION_EVENT: Final = "exception"

# Attributes of our own.
SESSION_ID: Final = "sqlalchemy.session.id"
SESSION_NAME: Final = "sqlalchemy.session.name"
SESSION_OUTCOME: Final = "sqlalchemy.session.outcome"
SESSION_ASYNC: Final = "sqlalchemy.session.async"
SESSION_WORK: Final = "sqlalchemy.session.work"
TRANSACTION_OUTCOME: Final = "sqlalchemy.transaction.outcome"
TRANSACTION_NESTED: Final = "sqlalchemy.transaction.nested"
FLUSH_TRIGGER: Final = "sqlalchemy.flush.trigger"
FLUSH_NEW: Final = "sqlalchemy.flush.new"
FLUSH_DIRTY: Final = "sqlalchemy.flush.dirty"
FLUSH_DELETED: Final = "sqlalchemy.flush.deleted"
FLUSH_UNCHANGED: Final = "sqlalchemy.flush.unchanged"
ENTITY: Final = "sqlalchemy.entity"
ATTRIBUTE: Final = "sqlalchemy.attribute"
OBJECT_STATE: Final = "sqlalchemy.object.state"
IDENTITY_MAP_SIZE: Final = "sqlalchemy.identity_map.size"
IDENTITY_MAP_PEAK: Final = "sqlalchemy.identity_map.peak"
FINDING_ID: Final = "sqlalchemy.finding.id"
FINDING_SEVERITY: Final = "sqlalchemy.finding.severity"
FINDING_MESSAGE: Final = "sqlalchemy.finding.message"
FINDING_REMEDY: Final = "sqlalchemy.finding.remedy"
STATEMENTS: Final = "sqlalchemy.statements"
STATEMENT_DURATION: Final = "sqlalchemy.statement.duration"
CONNECTION_HELD: Final = "sqlalchemy.connection.held"
POOL_NAME: Final = "db.client.connection.pool.name"
POOL_STATE: Final = "db.client.connection.state"
KIND: Final = "kind"
WHERE: Final = "where"

# OpenTelemetry's stable ones (semantic conventions 1.37: general, code, exceptions, database).
DB_SYSTEM_NAME: Final = "db.system.name"
DB_NAMESPACE: Final = "db.namespace"
DB_QUERY_TEXT: Final = "db.query.text"
DB_QUERY_SUMMARY: Final = "db.query.summary"
DB_OPERATION_NAME: Final = "db.operation.name"
DB_OPERATION_BATCH_SIZE: Final = "db.operation.batch.size"
DB_COLLECTION_NAME: Final = "db.collection.name"
DB_RESPONSE_STATUS_CODE: Final = "db.response.status_code"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
ERROR_TYPE: Final = "error.type"
EXCEPTION_TYPE: Final = "exception.type"
CODE_FUNCTION_NAME: Final = "code.function.name"
CODE_FILE_PATH: Final = "code.file.path"
CODE_LINE_NUMBER: Final = "code.line.number"
CODE_STACKTRACE: Final = "code.stacktrace"

# Logs.
SESSION_OPENED: Final = "session.opened"
SESSION_CLOSED: Final = "session.closed"
TRANSACTION_ENDED: Final = "transaction.ended"
FLUSH_COMPLETED: Final = "flush.completed"
FLUSH_FAILED: Final = "flush.failed"
FINDING: Final = "finding"
FINDING_LASTING: Final = "finding.lasting"
FINDING_RETRACTED: Final = "finding.retracted"
SUPPRESSED: Final = "suppressed"

# What the conventions put before the operation's name and the summary of a batch.
BATCH: Final = "BATCH "

# What a value becomes where its attribute has as many others as it may have.
OTHER: Final = "_other"


class Metric(NamedTuple):
    """A metric as OpenTelemetry sees it: `boundaries` are a histogram's bucket limits."""

    name: str
    instrument: Literal["histogram", "counter", "up_down_counter", "gauge"]
    unit: str
    description: str
    boundaries: tuple[float, ...] = ()


# Sub-millisecond to minutes, in seconds.
_SECONDS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300,
)  # fmt: skip
_POWERS_OF_TEN: Final = (0, 1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)
_STATEMENTS: Final = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 10_000)
# The conventions fix these for database clients.
_CLIENT_SECONDS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)

SESSION_DURATION: Final = Metric(
    "sqlalchemy.session.duration", "histogram", "s", "How long sessions lived.", _SECONDS
)
SESSIONS_OPEN: Final = Metric(
    "sqlalchemy.session.open", "up_down_counter", "{session}", "Sessions open now."
)
SESSION_OLDEST: Final = Metric(
    "sqlalchemy.session.oldest.age", "gauge", "s", "Age of the session open longest."
)
SUSPECTS: Final = Metric(
    "sqlalchemy.session.suspects",
    "gauge",
    "{session}",
    "Open sessions with a finding about something that lasts and has not ended.",
)
IDENTITY_MAP: Final = Metric(
    "sqlalchemy.session.identity_map.size",
    "histogram",
    "{object}",
    "The most objects a session's identity map held.",
    _POWERS_OF_TEN,
)
OBJECTS: Final = Metric(
    "sqlalchemy.session.objects",
    "counter",
    "{object}",
    "Objects that sessions loaded, wrote and let go, by state and mapped class.",
)
SESSION_STATEMENTS: Final = Metric(
    "sqlalchemy.session.statements",
    "histogram",
    "{statement}",
    "Statements a session sent to the database.",
    _STATEMENTS,
)
TRANSACTION_DURATION: Final = Metric(
    "sqlalchemy.transaction.duration", "histogram", "s", "How long transactions lasted.", _SECONDS
)
TRANSACTIONS_OPEN: Final = Metric(
    "sqlalchemy.transaction.open", "up_down_counter", "{transaction}", "Transactions open now."
)
TRANSACTION_OLDEST: Final = Metric(
    "sqlalchemy.transaction.oldest.age", "gauge", "s", "Age of the transaction open longest."
)
CONNECTION_HELD_DURATION: Final = Metric(
    "sqlalchemy.connection.held.duration",
    "histogram",
    "s",
    "From a transaction's first use of a connection to its return.",
    _SECONDS,
)
CONNECTION_BUSY_DURATION: Final = Metric(
    "sqlalchemy.connection.busy.duration",
    "histogram",
    "s",
    "The part of holding a connection that was spent in SQL.",
    _SECONDS,
)
CONNECTION_HOLDERS: Final = Metric(
    "sqlalchemy.connection.holders",
    "gauge",
    "{connection}",
    "Connections that open sessions hold now, by the line that first used the session.",
)
FLUSH_DURATION: Final = Metric(
    "sqlalchemy.flush.duration", "histogram", "s", "How long flushes took.", _SECONDS
)
LAZY_LOADS: Final = Metric(
    "sqlalchemy.lazy_loads",
    "counter",
    "{load}",
    "Loads that reading or refreshing one object caused.",
)
FINDINGS: Final = Metric(
    "sqlalchemy.findings", "counter", "{finding}", "Conclusions the tracer drew."
)
ERRORS: Final = Metric(
    "session_tracer.errors", "counter", "{error}", "The tracer's own failures, swallowed."
)
POOL_CONNECTIONS: Final = Metric(
    "db.client.connection.count",
    "gauge",
    "{connection}",
    "Connections of a pool, used or idle.",
)
POOL_MOST: Final = Metric(
    "db.client.connection.max",
    "gauge",
    "{connection}",
    "The most connections that a pool may have.",
)
POOL_WAITING: Final = Metric(
    "db.client.connection.pending_requests",
    "gauge",
    "{request}",
    "Threads and tasks that wait for a connection of a pool.",
)
POOL_TIMEOUTS: Final = Metric(
    "db.client.connection.timeouts",
    "counter",
    "{timeout}",
    "How often a pool had no connection in time.",
)
POOL_WAIT: Final = Metric(
    "db.client.connection.wait_time",
    "histogram",
    "s",
    "How long each checkout of a connection took, including checkouts that timed out.",
    _SECONDS,
)
CLIENT_OPERATION_DURATION: Final = Metric(
    "db.client.operation.duration",
    "histogram",
    "s",
    "Duration of database client operations.",
    _CLIENT_SECONDS,
)

METRICS: Final = (
    SESSION_DURATION,
    SESSIONS_OPEN,
    SESSION_OLDEST,
    SUSPECTS,
    IDENTITY_MAP,
    OBJECTS,
    SESSION_STATEMENTS,
    TRANSACTION_DURATION,
    TRANSACTIONS_OPEN,
    TRANSACTION_OLDEST,
    CONNECTION_HELD_DURATION,
    CONNECTION_BUSY_DURATION,
    CONNECTION_HOLDERS,
    FLUSH_DURATION,
    LAZY_LOADS,
    FINDINGS,
    ERRORS,
    POOL_CONNECTIONS,
    POOL_MOST,
    POOL_WAITING,
    POOL_TIMEOUTS,
    POOL_WAIT,
    CLIENT_OPERATION_DURATION,
)
