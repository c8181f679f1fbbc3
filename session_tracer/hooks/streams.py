"""Streamed results that are read on after their transaction has ended."""

from __future__ import annotations

import time
import weakref
from typing import TYPE_CHECKING, Any

from session_tracer import facts
from session_tracer.hooks.patching import as_sqlalchemys

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from session_tracer.facts import Outcome
    from session_tracer.ledger.ledger import Ledger
    from session_tracer.where.callsite import CallSite

__all__ = ["follow"]


def follow(ledger: Ledger, context: Any, site: CallSite | None) -> None:
    """A statement is about to run whose rows are streamed: follow its result when it is made.

    The function that makes it is called once. It may not hold the context, which holds it.
    """
    known = weakref.ref(context)
    make = getattr(type(context), "_setup_result_proxy", None)
    if make is None:
        return

    def _setup_result_proxy() -> Any:
        context = known()
        context.__dict__.pop("_setup_result_proxy", None)
        result = make(context)
        try:
            _follow(ledger, result, site)
        except Exception as error:
            ledger.failed("statements", error)
        return result

    context.__dict__["_setup_result_proxy"] = as_sqlalchemys(_setup_result_proxy)


def _follow(ledger: Ledger, result: Any, site: CallSite | None) -> None:
    if result.cursor is None:
        return  # it has no rows
    fetching = result.cursor_strategy = _Fetching(result.cursor_strategy)
    # Those that were read to the end are forgotten: there may be any number in one transaction.
    others = tuple(ask for ask in ledger.when_ended if not _is_over(ask))
    ledger.when_ended = (*others, _Stream(weakref.ref(fetching), site).ended)


def _is_over(ask: Any) -> bool:
    stream = getattr(ask, "__self__", None)
    return type(stream) is _Stream and stream.fetching() is None


class _Stream:
    """A streamed result, and the line of its statement.

    The result lets go of what fetches its rows when it is read to the end, or closed.
    """

    def __init__(self, fetching: weakref.ref[_Fetching], site: CallSite | None) -> None:
        self.fetching = fetching
        self._site = site

    def ended(
        self, ledger: Ledger, session: Session, outcome: Outcome, site: CallSite | None
    ) -> None:
        """The transaction has ended: if rows are left, watch whether they are asked for."""
        del session
        fetching = self.fetching()
        if fetching is not None:
            fact = facts.StreamInterrupted(
                at=ledger.clock(),
                site=site,
                outcome=outcome,
                streamed_site=self._site,
                rows=fetching.rows,
            )
            fetching.interrupted = (ledger, fact)


class _Fetching:
    """Fetches a result's rows as SQLAlchemy's own strategy does, and counts them."""

    def __init__(self, found: Any) -> None:
        self._found = found
        self.rows = 0
        self.interrupted: tuple[Ledger, facts.StreamInterrupted] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._found, name)

    # For `isinstance()` it is the strategy whose place it takes.
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return self._found.__class__

    @as_sqlalchemys
    def fetchone(self, result: Any, *rest: Any, **options: Any) -> Any:
        if self.interrupted is not None:
            self._report()
        row = self._found.fetchone(result, *rest, **options)
        self.rows += row is not None
        return row

    @as_sqlalchemys
    def fetchmany(self, result: Any, *rest: Any, **options: Any) -> Any:
        if self.interrupted is not None:
            self._report()
        rows = self._found.fetchmany(result, *rest, **options)
        self.rows += len(rows)
        return rows

    @as_sqlalchemys
    def fetchall(self, result: Any, *rest: Any, **options: Any) -> Any:
        if self.interrupted is not None:
            self._report()
        return self._found.fetchall(result, *rest, **options)

    @as_sqlalchemys
    def yield_per(self, result: Any, *rest: Any, **options: Any) -> None:
        self._found.yield_per(result, *rest, **options)
        if result.cursor_strategy is not self:  # SQLAlchemy has put a buffer in its place
            self._found, result.cursor_strategy = result.cursor_strategy, self

    def _report(self) -> None:
        interrupted, self.interrupted = self.interrupted, None
        if interrupted is None:
            return
        ledger, fact = interrupted
        try:
            fact.read_site = ledger.site()
            if ledger.is_open:
                ledger.suspect(fact)
            else:
                _report_later(ledger, fact)
        except Exception as error:
            ledger.failed("statements", error)


def _report_later(ledger: Ledger, fact: facts.StreamInterrupted) -> None:
    """Report it by the tracers of a session that is closed."""
    epoch = time.time_ns() - time.perf_counter_ns()
    for tracer, _ in ledger.scope.reported_by():
        if not tracer.closed:
            tracer.begin_detached(ledger.scope, epoch).judge(fact)
