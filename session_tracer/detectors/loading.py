"""Finds objects and attributes that are loaded one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from session_tracer.detectors.evidence import known, looping
from session_tracer.detectors.looping import Due, tree, walks
from session_tracer.detectors.memory import Recent
from session_tracer.detectors.protocol import BuiltIn
from session_tracer.detectors.selecting import selecting_with
from session_tracer.detectors.wording import (
    dotted_each,
    elsewhere,
    expired_by,
    listed,
)
from session_tracer.facts import AttributeLoaded, StatementExecuted
from session_tracer.model.totals import Tally, Total

if TYPE_CHECKING:
    from collections.abc import Iterator

    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding
    from session_tracer.where.callsite import CallSite


class NPlusOne(BuiltIn):
    """`n-plus-one`: an attribute is lazily loaded for each of many objects."""

    candidates = (AttributeLoaded,)

    def judge(self, fact: AttributeLoaded, report: Report, memory: None) -> Iterator[Finding]:
        """Report each attribute and line once. The ledger counts the objects.

        An attribute that a commit expired is reported as `reload-after-commit`.
        """
        del memory
        loads, enough = report.ledger.loads, report.settings.lazy_loads_from_one_site
        is_lazy = fact.kind in ("relationship", "deferred") and fact.expired_by != "commit"
        if loads is None or loads.count != enough or not is_lazy:
            return
        names, why = dotted_each(fact.entity, fact.attribute), None
        if fact.expired_by:
            why = f"{expired_by(fact)} expired everything that was loaded before"
        elif fact.for_delete:
            why = "session.delete() has the rows looked for that refer to the object"
        elif fact.left_out:
            why = "a SELECT of the base class does not load the columns of its subclasses"
        remedy, others = _load_together(fact, names, report), None
        if fact.replacement and not fact.expired_by:
            few = f"select({fact.root}).where(...).options({fact.options})"
            others = [f"{few} before the loop, for the few objects that need it"]
        if fact.on_delete:
            passive = _passive(listed(names), fact)
            if report.ledger.system == "sqlite":
                # Unless an application asks for it, SQLite deletes no rows that refer to others.
                others = [f"{passive} and PRAGMA foreign_keys = ON"]
            else:
                remedy, others = passive, [remedy]
        yield report.finding(
            "n-plus-one",
            "warning",
            f"{listed(names)} {_how(fact, len(names))} loaded for at least {enough} "
            f"{fact.entity} objects, one SELECT each",
            remedy,
            fact.site,
            entity=fact.entity or None,
            attribute=fact.attribute or None if len(names) == 1 else None,
            count=enough,
            total=Total("SELECT", loads.tally),
            evidence=known(
                loop=looping(loads.passed, report),
                statement=fact.sql or None,
                loaded_at=fact.loaded_site,
                expired_at=fact.expired_site,
                attributes=names if len(names) > 1 else None,
                why=why,
                alternatives=others,
            ),
        )


def _how(fact: AttributeLoaded, count: int) -> str:
    are, were = ("are", "were") if count > 1 else ("is", "was")
    if fact.kind == "relationship":
        return f"{were} lazily"
    return were if fact.left_out else f"{are} deferred, and {were}"


def _passive(names: str, fact: AttributeLoaded) -> str:
    passive = f"relationship(passive_deletes=True)  # for {names}"
    if fact.on_delete == "declared":
        return f"{passive}, with the ondelete that its foreign key has"
    return f'{passive}, with ForeignKey(ondelete="{fact.on_delete}")'


def _load_together(fact: AttributeLoaded, names: list[str], report: Report) -> str:
    options = fact.options
    if not options and fact.kind == "deferred" and fact.attribute:
        options = ", ".join(f"undefer({name})" for name in names)
    if not options:
        return f"load {listed(names)} for all objects with one SELECT before the loop"
    return selecting_with(fact.root or fact.entity, options, fact, report)


def _is_lookup(fact: StatementExecuted) -> bool:
    return fact.by_key and fact.fingerprint != 0 and not fact.error


_MOST_KEYS: Final = 1_000


class _Lookups:
    """The keys that one line looked up."""

    __slots__ = ("due", "is_listed", "keys", "tally")

    def __init__(self) -> None:
        # Whether a finding lists this mapped class: its own one, or one about another of the line.
        self.is_listed = False
        self.keys: set[int] = set()
        self.due = Due()
        self.tally = Tally()

    def add(self, key: int, duration: int) -> bool:
        """Return whether the key is another one."""
        self.tally.add(duration)
        is_new = key not in self.keys and len(self.keys) < _MOST_KEYS
        if is_new:
            self.keys.add(key)
        return is_new


class GetInLoop(BuiltIn):
    """`get-in-loop`: objects are looked up by primary key one by one."""

    candidates = (StatementExecuted,)
    counts_repeats = True

    def memory(self) -> Recent[tuple[CallSite | None, str], _Lookups]:
        """Return the keys that each line looked up of each mapped class."""
        return Recent(_Lookups)

    def judge(
        self,
        fact: StatementExecuted,
        report: Report,
        memory: Recent[tuple[CallSite | None, str], _Lookups],
    ) -> Iterator[Finding]:
        """Report each mapped class and line once; of several classes in one loop, all together."""
        ledger, enough = report.ledger, report.settings.gets_from_one_site
        # This comes before begin(): facts of other kinds are judged before the first SELECTs end.
        if ledger.last_load is not None or not _is_lookup(fact):
            return
        earlier = ledger.first_selects if memory.begin() else ()
        is_new, lookups = False, _Lookups()
        for select in filter(_is_lookup, (*earlier, fact)):
            lookups = memory.of((select.site, select.entity))
            is_new = lookups.add(select.fingerprint, select.duration)
        number = len(lookups.keys)
        if not is_new or lookups.is_listed or not lookups.due.is_reached(number, enough, report):
            return
        is_walk = walks(lookups.due.passed, report)
        if is_walk and not fact.is_tree:
            return
        # In a loop that looks up several classes, the others are one round behind.
        counts, tallies = {fact.entity: number}, [lookups.tally]
        lookups.is_listed = True
        for (site, other), more in memory.items():
            if site == fact.site and other not in counts and len(more.keys) == number - 1:
                more.is_listed = True
                counts[other] = number - 1
                tallies.append(more.tally)
        loop = looping(lookups.due.passed, report)
        entity, place = fact.entity or fact.collection, elsewhere(loop, fact.site)
        remedy = f"run one select({entity}) for all keys before the loop{place}"
        if is_walk:
            remedy = tree(entity, loop, fact.site)
        elif fact.entity and fact.key:
            remedy = f"select({entity}).where({entity}.{fact.key}.in_(keys))"
            if place:
                remedy += f"  # before the loop{place}"
        yield report.finding(
            "get-in-loop",
            "warning",
            f"{listed(list(counts)) if len(counts) > 1 else entity} "
            f"{'were' if len(counts) > 1 else 'was'} looked up by at least "
            f"{min(counts.values())} different primary keys, one SELECT each",
            remedy,
            fact.site,
            entity=fact.entity or None,
            count=number,
            total=Total("SELECT", *tallies),
            evidence=known(loop=loop, entities=counts if len(counts) > 1 else None),
        )
