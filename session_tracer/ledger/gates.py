"""The thresholds at which a ledger asks the detectors, of all tracers that report the scope."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from session_tracer.settings import Settings

__all__ = ["Gates", "with_first_select"]

# From this number of SELECTs on, each is judged; those before are in the ledger.
_SELECTS_KEPT: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Gates:
    """A set has each tracer's threshold, a number the lowest or, with `most_`, the highest."""

    loads: frozenset[int]
    reloads: frozenset[int]
    # One less: then it is noted which functions are at work, to find the one that loops.
    nearly_loads: frozenset[int]
    nearly_reloads: frozenset[int]
    most_loads: int
    most_reloads: int
    selects: int
    sessions: int
    # With one less for each, as above.
    single_rows: frozenset[int]
    least_single_rows: int
    large_flush: int
    large_identity_map: int
    large_result: int
    # In nanoseconds.
    blocked_loop: int

    @classmethod
    def of(cls, settings: Iterable[Settings]) -> Gates:
        """The gates of tracers with these settings."""
        every = list(settings)
        loads = frozenset(one.lazy_loads_from_one_site for one in every)
        reloads = frozenset(one.reloads_after_commit for one in every)
        rows = [one.single_row_writes for one in every]
        gets = min(one.gets_from_one_site for one in every)
        queries = min(one.queries_from_one_site for one in every)
        repeats = min(one.repeats_of_one_select for one in every)
        return cls(
            loads=loads,
            reloads=reloads,
            nearly_loads=frozenset(number - 1 for number in loads),
            nearly_reloads=frozenset(number - 1 for number in reloads),
            most_loads=max(loads),
            most_reloads=max(reloads),
            selects=max(1, min(gets - 1, queries - 1, repeats - 1, _SELECTS_KEPT)),
            sessions=min(one.sessions_from_one_site for one in every),
            single_rows=frozenset(one for number in rows for one in (number - 1, number)),
            least_single_rows=min(rows),
            large_flush=min(one.large_flush_objects for one in every),
            large_identity_map=min(one.large_identity_map_objects for one in every),
            large_result=min(one.large_result_objects for one in every),
            blocked_loop=int(min(one.blocked_loop_seconds for one in every) * 1e9),
        )


@lru_cache(maxsize=16)
def with_first_select(gates: Gates) -> Gates:
    """Return gates at which the first SELECT is judged, which makes a fact of it."""
    return replace(gates, selects=1)
