"""The frame that runs, where this Python tells it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

__all__ = ["IS_TOLD", "running_frame"]


def _untold(depth: int = 0, /) -> FrameType | None:
    """A Python need not have `sys._getframe`."""
    del depth
    return None


IS_TOLD: Final = hasattr(sys, "_getframe")
# So many frames outwards of its caller's; ValueError where the stack is not as deep.
running_frame: Final[Callable[[int], FrameType | None]] = getattr(sys, "_getframe", _untold)
