"""What is in progress in a session between two events: a transaction, a connection, a flush."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final

from session_tracer.model.counts import NOTHING

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection
    from sqlalchemy.orm import InstanceState, UOWTransaction

    from session_tracer.facts import Counts, Database, Outcome, Trigger
    from session_tracer.where.callsite import CallSite
    from session_tracer.where.owner import Owner

__all__ = ["SLOT", "SURROUNDED", "Flush", "Holding", "OpenTransaction"]

# The one attribute by which a traced Session, and a Connection it holds, leads to its ledger. On a
# Connection it is read and set as an attribute: once code has asked an object for its `__dict__`,
# CPython reads the object's attributes more slowly, SQLAlchemy's too.
SLOT: Final = "_session_tracer"
# The methods that are replaced on a Connection to whose cursor others listen.
SURROUNDED: Final = ("execute", "exec_driver_sql")


class OpenTransaction:
    """A transaction or savepoint that has not ended: times in nanoseconds."""

    # An attribute keeps the class's value, which costs nothing, until something changes it.
    nested = False
    two_phase = False
    outcome: Outcome = "closed"
    committing_at = 0
    # The line of the last flush of its commit: the line that commits.
    site_of_commit: CallSite | None = None
    # How long its COMMIT took.
    took = 0
    error = ""
    # Where it ended.
    ended_site: CallSite | None = None
    # The last savepoint in it that has ended.
    inner: OpenTransaction | None = None

    def __init__(self, began_at: int, site: CallSite | None, owner: Owner) -> None:
        self.began_at = began_at
        self.site = site
        self.owner = owner


class Holding:
    """A connection the open transaction uses, since when, and its statements' share of that.

    It is held weakly: an abandoned session's connection must go back to its pool as it would.
    """

    # How long the statements of its scope had run as it was taken, and how long those on other
    # connections have run since.
    sql_before = 0
    elsewhere = 0
    # Whether methods of the connection are replaced.
    is_surrounded = False
    # The ledger of the session whose connection it is, where another one was bound to it.
    lender: Any = None
    # The server's number for it, if it was noted as the transaction began.
    _noted: int | None = None

    def __init__(
        self,
        connection: Connection,
        database: Database,
        since: int,
        owner: Owner,
        site: CallSite | None,
    ) -> None:
        self._connection = weakref.ref(connection)
        self.owner = owner
        self.site = site
        self.database = database
        self.since = since

    def busy(self, sql: int) -> int:
        """How long its statements ran, by how long all of its scope did."""
        return sql - self.sql_before - self.elsewhere

    def holds(self, connection: Connection) -> bool:
        """Whether this is that connection."""
        return self._connection() is connection

    def is_of(self, pool: object) -> bool:
        """Whether the connection is one of that pool, and not back in it."""
        connection = self._connection()
        if connection is None or connection.engine.pool is not pool:
            return False
        return not (connection.closed or connection.invalidated)

    @property
    def is_given_back(self) -> bool:
        """Whether the connection was closed or invalidated while its transaction is open."""
        connection = self._connection()
        return connection is not None and _driver_of(connection) is None

    def is_beside(self, connection: Connection) -> bool:
        """Whether the pool has given out another connection of the driver for that one.

        A StaticPool and a SingletonThreadPool give out the same one again.
        """
        mine = self._connection()
        if mine is None or mine is connection or mine.engine.pool is not connection.engine.pool:
            return False
        drivers = _driver_of(mine), _driver_of(connection)
        return None not in drivers and drivers[0] is not drivers[1]

    def look(self) -> tuple[bool, int | None]:
        """Whether the connection is held, and by which process of the database server.

        The process is None where the driver does not know it by itself.
        """
        connection = self._connection()
        if connection is None:
            return True, None
        driver = _driver_of(connection)
        if driver is None:
            return False, None
        try:
            return True, self._noted or _process_id(driver)
        except Exception:  # the connection is being closed at this moment
            return True, None

    def note_process_id(self) -> None:
        """Ask the driver now: it may refuse to answer another thread while a statement runs."""
        self._noted = self.look()[1]

    def unmark(self, ledger: object) -> None:
        """The connection leads to the ledger no longer."""
        connection = self._connection()
        if connection is not None and getattr(connection, SLOT, None) is ledger:
            lender = self.lender
            if lender is not None and lender.uses(connection):
                setattr(connection, SLOT, lender)
                return
            delattr(connection, SLOT)
            if self.is_surrounded:
                for name in SURROUNDED:
                    connection.__dict__.pop(name, None)


def _driver_of(connection: Connection) -> Any:
    """The driver's connection, None if it is back in its pool.

    Asking an invalidated connection for it would take a new one from the pool.
    """
    if _is_gone(connection):
        return None
    try:
        return connection.connection.dbapi_connection
    except Exception:
        if _is_gone(connection):  # another thread has closed it since
            return None
        raise


def _is_gone(connection: Connection) -> bool:
    return connection.closed or connection.invalidated


def _process_id(driver: Any) -> int | None:
    """psycopg, psycopg2, asyncpg, PyMySQL, asyncmy and mysqlclient keep it: no round trip."""
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
    """A flush that has not ended.

    `unit_of_work` is a weak reference: it holds the session, and where it has nothing to do no
    event follows.
    """

    # An attribute keeps the class's value, which costs nothing, until something changes it.
    began = False
    began_at = 0
    # Whether the unit of work was executed.
    executed = False
    failed = False
    # Its last statement, if it is being repeated for other rows; what executes it, and whether it
    # writes one each time.
    repeated: str | None = None
    execute: Any = None
    repeats_rows = False
    # How many statements the scope had run, and for how long, when the rows were last counted, and
    # the number of the statement after which they are to be counted again.
    counted = 0
    counted_sql = 0
    counts_at = 0
    # New, dirty, deleted, unchanged.
    counts: tuple[Counts, Counts, Counts, Counts] = (NOTHING, NOTHING, NOTHING, NOTHING)
    # The one object of the unit of work, if it is one that has changed.
    only: InstanceState[Any] | None = None
    # What had no net change as the flush began, and the attributes that were set.
    unchanged: tuple[InstanceState[Any], ...] = ()
    unchanged_attributes: tuple[str, ...] = ()
    # What was to be done with each object then (deleted, only listed), and the address of its key.
    found: list[Any] | None = None
    _entities: dict[Any, str] | None = None

    def __init__(
        self, unit_of_work: UOWTransaction, site: CallSite | None, trigger: Trigger, owner: Owner
    ) -> None:
        self.unit_of_work = weakref.ref(unit_of_work)
        self.site = site
        self.trigger = trigger
        self.owner = owner

    def entity_of(self, table: Any) -> str:
        """The mapped class of the unit of work whose table it is; empty where it is none's."""
        if self._entities is None:
            self._entities = {}
        if table not in self._entities:
            mappers = list(getattr(self.unit_of_work(), "mappers", ()))
            # An object of a subclass has rows in the tables of its bases, too.
            mappers.sort(key=lambda mapper: mapper.local_table is not table)
            owners = (mapper.class_.__name__ for mapper in mappers if table in mapper.tables)
            self._entities[table] = next(owners, "")
        return self._entities[table]
