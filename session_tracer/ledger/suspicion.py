"""A finding about something that lasts, and when it is reported that it still holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from session_tracer.model.findings import Finding

__all__ = ["Suspicion"]

_MINUTE: Final = 60_000_000_000
# After 1 minute, 10 minutes and an hour, then hourly.
_FIRST_STEPS: Final = (_MINUTE, 10 * _MINUTE)
_LAST_STEP: Final = 60 * _MINUTE


class Suspicion:
    """A finding that is not retracted; times are in nanoseconds.

    Attributes:
        finding: The finding as it was reported.
        since: When it was reported.
        due_at: When it is to be reported that it still holds.
        later: What its log event was handed to, until that is logged. What is reported of the
            finding after it has to come after it.
    """

    __slots__ = ("due_at", "finding", "later", "since")

    def __init__(
        self, finding: Finding, since: int, later: Callable[[Callable[[], None]], None] | None
    ) -> None:
        self.finding = finding
        self.later = later
        self.since = since
        self.due_at = since + _FIRST_STEPS[0]

    def advance(self, now: int) -> None:
        """Be due at the next step, once the last one has passed."""
        if self.due_at > now:
            return
        age = now - self.since
        steps = (step for step in _FIRST_STEPS if step > age)
        self.due_at = self.since + next(steps, (age // _LAST_STEP + 1) * _LAST_STEP)
