"""Parts of outlines that several stories share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.outline import outline

if TYPE_CHECKING:
    from session_tracer.testing import Captured

# What a session tells that is used once more after it was rolled back.
USED_AGAIN: Final = [
    "transaction began",
    "commit flush began",
    "connection acquired",
    "INSERT authors",
    "flushed +1 Author",
    "connection released",
    "transaction committed",
    "session close: committed",
]


def since(captured: Captured, first: str) -> list[str]:
    """The outline after the first line of that wording, up to the return of the connection."""
    lines = outline(captured.facts)
    after = lines[lines.index(first) + 1 :]
    return after[: after.index("connection released")]
