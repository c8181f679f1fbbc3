"""What is under way in a session between two events: a transaction, a connection, a flush."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection
    from sqlalchemy.orm import InstanceState, UOWTransaction

    from session_tracer.facts import Counts, Database, Outcome, Trigger
    from session_tracer.where.callsite import CallSite
    from session_tracer.where.owner import Owner

__all__ = ["SLOT", "SURROUNDED", "Flush", "Holding", "OpenTransaction"]

# The one attribute by which a traced Session, and a Connection it holds, leads to its ledger.
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
        "owner",
        "site",
        "site_of_commit",
        "took",
        "two_phase",
    )

    def __init__(
        self,
        began_at: int,
        *,
        nested: bool,
        two_phase: bool,
        owner: Owner,
        site: CallSite | None = None,
    ) -> None:
        self.began_at = began_at
        self.owner = owner
        self.site = site
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

    __slots__ = ("_connection", "_surrounded", "busy", "database", "owner", "since", "site")

    def __init__(
        self,
        connection: Connection,
        database: Database,
        since: int,
        owner: Owner,
        site: CallSite | None,
        *,
        surrounded: bool,
    ) -> None:
        self._connection = weakref.ref(connection)
        self.owner = owner
        self.site = site
        self._surrounded = surrounded
        self.database = database
        self.since = since
        self.busy = 0

    def holds(self, connection: Connection) -> bool:
        """Whether this is that connection."""
        return self._connection() is connection

    def is_of(self, pool: object) -> bool:
        """Whether the connection is one of that pool."""
        connection = self._connection()
        return connection is not None and connection.engine.pool is pool

    def is_beside(self, connection: Connection) -> bool:
        """Whether that is another connection of the same engine."""
        return not self.holds(connection) and self.is_of(connection.engine.pool)

    def process_id(self) -> int | None:
        """The database server's process of the connection, where the driver knows it by itself."""
        connection = self._connection()
        if connection is None or connection.closed or connection.invalidated:
            return None
        return _process_id(connection.connection.dbapi_connection)

    def unmark(self, ledger: object) -> None:
        """The connection leads to the ledger no longer."""
        connection = self._connection()
        if connection is not None and connection.__dict__.get(SLOT) is ledger:
            del connection.__dict__[SLOT]
            for name in SURROUNDED if self._surrounded else ():
                connection.__dict__.pop(name, None)


def _process_id(driver: Any) -> int | None:
    """psycopg, psycopg2 and asyncpg, PyMySQL and asyncmy keep it; no round trip is needed."""
    inner = getattr(driver, "_connection", driver)  # SQLAlchemy's adapters of asyncio's drivers
    kind = type(inner)
    if kind in _SILENT:
        return None
    known = getattr(getattr(inner, "info", None), "backend_pid", None)
    for name in _ASKED:
        ask = getattr(inner, name, None)
        if known is None and callable(ask):
            known = ask()
    if known is None and not any(hasattr(kind, name) for name in ("info", *_ASKED)):
        _SILENT.add(kind)
    return known if isinstance(known, int) else None


_ASKED: Final = ("get_server_pid", "get_backend_pid", "thread_id")
# Drivers' connections that never know it: there may be ten thousand to ask.
_SILENT: Final[weakref.WeakSet[type]] = weakref.WeakSet()


class Flush:
    """A flush that has not ended. `counts` are known once the unit of work was executed.

    The unit of work is held weakly: it holds the session, and a flush may end without a word.
    """

    __slots__ = (
        "_context",
        "_entities",
        "began",
        "began_at",
        "counts",
        "failed",
        "owner",
        "site",
        "trigger",
        "unchanged",
        "unchanged_attributes",
        "written",
    )

    def __init__(
        self,
        context: UOWTransaction,
        began_at: int,
        site: CallSite | None,
        trigger: Trigger,
        owner: Owner,
    ) -> None:
        self.owner = owner
        self.unchanged_attributes: tuple[str, ...] = ()
        self._context = weakref.ref(context)
        self._entities: dict[Any, str] = {}
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

    def entity_of(self, table: Any) -> str:
        """The mapped class of the unit of work whose table it is; empty where it is none's."""
        if table not in self._entities:
            mappers = list(getattr(self._context(), "mappers", ()))
            # An object of a subclass has rows in the tables of its bases, too.
            mappers.sort(key=lambda mapper: mapper.local_table is not table)
            owners = (mapper.class_.__name__ for mapper in mappers if table in mapper.tables)
            self._entities[table] = next(owners, "")
        return self._entities[table]
