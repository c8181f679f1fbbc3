"""Finds SELECTs that run again and again, with the same parameters or with others."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from session_tracer.detectors.evidence import is_reported_at, known, looping
from session_tracer.detectors.looping import Due, goes_in_chunks, tree, walks
from session_tracer.detectors.memory import Recent
from session_tracer.detectors.protocol import BuiltIn
from session_tracer.detectors.wording import awaited, elsewhere, listed
from session_tracer.facts import StatementExecuted
from session_tracer.model.totals import Tally, Total
from session_tracer.where.iteration import asks_by_item, goes_over, may_write

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping

    from session_tracer.facts import OfKey
    from session_tracer.ledger.ledger import Ledger
    from session_tracer.ledger.loads import Passed
    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding
    from session_tracer.where.callsite import CallSite
    from session_tracer.where.iteration import Iteration

# A SELECT after such a pause waited for something: a message, or the next round of a poll.
_PAUSE: Final = 1_000_000_000
_MOST_SELECTS: Final = 1_000
# What is a part of a larger result only if the loop does not go over items, or over their lists.
_STEPS: Final[Mapping[str, frozenset[Iteration]]] = {
    "next": frozenset({"items", "groups"}),
    "list": frozenset({"groups"}),
}


def _is_counted(fact: StatementExecuted) -> bool:
    # The SELECTs of an eager loader belong to the SELECT before. Those of a flush without a mapped
    # class read, for example, the next value of a sequence.
    return (
        fact.operation == "SELECT"
        and fact.fingerprint != 0
        and not (fact.eager or fact.error or (fact.in_flush and not fact.entity))
    )


class _Repeats:
    """The last runs of one SELECT with the same parameters: numbers, lines and durations."""

    __slots__ = ("_last", "_runs", "_tally", "is_reported", "kept", "passed", "text")

    def __init__(self) -> None:
        self.is_reported = False
        self.passed: Passed = {}
        # The objects that the line has brought into the session, one run before the finding.
        self.kept: frozenset[Hashable] = frozenset()
        self.text = 0
        self._runs: tuple[tuple[int, CallSite | None, int], ...] = ()
        self._last = 0
        self._tally = Tally()

    def add(self, fact: StatementExecuted, most: int) -> None:
        self._runs = (*self._runs[1 - most :], (fact.number, fact.site, fact.duration))
        self.text = fact.text

    def total(self) -> Total:
        """Return a total of the runs, which `again()` adds to."""
        for number, _, duration in self._runs:
            self._last = number
            self._tally.add(duration)
        return Total("SELECT", self._tally)

    def again(self, fact: StatementExecuted, is_current: Callable[[int], bool]) -> None:
        """Count a run after the finding, if the one before would have been enough."""
        if is_current(self._last):
            self._tally.add(fact.duration)
        self._last = fact.number

    def begin_anew(self) -> None:
        """Forget all runs."""
        self._runs = ()

    def ran_between(self, other: _Repeats) -> bool:
        """Return whether these parameters ran at the line between the last two runs of others."""
        (before, site, _), _ = other._runs[-2:]
        return self.text == other.text and any(
            number > before and at == site for number, at, _ in self._runs[-1:]
        )

    def forget(self, is_current: Callable[[int], bool]) -> None:
        """Forget the first runs that do not count any more."""
        while self._runs and not is_current(self._runs[0][0]):
            self._runs = self._runs[1:]

    @property
    def count(self) -> int:
        return len(self._runs)

    @property
    def sites(self) -> list[CallSite | None]:
        return list(dict.fromkeys(site for _, site, _ in self._runs))


class _Asked:
    """What one line asked with one SELECT and different parameters, in one transaction."""

    __slots__ = (
        "_at",
        "_transaction",
        "due",
        "found",
        "is_batched",
        "made_before",
        "most_steps",
        "number",
        "parts",
        "passed",
        "steps",
        "subject",
        "tally",
        "unknown",
    )

    def __init__(self) -> None:
        # The id of the finding about it, or about another SELECT that lists this one.
        self.found = ""
        self.subject = ""
        self.due = Due()
        self.passed: Passed = {}
        # Whether one of them asked for several keys at once.
        self.is_batched = False
        # The keys by what else differs, and how many of them one SELECT can ask for.
        self.parts: dict[int, set[int]] = {}
        self.number = 0
        self.unknown = 0
        # The parameters of what reads the next rows, or the rows of a list.
        # Those that read parts: by the values that choose no rows, which a step does not change.
        self.steps: dict[int, set[int]] = {}
        self.most_steps = 0
        self.tally = Tally()
        # How many new objects of its class the session had written when it ran first.
        self.made_before = 0
        self._transaction = 0
        self._at = 0

    def is_reported(self, report: Report) -> bool:
        """Whether that finding was reported: it may be ignored, or silenced."""
        return bool(self.found) and report.was_reported(self.found)

    def add(self, fact: StatementExecuted, ledger: Ledger) -> tuple[bool, bool]:
        """Take a SELECT into account. Return whether it is another one, and another step."""
        transaction = ledger.transactions
        if transaction != self._transaction or fact.at - fact.duration > self._at + _PAUSE:
            self._transaction = transaction
            self.made_before = ledger.new.get(fact.entity, 0)
            self.parts.clear()
            self.number = self.unknown = 0
            self.steps.clear()
            self.most_steps = 0
            if not self.found:
                self.tally = Tally()
        self._at = fact.at
        self.tally.add(fact.duration)
        self.subject = fact.entity or fact.collection
        before, steps = self.number, self.most_steps
        # What was not known may have been other pages of one result.
        self.unknown = 0 if fact.part == "page" else self.unknown + (fact.part == "unknown")
        if fact.part_of and before < _MOST_SELECTS and len(self.parts) < _MOST_SELECTS:
            keys = self.parts.setdefault(fact.group, set())
            keys.add(fact.part_of)
            # If two of these differ, so do those of which it is not known.
            self.number = max(before, len(keys) + self.unknown * (len(keys) > 1))
        self.is_batched = self.is_batched or fact.part == "list"
        if fact.part in _STEPS and steps < _MOST_SELECTS and len(self.steps) < _MOST_SELECTS:
            alike = self.steps.setdefault(fact.ignored, set())
            alike.add(fact.fingerprint)
            self.most_steps = max(steps, len(alike))
        return self.number > before, self.most_steps > steps


class _Selects:
    """The SELECTs of one scope: by their parameters, and by their line and text."""

    def __init__(self) -> None:
        self.repeats: Recent[int, _Repeats] = Recent(_Repeats)
        self.asked: Recent[tuple[CallSite | None, int], _Asked] = Recent(_Asked)


class RepeatedSelects(BuiltIn):
    """`repeated-select` and `query-in-loop`: the same SELECT runs again and again.

    The former has the same parameters each time, the latter others.
    """

    candidates = (StatementExecuted,)
    counts_repeats = True
    memory = _Selects

    def judge(self, fact: StatementExecuted, report: Report, memory: _Selects) -> Iterator[Finding]:
        """Report each SELECT and its parameters once, or each line and SELECT once."""
        ledger = report.ledger
        # This comes before begin(): facts of other kinds are judged before the first SELECTs end.
        if ledger.last_load is not None or not _is_counted(fact):
            return
        first = ledger.first_selects if memory.repeats.begin() else ()
        earlier = tuple(filter(_is_counted, first))
        if fact.reads:
            yield from _same(fact, earlier, report, memory)
        yield from _different(fact, earlier, report, memory)


def _same(
    fact: StatementExecuted,
    earlier: tuple[StatementExecuted, ...],
    report: Report,
    memory: _Selects,
) -> Iterator[Finding]:
    """Yield the finding about a SELECT that has run with the same parameters often enough."""
    ledger, enough = report.ledger, report.settings.repeats_of_one_select
    for one in earlier:
        if one.reads:
            memory.repeats.of(one.fingerprint).add(one, enough)
    repeats = memory.repeats.of(fact.fingerprint)
    is_current = partial(ledger.reads_the_same, fact.reads)
    if repeats.is_reported:
        repeats.again(fact, is_current)
        return
    repeats.add(fact, enough)
    if repeats.count == enough:
        repeats.forget(is_current)
    if repeats.count == enough - 1:
        repeats.passed = ledger.locator.passed()
        repeats.kept = ledger.counter.brought_from(fact.site)
    elif repeats.count == enough:
        is_poll = _is_poll(repeats, report, memory)
        # An object that stays in the session keeps its values: the poll does not see a change.
        is_stale = not repeats.kept.isdisjoint(ledger.counter.brought_from(fact.site))
        if is_poll and not is_stale:
            repeats.begin_anew()
            return
        repeats.is_reported = True
        asked = memory.asked.of((fact.site, fact.query))
        # What runs with different parameters, too, is reported as one of both; and what flushes, as
        # the first of both.
        is_other = asked.found == "query-in-loop" and asked.is_reported(report)
        if not (is_other or is_reported_at("autoflush-storm", fact.site, report)):
            asked.found = "repeated-select"
            yield _repeated(fact, repeats, report, is_poll=is_poll)


def _is_poll(repeats: _Repeats, report: Report, memory: _Selects) -> bool:
    """Return whether the SELECT waits for a change.

    What runs with other parameters in between does not, as where each round reads a list in pages.
    """
    others = (one for one in memory.repeats.values() if one is not repeats)
    return not any(one.ran_between(repeats) for one in others) and report.ledger.locator.is_polling(
        repeats.passed, report.ledger.opened_site
    )


def _repeated(
    fact: StatementExecuted, repeats: _Repeats, report: Report, *, is_poll: bool
) -> Finding:
    subject = fact.entity or fact.collection
    where = " from one line" if fact.site is not None else ""
    evidence: dict[str, Any] = {}
    if len(repeats.sites) > 1:
        where, evidence = " from several lines", known(first_at=repeats.sites[0])
    if fact.by_key:
        what = f"{subject} was looked up by the same primary key at least {repeats.count} times"
        why = (
            "the row does not exist, or the application kept no reference to the object: "
            "the identity map refers to it weakly"
        )
    else:
        of = f" of {subject}" if subject else ""
        what = f"the same SELECT{of} with the same parameters ran at least {repeats.count} times"
        why = "the identity map is not a query cache: only get() can return without a SELECT"
    loop = looping(repeats.passed, report)
    commit = f"{awaited(report)}session.commit(){_EACH}"
    alternatives = [commit]
    if is_poll:
        why = "an object in the session keeps its values until it expires, so no change is seen"
        remedy, alternatives = commit, [".execution_options(populate_existing=True)"]
    elif loop is not None and _asks_by_item(fact, loop, report):
        # These were the same; the next one may be another.
        remedy = _one_for_all(fact, subject, loop)
        alternatives = ["keep its results by their parameters, in a dict"]
    else:
        remedy = _once(fact, loop, repeats, report)
        if loop is None or len(repeats.sites) > 1 or goes_over(loop):
            alternatives = []  # nothing waits there for a change
    return report.finding(
        "repeated-select",
        "warning",
        what + where,
        remedy,
        fact.site,
        entity=fact.entity or None,
        count=repeats.count,
        total=repeats.total(),
        evidence={
            **known(loop=loop, statement=fact.sql or None),
            "why": why,
            **evidence,
            **known(alternatives=alternatives or None),
        },
    )


_EACH: Final = "  # before each read, to see what others have committed"


def _asks_by_item(fact: StatementExecuted, loop: CallSite, report: Report) -> bool:
    if fact.site is None:
        return False
    lines = report.ledger.locator.called_from(fact.site, loop)
    return bool(lines) and asks_by_item(lines)


def _once(fact: StatementExecuted, loop: CallSite | None, repeats: _Repeats, report: Report) -> str:
    """Return where to run the SELECT once, and until when its result can be kept."""
    ledger = report.ledger
    caller = ledger.locator.in_a_row(repeats.passed)
    if caller is not None and fact.site is not None and caller.function != fact.site.function:
        return f"run it once in {caller.function}() and pass the result on"
    table = fact.entity or fact.collection
    if loop is not None and ledger.has_written(fact.reads):
        return f"run it once in each turn of the loop at {loop}, or until it writes {table}"
    once = f"run it once{elsewhere(loop, fact.site, 'before the loop at')} and keep the result"
    if loop is None or fact.site is None or caller is not None:
        return once
    lines = ledger.locator.called_from(fact.site, loop)
    return f"{once} until the loop writes {table}" if lines and may_write(lines, table) else once


def _is_query(fact: StatementExecuted) -> bool:
    """Whether it is a query of the application's own for rows of a table; `get()` is another."""
    return bool(fact.query and fact.collection) and not fact.by_key


def _different(
    fact: StatementExecuted,
    earlier: tuple[StatementExecuted, ...],
    report: Report,
    memory: _Selects,
) -> Iterator[Finding]:
    """Yield the finding about a SELECT that has run with different parameters often enough."""
    ledger, enough = report.ledger, report.settings.queries_from_one_site
    for one in earlier:
        if _is_query(one) and one.number > ledger.statements_before:
            memory.asked.of((one.site, one.query)).add(one, ledger)
    if not _is_query(fact):
        return
    asked = memory.asked.of((fact.site, fact.query))
    is_other, is_step = asked.add(fact, ledger)
    if asked.found == "query-in-loop":
        return
    if is_step and _is_of_items(fact, asked, report):
        yield _in_loop(fact, enough, report, memory)
        return
    if not is_other:
        return
    if asked.is_reported(report) or is_reported_at("autoflush-storm", fact.site, report):
        return
    is_behind = asked.unknown > 0
    if not asked.due.is_reached(asked.number, enough, report, is_behind=is_behind):
        return
    asked.passed = asked.due.passed
    if fact.part == "one" and goes_in_chunks(asked.passed, report):
        return
    # The next OFFSET does not depend on the row before.
    is_walk = fact.of_key != "offset" and walks(asked.passed, report)
    if not is_walk or (fact.is_tree and not asked.is_batched):
        yield _in_loop(fact, asked.number, report, memory, is_walk=is_walk)


def _is_of_items(fact: StatementExecuted, asked: _Asked, report: Report) -> bool:
    """Return whether the parts are none, because the loop that reads them goes over items.

    The next rows after each row of another SELECT are no pages, and a list for each key of a
    mapping is no chunk of a longer one.
    """
    locator, enough = report.ledger.locator, report.settings.queries_from_one_site
    if asked.most_steps == enough - 1:
        asked.passed = locator.passed()
    if asked.most_steps != enough or asked.is_reported(report):
        return False
    loop = locator.loop(asked.passed, report.ledger.opened_site)
    return loop is not None and goes_over(loop) in _STEPS[fact.part]


# How one SELECT reads for all keys what the loop reads for each.
_FIRST: Final = "func.row_number().over(partition_by=...)"
_FOR_ALL: Final[Mapping[OfKey, str]] = {
    "rows": "with .in_(...) or a join",
    "aggregate": "with .group_by(...) for all keys",
    "one": f"with .in_(...), and {_FIRST} if a key has several rows,",
    "first": f"with {_FIRST}",
    "offset": "without .offset(...)",
    "next": f"with a join and {_FIRST}",
}


def _before(loop: CallSite | None, site: CallSite | None) -> str:
    if loop is None and site is not None and not site.function.startswith("<"):
        return f" for all calls of {site.function}()"
    return elsewhere(loop, site, "before the loop at") or " before the loop"


def _one_for_all(fact: StatementExecuted, what: str, loop: CallSite | None) -> str:
    return f"run one SELECT of {what} {_FOR_ALL[fact.of_key]}{_before(loop, fact.site)}"


def _in_loop(
    fact: StatementExecuted,
    number: int,
    report: Report,
    memory: _Selects,
    *,
    is_walk: bool = False,
) -> Finding:
    asked = memory.asked.of((fact.site, fact.query))
    asked.found = "query-in-loop"
    # In a loop that runs several SELECTs at this line, the others are one round behind.
    subjects, tallies = {asked.subject: None}, [asked.tally]
    for (site, _), other in memory.asked.items():
        if site == fact.site and not other.found and other.number == number - 1:
            other.found = "query-in-loop"
            subjects[other.subject] = None
            tallies.append(other.tally)
    loop = looping(asked.passed, report)
    what = listed(list(subjects))
    remedy = tree(what, loop, fact.site) if is_walk else _one_for_all(fact, what, loop)
    made = report.ledger.new.get(fact.entity, 0) - asked.made_before
    if fact.of_key == "rows" and made > 1:
        # An autoflush has written what the loop adds, so that the next SELECT finds it.
        remedy += f", and add each new {fact.entity} to its result"
    return report.finding(
        "query-in-loop",
        "warning",
        f"the same SELECT of {what} ran with at least {number} different parameters"
        + (" from one line" if fact.site is not None else ""),
        remedy,
        fact.site,
        entity=fact.entity or None,
        count=number,
        total=Total("SELECT", *tallies),
        evidence=known(loop=loop, table=fact.collection or None, statement=fact.sql or None),
    )
