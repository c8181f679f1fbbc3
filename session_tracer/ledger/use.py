"""Who uses a session: which thread or task, on which event loop, and whether two do at once."""

from __future__ import annotations

import threading
from asyncio import CancelledError
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from session_tracer import facts
from session_tracer.ledger import same_owner
from session_tracer.where import owner
from session_tracer.where.progress import Progress
from session_tracer.where.requests import request_of, running_request, thread_request
from session_tracer.where.running import running_frame
from session_tracer.where.tasks import running_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from session_tracer.facts import Fact
    from session_tracer.ledger.blocking import Blocking
    from session_tracer.ledger.in_progress import Flush, Holding, OpenTransaction
    from session_tracer.ledger.origin import Scope
    from session_tracer.ledger.report import Report, Tracer
    from session_tracer.ledger.same_owner import Commit, Neighbour
    from session_tracer.where.callsite import Callers, CallSite, Locator
    from session_tracer.where.owner import Owner

__all__ = ["NO_OWNER", "READS", "Use"]

_frame: Final[Any] = running_frame
# What returns the attribute that a thread or task reads now, if SQLAlchemy loads it. The hooks add
# it, which know SQLAlchemy's frames.
READS: Final[list[Callable[[Use, Owner], facts.AttributeLoaded | None]]] = []
NO_OWNER: Final = owner.Owner(threading.main_thread(), None, None, object())


class Use:
    """The part of a ledger that knows who uses the session."""

    __slots__ = (  # noqa: SIM905 # a list would take a line for each name
        "__dict__ __weakref__ at_work at_work_site borrowed callers clock commit connections "
        "context flush is_async is_closing is_suspect last_site leaving locator opened_at "
        "opened_by owner pending_by_class reports scope together tracers transactions "
        "transactions_open"
    ).split()

    scope: Scope
    # What it has written and not committed, and where.
    committing_rows: int
    database: facts.Database | None

    # What most sessions leave as it is.
    was_handed_on = False
    # How far the function has come that opened the session, while other tasks use it; and the loop
    # of that function which has waited for the last of these.
    progress: Progress | None = None
    waiting_loop: CallSite | None = None
    # The request that the task or thread works at which uses it, and what had left changes when
    # another one began to use it: in which transaction, and the request or the task.
    request: Hashable = 0
    changed_by: tuple[int, Hashable] | None = None
    # The first use under asyncio, and the use of its connection on another event loop since, which
    # is reported only if the driver does not allow it.
    loop_owner: Owner | None = None
    loop_site: CallSite | None = None
    loop_change: facts.EventLoopChanged | None = None
    # What a session without AsyncSession has run on an event loop.
    blocking: Blocking | None = None
    cancelled = False
    is_joined = False
    beside: tuple[Neighbour, ...] = ()
    # The pairs of lines of which it was reported that a connection was taken next to its own.
    nested_lines: frozenset[tuple[CallSite | None, CallSite | None]] = frozenset()

    def __init__(
        self, tracers: tuple[Tracer, ...], *, is_async: bool, clock: Callable[[], int]
    ) -> None:
        self.tracers = tracers
        self.is_async = is_async
        self.clock = clock
        self.locator: Locator = tracers[0].locator
        self.reports: tuple[Report, ...] = ()
        self.context: Any = None
        self.opened_by: Owner = NO_OWNER
        # The thread or task that used it last.
        self.owner: Owner = NO_OWNER
        self.transactions = 0
        self.pending_by_class: dict[type, int] = defaultdict(int)
        # The thread or task that is inside an operation of the session, and where.
        self.at_work: Owner | None = None
        self.at_work_site: CallSite | None = None
        # Whether something happened that a detector wants to know the end of.
        self.is_suspect = False
        # What it has taken from a pool, and what it was given: a session that is bound to a
        # connection holds none of its own.
        self.connections: tuple[Holding, ...] = ()
        self.borrowed: tuple[Holding, ...] = ()
        self.opened_at = 0
        # The first commit of the scope, and those of the scopes next to it.
        self.commit: Commit | None = None
        self.together: dict[same_owner.Member, None] = same_owner.ALONE
        self.transactions_open: tuple[OpenTransaction, ...] = ()
        self.flush: Flush | None = None
        self.last_site: CallSite | None = None
        # What was at work at the first use (see `owner_state`).
        self.callers: Callers = ()
        # Where the scope is being left, the error that is leaving, and whether anything is.
        self.leaving: tuple[CallSite | None, str, bool] | None = None
        self.is_closing = False

    def site(self) -> CallSite | None:
        """The application's line that is at work.

        Where the stack has none that asked for what happens, it is the line that is leaving the
        session (asyncio closes it in a task of its own), else the last one known.
        """
        if self.is_closing and self.leaving is not None:
            return self.leaving[0]
        locator = self.locator
        if self.is_async and (awaiting := locator.across(2)) is not None:
            self.last_site = awaiting[1]
            return self.last_site
        # As `Locator.locate()` does it, without the call.
        try:
            for distance, entry in locator.jumps[id(_frame(1).f_code)]:
                inner = _frame(distance)
                if inner.f_code is entry:
                    frame = inner.f_back
                    site = locator.known.get((id(frame.f_code), frame.f_lasti))
                    if site is not None:
                        self.last_site = site
                        return site
        except (AttributeError, LookupError, ValueError):
            pass
        return self._search_site()

    def _search_site(self) -> CallSite | None:
        """The application's line, where no jump leads to it from the hook that asks."""
        site = self.locator.search(3)
        if site is None or site.distance > 1:
            if self.leaving is not None:
                return self.leaving[0]
            return self.last_site or self.scope.opened_site or site
        self.last_site = site
        return site

    def line(self) -> CallSite | None:
        """The application's line that is at work; None where a framework works by itself."""
        site = self.locator.search(2)
        return None if site is None or site.distance > 1 else site

    def first_site(self) -> CallSite | None:
        """The application's line that uses the session for the first time; note its callers."""
        # As in `site()`: a call to it would cost more than its lines.
        locator = self.locator
        if self.is_async and (awaiting := locator.across(2)) is not None:
            frame, self.last_site = awaiting
            self.callers = locator.callers(frame)
            return self.last_site
        try:
            for distance, entry in locator.jumps[id(_frame(1).f_code)]:
                inner = _frame(distance)
                if inner.f_code is entry:
                    frame = inner.f_back
                    site = locator.known.get((id(frame.f_code), frame.f_lasti))
                    if site is not None:
                        self.last_site = site
                        one = frame.f_back
                        two = one and one.f_back
                        three = two and two.f_back
                        self.callers = (
                            (
                                (frame.f_code, frame.f_lasti),
                                (one.f_code, one.f_lasti),
                                (two.f_code, two.f_lasti),
                                (three.f_code, three.f_lasti),
                            )
                            if three is not None
                            else locator.callers(frame)
                        )
                        return site
        except (AttributeError, LookupError, ValueError):
            pass
        self.callers = locator.callers(_frame(1))
        return self._search_site()

    @property
    def name(self) -> str:
        """The name that the nearest tracer gives the factory."""
        raise NotImplementedError

    def suspect(self, fact: Fact) -> None:
        """Something rare happened from which a detector may conclude something."""
        raise NotImplementedError

    def begin_turn(self) -> None:
        """Count from zero what repeats, because another request or task uses the session now."""
        raise NotImplementedError

    def enter(self, site: CallSite | None) -> Owner:
        """The thread or task that uses the session now; it is reported if another one is inside."""
        user = self.owner
        if (
            user.is_plain
            # Not bound at import: gevent may replace it later.
            and threading.get_ident() == user.ident
            and running_loop() is None
            and self.at_work is None
            and (self.flush is None or self.flush.owner is user)
        ):
            return user
        return self._enter(site, user)

    def _enter(self, site: CallSite | None, user: Owner) -> Owner:
        if not user.is_current():
            before, user = user, owner.current()
            self._check_worker(site, user)
            self.owner = user
            self.was_handed_on = True
            same_owner.hand_on(self, before)
            request = _request(user)
            if user.is_task or request:
                self._passed(site, before, user, request)
        elif self.at_work is not None or (self.flush is not None and self.flush.owner is not user):
            self._check_worker(site, user)
        if not self.is_async:
            if user.is_task or self.blocking is not None:
                self.on_loop(user)
        elif self.loop_owner is not user and self.loop_change is None:  # else it is its own loop
            self.check_loop(site)
        return user

    def on_loop(self, user: Owner) -> None:
        """Code that an event loop runs uses a session which is no AsyncSession, or has used it."""
        raise NotImplementedError

    def _passed(self, site: CallSite | None, before: Owner, user: Owner, request: Hashable) -> None:
        """A task, or a thread with a request, uses the session that another one has used before."""
        fact = facts.SessionPassed(
            at=self.clock(),
            site=site,
            owner=user,
            root=owner.root_of(user),
            request=request,
            other_owner=before,
            other_root=owner.root_of(before),
            other_request=self.request if self.request else request_of(before),
            trace=self.tracers[0].caller()[0],
        )
        self.request = fact.request
        if fact.pieces[0] != fact.pieces[1] and not self._is_waited_for(fact):
            self.begin_turn()
        if self.pending_by_class or self.has_uncommitted:
            self.changed_by = self.transactions, fact.pieces[0]
        self.suspect(fact)

    def _is_waited_for(self, fact: facts.SessionPassed) -> bool:
        """Whether a loop of the function that opened the session has gone on to its next item.

        A task that works for each of its items, such as a batch of a data loader's, is no request.
        """
        opener, opened = self.opened_by, self.scope.opened_site
        if fact.owner != opener:
            self.waiting_loop = None
            if opened is None or not opener.is_task or fact.request or fact.other_request:
                return False
            if self.progress is None:
                self.progress = Progress(opener, opened)
            self.waiting_loop = self.progress.loop(self.locator)
        return self.waiting_loop is not None

    def is_changed_by_another(self) -> bool:
        """Whether another request or task has left the changes that are not committed."""
        if self.changed_by is None or self.changed_by[0] != self.transactions:
            return False
        user = owner.current()
        return self.changed_by[1] != (_request(user) or owner.root_of(user).key)

    @property
    def has_uncommitted(self) -> bool:
        """Whether anything was flushed whose transaction was not committed or rolled back."""
        raise NotImplementedError

    def check_use(self, site: CallSite | None) -> None:
        """Report another thread or task that is inside an operation; note another event loop."""
        if self.at_work is not None or self.flush is not None:
            self._check_worker(site, self.owner if self.owner.is_current() else owner.current())
        if self.is_async and self.loop_change is None:
            self.check_loop(site)

    def _check_worker(self, site: CallSite | None, user: Owner) -> None:
        worker, other_site = self.at_work, self.at_work_site
        if worker is None and self.flush is not None and self.flush.began:
            worker, other_site = self.flush.owner, self.flush.site
        if worker is not None and worker is not user and not worker.is_current():
            self.met(site, user, other_site, worker)

    def met(
        self, site: CallSite | None, user: Owner, other_site: CallSite | None, other: Owner
    ) -> None:
        """Report two that are inside of operations of the session.

        Of one that leaves the session's block, what matters is the one that goes on using it.
        """
        leaver = owner.leaver_for(user)
        if leaver is None:
            leaver = owner.leaver_for(other)
        else:
            site, user, other_site = other_site, other, site
        if leaver == user:
            return  # what it has left is its own
        self.suspect(
            facts.SessionUsedConcurrently(
                at=self.clock(),
                site=site,
                owner=user,
                other_site=other_site,
                other_owner=other if leaver is None else leaver,
                leaves=leaver is not None,
            )
        )

    def read_by(self, user: Owner) -> facts.AttributeLoaded | None:
        """The attribute that a thread or task reads now, and the session loads; None if none."""
        return next((found for read in READS if (found := read(self, user)) is not None), None)

    def check_loop(self, site: CallSite | None) -> None:
        """Note the use of the connection on another event loop than the first use."""
        loop = running_loop()
        if loop is None:
            return
        first = self.loop_owner
        if first is not None and first.loop() is loop:
            return
        held = self.connections + self.borrowed
        if first is None or all(one.is_given_back for one in held):
            # Most sessions are used by the task that opened them.
            is_owner = self.owner.is_current()
            self.loop_owner, self.loop_site = self.owner if is_owner else owner.current(), site
            return
        self.loop_change = facts.EventLoopChanged(
            at=self.clock(),
            site=site,
            thread=owner.current().thread_name,
            other_thread=first.thread_name,
            other_site=self.loop_site,
        )

    def note_cancelled(self, error: BaseException) -> None:
        """A task is being cancelled, which leaves a transaction open if there is one."""
        if self.cancelled or not self.transactions_open:
            return
        self.cancelled = self.is_suspect = True
        site = self.locator.raised_at(error) or self.site()
        # SQLAlchemy may be leaving the block in a task of its own.
        self.suspect(facts.TransactionCancelled(self.clock(), site, self.owner))

    def is_cancellation(self, error: BaseException | None) -> bool:
        """Note a cancellation; whether it is one."""
        if not isinstance(error, CancelledError):
            return False
        self.note_cancelled(error)
        return True


def _request(user: Owner) -> Hashable:
    """What the request that is running has alone, of all that this or another user serves."""
    if user.is_task:
        return running_request()
    request = thread_request()
    return (request, user) if request else 0
