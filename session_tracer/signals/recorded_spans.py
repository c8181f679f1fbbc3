"""The spans of a session scope, each built when it ends, from what was kept since it began."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from opentelemetry.trace import SpanKind

from session_tracer.signals import names
from session_tracer.signals.attached import Attaching
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
    SESSION_WORK,
    STATEMENT_DURATION,
    STATEMENTS,
    TRANSACTION_NESTED,
    TRANSACTION_OUTCOME,
    TRANSACTION_SPAN,
)
from session_tracer.signals.span_attributes import (
    DETACHED_LOAD_ERROR,
    add_database,
    add_site,
    of_finding,
    of_retraction,
    of_statement,
    statement_name,
)
from session_tracer.signals.span_recorder import RecordedEvent, RecordedSpan

if TYPE_CHECKING:
    from session_tracer import facts
    from session_tracer.facts import Database, Outcome, Trigger
    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding, Retraction
    from session_tracer.signals.attached import Attached
    from session_tracer.signals.span_attributes import Attributes
    from session_tracer.signals.span_recorder import SpanRecorder
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


class RecordedSpans(Attaching):
    """The open spans of one session scope: the session's, its transactions', its flush's.

    They are equal to those of `LiveSpans`. Their attributes are put together when they end.
    """

    _database: Database | None = None
    # What ends the attributes of all spans of the scope, made again for each database.
    _shared: Attributes | None = None

    def __init__(
        self,
        recorder: SpanRecorder,
        databases: DatabaseAttributes,
        report: Report,
        one: RecordedSpan,
    ) -> None:
        self._recorder = recorder
        self._databases = databases
        self._report = report
        self._ledger = report.ledger
        # The outermost is the session's, or that of a refused load.
        self._open = [one]
        self._statement: RecordedSpan | None = None
        report.session_context = report.span_context = one.context

    # What happens in the session.

    def transaction_began(self, at: int, site: CallSite | None, nested: bool) -> None:
        """A transaction or savepoint began."""
        self._began(
            SAVEPOINT_SPAN if nested else TRANSACTION_SPAN, TRANSACTION_NESTED, nested, site, at
        )

    def transaction_ended(self, at: int, outcome: Outcome, nested: bool, error: str) -> None:
        """A transaction or savepoint ended."""
        name = SAVEPOINT_SPAN if nested else TRANSACTION_SPAN
        self._end(name, at, {TRANSACTION_OUTCOME: outcome}, error)

    def flush_began(self, at: int, site: CallSite | None, trigger: Trigger) -> None:
        """The unit of work started to write."""
        self._began(FLUSH_SPAN, FLUSH_TRIGGER, trigger, site, at)

    def flush_ended(
        self, at: int, new: int, dirty: int, deleted: int, unchanged: int | None, error: str
    ) -> None:
        """The unit of work was written, or could not be: then `unchanged` is None."""
        counts: Attributes = {FLUSH_NEW: new, FLUSH_DIRTY: dirty, FLUSH_DELETED: deleted}
        if unchanged is not None:
            counts[FLUSH_UNCHANGED] = unchanged
        self._end(FLUSH_SPAN, at, counts, error)

    def statement_started(self, fact: facts.StatementStarted) -> None:
        """A statement is about to go to the driver."""
        parent = self._open[-1].context
        self._statement = one = RecordedSpan(
            statement_name(fact),
            self._recorder.child(parent),
            parent,
            self._recorder.provider.resource,
            fact.at,
        )
        one.attributes = of_statement(fact)
        one.kind = SpanKind.CLIENT

    def statement_executed(self, fact: facts.StatementExecuted) -> None:
        """The driver's execute call returned, or raised an error."""
        one, self._statement = self._statement, None
        if one is None:
            return
        add_site(one.attributes, fact.site)
        if fact.error:
            one.fail(fact.error)
            if fact.status:
                one.attributes[names.DB_RESPONSE_STATUS_CODE] = fact.status
        self._recorder.end(one, fact.at, self._ledger.epoch)

    def session_ended(self, at: int) -> None:
        """The scope ended, as its ledger has it."""
        ledger = self._ledger
        outcome = ledger.outcome or "closed"
        totals: Attributes = {
            SESSION_OUTCOME: outcome,
            STATEMENTS: ledger.statements,
            STATEMENT_DURATION: ledger.sql / 1e9,
            CONNECTION_HELD: ledger.held / 1e9,
            IDENTITY_MAP_SIZE: ledger.identity_map_size,
            IDENTITY_MAP_PEAK: ledger.identity_map_peak,
        }
        if work := ledger.work:
            totals[SESSION_WORK] = work
        error = (ledger.error or outcome) if outcome in _FAILED else ""
        self._end(self._open[0].name, at, totals, error)

    def detached_load_failed(self, fact: facts.DetachedLoadFailed) -> None:
        """Describe and end the span of a refused load."""
        one, ledger = self._open.pop(), self._ledger
        attributes: Attributes = {
            SESSION_ID: ledger.id,
            SESSION_NAME: self._report.name,
            SESSION_ASYNC: ledger.is_async,
            names.ENTITY: fact.entity,
            names.ATTRIBUTE: fact.attribute,
        }
        if work := ledger.work:
            attributes[SESSION_WORK] = work
        add_site(attributes, fact.site)
        one.attributes = attributes
        one.fail(DETACHED_LOAD_ERROR)
        self._report.span_context = None
        self._recorder.end(one, time.time_ns(), 0)

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
            one.add_event(RecordedEvent(name, attributes, time.time_ns()))

    # The context of statements, and the end of the report.

    def attach(self) -> Attached | None:
        """The caller's context with the innermost open span, to attach; None to leave it be."""
        return self.attached((self._statement or self._open[-1]).context)

    def stop(self) -> None:
        """End what is open now: how it goes on is not reported any more."""
        while self._open:
            self._end(self._open[-1].name, time.time_ns() - self._ledger.epoch, {}, "")

    # How spans begin and end.

    def _began(
        self, name: str, key: str, value: str | bool, site: CallSite | None, at: int
    ) -> None:
        """Begin a span below the innermost one, with an attribute of its own."""
        opened, recorder = self._open, self._recorder
        parent = opened[-1].context
        self._report.span_context = context = recorder.child(parent)
        resource = recorder.provider.resource
        opened.append(RecordedSpan(name, context, parent, resource, at, key, value, site))

    def _end(self, name: str, at: int, later: Attributes, error: str) -> None:
        """End the innermost span of that name, and before it what was left open inside it."""
        opened, ledger = self._open, self._ledger
        one = opened[-1]
        if one.name != name:
            if all(one.name != name for one in opened):
                return
            while (one := opened[-1]).name != name:
                self._end(one.name, at, {}, "")
        database, shared = ledger.database, self._shared
        if shared is None or (database is not self._database and database is not None):
            self._database = database
            of_database = {} if database is None else self._databases.of(database)
            shared = self._shared = {SESSION_ID: ledger.id, **of_database}
        report, site = self._report, one.site
        # In the order of a live span's.
        attributes: Attributes
        if site is None or site.callers:
            attributes = {SESSION_NAME: report.name, one.key: one.value}
            add_site(attributes, site)
        else:
            attributes = {
                SESSION_NAME: report.name,
                one.key: one.value,
                CODE_FUNCTION_NAME: site.function,
                CODE_FILE_PATH: site.file,
                CODE_LINE_NUMBER: site.line,
            }
        one.attributes = attributes | shared | later
        if error:
            one.fail(error)
        del opened[-1]
        # What the span was inside of, which is recorded unless it is the caller's.
        report.span_context = one.parent if opened else None
        self._recorder.end(one, at, ledger.epoch)
