"""What a detector is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from session_tracer.facts import Fact
    from session_tracer.ledger.report import Report, Verdict

__all__ = ["BuiltIn", "Detector", "Suspecting"]


class Detector(Protocol):
    """Finds mistakes in one session scope at a time.

    All sessions share the detector, so it must keep no state of a session. It must not run SQL,
    load an attribute, call a mapped class's code, or keep an object of the application.

    Attributes:
        facts: The types of fact with which `judge()` is called. Every fact of these types is made
            for every session, which costs time.
    """

    @property
    def facts(self) -> tuple[type[Fact], ...]: ...

    def memory(self) -> Any:
        """Return the detector's memory of one scope. It is released with the scope."""

    def judge(self, fact: Any, report: Report, memory: Any) -> Iterable[Verdict]:
        """Return findings to report, and which findings still hold or are retracted.

        A `TimePassed` is judged in the watchdog's thread, perhaps while the session's own thread
        is in `judge()` with another fact.

        Args:
            fact: What happened. `report.ledger` contains it already.
            report: The scope: `report.ledger` is its account, `report.settings` are the settings,
                and `report.finding()` makes a finding.
            memory: What `memory()` returned for the scope.
        """


@runtime_checkable
class Suspecting(Detector, Protocol):
    """A detector that is called only where the ledger has a reason.

    Attributes:
        candidates: The types of fact with which `judge()` is called when a counter of the ledger
            crosses a threshold, or when something rare happens. No other facts of these types are
            made for the detector, whether or not a publisher exists.
    """

    @property
    def candidates(self) -> tuple[type[Fact], ...]: ...


class BuiltIn:
    """The base of the built-in detectors: it needs no facts but its candidates, and no memory."""

    facts: Final = ()
    # Whether its memory counts what repeats: another request or task that uses the session does not
    # go on with what one before has done, and gets a new memory.
    counts_repeats = False

    def memory(self) -> Any:
        """Return nothing to remember."""
