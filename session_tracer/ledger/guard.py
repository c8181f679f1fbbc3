"""How this thread reports: whether it runs a detector or an exporter, and what waits for them."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["aside", "reporting"]


class _Reporting(threading.local):
    """What happens to sessions while a thread reports (`now`) is not reported: it would not end."""

    now = False
    # What this thread concludes is handed to, so that it waits for no log; None for at once.
    later: Callable[[Callable[[], None]], None] | None = None


reporting: Final = _Reporting()


@contextmanager
def aside() -> Iterator[None]:
    """Report nothing of what happens to sessions meanwhile, for example in a sampler."""
    before, reporting.now = reporting.now, True
    try:
        yield
    finally:
        reporting.now = before
