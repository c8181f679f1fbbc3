"""The value of the fixture `session_trace`: what the sessions of one test did."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from session_tracer.model.findings import Finding
    from session_tracer.model.live_session import LiveSession
    from session_tracer.model.summary import SessionSummary
    from session_tracer.pytest_plugin.case import Case

__all__ = ["SessionTrace"]


class SessionTrace:
    """What the sessions of one test did so far. `str()` returns their timelines.

    Everything except `findings` and `open` is about the test itself, not about the setup and
    teardown of its fixtures. Sessions of other threads and tasks are included.
    """

    def __init__(self, case: Case) -> None:
        self._case = case

    def __str__(self) -> str:
        from session_tracer.pytest_plugin.wording import timelines

        return timelines(self.sessions)

    @property
    def findings(self) -> list[Finding]:
        """The findings of the test and its fixtures, including known ones of the baseline."""
        self._case.settle()
        return [reported.finding for reported in self._case.reported]

    @property
    def sessions(self) -> list[SessionSummary]:
        """What each session did, in the order in which the test first used them.

        Sessions of fixtures with a wider scope are included. A session that is still open has no
        `ending`.
        """
        self._case.settle()
        return self._case.summaries()

    @property
    def open(self) -> list[LiveSession]:
        """The sessions that the test or its own fixtures opened, and that are open now."""
        return self._case.open_sessions()

    @property
    def opened(self) -> int:
        """Number of session scopes that were opened."""
        return self._count("sessions")

    @property
    def statements(self) -> int:
        """Number of statements. An `executemany` counts as one."""
        return self._count("statements")

    @property
    def commits(self) -> int:
        """Number of transactions that were committed. Savepoints are not counted."""
        return self._count("commits")

    @property
    def flushes(self) -> int:
        """Number of flushes, including failed ones."""
        return self._count("flushes")

    @property
    def lazy_loads(self) -> int:
        """Number of statements that loaded an attribute of one object, except by `refresh()`."""
        return self._count("lazy_loads")

    @property
    def loaded(self) -> int:
        """Number of objects that were loaded and were not in the identity map before."""
        return self._count("loaded")

    @property
    def sql_ms(self) -> float:
        """Milliseconds in statements."""
        return self._number("sql_ms")

    @property
    def slowest_statement_ms(self) -> float:
        """Milliseconds in the statement that took longest."""
        return self._number("slowest_statement_ms")

    def _count(self, budget: str) -> int:
        return int(self._number(budget))

    def _number(self, budget: str) -> float:
        self._case.settle()
        return self._case.counts[budget]
