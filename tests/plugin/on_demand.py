"""A detector that reports a finding when a test requests it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from session_tracer.facts import SessionOpened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding, Severity

_REQUESTED: Final[list[Severity]] = []


@contextmanager
def requesting(severity: Severity) -> Iterator[None]:
    """Report a finding of that severity for each session that is opened in the block."""
    _REQUESTED.append(severity)
    try:
        yield
    finally:
        _REQUESTED.remove(severity)


class OnDemand:
    """Reports what is requested."""

    facts: Final = (SessionOpened,)

    def memory(self) -> None:
        """Nothing is remembered."""

    def judge(self, fact: SessionOpened, report: Report, memory: Any) -> Iterator[Finding]:
        """One finding for each request."""
        for severity in _REQUESTED:
            yield report.finding(
                f"demo-{severity}", severity, "it was requested", "request less", fact.site
            )


def each(things: Iterable[Any], do: Callable[[Any], object]) -> None:
    """Do something with each of several things: the loop is not the test's own."""
    for thing in things:
        do(thing)
