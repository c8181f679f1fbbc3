"""The row about sessions: how many, how long, how they end, and what they do with a connection."""

from panels import (
    COUNT,
    OUTCOMES,
    PER_SECOND,
    SECONDS,
    SHARE,
    Lines,
    Panels,
    Words,
    chart,
    number,
    quantiles,
    red_from,
    stacked,
    yellow_from,
)
from promql import of, per_second, quantile, ratio

ENDED = "sqlalchemy_session_duration_seconds_count"
HELD = "sqlalchemy_connection_held_duration_seconds"
BUSY = "sqlalchemy_connection_busy_duration_seconds"

PANELS: Panels = (
    number(
        Words(
            "Open now",
            "Sessions open at this moment. A number that climbs and never falls is a leak; "
            "one that follows the traffic is not.",
            COUNT,
        ),
        f"sum({of('sqlalchemy_session_open')})",
    ),
    number(
        Words(
            "Oldest session",
            "Age of the session that has been open for longest. Few units of work need ten "
            "seconds. A minute is often a session that is never closed: see leaked-session.",
            SECONDS,
        ),
        f"max({of('sqlalchemy_session_oldest_age_seconds')})",
        yellow_from(10),
        red_from(60),
    ),
    number(
        Words(
            "Failed or abandoned",
            "Share of the sessions that ended because of an exception, or were collected by the "
            "garbage collector while their transaction was open (abandoned-session).",
            SHARE,
        ),
        ratio(
            of(ENDED, 'sqlalchemy_session_outcome=~"failed|abandoned"'),
            of(ENDED),
        ),
        yellow_from(0.01),
        red_from(0.05),
    ),
    number(
        Words(
            "Held, not in SQL",
            "Share of the time in which sessions held a connection and ran no SQL. If it is high, "
            "connections wait for the application: HTTP calls, sleeps, slow code. The finding "
            "idle-in-transaction names a line that waits for five seconds or longer.",
            SHARE,
        ),
        f"1 - {ratio(of(f'{BUSY}_sum'), of(f'{HELD}_sum'))}",
        yellow_from(0.9),
        red_from(0.98),
    ),
    stacked(
        Words(
            "Sessions ended, by outcome",
            "Number of sessions that end, by outcome. closed: neither committed nor rolled back, "
            "for example a read. unused: no transaction began.",
            PER_SECOND,
        ),
        Lines(
            per_second(of(ENDED), "sqlalchemy_session_outcome"),
            "{{sqlalchemy_session_outcome}}",
        ),
        colours=OUTCOMES,
    ),
    chart(
        Words(
            "Session duration",
            "From opening to close. If the p99 is far above the p95, a few sessions do too much "
            "or wait for something other than the database.",
            SECONDS,
        ),
        *quantiles("sqlalchemy_session_duration_seconds"),
    ),
    chart(
        Words(
            "Sessions open, by name",
            "The factories of the open sessions. Compare them with the size of the pool.",
            COUNT,
        ),
        Lines(
            f"sum by (sqlalchemy_session_name) ({of('sqlalchemy_session_open')})",
            "{{sqlalchemy_session_name}}",
        ),
    ),
    chart(
        Words(
            "Oldest session, by instance",
            "A line that rises steadily is one session that is never closed. Its finding "
            "leaked-session in the logs of that instance has the line of code.",
            SECONDS,
        ),
        Lines(
            "max by (instance, sqlalchemy_session_name) "
            f"({of('sqlalchemy_session_oldest_age_seconds')})",
            "{{sqlalchemy_session_name}} {{instance}}",
        ),
        span=6,
    ),
    chart(
        Words(
            "Connections held against busy",
            "Average number of connections that sessions held at once, and that ran SQL. The "
            "difference was held and not used. A connection is counted when it is returned, so "
            "a long hold is visible at its end.",
            COUNT,
        ),
        Lines(per_second(of(f"{HELD}_sum")), "held"),
        Lines(per_second(of(f"{BUSY}_sum")), "busy"),
        span=6,
    ),
    chart(
        Words(
            "Time a connection is held",
            "Time from a connection's first use in a transaction to its return, and the part of "
            "it that was spent in SQL: the p95 of each.",
            SECONDS,
        ),
        Lines(quantile(0.95, HELD), "held"),
        Lines(quantile(0.95, BUSY), "busy"),
        span=6,
    ),
    chart(
        Words(
            "Statements per session",
            "Number of statements that a session executes. If the p95 grows with the data, the "
            "cause is an n-plus-one.",
            COUNT,
        ),
        *quantiles("sqlalchemy_session_statements"),
        span=6,
    ),
)
