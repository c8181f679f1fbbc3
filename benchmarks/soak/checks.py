"""The checks at the end of the load."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sqlalchemy import func, select, text

from benchmarks.soak.latency import surely_above
from benchmarks.soak.model import (
    AUTHORS_ON_A_SHELF,
    BOOKS_OF_AN_AUTHOR,
    READINGS,
    Author,
    Book,
    Reading,
)
from benchmarks.soak.pulse import growth

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sqlalchemy import Connection, Engine

    from benchmarks.soak.account import Account
    from benchmarks.soak.collector import Points
    from benchmarks.soak.latency import Latency
    from benchmarks.soak.pulse import Pulse

Writes: TypeAlias = "dict[str, tuple[int, int, int]]"

MIB_A_MINUTE: Final = 0.5
OBJECTS_A_MINUTE: Final = 50.0
# gRPC starts and ends threads of its own.
NATIVE_THREADS: Final = 2
# Limits of the median ratio of a window to the windows before and after it.
P50_RATIO: Final = 1.15
P99_RATIO: Final = 1.5
# In a shorter time, memory and latency mean nothing.
JUDGED_MINUTES: Final = 5.0


@dataclass(frozen=True, slots=True)
class Check:
    """A measured and an expected value; they must be equal, or with `at_most` not above it."""

    what: str
    found: Any
    expected: Any
    at_most: bool = False

    @property
    def holds(self) -> bool:
        return bool(self.found <= self.expected if self.at_most else self.found == self.expected)


class Received:
    """The collector's last export, by metric and by its first attribute."""

    def __init__(self, points: Mapping[str, Points]) -> None:
        self._points = points

    def total(self, name: str) -> int:
        return sum(self._of(name).values())

    def by_label(self, name: str, *ending: str) -> dict[str, int]:
        """The sum of the points with these other attributes."""
        found = sorted(self._of(name).items())
        return {key[0]: number for key, number in found if number and key[1:] == ending}

    def findings(self, id_: str) -> int:
        """Number of findings with this id, of any severity."""
        points = self._of("sqlalchemy.findings").items()
        return sum(number for key, number in points if key[0] == id_)

    def _of(self, name: str) -> Points:
        return self._points.get(name, Counter())


def counters(account: Account, received: Received) -> Iterator[Check]:
    """Compares the totals of the collector with the counts of the load."""
    yield Check("session_tracer.errors", received.by_label("session_tracer.errors"), {})
    sessions = account.by_label("sessions")
    found = received.by_label("sqlalchemy.session.duration")
    yield Check("sessions, by outcome", found, sessions)
    ended = received.total("sqlalchemy.session.duration")
    yield Check("sessions, of those opened", ended, account.total("opened"))
    yield Check("sessions open", received.total("sqlalchemy.session.open"), 0)
    ended = received.total("sqlalchemy.transaction.duration")
    yield Check("transactions", ended, account.total("transactions"))
    yield Check("transactions open", received.total("sqlalchemy.transaction.open"), 0)
    held = received.total("sqlalchemy.connection.held.duration")
    yield Check("connections held", held, account.total("checkouts"))
    statements = received.total("sqlalchemy.session.statements.sum")
    yield Check("statements", statements, account.total("statements"))
    for state in ("loaded", "new", "dirty", "unchanged", "deleted"):
        objects = received.by_label("sqlalchemy.session.objects", state)
        yield Check(f"objects {state}", objects, account.by_label(state))
    loads = account.by_label("lazy_loads")
    yield Check("loads, by kind", received.by_label("sqlalchemy.lazy_loads"), loads)
    for id_, times in (
        ("abandoned-session", sessions.get("abandoned", 0)),
        ("detached-lazy-load", loads.get("detached", 0)),
    ):
        yield Check(id_, received.findings(id_), times)


def rows(connection: Connection, accounts: Sequence[Account], shelves: int) -> Iterator[Check]:
    """Compares the rows of the tables with what was committed."""
    kept: Counter[str] = Counter()
    for account in accounts:
        kept.update(account.by_label("kept"))
    authors = shelves * AUTHORS_ON_A_SHELF
    for what, column, number in (
        ("rows of author", func.count(Author.id), authors + kept["authors"]),
        ("rows of book", func.count(Book.id), authors * BOOKS_OF_AN_AUTHOR + kept["books"]),
        ("rows of reading", func.count(Reading.id), READINGS + kept["readings"]),
        ("visits", func.sum(Author.visits), kept["visits"]),
        # Each update of a row increments its version, so none can be missed.
        ("versions", func.sum(Author.version - 1), kept["visits"]),
    ):
        yield Check(what, connection.scalar(select(column)), number)


def settled_writes(engine: Engine) -> Writes:
    """Rows that PostgreSQL has inserted, updated and deleted, committed or not, by table.

    A connection hands its counts over when it has ended, which may be a moment later.
    """
    before: Writes = {}
    while before != (now := _writes(engine)):
        before = now
        time.sleep(2)
    return now


def _writes(engine: Engine) -> Writes:
    query = text("SELECT relname, n_tup_ins, n_tup_upd, n_tup_del FROM pg_stat_user_tables")
    with engine.connect() as connection:
        found = connection.execute(query).all()
    return {name: (new, changed, gone) for name, new, changed, gone in found}


def written(before: Writes, after: Writes, account: Account, received: Received) -> Iterator[Check]:
    """Compares the objects by state with the counts of the database."""
    new, dirty, deleted = (
        Counter(received.by_label("sqlalchemy.session.objects", state))
        for state in ("new", "dirty", "deleted")
    )
    for table, entity in (("author", "Author"), ("book", "Book")):
        # A row that a constraint refuses was inserted first.
        refused = account.totals["refused", entity]
        found = (new[entity] + refused, dirty[entity], deleted[entity])
        rows = tuple(now - then for now, then in zip(after[table], before[table], strict=True))
        yield Check(f"{table}: rows inserted, updated, deleted", found, rows)


def steadiness(pulses: Sequence[Pulse], latency: Latency) -> Iterator[Check]:
    """Checks threads, memory and latency after the first quarter of the time."""
    warm = [pulse for pulse in pulses if pulse.minutes >= pulses[-1].minutes / 4]
    threads, native = warm[0].threads, warm[0].native + NATIVE_THREADS
    yield Check("threads", max(pulse.threads for pulse in warm), threads, at_most=True)
    yield Check("native threads", max(pulse.native for pulse in warm), native, at_most=True)
    if pulses[-1].minutes < JUDGED_MINUTES - 0.5:
        return
    grown = round(growth(warm, "rss_mib"), 2)
    yield Check("MiB a minute", grown, MIB_A_MINUTE, at_most=True)
    grown = round(growth(warm, "objects"), 1)
    yield Check("objects of session_tracer a minute", grown, OBJECTS_A_MINUTE, at_most=True)
    for state in ("frozen", "stopped"):
        for figure, limit in (("p50", P50_RATIO), ("p99", P99_RATIO)):
            ratios = latency.ratios(state, figure)
            what = f"{figure} while {state} / while well, {median(ratios):.2f}, surely above"
            yield Check(what, round(surely_above(ratios), 2), limit, at_most=True)
