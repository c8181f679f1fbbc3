"""Begins a session scope: as a session is opened, used for the first time, or used again."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from session_tracer.ledger.in_progress import SLOT
from session_tracer.ledger.ledger import Ledger, Opening, recognising
from session_tracer.runtime import environment
from session_tracer.where import owner
from session_tracer.where.work import blocks_now

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from session_tracer.ledger.ledger import Closing
    from session_tracer.ledger.report import Tracer
    from session_tracer.where.callsite import CallSite

__all__ = ["begin_scope", "ledger_failed", "ledger_of", "opening_now", "resumed"]


def ledger_of(holder: object) -> Ledger | None:
    """The ledger of a traced Session, or of a Connection that one holds; None before its first use.

    A session that was never used has nothing to account for.
    """
    ledger = holder.__dict__.get(SLOT)
    return ledger if type(ledger) is Ledger else None


def opening_now(
    tracers: tuple[Tracer, ...],
    site: CallSite | None,
    *,
    is_async: bool,
    closing: Closing | None = None,
) -> Opening:
    """Note how a scope begins."""
    nearest, error = tracers[0], sys.exc_info()[1]
    return Opening(
        tracers=tracers,
        at=nearest.clock(),
        site=site,
        owner=owner.current(),
        context=nearest.context(),
        handled=None if error is None else recognising(error),
        is_async=is_async,
        closing=closing,
        blocks=blocks_now(),
        bound=environment.bound_context(),
    )


def begin_scope(session: Session, opening: Opening) -> Ledger:
    """The first scope of a session begins, as it was opened."""
    tracers, is_async = opening.tracers, opening.is_async
    if not opening.at:
        site = tracers[0].locator.locate(2)
        opening = opening_now(tracers, site, is_async=is_async, closing=opening.closing)
    ledger = Ledger(tracers, is_async=is_async, clock=tracers[0].clock)
    session.__dict__[SLOT] = ledger
    ledger.begin(session, opening)
    return ledger


def resumed(session: Session, ledger: Ledger | Opening) -> Ledger:
    """The ledger of the open scope: one begins where the session is new or was closed."""
    if isinstance(ledger, Opening):
        return begin_scope(session, ledger)
    if ledger.is_open:
        return ledger
    return begin_scope(
        session,
        opening_now(
            ledger.tracers, ledger.site(), is_async=ledger.is_async, closing=ledger.closing()
        ),
    )


def ledger_failed(ledger: Ledger | Opening, where: str, error: Exception) -> None:
    """Report a failure of session_tracer's own, and this scope no further."""
    if type(ledger) is Ledger:
        ledger.failed(where, error)
    else:
        for tracer in ledger.tracers:
            tracer.failed(where, error)
