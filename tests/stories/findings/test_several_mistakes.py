"""Stories of several mistakes in one session, and of one session that several hear of."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError, InvalidRequestError, PendingRollbackError
from sqlalchemy.orm.exc import DetachedInstanceError

from session_tracer import Exporter, Finding, instrument
from session_tracer.testing import Captured, capture
from tests.library import Author, authors, keep
from tests.stories import detached
from tests.stories.findings.due import look_ahead, until
from tests.stories.lines import marked

if TYPE_CHECKING:
    from session_tracer import CallSite
    from tests.twins import Twin


def said(captured: Captured) -> list[tuple[str, CallSite | None]]:
    """The findings with their lines, in the order they were drawn; nothing of ours failed."""
    assert captured.metrics.get("session_tracer.errors", []) == []
    return [(finding.id, finding.site) for finding in captured.findings]


def books_of(found: list[Author]) -> int:
    return sum(len(author.books) for author in found)  # <- loads


async def err_often(twin: Twin) -> None:
    async with twin.session() as session:  # <- opened
        found = list((await session.scalars(select(Author))).all())
        await session.run_sync(lambda _: books_of(found))
        session.add(Author(name="author 0"))
        with suppress(IntegrityError):
            await session.flush()  # <- fails
        with suppress(PendingRollbackError):
            await session.scalars(select(Author))  # <- uses
        await session.rollback()
        session.add(Author(name="never saved"))
    with suppress(DetachedInstanceError):
        detached.read_name(found[0])


ERRORS = [
    ("n-plus-one", marked(books_of, "<- loads")),
    ("failed-flush", marked(err_often, "<- fails")),
    ("pending-rollback", marked(err_often, "<- uses")),
    ("discarded-changes", marked(err_often, "<- opened")),
    ("detached-lazy-load", marked(detached.read_name, "read")),
]


def test_each_mistake_is_found_once_and_in_its_turn(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(6, books_each=1))
        with capture(twin.factory) as captured:
            await err_often(twin)
        assert said(captured) == ERRORS
        (summary,) = captured.sessions
        assert [one.id for one in summary.findings] == [id_ for id_, _ in ERRORS[:4]]
        assert {one.session_id for one in captured.findings} == {summary.id}
        assert {one.session_site for one in captured.findings} == {marked(err_often, "<- opened")}

    twin.run(story)


def test_a_second_session_errs_anew(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(6, books_each=1))
        with capture(twin.factory) as captured:
            await err_often(twin)
            await err_often(twin)
        assert said(captured) == ERRORS * 2
        assert len({one.session_id for one in captured.findings}) == 2

    twin.run(story)


async def leak_and_err(twin: Twin) -> None:
    async with twin.session() as session:
        found = list((await session.scalars(select(Author))).all())
        look_ahead(61)
        await session.run_sync(lambda _: books_of(found))
        other = twin.session()
        async with other:
            with suppress(InvalidRequestError):
                other.add(found[0])  # <- crosses


def test_a_leak_does_not_silence_other_mistakes(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(6, books_each=1))
        with capture(twin.factory) as captured:
            await leak_and_err(twin)
        assert [id_ for id_, _ in said(captured)] == [
            "leaked-session",
            "n-plus-one",
            "crossed-sessions",
        ]
        assert [one.finding.id for one in captured.retractions] == ["leaked-session"]

    twin.run(story)


# Told while the session is open.


def test_a_mistake_is_reported_at_once(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(6, books_each=1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                found = list((await session.scalars(select(Author))).all())
                await session.run_sync(lambda _: books_of(found))
                assert [one.id for one in captured.findings] == ["n-plus-one"]
                assert [
                    log["finding_id"] for log in captured.logs if log["event"] == "finding"
                ] == ["n-plus-one"]
                (counted,) = captured.metrics["sqlalchemy.findings"]
                assert (counted.attributes["sqlalchemy.finding.id"], counted.value) == (
                    "n-plus-one",
                    1,
                )
                assert captured.sessions == []

    twin.run(story)


# Several who hear of it.


def test_each_capture_has_findings_of_its_own(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(6, books_each=1))
        heard: list[Finding] = []
        with ExitStack() as stack:
            stack.enter_context(
                instrument(
                    twin.factory, name="orders-db", exporter=Exporter(on_finding=heard.append)
                )
            )
            strict = stack.enter_context(
                capture(twin.factory, name="strict", lazy_loads_from_one_site=2)
            )
            lax = stack.enter_context(
                capture(
                    twin.factory, name="lax", lazy_loads_from_one_site=99, ignore={"failed-flush"}
                )
            )
            everything = stack.enter_context(capture(name="everything"))
            await err_often(twin)
        assert [(one.id, one.site) for one in heard] == said(strict) == said(everything) == ERRORS
        assert said(lax) == ERRORS[2:]
        assert [captured.findings[0].session_name for captured in (strict, lax, everything)] == [
            "strict",
            "lax",
            "everything",
        ]
        assert {one.session_name for one in heard} == {"orders-db"}
        assert [captured.findings[0].count for captured in (strict, everything)] == [2, 5]
        # It is one scope to all of them.
        assert len({one.session_id for one in [*heard, *strict.findings, *lax.findings]}) == 1

    twin.run(story)


def test_a_capture_that_comes_later_hears_of_what_comes_later(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(6, books_each=1))
        with capture(twin.factory) as captured:
            async with twin.session() as session:
                found = list((await session.scalars(select(Author))).all())
                await session.run_sync(lambda _: books_of(found))
                with capture(twin.factory) as late:
                    with suppress(IntegrityError):
                        session.add(Author(name="author 0"))
                        await session.flush()
                    with suppress(PendingRollbackError):
                        await session.scalars(select(Author))
                    await session.rollback()
        later = ["failed-flush", "pending-rollback"]
        assert [id_ for id_, _ in said(captured)] == ["n-plus-one", *later]
        assert [id_ for id_, _ in said(late)] == later

    twin.run(story)


class Heard:
    """An exporter's ears."""

    def __init__(self) -> None:
        self.findings: list[str] = []
        self.logs: list[Any] = []

    def exporter(self) -> Exporter:
        return Exporter(
            on_finding=lambda finding: self.findings.append(finding.id),
            on_log=self.logs.append,
        )


@pytest.mark.parametrize("option", ["leak_after_seconds", "idle_in_transaction_seconds"])
def test_what_the_watch_finds_reaches_everybody(twin: Twin, option: str) -> None:
    patience: dict[str, Any] = {option: 0.05}

    async def story() -> None:
        heard = Heard()
        with ExitStack() as stack:
            stack.enter_context(instrument(twin.factory, exporter=heard.exporter(), **patience))
            captured = stack.enter_context(capture(twin.factory, **patience))
            deaf = stack.enter_context(capture(twin.factory))
            async with twin.session() as session:
                await session.connection()
                await until(lambda: heard.findings and captured.findings, is_async=twin.is_async)
        (id_,) = {
            "leak_after_seconds": ["leaked-session"],
            "idle_in_transaction_seconds": ["idle-in-transaction"],
        }[option]
        assert heard.findings == [id_]
        assert [log["finding_id"] for log in heard.logs if log["event"] == "finding"] == [id_]
        assert [id_ for id_, _ in said(captured)] == [id_]
        (span,) = [span for span in captured.spans if span.name == "transaction"]
        names = [event.name for event in span.events]
        idle_is_over = ["sqlalchemy.finding.retracted"] if id_ == "idle-in-transaction" else []
        assert names == ["sqlalchemy.finding", *idle_is_over]
        (counted,) = captured.metrics["sqlalchemy.findings"]
        assert (counted.attributes["sqlalchemy.finding.id"], counted.value) == (id_, 1)
        assert [one.id for one in captured.sessions[0].findings] == [id_]
        assert said(deaf) == []

    twin.run(story)
