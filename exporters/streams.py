"""Writes a whole text to a stream in one go."""

from __future__ import annotations

import io
import os
import select
from typing import Final, TextIO

__all__ = ["write_bytes", "write_text"]

_PATIENCE_SECONDS: Final = 5.0


def write_text(stream: TextIO, text: str) -> None:
    """Write `text` so that nobody else's output comes between its lines.

    A plain file is written past its buffer: a thread that is killed at interpreter exit while it
    holds the buffer's lock (a terminal that stands still) makes Python abort.
    """
    descriptor = _descriptor(stream)
    if descriptor is None:
        stream.write(text)
        stream.flush()
    else:
        write_bytes(descriptor, text.encode(stream.encoding or "utf-8", "backslashreplace"))


def write_bytes(descriptor: int, whole: bytes) -> None:
    """Write all of `whole`, in one call where the system takes it in one."""
    rest = memoryview(whole)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # somebody made our terminal or pipe non-blocking
            if not select.select([], [descriptor], [], _PATIENCE_SECONDS)[1]:
                raise


def _descriptor(stream: TextIO) -> int | None:
    # Subclasses and stand-ins (notebooks, test runners) send text elsewhere than their fileno says.
    if type(stream) is not io.TextIOWrapper:
        return None
    buffer = stream.buffer
    if isinstance(buffer, io.BufferedWriter) and isinstance(buffer.raw, io.FileIO):
        return buffer.raw.fileno()
    return None
