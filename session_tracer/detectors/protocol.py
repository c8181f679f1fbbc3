"""What a detector is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from session_tracer.facts import Fact
    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding, Retraction

__all__ = ["Detector", "Suspecting"]


class Detector(Protocol):
    """Draws findings about one session scope at a time.

    `facts` names the types of fact of which it wants every single one: a publisher is made for
    each session then, which costs time. `memory()` makes what it wants to remember of one scope.
    `judge()` gets the fact after `report.ledger`, the account of the scope, has taken it in, and
    yields what it concludes, `report.finding(...)`, or retracts it, `Retraction(...)`. Thresholds
    are in `report.settings`. It must not run SQL, load an attribute, call a mapped class's code, or
    keep an object of the application. It is asked about a `TimePassed` by the watchdog's thread,
    perhaps while the session's own thread asks it about another fact.
    """

    @property
    def facts(self) -> tuple[type[Fact], ...]: ...

    def memory(self) -> Any: ...

    def judge(self, fact: Any, report: Report, memory: Any) -> Iterable[Finding | Retraction]: ...


@runtime_checkable
class Suspecting(Detector, Protocol):
    """A detector that is asked only where the ledger has reason to.

    `candidates` names the types of fact from which it concludes something. The ledger makes such a
    fact where one of its counters crosses a threshold, or where something rare happens; no other
    fact of the type is ever made for it, whether or not a publisher exists.
    """

    @property
    def candidates(self) -> tuple[type[Fact], ...]: ...
