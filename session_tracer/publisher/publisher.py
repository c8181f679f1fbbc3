"""Publishes each fact of one scope to the code that asked for facts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from session_tracer.ledger.guard import aside
from session_tracer.model.timeline import NO_TIMELINE, Timeline
from session_tracer.publisher.steps import Steps

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from session_tracer.facts import Fact
    from session_tracer.ledger.report import Judge, Report

__all__ = ["FactPublisher"]


class FactPublisher:
    """The timeline of one scope, and the code that gets each of its facts.

    `detectors` has, by type of fact, the application's own detectors that judge every such fact,
    each with its place among the tracer's. `listeners` are called with each fact and its report.
    `opened_at` is when the scope was opened, in nanoseconds of the facts' clock.
    """

    __slots__ = ("_detectors", "_listeners", "_steps", "timeline")

    def __init__(
        self,
        opened_at: int,
        *,
        steps: int,
        detectors: Mapping[type[Fact], tuple[tuple[int, Judge], ...]],
        listeners: tuple[Callable[[Any, Report], None], ...],
    ) -> None:
        self.timeline = Timeline(steps) if steps else NO_TIMELINE
        self._detectors = detectors
        self._listeners = listeners
        self._steps = Steps(self.timeline, opened_at) if steps else None

    def mute(self, signal: object) -> None:
        """A signal has failed: its listener gets no more facts."""
        self._listeners = tuple(
            one for one in self._listeners if getattr(one, "__self__", one) is not signal
        )

    def publish(self, fact: Fact, report: Report) -> None:
        """Publish a fact of this report; never raises."""
        if self._steps is not None:
            try:
                self._steps.add(fact)
            except Exception as error:
                self._steps = None
                report.tracer.failed("timeline", error)
        for place, detector in self._detectors.get(type(fact), ()):
            report.ask(place, detector, fact)
        for listener in self._listeners:
            with aside():
                try:
                    listener(fact, report)
                except Exception as error:
                    report.lose(getattr(listener, "__self__", listener), error)
