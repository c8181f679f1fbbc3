"""For what a session works: the name that `work()` gives it, and where that name is found."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.orm.exc import DetachedInstanceError
from structlog.contextvars import bound_contextvars

from session_tracer import Exporter, Finding, instrument, live_sessions, work
from session_tracer.exporters.console import console_exporter
from session_tracer.exporters.finding_block import finding_block
from session_tracer.testing import capture
from tests.library import Author, Base, authors

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from opentelemetry.sdk.trace.sampling import Sampler

    from session_tracer.exporter import LogEvent

Factory = sessionmaker[Session]


@pytest.fixture
def factory(tmp_path: Path) -> Iterator[Factory]:
    engine = create_engine(f"sqlite:///{tmp_path / 'library.db'}")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(authors(6))
        session.commit()
    yield sessionmaker(engine)
    engine.dispose()


@pytest.fixture(autouse=True)
def _structlog_stays_unconfigured() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def configured_structlog() -> io.StringIO:
    """The stream that a structlog with the usual processors writes lines of JSON to."""
    stream = io.StringIO()
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    return stream


def works_now() -> list[str]:
    """What the open sessions work for."""
    return [one.work for one in live_sessions()]


def read(session: Session) -> None:
    session.scalars(select(Author)).all()


def lose(session: Session, name: str = "lost") -> None:
    """A mistake that is found as the session closes."""
    session.add(Author(name=name))
    session.flush()


def test_a_session_works_for_the_block_it_is_opened_in(factory: Factory) -> None:
    with capture(factory) as captured:
        with work("task import_orders"), factory() as session:
            lose(session)
            assert works_now() == ["task import_orders"]
        with factory() as session:
            lose(session)
            assert works_now() == [""]
    assert [one.work for one in captured.findings] == ["task import_orders", ""]
    assert [one.work for one in captured.sessions] == ["task import_orders", ""]


def test_it_does_so_until_its_end(factory: Factory) -> None:
    with capture(factory) as captured:
        with work("opens"):
            session = factory()
        with work("uses"):
            lose(session)
            session.close()
    assert [one.work for one in captured.findings] == ["opens"]


def test_a_session_that_is_used_again_works_for_the_block_of_then(factory: Factory) -> None:
    with capture(factory) as captured:
        session = factory()
        session.close()
        for name in ("first", "second"):
            with work(name):
                read(session)
                session.close()
    assert [one.work for one in captured.sessions if one.outcome != "unused"] == ["first", "second"]


def test_the_innermost_block_applies(factory: Factory) -> None:
    with capture(factory), work("outer"):
        with work("inner"), factory() as session:
            read(session)
            assert works_now() == ["inner"]
        with factory() as session:
            read(session)
            assert works_now() == ["outer"]


def test_a_block_can_be_used_again_and_nested(factory: Factory) -> None:
    block = work("again")
    with capture(factory):
        with block, block:
            with block:
                pass
            with factory() as session:
                read(session)
                assert works_now() == ["again"]
        with factory() as session:
            read(session)
            assert works_now() == [""]


def test_an_exception_ends_the_block_and_passes(factory: Factory) -> None:
    error = KeyError("the application's")
    with pytest.raises(KeyError) as raised, work("fails"):
        raise error
    assert raised.value is error
    with capture(factory), factory() as session:
        read(session)
        assert works_now() == [""]


def test_tasks_inherit_it_and_do_not_disturb_each_other(factory: Factory) -> None:
    seen: dict[str, str] = {}

    async def note(name: str) -> None:
        await asyncio.sleep(0)
        with factory() as session:
            read(session)
            seen[name] = works_now()[0]

    async def request(name: str) -> None:
        with work(name):
            await note(name)

    async def main() -> None:
        with work("main"):
            await asyncio.gather(note("inherited"), request("one"), request("two"))

    with capture(factory):
        asyncio.run(main())
    assert seen == {"inherited": "main", "one": "one", "two": "two"}


def test_a_generator_that_ends_in_another_context_does_not_disturb(factory: Factory) -> None:
    def dependency() -> Generator[Session]:
        with work("dependency"), factory() as session:
            yield session

    generator = dependency()
    seen: list[str] = []

    def begin() -> None:
        read(next(generator))
        seen.extend(works_now())

    thread = threading.Thread(target=begin)
    with capture(factory) as captured:
        thread.start()
        thread.join()
        with work("outer"):
            generator.close()
            with factory() as session:
                read(session)
                assert works_now() == ["outer"]
    assert seen == ["dependency"]
    assert [one.work for one in captured.sessions] == ["dependency", "outer"]


def test_a_function_is_called_when_the_name_is_needed(factory: Factory) -> None:
    route = ["?"]
    with capture(factory) as captured, work(lambda: f"GET {route[0]}"), factory() as session:
        lose(session)
        assert works_now() == ["GET ?"]
        route[0] = "/orders/{id}"
    assert [one.work for one in captured.findings] == ["GET /orders/{id}"]


def test_a_function_that_fails(factory: Factory, caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> str:
        raise LookupError

    with capture(factory) as captured:
        for name in (fails, fails, lambda: 17):
            with work(name), factory() as session:  # type: ignore[arg-type]
                lose(session)
    assert [one.work for one in captured.findings] == ["", "", ""]
    (point,) = captured.metrics["session_tracer.errors"]
    assert dict(point.attributes) == {"sqlalchemy.session.name": "default", "where": "work"}
    assert point.value > 0
    assert [one.getMessage() for one in caplog.records if one.name == "session_tracer"] == [
        f"session_tracer: the function {__name__}.{test_a_function_that_fails.__name__}.<locals>."
        f"{function} that names the work of sessions raised {error}. These sessions are reported "
        "without a name."
        for function, error in (("fails", "LookupError"), ("<lambda>", "TypeError"))
    ]


def test_names_with_ids_are_bounded(factory: Factory) -> None:
    with capture(factory, max_works=3) as captured:
        for number in (1, 2, 3, 4, 2, 5):
            with work(f"GET /orders/{number}"), factory() as session:
                read(session)
    assert [one.work for one in captured.sessions] == [
        "GET /orders/1", "GET /orders/2", "GET /orders/3", "_other", "GET /orders/2", "_other",
    ]  # fmt: skip


def test_a_name_of_any_length_is_shortened(factory: Factory) -> None:
    with capture(factory) as captured, work("x" * 5_000), factory() as session:
        read(session)
    assert [len(one.work) for one in captured.sessions] == [200]


@pytest.mark.parametrize("name", [17, None, b"task"])
def test_a_name_is_a_string_or_a_function(name: Any) -> None:
    with pytest.raises(TypeError, match="expected a string, or a function that returns one"):
        work(name)


def test_a_name_is_not_empty() -> None:
    with pytest.raises(ValueError, match="expected a name that is not empty"):
        work("")


# In every signal.


def test_every_signal_has_it(factory: Factory) -> None:
    with capture(factory) as captured, work("GET /authors"):
        with factory() as session:
            for author in session.scalars(select(Author)):
                author.books  # noqa: B018 - reading it is the point
            session.expire(author)
        with pytest.raises(DetachedInstanceError):
            author.books  # noqa: B018 - reading it is the point
    assert {event["work"] for event in captured.logs} == {"GET /authors"}
    assert {one.work for one in captured.findings} == {"GET /authors"}
    named = {
        span.name: span.attributes.get("sqlalchemy.session.work")
        for span in captured.spans
        if span.attributes is not None
    }
    assert named == {
        "session default": "GET /authors",
        "transaction": None,
        "detached_load": "GET /authors",
    }
    for metric in ("sqlalchemy.lazy_loads", "sqlalchemy.findings"):
        points = captured.metrics[metric]
        assert {one.attributes["sqlalchemy.session.work"] for one in points} == {"GET /authors"}


def test_spans_that_are_started_and_ended_by_opentelemetry_have_it(factory: Factory) -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    exporter = Exporter(tracer_provider=provider)
    with instrument(factory, exporter=exporter), work("GET /authors"):
        with factory() as session:
            author = session.scalars(select(Author)).first()
        with pytest.raises(DetachedInstanceError):
            author.books  # type: ignore[union-attr]  # noqa: B018 - reading it is the point
    named = {
        span.name: span.attributes.get("sqlalchemy.session.work")
        for span in spans.get_finished_spans()
        if span.attributes is not None
    }
    assert named == {
        "session default": "GET /authors",
        "transaction": None,
        "detached_load": "GET /authors",
    }


def test_the_console_begins_with_it(factory: Factory) -> None:
    stream = io.StringIO()
    with instrument(factory, exporter=console_exporter(stream, width=100, colour=False)):
        with work("POST /orders"), factory() as session:
            read(session)
        with factory() as session:
            read(session)
    heads = [line for line in stream.getvalue().splitlines() if line.startswith("●")]
    named, unnamed = heads
    assert named.startswith("● POST /orders · session default ")
    assert unnamed.startswith("● session default ")


def test_a_finding_about_an_open_session_begins_with_it() -> None:
    finding = Finding(
        id="leaked-session",
        severity="error",
        message="session 9b21e0 (orders-db) has done nothing for 60 s",
        remedy="with SessionLocal() as session:",
        site=None,
        session_id="9b21e0",
        session_name="orders-db",
        session_site=None,
        work="GET /export",
    )
    whole, *_ = finding_block(finding, 100, session=True)
    below_its_session, *_ = finding_block(finding, 100)
    about = "session 9b21e0 (orders-db) has done nothing for 60 s"
    assert whole.plain == f"✖ leaked-session  GET /export · {about}"
    assert below_its_session.plain == f"✖ leaked-session  {about}"


def test_mistakes_of_two_works_at_one_line_are_two(factory: Factory) -> None:
    events: list[LogEvent] = []
    with instrument(factory, exporter=Exporter(on_log=events.append)):
        for name in ("POST /author", "POST /order", "POST /author"):
            with work(name), factory() as session:
                lose(session)
    found = [(one["work"], one["suppressed"]) for one in events if one["event"] == "finding"]
    # The last one was held back until the end.
    assert found == [("POST /author", 0), ("POST /order", 0), ("POST /author", 0)]


# The context in which a session was opened.


def test_what_was_bound_as_the_session_was_opened_is_logged_later(factory: Factory) -> None:
    """A request clears its context before it closes the session; a thread has none."""
    lines = configured_structlog()
    with instrument(factory, exporter=Exporter()):
        with bound_contextvars(request_id="r-42"):
            session = factory()
        lose(session)
        with bound_contextvars(request_id="r-43", user="jane"):
            lose(session, "as well")
        thread = threading.Thread(target=session.close)
        thread.start()
        thread.join()
    events = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [(one["event"], one["request_id"], one.get("user")) for one in events] == [
        ("session.opened", "r-42", None),
        ("flush.completed", "r-42", None),
        ("flush.completed", "r-43", "jane"),
        ("transaction.ended", "r-42", None),
        ("finding", "r-42", None),
        ("session.closed", "r-42", None),
    ]


def test_an_object_that_is_bound_is_not_kept(factory: Factory) -> None:
    class Request:
        pass

    configured_structlog()
    request = Request()
    gone = weakref.ref(request)
    with capture(factory):
        with bound_contextvars(request=request):
            session = factory()
            read(session)
        del request
        gc.collect()
        assert gone() is None
        session.close()


@pytest.mark.parametrize("sampler", [ALWAYS_ON, ALWAYS_OFF])
def test_the_trace_of_the_caller_is_logged_sampled_or_not(
    factory: Factory, sampler: Sampler
) -> None:
    tracer = TracerProvider(sampler=sampler).get_tracer("application")
    events: list[LogEvent] = []
    exporter = Exporter(tracer_provider=TracerProvider(sampler=ALWAYS_OFF), on_log=events.append)
    with instrument(factory, exporter=exporter):
        with tracer.start_as_current_span("GET /authors") as span:
            session = factory()
            lose(session)
        session.close()
    context = span.get_span_context()
    ids = (f"{context.trace_id:032x}", f"{context.span_id:016x}")
    assert [(one["event"], (one["trace_id"], one["span_id"])) for one in events] == [
        ("finding", ids),
        ("session.closed", ids),
    ]


def test_each_event_names_the_thread_or_task(factory: Factory) -> None:
    def use() -> None:
        with factory() as session:
            lose(session)

    async def use_in_a_task() -> None:
        use()

    async def main() -> None:
        await asyncio.create_task(use_in_a_task(), name="import")

    with capture(factory) as captured:
        thread = threading.Thread(target=use, name="export-3")
        thread.start()
        thread.join()
        asyncio.run(main())
    closed = [one for one in captured.logs if one["event"] == "session.closed"]
    assert [(one.get("thread"), one.get("task")) for one in closed] == [
        ("export-3", None),
        (None, "import"),
    ]
