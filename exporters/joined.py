"""Joins the findings that are one mistake for the person who reads them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar

from session_tracer.model.findings import REPEATS, Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

__all__ = ["TOGETHER", "groups", "join", "remedies"]

# The key of evidence for the remedies that go with a joined finding's.
TOGETHER: Final = "together"
_SELECT: Final = re.compile(
    r"select\((\w+)\)\.options\((.*?)\)( (?:at|after|before) .*)?", re.DOTALL
)
_ONE_SELECT: Final = "one SELECT of {}"
_LINE: Final = re.compile(r":\d+ in ")
# What a commit in a loop makes necessary is reported earlier: it has the smaller threshold.
_COMMITS: Final = "commit-in-loop"
_FOLLOWING: Final = ("refresh-after-write", "reload-after-commit")
# Number of names in a message.
_MOST_NAMED: Final = 6

T = TypeVar("T")


def groups(
    found: Iterable[T],
    finding_of: Callable[[T], Finding],
    sessions_of: Callable[[T], Iterable[str]] | None = None,
) -> list[list[T]]:
    """Return the findings in groups: each is about one loop, of one line or of one session.

    The others of a group are about other classes or attributes, or other lines of the loop, or they
    follow from the first one: what is loaded again after a commit in a loop. Only what repeats is
    joined; what one line does in several loops has to be changed in each of them. `sessions_of`
    returns the ids of the sessions that had it, if there may be several.
    """
    if sessions_of is None:

        def sessions_of(one: T) -> Iterable[str]:
            return (finding_of(one).session_id,)

    begun = _alike(found, finding_of, sessions_of)
    of_commits = {
        _commit(finding_of(one)): group
        for group in begun
        for one in group
        if finding_of(one).id == _COMMITS
    }
    causes: list[list[T]] = []
    for group in begun:
        is_due = finding_of(group[0]).id in _FOLLOWING
        commits = [_commit(finding_of(one)) for one in group] if is_due else []
        cause = next((of_commits[one] for one in commits if one in of_commits), None)
        if cause is None:
            causes.append(group)
        else:
            cause += group
    return causes


def _alike(
    found: Iterable[T],
    finding_of: Callable[[T], Finding],
    sessions_of: Callable[[T], Iterable[str]],
) -> list[list[T]]:
    # By place, the group of what was found there.
    places: dict[Hashable, list[T]] = {}
    begun: list[list[T]] = []
    for one in found:
        keys = list(_places(finding_of(one), sessions_of(one)))
        there = {id(places[key]) for key in keys if key in places}
        known = [group for group in begun if id(group) in there]
        first, *others = known or [[]]
        if not known:
            begun.append(first)
        # One that has the line of one group and the loop of another joins them.
        for other in others:
            first += other
            begun = [group for group in begun if group is not other]
            places = {key: first if group is other else group for key, group in places.items()}
        first.append(one)
        places.update(dict.fromkeys(keys, first))
    return begun


def _commit(finding: Finding) -> Hashable:
    """The line that commits, and the function that loops: each turn has several lines."""
    site = finding.site if finding.id == _COMMITS else finding.evidence.get("committed_at")
    function = _LINE.sub(" in ", finding.evidence.get("loop", ""))
    return finding.session_name, finding.work, function or id(finding), str(site)


def _places(finding: Finding, sessions: Iterable[str]) -> Iterator[Hashable]:
    if finding.id not in REPEATS:
        return
    loop = finding.evidence.get("loop")
    about = (finding.id, finding.severity, finding.session_name, finding.work, loop)
    if finding.site is not None:
        yield (*about, finding.site)
    if loop is not None:
        # A loop in a helper that runs any function is another mistake in another session.
        for session in sessions:
            yield (*about, session)


def join(group: Sequence[Finding]) -> Finding:
    """Return one finding for a group."""
    first, *others = group
    names = dict.fromkeys(_name(first, one) for one in others)
    names.pop(_name(first, first), None)
    if not names:
        return first
    remedy, *more = remedies(group)
    totals = [one.total for one in others if one.total is not None and one.id == first.id]
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
    if one.id != first.id:
        name = f"{one.id} of {name}" if name else one.id
    if one.site is None or one.site == first.site:
        return name
    return f"{name} at {one.site.path}:{one.site.line}".strip()


def _listed(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join([*names[:_MOST_NAMED], f"{more} more"] if more > 0 else names)


def remedies(group: Iterable[Finding]) -> list[str]:
    """Return the remedies of a group of findings.

    The options of one statement are one remedy, and so is one SELECT of each of several classes.
    """
    options: dict[tuple[str, str], dict[str, None]] = {}
    classes: dict[str, list[str]] = {}
    for remedy, entity in dict.fromkeys((one.remedy, one.entity) for one in group):
        select = _SELECT.fullmatch(remedy)
        if select is None:
            of_class = _ONE_SELECT.format(entity)
            template = remedy.replace(f"{of_class} ", f"{_ONE_SELECT} ")
            classes.setdefault(template, []).append(entity or "")
        else:
            root, option, place = select.groups(default="")
            options.setdefault((root, place), {})[option] = None
    return [
        *(_with(root, [*every], place) for (root, place), every in options.items()),
        *(_of_each(template, every) for template, every in classes.items()),
    ]


def _of_each(template: str, classes: list[str]) -> str:
    named = classes[0] if len(classes) == 1 else f"each of {', '.join(classes)}"
    return template.replace(_ONE_SELECT, _ONE_SELECT.format(named))


def _with(root: str, options: list[str], place: str) -> str:
    # An option that goes on to what the next one loads has loaded the first step.
    needed = [
        one
        for one in options
        if not any(other.startswith(f"{one}.") for other in options if other != one)
    ]
    return f"select({root}).options({', '.join(needed)}){place}"
