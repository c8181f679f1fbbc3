"""The spans of a session scope, each built when it ends, from what was kept since it began."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.trace import Link, NonRecordingSpan, SpanKind

from session_tracer.signals import names
from session_tracer.signals.attached import Attached
from session_tracer.signals.names import (
    CODE_FILE_PATH,
    CODE_FUNCTION_NAME,
    CODE_LINE_NUMBER,
    CONNECTION_HELD,
    FLUSH_DELETED,
    FLUSH_DIRTY,
    FLUSH_NEW,
    FLUSH_SPAN,
    FLUSH_TRIGGER,
    FLUSH_UNCHANGED,
    IDENTITY_MAP_PEAK,
    IDENTITY_MAP_SIZE,
    SAVEPOINT_SPAN,
    SESSION_ASYNC,
    SESSION_ID,
    SESSION_NAME,
    SESSION_OUTCOME,
    STATEMENT_DURATION,
    STATEMENTS,
    TRANSACTION_NESTED,
    TRANSACTION_OUTCOME,
    TRANSACTION_SPAN,
)
from session_tracer.signals.span_attributes import (
    add_database,
    add_site,
    of_finding,
    of_retraction,
    of_statement,
    statement_name,
)
from session_tracer.signals.span_recorder import RecordedEvent, RecordedSpan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.context import Context
    from opentelemetry.trace import SpanContext

    from session_tracer import facts
    from session_tracer.facts import Database, Outcome, Trigger
    from session_tracer.model.findings import Finding, Retraction
    from session_tracer.signals.span_attributes import Attributes
    from session_tracer.signals.span_recorder import Report, SpanRecorder
    from session_tracer.where.callsite import CallSite

__all__ = ["DatabaseAttributes", "RecordedSpans"]

_FAILED: Final = frozenset({"failed", "abandoned"})


class DatabaseAttributes:
    """The attributes of the database that was asked for last, so that they are rarely made."""

    def __init__(self) -> None:
        # In one value, because threads share it.
        self._last: tuple[Database | None, Attributes] = (None, {})

    def of(self, database: Database) -> Attributes:
        """The database's attributes, which must not be changed."""
        last, attributes = self._last
        if database is not last:
            attributes = {}
            add_database(attributes, database)
            self._last = (database, attributes)
        return attributes


class RecordedSpans:
    """The open spans of one session scope: the session's, its transactions', its flush's.

    They are equal to those of `LiveSpans`. Where the sampler drops the session's span, only its
    context is kept, for spans of other instrumentations: nothing else is computed.
    """

    __slots__ = (
        "_base",
        "_databases",
        "_derived",
        "_derived_of",
        "_dropped",
        "_ledger",
        "_open",
        "_recorder",
        "_report",
        "_statement",
        "is_dropped",
        "session_context",
    )

    def __init__(
        self, recorder: SpanRecorder, databases: DatabaseAttributes, report: Report
    ) -> None:
        self._recorder = recorder
        self._databases = databases
        self._report = report
        self._ledger = report.ledger
        # The session's span is the first.
        self._open: list[RecordedSpan] = []
        self._statement: RecordedSpan | None = None
        # Whether the session's span is not sampled, and its context until the scope ends.
        self.is_dropped = False
        self._dropped: SpanContext | None = None
        # The context that a caller was in last, and the one that takes its place for a span.
        self._base: Context | None = None
        self._derived: Context | None = None
        self._derived_of: SpanContext | None = None
        # Where links to this session point, once its span has begun.
        self.session_context: SpanContext | None = None

    # What happens in the session.

    def transaction_began(self, at: int, site: CallSite | None, nested: bool) -> None:
        """A transaction or savepoint began."""
        if self.is_dropped or not (self._open or self._session_began()):
            return
        name = SAVEPOINT_SPAN if nested else TRANSACTION_SPAN
        self._began(name, TRANSACTION_NESTED, nested, site, at)

    def transaction_ended(self, at: int, outcome: Outcome, nested: bool, error: str) -> None:
        """A transaction or savepoint ended."""
        one = self._pop(SAVEPOINT_SPAN if nested else TRANSACTION_SPAN, at)
        if one is None:
            return
        one.attributes[TRANSACTION_OUTCOME] = outcome
        if error:
            _fail(one, error)
        self._end(one, at)

    def connection_acquired(self, database: Database) -> None:
        """The transaction has a connection."""
        if self._open:
            attributes = self._databases.of(database)
            for one in self._open:
                one.attributes.update(attributes)

    def flush_began(self, at: int, site: CallSite | None, trigger: Trigger) -> None:
        """The unit of work started to write."""
        if self._open:
            self._began(FLUSH_SPAN, FLUSH_TRIGGER, trigger, site, at)

    def flush_ended(
        self, at: int, new: int, dirty: int, deleted: int, unchanged: int | None, error: str
    ) -> None:
        """The unit of work was written, or could not be: then `unchanged` is None."""
        one = self._pop(FLUSH_SPAN, at)
        if one is None:
            return
        attributes = one.attributes
        attributes[FLUSH_NEW] = new
        attributes[FLUSH_DIRTY] = dirty
        attributes[FLUSH_DELETED] = deleted
        if unchanged is not None:
            attributes[FLUSH_UNCHANGED] = unchanged
        if error:
            _fail(one, error)
        self._end(one, at)

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
        if not self._open:
            return
        parent = self._open[-1].context
        self._statement = one = RecordedSpan(
            statement_name(summary, batch_size, database),
            self._recorder.child(parent),
            parent,
            of_statement(text, summary, operation, collection, batch_size, database),
            at + self._ledger.epoch,
        )
        one.kind = SpanKind.CLIENT

    def statement_executed(self, at: int, site: CallSite | None, error: str, status: str) -> None:
        """The driver's execute call returned, or raised an error."""
        one, self._statement = self._statement, None
        if one is None:
            return
        add_site(one.attributes, site)
        if error:
            _fail(one, error)
            if status:
                one.attributes[names.DB_RESPONSE_STATUS_CODE] = status
        self._end(one, at)

    def session_ended(self, at: int) -> None:
        """The scope ended, as its ledger has it."""
        self._dropped = None
        opened = self._open
        if not opened:
            return
        while len(opened) > 1:
            self._end_unfinished(at + self._ledger.epoch)
        one = opened.pop()
        ledger, attributes = self._ledger, one.attributes
        outcome = ledger.outcome or "closed"
        attributes[SESSION_OUTCOME] = outcome
        attributes[STATEMENTS] = ledger.statements
        attributes[STATEMENT_DURATION] = ledger.sql / 1e9
        attributes[CONNECTION_HELD] = ledger.held / 1e9
        attributes[IDENTITY_MAP_SIZE] = ledger.identity_map_size
        attributes[IDENTITY_MAP_PEAK] = ledger.identity_map_peak
        if outcome in _FAILED:
            _fail(one, ledger.error or outcome)
        self._end(one, at)

    def refused(self, origin: SpanContext | None) -> None:
        """Begin the span of a refused load; the fact that follows describes and ends it."""
        links = [] if origin is None else [Link(origin)]
        within, now = context_api.get_current(), time.time_ns() - self._ledger.epoch
        one = self._root(names.DETACHED_LOAD_SPAN, within, {}, now, links)
        if one is not None:
            one.links = links

    def detached_load_failed(self, fact: facts.DetachedLoadFailed) -> None:
        """Describe and end the span of a refused load."""
        self._dropped = None
        if not self._open:
            return
        one, attributes = self._open[-1], self._open.pop().attributes
        attributes[SESSION_ID] = self._ledger.id
        attributes[SESSION_NAME] = self._report.name
        attributes[SESSION_ASYNC] = self._ledger.is_async
        attributes[names.ENTITY] = fact.entity
        attributes[names.ATTRIBUTE] = fact.attribute
        add_site(attributes, fact.site)
        _fail(one, "sqlalchemy.orm.exc.DetachedInstanceError")
        self._report.span_context = None
        self._recorder.end(one, time.time_ns())

    # What is concluded from it.

    def finding(self, finding: Finding) -> None:
        """Put a finding on the innermost open span."""
        if self._open:
            self._add_event(names.FINDING_EVENT, of_finding(finding))

    def retracted(self, retraction: Retraction) -> None:
        """Report on the innermost open span that a finding is retracted."""
        if self._open:
            self._add_event(names.FINDING_RETRACTED_EVENT, of_retraction(retraction))

    def _add_event(self, name: str, attributes: Attributes) -> None:
        for one in self._open[-1:]:
            one.add_event(RecordedEvent(name, attributes, time.time_ns()))

    # The context of statements, and the end of the report.

    def attach(self) -> Attached | None:
        """The caller's context with the innermost open span, to attach; None to leave it be."""
        if self._open:
            context = (self._statement or self._open[-1]).context
        elif self._dropped is not None:
            context = self._dropped
        else:
            return None
        base = context_api.get_current()
        if base is not self._base or context is not self._derived_of:
            self._base, self._derived_of = base, context
            is_current = base and context == trace.get_current_span(base).get_span_context()
            self._derived = (
                None if is_current else trace.set_span_in_context(NonRecordingSpan(context), base)
            )
        return None if self._derived is None else Attached(self._derived, base)

    def stop(self) -> None:
        """End what is open now: how it goes on is not reported any more."""
        self._dropped = None
        while self._open:
            self._end_unfinished(time.time_ns())
        self._report.span_context = None

    # How spans begin and end.

    def _session_began(self) -> bool:
        """Begin the session's span, dated back to the opening of the scope; whether it records."""
        ledger, name = self._ledger, self._report.name
        within = ledger.context
        if within is None:
            within = context_api.get_current()
        # The sampler needs no more to decide: the rest is set where the span records.
        attributes: Attributes = {SESSION_NAME: name, SESSION_ASYNC: ledger.is_async}
        one = self._root(names.session_span(name), within, attributes, ledger.opened_at)
        self.session_context = self._dropped if one is None else one.context
        if one is None:
            return False
        add_site(one.attributes, ledger.opened_site)
        one.attributes[SESSION_ID] = ledger.id
        return True

    def _root(
        self,
        name: str,
        within: Context,
        attributes: Attributes,
        at: int,
        links: Sequence[Link] = (),
    ) -> RecordedSpan | None:
        """Begin the outermost span of the scope; None where it does not record."""
        context, parent, kept = self._recorder.begin(name, within, attributes, links)
        if kept is None:
            self._dropped = context
            self.is_dropped = True
            return None
        one = RecordedSpan(name, context, parent, kept, at + self._ledger.epoch)
        self._open.append(one)
        self._report.span_context = context[:2]
        return one

    def _began(
        self, name: str, key: str, value: str | bool, site: CallSite | None, at: int
    ) -> None:
        """Begin a span below the innermost one, with an attribute of its own."""
        opened, ledger = self._open, self._ledger
        attributes: Attributes
        if site is None:
            attributes = {SESSION_NAME: self._report.name, key: value, SESSION_ID: ledger.id}
        else:
            attributes = {
                SESSION_NAME: self._report.name,
                key: value,
                CODE_FUNCTION_NAME: site.function,
                CODE_FILE_PATH: site.file,
                CODE_LINE_NUMBER: site.line,
                SESSION_ID: ledger.id,
            }
            if site.callers:
                add_site(attributes, site)
        if ledger.database is not None:
            attributes.update(self._databases.of(ledger.database))
        parent = opened[-1].context
        context = self._recorder.child(parent)
        opened.append(RecordedSpan(name, context, parent, attributes, at + ledger.epoch))
        self._report.span_context = context[:2]

    def _pop(self, name: str, at: int) -> RecordedSpan | None:
        """Take away the innermost span of that name, and end whatever was left open within it."""
        opened = self._open
        if opened and opened[-1].name == name:
            return opened.pop()
        if all(one.name != name for one in opened[1:]):
            return None
        while opened[-1].name != name:
            self._end_unfinished(at + self._ledger.epoch)
        return opened.pop()

    def _end_unfinished(self, at: int) -> None:
        self._recorder.end(self._open.pop(), at)

    def _end(self, one: RecordedSpan, at: int) -> None:
        """End a span that was taken away."""
        opened = self._open
        self._report.span_context = opened[-1].context[:2] if opened else None
        self._recorder.end(one, at + self._ledger.epoch)


def _fail(one: RecordedSpan, error: str) -> None:
    """Report that what the span stands for has failed."""
    # The message stays out: a database's error text quotes column values.
    one.attributes[names.ERROR_TYPE] = error
    one.failed = True
    exception: Attributes = {names.EXCEPTION_TYPE: error}
    one.add_event(RecordedEvent(names.EXCEPTION_EVENT, exception, time.time_ns()))
