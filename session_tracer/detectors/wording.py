"""Puts durations, counts and names into the words of a finding."""

from __future__ import annotations

import keyword
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from session_tracer.facts import Counts

__all__ = [
    "bulk_write",
    "counted",
    "dotted",
    "dotted_each",
    "lasted",
    "listed",
    "objects",
    "variable",
]

# Where a word ends and the next begins: `OrderLine`, `HTTPLog`.
_WORDS: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def lasted(nanoseconds: int) -> str:
    """How long something took: `35 ms`, `4.2 s`, `4 min 12 s`, `2 h 5 min`."""
    seconds = nanoseconds / 1e9
    if seconds < 0.001:
        return "less than 1 ms"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def counted(counts: Counts) -> str:
    """`2 Author, 1 Book`, the most frequent first, else by name."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {entity}" for entity, count in ordered if count)


def objects(counts: Counts) -> str:
    """`2 Author objects`, or where there are several mapped classes `2 Author, 1 Book`."""
    told = [count for count in counts.values() if count]
    if len(told) != 1:
        return counted(counts)
    return f"{counted(counts)} object{'s' if told[0] > 1 else ''}"


def dotted(entity: str, attribute: str) -> str:
    """`Author.books`; the entity alone where the attribute is unknown."""
    return f"{entity}.{attribute}" if attribute else entity


def dotted_each(entity: str, attributes: str) -> list[str]:
    """`Essay.notes`, `Essay.text` of the columns `notes, text` that are loaded together."""
    return [dotted(entity, attribute) for attribute in attributes.split(", ")]


# A finding's message is one line or two.
_MOST_LISTED: Final = 4


def listed(names: list[str]) -> str:
    """`Essay.notes and Essay.text`; of many names the first three, and how many more there are."""
    if len(names) > _MOST_LISTED:
        names = [*names[: _MOST_LISTED - 1], f"{len(names) - _MOST_LISTED + 1} more"]
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def variable(entity: str) -> str:
    """What code calls an object of a mapped class: `order_line` for `OrderLine`."""
    name = _WORDS.sub("_", entity).lower()
    taken = keyword.iskeyword(name) or name == "session"
    return f"{name}_" if taken else name


def bulk_write(operation: str, entity: str, *, is_async: bool) -> str:
    """The statement that writes many rows of a mapped class, as code."""
    awaited = "await " if is_async else ""
    made = f"{operation.lower()}({entity or '...'})"
    if operation == "DELETE":
        return f"{awaited}session.execute({made}.where(...))"
    return f"{awaited}session.execute({made}, [{{...}}, {{...}}, ...])"
