"""Objects that are given to `merge()` and changed after it: no session writes these changes."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final

from session_tracer import facts
from session_tracer.hooks.safe_types import PLAIN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.orm import Session

    from session_tracer.facts import Outcome
    from session_tracer.ledger.ledger import Ledger
    from session_tracer.where.callsite import CallSite

__all__ = ["follow"]

# How many objects are compared as one transaction commits.
_MOST: Final = 1_000


def follow(ledger: Ledger, state: Any, site: CallSite | None) -> None:
    """An object is merged: as the transaction commits, look whether it was changed since.

    An object that is in a session is written by that one.
    """
    if state.session_id is None:
        ledger.until_end(_Merges).add(state, site)


class _Merges:
    """The objects that were merged in one transaction, by id: what they were, and where."""

    def __init__(self) -> None:
        self._copied: dict[int, tuple[weakref.ref[Any], Mapping[str, int], CallSite | None]] = {}

    def add(self, state: Any, site: CallSite | None) -> None:
        """The session copies the object's values now."""
        if len(self._copied) < _MOST or id(state) in self._copied:
            self._copied[id(state)] = (weakref.ref(state), _prints(state), site)

    def ended(
        self, ledger: Ledger, session: Session, outcome: Outcome, site: CallSite | None
    ) -> None:
        """The transaction has ended."""
        del session
        if outcome != "committed":
            return
        for known, copied, merged_site in self._copied.values():
            state = known()
            if state is None or state.session_id is not None:
                continue
            now = _prints(state)
            changed = [key for key, one in copied.items() if now.get(key, one) != one]
            if changed:
                ledger.suspect(
                    facts.CopyChanged(
                        at=ledger.clock(),
                        site=merged_site,
                        entity=state.class_.__name__,
                        attributes=tuple(changed),
                        committed_site=site,
                    )
                )


def _prints(state: Any) -> dict[str, int]:
    """What values of columns are recognised by, without keeping one or calling code of its class.

    A primary key or a version is often taken over from the session's object, and a value is often
    set to None before the object is shown: these are left out.
    """
    mapper = state.manager.mapper
    left_out = {*mapper.primary_key, mapper.version_id_col}
    values = state.dict
    return {
        prop.key: hash((type(value), value))
        for prop in mapper.column_attrs
        if (value := values.get(prop.key)) is not None
        and type(value) in PLAIN
        and left_out.isdisjoint(prop.columns)
    }
