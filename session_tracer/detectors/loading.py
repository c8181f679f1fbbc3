"""Finds what is loaded one by one, or again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from session_tracer.detectors.evidence import places
from session_tracer.detectors.missing import expired_by, expiry
from session_tracer.detectors.recent import Recent
from session_tracer.detectors.wording import dotted_each, listed
from session_tracer.facts import (
    AttributeLoaded,
    StatementExecuted,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from session_tracer.callsite import CallSite
    from session_tracer.findings import Finding
    from session_tracer.record import SessionRecord

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


class NPlusOne:
    """`n-plus-one`: an attribute is lazily loaded for each of many objects."""

    facts = (AttributeLoaded,)

    def memory(self) -> Recent[tuple[CallSite | None, str, str], _Distinct]:
        """The objects that each line has loaded each attribute for."""
        return Recent(_Distinct)

    def judge(
        self,
        fact: AttributeLoaded,
        record: SessionRecord,
        memory: Recent[tuple[CallSite | None, str, str], _Distinct],
    ) -> Iterator[Finding]:
        """One finding for each attribute and line."""
        # What a commit expired is another finding, with another remedy.
        if fact.kind not in ("relationship", "deferred") or fact.expired_by == "commit":
            return
        enough = record.settings.lazy_loads_from_one_site
        if memory.of((fact.site, fact.entity, fact.attribute)).reach(fact.parent, enough):
            yield _n_plus_one(fact, enough, record)


def _n_plus_one(fact: AttributeLoaded, count: int, record: SessionRecord) -> Finding:
    names = dotted_each(fact.entity, fact.attribute)
    evidence: dict[str, Any] = places(loaded_at=fact.loaded_site, expired_at=fact.expired_site)
    if len(names) > 1:
        evidence["attributes"] = names
    if fact.expired_by:
        evidence["why"] = f"{expired_by(fact)} expired whatever had been loaded before"
    elif fact.left_out:
        evidence["why"] = "a SELECT of the base class leaves out the columns of its subclasses"
    return record.finding(
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


class GetInLoop:
    """`get-in-loop`: objects are looked up by primary key one by one."""

    facts = (AttributeLoaded, StatementExecuted)

    def memory(self) -> _Lookups:
        """The keys that each line has looked up."""
        return _Lookups()

    def judge(
        self, fact: AttributeLoaded | StatementExecuted, record: SessionRecord, memory: _Lookups
    ) -> Iterable[Finding]:
        """One finding for each mapped class and line."""
        if isinstance(fact, AttributeLoaded):
            memory.is_load = True
            return ()
        is_load, memory.is_load = memory.is_load, False
        if is_load or not fact.by_key or not fact.fingerprint or fact.error:
            return ()
        enough = record.settings.gets_from_one_site
        if not memory.keys.of((fact.site, fact.entity)).reach(fact.fingerprint, enough):
            return ()
        return (_looked_up(fact, enough, record),)


class _Lookups:
    """Which keys were looked up, by line and mapped class.

    An AttributeLoaded tells why the next statement runs: that one is a lazy load or a refresh.
    """

    __slots__ = ("is_load", "keys")

    def __init__(self) -> None:
        self.is_load = False
        self.keys: Recent[tuple[CallSite | None, str], _Distinct] = Recent(_Distinct)


def _looked_up(fact: StatementExecuted, count: int, record: SessionRecord) -> Finding:
    entity = fact.entity or fact.collection
    if fact.entity and fact.key:
        remedy = f"select({entity}).where({entity}.{fact.key}.in_(keys))"
    else:
        remedy = f"one select({entity}) for all keys, before the loop"
    return record.finding(
        "get-in-loop",
        "warning",
        f"{entity} was looked up by {count} different primary keys so far, one SELECT each",
        remedy,
        fact.site,
        entity=fact.entity or None,
        count=count,
    )


class RepeatedSelect:
    """`repeated-select`: the same SELECT runs with the same parameters again and again."""

    facts = (AttributeLoaded, StatementExecuted)

    def memory(self) -> _Selects:
        """How often each SELECT ran."""
        return _Selects()

    def judge(
        self, fact: AttributeLoaded | StatementExecuted, record: SessionRecord, memory: _Selects
    ) -> Iterable[Finding]:
        """One finding for each SELECT with its parameters."""
        if isinstance(fact, AttributeLoaded):
            memory.is_load = True
            return ()
        # A load of an attribute that runs again is another finding, and so is what an eager loader
        # reads after the SELECT it belongs to. What a flush asks for, such as the next value of a
        # sequence, has no mapped class.
        is_load, memory.is_load = memory.is_load, False
        if is_load or not fact.fingerprint or fact.eager or fact.error:
            return ()
        if fact.operation != "SELECT" or (fact.in_flush and not fact.entity):
            return ()
        repeats = memory.by_fingerprint.of(fact.fingerprint)
        repeats.add(fact.site)
        if repeats.count != record.settings.repeats_of_one_select:
            return ()
        return (_repeated(fact, repeats, record),)


class _Repeats:
    """How often one SELECT ran, and from which lines."""

    __slots__ = ("count", "first_site", "is_one_site")

    def __init__(self) -> None:
        self.count = 0
        self.first_site: CallSite | None = None
        self.is_one_site = True

    def add(self, site: CallSite | None) -> None:
        """Take one more run into account."""
        self.count += 1
        if self.count == 1:
            self.first_site = site
        elif site != self.first_site:
            self.is_one_site = False


class _Selects:
    """The SELECTs of a scope, and whether the next statement loads an attribute."""

    __slots__ = ("by_fingerprint", "is_load")

    def __init__(self) -> None:
        self.is_load = False
        self.by_fingerprint: Recent[int, _Repeats] = Recent(_Repeats)


def _repeated(fact: StatementExecuted, repeats: _Repeats, record: SessionRecord) -> Finding:
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
    return record.finding(
        "repeated-select",
        "warning",
        what + where,
        "run it once, and keep what it returned",
        fact.site,
        entity=fact.entity or None,
        count=repeats.count,
        evidence=evidence,
    )
