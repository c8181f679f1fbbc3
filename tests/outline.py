"""Says facts in short lines, so that a test can compare a whole story with a literal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from session_tracer import facts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from session_tracer.facts import Counts, Fact


def outline(told: Iterable[Fact]) -> list[str]:
    """One line a fact, without times and sites.

    Rows that one database takes in one statement and another in several count as one line: equal
    statements in a row are listed once.
    """
    lines: list[str] = []
    for fact in told:
        line = _line(fact)
        if line and not (line.startswith("  ") and lines and lines[-1] == line):
            lines.append(line)
    return [line.strip() for line in lines]


def _line(fact: Fact) -> str:
    match fact:
        case facts.SessionOpened():
            return "session reopened" if fact.reopened else "session opened"
        case facts.SessionClosed():
            return f"session {fact.ending}: {fact.outcome}{_error(fact.error)}"
        case facts.TransactionBegan(nested=True):
            return "savepoint began"
        case facts.TransactionBegan():
            return "two-phase transaction began" if fact.two_phase else "transaction began"
        case facts.TransactionEnded():
            what = "savepoint" if fact.nested else "transaction"
            return f"{what} {fact.outcome}{_error(fact.error)}"
        case facts.ConnectionAcquired():
            return "connection acquired"
        case facts.ConnectionReleased():
            return "connection released"
        case facts.StatementExecuted():
            # The unit of work writes to tables.
            is_written = fact.in_flush and fact.operation != "SELECT"
            what = fact.collection if is_written else fact.eager or fact.entity or fact.collection
            eager = "eager " if fact.eager else ""
            line = f"{eager}{fact.operation} {what}".strip()
            return (
                f"  {line}{_error(fact.error)}" if fact.in_flush else f"{line}{_error(fact.error)}"
            )
        case facts.AttributeLoaded():
            name = f"{fact.entity}.{fact.attribute}" if fact.attribute else fact.entity
            return f"load of {fact.kind} {name}"
        case facts.ObjectsLoaded():
            return f"loaded {_counts(fact.loaded)}"
        case facts.FlushBegan():
            return f"{fact.trigger} flush began"
        case facts.FlushCompleted():
            return f"flushed{_written(fact)}"
        case facts.FlushFailed():
            return f"flush failed{_written(fact)}{_error(fact.error)}"
        case facts.ObjectsExpired():
            return f"expired {fact.count}"
        case facts.ObjectsExpunged():
            return f"expunged {fact.count}"
        case facts.ObjectMerged():
            return f"merged {fact.entity}"
        case facts.DetachedLoadFailed():
            return f"detached {fact.load} {fact.entity}.{fact.attribute} after {fact.departure}"
        case _:
            return ""


def _written(fact: facts.FlushCompleted | facts.FlushFailed) -> str:
    parts = [f" +{_counts(fact.new)}"] if fact.new else []
    if fact.dirty:
        parts.append(f" ~{_counts(fact.dirty)}")
    if isinstance(fact, facts.FlushCompleted) and fact.unchanged:
        parts.append(f" ={_counts(fact.unchanged)}")
    if fact.deleted:
        parts.append(f" -{_counts(fact.deleted)}")
    return "".join(parts)


def _counts(counts: Counts) -> str:
    return ", ".join(f"{number} {entity}" for entity, number in sorted(counts.items()))


def _error(error: str) -> str:
    return f" with {error.rpartition('.')[2]}" if error else ""
