"""Finds rows that are written by a statement each, where one could write them all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from session_tracer.detectors.wording import bulk_write
from session_tracer.facts import StatementExecuted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from session_tracer.ledger.report import Report
    from session_tracer.ledger.single_rows import Rows
    from session_tracer.model.findings import Finding

__all__ = ["RowByRowWrites"]


def _one_row(fact: StatementExecuted) -> bool:
    return fact.rows == 1 and fact.operation in _WRITES and not fact.error


class RowByRowWrites:
    """`row-by-row-writes`: rows are written by a statement each that one could have written."""

    facts: Final = ()
    candidates = (StatementExecuted,)

    def memory(self) -> None:
        """The ledger counts the single-row statements of each flush, and of each line."""

    def judge(self, fact: StatementExecuted, report: Report, memory: None) -> Iterable[Finding]:
        """One finding for each table and kind, of one flush or one line."""
        del memory
        counted = report.ledger.single_rows
        if counted is None or not _one_row(fact):
            return ()
        rows = counted.last
        if rows.count != report.settings.single_row_writes:
            return ()
        return (_row_by_row(fact, rows, report),)


_WRITES: Final[Mapping[str, str]] = {
    "INSERT": "inserted",
    "UPDATE": "updated",
    "DELETE": "deleted",
}


def _row_by_row(fact: StatementExecuted, rows: Rows, report: Report) -> Finding:
    where, why, remedy = _cause(fact, rows, report)
    table = fact.collection or fact.entity or "a table"
    evidence: dict[str, Any] = {"table": fact.collection, "kind": fact.operation}
    if fact.in_flush:
        evidence["flushes"] = rows.flushes
    evidence["why"] = why
    return report.finding(
        "row-by-row-writes",
        "info",
        f"{rows.count} rows of {table} were {_WRITES[fact.operation]} one by one {where} so far",
        remedy,
        fact.site,
        entity=fact.entity or None,
        count=rows.count,
        evidence=evidence,
    )


def _cause(fact: StatementExecuted, rows: Rows, report: Report) -> tuple[str, str, str]:
    """Where the rows were written, why each by itself, and what to do about it."""
    bulk = bulk_write(fact.operation, fact.entity, is_async=report.ledger.is_async)
    awaited = "await " if report.ledger.is_async else ""
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
    return where, _ONE_BY_ONE[fact.operation], bulk


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
