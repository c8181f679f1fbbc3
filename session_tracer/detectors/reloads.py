"""Finds values that are read back after the session had them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from session_tracer.detectors.evidence import known, largest, looping
from session_tracer.detectors.looping import walks
from session_tracer.detectors.memory import MOST_REPORTED, Recent
from session_tracer.detectors.protocol import BuiltIn
from session_tracer.detectors.selecting import selecting_with
from session_tracer.detectors.wording import dotted_each, elsewhere, expiry, listed, maker, objects
from session_tracer.facts import AttributeLoaded
from session_tracer.model.counts import add_counts
from session_tracer.model.totals import Tally, Total

if TYPE_CHECKING:
    from collections.abc import Iterator

    from session_tracer.facts import Counts
    from session_tracer.ledger.loads import Loads, Passed
    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding
    from session_tracer.where.callsite import CallSite

_EXPIRING: Final = frozenset({"expired", "relationship", "deferred"})

# By the line of the commit and the line of the reload.
_Reported: TypeAlias = "dict[tuple[CallSite | None, CallSite | None], Total]"


class ReloadAfterCommit(BuiltIn):
    """`reload-after-commit`: objects that a commit expired are reloaded one by one."""

    candidates = (AttributeLoaded,)

    def memory(self) -> _Reported:
        """Return the total of each pair of lines that was reported."""
        return {}

    def judge(self, fact: AttributeLoaded, report: Report, memory: _Reported) -> Iterator[Finding]:
        """Report each pair of a commit's line and a reload's line once."""
        loads, enough = report.ledger.loads, report.settings.reloads_after_commit
        is_reload = fact.expired_by == "commit" and fact.kind in _EXPIRING
        if loads is None or loads.count != enough or not is_reload:
            return
        if loads.refreshes >= enough and report.was_reported("refresh-after-write"):
            return  # refresh() has expired what is loaded again
        total = memory.get((fact.expired_site, fact.site))
        if total is not None:
            total.follow(loads.reloads)
        elif len(memory) < MOST_REPORTED:
            total = memory[fact.expired_site, fact.site] = Total("SELECT", loads.reloads)
            yield _reloaded(fact, loads, enough, total, report)


def _reloaded(
    fact: AttributeLoaded, reloads: Loads, count: int, total: Total, report: Report
) -> Finding:
    attributes = {name: None for one in reloads.attributes for name in dotted_each(*one)}
    is_one = len(reloads.entities) == 1 and len(attributes) == 1
    remedy, other = maker(report), "select them again with one statement after the commit"
    if attributes:
        # Nothing knows whether these were loaded before the commit, and would be kept.
        names = list(attributes)
        were = "were" if len(names) > 1 else "was"
        other = f"{remedy}  # if {listed(names)} {were} loaded before the commit"
        remedy = _selected_again(fact, reloads, names, _last_expiry(fact, report))
        if reloads.refreshed_site is not None:
            # refresh() expires relationships, and does not load them again.
            remedy = f"remove refresh() at {reloads.refreshed_site}, and run {remedy}"
    what = objects(reloads.entities)
    if len(reloads.entities) > 1:
        what = f"{sum(reloads.entities.values())} objects ({listed(list(reloads.entities))})"
    return report.finding(
        "reload-after-commit",
        "warning",
        f"at least {what} expired by a commit were reloaded, one SELECT each",
        remedy,
        fact.site,
        entity=largest(reloads.entities),
        attribute=fact.attribute if is_one else None,
        count=count,
        total=total,
        evidence=known(
            loop=looping(reloads.passed, report),
            committed_at=fact.expired_site,
            reloaded=dict(reloads.entities),
            attributes=list(attributes) or None,
            alternatives=[other],
        ),
    )


def _last_expiry(fact: AttributeLoaded, report: Report) -> str:
    """Return what expired the objects: a SELECT between the commits of one line would not last."""
    first, by = report.ledger.first_commit, expiry(fact)
    if first is None or first[0] != fact.expired_site or report.ledger.commits == 1:
        return by
    return by.replace("the commit", "the last commit", 1)


def _selected_again(fact: AttributeLoaded, reloads: Loads, names: list[str], by: str) -> str:
    """Return the statements that bring objects that have expired, with what was read of them."""
    selects: dict[str, list[str]] = {}
    of: set[str] = set()
    if fact.attribute and fact.options:
        selects[fact.root or fact.entity] = [fact.options]
    for (entity, attribute), (root, option) in reloads.attributes.items():
        of |= {entity, root}
        if (entity, attribute) == (fact.entity, fact.attribute) and fact.options:
            continue
        if not option:
            return f"load {listed(names)} for all objects with one SELECT after {by}"
        options = selects.setdefault(root, [])
        if not any(longer.startswith(option) for longer in options):
            options.append(option)
    statements = [f"select({root}).options({', '.join(them)})" for root, them in selects.items()]
    statements += [f"select({entity})" for entity in reloads.entities if entity not in of]
    return f"{' and '.join(statements)} after {by}"


class _Refreshes:
    """How often one line has refreshed what was just written."""

    __slots__ = ("entities", "passed", "tally", "written")

    def __init__(self) -> None:
        self.tally = Tally()
        # By mapped class, and by INSERT or UPDATE, in the order in which they came.
        self.entities: Counts = {}
        self.written: Counts = {}
        self.passed: Passed = {}

    @property
    def count(self) -> int:
        return self.tally.count

    def add(self, fact: AttributeLoaded) -> None:
        self.tally.add(fact.duration)
        add_counts(self.entities, {fact.entity: 1})
        add_counts(self.written, {fact.written: 1})


class RefreshAfterWrite(BuiltIn):
    """`refresh-after-write`: `refresh()` reads back what was written just before."""

    candidates = (AttributeLoaded,)
    counts_repeats = True

    def memory(self) -> Recent[CallSite | None, _Refreshes]:
        """Return the refreshes of each line."""
        return Recent(_Refreshes)

    def judge(
        self, fact: AttributeLoaded, report: Report, memory: Recent[CallSite | None, _Refreshes]
    ) -> Iterator[Finding]:
        """Report each line once."""
        write = report.ledger.last_write
        if not fact.written or write is None:
            return
        refreshes = memory.of(fact.site)
        refreshes.add(fact)
        if refreshes.count == report.settings.refreshes_from_one_site - 1:
            refreshes.passed = report.ledger.locator.passed()
        if refreshes.count == report.settings.refreshes_from_one_site:
            yield _refreshed(fact, refreshes, write[:2], report)


# Why the values are there without a refresh, by what has written them.
_WHY: Final = {
    "INSERT": "an INSERT returns generated values if the database supports RETURNING",
    "UPDATE": "an object has the values that its UPDATE has written",
}


def _refreshed(
    fact: AttributeLoaded,
    refreshes: _Refreshes,
    write: tuple[str, CallSite | None],
    report: Report,
) -> Finding:
    (what, site), count, entities = write, refreshes.count, refreshes.entities
    is_any = len(entities) > 1  # one helper writes and refreshes objects of any class
    loop = looping(refreshes.passed, report)
    # Other callers of a shared function may need it.
    remedy = f"remove refresh(){elsewhere(loop, fact.site, 'or leave it out in the loop at')}"
    if fact.expired_by == "commit":
        remedy = f"{remedy}, and use {maker(report)}"
    return report.finding(
        "refresh-after-write",
        "info",
        f"{listed(list(entities))} {'were' if is_any else 'was'} refreshed directly after a {what} "
        f"at least {count} times{' in all' if is_any else ''}, one SELECT each",
        remedy,
        fact.site,
        entity=None if is_any else fact.entity or None,
        count=count,
        total=Total("SELECT", refreshes.tally),
        evidence={
            **known(
                loop=loop,
                entities=entities if is_any else None,
                committed_at=site if what == "commit" else None,
                flushed_at=site if what == "flush" else None,
            ),
            "why": ", and ".join(_WHY[by] for by in sorted(refreshes.written)),
            "alternatives": [
                '__mapper_args__ = {"eager_defaults": True}  # for values generated by an UPDATE'
            ],
        },
    )


class _Read:
    """The objects of one class that one line refreshes, with no write in between."""

    __slots__ = ("_before", "objects", "passed", "tally")

    def __init__(self) -> None:
        self.objects: set[int] = set()
        self.passed: Passed = {}
        self.tally = Tally()
        self._before = (0, 0)

    def add(self, fact: AttributeLoaded, before: tuple[int, int], most: int) -> bool:
        """Take a refresh into account. Return whether it is one of another object."""
        if before != self._before:
            self._before = before
            if len(self.objects) < most:
                self.objects.clear()
                self.tally = Tally()
        self.tally.add(fact.duration)
        count = len(self.objects)
        if count < most:
            self.objects.add(fact.parent)
        return len(self.objects) > count


class RefreshInLoop(BuiltIn):
    """`refresh-in-loop`: objects are read again one by one."""

    candidates = (AttributeLoaded,)
    counts_repeats = True

    def memory(self) -> Recent[tuple[CallSite | None, str], _Read]:
        """Return what each line has refreshed of each mapped class."""
        return Recent(_Read)

    def judge(
        self,
        fact: AttributeLoaded,
        report: Report,
        memory: Recent[tuple[CallSite | None, str], _Read],
    ) -> Iterator[Finding]:
        """Report each line and mapped class once.

        After a write, or in another transaction, the objects are counted again: the values that
        come then are others. What is written just before is reported as `refresh-after-write`.
        """
        ledger, enough = report.ledger, report.settings.refreshes_from_one_site
        if fact.kind != "refresh" or fact.written:
            return
        before = (ledger.transactions, max(ledger.writes.values(), default=0))
        read = memory.of((fact.site, fact.entity))
        if not read.add(fact, before, enough):
            return
        if len(read.objects) == enough - 1:
            read.passed = ledger.locator.passed()
        if len(read.objects) != enough:
            return
        if ledger.locator.is_repeated(read.passed, ledger.opened_site) is False:
            return
        if _FOLLOWED in fact.options or not walks(read.passed, report):
            yield _read_again(fact, read, enough, report)


# An option that loads a whole tree, also where what a turn reads is known only by the turn before.
_FOLLOWED: Final = "recursion_depth=-1"


def _read_again(fact: AttributeLoaded, read: _Read, count: int, report: Report) -> Finding:
    loop = looping(read.passed, report)
    entity, place = fact.entity, elsewhere(loop, fact.site)
    names = dotted_each(entity, fact.attribute) if fact.attribute else []
    rows = f".where({entity}.{fact.key}.in_(keys))" if fact.key else ""
    options = f".options({fact.options})" if fact.options else ""
    again = f"select({entity}){rows}{options}.execution_options(populate_existing=True)"
    remedy, others = f"{again}  # before the loop{place}", None
    if fact.root:
        remedy = selecting_with(fact.root, fact.options, fact, report)
        if fact.root == entity and _FOLLOWED not in fact.options:
            others = [f"{again}  # if {listed(names)} had been loaded before"]
    return report.finding(
        "refresh-in-loop",
        "warning",
        f"at least {count} {entity} objects were refreshed, one SELECT each",
        remedy,
        fact.site,
        entity=entity or None,
        attribute=fact.attribute if len(names) == 1 else None,
        count=count,
        total=Total("SELECT", read.tally),
        evidence=known(
            loop=loop,
            statement=fact.sql or None,
            loaded_at=fact.loaded_site if fact.root else None,
            attributes=names or None,
            alternatives=others,
        ),
    )
