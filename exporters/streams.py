"""Writes a whole text to a stream at once."""

from __future__ import annotations

import io
import os
import select
from typing import Final, TextIO

__all__ = ["write_bytes", "write_text"]

_PATIENCE_SECONDS: Final = 5.0


def write_text(stream: TextIO, text: str) -> None:
    """Write `text` so that no other output comes between its lines.

    A plain file is written without its buffer. Python aborts if it exits while a daemon thread
    holds the buffer's lock, for example because a terminal does not read.
    """
    descriptor = _descriptor(stream)
    if descriptor is None:
        stream.write(text)
        stream.flush()
    else:
        write_bytes(descriptor, text.encode(stream.encoding or "utf-8", "backslashreplace"))


def write_bytes(descriptor: int, whole: bytes) -> None:
    """Write all of `whole`, in one system call if possible."""
    rest = memoryview(whole)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # another program made the terminal or pipe non-blocking
            if not select.select([], [descriptor], [], _PATIENCE_SECONDS)[1]:
                raise


def _descriptor(stream: TextIO) -> int | None:
    # Subclasses and replacements (notebooks, test runners) do not write to their fileno().
    if type(stream) is not io.TextIOWrapper:
        return None
    buffer = stream.buffer
    if isinstance(buffer, io.BufferedWriter) and isinstance(buffer.raw, io.FileIO):
        return buffer.raw.fileno()
    return None
