"""Gives SQLAlchemy's sets an order that does not hang on where in memory their members lie."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.engine import Connection
from sqlalchemy.engine.base import Transaction
from sqlalchemy.orm import InstanceState, unitofwork

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["steady_sets"]

# Private since SQLAlchemy 2.1.
_RECORD: Final[Any] = vars(unitofwork).get("_PostSortRec") or vars(unitofwork)["PostSortRec"]
_IN_SETS: Final[tuple[Any, ...]] = (InstanceState, Connection, Transaction, _RECORD)


@contextmanager
def steady_sets() -> Iterator[None]:
    """Have what SQLAlchemy keeps in sets come out in an order that the program alone decides.

    It expires, expunges, inserts and rolls back in the order of sets, so that two runs of one
    program would differ. With one hash for all, they come in the order in which they went in.
    """
    for one in _IN_SETS:
        one.__hash__ = _same_for_all
    try:
        yield
    finally:
        for one in _IN_SETS:
            del one.__hash__


def _same_for_all(_: object) -> int:
    return 0
