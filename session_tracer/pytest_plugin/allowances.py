"""Reads the marker `session_allow`: the findings that a test may have, and why."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pytest

    from session_tracer.model.findings import Finding
    from session_tracer.verdicts.ignoring import Ignored

__all__ = ["ALLOW", "Allowance", "read_allowances"]

ALLOW: Final = "session_allow"


class Allowance(NamedTuple):
    """Which findings a test may have, and the reason."""

    ignored: Ignored
    reason: str

    def holds(self, finding: Finding) -> bool:
        """Return whether the finding is one of them."""
        return self.ignored.holds(finding)


def read_allowances(marks: Iterable[pytest.Mark]) -> list[Allowance]:
    """Return what these marks allow.

    Raises:
        ValueError: a mark names no finding or an unknown one, or has no reason.
    """
    return [allowance for mark in marks for allowance in _read(mark)]


def _read(mark: pytest.Mark) -> Iterator[Allowance]:
    reason = mark.kwargs.get("reason")
    if not mark.args or set(mark.kwargs) - {"reason"}:
        raise ValueError(
            f"Invalid {ALLOW}(): expected ids of findings and a reason, such as "
            f"{ALLOW}('n-plus-one:Author.books', reason='...')."
        )
    if not isinstance(reason, str) or not reason.strip():
        raise ValueError(f"Invalid {ALLOW}(reason={reason!r}): expected a non-empty string.")
    for entry in mark.args:
        yield Allowance(_ignored(entry), reason)


def _ignored(entry: object) -> Ignored:
    # Not imported before it is needed: every run of pytest imports this module.
    from session_tracer.settings import IGNORED
    from session_tracer.verdicts.ignoring import ANY, Ignored, check_ids

    if not isinstance(entry, str) or not re.fullmatch(IGNORED, entry):
        raise ValueError(
            f"Invalid {ALLOW}({entry!r}): expected the id of a finding, optionally followed by "
            "@glob, :Entity or :Entity.attribute."
        )
    ignored = Ignored.parse(entry)
    check_ids(ALLOW, [ignored.id], (ANY,))
    return ignored
