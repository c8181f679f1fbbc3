"""The spans of a session scope, each started and ended by OpenTelemetry's API as it happens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from session_tracer.signals import names
from session_tracer.signals.attached import Attached
from session_tracer.signals.span_attributes import (
    add_database,
    add_site,
    of_finding,
    of_retraction,
    of_statement,
    statement_name,
)

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanContext, Tracer

    from session_tracer import facts
    from session_tracer.facts import Database, Outcome, Trigger
    from session_tracer.model.findings import Finding, Retraction
    from session_tracer.signals.span_attributes import Attributes
    from session_tracer.signals.span_recorder import Report
    from session_tracer.where.callsite import CallSite

__all__ = ["LiveSpans"]

_FAILED: Final = frozenset({"failed", "abandoned"})


class _Open:
    """A span that has started, and the attributes that are set when it ends.

    To set one attribute costs nearly as much as to set five at once, so what is not known when the
    span starts is set when it ends. Whether it records is asked once.
    """

    __slots__ = ("_base", "_within", "context", "ids", "kind", "later", "records", "span")

    def __init__(self, kind: str, span: Span) -> None:
        self.kind = kind
        self.span = span
        self.context = context = span.get_span_context()
        self.records = span.is_recording()
        # Of the trace and of the span, where it records.
        self.ids = (context.trace_id, context.span_id) if self.records else None
        self.later: Attributes = {}
        self._base: Context | None = None
        self._within: Context | None = None

    def within(self, base: Context) -> Context:
        """The context in which this span is the current one, and all else is as in `base`."""
        if self._within is None or base is not self._base:
            self._within = trace.set_span_in_context(self.span, base)
            self._base = base
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


class LiveSpans:
    """The open spans of one session scope: the session's, its transactions', its flush's.

    The session's span starts with its first transaction, dated back to the opening of the scope: a
    session that never begins one has no span.
    """

    __slots__ = (
        "_base",
        "_derived",
        "_ledger",
        "_open",
        "_parent",
        "_report",
        "_statement",
        "_tracer",
        "is_dropped",
        "session_context",
    )

    def __init__(self, tracer: Tracer, report: Report) -> None:
        self._tracer = tracer
        self._report = report
        self._ledger = report.ledger
        context = report.ledger.context
        self._parent: Context = context_api.get_current() if context is None else context
        self._open: list[_Open] = []
        self._statement: _Open | None = None
        # Unsampled means cheap: within a session's span that does not record, nothing is made.
        self.is_dropped = False
        # The context that a caller was in last, and the one that takes its place.
        self._base: Context | None = None
        self._derived: Context | None = None
        # Where links to this session point, once its span has started.
        self.session_context: SpanContext | None = None

    def finding(self, finding: Finding) -> None:
        """Put a finding on the innermost open span."""
        # The watchdog's thread reports some while the session's own thread may be ending a span.
        for one in self._open[-1:]:
            if one.span.is_recording():
                one.span.add_event(names.FINDING_EVENT, of_finding(finding))

    def retracted(self, retraction: Retraction) -> None:
        """Report on the innermost open span that a finding is retracted."""
        for one in self._open[-1:]:
            if one.span.is_recording():
                one.span.add_event(names.FINDING_RETRACTED_EVENT, of_retraction(retraction))

    def attach(self) -> Attached | None:
        """The caller's context with the innermost open span, to attach; None to leave it be."""
        if not self._open:
            return None
        base = context_api.get_current()
        if base is not self._base:
            self._base = base
            self._derived = self._derive(base)
        return None if self._derived is None else Attached(self._derived, base)

    def _derive(self, base: Context) -> Context | None:
        innermost = self._statement or self._open[-1]
        if not innermost.context.is_valid:
            return None
        if base and innermost.context == trace.get_current_span(base).get_span_context():
            return None  # it is current already, or nothing is recorded and the caller says so
        return innermost.within(base)

    def refused(self, origin: SpanContext | None) -> None:
        """Open the span of a refused load; the fact that follows describes and ends it."""
        links = [] if origin is None else [Link(origin)]
        span = self._tracer.start_span(names.DETACHED_LOAD_SPAN, links=links)
        self._open.append(_Open(names.DETACHED_LOAD_SPAN, span))
        self._moved()

    def stop(self) -> None:
        """End what is open now: how it goes on is not reported any more."""
        while self._open:
            self._open.pop().end()
        self._moved()

    def _push(self, kind: str, name: str, at: int, attributes: Attributes) -> _Open:
        parent = self._open[-1].within(self._parent) if self._open else self._parent
        one = _Open(
            kind,
            self._tracer.start_span(
                name, context=parent, start_time=at + self._ledger.epoch, attributes=attributes
            ),
        )
        self._open.append(one)
        self._moved()
        return one

    def _pop(self, kind: str, at: int) -> _Open | None:
        """Take away the innermost span of that kind, and end whatever was left open within it."""
        opened = self._open
        if not opened:
            return None
        if opened[-1].kind != kind:
            if all(one.kind != kind for one in opened):
                return None
            while opened[-1].kind != kind:
                opened.pop().end(at + self._ledger.epoch)
        innermost = opened.pop()
        if not self.is_dropped:
            self._moved()
        return innermost

    def _moved(self) -> None:
        self._base = self._derived = None
        self._report.span_context = self._open[-1].ids if self._open else None

    def transaction_began(self, at: int, site: CallSite | None, nested: bool) -> None:
        """A transaction or savepoint began."""
        if self.is_dropped:
            return
        ledger, name = self._ledger, self._report.name
        if not self._open:
            # The sampler needs no more to decide: the rest is set where the span records.
            session = self._push(
                "session",
                names.session_span(name),
                ledger.opened_at,
                {names.SESSION_NAME: name, names.SESSION_ASYNC: ledger.is_async},
            )
            self.session_context = session.context
            if not session.records:
                self.is_dropped = True
                return
            add_site(session.later, ledger.opened_site)
            session.later[names.SESSION_ID] = ledger.id
        kind = names.SAVEPOINT_SPAN if nested else names.TRANSACTION_SPAN
        attributes: Attributes = {names.SESSION_NAME: name, names.TRANSACTION_NESTED: nested}
        self._push(kind, kind, at, self._identified(attributes, site))

    def transaction_ended(self, at: int, outcome: Outcome, nested: bool, error: str) -> None:
        """A transaction or savepoint ended."""
        if self.is_dropped:
            return
        one = self._pop(names.SAVEPOINT_SPAN if nested else names.TRANSACTION_SPAN, at)
        if one is None:
            return
        if one.records:
            one.later[names.TRANSACTION_OUTCOME] = outcome
            if error:
                one.fail(error)
        one.end(at + self._ledger.epoch)

    def connection_acquired(self, database: Database) -> None:
        """The transaction has a connection."""
        if self.is_dropped:
            return
        for one in self._open:
            if one.records:
                add_database(one.later, database)

    def flush_began(self, at: int, site: CallSite | None, trigger: Trigger) -> None:
        """The unit of work started to write."""
        if self.is_dropped or not self._open:
            return
        attributes: Attributes = {
            names.SESSION_NAME: self._report.name,
            names.FLUSH_TRIGGER: trigger,
        }
        self._push(names.FLUSH_SPAN, names.FLUSH_SPAN, at, self._identified(attributes, site))

    def flush_ended(
        self, at: int, new: int, dirty: int, deleted: int, unchanged: int | None, error: str
    ) -> None:
        """The unit of work was written, or could not be: then `unchanged` is None."""
        if self.is_dropped:
            return
        one = self._pop(names.FLUSH_SPAN, at)
        if one is None:
            return
        if one.records:
            later = one.later
            later[names.FLUSH_NEW] = new
            later[names.FLUSH_DIRTY] = dirty
            later[names.FLUSH_DELETED] = deleted
            if unchanged is not None:
                later[names.FLUSH_UNCHANGED] = unchanged
            if error:
                one.fail(error)
        one.end(at + self._ledger.epoch)

    def session_ended(self, at: int) -> None:
        """The scope ended, as its ledger has it."""
        one = self._pop("session", at)
        if one is None:
            return
        ledger = self._ledger
        if one.records:
            later = one.later
            outcome = ledger.outcome or "closed"
            later[names.SESSION_OUTCOME] = outcome
            later[names.STATEMENTS] = ledger.statements
            later[names.STATEMENT_DURATION] = ledger.sql / 1e9
            later[names.CONNECTION_HELD] = ledger.held / 1e9
            later[names.IDENTITY_MAP_SIZE] = ledger.identity_map_size
            later[names.IDENTITY_MAP_PEAK] = ledger.identity_map_peak
            if outcome in _FAILED:
                one.fail(ledger.error or outcome)
        one.end(at + ledger.epoch)

    def detached_load_failed(self, fact: facts.DetachedLoadFailed) -> None:
        """Describe and end the span of a refused load."""
        one = self._pop(names.DETACHED_LOAD_SPAN, fact.at)
        if one is None:
            return
        if one.records:
            later = one.later
            later[names.SESSION_ID] = self._ledger.id
            later[names.SESSION_NAME] = self._report.name
            later[names.SESSION_ASYNC] = self._ledger.is_async
            later[names.ENTITY] = fact.entity
            later[names.ATTRIBUTE] = fact.attribute
            add_site(later, fact.site)
            one.fail("sqlalchemy.orm.exc.DetachedInstanceError")
        one.end()

    def statement_started(
        self,
        at: int,
        text: str,
        summary: str,
        operation: str,
        collection: str,
        batch_size: int,
        database: Database,
    ) -> None:
        """A statement is about to go to the driver."""
        if self.is_dropped or not self._open:
            return
        attributes = of_statement(text, summary, operation, collection, batch_size, database)
        self._statement = _Open(
            "statement",
            self._tracer.start_span(
                statement_name(summary, batch_size, database),
                context=self._open[-1].within(self._parent),
                kind=SpanKind.CLIENT,
                attributes=attributes,
                start_time=at + self._ledger.epoch,
            ),
        )
        self._base = None

    def statement_executed(self, at: int, site: CallSite | None, error: str, status: str) -> None:
        """The driver's execute call returned, or raised an error."""
        one, self._statement = self._statement, None
        if one is None:
            return
        self._base = None
        if one.records:
            add_site(one.later, site)
            if error:
                one.fail(error)
                if status:
                    one.later[names.DB_RESPONSE_STATUS_CODE] = status
        one.end(at + self._ledger.epoch)

    def _identified(self, attributes: Attributes, site: CallSite | None) -> Attributes:
        """The attributes of a span, with where it began, whose it is, and where that leads."""
        add_site(attributes, site)
        attributes[names.SESSION_ID] = self._ledger.id
        if self._ledger.database is not None:
            add_database(attributes, self._ledger.database)
        return attributes
