"""The row about the unit of work: flushes, the objects in them, loads and transactions."""

from panels import (
    COUNT,
    NUMBER,
    OUTCOMES,
    PER_SECOND,
    SECONDS,
    Columns,
    Lines,
    Matrix,
    Panels,
    Words,
    chart,
    distribution,
    rows_of,
    stacked,
)
from promql import increase, mean, of, per_second, quantile

TRANSACTION_ENDED = of("sqlalchemy_transaction_duration_seconds_count")
FLUSH = "sqlalchemy_flush_duration_seconds"
OBJECTS = "sqlalchemy_session_objects_total"
WRITTEN = of(OBJECTS, 'sqlalchemy_object_state=~"new|dirty|unchanged|deleted"')
LOADED = of(OBJECTS, 'sqlalchemy_object_state="loaded"')

STATES = {
    "new": "green",
    "dirty": "yellow",
    "unchanged": "text",
    "deleted": "red",
    "loaded": "blue",
    "detached": "purple",
}

PANELS: Panels = (
    stacked(
        Words(
            "Flushes, by trigger",
            "Why do sessions flush? explicit, by commit, by savepoint, or by a query (autoflush). "
            "A loop that reads after each write causes autoflushes.",
            PER_SECOND,
        ),
        Lines(
            per_second(of(f"{FLUSH}_count"), "sqlalchemy_flush_trigger"),
            "{{sqlalchemy_flush_trigger}}",
        ),
    ),
    chart(
        Words(
            "Flush duration, by trigger",
            "How long does a flush take, to sort the unit of work and to execute its INSERTs, "
            "UPDATEs and DELETEs?",
            SECONDS,
        ),
        Lines(
            quantile(0.95, FLUSH, "sqlalchemy_flush_trigger"),
            "{{sqlalchemy_flush_trigger}}, p95",
            exemplars=True,
        ),
        Lines(mean(FLUSH, "sqlalchemy_flush_trigger"), "{{sqlalchemy_flush_trigger}}, mean"),
    ),
    stacked(
        Words(
            "Failed flushes, by error",
            "Which exceptions do flushes raise? IntegrityError is often two requests for the same "
            "row; OperationalError is the database.",
            PER_SECOND,
            "a-storm-of-pendingrollbackerror",
        ),
        Lines(per_second(of(f"{FLUSH}_count", 'error_type!=""'), "error_type"), "{{error_type}}"),
    ),
    stacked(
        Words(
            "Objects flushed, by state",
            "What do sessions write? Unchanged objects were in session.dirty without a net change: "
            "they cost a comparison and are not written.",
            PER_SECOND,
        ),
        Lines(per_second(WRITTEN, "sqlalchemy_object_state"), "{{sqlalchemy_object_state}}"),
        colours=STATES,
    ),
    stacked(
        Words(
            "Objects loaded, by entity",
            "Which ten mapped classes are loaded most? If there are more than the pages can show, "
            "a limit is missing or a join loads too much.",
            PER_SECOND,
        ),
        Lines(f"topk(10, {per_second(LOADED, 'sqlalchemy_entity')})", "{{sqlalchemy_entity}}"),
    ),
    chart(
        Words(
            "Identity map at its peak",
            "How many objects does a session hold at once? Tens of thousands are often a batch "
            "job without expunge or yield_per. The buckets are powers of ten, so of the "
            "percentiles only the order of magnitude is exact.",
            COUNT,
        ),
        *distribution("sqlalchemy_session_identity_map_size"),
    ),
    stacked(
        Words(
            "Lazy loads, by kind",
            "Why are single objects loaded? relationship: an attribute that the query did not "
            "load. deferred: a column that it did not load. expired: read again after a commit. "
            "refresh: a call of refresh(). detached: failed, because the object was in no session.",
            PER_SECOND,
        ),
        Lines(per_second(of("sqlalchemy_lazy_loads_total"), "kind"), "{{kind}}"),
    ),
    rows_of(
        Words(
            "Objects, by entity and state",
            "How many objects of each mapped class were loaded, written, unchanged, deleted and "
            "detached in the time range?",
            NUMBER,
        ),
        [increase(of(OBJECTS), "sqlalchemy_entity", "sqlalchemy_object_state")],
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
            "How do transactions end? closed: neither committed nor rolled back, as a read does. "
            "Savepoints are not counted.",
            PER_SECOND,
        ),
        Lines(
            per_second(TRANSACTION_ENDED, "sqlalchemy_transaction_outcome"),
            "{{sqlalchemy_transaction_outcome}}",
        ),
        span=12,
        colours=OUTCOMES,
    ),
    chart(
        Words(
            "Transaction duration",
            "How long do transactions hold their locks, from begin to commit or rollback?",
            SECONDS,
        ),
        *distribution("sqlalchemy_transaction_duration_seconds"),
        span=12,
    ),
)
