"""Who is asked, and who is told, about each type of fact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from session_tracer.detectors.protocol import Recaller, Sleeper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from session_tracer.detectors.protocol import Detector
    from session_tracer.facts import Fact
    from session_tracer.ledger.record import SessionRecord

    Wake = Callable[[Any, SessionRecord], bool]
    Judge = Callable[[Any, SessionRecord, Any], Iterable[Any]]
    Say = Callable[..., None]
    Table = dict[type[Fact], "Steps"]

__all__ = ["Dispatch", "Steps"]

# An application can make few sessions that differ in who is awake; more are worked out anew.
_MOST_TABLES: Final = 200


class Steps(NamedTuple):
    """What is done with a fact of one type; each detector and signal by its place.

    `wakes` are the detectors that sleep and may be woken by it, `judges` those that are awake.
    """

    add: Callable[[SessionRecord, Any], None] | None
    wakes: tuple[tuple[int, Wake], ...]
    judges: tuple[tuple[int, Judge], ...]
    says: tuple[tuple[int, Say], ...]


class Dispatch:
    """The tables of one tracer, by who is awake and who has failed.

    A table has those in it who are to be called and nobody else: to pass over each detector that
    sleeps took a small unit of work longer than all else that is done with its dozen facts.
    """

    def __init__(
        self,
        detectors: tuple[Detector, ...],
        adders: Mapping[type, Callable[[SessionRecord, Any], None]],
        says: Mapping[type, list[tuple[int, Say]]],
    ) -> None:
        self._detectors = detectors
        self._adders = adders
        self._says = says
        self._heard = frozenset(kind for detector in detectors for kind in detector.facts)
        self._tables: dict[tuple[int, int], Table] = {}
        # The detectors that never sleep, as the bits of a number.
        self.awake = 0
        for index, detector in enumerate(detectors):
            if not isinstance(detector, Sleeper):
                self.awake |= 1 << index
        # How the memory of each is made.
        self.remember = tuple(map(_remember, detectors))

    def table(self, awake: int, muted: int = 0) -> Table:
        """The table where these detectors are awake and those have failed, as bits by place."""
        known = self._tables.get((awake, muted))
        if known is None:
            known = self._make(awake, muted)
            if len(self._tables) < _MOST_TABLES:
                self._tables[awake, muted] = known
        return known

    def hears(self, kind: type) -> bool:
        """Whether any detector wants to know of such facts."""
        return kind in self._heard

    def _make(self, awake: int, muted: int) -> Table:
        asleep = [
            (index, one)
            for index, one in enumerate(self._detectors)
            if not ((awake | muted) >> index & 1) and isinstance(one, Sleeper)
        ]
        asked = [
            (index, one)
            for index, one in enumerate(self._detectors)
            if awake >> index & 1 and not muted >> index & 1
        ]
        return {
            kind: Steps(
                self._adders.get(kind),
                tuple((n, one.wakes[kind]) for n, one in asleep if kind in one.wakes),
                tuple((n, one.judge) for n, one in asked if kind in one.facts),
                tuple(self._says.get(kind, ())),
            )
            for kind in {*self._adders, *self._heard, *self._says}
        }


def _remember(detector: Detector) -> Callable[[Fact, SessionRecord], Any]:
    """What makes the detector's memory as it is asked for the first time."""
    if isinstance(detector, Recaller):
        return detector.recall
    return lambda *_: detector.memory()
