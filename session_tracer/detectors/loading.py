"""Finds what is loaded one by one, or again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from session_tracer.detectors.evidence import places
from session_tracer.detectors.missing import expired_by, expiry
from session_tracer.detectors.recent import Recent, remember
from session_tracer.detectors.wording import dotted_each, listed
from session_tracer.facts import AttributeLoaded, StatementExecuted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding
    from session_tracer.where.callsite import CallSite

__all__ = ["GetInLoop", "NPlusOne", "RepeatedSelect"]


class _Distinct:
    """Different ones, until there are enough of them."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def reach(self, one: int, enough: int) -> bool:
        """Whether there are enough with this one, and there were not without it."""
        if len(self._seen) >= enough or one in self._seen:
            return False
        self._seen.add(one)
        return len(self._seen) == enough


def _never_loaded(fact: AttributeLoaded) -> bool:
    # What a commit expired is another finding, with another remedy.
    return fact.expired_by != "commit" and fact.kind in ("relationship", "deferred")


class NPlusOne:
    """`n-plus-one`: an attribute is lazily loaded for each of many objects."""

    facts: Final = ()
    candidates = (AttributeLoaded,)

    def memory(self) -> None:
        """The ledger counts the objects for which each line has loaded each attribute."""

    def judge(self, fact: AttributeLoaded, report: Report, memory: None) -> Iterable[Finding]:
        """One finding for each attribute and line."""
        del memory
        loads, enough = report.ledger.loads, report.settings.lazy_loads_from_one_site
        if loads is None or loads.count != enough or not _never_loaded(fact):
            return ()
        return (_n_plus_one(fact, enough, report),)


def _n_plus_one(fact: AttributeLoaded, count: int, report: Report) -> Finding:
    names = dotted_each(fact.entity, fact.attribute)
    evidence: dict[str, Any] = places(loaded_at=fact.loaded_site, expired_at=fact.expired_site)
    if len(names) > 1:
        evidence["attributes"] = names
    if fact.expired_by:
        evidence["why"] = f"{expired_by(fact)} expired whatever had been loaded before"
    elif fact.left_out:
        evidence["why"] = "a SELECT of the base class leaves out the columns of its subclasses"
    return report.finding(
        "n-plus-one",
        "warning",
        f"{listed(names)} {_how(fact, len(names))} loaded for {count} {fact.entity} objects "
        "so far, one SELECT each",
        _load_together(fact, names),
        fact.site,
        entity=fact.entity or None,
        attribute=fact.attribute or None if len(names) == 1 else None,
        count=count,
        evidence=evidence,
    )


def _how(fact: AttributeLoaded, count: int) -> str:
    are, were = ("are", "were") if count > 1 else ("is", "was")
    if fact.kind == "relationship":
        return f"{were} lazily"
    return were if fact.left_out else f"{are} deferred, and {were}"


def _load_together(fact: AttributeLoaded, names: list[str]) -> str:
    options = fact.options
    if not options and fact.kind == "deferred" and fact.attribute:
        options = ", ".join(f"undefer({name})" for name in names)
    if not options:
        return f"one SELECT of {listed(names)} for all of them, before the loop"
    selected = f"select({fact.root or fact.entity}).options({options})"
    if fact.expired_by:
        return f"{selected} after {expiry(fact)}"
    site = fact.root_site or fact.loaded_site
    return selected if site is None else f"{selected} at {site}"


def _is_lookup(fact: StatementExecuted) -> bool:
    return fact.by_key and fact.fingerprint != 0 and not fact.error


class GetInLoop:
    """`get-in-loop`: objects are looked up by primary key one by one."""

    facts: Final = ()
    candidates = (StatementExecuted,)

    def memory(self) -> _Lookups:
        """The keys that each line has looked up of each mapped class."""
        return _Lookups()

    def judge(self, fact: StatementExecuted, report: Report, memory: _Lookups) -> Iterable[Finding]:
        """One finding for each mapped class and line."""
        # Before the memory begins: other facts are judged before all first SELECTs are known.
        if report.ledger.last_load is not None or not _is_lookup(fact):
            return ()
        enough = report.settings.gets_from_one_site
        if not memory.is_begun:
            memory.is_begun = True
            for earlier in report.ledger.first_selects:
                if _is_lookup(earlier):
                    memory.reach(earlier, enough)
        return (_looked_up(fact, enough, report),) if memory.reach(fact, enough) else ()


class _Lookups:
    """The keys that each line has looked up of each mapped class.

    It begins with the first few SELECTs, which the ledger has.
    """

    __slots__ = ("_by_line", "is_begun")

    def __init__(self) -> None:
        self.is_begun = False
        self._by_line: Recent[tuple[CallSite | None, str], _Distinct] = Recent(_Distinct)

    def reach(self, fact: StatementExecuted, enough: int) -> bool:
        """Whether this key is the one that makes them enough."""
        return self._by_line.of((fact.site, fact.entity)).reach(fact.fingerprint, enough)


def _looked_up(fact: StatementExecuted, count: int, report: Report) -> Finding:
    entity = fact.entity or fact.collection
    if fact.entity and fact.key:
        remedy = f"select({entity}).where({entity}.{fact.key}.in_(keys))"
    else:
        remedy = f"one select({entity}) for all keys, before the loop"
    return report.finding(
        "get-in-loop",
        "warning",
        f"{entity} was looked up by {count} different primary keys so far, one SELECT each",
        remedy,
        fact.site,
        entity=fact.entity or None,
        count=count,
    )


def _is_asked_for(fact: StatementExecuted) -> bool:
    # What an eager loader reads belongs to the SELECT before it. What a flush asks for, such as
    # the next value of a sequence, has no mapped class.
    return (
        fact.operation == "SELECT"
        and fact.fingerprint != 0
        and not (fact.eager or fact.error or (fact.in_flush and not fact.entity))
    )


class RepeatedSelect:
    """`repeated-select`: the same SELECT runs with the same parameters again and again."""

    facts: Final = ()
    candidates = (StatementExecuted,)

    def memory(self) -> _Selects:
        """How often each SELECT ran, by its fingerprint."""
        return _Selects()

    def judge(self, fact: StatementExecuted, report: Report, memory: _Selects) -> Iterable[Finding]:
        """One finding for each SELECT with its parameters."""
        # Before the memory begins: other facts are judged before all first SELECTs are known.
        if report.ledger.last_load is not None or not _is_asked_for(fact):
            return ()
        if not memory.is_begun:
            memory.is_begun = True
            for earlier in report.ledger.first_selects:
                if _is_asked_for(earlier):
                    memory.add(earlier)
        repeats = memory.add(fact)
        if repeats is None or repeats.count != report.settings.repeats_of_one_select:
            return ()
        return (_repeated(fact, repeats, report),)


class _Repeats:
    """How often one SELECT ran, and from which lines."""

    __slots__ = ("count", "first_site", "is_one_site")

    def __init__(self, first_site: CallSite | None) -> None:
        self.count = 1
        self.first_site = first_site
        self.is_one_site = True

    def add(self, site: CallSite | None) -> None:
        """Take one more run into account."""
        self.count += 1
        if site is not self.first_site and site != self.first_site:
            self.is_one_site = False


class _Selects:
    """How often each SELECT ran, by its fingerprint; of one that ran once, as most do, the line.

    It begins with the first few SELECTs, which the ledger has.
    """

    __slots__ = ("_by_fingerprint", "is_begun")

    def __init__(self) -> None:
        self.is_begun = False
        self._by_fingerprint: dict[int, _Repeats | CallSite | None] = {}

    def add(self, fact: StatementExecuted) -> _Repeats | None:
        """Take one more run into account; how often it ran, where it did before."""
        known = self._by_fingerprint.pop(fact.fingerprint, _NEVER)
        if known is _NEVER:
            remember(self._by_fingerprint, fact.fingerprint, fact.site)
            return None
        repeats = known if isinstance(known, _Repeats) else _Repeats(known)
        repeats.add(fact.site)
        self._by_fingerprint[fact.fingerprint] = repeats
        return repeats


# Stands for the SELECTs that never ran.
_NEVER: Final = _Repeats(None)


def _repeated(fact: StatementExecuted, repeats: _Repeats, report: Report) -> Finding:
    subject = fact.entity or fact.collection
    if repeats.is_one_site:
        where = ", all from one line" if fact.site is not None else ""
    else:
        where = ", from several lines"
    if fact.by_key:
        what = f"{subject} was looked up by the same primary key {repeats.count} times so far"
        why = "there is no such row, or nothing kept the object: the identity map holds it weakly"
    else:
        of = f" of {subject}" if subject else ""
        what = f"the same SELECT{of}, with the same parameters, ran {repeats.count} times so far"
        why = "the identity map is no query cache: only get() can spare a SELECT"
    evidence: dict[str, Any] = {"why": why}
    if not repeats.is_one_site:
        evidence |= places(first_at=repeats.first_site)
    return report.finding(
        "repeated-select",
        "warning",
        what + where,
        "run it once, and keep what it returned",
        fact.site,
        entity=fact.entity or None,
        count=repeats.count,
        evidence=evidence,
    )
