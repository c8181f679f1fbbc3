"""Raises findings as exceptions in tests, at the application's line.

A finding that `Settings.raise_on` selects is due when it is reported. It is raised when SQLAlchemy
has completed the current operation: after a SELECT outside of a flush and a commit, after
`commit()`, or at the latest after `close()`. It is never raised while another exception propagates
or is handled, because it could hide that exception.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.util import await_only

from session_tracer.ledger.guard import reporting
from session_tracer.where.running import running_frame

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import FrameType

    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding

__all__ = ["SessionMisuse", "raise_due"]


class SessionMisuse(Exception):
    """A finding that `Settings.raise_on` selects, raised as an exception.

    Attributes:
        finding: The finding.
    """

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding)
        self.finding = finding

    def __str__(self) -> str:
        finding = self.finding
        labelled = (
            ("at", finding.site),
            ("opened at", finding.session_site),
            ("remedy", finding.remedy),
            ("help", finding.help),
        )
        # A remedy may be several lines of code.
        values = [(label, str(value).replace("\n", _BELOW)) for label, value in labelled if value]
        lines = [f"    {label:<9}  {value}" for label, value in values]
        return "\n".join([f"{finding.id}: {finding.message}", *lines])


_BELOW: Final = "\n" + " " * 15


def raise_due(reports: Iterable[Report]) -> None:
    """Raise the findings that are due in these reports, if nothing is lost by it now.

    Args:
        reports: The reports of one session scope.

    Raises:
        SessionMisuse: the first finding that is due. The others are its notes.
    """
    for report in reports:
        if report.misuses:
            break
    else:
        return
    if reporting.now or _is_error_about() or not _may_leave():
        return
    due = _take(reports)
    if due:  # another thread may have been faster
        misuse = SessionMisuse(due[0])
        for other in due[1:]:
            misuse.add_note(f"and {SessionMisuse(other)}")
        raise misuse


def _take(reports: Iterable[Report]) -> list[Finding]:
    """Return the findings that are due, each once, and mark them as raised."""
    due: dict[tuple[Any, ...], Finding] = {}
    for report in reports:
        taken, report.misuses = report.misuses, ()
        for finding in taken:
            due.setdefault((finding.id, finding.site, finding.message), finding)
    return list(due.values())


def _is_error_about() -> bool:
    """Return whether an exception propagates or is handled, here or where this is awaited."""
    if sys.exc_info()[1] is not None:
        return True
    if _greenlet() is None:
        return False
    try:
        return await_only(_handled()) is not None
    except Exception:
        return True


async def _handled() -> BaseException | None:
    """Return the exception that the awaiting coroutines handle, which a greenlet does not see."""
    return sys.exc_info()[1]


def _may_leave() -> bool:
    """Return whether an exception leaves no operation of SQLAlchemy incomplete."""
    here = running_frame(1)
    if here is None:
        return False  # it may have left anything half done
    for frame in _machinery(here):
        where = (frame.f_globals["__name__"], frame.f_code.co_name)
        if where == ("sqlalchemy.orm.session", "close_all_sessions"):
            return False  # it has others to close
        if where in _REMOVALS:
            # It has closed the session, and would now have forgotten it.
            frame.f_locals["self"].registry.clear()
    return True


_REMOVALS: Final = (
    ("sqlalchemy.orm.scoping", "remove"),
    ("sqlalchemy.ext.asyncio.scoping", "remove"),
)
_MACHINERY: Final = ("session_tracer.", "sqlalchemy.")


def _machinery(here: FrameType) -> Iterator[FrameType]:
    """Yield the frames between here and the code that called SQLAlchemy."""
    frame: FrameType | None = here
    greenlet = _greenlet()
    while frame is not None and str(frame.f_globals.get("__name__")).startswith(_MACHINERY):
        yield frame
        frame = frame.f_back
        if frame is None and greenlet is not None:
            frame, greenlet = greenlet.parent.gr_frame, None


def _greenlet() -> Any:
    """Return the greenlet in which SQLAlchemy runs this, or None outside of one."""
    module = sys.modules.get("greenlet")
    current = None if module is None else module.getcurrent()
    if getattr(current, "__sqlalchemy_greenlet_provider__", False):
        return current
    # It has no public name; under another one it is of a class of SQLAlchemy's nevertheless.
    return current if type(current).__module__.startswith("sqlalchemy.") else None
