"""The public API as users write it, for mypy and pyright to read strictly; it also runs.

If a line must be rejected, a comment for each checker names the rule: a checker that does
not refuse it complains of the comment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, assert_type

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from opentelemetry.sdk.trace import ReadableSpan
from sqlalchemy import StaticPool, create_engine, select
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    scoped_session,
    sessionmaker,
)
from sqlmodel import Session as SQLModelSession

from session_tracer import (
    DEFAULT_DETECTORS,
    CallSite,
    Detector,
    Exporter,
    Finding,
    Instrumentation,
    LiveSession,
    Retraction,
    SessionMisuse,
    SessionSummary,
    Settings,
    instrument,
    live_sessions,
    silence,
    uninstrument,
)
from session_tracer.detectors.protocol import Suspecting
from session_tracer.exporter import LogEvent
from session_tracer.facts import Fact, SessionClosed, StatementExecuted
from session_tracer.model.findings import Severity
from session_tracer.testing import Captured, capture

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Unpack

    from session_tracer.exporter import ExporterFactory
    from session_tracer.ledger.report import Report
    from session_tracer.pytest_plugin import SessionTrace
    from session_tracer.settings import Overrides


class Model(DeclarativeBase):
    pass


class Author(Model):
    __tablename__ = "author"

    id: Mapped[int] = mapped_column(primary_key=True)


class MySession(Session):
    pass


class MyAsyncSession(AsyncSession):
    pass


ENGINE = create_engine("sqlite://", poolclass=StaticPool)


def factory() -> sessionmaker[MySession]:
    Model.metadata.create_all(ENGINE)
    return sessionmaker(ENGINE, class_=MySession)


def async_factory() -> async_sessionmaker[MyAsyncSession]:
    return async_sessionmaker(create_async_engine("sqlite+aiosqlite://"), class_=MyAsyncSession)


def task() -> object:
    return None


# What is instrumented


def a_factory_and_what_it_makes_stay_what_they_are() -> None:
    made = factory()
    with instrument(made, name="orders-db", exporter=Exporter()) as instrumentation:
        assert_type(instrumentation, Instrumentation)
        assert_type(instrumentation.name, str)
        assert_type(instrumentation.settings, Settings)
        with made() as session:
            assert_type(session, MySession)
        instrumentation.flush()
    instrumentation.uninstrument()


async def an_async_factory() -> None:
    made = async_factory()
    with instrument(made, exporter=Exporter()):
        async with made() as session:
            assert_type(session, MyAsyncSession)
    await made.kw["bind"].dispose()


def every_other_target() -> None:
    made, async_made = factory(), async_factory()
    with (
        instrument(scoped_session(made), exporter=Exporter()),
        instrument(async_scoped_session(async_made, scopefunc=task), exporter=Exporter()),
        instrument(MySession, exporter=Exporter()),
        instrument(MyAsyncSession, exporter=Exporter()),
        instrument(SQLModelSession, exporter=Exporter()),
        instrument(exporter=Exporter()) as everything,
    ):
        assert_type(everything, Instrumentation)
    with made() as session, instrument(session, exporter=Exporter()):
        uninstrument(session)
    async_session = async_made()
    instrument(async_session, exporter=Exporter())
    uninstrument(async_session)
    uninstrument(made)
    uninstrument()


def flask_sqlalchemy() -> None:
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    database = SQLAlchemy(app)
    with app.app_context(), instrument(database, exporter=Exporter()):
        pass


def what_makes_no_sessions_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot instrument"):
        instrument("orders")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="cannot instrument"):
        instrument(ENGINE)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="cannot instrument"):
        uninstrument(Author)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="cannot instrument"), capture(0):  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        pass
    with pytest.raises(TypeError, match="Invalid exporter=9464"):
        instrument(exporter=9464)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# Options


def options_are_keywords_of_their_types() -> None:
    severities: dict[str, Severity] = {"n-plus-one": "error"}
    with instrument(
        factory(),
        exporter=Exporter(),
        settings=Settings.from_env({"SESSION_TRACER_SITE_FRAMES": "3"}),
        statement_spans=True,
        leak_after_seconds=30,
        log_level="debug",
        ignore={"commit-in-loop@jobs/*"},
        severities=severities,
        raise_on=["error"],
        application_packages=("shop",),
    ) as instrumentation:
        assert_type(instrumentation.settings.site_frames, int)
        assert_type(instrumentation.settings.leak_after_seconds, float)
        assert_type(instrumentation.settings.severities, Mapping[str, Severity])
        assert_type(
            instrumentation.settings.log_level, Literal["debug", "info", "warning", "error"]
        )


def a_misspelt_option_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Unknown setting .leak_after_second."):
        instrument(leak_after_second=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    with (
        pytest.raises(ValueError, match=r"Unknown setting .statement_span."),
        capture(statement_span=True),  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    ):
        pass
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_entity'"):
        Settings(max_entity=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def an_option_of_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match="Invalid max_entities='all'"):
        instrument(max_entities="all")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="Invalid log_level='loud'"):
        instrument(log_level="loud")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with (
        pytest.raises(ValueError, match="Invalid leak_after_seconds='60'"),
        capture(leak_after_seconds="60"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ):
        pass


def settings_do_not_change() -> None:
    settings = Settings(site_frames=2)
    with pytest.raises(AttributeError):
        settings.site_frames = 3  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    assert_type(settings.override({"site_frames": 3}), Settings)


def a_factory_of_ones_own_passes_options_on() -> None:
    def traced(**overrides: Unpack[Overrides]) -> Instrumentation:
        return instrument(factory(), exporter=Exporter(), **overrides)

    traced(log_level="warning", site_frames=2).uninstrument()
    with pytest.raises(ValueError, match=r"Unknown setting .frames."):
        traced(frames=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


# What is reported


def a_capture_and_what_it_collects() -> None:
    made = factory()
    with capture(made, name="orders-db", statement_spans=True) as captured:
        assert_type(captured, Captured)
        with made.begin() as session:
            session.add(Author())
    assert_type(captured.findings, list[Finding])
    assert_type(captured.retractions, list[Retraction])
    assert_type(captured.sessions, list[SessionSummary])
    assert_type(captured.logs, list[LogEvent])
    assert_type(captured.facts, list[Fact])
    assert_type(captured.spans, list[ReadableSpan])
    assert_type(captured.metrics, dict[str, list[Any]])
    (summary,) = captured.sessions
    assert_type(summary.new, dict[str, int])
    assert_type(summary.duration_ms, float)
    assert_type(summary.opened_site, CallSite | None)
    assert (summary.outcome, summary.new) == ("committed", {"Author": 1})
    if summary.outcome == "comitted":  # type: ignore[comparison-overlap]  # pyright: ignore[reportUnnecessaryComparison]
        raise AssertionError
    closed = [fact for fact in captured.facts if isinstance(fact, SessionClosed)]
    assert_type(closed, list[SessionClosed])
    assert_type(closed[0].detached, dict[str, int])


def a_finding_and_its_site() -> None:
    made = factory()
    detectors: list[Detector] = [*DEFAULT_DETECTORS, EveryStatement("info")]
    with capture(made, detectors=detectors) as captured, made() as session:
        session.scalars(select(Author)).all()
    (finding,) = captured.findings
    assert_type(finding.severity, Literal["info", "warning", "error"])
    assert_type(finding.evidence, Mapping[str, Any])
    assert_type(finding.entity, str | None)
    assert_type(finding.help, str)
    assert finding.site is not None
    assert_type(finding.site, CallSite)
    assert_type((finding.site.file, finding.site.line, finding.site.function), tuple[str, int, str])
    assert (finding.id, finding.site.file) == ("every-statement", __file__)
    if finding.severity == "fatal":  # type: ignore[comparison-overlap]  # pyright: ignore[reportUnnecessaryComparison]
        raise AssertionError
    with pytest.raises(AttributeError):
        finding.message = ""  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def the_open_sessions() -> None:
    made = factory()
    with capture(made), made() as session:
        session.scalars(select(Author)).all()
        opened = live_sessions()
        assert_type(opened, list[LiveSession])
        assert_type(opened[0].process_id, int | None)
        assert_type(opened[0].objects, dict[str, int])
        assert_type(opened[0].findings, tuple[Finding, ...])
        assert_type(opened[0].opened_site, CallSite | None)


# What users add


class EveryStatement:
    """`every-statement`: a statement ran."""

    facts = (StatementExecuted,)

    def __init__(self, severity: Severity) -> None:
        self.severity: Severity = severity

    def memory(self) -> set[CallSite | None]:
        return set()

    def judge(
        self, fact: StatementExecuted, report: Report, memory: set[CallSite | None]
    ) -> Iterator[Finding]:
        assert_type(report.ledger.statements, int)
        assert_type(report.settings, Settings)
        if fact.site not in memory:
            memory.add(fact.site)
            yield report.finding(
                "every-statement",
                self.severity,
                f"a {fact.operation} ran",
                "run none",
                fact.site,
                entity=fact.entity or None,
                evidence={"duration_ms": fact.duration / 1e6},
            )


class NoDetector:
    """It does not name its facts."""

    def memory(self) -> None: ...


def a_detector_of_ones_own() -> None:
    detector: Detector = EveryStatement("warning")
    assert_type(DEFAULT_DETECTORS, tuple[Suspecting, ...])
    instrument(factory(), exporter=Exporter(), detectors=[detector]).uninstrument()
    with pytest.raises(AttributeError, match="facts"):
        instrument(detectors=[NoDetector()])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]


def an_exporter_of_ones_own() -> None:
    summaries: list[SessionSummary] = []
    events: list[LogEvent] = []

    # What an entry point of the group `session_tracer_exporter` names.
    def open_exporter(settings: Settings) -> Exporter:
        assert_type(settings.jsonl_path, str)
        return Exporter(on_session=summaries.append, on_log=events.append, structlog=False)

    entry_point: ExporterFactory = open_exporter
    made = factory()
    with instrument(made, exporter=entry_point(Settings())), made.begin() as session:
        session.add(Author())
    assert [summary.outcome for summary in summaries] == ["committed"]

    def prints(text: str) -> None:
        print(text)

    Exporter(on_session=prints)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    refused: ExporterFactory = prints  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    del refused


def a_silence() -> None:
    with silence("commit-in-loop", "n-plus-one", reason="a migration, run once") as entered:
        assert_type(entered, None)
    with pytest.raises(TypeError, match="reason"):
        silence("n-plus-one")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def a_misuse_that_is_raised() -> None:
    made = factory()
    detectors = [EveryStatement("error")]
    with instrument(made, exporter=Exporter(), detectors=detectors, raise_on={"error"}):
        try:
            with made() as session:
                session.scalars(select(Author)).all()
        except SessionMisuse as misuse:
            assert_type(misuse.finding, Finding)
        else:
            raise AssertionError


# In a test, by the plugin's fixture


@pytest.mark.session_budget(statements=5)
def test_of_an_application(session_trace: SessionTrace) -> None:
    with factory().begin() as session:
        session.add(Author())
    assert_type(session_trace.findings, list[Finding])
    assert_type(session_trace.sessions, list[SessionSummary])
    assert_type(session_trace.open, list[LiveSession])
    assert_type(session_trace.statements, int)
    assert session_trace.commits == 1
    with pytest.raises(AttributeError):
        session_trace.statement  # type: ignore[attr-defined]  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


EXAMPLES = (
    a_factory_and_what_it_makes_stay_what_they_are,
    every_other_target,
    flask_sqlalchemy,
    what_makes_no_sessions_is_refused,
    options_are_keywords_of_their_types,
    a_misspelt_option_is_refused,
    an_option_of_another_type_is_refused,
    settings_do_not_change,
    a_factory_of_ones_own_passes_options_on,
    a_capture_and_what_it_collects,
    a_finding_and_its_site,
    the_open_sessions,
    a_detector_of_ones_own,
    an_exporter_of_ones_own,
    a_silence,
    a_misuse_that_is_raised,
)


def main() -> None:
    for example in EXAMPLES:
        example()
    asyncio.run(an_async_factory())
    ENGINE.dispose()
