"""Keeps findings quiet around the application's own code, which says why."""

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
# How like one of ours an unknown id must be to be a slip, and not an application's own.
_LIKE: Final = 0.85


def silence(*ids: str, reason: str) -> Silence:
    """Say none of these findings in a block: `with silence("commit-in-loop", reason="..."):`.

    It holds for the code in the block, sync or async, for the threads and tasks that inherit its
    context, and for the whole life of a session that is opened in it. `ids` are findings' ids;
    `reason` is for whoever reads the code.

    Raises `ValueError` where no id is given, where one is no id at all or so near to one of
    session_tracer's that it is a slip, and where the reason is empty.
    """
    if not ids:
        raise ValueError(
            "Invalid silence(): expected the id of at least one finding, such as 'n-plus-one'."
        )
    for id_ in ids:
        _check(id_)
    if not isinstance(reason, str) or not reason.strip():
        raise ValueError(f"Invalid reason={reason!r}: expected some words that say why.")
    return Silence(frozenset(ids), reason)


class Silence:
    """What `silence()` makes; it can be used again, also by several tasks at a time.

    It is no decorator: that would end before a coroutine or a generator begins to run.
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
    """The ids of the findings that are silenced where this is asked."""
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
        raise ValueError(f"Invalid silence({id_!r}): there is no such finding.{nearest}")
