"""Tells a session's story as OpenTelemetry spans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.trace import Link, NoOpTracerProvider, SpanKind, Status, StatusCode

from session_tracer import facts
from session_tracer.signals import names

if TYPE_CHECKING:
    from contextvars import Token

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanContext, Tracer, TracerProvider

    from session_tracer.facts import Database
    from session_tracer.ledger.record import SessionRecord
    from session_tracer.model.findings import Finding, Retraction
    from session_tracer.signals.routes import Routes
    from session_tracer.where.callsite import CallSite

    # OpenTelemetry's own alias differs from release to release, and 1.45.0's is no valid type.
    Attributes = dict[str, str | bool | int | float]

__all__ = ["Attached", "SessionSpans", "SpanSignal", "caller"]

_NOWHERE: Final = (0, 0)
_FAILED: Final = frozenset({"failed", "abandoned"})


def caller() -> tuple[int, int]:
    """The trace and the span that the caller is in; zeros where it is in none."""
    current = context_api.get_current()
    if not current:
        return _NOWHERE
    context = trace.get_current_span(current).get_span_context()
    return context.trace_id, context.span_id


class SpanSignal:
    """Makes the spans of sessions with one tracer of one provider."""

    __slots__ = ("_idle", "_statement_spans", "_tracer")

    def __init__(self, provider: TracerProvider, version: str, *, statement_spans: bool) -> None:
        self._idle = isinstance(provider, NoOpTracerProvider)
        self._tracer = provider.get_tracer(names.SCOPE, version)
        self._statement_spans = statement_spans

    @property
    def routes(self) -> Routes:
        """Who hears of which facts; nobody where no provider makes spans."""
        if self._idle:
            return {}
        if self._statement_spans:
            return {**_TELLS, **_TELLS_OF_STATEMENTS}
        return _TELLS

    def begin(self, record: SessionRecord) -> SessionSpans:
        """The spans of one session scope."""
        return SessionSpans(self._tracer, record)


class Attached:
    """A context that can be put in force, and the caller's, which is put back after it.

    Whoever attaches it has to know it before, and to detach it whatever happens: an interrupt may
    come between its being in force and the token.
    """

    __slots__ = ("_before", "_context", "_token")

    def __init__(self, context: Context, before: Context) -> None:
        self._context = context
        self._before = before
        self._token: Token[Context] | None = None

    def attach(self) -> None:
        """Put it in force."""
        self._token = context_api.attach(self._context)

    def detach(self) -> None:
        """Put the caller's context back, if this one is in force; as often as one likes."""
        # A coroutine that was thrown away amid a statement may be unwound in another context.
        if context_api.get_current() is self._context:
            if self._token is None:
                context_api.attach(self._before)
            else:
                context_api.detach(self._token)


class _Open:
    """A span that has started, and what is to be said of it as it ends.

    To set one attribute costs nearly as much as to set five at once, so what is not known before
    the span starts waits for its end. Whether it records is asked once.
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
        """Say that what the span is of has failed."""
        # The message stays out: a database's error text quotes column values.
        self.later[names.ERROR_TYPE] = error
        self.span.set_status(Status(StatusCode.ERROR))
        self.span.add_event(names.EXCEPTION_EVENT, {names.EXCEPTION_TYPE: error})

    def end(self, at: int | None = None) -> None:
        """Say the rest, and end the span."""
        if self.later and self.records:
            self.span.set_attributes(self.later)
        self.span.end(at)


class SessionSpans:
    """The open spans of one session scope: the session's, its transactions', its flush's.

    The session's span starts with its first transaction, dated back to the opening of the scope: a
    session that never begins one has no span.
    """

    __slots__ = (
        "_base",
        "_derived",
        "_open",
        "_parent",
        "_record",
        "_silent",
        "_statement",
        "_tracer",
        "session_context",
    )

    def __init__(self, tracer: Tracer, record: SessionRecord) -> None:
        self._tracer = tracer
        self._record = record
        self._parent = context_api.get_current()
        self._open: list[_Open] = []
        self._statement: _Open | None = None
        # Unsampled means cheap: within a session's span that does not record, nothing is made.
        self._silent = False
        # The context that a caller was in last, and the one that takes its place.
        self._base: Context | None = None
        self._derived: Context | None = None
        # Where links to this session point, once its span has started.
        self.session_context: SpanContext | None = None

    def finding(self, finding: Finding, record: SessionRecord) -> None:
        """Put a finding on the innermost open span."""
        # The watch's thread says some, while the session's own may be ending a span.
        for one in self._open[-1:]:
            if one.span.is_recording():
                _add_finding(one.span, finding)

    def retracted(self, retraction: Retraction, record: SessionRecord) -> None:
        """Say on the innermost open span that a finding is taken back."""
        for one in self._open[-1:]:
            if one.span.is_recording():
                attributes = {
                    names.FINDING_ID: retraction.finding.id,
                    names.FINDING_MESSAGE: retraction.message,
                }
                one.span.add_event(names.FINDING_RETRACTED_EVENT, attributes)

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
        """End what is open without a word: nobody will tell how it went on."""
        while self._open:
            self._open.pop().end()
        self._moved()

    def _push(self, kind: str, name: str, at: int, attributes: Attributes) -> _Open:
        parent = self._open[-1].within(self._parent) if self._open else self._parent
        one = _Open(
            kind,
            self._tracer.start_span(
                name, context=parent, start_time=at + self._record.epoch, attributes=attributes
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
                opened.pop().end(at + self._record.epoch)
        innermost = opened.pop()
        if not self._silent:
            self._moved()
        return innermost

    def _moved(self) -> None:
        self._base = self._derived = None
        self._record.span_context = self._open[-1].ids if self._open else None

    def _began(self, fact: facts.TransactionBegan, record: SessionRecord) -> None:
        if self._silent:
            return
        if not self._open:
            # The sampler needs no more to decide: the rest is said where the span records.
            session = self._push(
                "session",
                names.session_span(record.name),
                record.opened_at,
                {names.SESSION_NAME: record.name, names.SESSION_ASYNC: record.is_async},
            )
            self.session_context = session.context
            if not session.records:
                self._silent = True
                return
            _locate(session.later, record.opened_site)
            session.later[names.SESSION_ID] = record.id
        kind = names.SAVEPOINT_SPAN if fact.nested else names.TRANSACTION_SPAN
        attributes: Attributes = {
            names.SESSION_NAME: record.name,
            names.TRANSACTION_NESTED: fact.nested,
        }
        self._push(kind, kind, fact.at, self._identified(attributes, fact.site))

    def _ended(self, fact: facts.TransactionEnded, record: SessionRecord) -> None:
        if self._silent:
            return
        one = self._pop(names.SAVEPOINT_SPAN if fact.nested else names.TRANSACTION_SPAN, fact.at)
        if one is None:
            return
        if one.records:
            one.later[names.TRANSACTION_OUTCOME] = fact.outcome
            if fact.error:
                one.fail(fact.error)
        one.end(fact.at + record.epoch)

    def _acquired(self, fact: facts.ConnectionAcquired, record: SessionRecord) -> None:
        if self._silent:
            return
        for one in self._open:
            if one.records:
                _lead(one.later, fact.database)

    def _flush_began(self, fact: facts.FlushBegan, record: SessionRecord) -> None:
        if self._silent:
            return
        attributes: Attributes = {
            names.SESSION_NAME: record.name,
            names.FLUSH_TRIGGER: fact.trigger,
        }
        self._push(
            names.FLUSH_SPAN, names.FLUSH_SPAN, fact.at, self._identified(attributes, fact.site)
        )

    def _flush_ended(
        self, fact: facts.FlushCompleted | facts.FlushFailed, record: SessionRecord
    ) -> None:
        if self._silent:
            return
        one = self._pop(names.FLUSH_SPAN, fact.at)
        if one is None:
            return
        if one.records:
            later = one.later
            later[names.FLUSH_NEW] = sum(fact.new.values())
            later[names.FLUSH_DIRTY] = sum(fact.dirty.values())
            later[names.FLUSH_DELETED] = sum(fact.deleted.values())
            if isinstance(fact, facts.FlushCompleted):
                later[names.FLUSH_UNCHANGED] = sum(fact.unchanged.values())
            else:
                one.fail(fact.error)
        one.end(fact.at + record.epoch)

    def _closed(self, fact: facts.SessionClosed, record: SessionRecord) -> None:
        one = self._pop("session", fact.at)
        if one is None:
            return
        if one.records:
            later = one.later
            later[names.SESSION_OUTCOME] = fact.outcome
            later[names.STATEMENTS] = record.statements
            later[names.STATEMENT_DURATION] = record.sql / 1e9
            later[names.CONNECTION_HELD] = record.held / 1e9
            later[names.IDENTITY_MAP_SIZE] = fact.identity_map_size
            later[names.IDENTITY_MAP_PEAK] = record.identity_map_peak
            if fact.outcome in _FAILED:
                one.fail(fact.error or fact.outcome)
        one.end(fact.at + record.epoch)

    def _detached_load_failed(self, fact: facts.DetachedLoadFailed, record: SessionRecord) -> None:
        one = self._pop(names.DETACHED_LOAD_SPAN, fact.at)
        if one is None:
            return
        if one.records:
            later = one.later
            later[names.SESSION_ID] = record.id
            later[names.SESSION_NAME] = record.name
            later[names.SESSION_ASYNC] = record.is_async
            later[names.ENTITY] = fact.entity
            later[names.ATTRIBUTE] = fact.attribute
            _locate(later, fact.site)
            one.fail("sqlalchemy.orm.exc.DetachedInstanceError")
        one.end()

    def _statement_started(self, fact: facts.StatementStarted, record: SessionRecord) -> None:
        if self._silent or not self._open:
            return
        batch = names.BATCH if fact.batch_size > 1 else ""
        attributes: Attributes = {
            names.DB_QUERY_TEXT: fact.text,
            names.DB_QUERY_SUMMARY: batch + fact.summary,
            names.DB_OPERATION_NAME: batch + fact.operation,
        }
        if fact.collection:
            attributes[names.DB_COLLECTION_NAME] = fact.collection
        if fact.batch_size > 1:
            attributes[names.DB_OPERATION_BATCH_SIZE] = fact.batch_size
        _lead(attributes, fact.database)
        self._statement = _Open(
            "statement",
            self._tracer.start_span(
                batch + fact.summary or fact.database.system,
                context=self._open[-1].within(self._parent),
                kind=SpanKind.CLIENT,
                attributes=attributes,
                start_time=fact.at + record.epoch,
            ),
        )
        self._base = None

    def _statement_executed(self, fact: facts.StatementExecuted, record: SessionRecord) -> None:
        one, self._statement = self._statement, None
        if one is None:
            return
        self._base = None
        if one.records:
            _locate(one.later, fact.site)
            if fact.error:
                one.fail(fact.error)
                if fact.status:
                    one.later[names.DB_RESPONSE_STATUS_CODE] = fact.status
        one.end(fact.at + record.epoch)

    def _identified(self, attributes: Attributes, site: CallSite | None) -> Attributes:
        """The attributes of a span, with where it began, whose it is, and where that leads."""
        record = self._record
        _locate(attributes, site)
        attributes[names.SESSION_ID] = record.id
        if record.database is not None:
            _lead(attributes, record.database)
        return attributes


_TELLS: Final[Routes] = {
    facts.TransactionBegan: SessionSpans._began,
    facts.TransactionEnded: SessionSpans._ended,
    facts.ConnectionAcquired: SessionSpans._acquired,
    facts.FlushBegan: SessionSpans._flush_began,
    facts.FlushCompleted: SessionSpans._flush_ended,
    facts.FlushFailed: SessionSpans._flush_ended,
    facts.SessionClosed: SessionSpans._closed,
    facts.DetachedLoadFailed: SessionSpans._detached_load_failed,
}
_TELLS_OF_STATEMENTS: Final[Routes] = {
    facts.StatementStarted: SessionSpans._statement_started,
    facts.StatementExecuted: SessionSpans._statement_executed,
}


def _locate(attributes: Attributes, site: CallSite | None) -> None:
    """Add the application's line."""
    if site is None:
        return
    attributes[names.CODE_FUNCTION_NAME] = site.function
    attributes[names.CODE_FILE_PATH] = site.file
    attributes[names.CODE_LINE_NUMBER] = site.line
    if site.callers:
        attributes[names.CODE_STACKTRACE] = "\n".join(str(one) for one in (site, *site.callers))


def _lead(attributes: Attributes, database: Database) -> None:
    """Add where the connection leads."""
    if database.system:
        attributes[names.DB_SYSTEM_NAME] = database.system
    if database.namespace:
        attributes[names.DB_NAMESPACE] = database.namespace
    if database.address:
        attributes[names.SERVER_ADDRESS] = database.address
        if database.port is not None:
            attributes[names.SERVER_PORT] = database.port


def _add_finding(span: Span, finding: Finding) -> None:
    attributes: Attributes = {
        names.FINDING_ID: finding.id,
        names.FINDING_SEVERITY: finding.severity,
        names.FINDING_MESSAGE: finding.message,
        names.FINDING_REMEDY: finding.remedy,
    }
    _locate(attributes, finding.site)
    if finding.entity is not None:
        attributes[names.ENTITY] = finding.entity
    if finding.attribute is not None:
        attributes[names.ATTRIBUTE] = finding.attribute
    span.add_event(names.FINDING_EVENT, attributes)
