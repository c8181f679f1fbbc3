"""Tests the log events: what they say, at which level, and that structlog is left as it was."""

import gc
import io
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm.exc import DetachedInstanceError
from structlog.testing import LogCapture

from session_tracer import Finding, instrument
from session_tracer.exporter import Exporter, LogEvent
from session_tracer.facts import FlushCompleted
from session_tracer.ledger.report import Report
from session_tracer.signals.logs import timestamp
from session_tracer.testing import capture
from session_tracer.where.callsite import CallSite
from tests.fickle import Fickle
from tests.library import Author, Book, authors
from tests.signals.telling import Measurements, Traces, context, left_by
from tests.twins import Twin, on_each_database


@pytest.fixture(autouse=True)
def _structlog_stays_unconfigured() -> Iterator[None]:
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


def masked(event: LogEvent) -> LogEvent:
    """The event, where what differs from run to run is right but left out."""
    assert (event["process_pid"], event["host"]) == (os.getpid(), os.uname().nodename)
    assert event.get("thread") == "MainThread" or re.fullmatch(r"Task-\d+", event["task"])
    same = ("process_pid", "host", "thread", "task")
    rest = {key: value for key, value in event.items() if key not in same}
    return {key: _mask(key, value) for key, value in rest.items()}


def _mask(key: str, value: Any) -> Any:
    for name, pattern in _PATTERNS.items():
        if key == name and re.fullmatch(pattern, value):
            return f"<{name}>"
    if (key.endswith("_ms") or key == "departed_ago_ms") and 0 <= value < 60_000:
        return "<ms>"
    if isinstance(value, str):
        return re.sub(r"[^ ]*test_logs\.py:\d+ in (\w+)", r"test_logs.py in \1", value)
    return value


_PATTERNS = {
    "timestamp": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00",
    "session_id": "[0-9a-f]{16}",
    "trace_id": "[0-9a-f]{32}",
    "span_id": "[0-9a-f]{16}",
    "explanation": r"Author\.books was read (less than 1 ms|[\d.]+ m?s) "
    "after its session was closed",
}

HERE = "test_logs.py in story()"
FIRST = {
    "timestamp": "<timestamp>",
    "logger": "session_tracer",
    "session_id": "<session_id>",
    "session_name": "library",
}
TRACED = {"trace_id": "<trace_id>", "span_id": "<span_id>"}


@on_each_database
def test_what_the_events_of_a_session_say(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory, name="library") as captured:
            async with twin.session() as session:
                session.add_all(authors(1, books_each=2))
                await session.commit()
                author = (await session.scalars(select(Author))).one()
                async with session.begin_nested():
                    author.name = "another"
                await session.commit()
        assert [masked(event) for event in captured.logs] == [
            {
                **FIRST,
                "level": "debug",
                "event": "session.opened",
                **({"async": True} if twin.is_async else {}),
                "site": HERE,
            },
            {
                **FIRST,
                **TRACED,
                "level": "debug",
                "event": "flush.completed",
                "trigger": "commit",
                "duration_ms": "<ms>",
                "new": 3,
                "new_by_entity": captured.logs[1]["new_by_entity"],
                "site": HERE,
            },
            {
                **FIRST,
                **TRACED,
                "level": "debug",
                "event": "transaction.ended",
                "outcome": "committed",
                "duration_ms": "<ms>",
                "site": HERE,
            },
            {
                **FIRST,
                **TRACED,
                "level": "debug",
                "event": "flush.completed",
                "trigger": "savepoint",
                "duration_ms": "<ms>",
                "dirty": 1,
                "dirty_by_entity": "Author=1",
                "site": HERE,
            },
            {
                **FIRST,
                **TRACED,
                "level": "debug",
                "event": "transaction.ended",
                "outcome": "committed",
                "nested": True,
                "duration_ms": "<ms>",
                "site": HERE,
            },
            {
                **FIRST,
                **TRACED,
                "level": "debug",
                "event": "transaction.ended",
                "outcome": "committed",
                "duration_ms": "<ms>",
                "site": HERE,
            },
            {
                **FIRST,
                **TRACED,
                "level": "info",
                "event": "session.closed",
                "outcome": "committed",
                "ending": "close",
                **({"async": True} if twin.is_async else {}),
                "duration_ms": "<ms>",
                "held_ms": "<ms>",
                "sql_ms": "<ms>",
                "statements": 7 if twin.database == "sqlite" else 6,
                "transactions": 2,
                "savepoints": 1,
                "commits": 2,
                "flushes": 2,
                "loaded": 1,
                "loaded_by_entity": "Author=1",
                "new": 3,
                "new_by_entity": captured.logs[1]["new_by_entity"],
                "dirty": 1,
                "dirty_by_entity": "Author=1",
                "transitions": captured.logs[6]["transitions"],
                "transitions_by_event": captured.logs[6]["transitions_by_event"],
                "identity_map_size": 1,
                "identity_map_peak": 3,
                "session_site": HERE,
                "site": HERE,
                "db_system": twin.database,
                "db_namespace": twin.url.database,
            },
        ]
        assert sorted(captured.logs[1]["new_by_entity"].split()) == ["Author=1", "Book=2"]

    twin.run(story)


@on_each_database
def test_a_failed_flush_is_a_warning_that_names_the_constraint(twin: Twin) -> None:
    async def story() -> None:
        with (
            capture(twin.factory, name="library", log_level="info", detectors=()) as captured,
            left_by(IntegrityError),
        ):
            async with twin.session() as session:
                session.add_all(authors(1, books_each=1))
                await session.flush()
                session.add_all([Book(title="a secret", copies=-1, author_id=1)])
                await session.flush()
        failed, closed = captured.logs
        expected = {
            **FIRST,
            **TRACED,
            "level": "warning",
            "event": "flush.failed",
            "trigger": "explicit",
            "duration_ms": "<ms>",
            "error_type": "sqlalchemy.exc.IntegrityError",
            "new": 1,
            "new_by_entity": "Book=1",
            "site": HERE,
        }
        if twin.database == "postgresql":
            expected["constraint"] = "copies_are_not_negative"
        assert masked(failed) == expected
        assert "secret" not in str(captured.logs)
        assert [closed[key] for key in ("event", "level", "outcome", "error_type")] == [
            "session.closed",
            "info",
            "failed",
            "sqlalchemy.exc.IntegrityError",
        ]

    twin.run(story)


def test_a_finding_is_logged_with_its_remedy(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory, name="library", log_level="warning") as captured:
            async with twin.session() as session:
                session.add_all(authors(1, books_each=1))
                await session.commit()
                author = (await session.scalars(select(Author))).one()
            with pytest.raises(DetachedInstanceError):
                author.books  # noqa: B018 - reading it is the point
        (said,) = captured.logs
        assert masked(said) == {
            **FIRST,
            **TRACED,
            "level": "error",
            "event": "finding",
            "finding_id": "detached-lazy-load",
            "severity": "error",
            "suppressed": 0,
            "explanation": "<explanation>",
            "remedy": f"select(Author).options(selectinload(Author.books)) at {HERE}",
            "site": HERE,
            "session_site": HERE,
            "entity": "Author",
            "attribute": "books",
            "count": 1,
            "why": "the relationship was never loaded",
            "departure": "close",
            "departed_ago_ms": "<ms>",
            "loaded_at": HERE,
            "opened_at": HERE,
            "departed_at": HERE,
            "help": "session-tracer findings detached-lazy-load",
        }
        (span,) = [span for span in captured.spans if span.name == "detached_load"]
        assert said["span_id"] == f"{context(span).span_id:016x}"

    twin.run(story)


class Remark:
    """A detector with a word for every flush: one that is as bad as it is told to be."""

    facts = (FlushCompleted,)

    def __init__(self, severity: Any = "warning", **evidence: Any) -> None:
        self._severity = severity
        self._evidence = evidence

    def memory(self) -> None:
        """It remembers nothing."""

    def judge(self, fact: FlushCompleted, report: Report, memory: None) -> Iterator[Finding]:
        """A finding."""
        yield finding(
            fact.site, severity=self._severity, session_id=report.ledger.id, evidence=self._evidence
        )


def finding(site: CallSite | None, **options: Any) -> Finding:
    """A remark about a line."""
    said: dict[str, Any] = {
        "id": "a-remark",
        "severity": "warning",
        "message": "Something was written.",
        "remedy": "Leave it.",
        "site": site,
        "session_id": "1",
        "session_name": "library",
        "session_site": None,
    }
    return Finding(**{**said, **options})


@pytest.mark.parametrize("severity", ["info", "warning", "error"])
def test_a_finding_is_logged_at_its_severity(twin: Twin, severity: str) -> None:
    async def story() -> None:
        with capture(twin.factory, log_level="info", detectors=(Remark(severity),)) as captured:
            async with twin.session() as session:
                session.add_all(authors(1))
                await session.flush()
                await session.rollback()
        assert [(event["event"], event["level"]) for event in captured.logs] == [
            ("finding", severity),
            ("session.closed", "info"),
        ]
        assert [one["finding_id"] for one in captured.logs[1]["findings"]] == ["a-remark"]

    twin.run(story)


def closing(captured: Any) -> list[tuple[str, str]]:
    """The level and the outcome of each closed session."""
    return [
        (event["level"], event["outcome"])
        for event in captured.logs
        if event["event"] == "session.closed"
    ]


def test_a_closed_session_is_worth_telling_when_it_did_something(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory, slow_session_seconds=60) as captured:
            async with twin.session():
                pass
            async with twin.session() as session:
                await session.scalars(select(Author))
            async with twin.session() as session:
                session.add_all(authors(1))
                await session.flush()
                await session.rollback()
            with left_by(LookupError):
                async with twin.session() as session:
                    await session.scalars(select(Author))
                    raise LookupError
            session = twin.session()
            session.sync_session.begin()
            del session
            gc.collect()
        assert closing(captured) == [
            ("debug", "unused"),
            ("debug", "closed"),
            ("info", "rolled_back"),
            ("info", "failed"),
            ("info", "abandoned"),
        ]

    twin.run(story)


def test_a_session_that_was_slow_is_worth_telling(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory, slow_session_seconds=0.01) as captured:
            async with twin.session() as session:
                await session.scalars(select(Author))
                time.sleep(0.02)
        assert closing(captured) == [("info", "closed")]

    twin.run(story)


def test_an_exporter_gets_the_levels_it_asks_for(twin: Twin) -> None:
    async def story() -> None:
        for level in ("debug", "info", "warning", "error"):
            with capture(twin.factory, log_level=level, detectors=(Remark("warning"),)) as captured:
                async with twin.session() as session:
                    session.add_all(authors(1))
                    await session.flush()
                    await session.rollback()
            said[level] = [event["event"] for event in captured.logs]

    said: dict[str, list[str]] = {}
    twin.run(story)
    assert said == {
        "debug": [
            "session.opened",
            "finding",
            "flush.completed",
            "transaction.ended",
            "session.closed",
        ],
        "info": ["finding", "session.closed"],
        "warning": ["finding"],
        "error": [],
    }


def test_each_event_belongs_to_the_span_it_is_about(twin: Twin) -> None:
    async def story() -> None:
        exporter = Exporter(tracer_provider=traces.provider, on_log=said.append)
        with instrument(twin.factory, exporter=exporter, detectors=(Remark(),), log_level="debug"):
            async with twin.session() as session:
                session.add_all(authors(1))
                await session.commit()
                async with session.begin_nested():
                    pass

    said: list[LogEvent] = []
    traces = Traces()
    twin.run(story)
    spans = {
        (f"{context(span).trace_id:032x}", f"{context(span).span_id:016x}"): span.name
        for span in traces.spans
    }
    assert [
        (event["event"], spans.get((event.get("trace_id", ""), event.get("span_id", "")), "none"))
        for event in said
    ] == [
        ("session.opened", "none"),
        ("finding", "flush"),
        ("flush.completed", "flush"),
        ("transaction.ended", "transaction"),
        ("transaction.ended", "savepoint"),
        ("transaction.ended", "transaction"),
        ("session.closed", "session default"),
    ]


@pytest.mark.parametrize("recording", [False, True], ids=["unsampled", "without a provider"])
def test_where_nothing_is_recorded_no_span_is_named(twin: Twin, recording: bool) -> None:
    async def story() -> None:
        with instrument(twin.factory, exporter=exporter, log_level="debug"):
            async with twin.session() as session:
                session.add_all(authors(1))
                await session.commit()

    said: list[LogEvent] = []
    exporter = Exporter(on_log=said.append)
    if recording:
        exporter = Exporter(tracer_provider=Traces(sampler=ALWAYS_OFF).provider, on_log=said.append)
    twin.run(story)
    assert [event["event"] for event in said] == [
        "session.opened",
        "flush.completed",
        "transaction.ended",
        "session.closed",
    ]
    assert [key for event in said for key in event if key in ("trace_id", "span_id")] == []


def test_an_event_says_when_it_was_logged(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory) as captured:
            async with twin.session():
                pass
        times = [datetime.fromisoformat(event["timestamp"]) for event in captured.logs]
        moments = [began, *times, datetime.now(UTC)]
        assert moments == sorted(moments)

    began = datetime.now(UTC)
    twin.run(story)


def test_a_timestamp_is_in_utc_and_to_the_microsecond() -> None:
    second = 1_767_225_599 * 1_000_000_000
    assert [
        timestamp(second + nanoseconds)
        for nanoseconds in (0, 999, 1_000, 999_999_999, 1_000_000_000, 500_000_000)
    ] == [
        "2025-12-31T23:59:59.000000+00:00",
        "2025-12-31T23:59:59.000000+00:00",
        "2025-12-31T23:59:59.000001+00:00",
        "2025-12-31T23:59:59.999999+00:00",
        "2026-01-01T00:00:00.000000+00:00",
        "2025-12-31T23:59:59.500000+00:00",
    ]


def test_events_are_flat_and_ready_for_json(twin: Twin) -> None:
    async def story() -> None:
        evidence: dict[str, Any] = {
            "lines": ["one", "two"],
            "counts": {"Author": 2, "Book": 1},
            "words": {"first": "a", "second": None},
            "nothing": None,
            "share": 0.5,
        }
        with (
            capture(twin.factory, detectors=(Remark(**evidence),)) as captured,
            left_by(IntegrityError),
        ):
            async with twin.session() as session:
                session.add_all(authors(1, books_each=1))
                await session.commit()
                await session.run_sync(lambda sync: sync.scalars(select(Author)).one().books)
                session.add_all(authors(1))
                await session.flush()
        assert {event["event"] for event in captured.logs} == {
            "session.opened",
            "flush.completed",
            "flush.failed",
            "finding",
            "transaction.ended",
            "session.closed",
        }
        for event in captured.logs:
            assert json.loads(json.dumps(event)) == event
            for key, value in event.items():
                assert re.fullmatch("[a-z][a-z0-9_]*", key)
                listed = value if isinstance(value, list) else [value]
                if (event["event"], key) == ("session.closed", "findings"):
                    listed = [inner for finding in value for inner in finding.values()]
                assert all(isinstance(one, str | bool | int | float) for one in listed)
        (said,) = [event for event in captured.logs if event["event"] == "finding"]
        assert {
            key: said.get(key)
            for key in (
                *("lines", "counts", "counts_by_entity", "words_first", "words_second"),
                *("words", "nothing", "share"),
            )
        } == {
            "lines": ["one", "two"],
            "counts": 3,
            "counts_by_entity": "Author=2 Book=1",
            "words_first": "a",
            "words_second": None,
            "words": None,
            "nothing": None,
            "share": 0.5,
        }

    twin.run(story)


def test_a_loop_of_findings_is_logged_once_and_counted_each_time(twin: Twin) -> None:
    async def story() -> None:
        said: list[LogEvent] = []
        exporter = Exporter(meter_provider=measured.provider, on_log=said.append)
        with instrument(twin.factory, exporter=exporter, log_level="warning"):
            async with twin.session() as session:
                session.add_all(authors(5))
                await session.commit()
                found = (await session.scalars(select(Author))).all()
            for author in found:
                with pytest.raises(DetachedInstanceError):
                    author.books  # noqa: B018 - reading it is the point
            with pytest.raises(DetachedInstanceError):
                found[0].books  # noqa: B018 - another line
        # One for each line at once; then, as tracing ends, what was held back.
        assert [(event["event"], event["suppressed"]) for event in said] == [
            ("finding", 0),
            ("finding", 0),
            ("finding", 3),
        ]
        assert measured.totals("sqlalchemy.findings") == {
            ("default", "detached-lazy-load", "error"): 6
        }

    measured = Measurements()
    twin.run(story)


def test_a_finding_that_is_taken_back_is_logged_as_that(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory, name="library", detectors=(Fickle(),)) as captured:
            async with twin.session() as session:
                await session.scalars(select(Author))
        said = [masked(event) for event in captured.logs if event["event"] == "finding.retracted"]
        assert said == [
            {
                **FIRST,
                **TRACED,
                "level": "info",
                "event": "finding.retracted",
                "finding_id": "a-suspicion",
                "explanation": "the transaction ended after all",
                "site": HERE,
                "session_site": HERE,
                "lasted_ms": "<ms>",
                "written": 2,
                "written_by_entity": "Author=2",
            }
        ]
        order = [event["event"] for event in captured.logs]
        assert order.index("finding.retracted") < order.index("transaction.ended")

    twin.run(story)


def test_a_retraction_is_logged_though_the_finding_was_held_back(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory, detectors=(Fickle(),)) as captured:
            for _ in range(3):
                async with twin.session() as session:
                    await session.scalars(select(Author))
        events = [event["event"] for event in captured.logs]
        # The second and the third finding are one event, which is logged as tracing ends.
        assert (events.count("finding"), events.count("finding.retracted")) == (2, 3)

    twin.run(story)


def test_nobody_hears_of_a_retraction_who_wants_warnings_alone(twin: Twin) -> None:
    async def story() -> None:
        with capture(twin.factory, log_level="warning", detectors=(Fickle(),)) as captured:
            async with twin.session() as session:
                await session.scalars(select(Author))
        assert [event["event"] for event in captured.logs] == ["finding"]
        assert len(captured.retractions) == 1

    twin.run(story)


async def write_and_read(twin: Twin) -> None:
    """One session that writes, and one that does not."""
    async with twin.session() as session:
        session.add_all(authors(1))
        await session.commit()
    async with twin.session() as session:
        await session.scalars(select(Author))


EVENTS = [
    ("debug", "session.opened"),
    ("debug", "flush.completed"),
    ("debug", "transaction.ended"),
    ("info", "session.closed"),
    ("debug", "session.opened"),
    ("debug", "transaction.ended"),
    ("debug", "session.closed"),
]


def test_a_configured_structlog_renders_the_events(
    twin: Twin, capsys: pytest.CaptureFixture[str]
) -> None:
    async def story() -> None:
        with instrument(twin.factory, exporter=Exporter()):
            await write_and_read(twin)

    stream = io.StringIO()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    with structlog.contextvars.bound_contextvars(request="7"):
        twin.run(story)
    said = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(event["level"], event["event"]) for event in said] == EVENTS
    assert {event["request"] for event in said} == {"7"}
    assert masked(said[1]) == {
        "level": "debug",
        "event": "flush.completed",
        "request": "7",
        "session_id": "<session_id>",
        "session_name": "default",
        "trigger": "commit",
        "duration_ms": "<ms>",
        "new": 1,
        "new_by_entity": "Author=1",
        "site": "test_logs.py in write_and_read()",
    }
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_structlog_that_filters_gets_no_more_than_it_takes(twin: Twin) -> None:
    async def story() -> None:
        with instrument(twin.factory, exporter=Exporter(on_log=exported.append)):
            await write_and_read(twin)

    exported: list[LogEvent] = []
    entries = LogCapture()
    structlog.configure(
        processors=[entries],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=False,
    )
    twin.run(story)
    assert [(one["log_level"], one["event"]) for one in entries.entries] == [
        ("info", "session.closed")
    ]
    # The exporter filters for itself, and gets the same.
    assert [event["event"] for event in exported] == ["session.closed"]
    assert {**entries.entries[0], "level": "info"} == {
        **{key: value for key, value in exported[0].items() if key not in ("timestamp", "logger")},
        "log_level": "info",
    }


@pytest.mark.parametrize(
    "wrapper_class",
    [
        structlog.stdlib.BoundLogger,
        structlog.BoundLogger,
        structlog.make_filtering_bound_logger(logging.DEBUG),
    ],
)
def test_each_kind_of_bound_logger_takes_the_events(twin: Twin, wrapper_class: type) -> None:
    async def story() -> None:
        with instrument(twin.factory, exporter=Exporter()):
            await write_and_read(twin)

    entries = LogCapture()
    structlog.configure(
        processors=[entries],
        wrapper_class=wrapper_class,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    logger = logging.getLogger("session_tracer")
    logger.setLevel(logging.DEBUG)
    try:
        twin.run(story)
    finally:
        logger.setLevel(logging.NOTSET)
    assert [(one["log_level"], one["event"]) for one in entries.entries] == EVENTS


def test_a_structlog_over_the_standard_library_clashes_with_no_log_record(
    twin: Twin, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        with instrument(twin.factory, exporter=Exporter(), detectors=detectors):
            await write_and_read(twin)
            async with twin.session() as session:
                found = (await session.scalars(select(Author))).one()
            with pytest.raises(DetachedInstanceError):
                found.books  # noqa: B018 - reading it is the point
            async with twin.session() as session:
                session.add_all(authors(1))
                with pytest.raises(IntegrityError):
                    await session.flush()

    from session_tracer.detectors import DEFAULT_DETECTORS

    detectors: tuple[Any, ...] = (*DEFAULT_DETECTORS, Remark())
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.format_exc_info,
            structlog.stdlib.render_to_log_kwargs,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    with caplog.at_level(logging.DEBUG, "session_tracer"):
        twin.run(story)
    records = [record for record in caplog.records if record.name == "session_tracer"]
    assert [(record.levelname, record.getMessage()) for record in records] == [
        ("DEBUG", "session.opened"),
        ("WARNING", "finding"),
        ("DEBUG", "flush.completed"),
        ("DEBUG", "transaction.ended"),
        ("INFO", "session.closed"),
        *[("DEBUG", name) for name in ("session.opened", "transaction.ended", "session.closed")]
        * 2,
        ("ERROR", "finding"),
        ("DEBUG", "session.opened"),
        ("DEBUG", "transaction.ended"),
        ("INFO", "flush.failed"),
        ("DEBUG", "session.closed"),
    ]
    assert records[4].__dict__["statements"] == 1
    assert all(re.fullmatch("[0-9a-f]{16}", record.__dict__["session_id"]) for record in records)


def test_a_processor_that_raises_is_counted_and_goes_no_further(
    twin: Twin, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        with instrument(twin.factory, exporter=Exporter(meter_provider=measured.provider)):
            await write_and_read(twin)

    def refuse(logger: Any, name: str, event: Any) -> Any:
        raise LookupError(1_001 * 999)

    measured = Measurements()
    structlog.configure(processors=[refuse], cache_logger_on_first_use=False)
    twin.run(story)
    assert measured.totals("session_tracer.errors") == {("default", "LogSignal"): 2}
    assert measured.totals("sqlalchemy.session.duration") == {
        ("default", "committed"): 1,
        ("default", "closed"): 1,
    }
    (said,) = caplog.records
    assert said.getMessage().startswith("session_tracer failed in LogSignal with LookupError")
    assert "999999" not in said.getMessage()


def test_a_structlog_that_nobody_configured_says_nothing_and_stays_so(
    twin: Twin, capsys: pytest.CaptureFixture[str]
) -> None:
    async def story() -> None:
        with instrument(twin.factory, exporter=Exporter(on_log=exported.append)):
            await write_and_read(twin)
            assert not structlog.is_configured()

    exported: list[LogEvent] = []
    root, ours = logging.getLogger(), logging.getLogger("session_tracer")
    before = list(root.handlers), root.level, list(ours.handlers), ours.level, ours.propagate
    twin.run(story)
    assert not structlog.is_configured()
    assert (list(root.handlers), root.level, list(ours.handlers), ours.level, ours.propagate) == (
        before
    )
    assert [event["event"] for event in exported] == ["session.closed"]
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_structlog_that_is_configured_later_gets_what_comes_after(twin: Twin) -> None:
    async def story() -> None:
        with instrument(twin.factory, exporter=Exporter()):
            await write_and_read(twin)
            structlog.configure(processors=[entries], cache_logger_on_first_use=False)
            async with twin.session():
                pass

    entries = LogCapture()
    twin.run(story)
    assert [one["event"] for one in entries.entries] == ["session.opened", "session.closed"]
