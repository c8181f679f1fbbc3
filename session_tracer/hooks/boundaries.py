"""Refusals of SQLAlchemy because a transaction is open, or because it is no longer open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.orm.session import SessionTransactionOrigin

from session_tracer import facts
from session_tracer.hooks.scopes import ledger_of, resumed
from session_tracer.where.error_handlers import asserts
from session_tracer.where.except_finder import Failure, is_expected

if TYPE_CHECKING:
    from types import FrameType

    from session_tracer.facts import Fact
    from session_tracer.ledger.in_progress import OpenTransaction
    from session_tracer.ledger.ledger import Ledger

__all__ = ["begin_refused", "is_handled", "is_named", "used_after_end"]

# An `except` of one of these is no sign that the code expects one error in particular.
_GENERAL: Final = frozenset({"SQLAlchemyError", "Exception", "BaseException", "object"})


def begin_refused(error: Any, frame: FrameType) -> tuple[Ledger | None, Fact | None]:
    """`begin()` was called during a transaction."""
    session = frame.f_locals.get("self")
    ledger = ledger_of(session) if issubclass(type(session), Session) else None
    if session is None or ledger is None or is_handled(error, ledger, frame):
        return None, None
    transaction = session.get_transaction()
    is_implicit = (
        transaction is not None and transaction.origin is SessionTransactionOrigin.AUTOBEGIN
    )
    return ledger, facts.TransactionRefused(
        at=ledger.clock(),
        site=ledger.site(),
        began_site=ledger.transaction_began_site,
        implicit=is_implicit,
    )


def used_after_end(error: Any, frame: FrameType) -> tuple[Ledger | None, Fact | None]:
    """A session was used in the block of a transaction that has ended, or the transaction was."""
    transaction = frame.f_locals.get("trans_context")
    in_block = transaction is not None
    if not in_block:
        transaction = frame.f_locals.get("self")
    if transaction is None or not issubclass(type(transaction), SessionTransaction):
        return None, None
    session = transaction.session
    ledger = ledger_of(session)
    if ledger is None or is_handled(error, ledger, frame):
        return None, None
    ended = _ended(transaction, ledger)
    if ended is None:
        return None, None
    last = ledger.last_ended or ended
    return resumed(session, ledger), facts.TransactionRefused(
        at=ledger.clock(),
        site=ledger.site(),
        began_site=ended.site,
        outcome=last.outcome,
        ended_site=last.ended_site,
        nested=transaction.nested,
        in_block=in_block,
    )


def _ended(transaction: SessionTransaction, ledger: Ledger) -> OpenTransaction | None:
    """What the ledger knows of a transaction or savepoint that has ended; None if it has not."""
    outer = transaction.parent
    depth = 0
    while outer is not None:
        depth += 1
        outer = outer.parent
    ended = ledger.last_ended
    # The last one to end is the outermost of those that ended together. One that another task is
    # just committing is still among the open ones.
    for _ in range(depth - len(ledger.transactions_open)):
        ended = None if ended is None else ended.inner
    return ended if len(ledger.transactions_open) <= depth else None


def is_handled(error: Any, ledger: Ledger, frame: FrameType) -> bool:
    """Whether the application expects to be refused, and tries."""
    return is_named(type(error), ledger, frame) or asserts(frame)


def is_named(kind: type[BaseException], ledger: Ledger, frame: FrameType) -> bool:
    """Whether the application catches errors of this kind by one of their names."""
    sites = ledger.locator.frames(frame)
    names = frozenset(one.__name__ for one in kind.__mro__)
    return is_expected(Failure(sites, names), sites, _GENERAL)
