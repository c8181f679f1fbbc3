"""The row about sessions: how they end, how long they live, and what they execute."""

from panels import (
    COUNT,
    OUTCOMES,
    PER_SECOND,
    SECONDS,
    Lines,
    Panels,
    Words,
    chart,
    distribution,
    stacked,
)
from promql import mean, of, per_second, quantile, total

ENDED = of("sqlalchemy_session_duration_seconds_count")
HELD = "sqlalchemy_connection_held_duration_seconds"
BUSY = "sqlalchemy_connection_busy_duration_seconds"

PANELS: Panels = (
    stacked(
        Words(
            "Sessions ended, by outcome",
            "How many sessions end, and how? closed: neither committed nor rolled back, for "
            "example a read. unused: no transaction began.",
            PER_SECOND,
        ),
        Lines(
            per_second(ENDED, "sqlalchemy_session_outcome"),
            "{{sqlalchemy_session_outcome}}",
        ),
        colours=OUTCOMES,
    ),
    chart(
        Words(
            "Session duration",
            "How long are sessions open? If the p99 is far above the p95, a few of them do too "
            "much or wait for something other than the database.",
            SECONDS,
        ),
        *distribution("sqlalchemy_session_duration_seconds"),
    ),
    chart(
        Words(
            "Open sessions and transactions",
            "Does their number follow the traffic? One that climbs and never falls is a leak.",
            COUNT,
        ),
        Lines(
            total(of("sqlalchemy_session_open"), "sqlalchemy_session_name"),
            "sessions {{sqlalchemy_session_name}}",
        ),
        Lines(
            total(of("sqlalchemy_transaction_open"), "sqlalchemy_session_name"),
            "transactions {{sqlalchemy_session_name}}",
        ),
    ),
    chart(
        Words(
            "Time that a connection was held",
            "How long did transactions that ended hold their connection, and how much of that was "
            "SQL? If held is far above SQL, connections wait for the application. One that is "
            "still held is not in it: see the oldest transaction.",
            SECONDS,
        ),
        Lines(quantile(0.95, HELD), "held, p95", exemplars=True),
        Lines(mean(HELD), "held, mean"),
        Lines(quantile(0.95, BUSY), "SQL, p95"),
        Lines(mean(BUSY), "SQL, mean"),
    ),
    chart(
        Words(
            "Time to get a connection",
            "How long does code wait for a connection of a pool, or for a new one? A pool that is "
            "about to be exhausted is seen here first.",
            SECONDS,
            "the-pool-is-exhausted",
        ),
        *distribution("db_client_connection_wait_time_seconds"),
    ),
    chart(
        Words(
            "Statements per session",
            "How many statements does a session execute? If the p95 grows with the data, the "
            "cause is an n-plus-one.",
            COUNT,
        ),
        *distribution("sqlalchemy_session_statements"),
    ),
)
