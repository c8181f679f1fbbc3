"""Raises findings as exceptions, for tests: at the application's line, where nothing is lost by it.

A finding that `Settings.raise_on` means is due from the moment it is said. It is raised at the next
moment at which SQLAlchemy is done with what it was asked for: after a SELECT outside of a flush and
a commit, after `commit()`, and last after `close()`. Never while another exception is on its way or
being handled, which it could hide.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.util import await_only

from session_tracer.tracer import is_telling
from session_tracer.where.running import running_frame

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import FrameType

    from session_tracer.model.findings import Finding
    from session_tracer.tracer import Story

__all__ = ["SessionMisuse", "raise_due"]


class SessionMisuse(Exception):
    """A finding that `Settings.raise_on` wants raised; `finding` is what was found."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding)
        self.finding = finding

    def __str__(self) -> str:
        finding = self.finding
        told = (
            ("at", finding.site),
            ("opened at", finding.session_site),
            ("remedy", finding.remedy),
            ("help", finding.help),
        )
        # A remedy may be several lines of code.
        values = [(label, str(value).replace("\n", _BELOW)) for label, value in told if value]
        lines = [f"    {label:<9}  {value}" for label, value in values]
        return "\n".join([f"{finding.id}: {finding.message}", *lines])


_BELOW: Final = "\n" + " " * 15


def raise_due(stories: Iterable[Story]) -> None:
    """Raise what is due in these stories, if now is a moment for it."""
    for story in stories:
        if story.record.misuses:
            break
    else:
        return
    if is_telling() or _is_error_about() or not _may_leave():
        return
    due = _take(stories)
    if due:  # another thread may have been faster
        misuse = SessionMisuse(due[0])
        for other in due[1:]:
            misuse.add_note(f"and {SessionMisuse(other)}")
        raise misuse


def _take(stories: Iterable[Story]) -> list[Finding]:
    """What is due, once where several tracers have found it, and due no longer."""
    due: dict[tuple[Any, ...], Finding] = {}
    for story in stories:
        misuses = story.record.misuses
        taken = misuses[:]
        del misuses[: len(taken)]  # another thread may be adding to them
        for finding in taken:
            due.setdefault((finding.id, finding.site, finding.message), finding)
    return list(due.values())


def _is_error_about() -> bool:
    """Whether an exception is on its way or being handled, here or where this is awaited."""
    if sys.exc_info()[1] is not None:
        return True
    if _greenlet() is None:
        return False
    try:
        return await_only(_handled()) is not None
    except Exception:
        return True


async def _handled() -> BaseException | None:
    """The exception that the awaiting coroutines handle: a greenlet does not see it."""
    return sys.exc_info()[1]


def _may_leave() -> bool:
    """Whether nothing of SQLAlchemy's is left half done by an exception."""
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
    """The frames between here and whoever called SQLAlchemy."""
    frame: FrameType | None = here
    greenlet = _greenlet()
    while frame is not None and str(frame.f_globals.get("__name__")).startswith(_MACHINERY):
        yield frame
        frame = frame.f_back
        if frame is None and greenlet is not None:
            frame, greenlet = greenlet.parent.gr_frame, None


def _greenlet() -> Any:
    """The greenlet in which SQLAlchemy runs this, None where it is awaited by nobody."""
    module = sys.modules.get("greenlet")
    current = None if module is None else module.getcurrent()
    if getattr(current, "__sqlalchemy_greenlet_provider__", False):
        return current
    # It has no public name; under another one it is of a class of SQLAlchemy's nevertheless.
    return current if type(current).__module__.startswith("sqlalchemy.") else None
