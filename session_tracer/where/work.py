"""What a session works for: a request, a task, or a block of code that the application named."""

from __future__ import annotations

import re
import sys
from contextvars import ContextVar
from functools import lru_cache
from types import FunctionType
from typing import TYPE_CHECKING, Final, TypeAlias

from session_tracer.runtime import process, threads

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["BLOCKS", "Blocks", "Work", "Works", "blocks_now", "given_by_a_person", "work"]

# A name, or what makes it when it is read: a request's route is often known only later.
Name: TypeAlias = "str | Callable[[], str]"

# What a name becomes once there are `Settings.max_works` others.
OTHER: Final = "_other"
# Number of characters to which longer names are shortened.
_LONGEST: Final = 200
_MOST_OWNERS: Final = 1_000


def work(name: Name) -> Work:
    """Name what the sessions that are opened in a block work for: `with work("nightly import"):`.

    The name is in every finding, log event, span and metric about these sessions. It applies to the
    code in the block, sync or async, to the threads and tasks that inherit its context, and to the
    whole lifetime of a session that is opened in it. If blocks are nested, the innermost applies.

    Args:
        name: The name, such as `task import_orders`. It should not contain an id, because findings
            are counted by it. Or a function without arguments that returns the name. It is called
            each time the name is needed, on any thread.

    Returns:
        A context manager. It can be used again, and by several tasks at the same time.

    Raises:
        TypeError: the name is neither a string nor a function.
        ValueError: the name is empty.
    """
    if not (isinstance(name, str) or callable(name)):
        raise TypeError(
            f"Invalid work() of type {type(name).__qualname__}: expected a string, or a function "
            "that returns one."
        )
    if not name:
        raise ValueError("Invalid work(''): expected a name that is not empty.")
    return Work(name)


class Work:
    """The context manager that `work()` returns.

    It is not a decorator: a decorator would end before a coroutine or a generator begins to run.
    """

    __slots__ = ("name",)

    # Whether the application named it.
    is_named = True

    def __init__(self, name: Name) -> None:
        self.name = name

    def __str__(self) -> str:
        """Return the name, or which function makes it."""
        if isinstance(self.name, str):
            return self.name
        made_by = self.name if isinstance(self.name, FunctionType) else type(self.name)
        return f"{made_by.__module__}.{made_by.__qualname__}"

    def __enter__(self) -> None:
        BLOCKS.set((*BLOCKS.get(), self))

    def __exit__(
        self,
        type_: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Not by a token: generators end out of turn, and in another context than they began in.
        blocks = list(BLOCKS.get())
        if self in blocks:
            blocks.reverse()
            blocks.remove(self)
            BLOCKS.set(tuple(reversed(blocks)))


Blocks: TypeAlias = "tuple[Work, ...]"

# The blocks that the running code is in, the innermost last. Read when a session is opened, because
# another thread may report it. What is set is never changed, so contexts may share it.
BLOCKS: Final[ContextVar[Blocks]] = ContextVar("session_tracer_work", default=())


class _CeleryTask(Work):
    """A task that Celery runs now, which the application has not named."""

    __slots__ = ()

    is_named = False


def blocks_now() -> Blocks:
    """Return the blocks that the running code is in; without one, the task that Celery runs."""
    blocks = BLOCKS.get()
    if not blocks and (celery := sys.modules.get("celery")) is not None:
        # A proxy, which has the attributes of None where no task runs.
        name = getattr(getattr(celery, "current_task", None), "name", None)
        if isinstance(name, str) and name:
            return (_CeleryTask(name),)
    return blocks


# Names that no person gave: those of Python, its executors and asyncio, of anyio, gevent and
# servers, each perhaps with a number. An executor with a prefix adds a number to it.
_UNNAMED: Final = re.compile(
    r"MainThread|(Thread|Task|Dummy|Greenlet|DummyThread|ThreadPoolExecutor|asyncio|waitress"
    r"|AnyIO worker thread|CP Server Thread|asyncio-waitpid|QueueFeederThread|uWSGIWorker)"
    r"([-_ ]?\d.*)?"
)
_NUMBER: Final = re.compile(r"_\d+$")


@lru_cache(maxsize=_MOST_OWNERS)
def given_by_a_person(name: str) -> str:
    """Return the name of a thread or task if a person gave it, else an empty string."""
    if not name or _UNNAMED.fullmatch(name):
        return ""
    # anyio names a task by the function that it runs: not a name of the work if it is a library's.
    if "." in name and name.partition(".")[0] in sys.modules:
        return ""
    return _NUMBER.sub("", name)


# Reentrant: the garbage collector may close a session anywhere.
_LOCK: Final = process.PerProcess(threads.RLock)


class Works:
    """The names of work that are distinguished: ids in names must not fill memory or metrics.

    Args:
        most: Number of names. The others are `_other`.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._names: set[str] = set()

    def name(self, named: Name) -> str:
        """Return the name that the application gave."""
        name = named if isinstance(named, str) else named()
        if not isinstance(name, str):
            raise TypeError(f"A name of work is of type {type(name).__qualname__}, not a string.")
        return self.bounded(name[:_LONGEST].strip())

    def bounded(self, name: str) -> str:
        """Return the name, or `_other` if there are too many."""
        if name and name not in self._names:
            with _LOCK.value:
                if len(self._names) >= self._most:
                    return OTHER
                self._names.add(name)
        return name
