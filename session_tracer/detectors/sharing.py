"""Finds sessions and objects that several threads, tasks or sessions use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from session_tracer.detectors.evidence import known
from session_tracer.detectors.memory import Once
from session_tracer.detectors.protocol import BuiltIn
from session_tracer.detectors.wording import awaited, variable, with_block
from session_tracer.facts import (
    ConnectionOnOtherLoop,
    EventLoopChanged,
    ObjectCrossed,
    SessionUsedConcurrently,
    TransactionBegan,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding
    from session_tracer.where.owner import Owner


class CrossedSessions(BuiltIn):
    """`crossed-sessions`: an object of one session is given to another one."""

    candidates = (ObjectCrossed,)
    memory = Once

    def judge(self, fact: ObjectCrossed, report: Report, memory: Once) -> Iterator[Finding]:
        """Report each mapped class and line once."""
        if not memory.first((fact.site, fact.entity)):
            return
        other = f"session {fact.other[:6]} ({fact.other_name})" if fact.other else "another session"
        one = variable(fact.entity)
        yield report.finding(
            "crossed-sessions",
            "error",
            f"the {fact.entity} object is still attached to {other}, so this session refused it",
            f"{one} = {awaited(report)}session.merge({one})",
            fact.site,
            entity=fact.entity or None,
            evidence=known(
                other_session=fact.other or None,
                other_session_name=fact.other_name if fact.other else None,
                other_opened_at=fact.other_opened_site,
                loaded_at=fact.loaded_site,
                alternatives=["pass that session to this code instead of opening another"],
            ),
        )


class ConcurrentUse(BuiltIn):
    """`concurrent-use`: two threads or tasks are inside operations of one session at a time."""

    candidates = (SessionUsedConcurrently,)
    memory = Once

    def judge(
        self, fact: SessionUsedConcurrently, report: Report, memory: Once
    ) -> Iterator[Finding]:
        """Report each pair of lines once, in either order, and a task that goes on once."""
        if fact.leaves and any(fact.site in pair for pair in memory if isinstance(pair, frozenset)):
            return
        if not memory.first(frozenset((fact.site, fact.other_site))):
            return
        each = "task" if fact.owner.is_task else "thread"
        if fact.leaves:
            yield self._outlives(fact, report)
            return
        yield report.finding(
            "concurrent-use",
            "error",
            f"{fact.owner.name} used this session while {fact.other_owner.name} "
            "was inside an operation of the same session",
            with_block(report, f"one for each {each}"),
            fact.site,
            evidence=known(
                used_by=fact.owner.name,
                in_use_by=fact.other_owner.name,
                in_use_at=fact.other_site,
            ),
        )

    def _outlives(self, fact: SessionUsedConcurrently, report: Report) -> Finding:
        return report.finding(
            "concurrent-use",
            "error",
            f"{fact.owner.name} was inside an operation of this session when the block that "
            "closes the session ended",
            with_block(report, "in the task, or await the task before the block ends"),
            fact.site,
            evidence=known(
                used_by=fact.owner.name, closed_by=fact.other_owner.name, closed_at=fact.other_site
            ),
        )


class ForeignLoop(BuiltIn):
    """`foreign-loop`: an AsyncSession, or a pooled connection, is used on another event loop."""

    candidates = (EventLoopChanged, ConnectionOnOtherLoop)
    memory = Once

    def judge(
        self, fact: EventLoopChanged | ConnectionOnOtherLoop, report: Report, memory: Once
    ) -> Iterator[Finding]:
        """Report a scope once."""
        if not memory.first(report.ledger.id):
            return
        if isinstance(fact, ConnectionOnOtherLoop):
            yield self._refused(fact, report)
            return
        message = "this session was used on an event loop other than the one it began on"
        if fact.other_thread not in (fact.thread, ""):
            message = (
                f'this session was used on the event loop of thread "{fact.thread}", '
                f'but it began on that of thread "{fact.other_thread}"'
            )
        yield report.finding(
            "foreign-loop",
            "error",
            message,
            with_block(report, "one for each event loop"),
            fact.site,
            evidence=known(
                loop_thread=fact.thread,
                first_loop_thread=fact.other_thread,
                first_used_at=fact.other_site,
                # A pooled connection belongs to its loop as well.
                alternatives=[
                    "create_async_engine(url, poolclass=NullPool), if several loops use the engine"
                ],
            ),
        )

    def _refused(self, fact: ConnectionOnOtherLoop, report: Report) -> Finding:
        where = ""
        if fact.other_thread not in (fact.thread, ""):
            where = f', that of thread "{fact.other_thread}"'
        return report.finding(
            "foreign-loop",
            "error",
            "the engine's pool gave this session a connection that was opened on another event "
            f"loop{where}, and the driver refused it ({fact.error})",
            "create_async_engine(url, poolclass=NullPool)  # if several event loops use the engine",
            fact.site,
            evidence=known(
                error_type=fact.error,
                loop_thread=fact.thread,
                first_loop_thread=fact.other_thread or None,
                alternatives=[
                    "await engine.dispose() before the event loop ends",
                    "one engine for each event loop",
                ],
            ),
        )


class _Users:
    """The traces and tasks in which a session began transactions, up to the threshold."""

    def __init__(self) -> None:
        self.traces: set[int] = set()
        self.tasks: set[Owner] = set()
        # In the order of their first transactions.
        self.names: dict[str, None] = {}

    def add(self, trace: int, root: Owner | None, user: Owner | None, most: int) -> None:
        if trace:
            self.traces.add(trace)
        if root is not None and root.is_task:
            self.tasks.add(root)
        owner = root or user
        if owner is not None and len(self.names) < most:
            self.names[owner.name] = None


class SharedSession(BuiltIn):
    """`shared-session`: one scope serves several requests, or tasks that do not await each other.

    Several threads alone are no mistake: a thread pool may run one session's work in any of them.
    """

    candidates = (TransactionBegan,)
    memory = _Users

    def judge(self, fact: TransactionBegan, report: Report, memory: _Users) -> Iterator[Finding]:
        """Report a scope once, when its traces or its tasks reach the threshold."""
        most, first = report.settings.traces_per_session, report.ledger.first_began
        if fact.nested or first is None or most in (len(memory.traces), len(memory.tasks)):
            return
        if not memory.names:
            memory.add(*first, most)
        memory.add(fact.trace, fact.root, fact.owner, most)
        if len(memory.traces) == most:
            users, each = f"{most} different traces", "request"
        elif len(memory.tasks) == most:
            users, each = f"{most} unrelated tasks", "task"
        else:
            return
        yield report.finding(
            "shared-session",
            "warning",
            f"this session began transactions in {users}",
            with_block(report, f"one for each {each}"),
            report.ledger.opened_site,
            count=most,
            evidence=known(owners=list(memory.names), began_at=fact.site),
        )
