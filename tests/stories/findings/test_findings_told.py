"""Findings in every signal: spans, logs, metrics, an exporter's ears, and the session's summary."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session

from session_tracer import Exporter, instrument
from session_tracer.signals import logs
from session_tracer.signals.limiter import Limiter
from session_tracer.testing import Captured, capture
from tests.library import Author, authors, keep
from tests.stories.lines import marked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from session_tracer import Finding
    from tests.twins import Twin


@contextmanager
def held_elsewhere() -> Iterator[Author]:
    """An author of another session, which nobody traces."""
    with Session() as other:
        author = Author(name="of another session")
        other.add(author)
        yield author


def cross(session: Any, author: Author) -> None:
    with suppress(InvalidRequestError):
        session.add(author)  # <- crosses


async def as_it_begins(session: Any, author: Author) -> None:
    cross(session, author)


async def in_a_transaction(session: Any, author: Author) -> None:
    await session.connection()
    cross(session, author)
    await session.commit()


async def in_a_savepoint(session: Any, author: Author) -> None:
    async with session.begin_nested():
        cross(session, author)


async def in_a_flush(session: Any, author: Author) -> None:
    session.add_all(authors(3))
    await session.commit()


async def in_a_flush_of_a_savepoint(session: Any, author: Author) -> None:
    async with session.begin_nested():
        session.add_all(authors(3))
        await session.flush()
    await session.commit()


async def at_the_end(session: Any, author: Author) -> None:
    session.add(Author(name="never saved"))


INNERMOST = {
    as_it_begins: ("crossed-sessions", "transaction"),
    in_a_transaction: ("crossed-sessions", "transaction"),
    in_a_savepoint: ("crossed-sessions", "savepoint"),
    in_a_flush: ("large-flush", "flush"),
    in_a_flush_of_a_savepoint: ("large-flush", "flush"),
    at_the_end: ("discarded-changes", "session shop-db"),
}


@pytest.mark.parametrize("err", INNERMOST)
def test_a_finding_is_an_event_of_the_innermost_span(twin: Twin, err: Any) -> None:
    id_, innermost = INNERMOST[err]

    async def story() -> None:
        with (
            capture(twin.factory, name="shop-db", large_flush_objects=2) as captured,
            held_elsewhere() as author,
        ):
            async with twin.session() as session:
                await err(session, author)
        events = [
            (span.name, event.attributes["sqlalchemy.finding.id"])
            for span in captured.spans
            for event in span.events
            if event.name == "sqlalchemy.finding" and event.attributes is not None
        ]
        assert events == [(innermost, id_)]
        assert captured.metrics.get("session_tracer.errors", []) == []

    twin.run(story)


async def crossed(twin: Twin, **settings: Any) -> tuple[Captured, list[Finding]]:
    """What is told of one object that was given to a second session."""
    heard: list[Finding] = []
    exporter = Exporter(on_finding=heard.append)
    with (
        held_elsewhere() as author,
        instrument(twin.factory, name="shop-db", exporter=exporter, **settings),
        capture(twin.factory, name="shop-db", **settings) as captured,
    ):
        async with twin.session() as session:
            await in_a_transaction(session, author)
    return captured, heard


def test_every_signal_reports_of_a_finding(twin: Twin) -> None:
    async def story() -> None:
        captured, heard = await crossed(twin)
        (finding,) = captured.findings
        assert heard == [finding]
        (summary,) = captured.sessions
        assert summary.findings == (finding,)
        (log,) = [log for log in captured.logs if log["event"] == "finding"]
        (span,) = [span for span in captured.spans if span.name == "transaction"]
        assert (log["level"], log["severity"]) == ("error", "error")
        assert log["finding_id"] == "crossed-sessions"
        assert (log["explanation"], log["remedy"]) == (finding.message, finding.remedy)
        assert (log["site"], log["session_site"]) == (
            str(marked(cross, "<- crosses")),
            str(finding.session_site),
        )
        assert (log["session_id"], log["session_name"]) == (summary.id, "shop-db")
        assert (log["trace_id"], log["span_id"]) == (
            f"{span.context.trace_id:032x}",
            f"{span.context.span_id:016x}",
        )
        assert log["alternatives"] == finding.evidence["alternatives"]
        assert (log["entity"], log["count"]) == ("Author", 1)
        # The only key that is there with 0: the sum of 1 + suppressed is the number of findings.
        assert log["suppressed"] == 0
        assert log["help"] == finding.help == "session-tracer findings crossed-sessions"
        (closed,) = [log for log in captured.logs if log["event"] == "session.closed"]
        assert (closed["level"], closed["findings"][0]["finding_id"]) == (
            "info",
            "crossed-sessions",
        )
        (counted,) = captured.metrics["sqlalchemy.findings"]
        assert (dict(counted.attributes), counted.value) == (
            {
                "sqlalchemy.session.name": "shop-db",
                "sqlalchemy.finding.id": "crossed-sessions",
                "sqlalchemy.finding.severity": "error",
            },
            1,
        )

    twin.run(story)


@pytest.mark.parametrize("severity", ["info", "warning", "error"])
def test_a_finding_is_logged_at_its_severity(twin: Twin, severity: str) -> None:
    async def story() -> None:
        captured, _ = await crossed(twin, severities={"crossed-sessions": severity})
        (log,) = [log for log in captured.logs if log["event"] == "finding"]
        assert (log["level"], log["severity"]) == (severity, severity)
        (counted,) = captured.metrics["sqlalchemy.findings"]
        assert counted.attributes["sqlalchemy.finding.severity"] == severity

    twin.run(story)


def test_a_finding_that_is_ignored_is_in_no_signal(twin: Twin) -> None:
    async def story() -> None:
        captured, heard = await crossed(twin, ignore={"crossed-sessions"})
        assert (captured.findings, heard) == ([], [])
        assert [log for log in captured.logs if log["event"] == "finding"] == []
        assert "sqlalchemy.findings" not in captured.metrics
        assert [event for span in captured.spans for event in span.events] == []
        assert captured.sessions[0].findings == ()

    twin.run(story)


# Repeats.


class Clock:
    """What `time.monotonic` would say."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


async def err(twin: Twin, times: int, line: int = 1) -> None:
    """Each in a session of its own."""
    for _ in range(times):
        with suppress(Exception):
            async with twin.session() as session:
                session.add(Author(name="author 0"))
                if line == 1:
                    await session.flush()  # <- one
                else:
                    await session.flush()  # <- another


def test_repeats_are_summed_up_in_the_log_and_counted_one_by_one(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(logs, "Limiter", partial(Limiter, clock=clock))

    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as captured:
            await err(twin, 5)
            await err(twin, 2, line=2)
            clock.now += 59
            await err(twin, 3)
            clock.now += 1
            await err(twin, 2)
            clock.now += 60
            await err(twin, 1)
        one, another = str(marked(err, "<- one")), str(marked(err, "<- another"))
        logged = [
            (log["site"], log["suppressed"]) for log in captured.logs if log["event"] == "finding"
        ]
        # The first of each line at once, then as each period ends, and as tracing does.
        assert logged[:2] == [(one, 0), (another, 0)]
        assert sorted(logged[2:]) == sorted([(one, 6), (one, 1), (one, 0), (another, 0)])
        assert len(captured.findings) == 13
        (counted,) = captured.metrics["sqlalchemy.findings"]
        assert counted.value == 13
        events = [event for span in captured.spans for event in span.events]
        assert len([event for event in events if event.name == "sqlalchemy.finding"]) == 13
        assert [len(summary.findings) for summary in captured.sessions] == [1] * 13

    twin.run(story)


def test_each_tracer_sums_up_for_itself(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(1))
        with capture(twin.factory) as first:
            await err(twin, 3)
            with capture(twin.factory) as second:
                await err(twin, 2)
        for captured, number in ((first, 5), (second, 2)):
            logged = [log["suppressed"] for log in captured.logs if log["event"] == "finding"]
            assert (logged, len(captured.findings)) == ([0, number - 2], number)

    twin.run(story)


def test_a_loop_inside_a_session_is_one_finding_with_its_number(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(20, books_each=1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                found = (await session.scalars(select(Author))).all()
                await session.run_sync(lambda _: [author.books for author in found])
        (finding,) = captured.findings
        assert (finding.id, finding.count) == ("n-plus-one", 5)
        (counted,) = captured.metrics["sqlalchemy.findings"]
        assert counted.value == 1
        assert captured.sessions[0].lazy_loads == {"relationship": 20}

    twin.run(story)
