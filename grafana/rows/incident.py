"""The rows that are open at first: what a person asks who is called during an incident."""

from panels import (
    COUNT,
    FINDINGS_LOGGED,
    LOGGED,
    NUMBER,
    SECONDS,
    SHARE,
    TEXT,
    Columns,
    Lines,
    Panels,
    Words,
    bars,
    chart,
    log_lines,
    names,
    number,
    orange_from,
    red_from,
    rows_of,
    stacked,
    value_of,
    yellow_from,
)
from promql import (
    PROCESS,
    happened,
    happened_by_version,
    mean_by_version,
    of,
    per_second,
    ratio,
    total,
    unless_empty,
    versions,
)

POOL = ("job", "instance", "db_client_connection_pool_name")
USED = of("db_client_connection_count", 'db_client_connection_state="used"')
IDLE = of("db_client_connection_count", 'db_client_connection_state="idle"')
MOST = of("db_client_connection_max")
WAITING = of("db_client_connection_pending_requests")
TIMEOUTS = of("db_client_connection_timeouts_total")

# connection_sites=True
HOLDERS = of("sqlalchemy_connection_holders")
LINE = ("code_file_path", "code_line_number", "code_function_name")

OPEN = of("sqlalchemy_session_open")
OLDEST_SESSION = of("sqlalchemy_session_oldest_age_seconds")
OLDEST_TRANSACTION = of("sqlalchemy_transaction_oldest_age_seconds")
SUSPECTS = of("sqlalchemy_session_suspects")
LEAKED = of("sqlalchemy_session_suspects", 'sqlalchemy_finding_id="leaked-session"')

ENDED = "sqlalchemy_session_duration_seconds"
STATEMENTS = "sqlalchemy_session_statements"
FINDINGS = "sqlalchemy_findings_total"
# Not what refresh() is called for, and not what is refused.
LAZY_LOADS = 'kind=~"relationship|deferred|expired"'
LOADED_LAZILY = unless_empty(
    per_second(of("sqlalchemy_lazy_loads_total", LAZY_LOADS), "sqlalchemy_session_work"),
    "sqlalchemy_session_work",
    "not named",
)
# Not filtered by session name: an error of session_tracer matters for every session.
OWN_ERRORS = of("session_tracer_errors_total", scope=PROCESS)

COLOURS = {"in use": "orange", "idle": "green", "at most": "text", "waiting": "red"}


def _each(metric: str, *matchers: str) -> str:
    """The average of one session of each version; zero if there was none of it."""
    sessions = happened_by_version(f"{ENDED}_count")
    return f"({happened_by_version(metric, *matchers)} or 0 * {sessions}) / {sessions}"


LASTING = {"long-transaction": "blue", "idle-in-transaction": "yellow", "leaked-session": "red"}

IS_IT_THE_SESSIONS: Panels = (
    number(
        Words(
            "Is the pool full?",
            "How much of the fullest pool is in use? If it is 100 % and code waits, the next row "
            "has the lines that hold its connections.",
            SHARE,
            "the-pool-is-exhausted",
        ),
        f"max({total(USED, *POOL)} / {total(MOST, *POOL)})",
        yellow_from(0.8),
        # Not red: it is full for a moment, again and again, and no code waits.
        orange_from(1),
    ),
    number(
        Words(
            "Does code wait for it?",
            "How many threads and tasks wait for a connection?",
            COUNT,
            "the-pool-is-exhausted",
        ),
        f"sum({WAITING})",
        yellow_from(1),
        red_from(3),
    ),
    number(
        Words(
            "Did requests give up?",
            "How often did a pool have no connection in time, in the last five minutes?",
            COUNT,
            "the-pool-is-exhausted",
        ),
        happened(TIMEOUTS, window="5m"),
        red_from(1),
    ),
    number(
        Words(
            "Do sessions fail?",
            "How many of the sessions end because of an exception, or are collected by the garbage "
            "collector while their transaction is open (abandoned-session)?",
            SHARE,
            "a-storm-of-pendingrollbackerror",
        ),
        ratio(
            of(f"{ENDED}_count", 'sqlalchemy_session_outcome=~"failed|abandoned"'),
            of(f"{ENDED}_count"),
        ),
        yellow_from(0.01),
        red_from(0.05),
    ),
    number(
        Words(
            "Is a transaction stuck?",
            "How long has the oldest transaction been open? It keeps its locks and its connection, "
            "and stops the database from removing old rows.",
            SECONDS,
            "a-transaction-is-stuck",
        ),
        f"max({OLDEST_TRANSACTION})",
        yellow_from(30),
        red_from(120),
    ),
    number(
        Words(
            "Does a session leak?",
            "How many open sessions have the finding leaked-session?",
            COUNT,
            "a-leak-climbs",
        ),
        f"sum({LEAKED})",
        red_from(1),
    ),
    names(
        Words(
            "Which version runs?",
            "Which service.version do the processes have? Two during a deployment.",
            TEXT,
            "slow-since-the-deployment",
        ),
        versions(),
        "{{service_version}}",
    ),
    number(
        Words(
            "Are we blind?",
            "How many processes report their sessions? If there are fewer than run, the other "
            "panels are silent about the rest.",
            "suffix: reporting",
            "nothing-is-seen",
        ),
        f"count({total(OPEN, 'job', 'instance')}) or vector(0)",
    ),
)

WHO_HOLDS_THE_CONNECTIONS: Panels = (
    stacked(
        Words(
            "Is a connection free?",
            "How many connections are in use and idle, of how many that the pools may have, and "
            "how many threads and tasks wait for one? All pools together: choose an instance "
            "above.",
            COUNT,
            "the-pool-is-exhausted",
        ),
        Lines(f"sum({USED})", "in use"),
        Lines(f"sum({IDLE})", "idle"),
        Lines(f"sum({MOST})", "at most"),
        Lines(f"sum({WAITING})", "waiting"),
        colours=COLOURS,
        unstacked=("at most", "waiting"),
    ),
    stacked(
        Words(
            "Which lines hold them now?",
            "At which lines was the session first used that holds a connection? A line whose "
            "number stays while others come and go keeps its connections. Needs "
            "connection_sites=True.",
            COUNT,
            "the-pool-is-exhausted",
        ),
        Lines(
            total(HOLDERS, *LINE),
            "{{code_file_path}}:{{code_line_number}} {{code_function_name}}",
        ),
        span=16,
        empty="Needs connection_sites=True",
        ranked=True,
    ),
    log_lines(
        Words(
            "What was found, at which line, and what is to do?",
            "Each line has what happened, the line of code to look at first, and what to write "
            "instead. Unfold it to see who holds the connections (holders), where the session was "
            "opened, and its trace. Needs the logs in Loki, sent by OTLP.",
            TEXT,
        ),
        f'{FINDINGS_LOGGED} | session_name=~"$session" '
        '| line_format "{{.finding_id}}{{if .site}} at {{.site}}{{end}}: {{.explanation}}'
        '{{if .remedy}} ▸ {{.remedy}}{{end}}"',
    ),
    chart(
        Words(
            "How long do they hold them?",
            "How old are the oldest session and the oldest transaction of each process? A line "
            "that rises steadily is one that does not end. If only the session's line rises, it "
            "holds no connection and is less urgent.",
            SECONDS,
            "a-transaction-is-stuck",
        ),
        Lines(f"max by (instance) ({OLDEST_SESSION})", "session {{instance}}"),
        Lines(f"max by (instance) ({OLDEST_TRANSACTION})", "transaction {{instance}}"),
        span=12,
    ),
    stacked(
        Words(
            "Is there a leak, and is it over?",
            "How many open sessions have a finding about something that lasts? A session counts "
            "until its finding is retracted, or until its process is gone.",
            COUNT,
            "a-leak-climbs",
        ),
        Lines(total(SUSPECTS, "sqlalchemy_finding_id"), "{{sqlalchemy_finding_id}}"),
        span=12,
        colours=LASTING,
        logged=f'{LOGGED} | finding_id="{value_of("sqlalchemy_finding_id")}"',
    ),
)

WHAT_CHANGED: Panels = (
    rows_of(
        Words(
            "How do the versions differ?",
            "What does a session of each version do, on the average of the time range? Versions "
            "come from service.version in the resource.",
            COUNT,
            "slow-since-the-deployment",
        ),
        [
            happened_by_version(f"{ENDED}_count"),
            _each(f"{ENDED}_sum"),
            _each(f"{STATEMENTS}_sum"),
            _each("sqlalchemy_lazy_loads_total", LAZY_LOADS),
            _each(FINDINGS),
        ],
        Columns(
            headings={
                "Time": None,
                "service_version": "Version",
                "Value #A": "Sessions",
                "Value #B": "Duration of each",
                "Value #C": "Statements of each",
                "Value #D": "Lazy loads of each",
                "Value #E": "Findings of each",
            },
            sorted_by="Version",
            units={"Sessions": NUMBER, "Duration of each": SECONDS},
            fractions=("Statements of each", "Lazy loads of each", "Findings of each"),
        ),
        span=24,
        height=4,
    ),
    chart(
        Words(
            "Does it execute more statements?",
            "How many statements does a session of each version execute, on average?",
            COUNT,
            "slow-since-the-deployment",
        ),
        Lines(mean_by_version(STATEMENTS), "{{service_version}}"),
        span=6,
    ),
    chart(
        Words(
            "Is it slower?",
            "How long is a session of each version open, on average?",
            SECONDS,
            "slow-since-the-deployment",
        ),
        Lines(mean_by_version(ENDED), "{{service_version}}"),
        span=6,
    ),
    stacked(
        Words(
            "Which work loads lazily?",
            "For which endpoint, task or job are attributes and columns loaded one by one, how "
            "often a second? The ten with the most.",
            COUNT,
            "slow-since-the-deployment",
        ),
        Lines(
            f"topk(10, {LOADED_LAZILY})",
            "{{sqlalchemy_session_work}}",
        ),
        span=6,
        logged=f'{FINDINGS_LOGGED} | work="{value_of("sqlalchemy_session_work")}"',
    ),
    bars(
        Words(
            "Which findings began with it?",
            "How many findings of each id are there in each bar? The cause of one that begins "
            "with a deployment is the deployment.",
            COUNT,
            "slow-since-the-deployment",
        ),
        Lines(
            f"{happened(of(FINDINGS), 'sqlalchemy_finding_id')} > 0", "{{sqlalchemy_finding_id}}"
        ),
        span=6,
        logged=f'{LOGGED} | finding_id="{value_of("sqlalchemy_finding_id")}"',
    ),
)

ARE_WE_BLIND: Panels = (
    stacked(
        Words(
            "Which processes report?",
            "How many processes of each version report their sessions?",
            COUNT,
            "nothing-is-seen",
        ),
        Lines(versions(), "{{service_version}}"),
        span=12,
    ),
    bars(
        Words(
            "Does session_tracer fail?",
            "How many failures of session_tracer itself are there in each bar? The application is "
            "not affected, but some sessions are not reported completely. Its logger has a "
            "warning about each place.",
            COUNT,
            "nothing-is-seen",
        ),
        Lines(f"{happened(OWN_ERRORS, 'instance')} > 0", "{{instance}}"),
        span=12,
    ),
)
