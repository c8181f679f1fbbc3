"""What failed in one session scope, and whether the application has handled it."""

from __future__ import annotations

import sys
import weakref
from typing import TYPE_CHECKING, Final, NamedTuple

from session_tracer import facts
from session_tracer.ledger import same_owner
from session_tracer.where import error_handlers
from session_tracer.where.except_finder import is_caught

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from session_tracer.ledger.ledger import Ledger
    from session_tracer.ledger.report import Tracer
    from session_tracer.where.callsite import CallSite
    from session_tracer.where.except_finder import Failure

__all__ = ["Failures", "First", "forget_repeats"]

_MINUTE: Final = 60 * 1_000_000_000
# A session that is never rolled back may fail for ever.
_MOST_UNDECIDED: Final = 100
_MOST_LINES: Final = 1_000
_MOST_CAUSES: Final = 16
# What an application may let the database find out.
_EXPECTED: Final = frozenset({"", "constraint", "duplicate", "null"})


class First(NamedTuple):
    """What failed first in a transaction, before which nothing had."""

    what: str
    at: int
    site: CallSite | None
    error: str
    code: str = ""
    constraint: str = ""
    failure: Failure | None = None


class _Undecided:
    """A flush that failed, until it is known whether the application handles that.

    `is_same` recognises the exception; the exception itself, which holds frames, is not kept.
    """

    __slots__ = ("ended", "fact", "failure", "is_same")

    def __init__(
        self,
        fact: facts.FlushFailed,
        failure: Failure | None,
        is_same: Callable[[BaseException], bool],
        *,
        ended: int,
    ) -> None:
        self.fact = fact
        self.failure = failure
        self.is_same = is_same
        self.ended = ended


class Failures:
    """The failures of one scope: a ledger has this from its first failure on."""

    __slots__ = ("_undecided", "first")

    def __init__(self) -> None:
        # What failed first since a transaction or savepoint ended.
        self.first: First | None = None
        self._undecided: tuple[_Undecided, ...] = ()

    def flush_failed(
        self,
        ledger: Ledger,
        fact: facts.FlushFailed,
        failure: Failure | None,
        is_same: Callable[[BaseException], bool],
    ) -> None:
        """A flush failed."""
        if fact.problem == "locked" and (holder := same_owner.lock_holder(ledger)) is not None:
            fact.holder, fact.holder_site = holder.id, holder.opened_site
        if self.first is None:
            self.first = First(
                what=fact.operation or "a flush",
                at=fact.at,
                site=fact.site,
                error=fact.error,
                code=fact.code,
                constraint=fact.constraint,
                failure=failure,
            )
        if len(self._undecided) >= _MOST_UNDECIDED:
            self._decide(ledger, self._undecided[0])
        self._undecided += (_Undecided(fact, failure, is_same, ended=ledger.ended),)

    def is_known(self, error: BaseException) -> bool:
        """Return whether the error is a failed flush's: a COMMIT flushes first."""
        causes = list(_causes(error))
        return any(one.is_same(cause) for one in self._undecided for cause in causes)

    def transaction_ended(self, ledger: Ledger, *, committed: bool) -> None:
        """A transaction or savepoint ended."""
        self.first = None
        if committed and self._undecided:
            self.went_on(ledger)

    def went_on(self, ledger: Ledger) -> None:
        """The session goes on: what was rolled back is handled, unless its error is raised again.

        An `except` block that uses the session may still raise the error again.
        """
        current = list(_causes(sys.exc_info()[1]))
        for one in self._undecided:
            if ledger.ended > one.ended and not any(map(one.is_same, current)):
                self._decide(ledger, one)

    def used_again(self, ledger: Ledger) -> None:
        """SQLAlchemy refused to use the session, because it was not rolled back."""
        for one in self._undecided:
            if ledger.ended == one.ended:
                self._decide(ledger, one, "used_again")

    def leaves(self, ledger: Ledger, error: BaseException, here: Sequence[CallSite]) -> None:
        """The session is closed while this error is handled, or leaves the session's block."""
        if not self._undecided or error_handlers.is_handled(error):
            return
        causes = list(_causes(error))
        for one in self._undecided:
            # An error that the application raises for a constraint is its way to handle it.
            same = causes[:1] if one.fact.problem in _EXPECTED else causes
            is_leaving = any(map(one.is_same, same))
            if is_leaving and not (one.failure is not None and is_caught(one.failure, here)):
                self._decide(ledger, one, "left")

    def scope_ended(self, ledger: Ledger) -> None:
        """The scope ended: what has not left it is handled."""
        for one in self._undecided:
            self._decide(ledger, one)

    def _decide(self, ledger: Ledger, one: _Undecided, unhandled: facts.Unhandled = "") -> None:
        self._undecided = tuple(other for other in self._undecided if other is not one)
        fact = one.fact
        repeats = 0
        # What a savepoint is for: to go on with the next row. To ask for a lock again and again
        # is how an application waits for it.
        if unhandled or not (fact.in_savepoint or fact.operation):
            repeats = _repeats(ledger.tracers[0], (fact.site, fact.error), fact.at)
        ledger.flush_failure_decided(
            facts.FlushFailureDecided(ledger.clock(), fact.site, fact, unhandled, repeats)
        )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those in whose place it was raised."""
    for _ in range(_MOST_CAUSES):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


# By tracer: for a line and an error, since when they are counted, and how many there were.
_Repeats = dict[tuple["CallSite | None", str], tuple[int, int]]
_REPEATS: Final[weakref.WeakKeyDictionary[Tracer, _Repeats]] = weakref.WeakKeyDictionary()


def forget_repeats() -> None:
    """Count from zero: another test begins."""
    _REPEATS.clear()


def _repeats(tracer: Tracer, key: tuple[CallSite | None, str], at: int) -> int:
    """Return how often this has failed at this line in the last minute, including this time."""
    counted = _REPEATS.setdefault(tracer, {})
    since, count = counted.pop(key, (at, 0))
    if at - since > _MINUTE:
        since, count = at, 0
    if len(counted) >= _MOST_LINES:
        del counted[next(iter(counted))]
    counted[key] = (since, count + 1)
    return count + 1
