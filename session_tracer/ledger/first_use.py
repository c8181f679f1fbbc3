"""Finds the line that first used a session which other code had opened for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from session_tracer.ledger.ledger import Ledger
    from session_tracer.where.callsite import CallSite

__all__ = ["elsewhere"]


def elsewhere(ledger: Ledger, site: CallSite) -> None:
    """The session is used at a line, for the first time or by another function than began it.

    The code that opened it may be at work: it has called the function that has the line, or awaits
    it. Otherwise it has lent the session: a generator has yielded it, a wrapper has returned it, a
    plugin is a library's. What one thread or task opened and another one uses, the first may keep
    for all of them, such as the session of a whole application: only a generator lends that.
    """
    opened, locator = ledger.opened_site, ledger.locator
    if opened is None or opened.distance > 1:
        is_lent = True
    elif (site.file, site.function) == (opened.file, opened.function):
        return
    elif (opened.file, opened.function) in locator.generators:
        is_lent = not locator.is_at_work(opened, site)
        ledger.may_be_lent = not is_lent
    elif opened.function == "<module>" or not ledger.opened_by.is_current():
        is_lent = False
    else:
        is_lent = not locator.is_at_work(opened, site)
    if is_lent:
        ledger.is_lent = True
        ledger.first_used_site = site
