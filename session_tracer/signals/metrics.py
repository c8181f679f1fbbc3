"""Tells a session's story as OpenTelemetry metrics."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Final

from opentelemetry import trace
from opentelemetry.metrics import (
    CallbackOptions,
    Histogram,
    Meter,
    MeterProvider,
    NoOpMeterProvider,
    Observation,
)

from session_tracer import facts
from session_tracer.signals import names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from opentelemetry.context import Context

    from session_tracer.facts import Counts
    from session_tracer.findings import Finding, Retraction
    from session_tracer.record import SessionRecord
    from session_tracer.settings import Settings
    from session_tracer.signals.names import Metric
    from session_tracer.signals.routes import Routes

__all__ = ["Ages", "MetricSignal"]

# The name of a factory, and the ages in seconds of its open sessions and open transactions.
Ages = tuple[str, list[float], list[float]]


class Instruments:
    """The instruments of one meter provider, shared by every tracer that uses it.

    Counters are observed rather than added to: a plain integer costs a hundredth of a call to
    `Counter.add`, and goes out as the same monotonic sum.
    """

    def __init__(self, meter: Meter) -> None:
        self.totals: dict[str, dict[tuple[tuple[str, str], ...], int]] = {}
        self._signals: weakref.WeakSet[MetricSignal] = weakref.WeakSet()
        self._histograms: dict[str, Histogram] = {}
        for metric in names.METRICS:
            self._create(meter, metric)

    def join(self, signal: MetricSignal) -> None:
        """Have the gauges ask this signal too, while it lives and is not closed."""
        self._signals.add(signal)

    def histogram(self, metric: Metric) -> Histogram:
        """The histogram of that metric."""
        return self._histograms[metric.name]

    def count(self, metric: Metric, attributes: Mapping[str, str], number: int = 1) -> None:
        """Add to a counter."""
        totals = self.totals[metric.name]
        key = tuple(attributes.items())
        with _LOCK:  # a thread may take over between reading and writing
            totals[key] = totals.get(key, 0) + number

    def _create(self, meter: Meter, metric: Metric) -> None:
        if metric.instrument == "histogram":
            self._histograms[metric.name] = meter.create_histogram(
                metric.name,
                metric.unit,
                metric.description,
                explicit_bucket_boundaries_advisory=metric.boundaries,
            )
        elif metric.instrument == "counter":
            self.totals[metric.name] = {}
            meter.create_observable_counter(
                metric.name, [self._counter(metric.name)], metric.unit, metric.description
            )
        elif metric.instrument == "up_down_counter":
            meter.create_observable_up_down_counter(
                metric.name, [self._gauge(metric, len)], metric.unit, metric.description
            )
        else:
            meter.create_observable_gauge(
                metric.name, [self._gauge(metric, _oldest)], metric.unit, metric.description
            )

    def _counter(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterator[Observation]:
            for key, total in list(self.totals[name].items()):
                yield Observation(total, dict(key))

        return observe

    def _gauge(
        self, metric: Metric, of: Callable[[list[float]], float]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        transactions = metric in (names.TRANSACTIONS_OPEN, names.TRANSACTION_OLDEST)

        def observe(_: CallbackOptions) -> Iterator[Observation]:
            ages: dict[str, list[float]] = {}
            for signal in list(self._signals):
                for name, of_sessions, of_transactions in signal.ages():
                    ages.setdefault(name, []).extend(
                        of_transactions if transactions else of_sessions
                    )
            for name, values in ages.items():
                yield Observation(of(values), {names.SESSION_NAME: name})

        return observe


def _oldest(ages: list[float]) -> float:
    return max(ages, default=0.0)


# Reentrant: the garbage collector may close a session anywhere.
_LOCK = threading.RLock()


def _renew_lock() -> None:
    global _LOCK
    _LOCK = threading.RLock()  # whoever held it does not live in the child


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_renew_lock)

# One set for each provider: a second instrument of the same name would only draw a warning.
_INSTRUMENTS: weakref.WeakKeyDictionary[MeterProvider, Instruments] = weakref.WeakKeyDictionary()


class MetricSignal:
    """The metrics of the sessions of one tracer.

    `ages` tells the open sessions when a reader collects. What a session did is added up in its
    record and handed over when it ends.
    """

    def __init__(
        self,
        provider: MeterProvider,
        name: str,
        settings: Settings,
        version: str,
        ages: Callable[[], Ages],
    ) -> None:
        self._idle = isinstance(provider, NoOpMeterProvider)
        instruments = _INSTRUMENTS.get(provider)
        if instruments is None:
            instruments = Instruments(provider.get_meter(names.SCOPE, version))
            _INSTRUMENTS[provider] = instruments
        self._instruments = instruments
        self._name = name
        self._ages: Callable[[], Ages] | None = ages
        self._statements = settings.statement_spans
        self._most_entities = settings.max_entities
        self._entities: set[str] = set()
        self._collections: set[str] = set()
        self._by_outcome: dict[tuple[str, str], dict[str, str]] = {}
        self._plain = {names.SESSION_NAME: name}
        histogram = instruments.histogram
        self._session_duration = histogram(names.SESSION_DURATION)
        self._identity_map = histogram(names.IDENTITY_MAP)
        self._session_statements = histogram(names.SESSION_STATEMENTS)
        self._transaction_duration = histogram(names.TRANSACTION_DURATION)
        self._held_duration = histogram(names.CONNECTION_HELD_DURATION)
        self._busy_duration = histogram(names.CONNECTION_BUSY_DURATION)
        self._flush_duration = histogram(names.FLUSH_DURATION)
        self._client_duration = histogram(names.CLIENT_OPERATION_DURATION)
        instruments.join(self)

    def begin(self, record: SessionRecord) -> MetricSignal:
        """Nothing is remembered for one session, so one teller serves all."""
        return self

    def ages(self) -> list[Ages]:
        """The ages of what is open now; nothing once this signal is closed."""
        return [] if self._ages is None else [self._ages()]

    def close(self) -> None:
        """Stop answering the gauges."""
        self._ages = None

    @property
    def routes(self) -> Routes:
        """Who hears of which facts; nobody where no provider takes measurements."""
        if self._idle:
            return {}
        return {**_TELLS, **_TELLS_OF_STATEMENTS} if self._statements else _TELLS

    def finding(self, finding: Finding, record: SessionRecord) -> None:
        """Count a finding."""
        self._instruments.count(
            names.FINDINGS,
            {
                names.SESSION_NAME: self._name,
                names.FINDING_ID: finding.id,
                names.FINDING_SEVERITY: finding.severity,
            },
        )

    def retracted(self, retraction: Retraction, record: SessionRecord) -> None:
        """A finding that was drawn stays counted."""

    def error(self, where: str) -> None:
        """Count a failure of the tracer's own."""
        self._instruments.count(names.ERRORS, {names.SESSION_NAME: self._name, names.WHERE: where})

    def _ended(self, fact: facts.TransactionEnded, record: SessionRecord) -> None:
        if not fact.nested:
            self._transaction_duration.record(
                fact.duration / 1e9,
                self._with(names.TRANSACTION_OUTCOME, fact.outcome),
                context=_exemplar(record),
            )

    def _released(self, fact: facts.ConnectionReleased, record: SessionRecord) -> None:
        context = _exemplar(record)
        self._held_duration.record(fact.held / 1e9, self._plain, context=context)
        self._busy_duration.record(fact.busy / 1e9, self._plain, context=context)

    def _flushed(
        self, fact: facts.FlushCompleted | facts.FlushFailed, record: SessionRecord
    ) -> None:
        attributes = self._with(names.FLUSH_TRIGGER, fact.trigger)
        if isinstance(fact, facts.FlushFailed):
            attributes = {**attributes, names.ERROR_TYPE: fact.error}
        self._flush_duration.record(fact.duration / 1e9, attributes, context=_exemplar(record))

    def _executed(self, fact: facts.StatementExecuted, record: SessionRecord) -> None:
        database = record.database
        if database is None:
            return
        batch = names.BATCH if fact.batch_size > 1 else ""
        attributes: dict[str, str | int] = {
            names.SESSION_NAME: self._name,
            names.DB_SYSTEM_NAME: database.system,
            names.DB_OPERATION_NAME: batch + fact.operation,
        }
        if database.namespace:
            attributes[names.DB_NAMESPACE] = database.namespace
        if database.address:
            attributes[names.SERVER_ADDRESS] = database.address
        if database.port is not None:
            attributes[names.SERVER_PORT] = database.port
        if fact.collection:
            attributes[names.DB_COLLECTION_NAME] = self._bounded(fact.collection, self._collections)
        if fact.error:
            attributes[names.ERROR_TYPE] = fact.error
        if fact.status:
            attributes[names.DB_RESPONSE_STATUS_CODE] = fact.status
        self._client_duration.record(fact.duration / 1e9, attributes, context=_exemplar(record))

    def _closed(self, fact: facts.SessionClosed, record: SessionRecord) -> None:
        context = _exemplar(record)
        self._session_duration.record(
            (record.closed_at - record.opened_at) / 1e9,
            self._with(names.SESSION_OUTCOME, fact.outcome),
            context=context,
        )
        if fact.outcome == "unused":
            return
        self._identity_map.record(record.identity_map_peak, self._plain, context=context)
        self._session_statements.record(record.statements, self._plain, context=context)
        self._count_objects("loaded", record.loaded)
        self._count_objects("new", record.new)
        self._count_objects("dirty", record.dirty)
        self._count_objects("unchanged", record.unchanged)
        self._count_objects("deleted", record.deleted)
        self._count_objects("detached", fact.detached)
        self._count_loads(record.lazy_loads)

    def _refused(self, fact: facts.DetachedLoadFailed, record: SessionRecord) -> None:
        self._count_loads({"detached": 1})

    def _count_objects(self, state: str, counts: Counts) -> None:
        for entity, number in counts.items():
            self._instruments.count(
                names.OBJECTS,
                {
                    names.SESSION_NAME: self._name,
                    names.OBJECT_STATE: state,
                    names.ENTITY: self._bounded(entity, self._entities),
                },
                number,
            )

    def _count_loads(self, counts: Counts) -> None:
        for kind, number in counts.items():
            self._instruments.count(
                names.LAZY_LOADS, {names.SESSION_NAME: self._name, names.KIND: kind}, number
            )

    def _bounded(self, value: str, known: set[str]) -> str:
        """The value while few enough of its kind are known."""
        if value in known:
            return value
        if len(known) >= self._most_entities:
            return names.OTHER
        known.add(value)
        return value

    def _with(self, attribute: str, value: str) -> dict[str, str]:
        """The attributes with one more, made once for each value."""
        attributes = self._by_outcome.get((attribute, value))
        if attributes is None:
            attributes = {names.SESSION_NAME: self._name, attribute: value}
            self._by_outcome[attribute, value] = attributes
        return attributes


_TELLS: Final[Routes] = {
    facts.TransactionEnded: MetricSignal._ended,
    facts.ConnectionReleased: MetricSignal._released,
    facts.FlushCompleted: MetricSignal._flushed,
    facts.FlushFailed: MetricSignal._flushed,
    facts.SessionClosed: MetricSignal._closed,
    facts.DetachedLoadFailed: MetricSignal._refused,
}
_TELLS_OF_STATEMENTS: Final[Routes] = {facts.StatementExecuted: MetricSignal._executed}


def _exemplar(record: SessionRecord) -> Context | None:
    """A context by which an exemplar finds the session's span; None for the caller's own."""
    if record.span_context is None:
        return None
    trace_id, span_id = record.span_context
    return trace.set_span_in_context(
        trace.NonRecordingSpan(
            trace.SpanContext(trace_id, span_id, is_remote=False, trace_flags=trace.TraceFlags(1))
        )
    )
