"""Tells a session's story as OpenTelemetry spans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.trace import Link, NoOpTracerProvider, SpanKind, Status, StatusCode

from session_tracer import facts
from session_tracer.signals import names

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanContext, Tracer, TracerProvider
    from opentelemetry.util.types import AttributeValue

    from session_tracer.callsite import CallSite
    from session_tracer.facts import Database
    from session_tracer.findings import Finding, Retraction
    from session_tracer.record import SessionRecord
    from session_tracer.signals.routes import Routes

    Attributes = dict[str, AttributeValue]

__all__ = ["Attached", "SessionSpans", "SpanSignal", "caller"]

_NOWHERE: Final = (0, 0)
_FAILED: Final = frozenset({"failed", "abandoned"})


def caller() -> tuple[int, int]:
    """The trace and the span that the caller is in; zeros where it is in none."""
    span = trace.get_current_span()
    if span is trace.INVALID_SPAN:
        return _NOWHERE
    context = span.get_span_context()
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
    """A context in force, until it is given back."""

    __slots__ = ("_context", "_token")

    def __init__(self, context: Context) -> None:
        self._context = context
        self._token = context_api.attach(context)

    def detach(self) -> None:
        """Put the caller's context back."""
        # A coroutine that was thrown away amid a statement may be unwound in another context.
        if context_api.get_current() is self._context:
            context_api.detach(self._token)


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
        self._open: list[tuple[str, Span]] = []
        self._statement: Span | None = None
        # Unsampled means cheap: within a session's span that does not record, nothing is made.
        self._silent = False
        self._base: Context | None = None
        self._derived: Context | None = None
        # Where links to this session point, once its span has started.
        self.session_context: SpanContext | None = None

    def finding(self, finding: Finding, record: SessionRecord) -> None:
        """Put a finding on the innermost open span."""
        # The watch's thread says some, while the session's own may be ending a span.
        for _, span in self._open[-1:]:
            if span.is_recording():
                _add_finding(span, finding)

    def retracted(self, retraction: Retraction, record: SessionRecord) -> None:
        """Say on the innermost open span that a finding is taken back."""
        for _, span in self._open[-1:]:
            if span.is_recording():
                attributes = {
                    names.FINDING_ID: retraction.finding.id,
                    names.FINDING_MESSAGE: retraction.message,
                }
                span.add_event(names.FINDING_RETRACTED_EVENT, attributes)

    def attach(self) -> Attached | None:
        """Put the innermost open span into the caller's context; None to leave that as it is."""
        if not self._open:
            return None
        base = context_api.get_current()
        if base is not self._base:
            self._base = base
            self._derived = self._derive(base)
        return None if self._derived is None else Attached(self._derived)

    def _derive(self, base: Context) -> Context | None:
        span = self._statement or self._open[-1][1]
        inner = span.get_span_context()
        if not inner.is_valid:
            return None
        if inner == trace.get_current_span(base).get_span_context():
            return None  # it is current already, or nothing is recorded and the caller says so
        return trace.set_span_in_context(span, base)

    def refused(self, origin: SpanContext | None) -> None:
        """Open the span of a refused load; the fact that follows describes and ends it."""
        links = [] if origin is None else [Link(origin)]
        span = self._tracer.start_span(names.DETACHED_LOAD_SPAN, links=links)
        self._open.append((names.DETACHED_LOAD_SPAN, span))
        self._moved()

    def stop(self) -> None:
        """End what is open without a word: nobody will tell how it went on."""
        while self._open:
            self._open.pop()[1].end()
        self._moved()

    def _push(
        self, kind: str, name: str, at: int, site: CallSite | None, attributes: Attributes
    ) -> None:
        parent = self._parent
        if self._open:
            parent = trace.set_span_in_context(self._open[-1][1], parent)
        span = self._tracer.start_span(
            name, context=parent, start_time=at + self._record.epoch, attributes=attributes
        )
        if span.is_recording():
            span.set_attributes(_code(site))
        self._open.append((kind, span))
        self._moved()

    def _pop(self, kind: str, at: int) -> Span | None:
        """End the innermost span of that kind, and whatever was left open within it."""
        if not any(open_kind == kind for open_kind, _ in self._open):
            return None
        while True:
            open_kind, span = self._open.pop()
            if open_kind == kind:
                if span.is_recording():
                    self._moved()
                return span
            span.end(at + self._record.epoch)

    def _moved(self) -> None:
        self._base = self._derived = None
        self._record.span_context = None
        if self._open:
            span = self._open[-1][1]
            if span.is_recording():
                context = span.get_span_context()
                self._record.span_context = (context.trace_id, context.span_id)

    def _began(self, fact: facts.TransactionBegan, record: SessionRecord) -> None:
        if self._silent:
            return
        if not self._open:
            # The id is set later, where the span records: the sampler does not need it.
            self._push(
                "session",
                names.session_span(record.name),
                record.opened_at,
                record.opened_site,
                {names.SESSION_NAME: record.name, names.SESSION_ASYNC: record.is_async},
            )
            session = self._open[0][1]
            self.session_context = session.get_span_context()
            if not session.is_recording():
                self._silent = True
                return
            session.set_attribute(names.SESSION_ID, record.id)
        kind = names.SAVEPOINT_SPAN if fact.nested else names.TRANSACTION_SPAN
        self._push(
            kind,
            kind,
            fact.at,
            fact.site,
            {names.SESSION_NAME: record.name, names.TRANSACTION_NESTED: fact.nested},
        )
        self._identify()

    def _ended(self, fact: facts.TransactionEnded, record: SessionRecord) -> None:
        if self._silent:
            return
        span = self._pop(names.SAVEPOINT_SPAN if fact.nested else names.TRANSACTION_SPAN, fact.at)
        if span is None:
            return
        if span.is_recording():
            span.set_attribute(names.TRANSACTION_OUTCOME, fact.outcome)
            if fact.error:
                _fail(span, fact.error)
        span.end(fact.at + self._record.epoch)

    def _acquired(self, fact: facts.ConnectionAcquired, record: SessionRecord) -> None:
        if self._silent:
            return
        for _, span in self._open:
            if span.is_recording():
                span.set_attributes(_database(fact.database))

    def _flush_began(self, fact: facts.FlushBegan, record: SessionRecord) -> None:
        if self._silent:
            return
        self._push(
            names.FLUSH_SPAN,
            names.FLUSH_SPAN,
            fact.at,
            fact.site,
            {names.SESSION_NAME: self._record.name, names.FLUSH_TRIGGER: fact.trigger},
        )
        self._identify()

    def _flush_ended(
        self, fact: facts.FlushCompleted | facts.FlushFailed, record: SessionRecord
    ) -> None:
        if self._silent:
            return
        span = self._pop(names.FLUSH_SPAN, fact.at)
        if span is None:
            return
        if span.is_recording():
            attributes: Attributes = {
                names.FLUSH_NEW: sum(fact.new.values()),
                names.FLUSH_DIRTY: sum(fact.dirty.values()),
                names.FLUSH_DELETED: sum(fact.deleted.values()),
            }
            if isinstance(fact, facts.FlushCompleted):
                attributes[names.FLUSH_UNCHANGED] = sum(fact.unchanged.values())
            else:
                _fail(span, fact.error)
            span.set_attributes(attributes)
        span.end(fact.at + self._record.epoch)

    def _closed(self, fact: facts.SessionClosed, record: SessionRecord) -> None:
        span = self._pop("session", fact.at)
        if span is None:
            return
        if span.is_recording():
            span.set_attributes(
                {
                    names.SESSION_OUTCOME: fact.outcome,
                    names.STATEMENTS: record.statements,
                    names.STATEMENT_DURATION: record.sql / 1e9,
                    names.CONNECTION_HELD: record.held / 1e9,
                    names.IDENTITY_MAP_SIZE: fact.identity_map_size,
                    names.IDENTITY_MAP_PEAK: record.identity_map_peak,
                }
            )
            if fact.outcome in _FAILED:
                _fail(span, fact.error or fact.outcome)
        span.end(fact.at + self._record.epoch)

    def _detached_load_failed(self, fact: facts.DetachedLoadFailed, record: SessionRecord) -> None:
        span = self._pop(names.DETACHED_LOAD_SPAN, fact.at)
        if span is None:
            return
        if span.is_recording():
            span.set_attributes(
                {
                    names.SESSION_ID: self._record.id,
                    names.SESSION_NAME: self._record.name,
                    names.SESSION_ASYNC: self._record.is_async,
                    names.ENTITY: fact.entity,
                    names.ATTRIBUTE: fact.attribute,
                    **_code(fact.site),
                }
            )
            _fail(span, "sqlalchemy.orm.exc.DetachedInstanceError")
        span.end()

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
        attributes.update(_database(fact.database))
        self._statement = self._tracer.start_span(
            batch + fact.summary or fact.database.system,
            context=trace.set_span_in_context(self._open[-1][1], self._parent),
            kind=SpanKind.CLIENT,
            attributes=attributes,
            start_time=fact.at + self._record.epoch,
        )
        self._base = None

    def _statement_executed(self, fact: facts.StatementExecuted, record: SessionRecord) -> None:
        span, self._statement = self._statement, None
        if span is None:
            return
        self._base = None
        if span.is_recording():
            span.set_attributes(_code(fact.site))
            if fact.error:
                _fail(span, fact.error)
                if fact.status:
                    span.set_attribute(names.DB_RESPONSE_STATUS_CODE, fact.status)
        span.end(fact.at + self._record.epoch)

    def _identify(self) -> None:
        span = self._open[-1][1]
        if span.is_recording():
            span.set_attribute(names.SESSION_ID, self._record.id)
            if self._record.database is not None:
                span.set_attributes(_database(self._record.database))


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


def _code(site: CallSite | None) -> Attributes:
    if site is None:
        return {}
    attributes: Attributes = {
        names.CODE_FUNCTION_NAME: site.function,
        names.CODE_FILE_PATH: site.file,
        names.CODE_LINE_NUMBER: site.line,
    }
    if site.callers:
        attributes[names.CODE_STACKTRACE] = "\n".join(str(one) for one in (site, *site.callers))
    return attributes


def _database(database: Database) -> Attributes:
    attributes: Attributes = {}
    if database.system:
        attributes[names.DB_SYSTEM_NAME] = database.system
    if database.namespace:
        attributes[names.DB_NAMESPACE] = database.namespace
    if database.address:
        attributes[names.SERVER_ADDRESS] = database.address
        if database.port is not None:
            attributes[names.SERVER_PORT] = database.port
    return attributes


def _fail(span: Span, error: str) -> None:
    # The message stays out: a database's error text quotes column values.
    span.set_attribute(names.ERROR_TYPE, error)
    span.set_status(Status(StatusCode.ERROR))
    span.add_event(names.EXCEPTION_EVENT, {names.EXCEPTION_TYPE: error})


def _add_finding(span: Span, finding: Finding) -> None:
    attributes: Attributes = {
        names.FINDING_ID: finding.id,
        names.FINDING_SEVERITY: finding.severity,
        names.FINDING_MESSAGE: finding.message,
        names.FINDING_REMEDY: finding.remedy,
        **_code(finding.site),
    }
    if finding.entity is not None:
        attributes[names.ENTITY] = finding.entity
    if finding.attribute is not None:
        attributes[names.ATTRIBUTE] = finding.attribute
    span.add_event(names.FINDING_EVENT, attributes)
