"""Writes the report of a log as one HTML file: `session-tracer report`."""

from __future__ import annotations

import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from session_tracer.page.html import page
from session_tracer.page.log_document import LogSummary, compared
from session_tracer.page.log_lines import Problems, read_lines

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

__all__ = ["report"]

_STANDARD: Final = "-"
_LARGE_BYTES: Final = 50_000_000
_MEGA: Final = 1_000_000
_REFRESH_SECONDS: Final = 0.2
_LOOK_BYTES: Final = 1_000_000


def report(paths: Sequence[str], out: str | None = None, compare: str | None = None) -> int:
    """Write the report of logs that the exporter `jsonl` wrote.

    Args:
        paths: The logs; `-` is standard input.
        out: The HTML file; `-` is standard output. By default the first log's name with `.html`,
            and standard output if that is read from standard input.
        compare: A log of an earlier time or version: the report has what is new since.

    Returns:
        The exit code: 0, 1 if no event could be read or the file not be written, or 2 if the
        report would replace a log.
    """
    out = out or _beside(paths[0])
    if any(_is_same(out, one) for one in (*paths, *filter(None, (compare,)))):
        _complain(f"session-tracer report: {out} is a log, and would be replaced: name another.")
        return 2
    notes: list[str] = []
    now, before = LogSummary(), LogSummary()
    for path in paths:
        _read(path, now, notes)
    if not now.lines:
        _complain("session-tracer report: no log event of session_tracer was read.")
        return 1
    difference = None
    if compare is not None:
        _read(compare, before, notes)
        if not before.lines:
            _complain(f"session-tracer report: no log event was read from {compare}.")
            return 1
        difference = compared(now, before, _name(compare))
    html = page(now.document([_name(path) for path in paths], notes, difference)).html
    return _write(out, html)


def _beside(path: str) -> str:
    return _STANDARD if path == _STANDARD else str(Path(path).with_suffix(".html"))


def _is_same(out: str, path: str) -> bool:
    try:
        return _STANDARD not in (out, path) and os.path.samefile(out, path)
    except OSError:
        return False


def _name(path: str) -> str:
    return "standard input" if path == _STANDARD else os.path.basename(path)


def _read(path: str, summary: LogSummary, notes: list[str]) -> None:
    """Add up a log. What cannot be read is named on standard error and in the notes."""
    name = _name(path)
    problems = Problems(name, _complain)
    try:
        with _opened(path) as stream:
            progress = _Progress(name, stream)
            for line in read_lines(stream, problems, progress.read):
                summary.add(line)
            progress.end()
    except OSError as error:
        _complain(f"session-tracer report: cannot read {path}: {error.strerror}")
        notes.append(f"{name} could not be read: {error.strerror}.")
    if problems.count:
        notes.extend(problems.texts)
        notes.append(f"{problems.count} lines of {name} in all were not read as they are.")


def _opened(path: str) -> AbstractContextManager[IO[bytes]]:
    return nullcontext(sys.stdin.buffer) if path == _STANDARD else open(path, "rb")


def _write(out: str, html: str) -> int:
    try:
        if out == _STANDARD:
            sys.stdout.buffer.write(html.encode())
            sys.stdout.buffer.flush()
        else:
            Path(out).write_text(html, "utf-8")
    except OSError as error:
        _complain(f"session-tracer report: cannot write {out}: {error.strerror}")
        return 1
    if out != _STANDARD:
        _complain(f"The report is in {out}")
    return 0


def _complain(text: str) -> None:
    # A file's name and an event's may have what a terminal would obey.
    print("".join(sign if sign.isprintable() else "?" for sign in text), file=sys.stderr)


class _Progress:
    """Shows on a terminal how much of a large file is read."""

    def __init__(self, name: str, stream: IO[bytes]) -> None:
        self._name = name
        try:
            self._size = os.fstat(stream.fileno()).st_size
        except OSError:
            self._size = 0
        is_large = self._size > _LARGE_BYTES or not self._size
        self._is_shown = is_large and sys.stderr is not None and sys.stderr.isatty()
        self._read = self._looked = 0
        self._due = time.monotonic() + _REFRESH_SECONDS
        self._was_shown = False

    def read(self, count: int) -> None:
        """That many bytes more were read."""
        self._read += count
        if self._is_shown and self._read - self._looked > _LOOK_BYTES:
            self._looked = self._read
            if time.monotonic() > self._due:
                self._due = time.monotonic() + _REFRESH_SECONDS
                self._show()

    def _show(self) -> None:
        of_all = f" of {self._size / _MEGA:,.0f}" if self._size else ""
        print(f"\r{self._name}: {self._read / _MEGA:,.0f}{of_all} MB", end="", file=sys.stderr)
        sys.stderr.flush()
        self._was_shown = True

    def end(self) -> None:
        """All was read."""
        if self._was_shown:
            self._show()
            print(file=sys.stderr)
