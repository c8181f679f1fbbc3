"""Why session_tracer judges a program of the corpus otherwise than the program's author."""

from __future__ import annotations

from typing import Final

__all__ = ["REASONS"]

_NO_SESSION = "the queries run on a connection of SQLAlchemy Core; session_tracer follows sessions"
_WRITES = (
    "fewer than 20 statements; row-by-row-writes begins there, in tests as well, because tests "
    "write rows one by one to prepare data"
)
_SESSIONS = "fewer than 20 sessions, where session-per-item begins"
_THREADS = (
    "each thread of a pool opens a session for each of its items; which thread waits for them is "
    "not known, and the requests of a server run in the same way"
)

REASONS: Final[dict[str, str]] = {
    "bug_24_core_select_loop": _NO_SESSION,
    "bug_26_driver_sql_loop": _NO_SESSION,
    "bug_29_delete_per_row": _WRITES,
    "bug_30_flush_per_insert": _WRITES,
    "bug_36_unused_selectinload": (
        "a relationship is loaded eagerly and never read; there is no finding for that, since the "
        "next caller of the same function may read it"
    ),
    "bug_47_session_per_item": _SESSIONS,
    "bug_48_threadpool_lookups": _THREADS,
    "bug_52_async_gather_session_per_task": _SESSIONS,
    "bug_53_celery_task_per_id": _SESSIONS,
    "bug_62_upsert_per_row": _WRITES,
    "clean_60_orm_bulk_insert_3000": (
        "large-flush: 3,000 objects in one flush are what that finding is about"
    ),
    "clean_76_refresh_after_create_selectin": (
        "discarded-changes: the session is closed with two new objects that were not committed"
    ),
}
