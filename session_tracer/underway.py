"""What is under way in a session between two events: a transaction, a connection, a flush."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection
    from sqlalchemy.orm import InstanceState, UOWTransaction

    from session_tracer.callsite import CallSite
    from session_tracer.facts import Counts, Database, Outcome, Trigger

__all__ = ["SLOT", "SURROUNDED", "Flush", "Holding", "OpenTransaction"]

# The one attribute by which a traced Session, and a Connection it holds, leads to its probe.
SLOT: Final = "_session_tracer"
# The methods that are replaced on a Connection to whose cursor others listen.
SURROUNDED: Final = ("execute", "exec_driver_sql")


class OpenTransaction:
    """A transaction or savepoint that has not ended: times in nanoseconds."""

    __slots__ = (
        "began_at",
        "committing_at",
        "error",
        "nested",
        "outcome",
        "site_of_commit",
        "took",
        "two_phase",
    )

    def __init__(self, began_at: int, *, nested: bool, two_phase: bool) -> None:
        self.began_at = began_at
        self.nested = nested
        self.two_phase = two_phase
        self.outcome: Outcome = "closed"
        self.committing_at = 0
        self.site_of_commit: CallSite | None = None
        self.took = 0
        self.error = ""


class Holding:
    """A connection the open transaction uses, since when, and its statements' share of that.

    It is held weakly: an abandoned session's connection must go back to its pool as it would.
    """

    __slots__ = ("_connection", "_surrounded", "busy", "database", "since")

    def __init__(
        self, connection: Connection, database: Database, since: int, *, surrounded: bool
    ) -> None:
        self._connection = weakref.ref(connection)
        self._surrounded = surrounded
        self.database = database
        self.since = since
        self.busy = 0

    def holds(self, connection: Connection) -> bool:
        """Whether this is that connection."""
        return self._connection() is connection

    def unmark(self, probe: object) -> None:
        """The connection leads to the probe no longer."""
        connection = self._connection()
        if connection is not None and connection.__dict__.get(SLOT) is probe:
            del connection.__dict__[SLOT]
            for name in SURROUNDED if self._surrounded else ():
                connection.__dict__.pop(name, None)


class Flush:
    """A flush that has not ended. `counts` are known once the unit of work was executed.

    The unit of work is held weakly: it holds the session, and a flush may end without a word.
    """

    __slots__ = (
        "_context",
        "began",
        "began_at",
        "counts",
        "failed",
        "site",
        "trigger",
        "unchanged",
        "written",
    )

    def __init__(
        self, context: UOWTransaction, began_at: int, site: CallSite | None, trigger: Trigger
    ) -> None:
        self._context = weakref.ref(context)
        self.began_at = began_at
        self.site = site
        self.trigger = trigger
        self.began = False
        self.written = False
        self.unchanged: frozenset[InstanceState[Any]] = frozenset()
        self.failed = False
        self.counts: tuple[Counts, Counts, Counts, Counts] = ({}, {}, {}, {})

    @property
    def context(self) -> UOWTransaction | None:
        """The unit of work, while there is one."""
        return self._context()
