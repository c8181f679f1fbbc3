"""What a detector is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from session_tracer.facts import Fact
    from session_tracer.ledger.record import SessionRecord
    from session_tracer.model.findings import Finding, Retraction

__all__ = ["Detector", "Recaller", "Sleeper", "Wakes", "always"]


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


# Of each type of fact with which there may be something to remember or to say, whether there is.
Wakes: TypeAlias = "Mapping[type[Fact], Callable[[Any, SessionRecord], bool]]"


@runtime_checkable
class Sleeper(Detector, Protocol):
    """A detector that most sessions give nothing to remember.

    Of each session it sleeps until one of `wakes` says yes to a fact: before that it is not asked,
    and has no memory. That spares time, and may never spare a finding: what it sleeps through must
    change nothing of what it would have said.
    """

    @property
    def wakes(self) -> Wakes: ...


@runtime_checkable
class Recaller(Sleeper, Protocol):
    """A sleeper that may sleep through something, because the record keeps enough of it.

    `recall()` makes its memory, in place of `memory()`, of what it slept through before this fact.
    """

    def recall(self, fact: Any, record: SessionRecord) -> Any: ...


def always(fact: Fact, record: SessionRecord) -> bool:
    """Any such fact wakes it."""
    del fact, record
    return True
