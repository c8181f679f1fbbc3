"""What a detector is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from session_tracer.facts import Fact
    from session_tracer.findings import Finding, Retraction
    from session_tracer.record import SessionRecord

__all__ = ["Detector"]


class Detector(Protocol):
    """Draws findings from the facts of one session at a time.

    `facts` names the types of fact it is asked about. `memory()` makes what it wants to remember
    of one session; it is made at the first such fact and dies with the scope. `judge()` gets the
    fact after the record has taken it in, and yields what it concludes, `record.finding(...)`, or
    takes it back, `Retraction(...)`. Thresholds are `record.settings`. It must not run SQL, load
    an attribute, call a mapped class's code, or keep an object of the application. Of a
    `TimePassed` it is asked by the watch's thread, perhaps while the session's own asks it of
    something else.
    """

    @property
    def facts(self) -> tuple[type[Fact], ...]: ...

    def memory(self) -> Any: ...

    def judge(
        self, fact: Any, record: SessionRecord, memory: Any
    ) -> Iterable[Finding | Retraction]: ...
