"""The spans of a session scope, each started and ended by OpenTelemetry's API as it happens."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from session_tracer.signals import names
from session_tracer.signals.attached import Attaching
from session_tracer.signals.span_attributes import (
    DETACHED_LOAD_ERROR,
    add_database,
    add_site,
    of_finding,
    of_retraction,
    of_statement,
    statement_name,
)

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

    from session_tracer import facts
    from session_tracer.facts import Outcome, Trigger
    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding, Retraction
    from session_tracer.signals.attached import Attached
    from session_tracer.signals.span_attributes import Attributes
    from session_tracer.where.callsite import CallSite

__all__ = ["LiveSpans"]

_FAILED: Final = frozenset({"failed", "abandoned"})


class _Open:
    """A span that has started, and the attributes that are set when it ends.

    To set one attribute costs nearly as much as to set five at once, so what is not known when the
    span starts is set when it ends. Whether it records is asked once.
    """

    __slots__ = ("_parent", "_within", "context", "kind", "later", "records", "span")

    def __init__(self, kind: str, span: Span, parent: Context) -> None:
        self.kind = kind
        self.span = span
        self.context = span.get_span_context()
        self.records = span.is_recording()
        self.later: Attributes = {}
        self._parent = parent
        self._within: Context | None = None

    @property
    def within(self) -> Context:
        """The context of the caller in which this span is the current one."""
        if self._within is None:
            self._within = trace.set_span_in_context(self.span, self._parent)
        return self._within

    def fail(self, error: str) -> None:
        """Report that what the span stands for has failed."""
        # The message stays out: a database's error text quotes column values.
        self.later[names.ERROR_TYPE] = error
        self.span.set_status(Status(StatusCode.ERROR))
        self.span.add_event(names.EXCEPTION_EVENT, {names.EXCEPTION_TYPE: error})

    def end(self, at: int | None = None) -> None:
        """Set the attributes that are left, and end the span."""
        if self.later and self.records:
            self.span.set_attributes(self.later)
        self.span.end(at)


class LiveSpans(Attaching):
    """The open spans of one session scope: the session's, its transactions', its flush's.

    The session's span starts with its first transaction, dated back to the opening of the scope: a
    session that never begins one has no span.
    """

    def __init__(
        self, tracer: Tracer, report: Report, parent: Context, kind: str, span: Span
    ) -> None:
        self._tracer = tracer
        self._report = report
        self._ledger = ledger = report.ledger
        # The outermost is the session's, or that of a refused load.
        self._open = [_Open(kind, span, parent)]
        self._statement: _Open | None = None
        report.session_context = self._open[0].context
        self._moved()
        if kind != names.DETACHED_LOAD_SPAN:
            add_site(self._open[0].later, ledger.opened_site)
            self._open[0].later[names.SESSION_ID] = ledger.id

    # What happens in the session.

    def transaction_began(self, at: int, site: CallSite | None, nested: bool) -> None:
        """A transaction or savepoint began."""
        name = names.SAVEPOINT_SPAN if nested else names.TRANSACTION_SPAN
        self._began(name, names.TRANSACTION_NESTED, nested, site, at)

    def transaction_ended(self, at: int, outcome: Outcome, nested: bool, error: str) -> None:
        """A transaction or savepoint ended."""
        one = self._pop(names.SAVEPOINT_SPAN if nested else names.TRANSACTION_SPAN, at)
        if one is not None:
            one.later[names.TRANSACTION_OUTCOME] = outcome
            self._end(one, at, error)

    def flush_began(self, at: int, site: CallSite | None, trigger: Trigger) -> None:
        """The unit of work started to write."""
        self._began(names.FLUSH_SPAN, names.FLUSH_TRIGGER, trigger, site, at)

    def flush_ended(
        self, at: int, new: int, dirty: int, deleted: int, unchanged: int | None, error: str
    ) -> None:
        """The unit of work was written, or could not be: then `unchanged` is None."""
        one = self._pop(names.FLUSH_SPAN, at)
        if one is None:
            return
        later = one.later
        later[names.FLUSH_NEW] = new
        later[names.FLUSH_DIRTY] = dirty
        later[names.FLUSH_DELETED] = deleted
        if unchanged is not None:
            later[names.FLUSH_UNCHANGED] = unchanged
        self._end(one, at, error)

    def statement_started(self, fact: facts.StatementStarted) -> None:
        """A statement is about to go to the driver."""
        within = self._open[-1].within
        span = self._tracer.start_span(
            statement_name(fact),
            context=within,
            kind=SpanKind.CLIENT,
            attributes=of_statement(fact),
            start_time=fact.at + self._ledger.epoch,
        )
        self._statement = _Open("statement", span, within)

    def statement_executed(self, fact: facts.StatementExecuted) -> None:
        """The driver's execute call returned, or raised an error."""
        one, self._statement = self._statement, None
        if one is None:
            return
        add_site(one.later, fact.site)
        if fact.error and fact.status:
            one.later[names.DB_RESPONSE_STATUS_CODE] = fact.status
        self._end(one, fact.at, fact.error)

    def session_ended(self, at: int) -> None:
        """The scope ended, as its ledger has it."""
        opened, ledger = self._open, self._ledger
        one = self._pop(opened[0].kind, at)
        if one is None:
            return
        later, outcome = one.later, ledger.outcome or "closed"
        later[names.SESSION_OUTCOME] = outcome
        later[names.STATEMENTS] = ledger.statements
        later[names.STATEMENT_DURATION] = ledger.sql / 1e9
        later[names.CONNECTION_HELD] = ledger.held / 1e9
        later[names.IDENTITY_MAP_SIZE] = ledger.identity_map_size
        later[names.IDENTITY_MAP_PEAK] = ledger.identity_map_peak
        if work := ledger.work:
            later[names.SESSION_WORK] = work
        self._end(one, at, (ledger.error or outcome) if outcome in _FAILED else "")

    def detached_load_failed(self, fact: facts.DetachedLoadFailed) -> None:
        """Describe and end the span of a refused load."""
        one = self._open.pop()
        later = one.later
        later[names.SESSION_ID] = self._ledger.id
        later[names.SESSION_NAME] = self._report.name
        later[names.SESSION_ASYNC] = self._ledger.is_async
        later[names.ENTITY] = fact.entity
        later[names.ATTRIBUTE] = fact.attribute
        if work := self._ledger.work:
            later[names.SESSION_WORK] = work
        add_site(later, fact.site)
        self._end(one, time.time_ns() - self._ledger.epoch, DETACHED_LOAD_ERROR)

    # What is concluded from it.

    def finding(self, finding: Finding) -> None:
        """Put a finding on the innermost open span."""
        self._add_event(names.FINDING_EVENT, of_finding(finding))

    def retracted(self, retraction: Retraction) -> None:
        """Report on the innermost open span that a finding is retracted."""
        self._add_event(names.FINDING_RETRACTED_EVENT, of_retraction(retraction))

    def _add_event(self, name: str, attributes: Attributes) -> None:
        # The watchdog's thread reports some while the session's own thread may be ending a span.
        for one in self._open[-1:]:
            if one.span.is_recording():
                one.span.add_event(name, attributes)

    # The context of statements, and the end of the report.

    def attach(self) -> Attached | None:
        """The caller's context with the innermost open span, to attach; None to leave it be."""
        innermost = self._statement or self._open[-1]
        return self.attached(innermost.context, innermost.span)

    def stop(self) -> None:
        """End what is open now: how it goes on is not reported any more."""
        while self._open:
            self._end_unfinished(None)

    # How spans begin and end.

    def _began(
        self, name: str, key: str, value: str | bool, site: CallSite | None, at: int
    ) -> None:
        """Begin a span below the innermost one, with an attribute of its own."""
        ledger, within = self._ledger, self._open[-1].within
        attributes: Attributes = {names.SESSION_NAME: self._report.name, key: value}
        add_site(attributes, site)
        attributes[names.SESSION_ID] = ledger.id
        if ledger.database is not None:
            add_database(attributes, ledger.database)
        span = self._tracer.start_span(
            name, context=within, start_time=at + ledger.epoch, attributes=attributes
        )
        self._open.append(_Open(name, span, within))
        self._moved()

    def _moved(self) -> None:
        """Another span is the innermost one now."""
        innermost = self._open[-1] if self._open else None
        records = innermost is not None and innermost.records
        self._report.span_context = innermost.context if innermost and records else None

    def _pop(self, kind: str, at: int) -> _Open | None:
        """Take away the innermost span of that kind, and end what was left open inside it."""
        opened = self._open
        if all(one.kind != kind for one in opened):
            return None
        while opened[-1].kind != kind:
            self._end_unfinished(at + self._ledger.epoch)
        one = opened.pop()
        self._describe(one)
        return one

    def _end_unfinished(self, at: int | None) -> None:
        one = self._open.pop()
        self._describe(one)
        one.end(at)

    def _describe(self, one: _Open) -> None:
        if self._ledger.database is not None:
            add_database(one.later, self._ledger.database)

    def _end(self, one: _Open, at: int, error: str) -> None:
        """End a span that was taken away."""
        if error and one.records:
            one.fail(error)
        self._moved()
        one.end(at + self._ledger.epoch)
