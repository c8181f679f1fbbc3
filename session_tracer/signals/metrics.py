"""Tells a session's story as OpenTelemetry metrics."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Final

from opentelemetry import trace
from opentelemetry.context import get_current
from opentelemetry.metrics import (
    CallbackOptions,
    Meter,
    MeterProvider,
    Observation,
)

from session_tracer.runtime import process, threads
from session_tracer.signals import names
from session_tracer.signals.histograms import RecordedHistograms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from session_tracer import facts
    from session_tracer.facts import Counts, Outcome, Trigger
    from session_tracer.ledger.registry import Ages
    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding
    from session_tracer.settings import Settings
    from session_tracer.signals.histograms import Histograms, Series
    from session_tracer.signals.names import Metric

__all__ = ["MetricSignal"]

# What is said of a statement; of these, what is said even if it is not known.
_OF_STATEMENTS: Final = (
    names.DB_SYSTEM_NAME,
    names.DB_OPERATION_NAME,
    names.DB_NAMESPACE,
    names.SERVER_ADDRESS,
    names.SERVER_PORT,
    names.DB_COLLECTION_NAME,
    names.ERROR_TYPE,
    names.DB_RESPONSE_STATUS_CODE,
)
_ALWAYS: Final = {names.DB_SYSTEM_NAME, names.DB_OPERATION_NAME}

_UNUSED: Final = "unused"
_STATES: Final = ("loaded", "new", "dirty", "unchanged", "deleted", "detached")


class Total:
    """A counter with one set of attributes."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 0


class Instruments:
    """The instruments of one meter provider, shared by every tracer that uses it.

    Counters are observed rather than added to: a plain integer costs a hundredth of a call to
    `Counter.add`, and is exported as the same monotonic sum.

    Args:
        histograms: The histograms that the provider's reader collects from session_tracer; None
            where the provider is to have histograms of its own.
    """

    def __init__(
        self, provider: MeterProvider, version: str, histograms: Histograms | None
    ) -> None:
        meter = provider.get_meter(names.SCOPE, version)
        self._totals: dict[str, dict[tuple[tuple[str, str], ...], Total]] = {}
        self._signals: weakref.WeakSet[MetricSignal] = weakref.WeakSet()
        self._histograms: Histograms | RecordedHistograms
        # The callbacks that are called before the first gauge is read.
        self._first: list[Callable[[CallbackOptions], Iterable[Observation]]] = []
        if histograms is None:
            self._histograms = recorded = RecordedHistograms(meter)
            self._first = [recorded.record_all]
        else:
            self._histograms = histograms
        for metric in names.METRICS:
            self._create(meter, metric)

    def join(self, signal: MetricSignal) -> None:
        """Have the gauges ask this signal too, while it lives and is not closed."""
        self._signals.add(signal)

    def series(self, metric: Metric, attributes: Mapping[str, str | int]) -> Series:
        """The series of a histogram with these attributes."""
        return self._histograms.series(metric, attributes)

    def total(self, metric: Metric, attributes: Mapping[str, str]) -> Total:
        """What to add to for a counter with these attributes, under `_LOCK`."""
        return self._totals[metric.name].setdefault(tuple(attributes.items()), Total())

    def count(self, metric: Metric, attributes: Mapping[str, str]) -> None:
        """Add one to a counter."""
        with _LOCK.value:
            self.total(metric, attributes).number += 1

    def _create(self, meter: Meter, metric: Metric) -> None:
        if metric.instrument == "counter":
            self._totals[metric.name] = {}
            meter.create_observable_counter(
                metric.name, [self._counter(metric.name)], metric.unit, metric.description
            )
        elif metric.instrument == "up_down_counter":
            meter.create_observable_up_down_counter(
                metric.name,
                [*self._first, self._gauge(metric, len)],
                metric.unit,
                metric.description,
            )
        elif metric.instrument == "gauge":
            meter.create_observable_gauge(
                metric.name, [self._gauge(metric, _oldest)], metric.unit, metric.description
            )

    def _counter(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterator[Observation]:
            for key, total in list(self._totals[name].items()):
                yield Observation(total.number, dict(key))

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


# For the totals: a thread may take over between reading and writing. Reentrant, for the garbage
# collector may close a session anywhere.
_LOCK: Final = process.PerProcess(threads.RLock)


# One set for each provider: a second instrument of the same name would only draw a warning. By the
# provider's id, for its class need not be hashable; an entry whose provider is gone is replaced.
_INSTRUMENTS: Final[dict[int, tuple[Callable[[], MeterProvider | None], Instruments]]] = {}


def _instruments_of(
    provider: MeterProvider, version: str, histograms: Histograms | None
) -> Instruments:
    for gone in [key for key, (known, _) in list(_INSTRUMENTS.items()) if known() is None]:
        _INSTRUMENTS.pop(gone, None)
    _, instruments = _INSTRUMENTS.get(id(provider), (None, None))
    if instruments is None:
        instruments = Instruments(provider, version, histograms)
        _INSTRUMENTS[id(provider)] = (_reference_to(provider), instruments)
    return instruments


def _reference_to(provider: MeterProvider) -> Callable[[], MeterProvider | None]:
    """A weak reference; one that keeps it alive, where its class allows no other."""
    try:
        return weakref.ref(provider)
    except TypeError:
        return lambda: provider


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
        histograms: Histograms | None = None,
    ) -> None:
        self._instruments = instruments = _instruments_of(provider, version, histograms)
        self._name = name
        self._ages: Callable[[], Ages] | None = ages
        self._statements = settings.statement_spans
        self._most_entities = settings.max_entities
        self._entities: set[str] = set()
        self._collections: set[str] = set()
        plain = {names.SESSION_NAME: name}
        self._identity_map = instruments.series(names.IDENTITY_MAP, plain)
        self._session_statements = instruments.series(names.SESSION_STATEMENTS, plain)
        self._held_duration = instruments.series(names.CONNECTION_HELD_DURATION, plain)
        self._busy_duration = instruments.series(names.CONNECTION_BUSY_DURATION, plain)
        self._session_duration: dict[str, Series] = {}
        self._transaction_duration: dict[str, Series] = {}
        self._flush_duration: dict[tuple[str, str], Series] = {}
        self._client_duration: dict[tuple[str | int | None, ...], Series] = {}
        self._objects: dict[str, dict[str, Total]] = {state: {} for state in _STATES}
        self._loads: dict[str, Total] = {}
        instruments.join(self)

    def ages(self) -> list[Ages]:
        """The ages of what is open now; nothing once this signal is closed."""
        return [] if self._ages is None else [self._ages()]

    def close(self) -> None:
        """Stop answering the gauges."""
        self._ages = None

    def finding(self, finding: Finding, report: Report) -> None:
        """Count a finding."""
        self._instruments.count(
            names.FINDINGS,
            {
                names.SESSION_NAME: self._name,
                names.FINDING_ID: finding.id,
                names.FINDING_SEVERITY: finding.severity,
            },
        )

    def error(self, where: str) -> None:
        """Count a failure of the tracer's own."""
        self._instruments.count(names.ERRORS, {names.SESSION_NAME: self._name, names.WHERE: where})

    def transaction_ended(self, report: Report, outcome: Outcome, duration: int) -> None:
        """A transaction, not a savepoint, ended after that many nanoseconds."""
        series = self._transaction_duration.get(outcome)
        if series is None:
            series = self._transaction_duration[outcome] = self._series(
                names.TRANSACTION_DURATION, {names.TRANSACTION_OUTCOME: outcome}
            )
        series.add(duration / 1e9, report.span_context, _is_sampled(report))

    def connection_released(self, report: Report, held: int, busy: int) -> None:
        """A connection was given back, held for so many nanoseconds and busy with SQL for some."""
        span, sampled = report.span_context, _is_sampled(report)
        self._held_duration.add(held / 1e9, span, sampled)
        self._busy_duration.add(busy / 1e9, span, sampled)

    def flushed(self, report: Report, trigger: Trigger, error: str, duration: int) -> None:
        """A flush ended after that many nanoseconds, perhaps with an error."""
        series = self._flush_duration.get((trigger, error))
        if series is None:
            attributes: dict[str, str] = {names.FLUSH_TRIGGER: trigger}
            if error:
                attributes[names.ERROR_TYPE] = error
            series = self._series(names.FLUSH_DURATION, attributes)
            self._flush_duration[trigger, error] = series
        series.add(duration / 1e9, report.span_context, _is_sampled(report))

    def statement_executed(self, report: Report, fact: facts.StatementExecuted) -> None:
        """A statement ended; only called where statement spans are asked for."""
        database = report.ledger.database
        if database is None:
            return
        collection = fact.collection and self._bounded(fact.collection, self._collections)
        values = (
            database.system,
            names.BATCH + fact.operation if fact.batch_size > 1 else fact.operation,
            database.namespace,
            database.address,
            database.port,
            collection,
            fact.error,
            fact.status,
        )
        series = self._client_duration.get(values)
        if series is None:
            series = self._client_duration[values] = self._series(
                names.CLIENT_OPERATION_DURATION,
                {
                    key: value
                    for key, value in zip(_OF_STATEMENTS, values, strict=True)
                    if value is not None and (value != "" or key in _ALWAYS)
                },
            )
        series.add(fact.duration / 1e9, report.span_context, _is_sampled(report))

    def session_ended(self, report: Report, detached: Counts) -> None:
        """The scope ended, as its ledger has it."""
        ledger = report.ledger
        outcome = ledger.outcome or "closed"
        span, sampled = report.span_context, _is_sampled(report)
        series = self._session_duration.get(outcome)
        if series is None:
            series = self._session_duration[outcome] = self._series(
                names.SESSION_DURATION, {names.SESSION_OUTCOME: outcome}
            )
        series.add((ledger.closed_at - ledger.opened_at) / 1e9, span, sampled)
        if outcome == _UNUSED:
            return
        self._identity_map.add(ledger.identity_map_peak, span, sampled)
        self._session_statements.add(ledger.statements, span, sampled)
        with _LOCK.value:
            for state, counts in (
                ("loaded", ledger.loaded),
                ("new", ledger.new),
                ("dirty", ledger.dirty),
                ("unchanged", ledger.unchanged),
                ("deleted", ledger.deleted),
                ("detached", detached),
            ):
                if counts:
                    self._count_objects(state, counts)
            for kind, number in ledger.lazy_loads.items():
                self._count_loads(kind, number)

    def closed_unused(self, duration: int) -> None:
        """A session was closed that was never used."""
        series = self._session_duration.get(_UNUSED)
        if series is None:
            series = self._session_duration[_UNUSED] = self._series(
                names.SESSION_DURATION, {names.SESSION_OUTCOME: _UNUSED}
            )
        series.add(duration / 1e9, None, False)

    def load_refused(self, report: Report) -> None:
        """A detached object was refused a load."""
        with _LOCK.value:
            self._count_loads("detached", 1)

    def _count_objects(self, state: str, counts: Counts) -> None:
        totals = self._objects[state]
        for entity, number in counts.items():
            total = totals.get(entity)
            if total is None:
                total = self._total_of(state, entity)
            total.number += number

    def _total_of(self, state: str, entity: str) -> Total:
        bounded = self._bounded(entity, self._entities)
        total = self._instruments.total(
            names.OBJECTS,
            {names.SESSION_NAME: self._name, names.OBJECT_STATE: state, names.ENTITY: bounded},
        )
        if bounded == entity:  # else there may be any number of them
            self._objects[state][entity] = total
        return total

    def _count_loads(self, kind: str, number: int) -> None:
        total = self._loads.get(kind)
        if total is None:
            total = self._loads[kind] = self._instruments.total(
                names.LAZY_LOADS, {names.SESSION_NAME: self._name, names.KIND: kind}
            )
        total.number += number

    def _bounded(self, value: str, known: set[str]) -> str:
        """The value while few enough of its kind are known."""
        if value in known:
            return value
        if len(known) >= self._most_entities:
            return names.OTHER
        known.add(value)
        return value

    def _series(self, metric: Metric, attributes: Mapping[str, str | int]) -> Series:
        return self._instruments.series(metric, {names.SESSION_NAME: self._name, **attributes})


def _is_sampled(report: Report) -> bool:
    """Whether the session's span is recorded; where it has none, whether the caller's is."""
    if report.span_context is not None:
        return True
    context = get_current()
    if not context:
        return False
    return trace.get_current_span(context).get_span_context().trace_flags.sampled
