"""Joins the findings that are one mistake for the person who reads them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar

from session_tracer.model.findings import REPEATS, Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

__all__ = ["TOGETHER", "groups", "joined"]

# The key of evidence for the remedies that go with a joined finding's.
TOGETHER: Final = "together"
_SELECT: Final = re.compile(r"select\((\w+)\)\.options\((.*?)\)( (?:at|after) .*)?", re.DOTALL)
# Number of names in a message.
_MOST_NAMED: Final = 6

T = TypeVar("T")


def groups(found: Iterable[T], finding_of: Callable[[T], Finding]) -> list[list[T]]:
    """Return the findings in groups: each is about one line, or about one loop of one session.

    The others of a group are about other classes or attributes, or other lines of the loop. Only
    what repeats is joined.
    """
    begun: list[list[T]] = []
    places: dict[Hashable, list[T]] = {}
    for one in found:
        finding = finding_of(one)
        keys = list(_places(finding))
        known = next((places[key] for key in keys if key in places), None)
        if known is None:
            known = []
            begun.append(known)
        known.append(one)
        for key in keys:
            places.setdefault(key, known)
    return begun


def _places(finding: Finding) -> Iterator[Hashable]:
    if finding.id not in REPEATS:
        return
    about = (finding.id, finding.severity, finding.session_name, finding.work)
    if finding.site is not None:
        yield (*about, finding.site)
    loop = finding.evidence.get("loop")
    if loop is not None:
        # A loop in a helper that runs any function is another mistake in another session.
        yield (*about, loop, finding.session_id)


def joined(findings: Iterable[Finding]) -> list[Finding]:
    """Return one finding for each group."""
    return [_join(group) for group in groups(findings, lambda one: one)]


def _join(group: Sequence[Finding]) -> Finding:
    first, *others = group
    names = dict.fromkeys(_name(first, one) for one in others)
    names.pop(_name(first, first), None)
    if not names:
        return first
    remedy, *more = _remedies(dict.fromkeys(one.remedy for one in group))
    totals = [one.total for one in others if one.total is not None]
    return replace(
        first,
        message=f"{first.message}; also {_listed(list(names))}",
        remedy=remedy,
        attribute=None,
        evidence={**first.evidence, TOGETHER: more} if more else first.evidence,
        total=None if first.total is None else first.total.plus(totals),
    )


def _name(first: Finding, one: Finding) -> str:
    """Return `Author.books`, with the line if it is not the first finding's."""
    name = ".".join(filter(None, [one.entity, one.attribute]))
    if one.site is None or one.site == first.site:
        return name
    return f"{name} at {one.site.path}:{one.site.line}".strip()


def _listed(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join([*names[:_MOST_NAMED], f"{more} more"] if more > 0 else names)


def _remedies(remedies: Iterable[str]) -> list[str]:
    """Return the remedies, with the options of one statement in one remedy."""
    options: dict[tuple[str, str], list[str]] = {}
    others: list[str] = []
    for remedy in remedies:
        select = _SELECT.fullmatch(remedy)
        if select is None:
            others.append(remedy)
        else:
            root, option, place = select.groups(default="")
            options.setdefault((root, place), []).append(option)
    return [*(_with(root, every, place) for (root, place), every in options.items()), *others]


def _with(root: str, options: list[str], place: str) -> str:
    # An option that goes on to what the next one loads has loaded the first step.
    needed = [
        one
        for one in options
        if not any(other.startswith(f"{one}.") for other in options if other != one)
    ]
    return f"select({root}).options({', '.join(needed)}){place}"
