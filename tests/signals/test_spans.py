"""Tests the spans of a session: their tree, what they say, and when they say nothing."""

import gc
import logging
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import SpanLimits
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
)
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.span import TraceState
from opentelemetry.util.types import Attributes
from sqlalchemy import ForeignKey, event, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.orm.exc import DetachedInstanceError

from session_tracer import instrument
from session_tracer.exporter import Exporter, LogEvent
from session_tracer.facts import FlushCompleted
from session_tracer.ledger.report import Report
from session_tracer.model.findings import Finding
from session_tracer.testing import capture
from tests.fickle import Fickle
from tests.library import Author, Book, authors
from tests.signals.telling import Traces, began, context, ended, left_by, of_database, told, tree
from tests.twins import Twin, on_each_database, on_postgresql

SITE = {
    "code.function.name": "story",
    "code.file.path": "test_spans.py",
    "code.line.number": "<line>",
}
UNSET = ("UNSET", None)
FAILED = ("ERROR", None)


@pytest.fixture(autouse=True, params=["live", "recorded"])
def _road(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs with live spans and with spans that are built when they end."""
    monkeypatch.setattr(Traces, "records", request.param == "recorded")


def test_spans_form_a_tree_below_the_caller(twin: Twin) -> None:
    async def story() -> None:
        with traces.of(twin, name="library"), traces.caller():
            async with twin.session() as session:
                session.add_all(authors(1))
                await session.flush()
                async with session.begin_nested():
                    session.add_all([Author(name="within")])
                    await session.flush()
                    async with session.begin_nested():
                        session.add_all([Author(name="deeper")])
                session.add_all([Author(name="last")])
                await session.commit()
                await session.scalars(select(Author))

    traces = Traces()
    twin.run(story)
    assert traces.tree() == [
        "caller",
        "  session library",
        "    transaction",
        "      flush",
        "      savepoint",
        "        flush",
        "        savepoint",
        "          flush",
        "      flush",
        "    transaction",
    ]


def test_a_session_without_a_caller_begins_a_trace(twin: Twin) -> None:
    async def story() -> None:
        with traces.of(twin):
            for _ in range(2):
                async with twin.session() as session:
                    await session.scalars(select(Author))

    traces = Traces()
    twin.run(story)
    assert traces.tree() == ["session default", "  transaction"] * 2
    first, second = [span for span in traces.spans if span.name == "session default"]
    assert first.parent is None
    assert second.parent is None
    assert context(first).trace_id != context(second).trace_id


def test_a_span_begins_and_ends_within_its_parent(twin: Twin) -> None:
    async def story() -> None:
        with traces.of(twin, statement_spans=True), traces.caller():
            async with twin.session() as session:
                async with session.begin_nested():
                    session.add_all(authors(2, books_each=1))
                await session.commit()

    traces = Traces()
    twin.run(story)
    by_id = {context(span).span_id: span for span in traces.spans}
    for span in traces.spans:
        assert began(span) <= ended(span)
        if span.parent is not None:
            parent = by_id[span.parent.span_id]
            assert began(parent) <= began(span)
            assert ended(span) <= ended(parent)
    for flush in (span for span in traces.spans if span.name == "flush"):
        statements = [one for one in traces.spans if one.parent == context(flush)]
        assert statements
        assert all(ended(one) <= began(next_) for one, next_ in pairwise(statements))


@on_each_database
def test_what_the_spans_of_a_commit_say(twin: Twin) -> None:
    async def story() -> None:
        with traces.of(twin, name="library"):
            async with twin.session() as session:
                session.add_all(authors(2, books_each=2))
                await session.commit()

    traces = Traces()
    twin.run(story)
    ours = {"sqlalchemy.session.id": "<id>", "sqlalchemy.session.name": "library"}
    assert [(span.name, told(span)) for span in traces.spans] == [
        (
            "session library",
            {
                "kind": "INTERNAL",
                "status": UNSET,
                "attributes": {
                    **ours,
                    "sqlalchemy.session.async": twin.is_async,
                    "sqlalchemy.session.outcome": "committed",
                    # SQLite returns the new keys of one row at a time only.
                    "sqlalchemy.statements": 6 if twin.database == "sqlite" else 2,
                    "sqlalchemy.statement.duration": "<seconds>",
                    "sqlalchemy.connection.held": "<seconds>",
                    "sqlalchemy.identity_map.size": 0,
                    "sqlalchemy.identity_map.peak": 6,
                    **of_database(twin),
                    **SITE,
                },
                "events": [],
            },
        ),
        (
            "transaction",
            {
                "kind": "INTERNAL",
                "status": UNSET,
                "attributes": {
                    **ours,
                    "sqlalchemy.transaction.nested": False,
                    "sqlalchemy.transaction.outcome": "committed",
                    **of_database(twin),
                    **SITE,
                },
                "events": [],
            },
        ),
        (
            "flush",
            {
                "kind": "INTERNAL",
                "status": UNSET,
                "attributes": {
                    **ours,
                    "sqlalchemy.flush.trigger": "commit",
                    "sqlalchemy.flush.new": 6,
                    "sqlalchemy.flush.dirty": 0,
                    "sqlalchemy.flush.deleted": 0,
                    "sqlalchemy.flush.unchanged": 0,
                    **of_database(twin),
                    **SITE,
                },
                "events": [],
            },
        ),
    ]


def test_what_the_span_of_a_savepoint_says(twin: Twin) -> None:
    async def story() -> None:
        with traces.of(twin):
            async with twin.session() as session:
                await session.scalars(select(Author))
                savepoint = session.begin_nested()
                async with savepoint:
                    session.add_all(authors(1))
                    await session.flush()
                    await savepoint.rollback()
                await session.commit()

    traces = Traces()
    twin.run(story)
    assert told(traces.named("savepoint")) == {
        "kind": "INTERNAL",
        "status": UNSET,
        "attributes": {
            "sqlalchemy.session.id": "<id>",
            "sqlalchemy.session.name": "default",
            "sqlalchemy.transaction.nested": True,
            "sqlalchemy.transaction.outcome": "rolled_back",
            **of_database(twin),
            **SITE,
        },
        "events": [],
    }
    assert outcomes(traces) == {
        "session default": "committed",
        "transaction": "committed",
        "savepoint": "rolled_back",
    }


def test_a_flush_span_counts_what_was_changed_deleted_and_left_as_it_was(twin: Twin) -> None:
    async def story() -> None:
        async with twin.session() as session:
            session.add_all(authors(1, books_each=4))
            await session.commit()
        with traces.of(twin):
            async with twin.session() as session:
                books = (await session.scalars(select(Book).order_by(Book.id))).all()
                books[0].title = "another"
                books[1].title = "yet another"
                books[2].title = str(books[2].title)
                await session.delete(books[3])
                await session.scalars(select(Author))
                await session.rollback()

    traces = Traces()
    twin.run(story)
    assert told(traces.named("flush")) == {
        "kind": "INTERNAL",
        "status": UNSET,
        "attributes": {
            "sqlalchemy.session.id": "<id>",
            "sqlalchemy.session.name": "default",
            "sqlalchemy.flush.trigger": "autoflush",
            "sqlalchemy.flush.new": 0,
            "sqlalchemy.flush.dirty": 2,
            "sqlalchemy.flush.deleted": 1,
            "sqlalchemy.flush.unchanged": 1,
            **of_database(twin),
            **SITE,
        },
        "events": [],
    }


def test_the_spans_of_one_scope_share_its_id_and_the_next_scope_has_another(twin: Twin) -> None:
    async def story() -> None:
        with traces.of(twin):
            session = twin.session()
            for name in ("first", "second"):
                session.add_all([Author(name=name)])
                await session.commit()
                await session.close()

    traces = Traces()
    twin.run(story)
    ids = [dict(span.attributes or {})["sqlalchemy.session.id"] for span in traces.spans]
    assert traces.tree() == ["session default", "  transaction", "    flush"] * 2
    assert [ids.index(one) for one in ids] == [0, 0, 0, 3, 3, 3]


@on_each_database
def test_a_failed_flush_is_an_error(twin: Twin) -> None:
    async def story() -> None:
        with traces.of(twin, detectors=()), left_by(IntegrityError):
            async with twin.session() as session:
                session.add_all([Author(name="one"), Author(name="one")])
                await session.flush()

    traces = Traces()
    twin.run(story)
    error = "sqlalchemy.exc.IntegrityError"
    exception = ("exception", {"exception.type": error})
    assert traces.tree() == ["session default", "  transaction", "    flush"]
    session, transaction, flush = map(told, traces.spans)
    assert flush == {
        "kind": "INTERNAL",
        "status": FAILED,
        "attributes": {
            "sqlalchemy.session.id": "<id>",
            "sqlalchemy.session.name": "default",
            "sqlalchemy.flush.trigger": "explicit",
            "sqlalchemy.flush.new": 2,
            "sqlalchemy.flush.dirty": 0,
            "sqlalchemy.flush.deleted": 0,
            "error.type": error,
            **of_database(twin),
            **SITE,
        },
        "events": [exception],
    }
    assert transaction["status"] == UNSET
    assert transaction["attributes"]["sqlalchemy.transaction.outcome"] == "rolled_back"
    assert transaction["events"] == []
    assert session["status"] == FAILED
    assert session["attributes"]["sqlalchemy.session.outcome"] == "failed"
    assert session["attributes"]["error.type"] == error
    assert session["events"] == [exception]


def test_a_failed_flush_that_was_dealt_with_fails_no_session(twin: Twin) -> None:
    async def story() -> None:
        with traces.of(twin):
            async with twin.session() as session:
                session.add_all([Author(name="one"), Author(name="one")])
                with pytest.raises(IntegrityError):
                    await session.flush()
                await session.rollback()

    traces = Traces()
    twin.run(story)
    assert [(span.name, told(span)["status"]) for span in traces.spans] == [
        ("session default", UNSET),
        ("transaction", UNSET),
        ("flush", FAILED),
    ]
    assert outcomes(traces) == {"session default": "rolled_back", "transaction": "rolled_back"}


@on_each_database
def test_a_flush_that_fails_in_a_savepoint_rolls_back_the_savepoint_alone(twin: Twin) -> None:
    async def story() -> None:
        with traces.of(twin):
            async with twin.session() as session:
                session.add_all(authors(1))
                await session.flush()
                with left_by(IntegrityError):
                    async with session.begin_nested():
                        session.add_all(authors(1))
                        await session.flush()
                await session.commit()

    traces = Traces()
    twin.run(story)
    assert [(span.name, told(span)["status"]) for span in traces.spans] == [
        ("session default", UNSET),
        ("transaction", UNSET),
        ("flush", UNSET),
        ("savepoint", UNSET),
        ("flush", FAILED),
    ]
    assert outcomes(traces) == {
        "session default": "committed",
        "transaction": "committed",
        "savepoint": "rolled_back",
    }


class Deferred(DeclarativeBase):
    """What only a COMMIT checks."""


class Debt(Deferred):
    """Is owed to somebody who need not be there before the COMMIT."""

    __tablename__ = "debts"

    id: Mapped[int] = mapped_column(primary_key=True)
    to: Mapped[int] = mapped_column(ForeignKey("debts.id", deferrable=True, initially="DEFERRED"))


@on_postgresql
def test_a_failed_commit_is_an_error(twin: Twin) -> None:
    async def story() -> None:
        await twin.execute(Deferred.metadata.create_all)
        try:
            with traces.of(twin):
                async with twin.session() as session:
                    session.add(Debt(id=1, to=2))
                    with pytest.raises(IntegrityError):
                        await session.commit()
                    await session.rollback()
        finally:
            await twin.execute(Deferred.metadata.drop_all)

    traces = Traces()
    twin.run(story)
    error = "sqlalchemy.exc.IntegrityError"
    assert traces.tree() == ["session default", "  transaction", "    flush"]
    session, transaction, flush = map(told, traces.spans)
    assert transaction == {
        "kind": "INTERNAL",
        "status": FAILED,
        "attributes": {
            "sqlalchemy.session.id": "<id>",
            "sqlalchemy.session.name": "default",
            "sqlalchemy.transaction.nested": False,
            "sqlalchemy.transaction.outcome": "rolled_back",
            "error.type": error,
            **of_database(twin),
            **SITE,
        },
        "events": [("exception", {"exception.type": error})],
    }
    assert flush["status"] == UNSET
    assert session["status"] == UNSET


@on_postgresql
def test_a_failed_commit_that_leaves_the_block_fails_the_session(twin: Twin) -> None:
    async def story() -> None:
        await twin.execute(Deferred.metadata.create_all)
        try:
            with traces.of(twin), left_by(IntegrityError):
                async with twin.session() as session:
                    session.add(Debt(id=1, to=2))
                    await session.commit()
        finally:
            await twin.execute(Deferred.metadata.drop_all)

    traces = Traces()
    twin.run(story)
    error = "sqlalchemy.exc.IntegrityError"
    session, transaction, flush = map(told, traces.spans)
    assert (transaction["status"], transaction["attributes"].get("error.type")) == (FAILED, error)
    assert (session["status"], session["attributes"].get("error.type")) == (FAILED, error)
    assert flush["status"] == UNSET


def test_a_scope_that_an_exception_left_is_an_error(twin: Twin) -> None:
    async def story() -> None:
        with traces.of(twin), left_by(LookupError):
            async with twin.session() as session:
                await session.scalars(select(Author))
                raise LookupError("a value: 42")

    traces = Traces()
    twin.run(story)
    session, transaction = map(told, traces.spans)
    assert session == {
        "kind": "INTERNAL",
        "status": FAILED,
        "attributes": {
            "sqlalchemy.session.id": "<id>",
            "sqlalchemy.session.name": "default",
            "sqlalchemy.session.async": twin.is_async,
            "sqlalchemy.session.outcome": "failed",
            "sqlalchemy.statements": 1,
            "sqlalchemy.statement.duration": "<seconds>",
            "sqlalchemy.connection.held": "<seconds>",
            "sqlalchemy.identity_map.size": 0,
            "sqlalchemy.identity_map.peak": 0,
            "error.type": "LookupError",
            **of_database(twin),
            **SITE,
        },
        "events": [("exception", {"exception.type": "LookupError"})],
    }
    assert transaction["status"] == UNSET
    assert transaction["attributes"]["sqlalchemy.transaction.outcome"] == "closed"


def test_a_scope_that_ends_well_within_an_exceptions_handling_is_none(twin: Twin) -> None:
    async def story() -> None:
        with traces.of(twin):
            try:
                raise LookupError
            except LookupError:
                async with twin.session() as session:
                    await session.scalars(select(Author))

    traces = Traces()
    twin.run(story)
    assert [told(span)["status"] for span in traces.spans] == [UNSET, UNSET]
    assert outcomes(traces) == {"session default": "closed", "transaction": "closed"}


def test_a_scope_that_is_collected_while_open_is_an_error(twin: Twin) -> None:
    async def story() -> None:
        with traces.of(twin, detectors=()):
            session = twin.session()
            # It holds no connection: losing one is for SQLAlchemy to warn of.
            session.sync_session.begin()
            del session
            gc.collect()

    traces = Traces()
    twin.run(story)
    assert [(span.name, told(span)) for span in traces.spans] == [
        (
            "session default",
            {
                "kind": "INTERNAL",
                "status": FAILED,
                "attributes": {
                    "sqlalchemy.session.id": "<id>",
                    "sqlalchemy.session.name": "default",
                    "sqlalchemy.session.async": twin.is_async,
                    "sqlalchemy.session.outcome": "abandoned",
                    "sqlalchemy.statements": 0,
                    "sqlalchemy.statement.duration": "<seconds>",
                    "sqlalchemy.connection.held": "<seconds>",
                    "sqlalchemy.identity_map.size": 0,
                    "sqlalchemy.identity_map.peak": 0,
                    "error.type": "abandoned",
                    **SITE,
                },
                "events": [("exception", {"exception.type": "abandoned"})],
            },
        ),
        (
            "transaction",
            {
                "kind": "INTERNAL",
                "status": UNSET,
                "attributes": {
                    "sqlalchemy.session.id": "<id>",
                    "sqlalchemy.session.name": "default",
                    "sqlalchemy.transaction.nested": False,
                    "sqlalchemy.transaction.outcome": "abandoned",
                    **SITE,
                },
                "events": [],
            },
        ),
    ]


class Remark:
    """A detector with a word for every flush."""

    facts = (FlushCompleted,)

    def memory(self) -> None:
        """It remembers nothing."""

    def judge(self, fact: FlushCompleted, report: Report, memory: None) -> Iterator[Finding]:
        """A finding of everything there is to find."""
        yield Finding(
            id="a-remark",
            severity="warning",
            message="Author.name was written.",
            remedy="Leave it.",
            site=fact.site,
            session_id=report.ledger.id,
            session_name=report.name,
            session_site=report.ledger.opened_site,
            entity="Author",
            attribute="name",
            count=3,
            evidence={"new": 1},
        )


def test_a_finding_is_an_event_of_the_innermost_open_span(twin: Twin) -> None:
    async def story() -> None:
        with traces.of(twin, detectors=(Remark(),)):
            async with twin.session() as session:
                session.add_all(authors(1))
                await session.commit()

    traces = Traces()
    twin.run(story)
    assert [(span.name, told(span)["events"]) for span in traces.spans] == [
        ("session default", []),
        ("transaction", []),
        (
            "flush",
            [
                (
                    "sqlalchemy.finding",
                    {
                        "sqlalchemy.finding.id": "a-remark",
                        "sqlalchemy.finding.severity": "warning",
                        "sqlalchemy.finding.message": "Author.name was written.",
                        "sqlalchemy.finding.remedy": "Leave it.",
                        "sqlalchemy.entity": "Author",
                        "sqlalchemy.attribute": "name",
                        **SITE,
                    },
                )
            ],
        ),
    ]
    flush = traces.named("flush")
    assert flush.status.status_code.name == "UNSET"
    assert began(flush) <= flush.events[0].timestamp


def test_a_retraction_is_an_event_of_the_innermost_open_span(twin: Twin) -> None:
    async def story() -> None:
        with traces.of(twin, detectors=(Fickle(),)):
            async with twin.session() as session:
                await session.scalars(select(Author))

    traces = Traces()
    twin.run(story)
    assert [(span.name, told(span)["events"][-1:]) for span in traces.spans] == [
        ("session default", []),
        (
            "transaction",
            [
                (
                    "sqlalchemy.finding.retracted",
                    {
                        "sqlalchemy.finding.id": "a-suspicion",
                        "sqlalchemy.finding.message": "the transaction ended after all",
                    },
                )
            ],
        ),
    ]


def test_a_refused_load_has_a_span_linked_to_the_session_of_the_object(twin: Twin) -> None:
    async def story() -> None:
        with traces.of(twin, name="library"), traces.caller("first"):
            async with twin.session() as session:
                session.add_all(authors(1, books_each=1))
                await session.commit()
                author = (await session.scalars(select(Author))).one()
            with traces.caller("second"), pytest.raises(DetachedInstanceError):
                author.books  # noqa: B018 - reading it is the point

    traces = Traces()
    twin.run(story)
    origin, refused = traces.named("session library"), traces.named("detached_load")
    assert refused.parent == context(traces.named("second"))
    assert [(link.context, dict(link.attributes or {})) for link in refused.links] == [
        (context(origin), {})
    ]
    origin_id = (origin.attributes or {})["sqlalchemy.session.id"]
    assert (refused.attributes or {})["sqlalchemy.session.id"] == origin_id
    said = told(refused)
    finding, exception = said.pop("events")
    assert said == {
        "kind": "INTERNAL",
        "status": FAILED,
        "attributes": {
            "sqlalchemy.session.id": "<id>",
            "sqlalchemy.session.name": "library",
            "sqlalchemy.session.async": twin.is_async,
            "sqlalchemy.entity": "Author",
            "sqlalchemy.attribute": "books",
            "error.type": "sqlalchemy.orm.exc.DetachedInstanceError",
            **SITE,
        },
    }
    assert exception == (
        "exception",
        {"exception.type": "sqlalchemy.orm.exc.DetachedInstanceError"},
    )
    message = finding[1].pop("sqlalchemy.finding.message")
    remedy = finding[1].pop("sqlalchemy.finding.remedy")
    assert re.fullmatch(
        "Author.books was read (less than 1 ms|[0-9.]+ m?s) after its session was closed", message
    )
    assert re.fullmatch(
        r"select\(Author\)\.options\(selectinload\(Author\.books\)\) "
        r"at .*test_spans\.py:\d+ in story\(\)",
        remedy,
    )
    assert finding == (
        "sqlalchemy.finding",
        {
            "sqlalchemy.finding.id": "detached-lazy-load",
            "sqlalchemy.finding.severity": "error",
            "sqlalchemy.entity": "Author",
            "sqlalchemy.attribute": "books",
            **SITE,
        },
    )
    assert traces.tree() == [
        "first",
        "  session library",
        "    transaction",
        "      flush",
        "    transaction",
        "  second",
        "    detached_load",
    ]


def test_a_session_belongs_to_the_span_it_was_opened_under(twin: Twin) -> None:
    async def story() -> None:
        with traces.of(twin), traces.caller("request"):
            with traces.caller("opening"):
                session = twin.session()
            with traces.caller("using"):
                await session.scalars(select(Author))
            await session.close()

    traces = Traces()
    twin.run(story)
    assert traces.tree() == [
        "request",
        "  opening",
        "    session default",
        "      transaction",
        "  using",
    ]
    opened = began(traces.named("session default"))
    assert began(traces.named("opening")) <= opened <= ended(traces.named("opening"))


def test_a_session_that_is_never_used_has_no_span(twin: Twin) -> None:
    async def story() -> None:
        with traces.of(twin), traces.caller():
            async with twin.session():
                pass
            async with twin.session() as session:
                session.expunge_all()

    traces = Traces()
    twin.run(story)
    assert traces.tree() == ["caller"]


def test_an_object_added_begins_a_transaction_that_has_a_span(twin: Twin) -> None:
    async def story() -> None:
        with traces.of(twin), traces.caller():
            async with twin.session() as session:
                session.add_all(authors(1))

    traces = Traces()
    twin.run(story)
    assert traces.tree() == ["caller", "  session default", "    transaction"]


def test_uninstrumenting_ends_the_open_spans_with_what_is_known_of_them(
    twin: Twin,
) -> None:
    async def story() -> None:
        async with twin.session() as session:
            with traces.of(twin):
                await session.scalars(select(Author))
            await session.scalars(select(Author))

    traces = Traces()
    twin.run(story)
    assert traces.tree() == ["session default", "  transaction"]
    ours = {"sqlalchemy.session.id": "<id>", "sqlalchemy.session.name": "default"}
    assert [(told(span)["status"], told(span)["attributes"]) for span in traces.spans] == [
        (
            UNSET,
            {**ours, "sqlalchemy.session.async": twin.is_async, **of_database(twin), **SITE},
        ),
        (
            UNSET,
            {**ours, "sqlalchemy.transaction.nested": False, **of_database(twin), **SITE},
        ),
    ]


class Without(Sampler):
    """Takes every span but those of one name."""

    def __init__(self, left_out: str) -> None:
        self._left_out = left_out

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        if name == self._left_out:
            return SamplingResult(Decision.DROP)
        return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes)

    def get_description(self) -> str:
        return "Without"


def test_after_a_flush_that_is_not_sampled_all_is_as_before_it(twin: Twin) -> None:
    async def story() -> None:
        with instrument(twin.factory, exporter=exporter, log_level="debug"):
            async with twin.session() as session:
                session.add_all(authors(1))
                await session.flush()
                current.clear()
                await session.scalars(select(Author))
                event.remove(engine, "before_cursor_execute", note)
                await session.commit()

    def note(*_: Any) -> None:
        current.append(f"{trace.get_current_span().get_span_context().span_id:016x}")

    current: list[str] = []
    engine = twin.engine.sync_engine if isinstance(twin.engine, AsyncEngine) else twin.engine
    event.listen(engine, "before_cursor_execute", note)
    said: list[LogEvent] = []
    traces = Traces(sampler=Without("flush"))
    exporter = Exporter(tracer_provider=traces.provider, on_log=said.append)
    twin.run(story)
    session, transaction = (f"{context(span).span_id:016x}" for span in traces.spans)
    assert traces.tree() == ["session default", "  transaction"]
    assert current == [transaction]
    assert [(event["event"], event.get("span_id")) for event in said] == [
        ("session.opened", None),
        ("flush.completed", None),
        ("transaction.ended", transaction),
        ("session.closed", session),
    ]


class Asked(Sampler):
    """Takes no span, and keeps what it was asked about."""

    def __init__(self) -> None:
        self.about: list[tuple[str, dict[str, Any]]] = []

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        self.about.append((name, dict(attributes or {})))
        return SamplingResult(Decision.DROP)

    def get_description(self) -> str:
        return "Asked"


def test_a_session_that_is_not_sampled_asks_for_nothing_more(twin: Twin) -> None:
    async def story() -> None:
        with traces.of(twin):
            async with twin.session() as session:
                async with session.begin_nested():
                    session.add_all(authors(1))
                await session.commit()

    sampler = Asked()
    traces = Traces(sampler=sampler)
    twin.run(story)
    assert sampler.about == [
        (
            "session default",
            {"sqlalchemy.session.name": "default", "sqlalchemy.session.async": twin.is_async},
        ),
    ]
    assert traces.tree() == []


def test_an_unsampled_trace_exports_nothing_and_changes_nothing(twin: Twin) -> None:
    async def story() -> None:
        with traces.of(twin, statement_spans=True, detectors=(Remark(),)):
            async with twin.session() as session:
                session.add_all(authors(1, books_each=1))
                await session.commit()
                found = (await session.scalars(select(Author))).one()
            with pytest.raises(DetachedInstanceError):
                found.books  # noqa: B018 - reading it is the point

    traces = Traces(sampler=ALWAYS_OFF)
    twin.run(story)
    assert traces.spans == []


def test_a_session_in_an_unsampled_trace_is_not_sampled(twin: Twin) -> None:
    async def story() -> None:
        parent = NonRecordingSpan(SpanContext(7, 11, is_remote=True, trace_flags=TraceFlags(0)))
        with traces.of(twin), trace.use_span(parent):
            async with twin.session() as session:
                session.add_all(authors(1))
                await session.commit()

    traces = Traces()
    assert isinstance(traces.provider.sampler, ParentBased)
    twin.run(story)
    assert traces.spans == []


@pytest.mark.parametrize("flags", [1, 3], ids=["sampled", "sampled and random"])
def test_a_remote_parent_is_the_parent(twin: Twin, flags: int) -> None:
    async def story() -> None:
        with traces.of(twin), trace.use_span(NonRecordingSpan(remote)):
            async with twin.session() as session:
                session.add_all(authors(1))
                await session.commit()

    state = TraceState([("vendor", "value")])
    remote = SpanContext(
        0x5B8AA5A2D2C872E8321CF37308D69DF2,
        0x051581BF3CB55C13,
        is_remote=True,
        trace_flags=TraceFlags(flags),
        trace_state=state,
    )
    traces = Traces()
    twin.run(story)
    session, transaction, flush = traces.spans
    assert session.parent == remote
    assert transaction.parent == context(session)
    assert flush.parent == context(transaction)
    for span in traces.spans:
        assert context(span).trace_id == remote.trace_id
        assert context(span).trace_state == state
        assert context(span).trace_flags.sampled


def test_without_a_provider_nothing_is_told_and_nothing_changes(
    twin: Twin, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        with instrument(twin.factory, exporter=Exporter(), statement_spans=True):
            async with twin.session() as session:
                session.add_all(authors(2, books_each=1))
                await session.commit()
                assert trace.get_current_span() is trace.INVALID_SPAN
                found = (await session.scalars(select(Author))).all()
                assert sorted(author.name for author in found) == ["author 0", "author 1"]

    with caplog.at_level(logging.DEBUG, "session_tracer"):
        twin.run(story)
    assert caplog.records == []


def test_span_limits_cut_what_is_told_and_nothing_else(twin: Twin) -> None:
    async def story() -> None:
        with traces.of(twin, detectors=(Remark(),)):
            async with twin.session() as session:
                session.add_all(authors(1))
                await session.commit()

    limits = SpanLimits(
        max_span_attributes=3, max_events=0, max_links=0, max_span_attribute_length=5
    )
    traces = Traces(span_limits=limits)
    twin.run(story)
    assert traces.tree() == ["session default", "  transaction", "    flush"]
    for span in traces.spans:
        assert len(span.attributes or {}) == 3
        assert span.dropped_attributes > 0
        assert all(
            len(one) <= 5 for one in (span.attributes or {}).values() if isinstance(one, str)
        )
    assert [len(span.events) for span in traces.spans] == [0, 0, 0]
    assert [span.dropped_events for span in traces.spans] == [0, 0, 1]


def test_a_capture_besides_leaves_the_applications_spans_as_they_are(twin: Twin) -> None:
    async def story() -> None:
        with traces.of(twin), traces.caller(), capture(twin.factory) as captured:
            async with twin.session() as session:
                session.add_all(authors(1))
                await session.commit()
        assert tree(captured.spans) == ["session default", "  transaction", "    flush"]

    traces = Traces()
    twin.run(story)
    assert traces.tree() == ["caller", "  session default", "    transaction", "      flush"]


def outcomes(traces: Traces) -> dict[str, Any]:
    """The outcome each span tells of, by the span's name."""
    said: dict[str, Any] = {}
    for span in traces.spans:
        for key, value in (span.attributes or {}).items():
            if key in ("sqlalchemy.session.outcome", "sqlalchemy.transaction.outcome"):
                said[span.name] = value
    return said
