"""Formats the findings of a whole run as rows: what, where, how often, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from session_tracer.exporters.finding_block import remedy_label
from session_tracer.exporters.joined import groups, remedies
from session_tracer.exporters.wording import counted
from session_tracer.pytest_plugin.allowances import ALLOW
from session_tracer.pytest_plugin.configured import PREFIX
from session_tracer.pytest_plugin.cost import Cost
from session_tracer.pytest_plugin.wording import place_of, subject_of
from session_tracer.verdicts.ignoring import Ignored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from session_tracer.model.findings import Finding, Severity
    from session_tracer.pytest_plugin.run_findings import Entry
    from session_tracer.verdicts.baseline import Update

__all__ = ["Row", "allowing", "rows", "update_lines"]

# Number of findings of one line that are listed by what they are about.
_MOST_SUBJECTS: Final = 8


class Row(NamedTuple):
    """What the summary has of the findings about one mistake: the id is padded.

    The lines below end with the one that would have these findings ignored.
    """

    severity: Severity
    id_: str
    rest: str
    below: list[str]


def rows(entries: Iterable[Entry], shown: Callable[[str], str] = str) -> Iterator[Row]:
    """Yield a row for each mistake, which lists what the findings about it are about.

    Args:
        entries: The findings, each once.
        shown: Returns the id of a test as pytest is started with it.
    """
    mistakes = _of_one_mistake(entries)
    table = [
        (group[0].finding.id, place_of(group[0].finding), _subjects(group)) for group in mistakes
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for group, cells in zip(mistakes, table, strict=True):
        finding = group[0].finding
        id_, where, subject = map(str.ljust, cells, widths)
        columns = [where, subject] if widths[2] else [where]
        tests = {nodeid: phase for entry in group for nodeid, phase in entry.tests.items()}
        rest = "   ".join([*columns, _tests(tests, _costliest(group).costliest_in, shown)])
        yield Row(finding.severity, id_, rest, list(_below(group, tests)))


def allowing(findings: Iterable[Finding], *, in_tests: bool) -> str:
    """Return the line that would have these findings ignored.

    It is a marker of their tests, or a setting if they were reported outside of tests.
    """
    entries = dict.fromkeys(str(Ignored.of(finding)) for finding in findings)
    if not in_tests:
        return f"{PREFIX}ignore = {', '.join(entries)}"
    ids = ", ".join(f'"{entry}"' for entry in entries)
    return f'@pytest.mark.{ALLOW}({ids}, reason="...")'


def update_lines(update: Update | None) -> Iterator[str]:
    """Yield what an update has removed from the baseline, and what it has not."""
    if update is None:
        return
    for known in update.removed:
        yield f"removed from the baseline: {known}"
    if update.unseen:
        yield (
            f"{counted(len(update.unseen), 'known finding')} did not occur and stayed in the "
            "baseline: not all tests that could have them ran to their end"
        )


def _below(group: Sequence[Entry], tests: dict[str, str]) -> Iterator[str]:
    first, *further = _by_line(group)
    if not _has_name(first[0].finding):
        yield first[0].message
    for there in further:
        yield f"also {_line(there, group[0].finding)}"
    for remedy in remedies(entry.finding for entry in group if entry.finding.remedy):
        yield f"{remedy_label(remedy)} {remedy.partition(chr(10))[0]}"
    yield f"allow {allowing((entry.finding for entry in group), in_tests=bool(tests))}"


def _by_line(group: Iterable[Entry]) -> list[list[Entry]]:
    lines: dict[tuple[object, ...], list[Entry]] = {}
    for entry in group:
        lines.setdefault((entry.finding.id, entry.finding.site), []).append(entry)
    return list(lines.values())


def _line(there: Sequence[Entry], first: Finding) -> str:
    """Return what the group has at another line than its first finding's."""
    finding = there[0].finding
    id_ = finding.id if finding.id != first.id else ""
    about = _subjects(there) if _has_name(finding) else there[0].message
    return "   ".join(filter(None, [id_, place_of(finding), about]))


def _has_name(finding: Finding) -> bool:
    """Return whether it names a class or an attribute. Else its message has what it is about."""
    return bool(finding.entity or finding.attribute)


def _of_one_mistake(entries: Iterable[Entry]) -> list[list[Entry]]:
    """Return the findings that are one mistake for a reader, together.

    If nothing repeats, they differ in nothing but their entity.
    """
    alike: dict[tuple[object, ...], list[Entry]] = {}
    for group in groups(entries, lambda entry: entry.finding, lambda entry: entry.sessions):
        one = group[0].finding
        # Without an entity, what it is about is in its message.
        alone = None if one.entity and one.site else id(group)
        where = (one.site, one.evidence.get("loop"), one.evidence.get("called_at"))
        about = (one.id, one.severity, *where, one.work, alone)
        alike.setdefault(about, []).extend(group)
    return list(alike.values())


def _subjects(group: Sequence[Entry]) -> str:
    # A mistake costs what its own finding counts, and not what follows from it.
    group = [entry for entry in group if entry.finding.id == group[0].finding.id]
    # One finding may be about several classes, and another one about one of these.
    listed = ", ".join(subject_of(entry.finding, entry.cost) for entry in group)
    every = [*dict.fromkeys(filter(None, listed.split(", ")))]
    shown = sorted(every[:_MOST_SUBJECTS])
    more = len(every) - len(shown)
    subjects = ", ".join([*shown, f"… {more} more"] if more else shown)
    return "   ".join(filter(None, [subjects, _cost(group)]))


def _cost(group: Sequence[Entry]) -> str:
    """Return what the findings cost together in one test, if all of them repeat the same.

    It is the test in which one of them took the longest.
    """
    costs = [entry.cost for entry in group]
    if not all(costs[0].noun == cost.noun for cost in costs) or not costs[0].noun:
        return ""
    test = _costliest(group).costliest_in
    costs = [entry.cost for entry in group if entry.costliest_in == test]
    ms, count = sum(cost.ms for cost in costs), sum(cost.number for cost in costs)
    return str(Cost(ms, count, max(cost.of_ms for cost in costs), costs[0].noun))


def _costliest(group: Sequence[Entry]) -> Entry:
    return max(group, key=lambda entry: entry.cost)


def _tests(tests: dict[str, str], costliest: str, shown: Callable[[str], str]) -> str:
    if not tests:
        return "outside of tests"
    if len(tests) > 1:
        example = costliest if costliest in tests else next(iter(tests))
        return f"{counted(len(tests), 'test')} ({shown(example)}, …)"
    ((nodeid, phase),) = tests.items()
    return f"1 test ({shown(nodeid)}{'' if phase == 'call' else f', {phase}'})"
