"""Begins a session scope: as a session is opened, used for the first time, or used again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from session_tracer.ledger.in_progress import SLOT
from session_tracer.ledger.ledger import Ledger, Opening

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from session_tracer.ledger.report import Tracer

__all__ = ["begin_scope", "ledger_failed", "ledger_of", "opened", "resumed"]


def ledger_of(owner: object) -> Ledger | None:
    """The ledger of a traced Session, or of a Connection that one holds; None before its first use.

    A session that was never used has nothing to account for.
    """
    ledger = owner.__dict__.get(SLOT)
    return ledger if type(ledger) is Ledger else None


def opened(session: Session, tracers: tuple[Tracer, ...], *, is_async: bool) -> None:
    """A session was constructed: its scope begins with its first use, or now if that is wanted."""
    opening = Opening(
        tracers,
        tracers[0].clock(),
        tracers[0].locator.locate(2),
        is_async=is_async,
    )
    session.__dict__[SLOT] = opening
    for tracer in tracers:
        if not tracer.is_settled:
            tracer.settle()
        if tracer.wants_everything():
            begin_scope(session, opening)
            return


def begin_scope(session: Session, opening: Opening) -> Ledger:
    """The first scope of a session begins, as it was opened."""
    if not opening.at:
        # It was not seen as it was opened.
        opening = Opening(
            opening.tracers,
            opening.tracers[0].clock(),
            opening.tracers[0].locator.locate(2),
            is_async=opening.is_async,
            closing=opening.closing,
        )
    ledger = Ledger(opening.tracers, is_async=opening.is_async, clock=opening.tracers[0].clock)
    session.__dict__[SLOT] = ledger
    ledger.begin(session, opening)
    return ledger


def resumed(session: Session, ledger: Ledger | Opening) -> Ledger:
    """The ledger of the open scope: one begins where the session is new or was closed."""
    if isinstance(ledger, Opening):
        return begin_scope(session, ledger)
    if ledger.is_open:
        return ledger
    opening = Opening(
        ledger.tracers,
        ledger.clock(),
        ledger.site(),
        is_async=ledger.is_async,
        closing=ledger.closing(),
    )
    again = Ledger(ledger.tracers, is_async=ledger.is_async, clock=ledger.clock)
    session.__dict__[SLOT] = again
    again.begin(session, opening)
    return again


def ledger_failed(ledger: Ledger | Opening, where: str, error: Exception) -> None:
    """Report a failure of session_tracer's own, and this scope no further."""
    if type(ledger) is Ledger:
        ledger.failed(where, error)
    else:
        for tracer in ledger.tracers:
            tracer.failed(where, error)
