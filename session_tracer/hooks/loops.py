"""Recognises that a driver refused a connection because it belongs to another event loop."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from session_tracer.facts import ConnectionOnOtherLoop
from session_tracer.hooks.error_frames import is_sqlalchemys
from session_tracer.ledger.ledger import type_name
from session_tracer.where.tasks import running_loop

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from session_tracer.ledger.ledger import Ledger
    from session_tracer.where.callsite import CallSite

__all__ = ["left_with", "refused"]

# What asyncio says, in every version of Python that is supported.
_MESSAGES: Final = (
    "attached to a different loop",
    "is bound to a different event loop",
    "Event loop is closed",
)
# What asyncpg raises as well where its connection belongs to another loop. An error of the
# database's has another type.
_CONFUSED: Final = frozenset({"RuntimeError", "InterfaceError", "InternalClientError"})
_MOST_CAUSES: Final = 8


def refused(ledger: Ledger, connection: Connection, error: BaseException) -> None:
    """A statement failed: report it if the connection was opened on another event loop."""
    loop = running_loop()
    if loop is None or not connection.dialect.is_async:
        return
    opened_on = _loop_of(connection)
    is_elsewhere = opened_on is not None and opened_on is not loop
    if not (_is_about_loops(error) or (is_elsewhere and type(error).__name__ in _CONFUSED)):
        return
    _report(ledger, error, ledger.site(), _thread_of(opened_on))


def left_with(ledger: Ledger, error: BaseException | None) -> None:
    """An error leaves the session's block, or its commit: report it if SQLAlchemy has raised it.

    No statement fails where the pool pings a connection before it gives it out.
    """
    if error is None or not _is_about_loops(error):
        return
    passed = error.__traceback__
    while passed is not None:
        if is_sqlalchemys(passed.tb_frame):
            site = ledger.locator.raised_at(error) or ledger.site()
            _report(ledger, error, site, "", in_pool=True)
            return
        passed = passed.tb_next


def _report(
    ledger: Ledger,
    error: BaseException,
    site: CallSite | None,
    other_thread: str,
    *,
    in_pool: bool = False,
) -> None:
    """The session has taken its connection to another loop, or has got one of another loop."""
    if ledger.loop_change is None:
        ledger.check_loop(site)  # a COMMIT fails before its transaction ends
    now, change = ledger.clock(), ledger.loop_change
    if change is not None:
        ledger.suspect(replace(change, at=now, site=site, error=type_name(error)))
        return
    ledger.suspect(
        ConnectionOnOtherLoop(
            at=now,
            site=site,
            thread=threading.current_thread().name,
            other_thread=other_thread,
            error=type_name(error),
            in_pool=in_pool,
        )
    )


def _is_about_loops(error: BaseException) -> bool:
    one: BaseException | None = error
    for _ in range(_MOST_CAUSES):
        if one is None:
            return False
        if type(one) is RuntimeError and any(text in str(one) for text in _MESSAGES):
            return True
        one = one.__cause__ or one.__context__
    return False


def _loop_of(connection: Connection) -> Any:
    """The loop that the driver's connection keeps (asyncpg, aiomysql, asyncmy); None if none."""
    if connection.closed or connection.invalidated:
        return None
    return getattr(connection.connection.driver_connection, "_loop", None)


def _thread_of(loop: Any) -> str:
    """The name of the thread in which a loop runs; empty if it runs no longer."""
    ident = getattr(loop, "_thread_id", None)
    return next((one.name for one in threading.enumerate() if one.ident == ident), "")
