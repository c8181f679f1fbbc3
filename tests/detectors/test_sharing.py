"""What belongs to one session or one task and is used by several."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

from session_tracer import CallSite, Finding
from session_tracer.detectors.sharing import (
    ConcurrentUse,
    CrossedSessions,
    ForeignLoop,
    SharedSession,
)
from session_tracer.facts import (
    ConnectionOnOtherLoop,
    EventLoopChanged,
    ObjectCrossed,
    ObjectMerged,
    SessionOpened,
    SessionUsedConcurrently,
    TransactionBegan,
)
from session_tracer.where.owner import Owner
from tests.detectors.feeding import PlayedScope, at, reported

if TYPE_CHECKING:
    from collections.abc import Iterator

OPENED = at(12, "get_db", "/srv/shop/db.py")
FIRST, SECOND = at(41, "index"), at(52, "update")
OPENING = SessionOpened(1, OPENED)
OF_SESSION: dict[str, Any] = {
    "session_id": "9b21e0456789abcd",
    "session_name": "orders-db",
    "session_site": OPENED,
}


async def _work() -> None:
    """What a task runs that does nothing."""


class People:
    """Threads and tasks, kept alive while owners refer to them."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._kept: list[object] = []

    def thread(self, name: str) -> Owner:
        thread = threading.Thread(name=name)
        self._kept.append(thread)
        return Owner(thread, None, None, None)

    def task(self, name: str) -> Owner:
        task = self._loop.create_task(_work(), name=name)
        self._kept.append(task)
        return Owner(threading.current_thread(), task, self._loop, None)

    def close(self) -> None:
        for one in self._kept:
            if isinstance(one, asyncio.Task):
                self._loop.run_until_complete(one)
        self._loop.close()


@pytest.fixture
def people() -> Iterator[People]:
    people = People()
    yield people
    people.close()


# Crossed sessions.


def crossed(**changes: Any) -> ObjectCrossed:
    """An author of session 7f3a2b, given to this one."""
    values: dict[str, Any] = {
        "at": 2,
        "site": FIRST,
        "entity": "Author",
        "other": "7f3a2b4567890abc",
        "other_name": "stock-db",
        "other_opened_site": at(30, "audit"),
        "loaded_site": at(33, "audit"),
        **changes,
    }
    return ObjectCrossed(**values)


def test_an_object_of_another_session() -> None:
    assert reported(CrossedSessions(), OPENING, crossed()) == [
        Finding(
            id="crossed-sessions",
            severity="error",
            message="the Author object is still attached to session 7f3a2b (stock-db), "
            "so this session refused it",
            remedy="author = session.merge(author)",
            site=FIRST,
            entity="Author",
            evidence={
                "other_session_id": "7f3a2b4567890abc",
                "other_session_name": "stock-db",
                "other_opened_at": str(at(30, "audit")),
                "loaded_at": str(at(33, "audit")),
                "alternatives": ["pass that session to this code instead of opening another"],
            },
            **OF_SESSION,
        )
    ]


def test_an_object_of_a_session_that_is_not_traced() -> None:
    (finding,) = reported(
        CrossedSessions(),
        crossed(other="", other_name="", other_opened_site=None, loaded_site=None),
    )
    assert isinstance(finding, Finding)
    assert finding.message == (
        "the Author object is still attached to another session, so this session refused it"
    )
    assert list(finding.evidence) == ["alternatives"]


def test_a_merge_is_awaited_where_the_session_is() -> None:
    (finding,) = reported(CrossedSessions(), crossed(entity="OrderLine"), is_async=True)
    assert isinstance(finding, Finding)
    assert finding.remedy == "order_line = await session.merge(order_line)"


def test_a_loop_over_objects_of_another_session_is_reported_once_for_a_class_and_a_line() -> None:
    facts = [*[crossed()] * 20, crossed(entity="Book"), crossed(site=SECOND)]
    assert len(reported(CrossedSessions(), *facts)) == 3


def test_what_is_merged_crosses_nothing() -> None:
    assert reported(CrossedSessions(), OPENING, ObjectMerged(2, FIRST, "Author")) == []


# Concurrent use.


def met(owner: Owner, other: Owner, **changes: Any) -> SessionUsedConcurrently:
    values: dict[str, Any] = {"at": 2, "site": SECOND, "other_site": FIRST, **changes}
    return SessionUsedConcurrently(owner=owner, other_owner=other, **values)


def test_two_tasks_within_one_session(people: People) -> None:
    first, second = people.task("Task-6"), people.task("Task-7")
    assert reported(ConcurrentUse(), OPENING, met(second, first)) == [
        Finding(
            id="concurrent-use",
            severity="error",
            message='task "Task-7" used this session while task "Task-6" was inside an '
            "operation of the same session",
            remedy="with SessionLocal() as session:  # one for each task",
            site=SECOND,
            evidence={
                "used_by": 'task "Task-7"',
                "in_use_by": 'task "Task-6"',
                "in_use_at": str(FIRST),
            },
            **OF_SESSION,
        )
    ]


def test_two_threads_within_one_session(people: People) -> None:
    first, second = people.thread("worker-1"), people.thread("worker-2")
    (finding,) = reported(ConcurrentUse(), OPENING, met(second, first, other_site=None))
    assert isinstance(finding, Finding)
    assert finding.message.startswith('thread "worker-2" used this session while thread "worker-1"')
    assert finding.remedy == "with SessionLocal() as session:  # one for each thread"
    assert "in_use_at" not in finding.evidence


def test_tasks_of_an_asyncsession_get_a_block_that_is_awaited(people: People) -> None:
    fact = met(people.task("a"), people.task("b"))
    (finding,) = reported(ConcurrentUse(), fact, is_async=True)
    assert isinstance(finding, Finding)
    assert finding.remedy == "async with SessionLocal() as session:  # one for each task"


def test_what_was_at_work_at_the_same_time_is_reported_once(people: People) -> None:
    first, second, third = (people.thread(f"worker-{number}") for number in range(3))
    assert len(
        reported(
            ConcurrentUse(),
            met(second, first),
            met(third, first),
            met(first, second, site=FIRST, other_site=SECOND),
            met(third, first, site=at(98)),
            met(first, third, site=FIRST, other_site=at(97)),
            met(second, first),
        )
    ) == 1  # fmt: skip
    others = met(second, first, site=at(99), other_site=at(100))
    assert len(reported(ConcurrentUse(), met(second, first), others, others)) == 2
    unknown = met(second, first, site=at(99), other_site=None)
    again = met(second, first, site=at(100), other_site=None)
    assert len(reported(ConcurrentUse(), unknown, unknown, again)) == 2


def test_hand_over_is_no_concurrent_use(people: People) -> None:
    began = [TransactionBegan(n, FIRST, owner=people.thread(f"worker-{n}")) for n in range(9)]
    assert reported(ConcurrentUse(), OPENING, *began) == []


# Foreign loop.


def moved(**changes: Any) -> EventLoopChanged:
    values: dict[str, Any] = {
        "at": 2, "site": SECOND, "thread": "loop-2", "other_thread": "loop-1",
        "other_site": FIRST, "error": "RuntimeError", **changes,
    }  # fmt: skip
    return EventLoopChanged(**values)


def test_the_loop_of_another_thread() -> None:
    assert reported(ForeignLoop(), OPENING, moved()) == [
        Finding(
            id="foreign-loop",
            severity="error",
            message='this session was used on the event loop of thread "loop-2", '
            'but it began on that of thread "loop-1", and the driver refused it (RuntimeError)',
            remedy="with SessionLocal() as session:  # one for each event loop",
            site=SECOND,
            evidence={
                "error_type": "RuntimeError",
                "loop_thread": "loop-2",
                "first_loop_thread": "loop-1",
                "first_used_at": str(FIRST),
                "alternatives": [
                    "create_async_engine(url, poolclass=NullPool), if several loops use the engine"
                ],
            },
            **OF_SESSION,
        )
    ]


def test_a_second_loop_of_the_same_thread() -> None:
    (finding,) = reported(ForeignLoop(), moved(thread="MainThread", other_thread="MainThread"))
    assert isinstance(finding, Finding)
    assert finding.message == (
        "this session was used on an event loop other than the one it began on, "
        "and the driver refused it (RuntimeError)"
    )


def refused(**changes: Any) -> ConnectionOnOtherLoop:
    values: dict[str, Any] = {
        "at": 2, "site": SECOND, "thread": "loop-2", "other_thread": "loop-1",
        "error": "RuntimeError", **changes,
    }  # fmt: skip
    return ConnectionOnOtherLoop(**values)


def test_a_pooled_connection_of_another_loop() -> None:
    assert reported(ForeignLoop(), OPENING, refused(), refused(site=FIRST), moved()) == [
        Finding(
            id="foreign-loop",
            severity="error",
            message="the engine's pool gave this session a connection that was opened on another "
            'event loop, that of thread "loop-1", and the driver refused it (RuntimeError)',
            remedy="create_async_engine(url, poolclass=NullPool)  "
            "# if several event loops use the engine",
            site=SECOND,
            evidence={
                "error_type": "RuntimeError",
                "loop_thread": "loop-2",
                "first_loop_thread": "loop-1",
                "alternatives": [
                    "await engine.dispose() before the event loop ends",
                    "one engine for each event loop",
                ],
            },
            **OF_SESSION,
        )
    ]


def test_the_loop_of_a_pooled_connection_may_be_gone() -> None:
    (finding,) = reported(ForeignLoop(), OPENING, refused(other_thread=""))
    assert isinstance(finding, Finding)
    assert "on another event loop, and the driver" in finding.message
    assert "first_loop_thread" not in finding.evidence


def test_a_pool_that_fails_before_it_gives_out_a_connection() -> None:
    (finding,) = reported(ForeignLoop(), OPENING, refused(other_thread="", in_pool=True))
    assert isinstance(finding, Finding)
    assert finding.message == (
        "the engine's pool was first used on another event loop, and failed on this one "
        "(RuntimeError)"
    )


def test_another_loop_is_reported_once_for_a_scope() -> None:
    assert len(reported(ForeignLoop(), moved(), moved(site=FIRST), moved(thread="loop-3"))) == 1


def test_one_loop_is_none_too_many(people: People) -> None:
    task = people.task("Task-1")
    began = [TransactionBegan(n, FIRST, owner=task, root=task) for n in range(9)]
    assert reported(ForeignLoop(), OPENING, *began) == []


# Shared session.


def began(site: CallSite | None = FIRST, **changes: Any) -> TransactionBegan:
    return TransactionBegan(2, site, **changes)


def test_a_session_of_three_traces(people: People) -> None:
    thread = people.thread("worker-1")
    facts = [began(at(line), owner=thread, root=thread, trace=line) for line in (1, 2, 3)]
    assert reported(SharedSession(), OPENING, *facts) == [
        Finding(
            id="shared-session",
            severity="warning",
            message="this session began transactions in 3 different traces",
            remedy="with SessionLocal() as session:  # one for each request",
            site=OPENED,
            count=3,
            evidence={"owners": ['thread "worker-1"'], "began_at": str(at(3))},
            **OF_SESSION,
        )
    ]


def test_a_session_of_three_unrelated_tasks(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else it would be a test's.
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    roots = [people.task(f"request-{number}") for number in range(3)]
    inner = people.task("inner")
    facts = [began(None, owner=inner, root=root) for root in roots]
    assert reported(SharedSession(), OPENING, *facts) == [
        Finding(
            id="shared-session",
            severity="warning",
            message="this session began transactions in 3 unrelated tasks",
            remedy="with SessionLocal() as session:  # one for each task",
            site=OPENED,
            count=3,
            evidence={
                "owners": ['task "request-0"', 'task "request-1"', 'task "request-2"'],
            },
            **OF_SESSION,
        )
    ]


def test_below_the_threshold_of_each_kind_it_is_silent(people: People) -> None:
    roots = [people.task(f"request-{number}") for number in range(2)]
    facts = [
        began(owner=roots[n % 2], root=roots[n % 2], trace=trace)
        for n, trace in enumerate((1, 2, 1, 2, 0, 0))
    ]
    assert reported(SharedSession(), OPENING, *facts) == []


def test_the_threshold_is_a_setting() -> None:
    facts = [began(trace=trace) for trace in (1, 2, 3, 4)]
    assert len(reported(SharedSession(), *facts[:3], traces_per_session=4)) == 0
    (finding,) = reported(SharedSession(), *facts, traces_per_session=4)
    assert isinstance(finding, Finding)
    assert finding.message == "this session began transactions in 4 different traces"


def test_a_scope_that_reaches_both_thresholds_is_reported_once(people: People) -> None:
    roots = [people.task(f"request-{number}") for number in range(9)]
    facts = [began(owner=root, root=root, trace=n + 1) for n, root in enumerate(roots)]
    assert len(reported(SharedSession(), *facts)) == 1
    later = [began(trace=7), began(trace=8), *[began(owner=r, root=r) for r in roots]]
    assert len(reported(SharedSession(), *later, began(trace=9))) == 1


def test_where_no_span_is_there_is_no_trace() -> None:
    assert reported(SharedSession(), OPENING, *[began(trace=0) for _ in range(9)]) == []


def test_threads_alone_are_no_misuse(people: People) -> None:
    threads = [people.thread(f"worker-{number}") for number in range(9)]
    assert reported(SharedSession(), *[began(owner=one, root=one) for one in threads]) == []


def test_tasks_that_one_task_awaits_are_related(people: People) -> None:
    root = people.task("request")
    tasks = [people.task(f"part-{number}") for number in range(9)]
    assert reported(SharedSession(), *[began(owner=task, root=root) for task in tasks]) == []


def test_savepoints_begin_nothing_of_their_own() -> None:
    facts = [began(trace=trace, nested=True) for trace in range(1, 9)]
    assert reported(SharedSession(), OPENING, *facts) == []


def test_what_is_remembered_of_a_shared_session_is_bounded(people: People) -> None:
    scope = PlayedScope([SharedSession()])
    threads = [people.thread(f"worker-{number}") for number in range(50)]
    scope.play(*[began(owner=thread, root=thread) for thread in threads])
    scope.play(*[began(trace=trace) for trace in range(1, 50)])
    [memory] = scope.memories
    assert (len(memory.traces), len(memory.tasks), len(memory.names)) == (3, 0, 3)
