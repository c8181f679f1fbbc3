"""Appends every log event as one line of JSON to a file or to standard output."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from session_tracer.exporter import Exporter
from session_tracer.exporters.streams import write_bytes, write_text
from session_tracer.runtime.background_queue import BackgroundQueue

if TYPE_CHECKING:
    from session_tracer.exporter import LogEvent
    from session_tracer.settings import Settings

__all__ = ["open_exporter"]

_FIRST_KEYS: Final = ("timestamp", "level", "event", "session_id", "session_name", "work")
_MOST_WAITING: Final = 10_000
_DROPPED: Final = "session_tracer.dropped"


def open_exporter(settings: Settings) -> Exporter:
    """Return an exporter that appends to `settings.jsonl_path`.

    Raises:
        OSError: the file cannot be written. The message contains what to do.
    """
    path = settings.jsonl_path
    sink: _File | _StandardOutput = _StandardOutput() if path == "-" else _File(path)
    queue: BackgroundQueue[LogEvent] = BackgroundQueue(
        lambda event: sink.write(line(event)),
        name="session_tracer jsonl",
        most=_MOST_WAITING,
        lost=lambda count: sink.write(line(_dropped(count))),
    )

    def close() -> None:
        if queue.close():  # otherwise a write may still use the descriptor
            sink.close()

    return Exporter(on_log=queue.put, flush=queue.flush, close=close)


def line(event: LogEvent) -> str:
    """Return the event as one line of JSON, with the most important keys first."""
    ordered: LogEvent = {key: event[key] for key in _FIRST_KEYS if key in event}
    return json.dumps(_plain({**ordered, **event}), ensure_ascii=False) + "\n"


class _File:
    """A file to which whole lines are appended, and which is opened again if it was moved."""

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)  # the application may change its working directory
        try:
            self._descriptor: int | None = self._open()
        except OSError as error:
            raise OSError(
                error.errno,
                f"The jsonl exporter cannot write to {path!r}: {error.strerror}. Name a file in a "
                "folder that exists and may be written (jsonl_path=..., or "
                "SESSION_TRACER_JSONL_PATH), or '-' for standard output.",
            ) from error

    def write(self, text: str) -> None:
        descriptor = self._descriptor
        if descriptor is None or self._moved(descriptor):
            self.close()
            descriptor = self._descriptor = self._open()
        # A lone surrogate becomes \udc80, which is also how JSON writes it.
        write_bytes(descriptor, text.encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        return os.open(self._path, flags, 0o666)

    def _moved(self, descriptor: int) -> bool:
        """Return whether the path names another file now, as after a rotation."""
        try:
            return not os.path.samestat(os.stat(self._path), os.fstat(descriptor))
        except FileNotFoundError:
            return True


class _StandardOutput:
    """Standard output as it is at the moment of each write."""

    def write(self, text: str) -> None:
        if sys.stdout is not None:  # there is none under pythonw
            write_text(sys.stdout, text)

    def close(self) -> None:
        """Do nothing: standard output belongs to the application."""


def _dropped(count: int) -> LogEvent:
    return {
        "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "level": "warning",
        "event": _DROPPED,
        "count": count,
    }


def _plain(value: object) -> Any:
    """Return `value` as types that JSON has. Other values become text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else _text(key): _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return _text(value)


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__}>"
