"""A detector that retracts what it reported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from session_tracer import Retraction
from session_tracer.facts import TransactionBegan, TransactionEnded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from session_tracer import Finding
    from session_tracer.ledger.report import Report

__all__ = ["Fickle"]


class Fickle:
    """It suspects each transaction as it begins, and retracts that as the transaction ends."""

    facts = (TransactionBegan, TransactionEnded)

    def memory(self) -> list[Finding]:
        """What it has reported."""
        return []

    def judge(
        self,
        fact: TransactionBegan | TransactionEnded,
        report: Report,
        memory: list[Finding],
    ) -> Iterator[Finding | Retraction]:
        """A finding, then its retraction."""
        if isinstance(fact, TransactionBegan):
            memory.append(
                report.finding(
                    "a-suspicion",
                    "warning",
                    "this transaction may never end",
                    "session.commit()",
                    fact.site,
                )
            )
            yield memory[-1]
        else:
            yield Retraction(
                finding=memory.pop(),
                message="the transaction ended after all",
                evidence={"lasted_ms": 1.5, "written": {"Author": 2}},
            )
