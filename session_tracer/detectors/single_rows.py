"""Finds rows that are written by one statement each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from session_tracer.detectors.evidence import known, looping
from session_tracer.detectors.protocol import BuiltIn
from session_tracer.detectors.wording import awaited, bulk_write, elsewhere
from session_tracer.facts import StatementExecuted
from session_tracer.model.totals import Total
from session_tracer.where.iteration import reads_row_count

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from session_tracer.ledger.report import Report
    from session_tracer.ledger.single_rows import Rows
    from session_tracer.model.findings import Finding

_WRITES: Final[Mapping[str, str]] = {
    "INSERT": "inserted",
    "UPDATE": "updated",
    "DELETE": "deleted",
}


class RowByRowWrites(BuiltIn):
    """`row-by-row-writes`: rows are written by one statement each instead of one for all."""

    candidates = (StatementExecuted,)

    def judge(self, fact: StatementExecuted, report: Report, memory: None) -> Iterator[Finding]:
        """Report each table and kind once for a flush or a line. The ledger counts the rows."""
        del memory
        single_rows = report.ledger.single_rows
        is_one_row = fact.rows == 1 and fact.operation in _WRITES and not fact.error
        if single_rows is None or not is_one_row:
            return
        rows, enough = single_rows.last, report.settings.single_row_writes
        if rows.count == enough - 1:
            rows.passed = report.ledger.locator.passed()
        if rows.count != enough:
            return
        passed, rows.passed = rows.passed, {}
        if _is_by_library(fact, rows, report):
            return
        # The rows of one flush are not repeated by a loop.
        loop = looping(passed, report) if rows.flushes > 1 or not fact.in_flush else None
        where, why, remedy = _cause(fact, rows, elsewhere(loop, fact.site), report)
        yield report.finding(
            "row-by-row-writes",
            "info",
            f"at least {rows.count} rows of {fact.collection or fact.entity or 'a table'} "
            f"were {_WRITES[fact.operation]} one by one {where}",
            remedy,
            fact.site,
            entity=fact.entity or None,
            count=rows.count,
            total=Total(fact.operation, rows.tally),
            evidence=known(
                loop=loop,
                table=fact.collection,
                kind=fact.operation,
                flushes=rows.flushes if fact.in_flush else None,
                why=why,
            ),
        )


def _is_by_library(fact: StatementExecuted, rows: Rows, report: Report) -> bool:
    """Whether a library loops, which the application has called once, such as a test's factory."""
    is_called_once = fact.site is not None and fact.site.distance > 0
    is_each_flushed = not fact.in_flush or rows.flushes == rows.count
    return is_called_once and is_each_flushed and not report.ledger.locator.is_in_loop()


def _cause(fact: StatementExecuted, rows: Rows, place: str, report: Report) -> tuple[str, str, str]:
    """Return where the rows were written, why one by one, and the remedy.

    `place` is where the loop is, if it is not at the line that writes.
    """
    if not fact.in_flush:
        remedy = _for_all(fact, report)
        if place:
            remedy = f"collect the rows in the loop{place}, then {remedy}"
        return "from one line", "there is one execute() for each row", remedy
    bulk = bulk_write(fact.operation, fact.entity, report)
    where = "in one flush" if rows.flushes == 1 else f"in {rows.flushes} flushes from one line"
    if rows.flushes == rows.count:
        why = "one statement can only write rows of the same flush"
        flush = f"one {awaited(report)}session.flush()"
        return where, why, f"{flush} after the loop{place}, none inside it"
    if rows.differing == rows.count - 1:
        # SQLAlchemy groups the rows of a table by the columns they set, in their order, and makes
        # one statement of each group.
        why = (
            "each row sets other columns, or another SQL expression, than the row before: "
            "one statement can only write consecutive rows that set the same columns"
        )
        return where, why, bulk
    return where, _ONE_BY_ONE[fact.operation], bulk


def _for_all(fact: StatementExecuted, report: Report) -> str:
    """Return the statement that does for all rows what this one does for one."""
    operation, clauses = fact.operation, fact.clauses
    is_counted = operation != "INSERT" and fact.site is not None and reads_row_count(fact.site)
    if operation == "UPDATE" and is_counted and not clauses:
        clauses = _WITHOUT_ROWS  # there is no rowcount of a list of rows
    bulk = bulk_write(operation, fact.entity, report, clauses)
    if operation == "DELETE" or "from_select" in clauses:
        bulk = f"one {bulk} for all rows"
    elif "where" in clauses:
        bulk = f"one {bulk} for all rows that get the same values, with the conditions they share"
    for clause in _OF_EACH_ROW.keys() & clauses:
        bulk += f"  # take the new values from {_OF_EACH_ROW[clause]}"
    return f"{bulk}  # its rowcount is that of all these rows" if is_counted else bulk


_WITHOUT_ROWS: Final = ("where", "values")
# How the clause of one INSERT names the values of the row that it could not insert.
_OF_EACH_ROW: Final[Mapping[str, str]] = {
    "on_conflict_do_update": "excluded",
    "on_duplicate_key_update": "inserted",
}
# When SQLAlchemy's unit of work executes one statement for each row although their SQL is the same.
_ONE_BY_ONE: Final[Mapping[str, str]] = {
    "INSERT": (
        "rows are inserted one by one if they set a SQL expression, if they depend on each other, "
        "or if the database cannot return the generated keys of many rows"
    ),
    "UPDATE": (
        "rows are updated one by one if they set a SQL expression, if the mapper has a "
        "version_id_col, or if eager_defaults=True reads back generated values"
    ),
    "DELETE": (
        "rows are deleted one by one if they depend on each other, or if the mapper has a "
        "version_id_col and the driver cannot count the deleted rows of many statements"
    ),
}
