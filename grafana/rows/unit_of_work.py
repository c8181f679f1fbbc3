"""The row about the unit of work: flushes, the objects in them, loads and transactions."""

from panels import (
    COUNT,
    OUTCOMES,
    PER_SECOND,
    SECONDS,
    Columns,
    Lines,
    Matrix,
    Panels,
    Words,
    bars,
    chart,
    number,
    quantiles,
    red_from,
    rows_of,
    stacked,
    yellow_from,
)
from promql import counted, of, or_none, per_second, quantile, ratio

SESSION_ENDED = "sqlalchemy_session_duration_seconds_count"
TRANSACTION_ENDED = "sqlalchemy_transaction_duration_seconds_count"
FLUSHED = "sqlalchemy_flush_duration_seconds_count"
FAILED_FLUSH = of(FLUSHED, 'error_type!=""')
OBJECTS = "sqlalchemy_session_objects_total"
LAZY_LOADS = of("sqlalchemy_lazy_loads_total")

STATES = {
    "new": "green",
    "dirty": "yellow",
    "unchanged": "text",
    "deleted": "red",
    "loaded": "blue",
    "detached": "purple",
}

PANELS: Panels = (
    number(
        Words(
            "Failed flushes",
            "Flushes that raised an exception in the time range. Their sessions must be rolled "
            "back before the next use.",
            COUNT,
        ),
        f"{counted(FAILED_FLUSH, window='$__range')} or vector(0)",
        yellow_from(1),
    ),
    number(
        Words(
            "Lazy loads per session",
            "Loads that were caused by reading or refreshing one object, per session that ended.",
            COUNT,
        ),
        ratio(LAZY_LOADS, of(SESSION_ENDED)),
        yellow_from(5),
        red_from(50),
    ),
    number(
        Words(
            "Transactions open",
            "Transactions open at this moment. Every one that has run a statement holds a "
            "connection.",
            COUNT,
        ),
        f"sum({of('sqlalchemy_transaction_open')})",
    ),
    number(
        Words(
            "Oldest transaction",
            "Age of the transaction that has been open for longest. It keeps its locks and its "
            "connection, and stops the database from removing old rows. The findings "
            "idle-in-transaction (after 5 s without a statement) and long-transaction (after "
            "30 s) name the line.",
            SECONDS,
        ),
        f"max({of('sqlalchemy_transaction_oldest_age_seconds')})",
        yellow_from(5),
        red_from(30),
    ),
    stacked(
        Words(
            "Flushes, by trigger",
            "Number of flushes: explicit, by commit, by savepoint, or by a query (autoflush). A "
            "loop that reads after each write causes autoflushes.",
            PER_SECOND,
        ),
        Lines(per_second(of(FLUSHED), "sqlalchemy_flush_trigger"), "{{sqlalchemy_flush_trigger}}"),
    ),
    chart(
        Words(
            "Flush duration, by trigger",
            "The p95 of a flush: sorting the unit of work and executing its INSERTs, UPDATEs and "
            "DELETEs.",
            SECONDS,
        ),
        Lines(
            quantile(0.95, "sqlalchemy_flush_duration_seconds", "sqlalchemy_flush_trigger"),
            "{{sqlalchemy_flush_trigger}}",
        ),
    ),
    bars(
        Words(
            "Failed flushes, by error",
            "Failed flushes in one step of the chart, by the type of the exception. "
            "IntegrityError is often two requests for the same row; OperationalError is the "
            "database.",
            COUNT,
        ),
        Lines(or_none(counted(FAILED_FLUSH, "error_type"), "error_type"), "{{error_type}}"),
        colours={"none": "text"},
    ),
    stacked(
        Words(
            "Objects flushed, by state",
            "Objects in the flushes of the sessions that ended. Unchanged objects were in "
            "session.dirty without a net change: they cost a comparison and are not written.",
            PER_SECOND,
        ),
        Lines(
            per_second(
                of(
                    OBJECTS,
                    'sqlalchemy_object_state=~"new|dirty|unchanged|deleted"',
                ),
                "sqlalchemy_object_state",
            ),
            "{{sqlalchemy_object_state}}",
        ),
        colours=STATES,
    ),
    stacked(
        Words(
            "Objects loaded, by entity",
            "The ten mapped classes with the most loaded objects. If there are more than the pages "
            "can show, a limit is missing or a join loads too much.",
            PER_SECOND,
        ),
        Lines(
            "topk(10, "
            + per_second(
                of(OBJECTS, 'sqlalchemy_object_state="loaded"'),
                "sqlalchemy_entity",
            )
            + ")",
            "{{sqlalchemy_entity}}",
        ),
    ),
    chart(
        Words(
            "Identity map at its peak",
            "The largest number of objects that a session held. Tens of thousands are often a "
            "batch job without expunge or yield_per. The buckets are powers of ten, so only the "
            "order of magnitude is exact.",
            COUNT,
        ),
        *quantiles("sqlalchemy_session_identity_map_size"),
    ),
    stacked(
        Words(
            "Lazy loads, by kind",
            "relationship: an attribute that the query did not load. deferred: a column that it "
            "did not load. expired: read again after a commit. refresh: a call of refresh(). "
            "detached: failed, because the object was in no session.",
            PER_SECOND,
        ),
        Lines(per_second(LAZY_LOADS, "kind"), "{{kind}}"),
    ),
    rows_of(
        Words(
            "Objects, by entity and state",
            "Number of objects of each mapped class in the time range: loaded, written, unchanged, "
            "deleted and detached.",
            COUNT,
        ),
        counted(of(OBJECTS), "sqlalchemy_entity", "sqlalchemy_object_state", window="$__range"),
        Columns(
            headings={"sqlalchemy_entity\\sqlalchemy_object_state": "Entity"},
            sorted_by="loaded",
            matrix=Matrix(rows="sqlalchemy_entity", columns="sqlalchemy_object_state"),
        ),
        span=16,
        height=8,
    ),
    stacked(
        Words(
            "Transactions ended, by outcome",
            "Commits and rollbacks. closed: ended with neither, as a read does. Savepoints are not "
            "counted.",
            PER_SECOND,
        ),
        Lines(
            per_second(of(TRANSACTION_ENDED), "sqlalchemy_transaction_outcome"),
            "{{sqlalchemy_transaction_outcome}}",
        ),
        span=6,
        colours=OUTCOMES,
    ),
    chart(
        Words(
            "Transaction duration",
            "From begin to commit or rollback: how long locks are held.",
            SECONDS,
        ),
        *quantiles("sqlalchemy_transaction_duration_seconds"),
        span=6,
    ),
    chart(
        Words(
            "Transactions open, by name",
            "The factories of the open transactions.",
            COUNT,
        ),
        Lines(
            f"sum by (sqlalchemy_session_name) ({of('sqlalchemy_transaction_open')})",
            "{{sqlalchemy_session_name}}",
        ),
        span=6,
    ),
    chart(
        Words(
            "Oldest transaction, by instance",
            "A line that rises steadily is one transaction that does not end: a connection that is "
            "idle in transaction (idle-in-transaction), or a long job (long-transaction).",
            SECONDS,
        ),
        Lines(
            "max by (instance, sqlalchemy_session_name) "
            f"({of('sqlalchemy_transaction_oldest_age_seconds')})",
            "{{sqlalchemy_session_name}} {{instance}}",
        ),
        span=6,
    ),
)
