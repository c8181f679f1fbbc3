"""Draws each fact as a step of a session's timeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from session_tracer import facts
from session_tracer.model.counts import add_counts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from session_tracer.facts import Fact
    from session_tracer.model.timeline import Step, Timeline
    from session_tracer.where.callsite import CallSite

__all__ = ["Steps"]


class Steps:
    """Adds the facts of one scope, in their order, to its timeline.

    `opened_at` is when the timeline begins, `last_at` when its last step began, in nanoseconds of
    the facts' clock.
    """

    __slots__ = ("_load", "_opened_at", "_step", "_timeline", "last_at")

    def __init__(self, timeline: Timeline, opened_at: int) -> None:
        self._timeline = timeline
        self._opened_at = self.last_at = opened_at
        self._step: Step | None = None
        # What the statement that follows loads of one object.
        self._load: facts.AttributeLoaded | None = None

    def add(self, fact: Fact) -> None:
        """Add what happened, if it is a step."""
        draw = _STEPS.get(type(fact))
        if draw is not None:
            draw(self, fact)

    def _did(
        self,
        at: int,
        verb: str,
        subject: str,
        site: CallSite | None,
        took: int = 0,
        error: str = "",
    ) -> Step:
        """The session did something."""
        self.last_at = at
        began = at - self._opened_at
        step = self._step = self._timeline.add(began, verb, subject, site)
        step.duration += took
        step.error = error or step.error
        return step

    def _closed(self, fact: facts.SessionClosed) -> None:
        self._did(fact.at, fact.ending, "", fact.site, error=fact.error)

    def _began(self, fact: facts.TransactionBegan) -> None:
        if fact.nested:
            self._did(fact.at, "savepoint", "", fact.site)
        else:
            self._did(fact.at, "begin", "two-phase" if fact.two_phase else "", fact.site)

    def _ended(self, fact: facts.TransactionEnded) -> None:
        if fact.nested:
            verb = "release" if fact.outcome == "committed" else "rollback to savepoint"
        else:
            verb = _ENDINGS.get(fact.outcome, "end")
        # Where nothing but the session's end has ended it, the session's end is the step.
        if verb != "end" or fact.error:
            self._did(fact.at - fact.took, verb, "", fact.site, fact.took, fact.error)

    def _loads(self, fact: facts.AttributeLoaded) -> None:
        self._load = fact

    def _executed(self, fact: facts.StatementExecuted) -> None:
        load, self._load = self._load, None
        if fact.in_flush or fact.operation in _SAVEPOINT_OPERATIONS:
            return
        if load is not None:
            verb: str = "lazy" if load.kind == "relationship" else load.kind
            subject = _dotted(load.entity, load.attribute)
        else:
            verb = "eager" if fact.eager else fact.operation.lower() or "execute"
            subject = fact.eager or fact.entity or fact.collection
        began = fact.at - fact.duration
        self._did(began, verb, subject, fact.site, fact.duration, fact.error)

    def _loaded(self, fact: facts.ObjectsLoaded) -> None:
        if self._step is not None:
            add_counts(self._step.loaded, fact.loaded)

    def _flushed(self, fact: facts.FlushCompleted) -> None:
        add_counts(self._flush(fact, "").unchanged, fact.unchanged)

    def _flush_failed(self, fact: facts.FlushFailed) -> None:
        self._flush(fact, fact.error)

    def _flush(self, fact: facts.FlushCompleted | facts.FlushFailed, error: str) -> Step:
        began = fact.at - fact.duration
        step = self._did(began, "flush", fact.trigger, fact.site, fact.duration, error)
        add_counts(step.new, fact.new)
        add_counts(step.dirty, fact.dirty)
        add_counts(step.deleted, fact.deleted)
        return step

    def _expired(self, fact: facts.ObjectsExpired) -> None:
        self._did(fact.at, "expire", "", fact.site)

    def _expunged(self, fact: facts.ObjectsExpunged) -> None:
        self._did(fact.at, "expunge", "", fact.site)

    def _merged(self, fact: facts.ObjectMerged) -> None:
        self._did(fact.at, "merge", fact.entity, fact.site)

    def _refused(self, fact: facts.LoadRefused) -> None:
        self._did(fact.at, "refused", _dotted(fact.entity, fact.attribute), fact.site)


_ENDINGS: Final = {"committed": "commit", "rolled_back": "rollback"}
_SAVEPOINT_OPERATIONS: Final = frozenset({"SAVEPOINT", "RELEASE", "ROLLBACK"})

# How each type of fact is a step of the timeline.
_STEPS: Final[Mapping[type, Callable[[Steps, Any], None]]] = {
    facts.SessionClosed: Steps._closed,
    facts.TransactionBegan: Steps._began,
    facts.TransactionEnded: Steps._ended,
    facts.StatementExecuted: Steps._executed,
    facts.AttributeLoaded: Steps._loads,
    facts.ObjectsLoaded: Steps._loaded,
    facts.FlushCompleted: Steps._flushed,
    facts.FlushFailed: Steps._flush_failed,
    facts.ObjectsExpired: Steps._expired,
    facts.ObjectsExpunged: Steps._expunged,
    facts.ObjectMerged: Steps._merged,
    facts.LoadRefused: Steps._refused,
}


def _dotted(entity: str, attribute: str) -> str:
    return f"{entity}.{attribute}" if attribute else entity
