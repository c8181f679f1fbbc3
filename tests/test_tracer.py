"""What a tracer reports of a scope, by its detectors and its signals."""

from __future__ import annotations

import random
import threading
from collections import Counter
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.orm import sessionmaker

from session_tracer import DEFAULT_DETECTORS, CallSite, Exporter, Finding, instrument
from session_tracer import facts as what
from session_tracer.model.live_session import LiveSession
from session_tracer.testing import capture
from session_tracer.where.owner import Owner
from tests.detectors.feeding import reported
from tests.fickle import Fickle
from tests.library import Author, Base

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from session_tracer import Detector
    from session_tracer.detectors.protocol import Suspecting
    from session_tracer.facts import Fact
    from session_tracer.ledger.report import Report


@pytest.fixture
def maker(tmp_path: Path) -> Iterator[Any]:
    engine: Engine = create_engine(f"sqlite:///{tmp_path / 'library.db'}")
    Base.metadata.create_all(engine)
    yield sessionmaker(engine)
    engine.dispose()


def found(id_: str, report: Report, message: str = "it is so") -> Finding:
    return Finding(
        id=id_,
        severity="warning",
        message=message,
        remedy="leave it",
        site=None,
        session_id=report.ledger.id,
        session_name=report.name,
        session_site=report.ledger.opened_site,
    )


@dataclass
class Statements:
    """A detector of an application's own: too many statements in a session."""

    most: int = 2
    facts = (what.StatementExecuted,)

    def memory(self) -> list[str]:
        return []

    def judge(
        self, fact: what.StatementExecuted, report: Report, memory: list[str]
    ) -> Iterator[Finding]:
        memory.append(fact.entity)
        if len(memory) == self.most:
            yield found("too-many-statements", report, ", ".join(memory))


def read(maker: Any, times: int) -> None:
    with maker() as session:
        for _ in range(times):
            session.scalars(select(Author)).all()


def test_an_applications_own_detector_draws_its_findings(maker: Any) -> None:
    drawn: list[Finding] = []
    exporter = Exporter(on_finding=drawn.append)
    with instrument(maker, exporter=exporter, detectors=[*DEFAULT_DETECTORS, Statements()]):
        read(maker, 1)
        assert drawn == []
        read(maker, 3)
    assert [(finding.id, finding.message) for finding in drawn] == [
        ("too-many-statements", "Author, Author")
    ]


def test_its_findings_are_in_every_signal(maker: Any) -> None:
    with capture(maker, detectors=[Statements()]) as told:
        read(maker, 2)
    (finding,) = told.findings
    (summary,) = told.sessions
    (logged,) = [event for event in told.logs if event["event"] == "finding"]
    (counted,) = told.metrics["sqlalchemy.findings"]
    (said,) = [event for span in told.spans for event in span.events]
    assert summary.findings == (finding,)
    assert (logged["finding_id"], logged["level"], logged["explanation"]) == (
        finding.id,
        "warning",
        finding.message,
    )
    assert (counted.value, counted.attributes["sqlalchemy.finding.id"]) == (1, finding.id)
    assert (said.name, dict(said.attributes or {})["sqlalchemy.finding.id"]) == (
        "sqlalchemy.finding",
        finding.id,
    )
    (closed,) = [event for event in told.logs if event["event"] == "session.closed"]
    assert [one["finding_id"] for one in closed["findings"]] == [finding.id]


def test_what_a_detector_takes_back_goes_out_in_its_place(maker: Any) -> None:
    order: list[str] = []
    exporter = Exporter(
        on_finding=lambda finding: order.append(f"finding {finding.id}"),
        on_retraction=lambda retraction: order.append(f"retracted {retraction.finding.id}"),
        on_session=lambda summary: order.append(f"summary with {len(summary.findings)}"),
    )
    with instrument(maker, exporter=exporter, detectors=[Fickle()]):
        read(maker, 1)
    assert order == ["finding a-suspicion", "retracted a-suspicion", "summary with 1"]


def test_the_detectors_that_are_named_are_the_only_ones(maker: Any) -> None:
    with capture(maker, detectors=[]) as told:
        read(maker, 3)
    assert told.findings == []


def test_each_scope_has_a_fresh_memory(maker: Any) -> None:
    session = maker()
    with capture(maker, detectors=[Statements(most=2)]) as told:
        for _ in range(3):
            session.scalars(select(Author)).all()
            session.close()
    assert told.findings == []


def test_two_tracers_of_one_session_share_no_memory(maker: Any) -> None:
    detector = Statements(most=2)
    with (
        capture(maker, detectors=[detector]) as outer,
        capture(maker, detectors=[detector]) as inner,
    ):
        read(maker, 2)
    assert [len(told.findings) for told in (outer, inner)] == [1, 1]


@dataclass
class Asked:
    """Notes what it is asked about."""

    facts: tuple[type[Fact], ...]
    memories: int = 0

    def __post_init__(self) -> None:
        self.about: list[str] = []

    def memory(self) -> None:
        self.memories += 1

    def judge(self, fact: Fact, report: Report, memory: None) -> Iterable[Finding]:
        self.about.append(type(fact).__name__)
        return ()


def test_a_detector_is_asked_only_about_the_facts_it_names(maker: Any) -> None:
    asked = Asked((what.TransactionEnded, what.SessionOpened))
    nobody = Asked(())
    with capture(maker, detectors=[asked, nobody]):
        read(maker, 2)
    assert asked.about == ["SessionOpened", "TransactionEnded"]
    assert nobody.about == []


def test_a_memory_is_made_at_the_first_fact_it_is_for(maker: Any) -> None:
    writes = Asked((what.FlushCompleted,))
    with capture(maker, detectors=[writes]):
        read(maker, 2)
        assert writes.memories == 0
        with maker() as session:
            for number in range(3):
                session.add(Author(name=f"author {number}"))
                session.flush()
    assert (writes.memories, writes.about) == (1, ["FlushCompleted"] * 3)


class AtTheEnd:
    """Concludes something as the session closes."""

    facts = (what.TransactionEnded, what.SessionClosed)

    def memory(self) -> None:
        """Remembers nothing."""

    def judge(self, fact: Fact, report: Report, memory: None) -> Iterator[Finding]:
        yield found(f"at-{type(fact).__name__}", report, report.ledger.outcome or "still open")


def test_a_finding_goes_out_before_the_fact_that_closes_what_it_belongs_to(maker: Any) -> None:
    order: list[str] = []
    exporter = Exporter(
        on_log=lambda event: order.append(f"log {event.get('finding_id', event['event'])}"),
        on_finding=lambda finding: order.append(f"finding {finding.id}"),
        on_session=lambda summary: order.append(f"summary with {len(summary.findings)}"),
        on_fact=lambda fact: order.append(type(fact).__name__),
    )
    with instrument(maker, exporter=exporter, detectors=[AtTheEnd()], log_level="debug"):
        read(maker, 1)
    first = order.index("log at-TransactionEnded")
    assert order[first:] == [
        "log at-TransactionEnded",
        "finding at-TransactionEnded",
        "log transaction.ended",
        "TransactionEnded",
        "log at-SessionClosed",
        "finding at-SessionClosed",
        "SessionClosed",
        "log session.closed",
        "summary with 2",
    ]


def test_a_finding_is_on_the_innermost_span_that_is_open(maker: Any) -> None:
    with capture(maker, detectors=[AtTheEnd()]) as told:
        read(maker, 1)
    events = {
        span.name: [dict(event.attributes or {})["sqlalchemy.finding.id"] for event in span.events]
        for span in told.spans
    }
    assert events == {
        "transaction": ["at-TransactionEnded"],
        "session default": ["at-SessionClosed"],
    }


def test_a_detector_sees_the_record_with_the_fact_in_it(maker: Any) -> None:
    with capture(maker, detectors=[AtTheEnd()]) as told:
        read(maker, 1)
    assert [finding.message for finding in told.findings] == ["still open", "closed"]


# Laws over all detectors.

SITE = CallSite("/srv/shop/views.py", 41, "index")


OWNERS = [
    Owner(threading.main_thread(), None, None, None),
    Owner(threading.Thread(name="export"), None, None, object()),
]
OPEN = LiveSession(
    id="0123456789abcdef", name="default", age_seconds=61.5, opened_site=SITE, owner="a thread"
)


# Their root is a task; the root of the others is a mapped class.
_OF_TASKS = (what.TransactionBegan, what.SessionPassed)


def made(kind: type[Any], rng: random.Random) -> Fact:
    """A fact of that kind with whatever its fields may hold."""
    values: dict[str, Any] = {
        "at": rng.randrange(10**12),
        "site": rng.choice([None, SITE]),
        "loaded_site": rng.choice([None, SITE]),
        "departed_site": rng.choice([None, SITE]),
        "expired_site": rng.choice([None, SITE]),
        "database": what.Database(rng.choice(["", "sqlite", "postgresql"])),
        "ending": rng.choice(["close", "reset", "invalidate", "collected"]),
        "outcome": rng.choice(["committed", "rolled_back", "closed", "failed", "unused"]),
        "trigger": rng.choice(["explicit", "autoflush", "commit", "savepoint"]),
        "departure": rng.choice(["", "close", "expunge", "deleted", "collected"]),
        "load": rng.choice(["relationship", "deferred", "expired", "dynamic"]),
        "kind": rng.choice(["relationship", "deferred", "expired", "refresh", "detached"]),
        "entity": rng.choice(["", "Author"]),
        "attribute": rng.choice(["", "books"]),
        "operation": rng.choice(["", "SELECT", "INSERT", "SAVEPOINT"]),
        "loaded": rng.choice([{}, {"Author": 3}]),
        "detached": rng.choice([{}, {"Author": 3}]),
        "new": rng.choice([{}, {"Author": 3}]),
        "dirty": rng.choice([{}, {"Author": 3}]),
        "deleted": rng.choice([{}, {"Author": 3}]),
        "unchanged": rng.choice([{}, {"Author": 3}]),
        "added": rng.choice([{}, {"Author": 3}]),
        "modified": rng.choice([{}, {"Author": 3}]),
        "removed": rng.choice([{}, {"Author": 3}]),
        "written": rng.choice([{}, {"Author": 3}]),
        "other_written": rng.choice([{}, {"Author": 3}]),
        "unchanged_attributes": rng.choice([(), ("Author.name",)]),
        "added_site": rng.choice([None, SITE]),
        "last_closed_site": rng.choice([None, SITE]),
        "last_ending": rng.choice(["", "close", "reset"]),
        "other_site": rng.choice([None, SITE]),
        "used_site": rng.choice([None, SITE]),
        "other_opened_site": rng.choice([None, SITE]),
        "swallowed": rng.choice([None, SITE]),
        "expired_by": rng.choice(["", "commit", "rollback", "expire"]),
        "owner": rng.choice(OWNERS),
        "root": rng.choice(OWNERS) if kind in _OF_TASKS else "Author",
        "other_owner": rng.choice(OWNERS),
        "other_root": rng.choice(OWNERS),
        "request": rng.choice([0, 1, (2, OWNERS[0])]),
        "other_request": rng.choice([0, 1]),
        "why": rng.choice(["gone", "pending", "merged", "detached"]),
        "counts": rng.choice([{"Author": 1}, {"Author": 3, "Book": 1}]),
        "attributes": rng.choice([("name",), ("name", "country")]),
        "holders": rng.choice([(), (OPEN,)]),
        "look": lambda: OPEN,
        "failed": what.FlushFailed(1, SITE, "commit", 1, "word"),
        "unhandled": rng.choice(["", "left", "used_again"]),
    }
    given: dict[str, Any] = {}
    for field in fields(kind):
        if str(field.type).startswith("bool"):
            given[field.name] = rng.random() < 0.5
        elif field.name in values:
            given[field.name] = values[field.name]
        elif str(field.type).startswith("int"):
            given[field.name] = rng.randrange(3)
        elif str(field.type).startswith("str"):
            given[field.name] = rng.choice(["", "word"])
    fact: Fact = kind(**given)
    return fact


KINDS: list[type[Any]] = list(what.Fact.__args__)


def kinds(detector: Suspecting) -> set[type]:
    return {*detector.facts, *detector.candidates}


def told_by(detector: Detector, of: Iterable[Fact]) -> list[Finding]:
    """What one detector concludes of a scope."""
    return [one for one in reported(detector, *of) if isinstance(one, Finding)]


def name(detector: Detector) -> str:
    return type(detector).__name__


@pytest.mark.parametrize("detector", DEFAULT_DETECTORS, ids=name)
def test_a_detector_is_silent_on_an_empty_scope(detector: Detector) -> None:
    assert told_by(detector, []) == []
    assert (
        told_by(
            detector,
            [
                what.SessionOpened(1, SITE),
                what.SessionClosed(2, SITE, "close", "unused"),
            ],
        )
        == []
    )


@pytest.mark.parametrize("detector", DEFAULT_DETECTORS, ids=name)
def test_a_detector_survives_any_fact_in_any_order(detector: Detector) -> None:
    for seed in range(50):
        rng = random.Random(seed)
        told_by(detector, [made(rng.choice(KINDS), rng) for _ in range(40)])


@pytest.mark.parametrize("detector", DEFAULT_DETECTORS, ids=name)
def test_a_detector_survives_each_fact_alone(detector: Detector) -> None:
    for kind in KINDS:
        for seed in range(20):
            told_by(detector, [made(kind, random.Random(seed))])


@pytest.mark.parametrize("detector", DEFAULT_DETECTORS, ids=name)
def test_a_detector_concludes_the_same_of_the_same_scope_again(detector: Detector) -> None:
    rng = random.Random(7)
    scope = [made(rng.choice(KINDS), rng) for _ in range(200)]
    first, second = told_by(detector, scope), told_by(detector, scope)
    assert Counter(finding.id for finding in first) == Counter(finding.id for finding in second)
    assert first == second


@pytest.mark.parametrize("detector", DEFAULT_DETECTORS, ids=name)
def test_a_detector_names_facts_that_there_are(detector: Suspecting) -> None:
    assert kinds(detector) <= set(KINDS)
    assert kinds(detector)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.__name__))
def test_the_ledger_takes_any_fact_at_any_time(kind: type[Any]) -> None:
    for seed in range(20):
        told_by(Statements(), [made(kind, random.Random(seed))])
