"""Writes blocks of lines with the colours, width and encoding of a stream."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.text import Text

from session_tracer.exporters.streams import write_text

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TextIO

__all__ = ["Screen"]

_WIDTH_OF_A_FILE: Final = 100
_NARROWEST: Final = 50


class Screen:
    """A stream, its width, and whether it has colours."""

    def __init__(self, stream: TextIO | None, width: int | None, colour: bool | None) -> None:
        self._stream = stream
        self._width = width
        self._colour = colour
        self._began = False
        self._apart = False

    @property
    def width(self) -> int:
        return max(self._width or self._columns(), _NARROWEST)

    def write(self, lines: Iterable[Text], *, apart: bool) -> None:
        """Write a block at once; `apart` puts an empty line before and after it."""
        stream = self._resolved()
        if stream is None:  # there is none under pythonw
            return
        block = [*([Text()] if self._began and (apart or self._apart) else []), *lines]
        self._began, self._apart = True, apart
        write_text(stream, _encodable(self._rendered(block, stream), stream))

    def _rendered(self, lines: list[Text], stream: TextIO) -> str:
        if not self._has_colour(stream):
            return "".join(f"{line.plain}\n" for line in lines)
        console = Console(
            file=io.StringIO(),
            force_terminal=True,
            color_system="standard",
            legacy_windows=False,
            highlight=False,
            _environ={},
        )
        with console.capture() as capture:
            console.print(Text("\n").join(lines), soft_wrap=True)
        return capture.get()

    def _has_colour(self, stream: TextIO) -> bool:
        if self._colour is not None:
            return self._colour
        probe = Console(file=stream)
        return bool(
            probe.is_terminal
            and probe.color_system
            and not probe.no_color
            and not probe.legacy_windows
        )

    def _columns(self) -> int:
        try:
            columns = int(os.environ.get("COLUMNS", ""))
        except ValueError:
            columns = 0
        if columns > 0:
            return columns
        try:
            stream = self._resolved()
            columns = 0 if stream is None else os.get_terminal_size(stream.fileno()).columns
        except (OSError, ValueError, AttributeError):  # a file, a closed one, or no file at all
            columns = 0
        return columns or _WIDTH_OF_A_FILE

    def _resolved(self) -> TextIO | None:
        # Standard error is looked up each time, because test runners and notebooks replace it.
        return sys.stderr if self._stream is None else self._stream


# Replacements for signs that the stream's encoding does not have.
_PLAINER: Final = str.maketrans({
    "●": "*", "▲": "!", "✖": "x", "◆": "i", "…": "...", "·": "-", "×": "x", "−": "-", "←": "<-",
})  # fmt: skip


def _encodable(text: str, stream: TextIO) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        plainer = text.translate(_PLAINER)
        return plainer.encode("ascii", "backslashreplace").decode("ascii")
    return text
