"""What the sessions of one test do, as the fixture `session_trace` gives it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from session_tracer.model.findings import Finding
    from session_tracer.model.live_session import LiveSession
    from session_tracer.model.summary import SessionSummary
    from session_tracer.pytest_plugin.case import Case

__all__ = ["SessionTrace"]


class SessionTrace:
    """What the sessions of one test did so far; `str()` gives their timelines.

    Everything but `findings` and `open` is about the test itself, not about the setup and teardown
    of its fixtures. What other threads and tasks do during the test counts, too.
    """

    def __init__(self, case: Case) -> None:
        self._case = case

    def __str__(self) -> str:
        from session_tracer.pytest_plugin.wording import timelines

        return timelines(self.sessions)

    @property
    def findings(self) -> list[Finding]:
        """What was found in the test and its fixtures, also what the baseline knows."""
        self._case.settle()
        return [drawn.finding for drawn in self._case.drawn]

    @property
    def sessions(self) -> list[SessionSummary]:
        """What each session did, in the order of their first use in the test.

        Sessions of wider fixtures are among them. A session that is still open has no `ending`.
        """
        self._case.settle()
        return self._case.summaries()

    @property
    def open(self) -> list[LiveSession]:
        """The sessions that were opened in the test or its own fixtures, and are open now."""
        return self._case.open_sessions()

    @property
    def opened(self) -> int:
        """How many session scopes were opened."""
        return self._counted("sessions")

    @property
    def statements(self) -> int:
        """How many statements ran; an `executemany` counts as one."""
        return self._counted("statements")

    @property
    def commits(self) -> int:
        """How many transactions were committed; the release of a savepoint is not counted."""
        return self._counted("commits")

    @property
    def flushes(self) -> int:
        """How many flushes there were, including failed ones."""
        return self._counted("flushes")

    @property
    def lazy_loads(self) -> int:
        """How many statements loaded an attribute of one object; a `refresh()` is not counted."""
        return self._counted("lazy_loads")

    @property
    def loaded(self) -> int:
        """How many objects were loaded that were not in an identity map before."""
        return self._counted("loaded")

    def _counted(self, budget: str) -> int:
        self._case.settle()
        return self._case.tally.counts[budget]
