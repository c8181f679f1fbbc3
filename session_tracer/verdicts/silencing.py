"""Silences findings in a block of the application's code, with a reason."""

from __future__ import annotations

import re
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from session_tracer.model.findings import FINDING_IDS
from session_tracer.runtime.nearest import did_you_mean

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Silence", "silence", "silenced_now"]

_ID: Final = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
# How similar to a built-in id an unknown id must be to count as misspelt. Below this, it is taken
# for the id of an application's detector.
_LIKE: Final = 0.85


def silence(*ids: str, reason: str) -> Silence:
    """Do not report these findings in a block: `with silence("commit-in-loop", reason="..."):`.

    It applies to the code in the block, sync or async, to the threads and tasks that inherit its
    context, and to the whole lifetime of a session that is opened in it.

    Args:
        *ids: Ids of findings.
        reason: Why they are silenced, for readers of the code.

    Returns:
        A context manager. It can be used again, and by several tasks at the same time.

    Raises:
        ValueError: no id is given, an id is invalid or a misspelt id of session_tracer, or the
            reason is empty.
    """
    if not ids:
        raise ValueError(
            "Invalid silence(): expected the id of at least one finding, such as 'n-plus-one'."
        )
    for id_ in ids:
        _check(id_)
    if not isinstance(reason, str) or not reason.strip():
        raise ValueError(f"Invalid reason={reason!r}: expected a non-empty string.")
    return Silence(frozenset(ids), reason)


class Silence:
    """The context manager that `silence()` returns.

    It is not a decorator: a decorator would end before a coroutine or a generator begins to run.
    """

    __slots__ = ("ids", "reason")

    def __init__(self, ids: frozenset[str], reason: str) -> None:
        self.ids = ids
        self.reason = reason

    def __enter__(self) -> None:
        _OPEN.set((*_OPEN.get(), self))

    def __exit__(
        self,
        type_: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Not by a token: generators end out of turn, and in another context than they began in.
        blocks = list(_OPEN.get())
        if self in blocks:
            blocks.remove(self)
            _OPEN.set(tuple(blocks))


# The blocks that the running code is in. What is set is never changed, so contexts may share it.
_OPEN: Final[ContextVar[tuple[Silence, ...]]] = ContextVar("session_tracer_silence", default=())
_NOTHING: Final[frozenset[str]] = frozenset()


def silenced_now() -> frozenset[str]:
    """Return the ids of the findings that are silenced in the running code."""
    blocks = _OPEN.get()
    return _NOTHING.union(*(block.ids for block in blocks)) if blocks else _NOTHING


def _check(id_: object) -> None:
    if not isinstance(id_, str) or not _ID.fullmatch(id_):
        raise ValueError(
            f"Invalid silence({id_!r}): expected the id of a finding, such as 'n-plus-one'."
        )
    if id_ in FINDING_IDS:
        return
    nearest = did_you_mean(id_, FINDING_IDS, _LIKE)
    if nearest:
        raise ValueError(f"Invalid silence({id_!r}): unknown finding.{nearest}")
