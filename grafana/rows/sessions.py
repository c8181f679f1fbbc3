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
            "Age of the session open longest. Few units of work need ten seconds; a minute is "
            "more often a session that nobody closes, and the finding leaked-session says whose.",
            SECONDS,
        ),
        f"max({of('sqlalchemy_session_oldest_age_seconds')})",
        yellow_from(10),
        red_from(60),
    ),
    number(
        Words(
            "Failed or abandoned",
            "Share of the sessions that ended while an exception was leaving, or were taken "
            "by the garbage collector with their transaction open (abandoned-session).",
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
            "Share of the time sessions held a connection that was spent outside SQL. Much means "
            "that connections wait for the application: HTTP calls, sleeps, slow code. The finding "
            "idle-in-transaction names the line that waits, if it waits for five seconds.",
            SHARE,
        ),
        f"1 - {ratio(of(f'{BUSY}_sum'), of(f'{HELD}_sum'))}",
        yellow_from(0.9),
        red_from(0.98),
    ),
    stacked(
        Words(
            "Sessions ended, by outcome",
            "How many sessions end, and how. Closed is a read, or a session that neither "
            "committed nor rolled back; unused began no transaction.",
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
            "From opening to close. A p99 far above the p95 is a few sessions doing too much, "
            "or waiting for something that is not the database.",
            SECONDS,
        ),
        *quantiles("sqlalchemy_session_duration_seconds"),
    ),
    chart(
        Words(
            "Sessions open, by name",
            "Which factory the open sessions come from. Compare with the size of its pool.",
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
            "A straight climb is one session that nobody closes, and the instance is the process "
            "to look into: its leaked-session has the line. Saw teeth are sessions that do end.",
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
            "How many connections sessions held at once on average, and how many of those "
            "were in SQL. The gap is pool that nobody uses. A connection counts when it is "
            "returned, so a long hold shows at its end.",
            COUNT,
        ),
        Lines(per_second(of(f"{HELD}_sum")), "held"),
        Lines(per_second(of(f"{BUSY}_sum")), "busy"),
        span=6,
    ),
    chart(
        Words(
            "One hold of a connection",
            "How long a connection is held, from its first use in a transaction to its "
            "return, and how long of that it runs SQL: the p95 of each.",
            SECONDS,
        ),
        Lines(quantile(0.95, HELD), "held"),
        Lines(quantile(0.95, BUSY), "busy"),
        span=6,
    ),
    chart(
        Words(
            "Statements per session",
            "Statements a session sends to the database. A p95 that grows with the data "
            "rather than with the code is an n-plus-one.",
            COUNT,
        ),
        *quantiles("sqlalchemy_session_statements"),
        span=6,
    ),
)
