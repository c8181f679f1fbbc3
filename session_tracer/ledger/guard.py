"""Whether this thread runs a detector or an exporter, which may use a session itself."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["aside", "reporting"]


class _Reporting(threading.local):
    """What happens to sessions meanwhile is not reported: there would be no end to it."""

    now = False


reporting: Final = _Reporting()


@contextmanager
def aside() -> Iterator[None]:
    """Report nothing of what happens to sessions meanwhile, for example in a sampler."""
    before, reporting.now = reporting.now, True
    try:
        yield
    finally:
        reporting.now = before
