"""Counts what sessions do, and where most of each count comes from."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from session_tracer import facts
from session_tracer.pytest_plugin.budgets import BUDGETS

if TYPE_CHECKING:
    from session_tracer.facts import Fact
    from session_tracer.where.callsite import CallSite

__all__ = ["Tally"]

_FLUSHES: Final = {
    "explicit": "flush",
    "autoflush": "autoflush",
    "commit": "flush at commit",
    "savepoint": "flush at savepoint",
}


class Tally:
    """One count for each budget."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(BUDGETS, 0)
        self._causes: dict[str, Counter[tuple[str, CallSite | None]]] = {
            budget: Counter() for budget in BUDGETS
        }
        # By session: the load that its next statement does.
        self._loads: dict[str, str] = {}

    def add(self, fact: Fact, session_id: str) -> None:
        """Count what happened to a session."""
        match fact:
            case facts.SessionOpened():
                self._count("sessions", "opened", fact.site)
            case facts.TransactionEnded(nested=False, outcome="committed"):
                self._count("commits", "commit", fact.site)
            case facts.FlushCompleted() | facts.FlushFailed():
                self._count("flushes", _FLUSHES[fact.trigger], fact.site)
            case facts.AttributeLoaded():
                verb = "lazy" if fact.kind == "relationship" else fact.kind
                load = f"{verb} {fact.entity}.{fact.attribute}".removesuffix(".")
                self._loads[session_id] = load
                if fact.kind != "refresh":
                    self._count("lazy_loads", load, fact.site)
            case facts.StatementExecuted():
                load = self._loads.pop(session_id, "")
                self._count("statements", load or _statement(fact), fact.site)
            case facts.ObjectsLoaded():
                for entity, number in fact.loaded.items():
                    self._count("loaded", entity, fact.site, number)

    def cause(self, budget: str) -> str:
        """What contributes most to a count: `lazy Author.books ×12 at app/report.py:33`."""
        ((words, site), number), *_ = self._causes[budget].most_common(1)
        times = f" ×{number}" if number > 1 else ""
        where = "" if site is None else f" at {site.path}:{site.line}"
        return words + times + where

    def _count(self, budget: str, words: str, site: CallSite | None, number: int = 1) -> None:
        self.counts[budget] += number
        self._causes[budget][words, site] += number


def _statement(fact: facts.StatementExecuted) -> str:
    if fact.eager:
        return f"eager {fact.eager}"
    return f"{fact.operation.lower()} {fact.entity or fact.collection}".strip() or "statement"
