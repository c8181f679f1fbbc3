"""The sessions that one thread or task has open at the same time."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, cast

from session_tracer import facts
from session_tracer.ledger.owner_state import owner_state
from session_tracer.where.blocks import blocks_of
from session_tracer.where.callsite import called_before, is_in

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence
    from types import CodeType

    from sqlalchemy.engine import Connection

    from session_tracer.facts import Counts
    from session_tracer.ledger.in_progress import Holding, OpenTransaction
    from session_tracer.ledger.origin import Scope
    from session_tracer.ledger.report import Report, Tracer
    from session_tracer.ledger.use import Use
    from session_tracer.where.callsite import Callers, CallSite
    from session_tracer.where.owner import Owner

__all__ = [
    "ALONE",
    "Commit",
    "Member",
    "Neighbour",
    "committed",
    "forget",
    "hand_on",
    "join",
    "leave",
    "lock_holder",
    "nested_in",
]


class Commit(NamedTuple):
    """What one scope committed first, and where."""

    scope: Scope
    site: CallSite | None
    written: Counts


class Neighbour(NamedTuple):
    """The first commit of a session next to this one, when that was opened, and its first use."""

    commit: Commit
    opened_at: int
    callers: Callers


class Member(Protocol):
    """What has to be known of an open session."""

    scope: Scope
    # The sessions that its opener has open, including this one; set from its first use to its end.
    together: dict[Member, None]
    context: Any
    tracers: tuple[Tracer, ...]
    opened_by: Owner
    owner: Owner
    was_handed_on: bool
    is_joined: bool
    connections: tuple[Holding, ...]
    opened_at: int
    last_site: CallSite | None
    commit: Commit | None
    beside: tuple[Neighbour, ...]
    callers: Callers
    nested_lines: frozenset[tuple[CallSite | None, CallSite | None]]
    transactions_open: tuple[OpenTransaction, ...]
    committing_rows: int
    database: facts.Database | None
    reports: tuple[Report, ...]

    @property
    def name(self) -> str: ...


# By the owner that opened them, and by the one that uses them now; a scope leaves as it ends. The
# inner dictionaries are sets that keep the order.
_TOGETHER: Final[dict[Hashable, dict[Member, None]]] = {}
# A session that lives as long as the process must not remember every other one's commit.
_MOST_COMMITS: Final = 16
_MOST_LINES: Final = 100
# How many sessions that were left behind are looked at.
_MOST_LEFT_BEHIND: Final = 8
# How many sessions are asked which connection of the driver they hold: in a StaticPool it is the
# same one for all, and a thread may have ten thousand open.
_MOST_ASKED: Final = 100
_AT_WORK: Final = frozenset({"running", "waiting"})
# For a scope that is not used yet. Nothing is added to it.
ALONE: Final[dict[Any, None]] = {}


def join(member: Member) -> None:
    """A scope was opened by its owner, and is used now."""
    together = member.together = _TOGETHER.setdefault(member.opened_by.key, {})
    together[member] = None


def hand_on(member: Member, before: Owner) -> None:
    """Another owner than before uses the session now."""
    opened_by = member.opened_by.key
    if before.key != opened_by:
        _part(member, before.key)
    if member.owner.key != opened_by:
        _TOGETHER.setdefault(member.owner.key, {})[member] = None


def leave(member: Member) -> None:
    """The scope ended."""
    together, member.together = member.together, ALONE
    together.pop(member, None)
    if not together:
        _forget_empty(together, member.opened_by.key)
    if member.was_handed_on:
        _part(member, member.owner.key)


def _part(member: Member, key: Hashable) -> None:
    together = _TOGETHER.get(key, ALONE)
    together.pop(member, None)
    if not together:
        _forget_empty(together, key)


def _forget_empty(together: dict[Member, None], key: Hashable) -> None:
    # A scope that was never used is in none: its opener may have others open.
    if _TOGETHER.get(key) is together:
        _TOGETHER.pop(key, None)


def forget() -> None:
    """In a child process: what the parent has open is not this one's."""
    _TOGETHER.clear()


def nested_in(member: Member, connection: Connection, now: int) -> facts.ConnectionNested | None:
    """What to report if this thread or task holds another connection of the engine already.

    Of several, it is that of the session that was opened first. It remembers the lines that
    were reported: each session that takes a second one may be new. A session that was left
    behind is not nested in: this thread does other work now.
    """
    together = _TOGETHER.get(member.owner.key, ALONE)
    if len(together) <= 1:
        return None
    left_behind: set[Member] = set()
    while True:
        first, holding = _first_next_to(member, connection, together, left_behind)
        if first is None or holding is None:
            return None
        if len(first.nested_lines) >= _MOST_LINES:
            return None
        called = _called_at(member, first)
        # What is to be changed is the call, whatever the session that it opens does.
        lines = (called or member.last_site, holding.site)
        if lines in first.nested_lines:
            return None
        if _is_at_work(first, member) or _has_taken(first, holding, member):
            break
        left_behind.add(first)
        if len(left_behind) >= _MOST_LEFT_BEHIND:
            return None
    first.nested_lines |= {lines}
    return facts.ConnectionNested(
        at=now,
        site=member.last_site,
        other=first.scope.id,
        other_name=first.name,
        other_opened_site=first.scope.opened_site,
        other_site=holding.site,
        held=now - holding.since,
        is_leaked=any(one.was_reported("leaked-session") for one in first.reports),
        called_site=called,
    )


def lock_holder(member: Member) -> Scope | None:
    """The session of this thread or task that has SQLite's lock, which one writer has at a time."""
    database = member.database
    if database is None or database.system != "sqlite":
        return None
    together: dict[Member, None] = _TOGETHER.get(member.owner.key, ALONE)
    for other in tuple(together)[:_MOST_ASKED]:
        if (
            other is not member
            and other.transactions_open
            and other.committing_rows
            and other.owner == member.owner
            and other.database is not None
            and other.database.namespace == database.namespace
        ):
            return other.scope
    return None


def _called_at(member: Member, first: Member) -> CallSite | None:
    """The line that has a helper open a session, although it could pass the other one to it."""
    opened, locator = member.scope.opened_site, cast("Use", member).locator
    return None if opened is None else locator.called_at(opened, first.scope.opened_site)


def _is_at_work(first: Member, member: Member) -> bool:
    """Whether the code that has the other session is still at work with it.

    One line that opens both may be in a function that was called again, after it left one open. It
    is not, if that function has called itself. A generator is on no stack while it waits: then the
    function counts that has received the session from it.
    """
    site, mine, other = first.scope.opened_site, cast("Use", member), cast("Use", first)
    if site is None or site != member.scope.opened_site:
        return owner_state(other, stack=False).state in _AT_WORK
    frames = member.owner.frames()
    if not mine.locator.is_in_generator(site):
        return sum(is_in(site, frame.f_code) for frame in frames) > 1
    borrower = _borrower(other, site)
    if borrower is not None:
        is_called_again = borrower is _borrower(mine, site)
        return sum(frame.f_code is borrower for frame in frames) > is_called_again
    return sum(blocks_of(line, site) for line in mine.locator.sites(frames)) > 1


def _has_taken(first: Member, holding: Holding, member: Member) -> bool:
    """Whether a function at work has taken the connection for the session of a `scoped_session`.

    That session is at hand there, also if a function that has returned used it first.
    """
    if not cast("Use", member).locator.is_registered(first.scope.opened_site):
        return False
    return any(is_in(holding.site, frame.f_code) for frame in member.owner.frames())


def _borrower(ledger: Use, site: CallSite) -> CodeType | None:
    """The function that received the session from a generator, which opened it at the line.

    It is known if the generator has used the session before it yielded it.
    """
    if not any(is_in(site, code) for code, _ in ledger.callers):
        return None
    for code, _ in ledger.callers:
        if not (is_in(site, code) or code.co_filename == contextlib.__file__):
            return code
    return None


def _first_next_to(
    member: Member,
    connection: Connection,
    together: dict[Member, None],
    left_behind: set[Member],
) -> tuple[Member | None, Holding | None]:
    """The first session to be opened that holds another connection, and what it holds."""
    first, holding, asked = None, None, 0
    for other in tuple(together):
        # Most are compared by their age alone: a thread may have ten thousand sessions open.
        if (
            other is not member
            and (first is None or other.opened_at < first.opened_at)
            and other not in left_behind
        ):
            for taken in other.connections:
                asked += 1
                if taken.owner == member.owner and taken.is_beside(connection):
                    first, holding = other, taken
                    break
            if asked >= _MOST_ASKED:
                break
    return first, holding


def committed(member: Member, commit: Commit, now: int) -> Sequence[facts.WritesSplit]:
    """What to report where a session next to this one has committed writes before.

    Next to it is one of the same factory, opened and used by the same thread or task alone, under
    the same span of the caller.
    """
    earlier = list(member.beside)
    member.beside = ()
    for other in tuple(member.together):
        if other is member or not _is_beside(member, other):
            continue
        if other.commit is None:
            if len(other.beside) < _MOST_COMMITS:
                other.beside = (*other.beside, _as_neighbour(member, commit))
        elif member.commit is None and all(one.commit.scope is not other.scope for one in earlier):
            earlier.append(_as_neighbour(other, other.commit))
    member.commit = commit
    return [_split(member, commit, one, now) for one in earlier]


def _as_neighbour(member: Member, commit: Commit) -> Neighbour:
    return Neighbour(commit, member.opened_at, member.callers)


def _split(member: Member, commit: Commit, other: Neighbour, now: int) -> facts.WritesSplit:
    before, opened, locator = other.commit, member.scope.opened_site, cast("Use", member).locator
    called, is_inner = None, other.opened_at < member.opened_at
    if opened is not None:
        other_opened = before.scope.opened_site
        called = locator.called_at(opened, other_opened) if is_inner else locator.held_at(opened)
    return facts.WritesSplit(
        at=now,
        site=commit.site,
        written=commit.written,
        other=before.scope.id,
        other_opened_site=before.scope.opened_site,
        other_site=before.site,
        other_written=before.written,
        called_site=called,
        other_called_site=called_before(called, before.site, other.callers),
        is_inner=is_inner,
    )


def _is_beside(member: Member, other: Member) -> bool:
    return (
        other.scope.kind == member.scope.kind
        and not (other.was_handed_on or member.was_handed_on)
        and not (other.is_joined or member.is_joined)
        and _caller(other) == _caller(member)
    )


def _caller(member: Member) -> tuple[int, int]:
    """The trace and the span in which the scope was opened."""
    return member.tracers[0].caller(member.context)
