"""The text that several findings share: durations, counts, names, and code to write."""

from __future__ import annotations

import keyword
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from session_tracer.facts import (
        AttributeLoaded,
        Counts,
        DetachedLoadFailed,
        ImplicitLoadFailed,
        Outcome,
        RowGone,
    )
    from session_tracer.ledger.report import Report
    from session_tracer.model.live_session import LiveSession
    from session_tracer.where.callsite import CallSite

__all__ = [
    "ENDED",
    "NEVER_CLOSED",
    "awaited",
    "bulk_write",
    "closing",
    "connection",
    "counted",
    "dotted",
    "dotted_each",
    "duration",
    "elsewhere",
    "expired_by",
    "expiry",
    "listed",
    "maker",
    "objects",
    "opening",
    "own_session",
    "removal",
    "session",
    "variable",
    "with_block",
]

# How a transaction ended, as the end of a sentence.
ENDED: Final[Mapping[Outcome, str]] = {
    "committed": "committed",
    "rolled_back": "rolled back",
    "closed": "closed with its session",
    "abandoned": "abandoned",
}
# How a scope ended that the application did not close.
NEVER_CLOSED: Final[Mapping[str, str]] = {
    "collected": "was garbage collected without being closed",
    "exit": "was still open when the process ended",
    "shutdown": "was still open when its application shut down",
}

# Databases whose servers have a process or thread for each connection.
_DATABASES: Final = {"postgresql": "PostgreSQL", "mysql": "MySQL", "mariadb": "MariaDB"}
# Where a word ends and the next begins: `OrderLine`, `HTTPLog`.
_WORDS: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
# Number of names in a message, which has one line or two.
_MOST_LISTED: Final = 4


def duration(nanoseconds: float) -> str:
    """Return a duration as text: `35 ms`, `4.2 s`, `4 min 12 s`, `2 h 5 min`."""
    seconds = nanoseconds / 1e9
    if seconds < 0.001:
        return "less than 1 ms"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def counted(counts: Counts) -> str:
    """Return `2 Author, 1 Book`: the most frequent first, then by name."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {entity}" for entity, count in ordered if count)


def objects(counts: Counts) -> str:
    """Return `2 Author objects`, or `2 Author, 1 Book` if there are several mapped classes."""
    numbers = [count for count in counts.values() if count]
    if len(numbers) != 1:
        return counted(counts)
    return f"{counted(counts)} object{'s' if numbers[0] > 1 else ''}"


def dotted(entity: str, attribute: str) -> str:
    """Return `Author.books`, or the entity alone if the attribute is unknown."""
    return f"{entity}.{attribute}" if attribute else entity


def dotted_each(entity: str, attributes: str) -> list[str]:
    """Return `Essay.notes`, `Essay.text` for the columns `notes, text`, which load together."""
    return [dotted(entity, attribute) for attribute in attributes.split(", ")]


def listed(names: list[str]) -> str:
    """Return `Essay.notes and Essay.text`; of many names, the first three and a number."""
    if len(names) > _MOST_LISTED:
        names = [*names[: _MOST_LISTED - 1], f"{len(names) - _MOST_LISTED + 1} more"]
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


_EXPIRIES: Final[Mapping[str, str]] = {
    "commit": "the commit",
    "rollback": "the rollback",
    "expire": "expire()",
    "expire_all": "expire_all()",
    "flush": "the flush",
}


def expired_by(fact: DetachedLoadFailed | ImplicitLoadFailed | AttributeLoaded | RowGone) -> str:
    """Return what expired the object, such as `the commit`, or an empty string."""
    return _EXPIRIES.get(fact.expired_by, "")


def expiry(fact: DetachedLoadFailed | ImplicitLoadFailed | AttributeLoaded | RowGone) -> str:
    """Return what expired the object and where, such as `the commit at app/shop.py:92`."""
    what = expired_by(fact)
    return f"{what} at {fact.expired_site}" if what and fact.expired_site is not None else what


def elsewhere(loop: CallSite | None, site: CallSite | None, text: str = "at") -> str:
    """Return ` at jobs.py:9 in run()` for a loop that is not at the finding's own line."""
    return "" if loop is None or loop == site else f" {text} {loop}"


def session(report: Report) -> str:
    """Return `session 9b21e0 (orders-db)`."""
    return f"session {report.ledger.id[:6]} ({report.name})"


def connection(live: LiveSession, report: Report) -> str:
    """Return `a connection (PostgreSQL process 31877)`, with the id of `pg_stat_activity`."""
    if live.process_id is None:
        return "a connection"
    system = "" if report.ledger.database is None else report.ledger.database.system
    return f"a connection ({_DATABASES.get(system, 'server')} process {live.process_id})"


# Code to write.


def awaited(report: Report) -> str:
    """Return `await ` if the session is an `AsyncSession`."""
    return "await " if report.ledger.is_async else ""


def opening(report: Report) -> str:
    """Return `with`, or `async with` for an `AsyncSession`."""
    return "async with" if report.ledger.is_async else "with"


def maker(report: Report) -> str:
    """Return code that makes sessions whose commits expire nothing, as the application does."""
    if _is_by_flask_sqlalchemy(report):
        return 'SQLAlchemy(session_options={"expire_on_commit": False})'
    if report.ledger.is_async:
        return "async_sessionmaker(expire_on_commit=False)"
    made = _constructed(report)
    return (
        f"{made}(..., expire_on_commit=False)" if made else "sessionmaker(expire_on_commit=False)"
    )


def _is_by_flask_sqlalchemy(report: Report) -> bool:
    made = report.ledger.scope.kind[0]
    return any(one.__module__.partition(".")[0] == "flask_sqlalchemy" for one in made.__mro__)


def _constructed(report: Report) -> str:
    """Return the name of the class that the application calls, or "" if a sessionmaker does."""
    made = report.ledger.scope.kind[0]
    # A sessionmaker makes a class with the name of its base.
    base = made.__mro__[1] if len(made.__mro__) > 1 else made
    is_made = made.__module__ == "sqlalchemy.orm.session" and made.__name__ == base.__name__
    return "" if made is object or is_made else made.__name__


def with_block(report: Report, comment: str = "") -> str:
    """Return the code that closes a session in all cases."""
    is_by_maker = report.ledger.is_async or _is_by_flask_sqlalchemy(report)
    made = "" if is_by_maker else _constructed(report)
    head = f"{opening(report)} {f'{made}(...)' if made else 'SessionLocal()'} as session:"
    return f"{head}  # {comment}" if comment else f"{head}\n    ..."


def removal(report: Report) -> str:
    """Return the call that closes a session which a `scoped_session` has made, else nothing."""
    ledger = report.ledger
    is_registered = any(
        map(ledger.locator.is_registered, {ledger.opened_site, ledger.first_used_site})
    )
    return f"{awaited(report)}Session.remove()" if is_registered else ""


def closing(report: Report) -> str:
    """Return the code that closes a session which its thread or task has left open."""
    remove = removal(report)
    return f"{remove}  # at the end of each request or task" if remove else with_block(report)


def own_session(report: Report, each: str = "task") -> str:
    """Return the code that gives each request or task a session of its own."""
    if report.ledger.is_async:
        return with_block(report, f"one for each {each}")
    # A scoped_session has one for each thread, which all tasks of an event loop share.
    return "scoped_session(SessionLocal, scopefunc=asyncio.current_task)  # one for each task"


def variable(entity: str) -> str:
    """Return a name for an object of a mapped class: `order_line` for `OrderLine`."""
    name = _WORDS.sub("_", entity).lower()
    taken = keyword.iskeyword(name) or name == "session"
    return f"{name}_" if taken else name


def bulk_write(operation: str, entity: str, report: Report, clauses: tuple[str, ...] = ()) -> str:
    """Return the statement that writes many rows of a mapped class, with such clauses."""
    made = f"{operation.lower()}({entity or '...'})"
    made += "".join([f".{clause}(...)" for clause in clauses])
    if operation == "DELETE":
        return f"{awaited(report)}session.execute({made}.where(...))"
    if "from_select" in clauses or "where" in clauses:
        return f"{awaited(report)}session.execute({made})"
    return f"{awaited(report)}session.execute({made}, [{{...}}, {{...}}, ...])"
