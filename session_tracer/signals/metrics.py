"""Reports sessions as OpenTelemetry metrics."""

from __future__ import annotations

import weakref
from collections import Counter, defaultdict
from functools import partial
from operator import attrgetter
from time import time_ns
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from opentelemetry import trace
from opentelemetry.context import get_current
from opentelemetry.metrics import (
    CallbackOptions,
    Meter,
    MeterProvider,
    Observation,
)

from session_tracer.model.findings import FINDING_IDS, LASTING
from session_tracer.runtime import process, threads
from session_tracer.signals import names
from session_tracer.signals.histograms import RecordedHistograms
from session_tracer.signals.holders import HolderLines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from session_tracer import facts
    from session_tracer.facts import Counts, Database, Outcome, Trigger
    from session_tracer.ledger.pools import PoolNow
    from session_tracer.ledger.registry import OpenNow
    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding
    from session_tracer.settings import Settings
    from session_tracer.signals.histograms import Histograms, Row, Series, Span
    from session_tracer.signals.names import Metric
    from session_tracer.where.callsite import CallSite

__all__ = ["MetricSignal"]

# The attributes of a statement's duration; of these, those that are there even if not known.
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
# What is kept of a scope that ended.
_totals: Final = attrgetter(
    "opened_at",
    "closed_at",
    "identity_map_peak",
    "statements",
    "lazy_loads",
    *_STATES,
)


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
        self._lines: dict[str, HolderLines] = {}
        self._histograms = RecordedHistograms(meter) if histograms is None else histograms
        self.waiting = self._histograms.waiting
        for metric in names.METRICS:
            self._create(meter, metric)

    def join(self, signal: MetricSignal, name: str) -> None:
        """Have the gauges ask this signal too, while it lives and is not closed."""
        self._signals.add(signal)
        # From 0 on: increase() of a counter that appears with its first event does not count that.
        with _LOCK.value:
            for id_ in FINDING_IDS:
                self.total(names.FINDINGS, {names.SESSION_NAME: name, names.FINDING_ID: id_})
            self.total(names.ERRORS, {names.SESSION_NAME: name})

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
        if metric.name in _OF_POOLS:
            create = (
                meter.create_observable_counter
                if metric.instrument == "counter"
                else meter.create_observable_gauge
            )
            observed = self._pools(_OF_POOLS[metric.name])
            create(metric.name, [observed], metric.unit, metric.description)
        elif metric.instrument == "counter":
            self._totals[metric.name] = {}
            meter.create_observable_counter(
                metric.name, [self._counter(metric.name)], metric.unit, metric.description
            )
        elif metric.instrument == "up_down_counter":
            meter.create_observable_up_down_counter(
                metric.name,
                # SESSIONS_OPEN is the first that a collection asks: counters count what waits, too.
                [self._histograms.take_waiting, self._gauge(_OBSERVED[metric.name])],
                metric.unit,
                metric.description,
            )
        elif metric.instrument == "gauge":
            meter.create_observable_gauge(
                metric.name,
                [self._gauge(_OBSERVED.get(metric.name, self._holders))],
                metric.unit,
                metric.description,
            )

    def _counter(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterator[Observation]:
            for key, total in list(self._totals[name].items()):
                yield Observation(total.number, dict(key))

        return observe

    def _gauge(self, of: Observed) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterator[Observation]:
            by_name: dict[str, list[OpenNow]] = {}
            for signal in list(self._signals):
                for one in signal.open_now():
                    by_name.setdefault(one.name, []).append(one)
            for name, every in by_name.items():
                for number, attributes in of(every):
                    yield Observation(number, {names.SESSION_NAME: name, **attributes})

        return observe

    def _holders(self, every: list[OpenNow]) -> list[tuple[float, dict[str, str | int]]]:
        held: Counter[CallSite | None] = Counter()
        for one in every:
            held.update(one.holders)
        with _LOCK.value:
            lines = self._lines.setdefault(every[0].name, HolderLines())
            return [(number, attributes) for number, attributes in lines.observe(held)]

    def _pools(self, of: OfPool) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterator[Observation]:
            seen: set[int] = set()
            for signal in sorted(self._signals, key=lambda one: one.name):
                for name, key, pool in signal.pools():
                    if key in seen:
                        continue  # factories that share an engine share its pool
                    seen.add(key)
                    common = {names.SESSION_NAME: name, names.POOL_NAME: pool.name}
                    for number, attributes in of(pool):
                        if number is not None:
                            yield Observation(number, {**common, **attributes})

        return observe


# What is observed of a pool: numbers, None where the pool does not know one, and attributes.
OfPool: TypeAlias = "Callable[[PoolNow], Iterable[tuple[int | None, dict[str, str]]]]"


def _connections(pool: PoolNow) -> Iterator[tuple[int | None, dict[str, str]]]:
    yield pool.used, {names.POOL_STATE: "used"}
    yield pool.idle, {names.POOL_STATE: "idle"}


_OF_POOLS: Final[Mapping[str, OfPool]] = {
    names.POOL_CONNECTIONS.name: _connections,
    names.POOL_MOST.name: lambda pool: [(pool.most, {})],
    names.POOL_WAITING.name: lambda pool: [(pool.waiting, {})],
    names.POOL_TIMEOUTS.name: lambda pool: [(pool.timeouts, {})],
}


# What is observed of the open sessions of one name: numbers and attributes.
Observed: TypeAlias = "Callable[[list[OpenNow]], Iterable[tuple[float, Mapping[str, str | int]]]]"


def _number(of: Callable[[OpenNow], list[float]]) -> Observed:
    return lambda every: [(sum(len(of(one)) for one in every), {})]


def _oldest(of: Callable[[OpenNow], list[float]]) -> Observed:
    return lambda every: [(max((age for one in every for age in of(one)), default=0.0), {})]


def _suspects(every: list[OpenNow]) -> Iterator[tuple[float, dict[str, str]]]:
    # Zero, too: that a finding is retracted, or was never reported, is a value.
    numbers = Counter(dict.fromkeys(LASTING, 0))
    for one in every:
        numbers.update(one.suspects)
    for id_, number in numbers.items():
        yield number, {names.FINDING_ID: id_}


_sessions: Final = attrgetter("sessions")
_transactions: Final = attrgetter("transactions")
_OBSERVED: Final[Mapping[str, Observed]] = {
    names.SESSIONS_OPEN.name: _number(_sessions),
    names.SESSION_OLDEST.name: _oldest(_sessions),
    names.SUSPECTS.name: _suspects,
    names.TRANSACTIONS_OPEN.name: _number(_transactions),
    names.TRANSACTION_OLDEST.name: _oldest(_transactions),
}


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


class _Taker:
    """Passes rows of one kind to `take`, and calls `failed` if that raises an exception."""

    __slots__ = ("_failed", "_take")

    def __init__(
        self, take: Callable[[Sequence[Row]], None], failed: Callable[[str, Exception], None]
    ) -> None:
        self._take = take
        self._failed = failed

    def take(self, rows: Sequence[Row]) -> None:
        try:
            self._take(rows)
        except Exception as error:
            self._failed(MetricSignal.__name__, error)


class _Takers(dict[Any, _Taker]):
    """What takes rows of one kind, by the value that these have in common, such as an outcome."""

    __slots__ = ("_failed", "_take")

    def __init__(
        self,
        take: Callable[[Any, Sequence[Row]], None],
        failed: Callable[[str, Exception], None],
    ) -> None:
        self._take = take
        self._failed = failed

    def __missing__(self, key: Any) -> _Taker:
        taker = self[key] = _Taker(partial(self._take, key), self._failed)
        return taker


class MetricSignal:
    """The metrics of the sessions of one tracer.

    `open_now` returns the open sessions when a reader collects, and `pools` the pools that they
    use. Of each transaction, flush and session that ends, one row is kept until then, or until
    there are many. Keeping a row runs no code of another library and never raises. `failed` is
    called if a row cannot be counted.
    """

    def __init__(
        self,
        provider: MeterProvider,
        name: str,
        settings: Settings,
        version: str,
        *,
        open_now: Callable[[], OpenNow],
        pools: Callable[[], list[tuple[int, PoolNow]]],
        failed: Callable[[str, Exception], None],
        histograms: Histograms | None = None,
    ) -> None:
        self._instruments = instruments = _instruments_of(provider, version, histograms)
        self._waiting = instruments.waiting
        self.name = name
        self._open_now: Callable[[], OpenNow] | None = open_now
        self._pools = pools
        self._failed = failed
        self._most_entities = settings.max_entities
        self._entities: set[str] = set()
        self._collections: set[str] = set()
        self._series: dict[tuple[Any, ...], Series] = {}
        self._objects: dict[str, dict[str, Total]] = {state: {} for state in _STATES}
        self._loads: dict[tuple[str, str], Total] = {}
        self._transactions = _Takers(self._take_transactions, failed)
        self._flushes = _Takers(self._take_flushes, failed)
        self._statements = _Taker(self._take_statements, failed)
        self._sessions = _Takers(self._take_sessions, failed)
        self._unused = _Taker(self._take_unused, failed)
        instruments.join(self, name)

    def open_now(self) -> list[OpenNow]:
        """What is open now; nothing once this signal is closed."""
        return [] if self._open_now is None else [self._open_now()]

    def pools(self) -> list[tuple[str, int, PoolNow]]:
        """The pools in use, each with a key of its own; none once this signal is closed."""
        if self._open_now is None:
            return []
        return [(self.name, key, pool) for key, pool in self._pools()]

    def pool_waits(self, pool: str) -> tuple[object, tuple[Any, Any]]:
        """The instruments, and where the nanoseconds of a checkout are added to them.

        That is the rows that wait, and what takes them.
        """
        taker = _Taker(partial(self._take_waits, pool), self._failed)
        return self._instruments, (self._waiting, taker)

    def close(self) -> None:
        """Stop answering the gauges."""
        self._open_now = None

    def finding(self, finding: Finding, report: Report) -> None:
        """Count a finding."""
        self._instruments.count(
            names.FINDINGS,
            {
                names.SESSION_NAME: self.name,
                names.FINDING_ID: finding.id,
                names.FINDING_SEVERITY: finding.severity,
                **_work(finding.work),
            },
        )

    def error(self, where: str) -> None:
        """Count a failure of the tracer's own."""
        self._instruments.count(names.ERRORS, {names.SESSION_NAME: self.name, names.WHERE: where})

    # What is kept. The loops of a session call these, so none calls another.

    def transaction_ended(
        self,
        report: Report,
        outcome: Outcome,
        duration: int,
        held: tuple[tuple[int, int], ...],
    ) -> None:
        """A transaction, not a savepoint, ended.

        Args:
            report: The report of its session.
            outcome: How it ended.
            duration: Its duration in nanoseconds.
            held: For how long it held each connection, and how much of that was spent in SQL.
        """
        span = report.span_context
        if span is None and report.may_be_traced and get_current():
            span = _sampled_span()
        waiting, taker = self._waiting, self._transactions[outcome]
        waiting.append((taker, span, time_ns() if span else 0, duration, held))
        if len(waiting) >= waiting.limit:
            waiting.relieve()

    def flushed(self, report: Report, trigger: Trigger, error: str, duration: int) -> None:
        """A flush ended after that many nanoseconds, perhaps with an error."""
        span = report.span_context
        if span is None and report.may_be_traced and get_current():
            span = _sampled_span()
        waiting, taker = self._waiting, self._flushes[trigger, error]
        waiting.append((taker, span, time_ns() if span else 0, duration))
        if len(waiting) >= waiting.limit:
            waiting.relieve()

    def statement_executed(self, report: Report, fact: facts.StatementExecuted) -> None:
        """A statement ended; only called where statement spans are asked for."""
        if report.ledger.database is None:
            return
        span = report.span_context
        if span is None and report.may_be_traced and get_current():
            span = _sampled_span()
        waiting, database = self._waiting, report.ledger.database
        waiting.append((self._statements, span, time_ns() if span else 0, database, fact))
        if len(waiting) >= waiting.limit:
            waiting.relieve()

    def session_ended(self, report: Report) -> None:
        """The scope ended, as its ledger has it."""
        span = report.span_context
        if span is None and report.may_be_traced and get_current():
            span = _sampled_span()
        ledger = report.ledger
        # A name is only needed where loads are counted by it.
        work = ledger.work if ledger.lazy_loads else ""
        waiting, taker = self._waiting, self._sessions[ledger.outcome]
        waiting.append((taker, span, time_ns() if span else 0, work, _totals(ledger)))
        if len(waiting) >= waiting.limit:
            waiting.relieve()

    def closed_unused(self, duration: int) -> None:
        """A session was closed that was never used."""
        waiting = self._waiting
        waiting.append((self._unused, None, 0, duration))
        if len(waiting) >= waiting.limit:
            waiting.relieve()

    # What is made of it.

    def _take_transactions(self, outcome: Outcome, rows: Sequence[Row]) -> None:
        of_outcome = names.TRANSACTION_DURATION, names.TRANSACTION_OUTCOME, outcome
        self._series_of(*of_outcome).add([row[3] / 1e9 for row in rows], rows)
        held = [(row, *one) for row in rows for one in row[4]]
        of = [row for row, _, _ in held]
        self._series_of(names.CONNECTION_HELD_DURATION).add([one / 1e9 for _, one, _ in held], of)
        self._series_of(names.CONNECTION_BUSY_DURATION).add([one / 1e9 for _, _, one in held], of)

    def _take_flushes(self, kind: tuple[Trigger, str], rows: Sequence[Row]) -> None:
        trigger, error = kind
        failed = (names.ERROR_TYPE, error) if error else ()
        series = self._series_of(names.FLUSH_DURATION, names.FLUSH_TRIGGER, trigger, *failed)
        series.add([row[3] / 1e9 for row in rows], rows)

    def _take_statements(self, rows: Sequence[Row]) -> None:
        kinds: defaultdict[tuple[Any, ...], list[Row]] = defaultdict(list)
        for row in rows:
            database, fact = row[3:]
            is_batch = fact.batch_size > 1
            kind = (fact.operation, is_batch, fact.collection, fact.error, fact.status)
            # Its hash is computed by Python code, its id is not.
            kinds[id(database), *kind].append(row)
        for alike in kinds.values():
            attributes = self._of_statement(*alike[0][3:])
            series = self._series_of(names.CLIENT_OPERATION_DURATION, *attributes)
            series.add([row[4].duration / 1e9 for row in alike], alike)

    def _of_statement(self, database: Database, fact: facts.StatementExecuted) -> list[str | int]:
        values = (
            database.system,
            names.BATCH + fact.operation if fact.batch_size > 1 else fact.operation,
            database.namespace,
            database.address,
            database.port,
            fact.collection and self._bounded(fact.collection, self._collections),
            fact.error,
            fact.status,
        )
        return [
            one
            for key, value in zip(_OF_STATEMENTS, values, strict=True)
            if value is not None and (value != "" or key in _ALWAYS)
            for one in (key, value)
        ]

    def _take_sessions(self, outcome: str, rows: Sequence[Row]) -> None:
        columns = zip(*[row[4] for row in rows], strict=True)
        opened_at, closed_at, peaks, statements, loads, *objects = columns
        series = self._series_of(names.SESSION_DURATION, names.SESSION_OUTCOME, outcome or "closed")
        lives = zip(opened_at, closed_at, strict=True)
        series.add([(closed - opened) / 1e9 for opened, closed in lives], rows)
        if outcome == _UNUSED:
            return
        self._series_of(names.IDENTITY_MAP).add(peaks, rows)
        self._series_of(names.SESSION_STATEMENTS).add(statements, rows)
        with _LOCK.value:
            for state, every in zip(_STATES, objects, strict=True):
                for counts in filter(None, every):
                    self._count_objects(state, counts)
            for row, kinds in zip(rows, loads, strict=True):
                for kind, number in kinds.items():
                    self._count_loads(kind, row[3], number)

    def _take_unused(self, rows: Sequence[Row]) -> None:
        series = self._series_of(names.SESSION_DURATION, names.SESSION_OUTCOME, _UNUSED)
        series.add([row[3] / 1e9 for row in rows], rows)

    def _take_waits(self, pool: str, rows: Sequence[Row]) -> None:
        series = self._series_of(names.POOL_WAIT, names.POOL_NAME, pool)
        series.add([row[3] / 1e9 for row in rows], rows)

    def load_refused(self, report: Report) -> None:
        """A detached object was refused a load."""
        with _LOCK.value:
            self._count_loads("detached", report.ledger.work, 1)

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
            {names.SESSION_NAME: self.name, names.OBJECT_STATE: state, names.ENTITY: bounded},
        )
        if bounded == entity:  # else there may be any number of them
            self._objects[state][entity] = total
        return total

    def _count_loads(self, kind: str, work: str, number: int) -> None:
        total = self._loads.get((kind, work))
        if total is None:
            total = self._loads[kind, work] = self._instruments.total(
                names.LAZY_LOADS,
                {names.SESSION_NAME: self.name, names.KIND: kind, **_work(work)},
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

    def _series_of(self, metric: Metric, *attributes: str | int) -> Series:
        """The series of a histogram with these attributes, each a key and a value in turn."""
        key = (metric.name, *attributes)
        series = self._series.get(key)
        if series is None:
            named: dict[str, str | int] = {names.SESSION_NAME: self.name}
            named |= zip(map(str, attributes[::2]), attributes[1::2], strict=True)
            series = self._series[key] = self._instruments.series(metric, named)
        return series


def _work(name: str) -> dict[str, str]:
    """The attribute of what a session works for, if it is known: at most `max_works` names."""
    return {names.SESSION_WORK: name} if name else {}


def _sampled_span() -> Span | None:
    """The caller's span, if it is sampled."""
    context = trace.get_current_span().get_span_context()
    return (context.trace_id, context.span_id) if context.trace_flags.sampled else None
