"""Other people's listeners, which write down each call, and can be told to misbehave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import event
from sqlalchemy.orm import ORMExecuteState, Session, SessionTransaction, attributes

from tests.differential.diary import DIARY, plain

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ARMED", "GROUPS", "SESSION_EVENTS", "Halt", "Listeners", "Refusal", "happened"]


class Refusal(Exception):
    """What a listener of the application's raises."""


class Halt(BaseException):
    """What it raises as a process would that is to end."""


# What the next call of a listener does besides, by the name of its event.
ARMED: Final[dict[str, Callable[[Session | None], None]]] = {}


def happened(event_name: str, subject: Any) -> None:
    """Do what was asked for at the next such event; `subject` leads to the session."""
    action = ARMED.pop(event_name, None)
    if action is not None:
        action(session_of(subject))


def session_of(subject: Any) -> Session | None:
    """The session that an event is about."""
    if isinstance(subject, Session):
        return subject
    if isinstance(subject, ORMExecuteState | SessionTransaction):
        return subject.session
    if "_sa_class_manager" in vars(type(subject)):
        return attributes.instance_state(subject).session
    return None


SESSION_EVENTS: Final = (
    "after_begin",
    "after_transaction_create",
    "after_transaction_end",
    "before_commit",
    "after_commit",
    "after_rollback",
    "after_soft_rollback",
    "before_flush",
    "after_flush",
    "after_flush_postexec",
    "before_attach",
    "after_attach",
    "do_orm_execute",
    "after_bulk_update",
    "after_bulk_delete",
    "transient_to_pending",
    "pending_to_transient",
    "pending_to_persistent",
    "loaded_as_persistent",
    "persistent_to_transient",
    "persistent_to_deleted",
    "persistent_to_detached",
    "deleted_to_persistent",
    "deleted_to_detached",
    "detached_to_persistent",
)
_ENGINE_EVENTS: Final = (
    "before_execute",
    "after_execute",
    "before_cursor_execute",
    "after_cursor_execute",
    "begin",
    "commit",
    "rollback",
    "savepoint",
    "rollback_savepoint",
    "release_savepoint",
    "handle_error",
    "engine_connect",
)
_DIALECT_EVENTS: Final = ("do_execute", "do_executemany", "do_execute_no_params")
_POOL_EVENTS: Final = ("connect", "checkout", "checkin", "reset", "invalidate", "close")
GROUPS: Final = ("session", "engine", "dialect", "pool")


def _listener(event_name: str) -> Callable[..., Any]:
    # The number of arguments differs by event, and SQLAlchemy reads it from the signature.
    def listener(*values: Any) -> None:
        DIARY.write("heard", event_name, *map(plain, values))
        happened(event_name, next((one for one in values if session_of(one)), None))

    return listener


class Listeners:
    """Those of one world, by group; `close` removes them."""

    def __init__(self, factory: Any, engine: Any) -> None:
        self._targets = {
            "session": (factory, SESSION_EVENTS),
            "engine": (engine, _ENGINE_EVENTS),
            "dialect": (engine.dialect, _DIALECT_EVENTS),
            "pool": (engine, _POOL_EVENTS),
        }
        self._registered: list[tuple[Any, str, Callable[..., Any]]] = []

    def listen(self, group: str) -> None:
        """Listen to all events of the group."""
        target, names = self._targets[group]
        for event_name in names:
            listener = _listener(event_name)
            event.listen(target, event_name, listener)
            self._registered.append((target, event_name, listener))

    def close(self) -> None:
        """Listen no longer."""
        ARMED.clear()
        for target, event_name, listener in self._registered:
            event.remove(target, event_name, listener)
