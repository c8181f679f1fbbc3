"""Puts a context in force while a statement runs, and the caller's back after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry import context as context_api

if TYPE_CHECKING:
    from contextvars import Token

    from opentelemetry.context import Context

__all__ = ["Attached"]


class Attached:
    """A context that can be put in force, and the caller's, which is put back after it.

    The code that attaches it has to keep it first, and to detach it whatever happens: an interrupt
    may come after the context is in force and before its token is kept.
    """

    __slots__ = ("_before", "_context", "_token")

    def __init__(self, context: Context, before: Context) -> None:
        self._context = context
        self._before = before
        self._token: Token[Context] | None = None

    def attach(self) -> None:
        """Put it in force."""
        self._token = context_api.attach(self._context)

    def detach(self) -> None:
        """Put the caller's context back, if this one is in force. Calling it again does nothing."""
        # A coroutine that was thrown away during a statement may be unwound in another context.
        if context_api.get_current() is self._context:
            if self._token is None:
                context_api.attach(self._before)
            else:
                context_api.detach(self._token)
