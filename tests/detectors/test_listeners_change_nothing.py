"""A finding does not depend on listeners: it is the same if every fact is published."""

from __future__ import annotations

import functools
import random
import threading
from typing import TYPE_CHECKING, Any

import pytest

from session_tracer import DEFAULT_DETECTORS, CallSite, Finding, LiveSession
from session_tracer import facts as what
from session_tracer.detectors.protocol import Suspecting
from session_tracer.model.findings import FINDING_IDS
from session_tracer.where.owner import Owner
from tests.detectors.feeding import MS, SECOND, PlayedScope, at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from session_tracer import Detector
    from session_tracer.facts import Fact
    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Retraction

SITES = [*[at(1)] * 6, at(2), None]
ENTITIES = ["Author", "Book"]
SETTINGS: dict[str, Any] = {
    "batch_commit_objects": 12,
    "commit_loop_gap_seconds": 1_000,
    "large_flush_objects": 3,
    "unchanged_dirty_objects": 2,
    "large_identity_map_objects": 60,
    "large_result_objects": 6,
}
# Each is a number of times that makes a finding. They start at the lowest valid value.
COUNTED = (
    "commits_from_one_site",
    "savepoints_per_transaction",
    "autoflushes_from_one_site",
    "single_row_writes",
    "lazy_loads_from_one_site",
    "gets_from_one_site",
    "queries_from_one_site",
    "repeats_of_one_select",
    "reloads_after_commit",
    "refreshes_from_one_site",
    "traces_per_session",
)
OWNERS = [
    Owner(threading.main_thread(), None, None, None),
    Owner(threading.Thread(name="export"), None, None, object()),
]
LIVE = LiveSession(id="9b21", name="orders-db", age_seconds=61.5, opened_site=None, owner="main")
SEEDS = range(200)


class Program:
    """A scope in which all kinds of things happen, in an order in which they may."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now = SECOND
        self.savepoints = 0
        self.is_joined = False
        self.steps = (
            self.select,
            self.load,
            self.flush,
            self.write,
            self.begin_savepoint,
            self.end_savepoint,
            self.refused,
            self.time,
        )
        # Each program has its own habits.
        self.weights = [rng.choice([0, 1, 6]) + 0.1 for _ in self.steps]
        loads: list[what.LoadKind] = ["relationship", "deferred", "expired", "refresh"]
        self.kinds = rng.choices(loads, k=2)
        self.triggers = rng.choices(["explicit", "autoflush", "commit"], k=2)

    def site(self) -> CallSite | None:
        return self.rng.choice(SITES)

    def later(self) -> int:
        self.now += self.rng.choice([MS, MS, MS, 3 * SECOND, 40 * SECOND])
        return self.now

    def counts(self, *most: int) -> dict[str, int]:
        counts = {entity: self.rng.choice(most) for entity in ENTITIES}
        return {entity: count for entity, count in counts.items() if count}

    def scope(self) -> Iterator[Fact]:
        yield what.SessionOpened(
            self.now,
            self.site(),
            reopened=self.rng.random() < 0.5,
            last_ending=self.rng.choice(["close", "reset"]),
            same_owner=self.rng.random() < 0.7,
        )
        ending = self.rng.choice(["close", "close", "reset", "invalidate", "collected", "exit"])
        number = self.rng.randrange(8)
        for left in reversed(range(number)):
            is_taken = left == 0 and ending in ("collected", "exit") and self.rng.random() < 0.7
            yield from self.transaction(is_taken=is_taken)
        yield what.SessionClosed(
            self.later(),
            self.site(),
            ending,  # type: ignore[arg-type] # it is one of its own
            "closed",
            leaving=self.rng.random() < 0.1,
            added=self.counts(0, 0, 0, 1),
            joined=self.is_joined,
        )

    def transaction(self, *, is_taken: bool) -> Iterator[Fact]:
        user = self.rng.choice(OWNERS)
        is_joined = self.rng.random() < 0.03
        self.is_joined = self.is_joined or is_joined
        yield what.TransactionBegan(
            self.later(),
            self.site(),
            owner=user,
            root=self.rng.choice([user, *OWNERS]),
            trace=self.rng.randrange(4),
        )
        yield what.ConnectionAcquired(self.later(), what.Database("sqlite"), joined=is_joined)
        for step in self.rng.choices(self.steps, self.weights, k=self.rng.randrange(16)):
            yield from step()
        while self.savepoints:
            yield from self.end_savepoint()
        yield what.ConnectionReleased(self.later(), MS, MS, what.Database("sqlite"))
        yield what.TransactionEnded(
            self.later(),
            self.site(),
            "abandoned"
            if is_taken
            else self.rng.choice(["committed", "committed", "rolled_back", "closed"]),
            MS,
            size=self.rng.randrange(70),
        )

    def executed(self, operation: str, site: CallSite | None, **more: Any) -> Fact:
        return what.StatementExecuted(self.later(), site, operation, "authors", duration=MS, **more)

    def select(self) -> Iterator[Fact]:
        site = self.site()
        error = self.rng.choice([*[""] * 9, "OperationalError"])
        yield self.executed(
            "SELECT",
            site,
            entity=self.rng.choice(ENTITIES),
            by_key=self.rng.random() < 0.7,
            fingerprint=self.rng.randrange(6),
            reads=frozenset({"authors"}),
            error=error,
        )
        if not error:
            yield from self.selected(site)

    def selected(self, site: CallSite | None) -> Iterator[Fact]:
        if self.rng.random() < 0.3:
            yield self.executed(
                "SELECT",
                site,
                entity="Book",
                eager="Author.books",
                fingerprint=self.rng.randrange(4),
                reads=frozenset({"authors"}),
            )
        loaded = self.counts(0, 1, 5)
        if loaded:
            yield what.ObjectsLoaded(self.later(), site, loaded, at_once=0)

    def load(self) -> Iterator[Fact]:
        if self.rng.random() < 0.3:
            yield from self.flush()
        site = self.site()
        yield what.AttributeLoaded(
            self.later(),
            site,
            self.rng.choice(self.kinds),
            "Author",
            "books",
            parent=self.rng.randrange(9),
            expired_by=self.rng.choice(["", "commit"]),
            expired_site=self.site(),
            written=self.rng.choice(["", "INSERT", "UPDATE"]),
        )
        yield self.executed(
            "SELECT",
            site,
            entity="Book",
            fingerprint=self.rng.randrange(6),
            reads=frozenset({"authors"}),
        )
        yield from self.selected(site)

    def flush(self) -> Iterator[Fact]:
        trigger: Any = self.rng.choice(self.triggers)
        site = self.site()
        yield what.FlushBegan(self.later(), site, trigger)
        for _ in range(self.rng.randrange(4)):
            text = self.rng.choice([1, 1, 1, 2])
            yield self.executed("INSERT", site, entity="Author", in_flush=True, rows=1, text=text)
        now = self.later()
        if self.rng.random() < 0.15:
            failed = what.FlushFailed(now, site, trigger, MS, "IntegrityError")
            yield failed
            yield what.FlushFailureDecided(now, site, failed, self.rng.choice(["", "left"]))
        else:
            new, dirty = self.counts(0, 0, 1, 4), self.counts(0, 0, 1)
            yield what.FlushCompleted(now, site, trigger, MS, new, dirty, {}, self.counts(0, 0, 2))

    def write(self) -> Iterator[Fact]:
        operation = self.rng.choice(["INSERT", "UPDATE", "DELETE"])
        rows = self.rng.randrange(-1, 3)
        yield self.executed(operation, self.site(), entity="Author", rows=rows, text=2)

    def begin_savepoint(self) -> Iterator[Fact]:
        self.savepoints += 1
        yield what.TransactionBegan(self.later(), self.site(), nested=True)

    def end_savepoint(self) -> Iterator[Fact]:
        if self.savepoints:
            self.savepoints -= 1
            outcome: Any = self.rng.choice(["committed", "rolled_back"])
            yield what.TransactionEnded(self.later(), self.site(), outcome, MS, nested=True)

    def refused(self) -> Iterator[Fact]:
        now, site = self.later(), self.site()
        facts: list[Fact] = [
            what.RollbackPending(now, site),
            what.TransactionCancelled(now, site, OWNERS[1]),
            what.ImplicitLoadFailed(now, site, "Author", "books", "expired"),
            what.TransactionRefused(now, site),
            what.StreamInterrupted(now, site, "committed"),
            what.LinkLost(now, site, "Book", "Author", "books"),
            what.StaleLocked(now, site, {"Author": 1}),
            what.RowGone(now, site, "Author", "gone"),
            what.CopyChanged(now, site, "Author", ("name",)),
        ]
        yield self.rng.choice(facts)

    def time(self) -> Iterator[Fact]:
        yield what.TimePassed(self.later(), running=False, look=lambda: LIVE)


@functools.cache
def program(seed: int) -> tuple[list[tuple[Fact, int]], dict[str, Any]]:
    """What happens in a scope, how large its identity map is then, and the settings."""
    rng = random.Random(seed)
    scope = []
    for fact in Program(rng).scope():
        size = rng.randrange(63)
        if isinstance(fact, what.ObjectsLoaded):
            size = max(size, sum(fact.loaded.values()))
        scope.append((fact, size))
    counted: dict[str, Any] = {name: rng.randrange(2, 5) for name in COUNTED}
    return scope, {**SETTINGS, **counted}


Reported = list[tuple[int, "Finding | Retraction"]]


def reported(seed: int, *, listens: bool) -> Reported:
    """What is reported of the scope, and at which fact."""
    facts, settings = program(seed)
    scope = PlayedScope(DEFAULT_DETECTORS, listens=listens, **settings)
    found: Reported = []
    for number, (fact, size) in enumerate(facts):
        scope.ledger.identity_map_peak = max(size, scope.ledger.identity_map_peak)
        scope.play(fact)
        found += [(number, one) for one in scope.reported]
        scope.reported.clear()
    assert bool(scope.facts) is listens
    return found


@pytest.mark.parametrize("seeds", [SEEDS[start::10] for start in range(10)], ids=str)
def test_findings_do_not_depend_on_listeners(seeds: range) -> None:
    for seed in seeds:
        assert reported(seed, listens=True) == reported(seed, listens=False), f"seed {seed}"


# Findings from rare facts, which are made one by one with and without listeners.
NOT_MADE = {
    "blocked-event-loop",
    "concurrent-use",
    "crossed-sessions",
    "detached-lazy-load",
    "foreign-loop",
    "nested-sessions",
    "pool-exhausted",
    "query-in-loop",  # no loop is at work
    "reused-after-close",  # its source is read
    "session-per-item",  # it is about many scopes
    "split-writes",
}


def test_the_programs_make_every_finding_that_counters_lead_to() -> None:
    made = {
        (one if isinstance(one, Finding) else one.finding).id
        for seed in SEEDS
        for _, one in reported(seed, listens=False)
    }
    assert made == set(FINDING_IDS) - NOT_MADE


def test_a_small_unit_of_work_asks_no_detector() -> None:
    asked: list[str] = []
    unit: list[Fact] = [
        what.SessionOpened(1, at(1)),
        what.TransactionBegan(2, at(2), owner=OWNERS[0], root=OWNERS[0]),
        what.ConnectionAcquired(2, what.Database("sqlite")),
        what.StatementExecuted(
            3, at(2), "SELECT", "authors", "Author", 1, by_key=True, fingerprint=5
        ),
        what.ObjectsLoaded(4, at(2), {"Author": 1}),
        what.FlushBegan(5, at(3), "commit"),
        what.StatementExecuted(6, at(3), "UPDATE", "authors", "Author", 1, in_flush=True, rows=1),
        what.FlushCompleted(7, at(3), "commit", 2, {}, {"Author": 1}),
        what.ConnectionReleased(8, 5, 2, what.Database("sqlite")),
        what.TransactionEnded(9, at(3), "committed", 7, size=1),
        what.SessionClosed(10, at(1), "close", "committed"),
    ]
    PlayedScope([Asked(detector, asked) for detector in DEFAULT_DETECTORS]).play(*unit)
    assert asked == []


class Asked:
    """Notes that a detector is asked."""

    facts: tuple[type[Fact], ...] = ()

    def __init__(self, detector: Detector, asked: list[str]) -> None:
        assert isinstance(detector, Suspecting)
        self.candidates = detector.candidates
        self.name = type(detector).__name__
        self.asked = asked

    def memory(self) -> None: ...

    def judge(self, fact: Any, report: Report, memory: None) -> tuple[()]:
        del fact, report, memory
        self.asked.append(self.name)
        return ()
