"""Finds sessions and objects that several threads, tasks or sessions use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from session_tracer.detectors.evidence import known, life_site, ms
from session_tracer.detectors.memory import MOST_REPORTED, Once
from session_tracer.detectors.protocol import BuiltIn
from session_tracer.detectors.selecting import selecting_with
from session_tracer.detectors.wording import (
    awaited,
    dotted,
    duration,
    listed,
    maker,
    own_session,
    variable,
    with_block,
)
from session_tracer.facts import (
    ConnectionOnOtherLoop,
    EventLoopBlocked,
    EventLoopChanged,
    ObjectCrossed,
    SessionPassed,
    SessionUsedConcurrently,
    TransactionBegan,
)
from session_tracer.where.callsite import is_in, task_stack
from session_tracer.where.requests import is_of_test

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from session_tracer.facts import AttributeLoaded
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
                other_session_id=fact.other or None,
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
        """Report two lines once, and no third one that was at work at the same time as they."""
        if len(memory) >= MOST_REPORTED:
            return
        sites = {fact.site} if fact.leaves else {fact.site, fact.other_site}
        is_known = not memory.isdisjoint(sites)
        memory.update({fact.site, fact.other_site} - {None})
        if is_known:
            return
        if fact.leaves:
            yield self._outlives(fact, report)
            return
        each = "task" if fact.owner.is_task else "thread"
        names: list[str] = []
        remedy, others = with_block(report, f"one for each {each}"), None
        loads = _loads(fact, report)
        if loads:
            names = list(dict.fromkeys(dotted(one.entity, one.attribute) for one in loads))
            remedy, *others = _loaded_before(loads, names, each, report)
        yield report.finding(
            "concurrent-use",
            "error",
            f"{fact.owner.name} used this session while {fact.other_owner.name} "
            "was inside an operation of the same session",
            remedy,
            fact.site,
            entity=loads[0].entity if loads else None,
            attribute=loads[0].attribute if len(names) == 1 else None,
            evidence=known(
                used_by=fact.owner.name,
                in_use_by=fact.other_owner.name,
                in_use_at=fact.other_site,
                loaded_at=loads[0].loaded_site if loads else None,
                attributes=names if len(names) > 1 else None,
                why=_OF_ITS_SESSION if loads else None,
                alternatives=others,
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


_OF_ITS_SESSION: Final = "the attributes of an object can be loaded by its own session alone"


def _loads(fact: SessionUsedConcurrently, report: Report) -> list[AttributeLoaded]:
    """Return the attributes that the two load, if these keep a session of its own from each.

    An object that a function at work has loaded can be loaded by another session as well.
    """
    load = report.ledger.read_by(fact.owner)
    if load is None:
        return []
    other = report.ledger.read_by(fact.other_owner)
    if other is not None:
        return [load, other]
    is_own = any(is_in(load.loaded_site, frame.f_code) for frame in task_stack())
    return [] if is_own else [load]


def _loaded_before(
    loads: list[AttributeLoaded], names: list[str], each: str, report: Report
) -> Iterator[str]:
    """Yield what loads the attributes before the tasks or threads begin, then alternatives."""
    load, all_of_them = loads[0], f"all that the {each}s load"
    same = [one for one in loads if (one.entity, one.kind) == (load.entity, load.kind)]
    options = ", ".join(dict.fromkeys(one.options for one in same if one.root == load.root))
    attributes = ", ".join(dict.fromkeys(f'"{one.attribute}"' for one in same))
    if load.kind == "expired" and load.expired_by == "commit":
        yield maker(report)
    elif load.options and (load.root_site or load.loaded_site) and not load.expired_by:
        yield f"{selecting_with(load.root, options, load, report)}  # with {all_of_them}"
    if load.options or load.kind == "expired":
        refresh = f"{awaited(report)}session.refresh({variable(load.entity)}, [{attributes}])"
        yield f"{refresh}  # before the {each}s begin, with {all_of_them}"
    if each == "task":
        yield f"await {listed(names)} one after the other"
    else:
        yield f"read {listed(names)} before the threads begin"


class ForeignLoop(BuiltIn):
    """`foreign-loop`: the driver refuses a session, or a connection, of another event loop."""

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
            f"{message}, and the driver refused it ({fact.error})",
            with_block(report, "one for each event loop"),
            fact.site,
            evidence=known(
                error_type=fact.error,
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
        message = (
            "the engine's pool gave this session a connection that was opened on another event "
            f"loop{where}, and the driver refused it ({fact.error})"
        )
        if fact.in_pool:
            message = (
                "the engine's pool was first used on another event loop, and failed on this one "
                f"({fact.error})"
            )
        return report.finding(
            "foreign-loop",
            "error",
            message,
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
    """The traces, tasks and requests that used a session, up to the threshold."""

    def __init__(self) -> None:
        self.traces: set[int] = set()
        self.tasks: set[Owner] = set()
        # The task that was first seen in a request, by what the request has alone while it runs.
        self.requests: dict[Hashable, Owner] = {}
        self.served = 0
        # What has used the session in turns in this transaction.
        self.transaction = -1
        self.turns: list[Hashable] = []
        # In the order of their first use.
        self.names: dict[str, None] = {}
        self.is_reported = False

    def add(self, trace: int, root: Owner | None, user: Owner | None, most: int) -> None:
        if trace:
            self.traces.add(trace)
        if root is not None and root.is_task:
            self.tasks.add(root)
        owner = root or user
        if owner is not None:
            self.name(owner, most)

    def serve(self, request: Hashable, user: Owner, most: int) -> None:
        """A task that works at a request uses the session, which may have done so before."""
        known = self.requests.get(request)
        if request and (known is None or (known != user and known.has_ended)):
            if len(self.requests) < most:
                self.requests[request] = user
            self.served += 1
            self.name(user, most)

    def take_turns(self, transaction: int, pieces: tuple[Hashable, Hashable]) -> int:
        """Return how many take turns in one transaction; 0 while each has had one turn."""
        before, now = pieces
        if transaction != self.transaction:
            self.transaction, self.turns = transaction, [before]
        if now == self.turns[-1]:
            return 0
        number = len(set(self.turns)) if now in self.turns else 0
        if len(self.turns) < _MOST_TURNS:
            self.turns.append(now)
        return number

    def name(self, owner: Owner, most: int) -> None:
        if len(self.names) < most:
            self.names[owner.name] = None


_MOST_TURNS: Final = 100


class BlockedEventLoop(BuiltIn):
    """`blocked-event-loop`: a session's statements keep an event loop from its other tasks."""

    candidates = (EventLoopBlocked,)
    memory = Once

    def judge(self, fact: EventLoopBlocked, report: Report, memory: Once) -> Iterator[Finding]:
        """Report a scope once."""
        enough = report.settings.blocked_loop_seconds * 1e9
        if fact.duration < enough or not memory.first(report.ledger.id):
            return
        statements = "1 statement" if fact.statements == 1 else f"{fact.statements} statements"
        others = "another task" if fact.waiting == 1 else f"{fact.waiting} other tasks"
        yield report.finding(
            "blocked-event-loop",
            "warning",
            f"{statements} of this session, which a coroutine ran, kept {others} of its event loop "
            f"waiting for {duration(fact.duration)}",
            "async with AsyncSessionLocal() as session:  # and await each of its statements",
            fact.site,
            evidence=known(
                used_at=None if fact.used_site == fact.site else fact.used_site,
                sql_ms=ms(fact.duration),
                statements=fact.statements,
                alternatives=[
                    "await asyncio.to_thread(work)  # a function that opens and uses the session",
                    "def in place of async def, if the framework then runs it in a thread",
                ],
            ),
        )


class SharedSession(BuiltIn):
    """`shared-session`: one scope serves several requests, or tasks that do not await each other.

    Several threads alone are no mistake: a thread pool may run one session's work in any of them.
    """

    candidates = (TransactionBegan, SessionPassed)
    memory = _Users

    def judge(
        self, fact: TransactionBegan | SessionPassed, report: Report, memory: _Users
    ) -> Iterator[Finding]:
        """Report a scope once, when its traces, its requests or its tasks reach the threshold."""
        if memory.is_reported:
            return
        if isinstance(fact, SessionPassed):
            found = self._passed(fact, report, memory)
        else:
            found = self._began(fact, report, memory)
        if found is None:
            return
        number, users, each = found
        if each != "trace" and is_of_test(report.ledger.opened_by, report.ledger.opened_site):
            return
        memory.is_reported = True
        yield report.finding(
            "shared-session",
            "warning",
            f"this session {users}",
            self._remedy(each, report),
            life_site(report),
            count=number,
            evidence=known(
                owners=list(memory.names),
                began_at=fact.site if isinstance(fact, TransactionBegan) else None,
                used_at=fact.site if isinstance(fact, SessionPassed) else None,
            ),
        )

    def _passed(
        self, fact: SessionPassed, report: Report, memory: _Users
    ) -> tuple[int, str, str] | None:
        most, ledger = report.settings.traces_per_session, report.ledger
        memory.serve(fact.other_request, fact.other_owner, most)
        memory.serve(fact.request, fact.owner, most)
        if memory.served >= most:
            return memory.served, f"was used by {memory.served} different requests", "request"
        if not (ledger.transactions_open and fact.owner.is_task):
            return None
        memory.name(fact.other_owner, most)
        memory.name(fact.owner, most)
        # A sync Session under asyncio is most often a scoped_session's, one for a whole thread.
        enough = most if ledger.is_async else 2
        number = memory.take_turns(ledger.transactions, fact.pieces)
        if number < enough:
            return None
        return number, f"was used by {number} unrelated tasks in turns, in one transaction", "task"

    def _began(
        self, fact: TransactionBegan, report: Report, memory: _Users
    ) -> tuple[int, str, str] | None:
        most, first = report.settings.traces_per_session, report.ledger.first_began
        if fact.nested or first is None:
            return None
        if not memory.names:
            memory.add(*first, most)
        memory.add(fact.trace, fact.root, fact.owner, most)
        if len(memory.traces) >= most:
            return most, f"began transactions in {most} different traces", "trace"
        if len(memory.tasks) >= most:
            return most, f"began transactions in {most} unrelated tasks", "task"
        return None

    def _remedy(self, each: str, report: Report) -> str:
        each = "request" if each == "trace" else each
        if report.ledger.is_async or not report.ledger.owner.is_task:
            return with_block(report, f"one for each {each}")
        return own_session(report)
