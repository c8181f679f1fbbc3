"""Finds rows that are written by a statement each, where one could write them all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

from session_tracer.detectors.recent import Recent
from session_tracer.detectors.wording import bulk_write
from session_tracer.facts import StatementExecuted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from session_tracer.detectors.protocol import Wakes
    from session_tracer.facts import FlushBegan
    from session_tracer.ledger.record import SessionRecord
    from session_tracer.model.findings import Finding
    from session_tracer.where.callsite import CallSite

__all__ = ["RowByRowWrites"]


def _one_row(fact: StatementExecuted, record: SessionRecord) -> bool:
    del record
    return fact.rows == 1 and fact.operation in _WRITES and not fact.error


class RowByRowWrites:
    """`row-by-row-writes`: rows are written by a statement each that one could have written."""

    facts = (StatementExecuted,)
    wakes: Final[Wakes] = {StatementExecuted: _one_row}

    def memory(self) -> _Writes:
        """The single-row statements of this flush, and of each line."""
        return _Writes()

    def judge(
        self, fact: StatementExecuted, record: SessionRecord, memory: _Writes
    ) -> Iterable[Finding]:
        """One finding for each table and kind, of one flush or one line."""
        if not _one_row(fact, record):
            return ()
        enough = record.settings.single_row_writes
        rows = memory.add(fact, record.flush_began if fact.in_flush else None, enough)
        if rows is None or rows.count != enough:
            return ()
        return (_row_by_row(fact, rows, record),)


_WRITES: Final[Mapping[str, str]] = {
    "INSERT": "inserted",
    "UPDATE": "updated",
    "DELETE": "deleted",
}


# The line, whether a flush did it, the verb and the table.
_Key: TypeAlias = "tuple[CallSite | None, bool, str, str]"


class _Writes:
    """The single-row statements of a scope.

    A flush that a read or a commit asks for is told of by itself: that there are many of those is
    another finding. Flushes that the application asks for are counted by their line.
    """

    __slots__ = ("_first", "_flush", "_of_flush", "_of_lines")

    def __init__(self) -> None:
        # The first one is added up when there is another: many sessions have one.
        self._first: tuple[StatementExecuted, FlushBegan | None] | None = None
        self._flush: FlushBegan | None = None
        self._of_flush: Recent[_Key, _Rows] | None = None
        self._of_lines: Recent[_Key, _Rows] | None = None

    def add(self, fact: StatementExecuted, flush: FlushBegan | None, enough: int) -> _Rows | None:
        """Take one more statement into account, and tell what it belongs to if it is not alone."""
        if self._of_lines is None or self._of_flush is None:
            if self._first is None:
                self._first = (fact, flush)
                return None
            self._of_flush, self._of_lines = Recent(_Rows), Recent(_Rows)
            self.add(*self._first, enough)
        by_line = flush is None or flush.trigger == "explicit"
        if not by_line and flush is not self._flush:
            # What was said once is not said of the next flush too.
            self._flush = flush
            self._of_flush.forget(lambda rows: rows.count < enough)
        rows = (self._of_lines if by_line else self._of_flush).of(
            (fact.site, fact.in_flush, fact.operation, fact.collection)
        )
        rows.add(fact.text, flush)
        return rows


class _Rows:
    """Rows of one table that were written one by one, in one way."""

    __slots__ = ("_flush", "_text", "count", "differing", "flushes", "same")

    def __init__(self) -> None:
        self.count = 0
        self.flushes = 0
        # How many statements had the text of the one before, and how many another one.
        self.same = 0
        self.differing = 0
        self._text = 0
        self._flush: FlushBegan | None = None

    def add(self, text: int, flush: FlushBegan | None) -> None:
        """Take one more row into account."""
        self.count += 1
        if flush is not self._flush:
            self._flush = flush
            self.flushes += 1
        if text and self._text:
            self.same += text == self._text
            self.differing += text != self._text
        self._text = text


def _row_by_row(fact: StatementExecuted, rows: _Rows, record: SessionRecord) -> Finding:
    where, why, remedy = _cause(fact, rows, record)
    table = fact.collection or fact.entity or "a table"
    evidence: dict[str, Any] = {"table": fact.collection, "kind": fact.operation}
    if fact.in_flush:
        evidence["flushes"] = rows.flushes
    if why:
        evidence["why"] = why
    return record.finding(
        "row-by-row-writes",
        "info",
        f"{rows.count} rows of {table} were {_WRITES[fact.operation]} one by one {where} so far",
        remedy,
        fact.site,
        entity=fact.entity or None,
        count=rows.count,
        evidence=evidence,
    )


def _cause(fact: StatementExecuted, rows: _Rows, record: SessionRecord) -> tuple[str, str, str]:
    """Where the rows were written, why each by itself, and what to do about it."""
    bulk = bulk_write(fact.operation, fact.entity, is_async=record.is_async)
    awaited = "await " if record.is_async else ""
    if not fact.in_flush:
        why = "each row has an execute() of its own"
        remedy = f"one {bulk} for all rows" if fact.operation == "DELETE" else bulk
        return "from one line", why, remedy
    where = "in one flush" if rows.flushes == 1 else f"in {rows.flushes} flushes of one line"
    if rows.flushes == rows.count:
        why = "only rows of the same flush can go together"
        return where, why, f"one {awaited}session.flush() after the loop, none in it"
    if rows.differing == rows.count - 1:
        # SQLAlchemy groups the rows of a table by the columns they set, in their order, and makes
        # one statement of each group.
        why = (
            "each sets other columns, or another SQL expression, than the one before: "
            "only neighbours with the same statement go together"
        )
        return where, why, bulk
    return where, _ONE_BY_ONE[fact.operation] if rows.same else "", bulk


# When SQLAlchemy's unit of work executes a statement that many rows share for each of them.
_ONE_BY_ONE: Final[Mapping[str, str]] = {
    "INSERT": (
        "rows with the same statement go one by one where they set a SQL expression, depend on "
        "each other, or where the database cannot return the keys it makes for many rows at once"
    ),
    "UPDATE": (
        "rows with the same statement go one by one where they set a SQL expression, where the "
        "mapper has a version_id_col, or where eager_defaults=True reads back what was computed"
    ),
    "DELETE": (
        "rows with the same statement go one by one where they depend on each other, or where "
        "the mapper has a version_id_col and the driver cannot count the rows of many"
    ),
}
