"""Formats labels in a column, with their values next to them or below."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from rich.cells import cell_len
from rich.text import Text

from session_tracer.exporters.wording import cropped, wrapped, wrapped_code

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Row", "table"]

_FAINT: Final = "dim"
_WIDEST_LABEL: Final = 36
_NARROWEST_VALUE: Final = 36


class Row(NamedTuple):
    """A label and its value.

    Attributes:
        code: Whether the value is code, which goes below the label if it does not fit next to it.
        crop: Whether the value may be cropped.
        after: What follows code, on its line or on the next.
        hangs: Whether the value's second line is indented.
    """

    label: str
    value: str
    style: str = ""
    code: bool = False
    crop: bool = False
    after: str = ""
    hangs: bool = False


def table(rows: list[Row], width: int, indent: int) -> Iterator[Text]:
    """Yield the lines of all rows."""
    column = _label_width([row for row in rows if row.value])
    # The site has the longest label. If its source goes below, the other values have more room.
    narrower = _label_width([row for row in rows if not row.crop])
    room, more_room = width - indent - column - 2, width - indent - narrower - 2
    if any(_gains(row, room, more_room) for row in rows):
        column, room = narrower, more_room
    for row in rows:
        yield from _lines(row, indent, column, room, width)


def _gains(row: Row, room: int, more_room: int) -> bool:
    length = cell_len(row.value)
    return length > room and (row.code or length <= more_room)


def _label_width(rows: list[Row]) -> int:
    labels = [cell_len(row.label) for row in rows]
    return max((length for length in labels if length <= _WIDEST_LABEL), default=0)


def _lines(row: Row, indent: int, column: int, room: int, width: int) -> Iterator[Text]:
    length = cell_len(row.label)
    lines, start = _next_to_label(row, room), indent + column + 2
    if lines is None or length > column:
        lines, start = ["", *_below_label(row, width - indent - 4)], indent + 4
    first, *rest = lines
    label = row.label if length <= width - indent else cropped(row.label, width - indent)
    line = Text.assemble(" " * indent, (label, "" if row.crop else _FAINT))
    if first:
        line.append(" " * (start - indent - length))
        line.append(first, row.style)
    yield line
    for more in rest:
        if more:
            yield Text.assemble(" " * start, (more, row.style))


def _next_to_label(row: Row, room: int) -> list[str] | None:
    """Return the lines of the value next to its label, or None if it does not fit there."""
    whole = row.value + row.after
    if cell_len(whole) <= room:
        return [whole]
    if row.after and cell_len(row.value) <= room:
        return [row.value, *wrapped(row.after.strip(), room)]
    if row.code or room < _NARROWEST_VALUE:
        return None
    if not row.hangs:
        return wrapped(row.value, room)
    first, *rest = wrapped(row.value, room - 2)
    return [first, *(f"  {line}" for line in rest)]


def _below_label(row: Row, room: int) -> list[str]:
    if row.crop:
        return [cropped(row.value, room)]
    lines = (wrapped_code if row.code else wrapped)(row.value, room)
    return [*lines, *wrapped(row.after.strip(), room)] if row.after else lines
