"""What a detector sleeps through changes nothing of what it says."""

from __future__ import annotations

import functools
import random
import threading
from typing import TYPE_CHECKING, Any

import pytest

from session_tracer import DEFAULT_DETECTORS, CallSite, Exporter, Finding, LiveSession, Settings
from session_tracer import facts as what
from session_tracer.detectors.protocol import Sleeper, always
from session_tracer.ledger.origin import Scope
from session_tracer.ledger.record import SessionRecord
from session_tracer.ledger.registry import ages
from session_tracer.tracer import Tracer
from session_tracer.where.owner import Owner
from tests.detectors.feeding import MS, SECOND, at, fixed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from session_tracer import Detector
    from session_tracer.detectors.protocol import Wakes
    from session_tracer.facts import Fact
    from session_tracer.model.findings import Retraction

SITES = [*[at(1)] * 6, at(2), None]
ENTITIES = ["Author", "Book"]
SETTINGS: dict[str, Any] = {
    "batch_commit_objects": 12,
    "large_flush_objects": 3,
    "unchanged_dirty_objects": 2,
    "large_identity_map_objects": 60,
    "large_result_objects": 6,
}
# So many times make a finding, from the least that can be set on.
COUNTED = (
    "commits_from_one_site",
    "savepoints_per_transaction",
    "autoflushes_from_one_site",
    "single_row_writes",
    "lazy_loads_from_one_site",
    "gets_from_one_site",
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
SLEEPERS = [detector for detector in DEFAULT_DETECTORS if isinstance(detector, Sleeper)]
SEEDS = range(200)


class Program:
    """A scope in which all kinds of things happen, in an order in which they may."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now = SECOND
        self.savepoints = 0
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
        for _ in range(self.rng.randrange(8)):
            yield from self.transaction()
        yield what.SessionClosed(
            self.later(),
            self.site(),
            self.rng.choice(["close", "close", "reset", "invalidate", "collected", "exit"]),
            "closed",
            leaving=self.rng.random() < 0.1,
            added=self.counts(0, 0, 0, 1),
            joined=self.rng.random() < 0.1,
        )

    def transaction(self) -> Iterator[Fact]:
        yield what.TransactionBegan(
            self.later(),
            self.site(),
            owner=self.rng.choice(OWNERS),
            root=self.rng.choice([None, *OWNERS]),
            trace=self.rng.randrange(4),
        )
        yield what.ConnectionAcquired(
            self.later(), what.Database("sqlite"), joined=self.rng.random() < 0.03
        )
        for step in self.rng.choices(self.steps, self.weights, k=self.rng.randrange(16)):
            yield from step()
        while self.savepoints:
            yield from self.end_savepoint()
        yield what.ConnectionReleased(self.later(), MS, MS, what.Database("sqlite"))
        yield what.TransactionEnded(
            self.later(),
            self.site(),
            self.rng.choice(["committed", "committed", "rolled_back", "closed", "abandoned"]),
            MS,
            size=self.rng.randrange(70),
        )

    def executed(self, operation: str, **more: Any) -> Fact:
        return what.StatementExecuted(
            self.later(), self.site(), operation, "authors", duration=MS, **more
        )

    def select(self) -> Iterator[Fact]:
        yield self.executed(
            "SELECT",
            entity=self.rng.choice(ENTITIES),
            by_key=self.rng.random() < 0.7,
            fingerprint=self.rng.randrange(6),
            error=self.rng.choice([*[""] * 9, "OperationalError"]),
        )
        if self.rng.random() < 0.3:
            yield self.executed(
                "SELECT", entity="Book", eager="Author.books", fingerprint=self.rng.randrange(4)
            )
        yield what.ObjectsLoaded(self.later(), self.site(), self.counts(0, 1, 5), at_once=0)

    def load(self) -> Iterator[Fact]:
        if self.rng.random() < 0.3:
            yield from self.flush()
        yield what.AttributeLoaded(
            self.later(),
            self.site(),
            self.rng.choice(self.kinds),
            "Author",
            "books",
            parent=self.rng.randrange(9),
            expired_by=self.rng.choice(["", "commit"]),
            expired_site=self.site(),
        )
        yield from self.select()

    def flush(self) -> Iterator[Fact]:
        trigger: Any = self.rng.choice(self.triggers)
        yield what.FlushBegan(self.later(), self.site(), trigger)
        for _ in range(self.rng.randrange(4)):
            yield self.executed("INSERT", entity="Author", in_flush=True, rows=1, text=1)
        now, site = self.later(), self.site()
        if self.rng.random() < 0.15:
            yield what.FlushFailed(now, site, trigger, MS, "IntegrityError")
        else:
            new, dirty = self.counts(0, 0, 1, 4), self.counts(0, 0, 1)
            yield what.FlushCompleted(now, site, trigger, MS, new, dirty, {}, self.counts(0, 0, 2))

    def write(self) -> Iterator[Fact]:
        operation = self.rng.choice(["INSERT", "UPDATE", "DELETE"])
        yield self.executed(operation, entity="Author", rows=self.rng.randrange(-1, 3), text=2)

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
        ]
        yield self.rng.choice(facts)

    def time(self) -> Iterator[Fact]:
        yield what.TimePassed(self.later(), running=False, look=lambda: LIVE)


@functools.cache
def program(seed: int) -> tuple[list[tuple[Fact, int]], Settings]:
    """What happens in a scope, how large its identity map is then, and the settings."""
    rng = random.Random(seed)
    scope = [(fact, rng.randrange(63)) for fact in Program(rng).scope()]
    counted: dict[str, Any] = {name: rng.randrange(2, 5) for name in COUNTED}
    return scope, Settings(**SETTINGS, **counted)


Said = list[tuple[int, "Finding | Retraction"]]


def awake(detector: Detector, seed: int) -> Said:
    """What it says, and at which fact, if it is asked about each of them."""
    scope, settings = program(seed)
    record = SessionRecord("9b21", "orders-db", settings=settings)
    memory = detector.memory()
    said: Said = []
    for number, (fact, size) in enumerate(scope):
        record.identity_map_peak = max(record.identity_map_peak, size)
        record.add(fact)
        if type(fact) in detector.facts:
            for one in detector.judge(fact, record, memory):
                said.append((number, one))
                if isinstance(one, Finding):
                    record.findings.append(one)
    return said


def asleep(detector: Detector, seed: int) -> Said:
    """What it says, and at which fact, if the tracer asks it."""
    scope, settings = program(seed)
    said: Said = []
    drawn: list[Finding | Retraction] = []
    exporter = Exporter(on_finding=drawn.append, on_retraction=drawn.append)
    tracer = Tracer("orders-db", settings, fixed(exporter), [detector], ages)
    story = tracer.begin(Scope("9b21", None, is_async=False), 0)
    for number, (fact, size) in enumerate(scope):
        story.record.identity_map_peak = max(story.record.identity_map_peak, size)
        story.tell(fact)
        said += [(number, one) for one in drawn]
        drawn.clear()
    tracer.close()
    return said


def name(detector: Detector) -> str:
    return type(detector).__name__


@pytest.mark.parametrize("detector", SLEEPERS, ids=name)
def test_a_detector_says_the_same_at_the_same_facts_as_if_it_had_never_slept(
    detector: Detector,
) -> None:
    spoke = 0
    for seed in SEEDS:
        expected = awake(detector, seed)
        assert asleep(detector, seed) == expected, f"seed {seed}"
        spoke += bool(expected)
    assert spoke >= 3  # else it could not be told from one that sleeps on for ever


@pytest.mark.parametrize("detector", SLEEPERS, ids=name)
def test_a_detector_is_woken_only_by_facts_that_it_names(detector: Sleeper) -> None:
    assert set(detector.wakes) <= set(detector.facts)
    assert detector.wakes


def test_a_sleeping_detector_is_asked_nothing_and_has_no_memory() -> None:
    asked: list[str] = []

    class Drowsy:
        """Is woken by a commit."""

        facts = (what.TransactionBegan, what.TransactionEnded, what.SessionClosed)
        wakes = {  # noqa: RUF012 - nobody adds to it
            what.TransactionEnded: lambda fact, record: fact.outcome == "committed"
        }

        def memory(self) -> None:
            asked.append("memory")

        def judge(self, fact: Fact, record: SessionRecord, memory: None) -> tuple[()]:
            asked.append(type(fact).__name__)
            return ()

    tracer = Tracer("orders-db", Settings(), fixed(Exporter()), [Drowsy()], ages)
    for outcomes in (["rolled_back"], ["rolled_back", "committed", "rolled_back"]):
        story = tracer.begin(Scope("9b21", None, is_async=False), 0)
        for outcome in outcomes:
            story.tell(what.TransactionBegan(1, None))
            story.tell(what.TransactionEnded(2, None, outcome, 1))  # type: ignore[arg-type] # one of its own
        story.tell(what.SessionClosed(3, None, "close", "closed"))
        asked.append("closed")
    tracer.close()
    assert asked == [
        "closed",
        "memory",
        "TransactionEnded",
        "TransactionBegan",
        "TransactionEnded",
        "SessionClosed",
        "closed",
    ]


def test_a_small_unit_of_work_wakes_nobody_but_whom_a_write_concerns() -> None:
    woken: list[str] = []
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
    for detector in DEFAULT_DETECTORS:
        tracer = Tracer("orders-db", Settings(), fixed(Exporter()), [Told(detector, woken)], ages)
        story = tracer.begin(Scope("9b21", None, is_async=False), 0)
        for fact in unit:
            story.tell(fact)
        tracer.close()
    assert woken == ["RowByRowWrites"]


class Told:
    """Notes that a detector has something to remember."""

    def __init__(self, detector: Detector, woken: list[str]) -> None:
        self.facts = detector.facts
        at_once: Wakes = dict.fromkeys(detector.facts, always)
        self.wakes = detector.wakes if isinstance(detector, Sleeper) else at_once
        self.detector = detector
        self.woken = woken

    def memory(self) -> Any:
        self.woken.append(name(self.detector))
        return self.detector.memory()

    def judge(
        self, fact: Any, record: SessionRecord, memory: Any
    ) -> Iterable[Finding | Retraction]:
        return self.detector.judge(fact, record, memory)
