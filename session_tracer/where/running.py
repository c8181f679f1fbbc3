"""The running frame, if this Python provides it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

__all__ = ["IS_TOLD", "running_frame"]


def _untold(depth: int = 0, /) -> FrameType | None:
    """Return None: this Python has no `sys._getframe`."""
    del depth
    return None


IS_TOLD: Final = hasattr(sys, "_getframe")
# The frame at a depth: 0 is the caller's. Raises ValueError if the stack is not as deep.
running_frame: Final[Callable[[int], FrameType | None]] = getattr(sys, "_getframe", _untold)
