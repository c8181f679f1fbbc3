"""Finds transactions that begin or end where the code around them needs another one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from session_tracer.detectors.evidence import known
from session_tracer.detectors.memory import Once
from session_tracer.detectors.protocol import BuiltIn
from session_tracer.detectors.wording import awaited, opening
from session_tracer.facts import StreamInterrupted, TransactionRefused

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding
    from session_tracer.where.callsite import CallSite

# What ended a transaction.
_ENDS: Final[Mapping[str, str]] = {"committed": "the commit", "rolled_back": "the rollback"}


class RefusedTransaction(BuiltIn):
    """`refused-transaction`: `begin()` during a transaction, or use of a block's that has ended."""

    candidates = (TransactionRefused,)
    memory = Once

    def judge(self, fact: TransactionRefused, report: Report, memory: Once) -> Iterator[Finding]:
        """Report each pair of lines once."""
        if not memory.first((fact.site, fact.began_site, fact.ended_site)):
            return
        message, remedies = (_ended if fact.outcome else _open)(fact, report)
        remedy, *others = remedies
        yield report.finding(
            "refused-transaction",
            "warning",
            message,
            remedy,
            fact.site,
            evidence=known(
                began_at=fact.began_site,
                ended_at=fact.ended_site,
                outcome=fact.outcome or None,
                alternatives=others or None,
            ),
        )


def _open(fact: TransactionRefused, report: Report) -> tuple[str, list[str]]:
    """Return the message and the remedies if `begin()` was called during a transaction."""
    if not fact.implicit:
        return (
            f"begin() was refused: begin(){_at(fact.began_site)} has begun a transaction already",
            [
                f"leave out this begin(): the block{_at(fact.began_site)} commits at its end",
                f"{opening(report)} session.begin_nested():  # a savepoint in that transaction",
            ],
        )
    use = f"the session's use{_at(fact.began_site)}"
    return (
        f"begin() was refused: {use} has begun a transaction already",
        [
            f"begin the block of session.begin() before {fact.began_site or 'that use'}",
            f"leave out this begin(), and {awaited(report) or 'call '}session.commit() at the end",
        ],
    )


def _ended(fact: TransactionRefused, report: Report) -> tuple[str, list[str]]:
    """Return the message and the remedies if the transaction has ended."""
    what = "savepoint" if fact.nested else "transaction"
    end = f"{_ENDS.get(fact.outcome, 'close()')}{_at(fact.ended_site)}"
    block = f"the block{_at(fact.began_site)}"
    if not fact.in_block:
        return (
            f"a {what} begun{_at(fact.began_site)} was used after {end} had ended it",
            [f"leave out {end}, or what was called on the {what} afterwards"],
        )
    message = f"the session was used in the block of a {what} after {end} had ended it"
    if fact.outcome == "committed":
        kept = "releases its savepoint" if fact.nested else "commits"
        return message, [f"leave out {end}: {block} {kept} at its end"]
    if fact.outcome == "rolled_back":
        return message, [
            f"leave {block} before the session is used again",
            f"{opening(report)} session.begin_nested():  # around what is to be rolled back alone",
        ]
    return message, [f"leave out {end}, or leave {block} first"]


def _at(site: CallSite | None) -> str:
    return "" if site is None else f" at {site}"


class InterruptedStream(BuiltIn):
    """`interrupted-stream`: a streamed result is read on after its transaction has ended."""

    candidates = (StreamInterrupted,)
    memory = Once

    def judge(self, fact: StreamInterrupted, report: Report, memory: Once) -> Iterator[Finding]:
        """Report each pair of lines once."""
        if not memory.first((fact.site, fact.streamed_site)):
            return
        end = f"{_ENDS.get(fact.outcome, 'the end of the session')}{_at(fact.site)}"
        rows = f"{fact.rows} row{'' if fact.rows == 1 else 's'}"
        remedy, *others = _read_first(fact, report)
        yield report.finding(
            "interrupted-stream",
            "warning",
            f"{end} ended the transaction of the result that is streamed"
            f"{_at(fact.streamed_site)} after {rows}, and the result was read on",
            remedy,
            fact.site,
            evidence=known(
                streamed_at=fact.streamed_site,
                read_at=fact.read_site,
                outcome=fact.outcome,
                rows=fact.rows,
                alternatives=others or None,
            ),
        )


def _read_first(fact: StreamInterrupted, report: Report) -> Iterator[str]:
    pages = "select pages by key, .where(E.id > last_id).limit(n), and commit after each page"
    match fact.outcome:
        case "committed":
            yield f"{awaited(report) or 'call '}session.commit() after the last row is read"
            yield pages
        case "rolled_back":
            yield f"{opening(report)} session.begin_nested():  # around what may fail, for each row"
            yield pages
        case _:
            yield "read the rows before the session is closed"
