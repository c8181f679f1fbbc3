"""Reports sessions as structured log events."""

from __future__ import annotations

import sys
import time
from functools import lru_cache
from itertools import compress
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry import trace

from session_tracer import facts
from session_tracer.model.findings import ranked
from session_tracer.model.summary import COUNTS, NUMBERS
from session_tracer.runtime import process
from session_tracer.runtime.environment import has_structlog, service
from session_tracer.signals import names
from session_tracer.signals.limiter import Limiter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from session_tracer.exporter import Exporter, LogEvent
    from session_tracer.facts import Fact
    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding, Lasting, Retraction
    from session_tracer.settings import Settings
    from session_tracer.signals.limiter import Held
    from session_tracer.where.callsite import CallSite

__all__ = ["LEVELS", "LogSignal"]

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_MOST_SITES: Final = 1_000
# Of one session, in `session.closed`.
_MOST_FINDINGS: Final = 20
_NEVER: Final = 1_000
_DEBUG: Final = LEVELS["debug"]
_STRUCTLOG: Final = "structlog"


class LogSignal:
    """The log events of the sessions of one tracer.

    They go to structlog where the application has configured it, so that its processors render
    them; and to the exporter, if it takes logs. An event that nothing would receive is not built.
    A key whose value is zero or empty is left out, but for `suppressed` of a finding: the sum of
    1 + `suppressed` over the events is the number of findings.

    Args:
        exporters: Where the events go.
        settings: The settings.
        failed: Called with a failure to log what was held back.
    """

    def __init__(
        self,
        exporters: tuple[Exporter, ...],
        settings: Settings,
        failed: Callable[[str, Exception], None],
    ) -> None:
        carriers = [exporter for exporter in exporters if exporter.wants_logs]
        self._of_findings = _Sinks(carriers, settings)
        self._of_all = _Sinks([one for one in carriers if not one.only_findings], settings)
        # The lowest level that reaches anything where the application does not use structlog.
        self.least = self._of_all.least
        self._uses_structlog = all(exporter.structlog for exporter in exporters)
        self._providers = [one.tracer_provider for one in exporters if one.wants_spans]
        self._about_process: LogEvent = {}
        self._slow = settings.slow_session_seconds * 1e9
        self._failed = failed
        self._limiter = Limiter(settings.repeat_finding_seconds, self._held)

    def least_level(self) -> int:
        """The number of the lowest level of an event that reaches anything now."""
        if self.least <= _DEBUG or _STRUCTLOG not in sys.modules:
            return self.least
        return next((level for level in LEVELS.values() if self._heard(level)), _NEVER)

    def fact(self, fact: Fact, report: Report) -> None:
        """Log a fact that has an event of its own, which all are of level debug."""
        if isinstance(fact, facts.SessionOpened):
            self._opened(fact, report)
        elif isinstance(fact, facts.TransactionEnded):
            self._ended(fact, report)
        elif isinstance(fact, facts.FlushCompleted):
            self._flush_completed(fact, report)

    def moment(self, report: Report, note: Callable[[Moment], None]) -> None:
        """Note what an event that is logged later has of this moment."""
        note(_moment(report, time.time_ns()))

    def finding(self, finding: Finding, report: Report, moment: Moment | None = None) -> None:
        """Log a finding at its severity; its repeats are held back and counted."""
        if not self._is_received(finding):
            return
        repeated = (finding.id, finding.entity, finding.attribute, finding.site, finding.work)
        moment = moment or _moment(report)
        if not self._limiter.hold(repeated, (finding, moment)):
            self._log_finding(finding, moment, 0)

    def _is_received(self, finding: Finding) -> bool:
        """Whether anything receives events about the finding."""
        number = LEVELS[finding.severity]
        return number >= self._of_findings.least or self._is_enabled(number)

    def _log_finding(self, finding: Finding, moment: Moment, suppressed: int) -> None:
        fields = {
            "finding_id": finding.id,
            "severity": finding.severity,
            # Not "message": a stdlib LogRecord has one, and refuses a second.
            "explanation": finding.message,
            "remedy": finding.remedy,
            "site": _site(finding.site),
            "session_site": _site(finding.session_site),
            "entity": finding.entity,
            "attribute": finding.attribute,
            "count": finding.count,
            **finding.evidence,
            "help": finding.help,
        }
        flat = _flat(moment.identity, fields)
        flat["suppressed"] = suppressed
        self._log_at(moment, finding.severity, names.FINDING, flat)

    def flush(self) -> None:
        """Log what is held back."""
        self._limiter.flush()

    def close(self) -> None:
        """Log what is held back, and hold nothing back any more."""
        self._limiter.close()

    def _held(self, held: Held) -> None:
        """Log what was held back; never raises."""
        try:
            latest = held.latest
            if isinstance(latest, _Closed):
                latest = latest.summed()
            if isinstance(latest, _Summed):
                fields = {"suppressed_event": latest.event, "suppressed": held.count}
                sums = {key: round(number, 3) for key, number in held.sums.items()}
                flat = _flat(latest.identity, fields | latest.fields | sums)
                self._log(latest.level, names.SUPPRESSED, flat, self._of_all, {})
            else:
                finding, found = latest
                # It is logged now, and not when it was found.
                moment = Moment(found.identity, found.bound, 0)
                self._log_finding(finding, moment, held.count - 1)
        except Exception as error:
            self._failed(type(self).__name__, error)

    def _sums_up(self) -> bool:
        """Whether repeats are held back: code that asked for all events gets all."""
        return self.least > _DEBUG and not self._heard(_DEBUG)

    def lasting(self, lasting: Lasting, report: Report, moment: Moment | None, lasts: int) -> None:
        """Log that a finding still holds, which it has for `lasts` nanoseconds.

        Repeats are held back and counted as those of the finding are.
        """
        finding = lasting.finding
        if not self._is_received(finding):
            return
        fields = {
            "finding_id": finding.id,
            "explanation": lasting.message,
            "remedy": finding.remedy,
            "site": _site(finding.site),
        }
        identity = {"session_name": report.name, "work": finding.work}
        repeated = _Summed(finding.severity, names.FINDING_LASTING, identity, fields)
        key = (names.FINDING_LASTING, finding.id, finding.site, finding.work)
        if self._limiter.hold(key, repeated):
            return
        fields["session_site"] = _site(finding.session_site)
        held = {"lasting_ms": _ms(lasts), **lasting.evidence}
        moment = moment or _moment(report)
        flat = _flat(moment.identity, fields | held)
        self._log_at(moment, finding.severity, names.FINDING_LASTING, flat)

    def retracted(
        self, retraction: Retraction, report: Report, moment: Moment | None = None
    ) -> None:
        """Log that a finding is retracted, even if it was held back itself."""
        finding = retraction.finding
        fields = {
            "finding_id": finding.id,
            "explanation": retraction.message,
            "site": _site(finding.site),
            "session_site": _site(finding.session_site),
            **retraction.evidence,
        }
        moment = moment or _moment(report)
        self._log_at(moment, "info", names.FINDING_RETRACTED, _flat(moment.identity, fields))

    def _opened(self, fact: facts.SessionOpened, report: Report) -> None:
        fields = {
            "site": _site(fact.site),
            "async": report.ledger.is_async,
            "reopened": fact.reopened,
        }
        self._emit("debug", names.SESSION_OPENED, report, fields)

    def _ended(self, fact: facts.TransactionEnded, report: Report) -> None:
        fields = {
            "outcome": fact.outcome,
            "nested": fact.nested,
            "two_phase": fact.two_phase,
            "duration_ms": _ms(fact.duration),
            "error_type": fact.error or None,
            "site": _site(fact.site),
        }
        self._emit("debug", names.TRANSACTION_ENDED, report, fields)

    def _flush_completed(self, fact: facts.FlushCompleted, report: Report) -> None:
        fields = {
            "trigger": fact.trigger,
            "duration_ms": _ms(fact.duration),
            "new": fact.new,
            "dirty": fact.dirty,
            "unchanged": fact.unchanged,
            "deleted": fact.deleted,
            "site": _site(fact.site),
        }
        self._emit("debug", names.FLUSH_COMPLETED, report, fields)

    def flush_failed(self, report: Report, decided: facts.FlushFailureDecided) -> None:
        """Log a flush that failed: a warning, unless the application has handled it.

        Repeats are held back and summed up.
        """
        fact = decided.failed
        level = "warning" if decided.unhandled else "info"
        if not self._heard(LEVELS[level]):
            return
        site = _site(fact.site)
        summed = _Summed(
            level,
            names.FLUSH_FAILED,
            {"session_name": report.name, "work": report.ledger.work},
            {"error_type": fact.error, "constraint": fact.constraint, "site": site},
        )
        key = (level, names.FLUSH_FAILED, report.ledger.work, *summed.fields.values())
        if self._sums_up() and self._limiter.hold(key, summed, *_numbers_of_flush(fact)):
            return
        fields = {
            "trigger": fact.trigger,
            "duration_ms": _ms(fact.duration),
            "error_type": fact.error,
            "constraint": fact.constraint or None,
            "new": fact.new,
            "dirty": fact.dirty,
            "deleted": fact.deleted,
            "site": site,
        }
        self._emit(level, names.FLUSH_FAILED, report, fields)

    def session_closed(self, report: Report) -> None:
        """Log everything about a scope in one event, as its ledger has it.

        At the level info, repeats are held back and summed up.
        """
        ledger = report.ledger
        duration = ledger.closed_at - ledger.opened_at
        is_notable = (
            ledger.new
            or ledger.dirty
            or ledger.deleted
            or report.findings
            or ledger.outcome in ("failed", "abandoned")
            or duration > self._slow
        )
        level = "info" if is_notable else "debug"
        number = LEVELS[level]
        if number < self.least and not self._heard(number):
            return
        if is_notable and self._sums_up():
            closed = _closed(report)
            if self._limiter.hold(closed, closed, _SUMMED, _numbers_of_session(report)):
                return
        fields = _identity(report)
        fields["outcome"] = ledger.outcome
        fields["ending"] = ledger.ending
        if ledger.is_async:
            fields["async"] = True
        fields["duration_ms"] = round(duration / 1e6, 3)
        if ledger.held:
            fields["held_ms"] = round(ledger.held / 1e6, 3)
        if ledger.sql:
            fields["sql_ms"] = round(ledger.sql / 1e6, 3)
        numbers = _numbers(ledger)
        fields.update(compress(zip(NUMBERS, numbers, strict=True), numbers))
        counts = _counts(ledger)
        for (key, by), count in compress(zip(_BY.items(), counts, strict=True), counts):
            _count(fields, key, by, count)
        if report.findings:
            fields["findings"] = _totals(report.findings, duration)
        if ledger.error:
            fields["error_type"] = ledger.error
        if ledger.opened_site is not None:
            fields["session_site"] = _site(ledger.opened_site)
        if ledger.closed_site is not None:
            fields["site"] = _site(ledger.closed_site)
        database = ledger.database
        if database is not None:
            if database.system:
                fields["db_system"] = database.system
            if database.namespace:
                fields["db_namespace"] = database.namespace
        self._log(level, names.SESSION_CLOSED, fields, self._of_all, ledger.bound)

    def _heard(self, number: int) -> bool:
        """Whether an event of the level of that number reaches anything."""
        return number >= self.least or self._is_enabled(number)

    def _is_enabled(self, number: int) -> bool:
        """Whether structlog takes an event of the level of that number."""
        return self._uses_structlog and has_structlog() and _enabled(number)

    def _emit(
        self,
        level: str,
        event: str,
        report: Report,
        fields: Mapping[str, Any],
    ) -> None:
        flat = _flat(_identity(report), fields)
        self._log(level, event, flat, self._of_all, report.ledger.bound)

    def _log_at(self, moment: Moment, level: str, event: str, fields: LogEvent) -> None:
        """Log an event about a finding."""
        self._log(level, event, fields, self._of_findings, moment.bound, moment.at)

    def _log(
        self,
        level: str,
        event: str,
        fields: LogEvent,
        sinks: _Sinks,
        bound: Mapping[str, Any],
        at: int = 0,
    ) -> None:
        number, at = LEVELS[level], at or time.time_ns()
        fields |= self._process()
        has_configured = self._uses_structlog and has_structlog()
        if has_configured:
            logger = _logger()
            if _enabled(number, logger):
                _log_to(logger, level, event, fields, bound)
        if number >= sinks.least:
            log_event = {
                "timestamp": timestamp(at),
                "level": level,
                "event": event,
                "logger": names.SCOPE,
                **fields,
            }
            for on_log, yields in sinks.on_log:
                if not (yields and has_configured):
                    on_log(log_event)

    def _process(self) -> LogEvent:
        """Which process it is from."""
        about = self._about_process
        if not about or about["process_pid"] != process.pid():
            provider = next(iter(self._providers), trace.get_tracer_provider())
            about = {"process_pid": process.pid(), "host": process.host(), **service(provider)}
            self._about_process = about
        return about


class Moment(NamedTuple):
    """What an event has of the moment that it is about: `at` is 0 if that is now."""

    identity: LogEvent
    bound: Mapping[str, Any]
    at: int


def _moment(report: Report, at: int = 0) -> Moment:
    return Moment(_identity(report), report.ledger.bound, at)


class _Sinks:
    """What takes log events, whether each yields to structlog, and the lowest level they take."""

    def __init__(self, exporters: list[Exporter], settings: Settings) -> None:
        self.on_log = tuple((one.on_log, one.yields_to_structlog) for one in exporters)
        # Above every level where there is nothing to take them.
        self.least = LEVELS[settings.log_level] if exporters else _NEVER


def _identity(report: Report) -> LogEvent:
    """What each event begins with: the session, for whom it works, and the span."""
    ledger = report.ledger
    fields: LogEvent = {"session_id": ledger.id, "session_name": report.name}
    if work := ledger.work:
        fields["work"] = work
    fields[ledger.owner.kind] = ledger.owner.given_name
    # A session's span that is not sampled is nowhere: its caller's is, or at least the trace is.
    trace_id, span_id, *_ = report.span_context or report.tracer.caller(ledger.context or None)
    if trace_id and span_id:
        fields["trace_id"] = f"{trace_id:032x}"
        fields["span_id"] = f"{span_id:016x}"
    return fields


_name_and_number: Final = "%s=%s".__mod__
# The keys of the texts of `COUNTS`, in their order.
_BY: Final = {
    **{key: f"{key}_by_entity" for key in COUNTS},
    "lazy_loads": "lazy_loads_by_kind",
    "transitions": "transitions_by_event",
}


class _Summed(NamedTuple):
    """What events that are held back have in common, and are logged with once."""

    level: str
    event: str
    identity: LogEvent
    fields: dict[str, Any]


class _Closed(NamedTuple):
    """What sessions have in common whose ends are logged with once."""

    event: str
    session_name: str
    work: str
    outcome: str | None
    error: str
    opened_site: CallSite | None
    closed_site: CallSite | None

    def summed(self) -> _Summed:
        """The same as what is logged."""
        fields = {
            "outcome": self.outcome,
            "error_type": self.error,
            "session_site": _site(self.opened_site),
            "site": _site(self.closed_site),
        }
        identity = {"session_name": self.session_name, "work": self.work}
        return _Summed("info", self.event, identity, fields)


def _closed(report: Report) -> _Closed:
    ledger = report.ledger
    return _Closed(
        names.SESSION_CLOSED,
        report.name,
        ledger.work,
        ledger.outcome,
        ledger.error,
        ledger.opened_site,
        ledger.closed_site,
    )


def _numbers_of_session(report: Report) -> tuple[float, ...]:
    """The numbers for the keys `_SUMMED`."""
    ledger = report.ledger
    return (
        (ledger.closed_at - ledger.opened_at) / 1e6,
        ledger.held / 1e6,
        ledger.sql / 1e6,
        *_added_up(ledger),
        *[sum(counts.values()) if counts else 0 for counts in _counts(ledger)],
    )


def _totals(findings: tuple[Finding, ...], duration: int) -> list[LogEvent]:
    """The findings of a scope, the worst first, with the totals of what repeats."""
    totals: list[LogEvent] = []
    for finding in ranked(findings)[:_MOST_FINDINGS]:
        fields: LogEvent = {
            "finding_id": finding.id,
            "site": _site(finding.site),
            "entity": finding.entity,
            "attribute": finding.attribute,
        }
        if (total := finding.total) is not None:
            fields["total"] = total.count
            fields["total_ms"] = total.ms
            fields["share"] = round(min(total.ms * 1e6 / max(duration, 1), 1.0), 3)
        totals.append(_flat({}, fields))
    return totals


def _numbers_of_flush(fact: facts.FlushFailed) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """The log keys of a flush's numbers, and the numbers."""
    counts = [sum(of_class.values()) for of_class in (fact.new, fact.dirty, fact.deleted)]
    return ("duration_ms", "new", "dirty", "deleted"), (fact.duration / 1e6, *counts)


# Sizes of identity maps do not add up.
_ADDED_UP: Final = tuple([key for key in NUMBERS if not key.startswith("identity_map")])
_added_up: Final = attrgetter(*_ADDED_UP)
_SUMMED: Final = ("duration_ms", "held_ms", "sql_ms", *_ADDED_UP, *COUNTS)


def _flat(identity: LogEvent, fields: Mapping[str, Any]) -> LogEvent:
    """The session's identity, then every field that has a value."""
    flat = {key: value for key, value in identity.items() if value}
    for key, value in fields.items():
        if isinstance(value, dict):
            _flatten(flat, key, value)
        elif value:
            flat[key] = value
    return flat


def _flatten(fields: LogEvent, key: str, value: Mapping[str, Any]) -> None:
    """Put a dictionary in as flat keys: counts as such, what else it holds by its keys."""
    if all(isinstance(number, int) for number in value.values()):
        _count(fields, key, _BY.get(key) or f"{key}_by_entity", value)
    else:
        fields |= {f"{key}_{inner}": held for inner, held in value.items() if held}


def _count(fields: LogEvent, key: str, by: str, counts: Mapping[str, int]) -> None:
    """Put counts in as their sum, and as a text under the key `by`."""
    number = sum(counts.values())
    if number:
        fields[key] = number
        fields[by] = " ".join(map(_name_and_number, counts.items()))


_numbers: Final = attrgetter(*NUMBERS)
_counts: Final = attrgetter(*COUNTS)


def _logger() -> Any:
    return sys.modules[_STRUCTLOG].get_logger(names.SCOPE)


def _log_to(
    logger: Any, level: str, event: str, fields: LogEvent, bound: Mapping[str, Any]
) -> None:
    """Log to structlog, in the context in which the session was opened.

    The watchdog's thread has none of its own, and a request may have cleared its context before it
    closes the session. What the running code has bound comes first.
    """
    log = getattr(logger, level)
    if bound:
        contextvars = sys.modules["structlog.contextvars"]
        now = contextvars.get_contextvars()
        missing = {key: value for key, value in bound.items() if key not in now}
        if missing:
            with contextvars.bound_contextvars(**missing):
                _log_all(log, event, fields)
            return
    _log_all(log, event, fields)


def _log_all(log: Callable[..., Any], event: str, fields: LogEvent) -> None:
    try:
        log(event, **fields)
    except KeyError as error:
        # With `render_to_log_kwargs`, Python's logging gets every key, and refuses those that its
        # records have: they know their thread.
        if "LogRecord" not in str(error):
            raise
        log(event, **{key: value for key, value in fields.items() if key != "thread"})


def _enabled(number: int, logger: Any = None) -> bool:
    """Whether the configured structlog logs at that level; yes where that is not known."""
    bound = (_logger() if logger is None else logger).bind()
    for asked in ("is_enabled_for", "isEnabledFor"):
        # Asked of the class: an instance may log any name that it does not know.
        if hasattr(type(bound), asked):
            try:
                return bool(getattr(bound, asked)(number))
            except Exception:
                return True
    return True


@lru_cache(maxsize=_MOST_SITES)
def _site(site: CallSite | None) -> str:
    return "" if site is None else str(site)


def timestamp(unix_ns: int) -> str:
    """A time in UTC, to the microsecond."""
    seconds, nanoseconds = divmod(unix_ns, 1_000_000_000)
    return f"{_to_the_second(seconds)}.{nanoseconds // 1_000:06}+00:00"


# Of what takes a timestamp its time, only the microseconds change from event to event.
@lru_cache(maxsize=1)
def _to_the_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _ms(nanoseconds: int) -> float:
    return round(nanoseconds / 1e6, 3)
