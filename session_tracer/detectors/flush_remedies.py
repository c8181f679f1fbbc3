"""What prevents a failed flush, by what was wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from session_tracer.detectors.wording import awaited, opening, variable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from session_tracer.facts import FlushFailed, FlushFailureDecided, FlushProblem
    from session_tracer.ledger.report import Report

__all__ = ["remedies", "what_failed"]

_RETRY: Final = "roll back and repeat the whole transaction, at most a few times"
_UPSERT: Final = "insert(...).on_conflict_do_nothing(), if the row may exist"
_LOCK: Final = "load it with with_for_update=True, so that no other transaction can change the row"
_SHORTER: Final = "keep transactions short: commit before waiting, and write at their end"
_PASS_IT: Final = (
    "pass {} to this code, or commit it first: it has written and "
    "keeps the lock for as long as this code waits or repeats"
)
_PING: Final = "create_engine(..., pool_pre_ping=True), if the connection was lost in the pool"

# What an error means, as the end of a sentence.
_MEANS: Final[Mapping[FlushProblem, str]] = {
    "stale": "another transaction has changed or deleted the row",
    "locked": "the database is locked by another transaction",
    "lost": "the connection was lost",
    "same_key": "the session has another object with this primary key",
    "blank_key": "the key of a child was set to NULL",
    "listener": "an event listener used the session during the flush",
}


# SQLSTATEs, and MySQL's numbers, of conflicts that are no lock.
_CONFLICTS: Final[Mapping[str, str]] = {
    "40001": "another transaction has changed the same rows",
    "40P01": "deadlock with another transaction",
    "1213": "deadlock with another transaction",
}


def what_failed(fact: FlushFailed, error: str, report: Report) -> str:
    """Return the error and, if it is known, what it means."""
    meaning = _CONFLICTS.get(fact.code) or _MEANS.get(fact.problem, "")
    if fact.holder:
        owner = "task" if report.ledger.is_async else "thread"
        meaning = f"the database is locked by session {fact.holder[:6]} of the same {owner}"
    if fact.problem == "null" and fact.column:
        meaning = f"{fact.column} was not set"
    return f"failed with {error}: {meaning}" if meaning else f"failed with {error}"


def remedies(decided: FlushFailureDecided, error: str, report: Report) -> Iterator[str]:
    """Yield what to do, the best first.

    Where the application handles the error, it rolls back already: what prevents the error helps.
    Where the error has left the session, its end has rolled back.
    """
    fact = decided.failed
    if fact.holder:
        opened = fact.holder_site
        yield _PASS_IT.format(
            "that session" if opened is None else f"the session that was opened at {opened}"
        )
        return
    if fact.trigger == "autoflush" and fact.problem == "null":
        yield from _half_made(fact)
    if not decided.unhandled and fact.problem in _PREVENTED:
        yield from _PREVENTED[fact.problem](fact, error)
        return
    caught = f"{awaited(report) or 'call '}session.rollback() where {error} is caught"
    if decided.unhandled == "left":
        caught = f"catch {error} outside of the session's block, which rolls back"
    yield from _BY_PROBLEM.get(fact.problem, _handle)(_Failed(fact, error, caught, report))


class _Failed(NamedTuple):
    """A flush that failed, the name of its error, and what the code that catches it should do."""

    fact: FlushFailed
    error: str
    caught: str
    report: Report


def _handle(failed: _Failed) -> Iterator[str]:
    if failed.fact.in_savepoint:
        yield (
            f"catch {failed.error} outside of the savepoint's block: "
            "only the savepoint is rolled back"
        )
        return
    yield failed.caught
    yield f"{opening(failed.report)} session.begin_nested(): around the code that may fail"


def _half_made(fact: FlushFailed) -> Iterator[str]:
    yield "with session.no_autoflush: around the query, which flushed an incomplete object"
    where = "" if fact.added_site is None else f" at {fact.added_site}"
    yield f"call session.add(){where} only after the object is complete"


def _null(failed: _Failed) -> Iterator[str]:
    if failed.fact.column:
        yield f"set {failed.fact.column} before the flush"
    yield from _handle(failed)


def _blank_key(failed: _Failed) -> Iterator[str]:
    fact = failed.fact
    yield (
        f'relationship(cascade="all, delete-orphan") for {fact.relationship}: a child is deleted '
        "with its parent, or when it is taken out of the collection"
    )
    if fact.column:
        yield (
            'relationship(cascade="all, delete", passive_deletes=True) and '
            'ForeignKey(..., ondelete="CASCADE"): the database deletes the children'
        )
        yield f"allow NULL in {fact.column}, if a child may be without a parent"


def _same_key(failed: _Failed) -> Iterator[str]:
    fact = failed.fact
    entity = next(iter(fact.new), "")
    loaded = "" if fact.existing_site is None else f", which was loaded at {fact.existing_site}"
    name = variable(entity) if entity else "..."
    yield f"{awaited(failed.report)}session.merge({name}) in place of session.add({name})"
    yield f"change the object that the session has{loaded}"


def _duplicate(failed: _Failed) -> Iterator[str]:
    yield from _handle(failed)
    yield _UPSERT


def _stale(failed: _Failed) -> Iterator[str]:
    yield (
        f"{failed.caught}, then load the object again: another transaction has changed or "
        "deleted its row"
    )
    yield _LOCK
    yield "version_id_col, if the change of another transaction must not be overwritten"


def _locked(failed: _Failed) -> Iterator[str]:
    yield f"{_RETRY}, where {failed.error} is caught"
    yield _SHORTER


def _lost(failed: _Failed) -> Iterator[str]:
    yield f"{_RETRY}, where {failed.error} is caught"
    yield _PING


def _listener(failed: _Failed) -> Iterator[str]:
    listener = failed.fact.listener
    where = "" if listener is None else f" at {listener}"
    yield f"use the connection that the listener{where} is given, and not the session"
    yield "use the session in a before_flush listener, which runs before the flush begins"


_BY_PROBLEM: Final[Mapping[FlushProblem, Callable[[_Failed], Iterator[str]]]] = {
    "null": _null,
    "blank_key": _blank_key,
    "same_key": _same_key,
    "duplicate": _duplicate,
    "stale": _stale,
    "locked": _locked,
    "lost": _lost,
    "listener": _listener,
}


# What prevents an error that the application handles each time.


def _refused_values(fact: FlushFailed, error: str) -> Iterator[str]:
    yield f"check the values before the flush, which {fact.constraint or error} refuses"


def _missing_value(fact: FlushFailed, error: str) -> Iterator[str]:
    if fact.column:
        yield f"set {fact.column} before the flush"
    else:
        yield from _refused_values(fact, error)


def _existing_row(fact: FlushFailed, error: str) -> Iterator[str]:
    del fact, error
    yield _UPSERT
    yield "SELECT the row first, and add an object only if there is no row"


def _changed_row(fact: FlushFailed, error: str) -> Iterator[str]:
    del fact, error
    yield _LOCK


def _lock(fact: FlushFailed, error: str) -> Iterator[str]:
    del fact, error
    yield _SHORTER
    yield "take locks in the same order in all transactions"


def _lost_again(fact: FlushFailed, error: str) -> Iterator[str]:
    del fact, error
    yield _PING


_PREVENTED: Final[Mapping[FlushProblem, Callable[[FlushFailed, str], Iterator[str]]]] = {
    "": _refused_values,
    "constraint": _refused_values,
    "null": _missing_value,
    "duplicate": _existing_row,
    "stale": _changed_row,
    "locked": _lock,
    "lost": _lost_again,
}
