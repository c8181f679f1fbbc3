"""Tests the metrics: what they are called, what they count, and what they never say."""

import gc
import logging
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider, ObservableCounter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    Metric,
    Sum,
)
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from sqlalchemy import create_engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import sessionmaker
from sqlalchemy.orm.exc import DetachedInstanceError

from session_tracer import instrument
from session_tracer.exporter import Exporter
from session_tracer.facts import FlushCompleted, SessionClosed
from session_tracer.ledger.report import Report
from session_tracer.model.findings import FINDING_IDS, Finding
from tests.library import Author, Book, Item, Letter, Map, authors
from tests.signals.telling import Measurements, Traces, context, left_by, of_database, total
from tests.twins import Twin, on_each_database

SECONDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
POWERS_OF_TEN = (0, 1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)
STATEMENTS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 10_000)


class Fault:
    """A detector that fails."""

    facts = (FlushCompleted,)

    def memory(self) -> None:
        """It remembers nothing."""

    def judge(self, fact: FlushCompleted, report: Report, memory: None) -> list[Finding]:
        """No finding, but an error."""
        raise LookupError


def detectors() -> tuple[Any, ...]:
    """The ones that come with the tracer, and one that fails."""
    from session_tracer.detectors import DEFAULT_DETECTORS

    return (*DEFAULT_DETECTORS, Fault())


async def everything(twin: Twin) -> None:
    """One session that commits, one that loads and lets go, one that fails, one that is unused."""
    async with twin.session() as session:
        session.add_all(authors(2, books_each=2))
        await session.commit()
    async with twin.session() as session:
        found = (await session.scalars(select(Author).order_by(Author.id))).all()
        books = await session.run_sync(lambda _: list(found[0].books))
        await session.delete(found[1])
        books[0].title = "another"
        books[1].title = str(books[1].title)
        await session.flush()
        await session.refresh(found[0], ["name"])
    with pytest.raises(DetachedInstanceError):
        found[0].biography  # noqa: B018 - reading it is the point
    with left_by(IntegrityError):
        async with twin.session() as session:
            session.add_all([*authors(1), *authors(1)])
            await session.flush()
    async with twin.session():
        pass


@on_each_database
def test_each_metric_is_what_the_contract_says(
    twin: Twin, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        exporter = Exporter(meter_provider=measured.provider)
        with instrument(
            twin.factory,
            name="library",
            exporter=exporter,
            detectors=detectors(),
            statement_spans=True,
        ):
            await everything(twin)
            async with twin.session() as session:
                await session.scalars(select(Author))
                collected.update(measured.collect())

    measured = Measurements()
    collected: dict[str, Metric] = {}
    caplog.set_level(logging.CRITICAL, "session_tracer")
    twin.run(story)
    assert {name: described(metric) for name, metric in collected.items()} == {
        "sqlalchemy.session.duration": ("histogram", "s", SECONDS),
        "sqlalchemy.session.open": ("up-down counter", "{session}", ()),
        "sqlalchemy.session.oldest.age": ("gauge", "s", ()),
        "sqlalchemy.session.suspects": ("gauge", "{session}", ()),
        "db.client.connection.count": ("gauge", "{connection}", ()),
        "db.client.connection.max": ("gauge", "{connection}", ()),
        "db.client.connection.pending_requests": ("gauge", "{request}", ()),
        "db.client.connection.timeouts": ("counter", "{timeout}", ()),
        "db.client.connection.wait_time": ("histogram", "s", SECONDS),
        "sqlalchemy.session.identity_map.size": ("histogram", "{object}", POWERS_OF_TEN),
        "sqlalchemy.session.objects": ("counter", "{object}", ()),
        "sqlalchemy.session.statements": ("histogram", "{statement}", STATEMENTS),
        "sqlalchemy.transaction.duration": ("histogram", "s", SECONDS),
        "sqlalchemy.transaction.open": ("up-down counter", "{transaction}", ()),
        "sqlalchemy.transaction.oldest.age": ("gauge", "s", ()),
        "sqlalchemy.connection.held.duration": ("histogram", "s", SECONDS),
        "sqlalchemy.connection.busy.duration": ("histogram", "s", SECONDS),
        "sqlalchemy.flush.duration": ("histogram", "s", SECONDS),
        "sqlalchemy.lazy_loads": ("counter", "{load}", ()),
        "sqlalchemy.findings": ("counter", "{finding}", ()),
        "session_tracer.errors": ("counter", "{error}", ()),
        "db.client.operation.duration": (
            "histogram",
            "s",
            (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10),
        ),
    }
    assert all(metric.description for metric in collected.values())


def described(metric: Metric) -> tuple[str, str, tuple[float, ...]]:
    """The instrument a metric comes from, its unit and its bucket boundaries."""
    data = metric.data
    unit = metric.unit or ""
    if isinstance(data, Histogram):
        assert data.aggregation_temporality is AggregationTemporality.CUMULATIVE
        (bounds,) = {tuple(point.explicit_bounds) for point in data.data_points}
        return "histogram", unit, bounds
    if isinstance(data, Gauge):
        return "gauge", unit, ()
    assert isinstance(data, Sum)
    assert data.aggregation_temporality is AggregationTemporality.CUMULATIVE
    return "counter" if data.is_monotonic else "up-down counter", unit, ()


def test_what_was_done_is_counted(twin: Twin, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        exporter = Exporter(meter_provider=measured.provider)
        with instrument(twin.factory, name="library", exporter=exporter, detectors=detectors()):
            await everything(twin)

    measured = Measurements()
    caplog.set_level(logging.CRITICAL, "session_tracer")
    twin.run(story)
    ours = ("library",)
    assert {name: measured.totals(name) for name in measured.collect()} == {
        "sqlalchemy.session.duration": {
            (*ours, "committed"): 1,
            (*ours, "closed"): 1,
            (*ours, "failed"): 1,
            (*ours, "unused"): 1,
        },
        "sqlalchemy.session.identity_map.size": {ours: 3},
        "sqlalchemy.session.objects": {
            (*ours, "Author", "new"): 2,
            (*ours, "Book", "new"): 4,
            (*ours, "Author", "loaded"): 2,
            (*ours, "Book", "loaded"): 4,
            (*ours, "Book", "dirty"): 1,
            (*ours, "Book", "unchanged"): 1,
            (*ours, "Author", "deleted"): 1,
            (*ours, "Book", "deleted"): 2,
            (*ours, "Author", "detached"): 1,
            (*ours, "Book", "detached"): 2,
        },
        "sqlalchemy.session.statements": {ours: 3},
        "sqlalchemy.transaction.duration": {
            (*ours, "committed"): 1,
            (*ours, "closed"): 1,
            (*ours, "rolled_back"): 1,
        },
        "sqlalchemy.connection.held.duration": {ours: 3},
        "sqlalchemy.connection.busy.duration": {ours: 3},
        "db.client.connection.wait_time": {(*ours, str(twin.engine.url.database)): 3},
        "sqlalchemy.flush.duration": {
            (*ours, "commit"): 1,
            (*ours, "explicit"): 1,
            (*ours, "sqlalchemy.exc.IntegrityError", "explicit"): 1,
        },
        "sqlalchemy.lazy_loads": {
            (*ours, "relationship"): 2,
            (*ours, "refresh"): 1,
            (*ours, "detached"): 1,
        },
        "sqlalchemy.findings": {
            (*ours, "discarded-changes", "warning"): 1,
            (*ours, "detached-lazy-load", "error"): 1,
            (*ours, "failed-flush", "warning"): 1,
        },
        "session_tracer.errors": {(*ours, "Fault"): 2},
    }


def test_durations_and_sizes_are_measured(twin: Twin) -> None:
    async def story() -> None:
        with instrument(twin.factory, exporter=Exporter(meter_provider=measured.provider)):
            async with twin.session() as session:
                held = authors(3)
                session.add_all(held)
                await session.flush()
                await session.scalars(select(Author))
                await session.commit()

    measured = Measurements()
    twin.run(story)
    (size,) = measured.points("sqlalchemy.session.identity_map.size").values()
    (statements,) = measured.points("sqlalchemy.session.statements").values()
    assert (size.sum, size.min, size.max) == (3, 3, 3)
    # SQLite returns the new keys of one row at a time only.
    assert (statements.sum, statements.min, statements.max) == (4, 4, 4)
    (session,) = measured.points("sqlalchemy.session.duration").values()
    (transaction,) = measured.points("sqlalchemy.transaction.duration").values()
    (held,) = measured.points("sqlalchemy.connection.held.duration").values()
    (busy,) = measured.points("sqlalchemy.connection.busy.duration").values()
    (flush,) = measured.points("sqlalchemy.flush.duration").values()
    assert 0 < busy.sum < held.sum < transaction.sum < session.sum < 60
    assert 0 < flush.sum < transaction.sum


def test_gauges_tell_what_is_open_while_it_is(twin: Twin) -> None:
    async def story() -> None:
        with instrument(
            twin.factory, name="library", exporter=Exporter(meter_provider=measured.provider)
        ):
            said.append(open_now(measured))
            first, second = twin.session(), twin.session()
            said.append(open_now(measured))
            await first.scalars(select(Author))
            said.append(open_now(measured))
            await second.scalars(select(Author))
            said.append(open_now(measured))
            await first.commit()
            await first.close()
            said.append(open_now(measured))
            await second.close()
            said.append(open_now(measured))

    measured = Measurements()
    said: list[tuple[int, int]] = []
    twin.run(story)
    # A session that was never used is not open.
    assert said == [(0, 0), (0, 0), (1, 1), (2, 2), (1, 1), (0, 0)]


def open_now(measured: Measurements) -> tuple[int, int]:
    """How many sessions and transactions are open."""
    session = measured.totals("sqlalchemy.session.open")
    transaction = measured.totals("sqlalchemy.transaction.open")
    assert session.keys() == transaction.keys() == {("library",)}
    return session["library",], transaction["library",]


def test_the_oldest_grow_older_and_are_forgotten_when_they_end(twin: Twin) -> None:
    async def story() -> None:
        with instrument(twin.factory, exporter=Exporter(meter_provider=measured.provider)):
            old = twin.session()
            await old.scalars(select(Author))
            ages.append(oldest(measured))
            await old.scalars(select(Author))
            ages.append(oldest(measured))
            made_at = time.perf_counter()
            young = twin.session()
            await young.scalars(select(Author))
            ages.append(oldest(measured))
            await old.close()
            ages.append(oldest(measured))
            at_most = time.perf_counter() - made_at
            await young.close()
            ages.append(oldest(measured))
            assert max(ages[3]) < at_most

    measured = Measurements()
    ages: list[tuple[float, float]] = []
    twin.run(story)
    begun, later, both, young, nothing = ages
    assert 0 < begun[0] < later[0] < both[0]
    assert 0 < begun[1] < later[1] < both[1]
    assert min(young) > 0
    assert nothing == (0, 0)


def oldest(measured: Measurements) -> tuple[float, float]:
    """The ages of the oldest session and the oldest transaction."""
    (session,) = measured.totals("sqlalchemy.session.oldest.age").values()
    (transaction,) = measured.totals("sqlalchemy.transaction.oldest.age").values()
    return session, transaction


def test_an_abandoned_session_is_open_no_longer(twin: Twin) -> None:
    async def story() -> None:
        with instrument(
            twin.factory, name="library", exporter=Exporter(meter_provider=measured.provider)
        ) as instrumentation:
            session = twin.session()
            session.sync_session.begin()
            assert open_now(measured) == (1, 1)
            del session
            gc.collect()
            instrumentation.flush()
            assert open_now(measured) == (0, 0)
        assert measured.totals("sqlalchemy.session.duration") == {("library", "abandoned"): 1}
        assert measured.totals("sqlalchemy.transaction.duration") == {("library", "abandoned"): 1}

    measured = Measurements()
    twin.run(story)


def test_entities_beyond_the_limit_are_one(twin: Twin) -> None:
    async def story() -> None:
        exporter = Exporter(meter_provider=measured.provider)
        with instrument(twin.factory, exporter=exporter, max_entities=2):
            for added in (
                authors(1, books_each=1),
                [Letter(author_id=1), Letter(author_id=1)],
                [Item()],
                [Map(scale=1)],
                [Author(name="another")],
            ):
                async with twin.session() as session:
                    session.add_all(added)
                    await session.commit()

    measured = Measurements()
    twin.run(story)
    totals = measured.totals("sqlalchemy.session.objects")
    assert {labels: number for labels, number in totals.items() if "new" in labels} == {
        ("default", "Author", "new"): 2,
        ("default", "Book", "new"): 1,
        ("default", "_other", "new"): 4,
    }


def test_tables_beyond_the_limit_are_one_and_count_apart_from_entities(twin: Twin) -> None:
    async def story() -> None:
        exporter = Exporter(meter_provider=measured.provider)
        with instrument(twin.factory, exporter=exporter, max_entities=2, statement_spans=True):
            for entity in (Author, Book, Letter, Item, Author):
                async with twin.session() as session:
                    await session.scalars(select(entity))
            async with twin.session() as session:
                session.add_all(authors(1))
                await session.commit()

    measured = Measurements()
    twin.run(story)
    counts: dict[tuple[object, ...], int] = {}
    for point in measured.collect()["db.client.operation.duration"].data.data_points:
        attributes = dict(point.attributes or {})
        key = attributes["db.operation.name"], attributes["db.collection.name"]
        counts[key] = total(point)
    assert counts == {
        ("SELECT", "authors"): 2,
        ("SELECT", "books"): 1,
        ("SELECT", "_other"): 2,
        ("INSERT", "authors"): 1,
    }
    assert measured.totals("sqlalchemy.session.objects") == {("default", "Author", "new"): 1}


def test_attributes_say_neither_who_nor_where_nor_what_was_asked(
    twin: Twin, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        with instrument(
            twin.factory,
            exporter=Exporter(meter_provider=measured.provider),
            detectors=detectors(),
            statement_spans=True,
        ):
            await everything(twin)
            collected.update(measured.collect())

    measured = Measurements()
    collected: dict[str, Metric] = {}
    caplog.set_level(logging.CRITICAL, "session_tracer")
    twin.run(story)
    keys: dict[str, set[str]] = {}
    for name, metric in collected.items():
        for point in metric.data.data_points:
            keys.setdefault(name, set()).update(point.attributes or {})
    name, pool = "sqlalchemy.session.name", "db.client.connection.pool.name"
    assert keys == {
        "sqlalchemy.session.duration": {name, "sqlalchemy.session.outcome"},
        "sqlalchemy.session.open": {name},
        "sqlalchemy.session.oldest.age": {name},
        "sqlalchemy.session.suspects": {name, "sqlalchemy.finding.id"},
        "db.client.connection.count": {name, pool, "db.client.connection.state"},
        "db.client.connection.max": {name, pool},
        "db.client.connection.pending_requests": {name, pool},
        "db.client.connection.timeouts": {name, pool},
        "db.client.connection.wait_time": {name, pool},
        "sqlalchemy.session.identity_map.size": {name},
        "sqlalchemy.session.objects": {name, "sqlalchemy.object.state", "sqlalchemy.entity"},
        "sqlalchemy.session.statements": {name},
        "sqlalchemy.transaction.duration": {name, "sqlalchemy.transaction.outcome"},
        "sqlalchemy.transaction.open": {name},
        "sqlalchemy.transaction.oldest.age": {name},
        "sqlalchemy.connection.held.duration": {name},
        "sqlalchemy.connection.busy.duration": {name},
        "sqlalchemy.flush.duration": {name, "sqlalchemy.flush.trigger", "error.type"},
        "sqlalchemy.lazy_loads": {name, "kind"},
        "sqlalchemy.findings": {
            name,
            "sqlalchemy.finding.id",
            "sqlalchemy.finding.severity",
        },
        "session_tracer.errors": {name, "where"},
        "db.client.operation.duration": {
            name,
            *of_database(twin),
            "db.operation.name",
            "db.collection.name",
            "db.response.status_code",
            "error.type",
        },
    }


def test_two_factories_share_a_provider_under_their_own_names(
    twin: Twin, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        exporter = Exporter(meter_provider=measured.provider)
        other = type(twin.factory)(twin.engine)
        with (
            instrument(twin.factory, name="one", exporter=exporter),
            instrument(other, name="two", exporter=Exporter(meter_provider=measured.provider)),
        ):
            async with twin.session() as session:
                session.add_all(authors(1))
                await session.commit()
            left = other()
            sync = getattr(left, "sync_session", left)
            sync.begin()
            assert measured.totals("sqlalchemy.session.open") == {("one",): 0, ("two",): 1}
            assert measured.totals("sqlalchemy.session.objects") == {("one", "Author", "new"): 1}
            sync.close()
        assert measured.totals("sqlalchemy.session.duration") == {
            ("one", "committed"): 1,
            ("two", "closed"): 1,
        }

    measured = Measurements()
    with caplog.at_level(logging.DEBUG):
        twin.run(story)
    assert [record.getMessage() for record in caplog.records if "nstrument" in record.name] == []
    assert [r.getMessage() for r in caplog.records if r.name.startswith("opentelemetry")] == []


def test_totals_go_on_where_they_were(twin: Twin, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        for round_ in range(1, 4):
            with instrument(twin.factory, exporter=Exporter(meter_provider=measured.provider)):
                async with twin.session() as session:
                    session.add_all([Author(name=f"author {round_}")])
                    await session.commit()
                assert measured.totals("sqlalchemy.session.open") == {("default",): 0}
            assert measured.totals("sqlalchemy.session.objects") == {
                ("default", "Author", "new"): round_
            }
            assert measured.totals("sqlalchemy.session.duration") == {
                ("default", "committed"): round_
            }
            # Nobody is instrumented: nobody says how many are open.
            assert measured.totals("sqlalchemy.session.open") == {}

    measured = Measurements()
    twin.run(story)
    assert [r.getMessage() for r in caplog.records if r.name.startswith("opentelemetry")] == []


def test_a_reader_of_differences_gets_differences(twin: Twin) -> None:
    async def story() -> None:
        with instrument(twin.factory, exporter=Exporter(meter_provider=measured.provider)):
            for round_ in range(3):
                async with twin.session() as session:
                    session.add_all([Author(name=f"{round_} {one}") for one in range(round_ + 1)])
                    await session.commit()
                said.append(measured.totals("sqlalchemy.session.objects"))

    delta = AggregationTemporality.DELTA
    measured = Measurements(preferred_temporality={ObservableCounter: delta})
    said: list[dict[Any, Any]] = []
    twin.run(story)
    assert said == [{("default", "Author", "new"): count} for count in (1, 2, 3)]


def test_nothing_is_lost_between_threads(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'threads.db'}")
    factory = sessionmaker(engine)

    def work() -> None:
        for _ in range(100):
            with factory() as session:
                session.execute(select(1))

    measured = Measurements()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with instrument(
            factory,
            exporter=Exporter(meter_provider=measured.provider),
            detectors=(Remark(),),
        ):
            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(interval)
        engine.dispose()
    assert measured.totals("sqlalchemy.findings") == {("default", "a-remark", "info"): 400}
    assert measured.totals("sqlalchemy.session.duration") == {("default", "closed"): 400}


class Remark:
    """A detector with a word for every session."""

    facts = (SessionClosed,)

    def memory(self) -> None:
        """It remembers nothing."""

    def judge(self, fact: SessionClosed, report: Report, memory: None) -> Iterator[Finding]:
        """A finding that finds nothing wrong."""
        yield Finding(
            id="a-remark",
            severity="info",
            message="A session was closed.",
            remedy="Leave it.",
            site=fact.site,
            session_id=report.ledger.id,
            session_name=report.name,
            session_site=report.ledger.opened_site,
        )


def test_exemplars_lead_to_the_sessions_trace(twin: Twin) -> None:
    async def story() -> None:
        exporter = Exporter(tracer_provider=traces.provider, meter_provider=measured.provider)
        with (
            instrument(twin.factory, exporter=exporter, statement_spans=True),
            traces.caller(),
        ):
            async with twin.session() as session:
                session.add_all(authors(1))
                await session.commit()

    traces, measured = Traces(), Measurements()
    twin.run(story)
    spans = {context(span).span_id: span.name for span in traces.spans}
    trace_id = context(traces.named("session default")).trace_id
    led: dict[str, set[str]] = {}
    for name, metric in measured.collect().items():
        for point in metric.data.data_points:
            for exemplar in point.exemplars:
                assert exemplar.trace_id == trace_id
                assert exemplar.span_id is not None
                led.setdefault(name, set()).add(spans[exemplar.span_id])
    assert {name: sorted(names) for name, names in led.items()} == {
        "sqlalchemy.session.duration": ["session default"],
        "sqlalchemy.session.identity_map.size": ["session default"],
        "sqlalchemy.session.statements": ["session default"],
        "sqlalchemy.transaction.duration": ["transaction"],
        "sqlalchemy.connection.held.duration": ["transaction"],
        "sqlalchemy.connection.busy.duration": ["transaction"],
        "sqlalchemy.flush.duration": ["flush"],
        "db.client.operation.duration": ["flush"],
    }


def test_an_unsampled_session_has_no_exemplar(twin: Twin) -> None:
    async def story() -> None:
        exporter = Exporter(tracer_provider=traces.provider, meter_provider=measured.provider)
        with instrument(twin.factory, exporter=exporter):
            async with twin.session() as session:
                session.add_all(authors(1))
                await session.commit()

    traces, measured = Traces(sampler=ALWAYS_OFF), Measurements()
    twin.run(story)
    collected = measured.collect()
    assert measured.totals("sqlalchemy.session.duration") == {("default", "committed"): 1}
    assert [
        exemplar
        for metric in collected.values()
        for point in metric.data.data_points
        for exemplar in point.exemplars
    ] == []


def test_a_provider_is_not_kept_alive(twin: Twin) -> None:
    def use() -> weakref.ref[MeterProvider]:
        measured = Measurements()
        with instrument(twin.factory, exporter=Exporter(meter_provider=measured.provider)):
            twin.session()
        measured.provider.shutdown()
        return weakref.ref(measured.provider)

    provider = use()
    gc.collect()
    assert provider() is None


def test_counters_of_findings_and_errors_start_at_zero(twin: Twin) -> None:
    measured = Measurements()
    with instrument(twin.factory, exporter=Exporter(meter_provider=measured.provider), name="shop"):
        twin.session()
        collected = measured.collect()
    zeros = {
        (name, *sorted(map(str, (point.attributes or {}).values()))): total(point)
        for name in ("sqlalchemy.findings", "session_tracer.errors")
        for point in collected[name].data.data_points
    }
    of_findings = {("sqlalchemy.findings", *sorted((id_, "shop"))) for id_ in FINDING_IDS}
    assert zeros == dict.fromkeys(of_findings | {("session_tracer.errors", "shop")}, 0)
