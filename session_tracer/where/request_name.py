"""The name of a request, which is made when it is read."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RequestName"]


class RequestName:
    """The name of a request, made of what its framework has found out so far.

    A session may stay open after the request. From its end on only the name is kept.

    Args:
        make: Returns the name.
        about: What it is called with: the scope or environment of the request.
    """

    __slots__ = ("_about", "_make", "_name")

    def __init__(self, make: Callable[[Any], str], about: Any) -> None:
        self._make = make
        self._about = about
        self._name: str | None = None

    def name(self) -> str:
        """Return the name as it is known now."""
        # Once: it may end meanwhile, in another thread.
        about = self._about
        if self._name is not None or about is None:
            return self._name or ""
        return self._make(about)

    def note(self) -> None:
        """Keep the name, because what it is made of may be gone soon."""
        # If it cannot be made, the next reader finds that out, and it is counted there.
        with suppress(Exception):
            if self._name is None:
                self._name = self._make(self._about)

    def end(self) -> None:
        """Keep nothing but the name."""
        self.note()
        self._about = None
