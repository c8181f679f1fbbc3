"""The statements that fail, as far as the session's transaction depends on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import exc

from session_tracer import facts
from session_tracer.hooks import sql
from session_tracer.hooks.flush_failures import is_locked
from session_tracer.ledger.failures import First
from session_tracer.ledger.ledger import type_name
from session_tracer.where.except_finder import failure, handler_of
from session_tracer.where.running import running_frame

if TYPE_CHECKING:
    from session_tracer.ledger.ledger import Ledger
    from session_tracer.where.callsite import CallSite

__all__ = ["commit_failed", "statement_failed"]

# PostgreSQL: the transaction is aborted, because an earlier statement has failed.
_ABORTED: Final = "25P02"
# The classes in which SQLAlchemy wraps a driver's error, beside the one of the error's own name.
_WRAPPED_IN: Final = frozenset({"DBAPIError", "StatementError", "SQLAlchemyError"})


def statement_failed(
    ledger: Ledger,
    error: BaseException,
    site: CallSite | None,
    *,
    statement: str,
    duration: int,
    in_flush: bool,
) -> None:
    """Note the statement that fails first, or report that the session is used after it."""
    code = sql.status_code(error)
    here = ledger.locator.frames(running_frame(1))
    if code == _ABORTED:
        first = None if ledger.failures is None else ledger.failures.first
        caught = None if first is None or first.failure is None else first.failure
        swallowed = None if caught is None else handler_of(caught, here)
        ledger.rollback_pending(facts.RollbackPending(ledger.clock(), site, swallowed))
    elif not in_flush:
        passes = failure(error, here)
        passes = passes._replace(names=passes.names | _WRAPPED_IN)
        first = First("a statement", ledger.clock(), site, type_name(error), code, failure=passes)
        ledger.note_failure(first)
        if is_locked(code, error):
            what = sql.shape(statement).summary
            fact = _locked(ledger, _wrapper(error), site, what, code, duration)
            ledger.lock_refused(fact, passes, error)


def commit_failed(ledger: Ledger, error: BaseException, site: CallSite | None) -> None:
    """Note a COMMIT that fails because of another transaction's lock, or conflicts with it."""
    original = getattr(error, "orig", None)
    code = sql.status_code(original) if isinstance(original, BaseException) else ""
    if is_locked(code, original):
        passes = failure(error, ledger.locator.frames(running_frame(1)))
        fact = _locked(ledger, type_name(error), site, "COMMIT", code, duration=0)
        ledger.lock_refused(fact, passes, error)


def _wrapper(error: BaseException) -> str:
    """The class in which the application sees a driver's error: SQLAlchemy's of that name."""
    for kind in type(error).__mro__:
        wrapper = getattr(exc, kind.__name__, None)
        if isinstance(wrapper, type) and issubclass(wrapper, exc.DBAPIError):
            return f"{wrapper.__module__}.{wrapper.__qualname__}"
    return f"{exc.DBAPIError.__module__}.{exc.DBAPIError.__qualname__}"


def _locked(
    ledger: Ledger,
    error: str,
    site: CallSite | None,
    operation: str,
    code: str,
    duration: int,
) -> facts.FlushFailed:
    return facts.FlushFailed(
        at=ledger.clock(),
        site=site,
        trigger="explicit",
        duration=duration,
        error=error,
        in_savepoint=ledger.open_savepoints > 0,
        problem="locked",
        code=code,
        operation=operation,
    )
