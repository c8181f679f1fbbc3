"""Finds what belongs to one session or one task and is used by several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from session_tracer.detectors.evidence import places
from session_tracer.detectors.said import Said
from session_tracer.detectors.watched import block
from session_tracer.detectors.wording import variable
from session_tracer.facts import (
    EventLoopChanged,
    ObjectCrossed,
    SessionUsedConcurrently,
    TransactionBegan,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding
    from session_tracer.where.owner import Owner

__all__ = ["ConcurrentUse", "CrossedSessions", "ForeignLoop", "SharedSession"]


class CrossedSessions:
    """`crossed-sessions`: an object of one session is given to another one."""

    facts: Final = ()
    candidates = (ObjectCrossed,)

    def memory(self) -> Said:
        """Which entities were refused at which lines."""
        return Said()

    def judge(self, fact: ObjectCrossed, report: Report, memory: Said) -> Iterator[Finding]:
        """One finding for each mapped class and line."""
        if not memory.first((fact.site, fact.entity)):
            return
        other = f"session {fact.other[:6]} ({fact.other_name})" if fact.other else "another session"
        one, awaited = variable(fact.entity), "await " if report.ledger.is_async else ""
        traced = {"other_session": fact.other, "other_session_name": fact.other_name}
        yield report.finding(
            "crossed-sessions",
            "error",
            f"{fact.entity} object still belongs to {other}; this one refused it",
            f"{one} = {awaited}session.merge({one})",
            fact.site,
            entity=fact.entity or None,
            evidence={
                **(traced if fact.other else {}),
                **places(other_opened_at=fact.other_opened_site, loaded_at=fact.loaded_site),
                "alternatives": [
                    "give this code the session that holds it, instead of one of its own"
                ],
            },
        )


class ConcurrentUse:
    """`concurrent-use`: two threads or tasks are inside operations of one session at a time."""

    facts: Final = ()
    candidates = (SessionUsedConcurrently,)

    def memory(self) -> Said:
        """Which pairs of lines have met."""
        return Said()

    def judge(
        self, fact: SessionUsedConcurrently, report: Report, memory: Said
    ) -> Iterator[Finding]:
        """One finding for each pair of lines, whichever of them came first."""
        if not memory.first(frozenset((fact.site, fact.other_site))):
            return
        each = "task" if fact.owner.is_task else "thread"
        yield report.finding(
            "concurrent-use",
            "error",
            f"{fact.owner.name} used this session while {fact.other_owner.name} "
            "was inside an operation of it",
            block(report, f"one for each {each}"),
            fact.site,
            evidence={
                "used_by": fact.owner.name,
                "in_use_by": fact.other_owner.name,
                **places(in_use_at=fact.other_site),
            },
        )


class ForeignLoop:
    """`foreign-loop`: an AsyncSession is used on another event loop than the one it began on."""

    facts: Final = ()
    candidates = (EventLoopChanged,)

    def memory(self) -> Said:
        """Whether it was said."""
        return Said()

    def judge(self, fact: EventLoopChanged, report: Report, memory: Said) -> Iterator[Finding]:
        """One finding for a scope."""
        if not memory.first(report.ledger.id):
            return
        if fact.thread == fact.other_thread or not fact.other_thread:
            message = "this session was used on an event loop other than the one it began on"
        else:
            message = (
                f'this session was used on the event loop of thread "{fact.thread}", '
                f'but it began on that of thread "{fact.other_thread}"'
            )
        yield report.finding(
            "foreign-loop",
            "error",
            message,
            block(report, "one for each event loop"),
            fact.site,
            evidence={
                "loop_thread": fact.thread,
                "first_loop_thread": fact.other_thread,
                **places(first_used_at=fact.other_site),
                # A pooled connection belongs to its loop as well.
                "alternatives": [
                    "create_async_engine(url, poolclass=NullPool), if several loops use the engine"
                ],
            },
        )


class _Users:
    """In which traces and which tasks a session began its transactions, up to the threshold."""

    __slots__ = ("names", "tasks", "traces")

    def __init__(self) -> None:
        self.traces: set[int] = set()
        self.tasks: set[Owner] = set()
        # In the order of their coming.
        self.names: dict[str, None] = {}

    def add(self, trace: int, root: Owner | None, user: Owner | None, most: int) -> None:
        """Take one more transaction into account."""
        if trace:
            self.traces.add(trace)
        if root is not None and root.is_task:
            self.tasks.add(root)
        owner = root or user
        if owner is not None and len(self.names) < most:
            self.names[owner.name] = None


class SharedSession:
    """`shared-session`: one scope serves several requests, or tasks that do not await each other.

    Threads alone are no misuse: a pool hands a session on from one to the next.
    """

    facts: Final = ()
    candidates = (TransactionBegan,)

    def memory(self) -> _Users:
        """Who has used the session."""
        return _Users()

    def judge(self, fact: TransactionBegan, report: Report, memory: _Users) -> Iterable[Finding]:
        """One finding for a scope, as its transactions reach the threshold of either kind."""
        most = report.settings.traces_per_session
        first = report.ledger.first_began
        if fact.nested or first is None or len(memory.traces) >= most or len(memory.tasks) >= most:
            return ()
        if not memory.names:
            memory.add(*first, most)
        memory.add(fact.trace, fact.root, fact.owner, most)
        if len(memory.traces) == most:
            return (self._finding(f"{most} different traces", "request", fact, report, memory),)
        if len(memory.tasks) == most:
            return (self._finding(f"{most} unrelated tasks", "task", fact, report, memory),)
        return ()

    def _finding(
        self, users: str, each: str, fact: TransactionBegan, report: Report, memory: _Users
    ) -> Finding:
        return report.finding(
            "shared-session",
            "warning",
            f"this session began transactions in {users}",
            block(report, f"one for each {each}"),
            report.ledger.opened_site,
            count=report.settings.traces_per_session,
            evidence={"owners": list(memory.names), **places(began_at=fact.site)},
        )
