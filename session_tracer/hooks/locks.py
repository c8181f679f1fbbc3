"""Objects that SELECT ... FOR UPDATE returns with values that are older than the lock.

SQLAlchemy leaves an object that is in the session as it is, unless it is expired. It asks the
identity map for the object of each row: for the time of such a statement's result, that function is
replaced by one that looks at what is found. Nothing is done for other statements.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final

from session_tracer import facts
from session_tracer.hooks import flush_contents
from session_tracer.hooks.error_frames import is_sqlalchemys
from session_tracer.hooks.load_reason import is_by_key
from session_tracer.hooks.patching import as_sqlalchemys
from session_tracer.ledger.object_counter import MapCounter, mark_of
from session_tracer.runtime.degraded import without
from session_tracer.verdicts.silencing import silenced_now
from session_tracer.where.running import running_frame

if TYPE_CHECKING:
    from types import FrameType

    from sqlalchemy.orm import Session

    from session_tracer.facts import Outcome
    from session_tracer.ledger.ledger import Ledger
    from session_tracer.where.callsite import CallSite

__all__ = ["LOST", "follow"]

# What is not reported if SQLAlchemy's objects are not as expected.
LOST: Final = (
    "objects that SELECT ... FOR UPDATE returns with values from before the lock are not reported"
)

_ID: Final = "stale-lock"
# SQLAlchemy's function that makes an object of a row.
_OF_A_ROW: Final = "_instance"
# How many rows of one transaction are known to be locked; after that, none is looked at.
_MOST: Final = 10_000
# In these, PostgreSQL refuses to lock a row that has changed since the transaction began.
_REFUSING: Final = frozenset({"REPEATABLE READ", "SERIALIZABLE"})


def follow(ledger: Ledger, context: Any, site: CallSite | None) -> None:
    """SELECT ... FOR UPDATE was executed: look at what its rows are made of."""
    if site not in ledger.locked_at:
        ledger.locked_at |= {site}
    counter = ledger.counter
    identity_map = counter.ref() if isinstance(counter, MapCounter) else None
    if identity_map is None or _refuses(context):
        return
    locks = ledger.until_end(_Locks)
    locks.conclude(ledger)
    locks.begin(ledger, identity_map, context, site)


def _refuses(context: Any) -> bool:
    dialect = context.dialect
    if dialect.name != "postgresql":
        return False
    level = (
        context.root_connection.get_execution_options().get("isolation_level")
        or getattr(dialect, "_on_connect_isolation_level", None)
        or dialect.default_isolation_level
    )
    return str(level).upper().replace("_", " ") in _REFUSING


class _Locks:
    """The rows that one transaction has locked, and what the last statement has returned."""

    def __init__(self) -> None:
        # The identity keys of the rows. What is locked once, no other transaction changes.
        self._rows: set[Any] = set()
        self._stale: facts.StaleLocked | None = None
        # The objects that it left as they were: state, last load, mapped class, line of the load.
        self._left: list[tuple[weakref.ref[Any], Any, str, CallSite | None]] = []
        self._is_silenced = False
        self._map: weakref.ref[Any] | None = None
        self._read: weakref.ref[Any] | None = None

    def begin(self, ledger: Ledger, identity_map: Any, context: Any, site: CallSite | None) -> None:
        """A statement was executed, and its rows are about to be read."""
        self._is_silenced = _ID in silenced_now()
        self._stale = facts.StaleLocked(
            at=ledger.clock(),
            site=site,
            counts={},
            by_key=is_by_key(context),
            began_site=ledger.transaction_began_site,
        )
        known, plain, rows = weakref.ref(identity_map), type(identity_map).get, self._rows

        def get(key: Any, default: Any = None) -> Any:
            identity_map = known()
            found = plain(identity_map, key, default)
            try:
                if key not in rows and len(rows) < _MOST:
                    self._asked(identity_map, key, running_frame(1))
            except Exception as error:
                ledger.failed("statements", error)
            return found

        identity_map.__dict__["get"] = as_sqlalchemys(get)
        self._map = known
        # The result holds its context, and nothing else does.
        self._read = weakref.ref(context, lambda _: _put_back(known))

    def _asked(self, identity_map: Any, key: Any, frame: FrameType | None) -> None:
        if frame is None or frame.f_code.co_name != _OF_A_ROW or not is_sqlalchemys(frame):
            return
        values = frame.f_locals
        context, mapper = values["context"], values["mapper"]
        lock = getattr(context.query, "_for_update_arg", None)
        if lock is None or not _is_locked(mapper, lock.of):
            return  # one that loads a relationship of what the statement returns
        self._rows.add(key)
        if values["populate_existing"]:
            return
        if values["version_check"] and mapper.version_id_col is not None:
            return  # SQLAlchemy compares the versions
        state = identity_map._dict.get(key)
        if state is not None and not (state.modified or state.expired_attributes):
            self._found(state, context.session)

    def _found(self, state: Any, session: Session) -> None:
        try:
            if flush_contents.wrote(session, state):
                return  # its row has been locked since this transaction wrote it
        except AttributeError:
            without("SessionTransaction._new", flush_contents.LOST)
            return
        mark = mark_of(state)
        loaded = None if mark is None or state.runid is None else mark.site  # else it was added
        self._left.append((weakref.ref(state), state.runid, state.class_.__name__, loaded))

    def conclude(self, ledger: Ledger) -> None:
        """No more rows of the statement are looked at: report what it has returned."""
        _put_back(self._map)
        self._map = self._read = None
        stale, self._stale = self._stale, None
        left, self._left = self._left, []
        if stale is None or self._is_silenced:
            return
        for known, runid, entity, loaded in left:
            state = known()
            if state is None or state.runid == runid:  # else it was loaded again after the lock
                if not stale.counts:
                    stale.loaded_site = loaded
                stale.counts[entity] = stale.counts.get(entity, 0) + 1
        if stale.counts:
            ledger.suspect(stale)

    def ended(
        self, ledger: Ledger, session: Session, outcome: Outcome, site: CallSite | None
    ) -> None:
        """The transaction has ended."""
        del session, outcome, site
        self.conclude(ledger)


def _put_back(known: weakref.ref[Any] | None) -> None:
    identity_map = None if known is None else known()
    if identity_map is not None:
        identity_map.__dict__.pop("get", None)


def _is_locked(mapper: Any, of: Any) -> bool:
    """Whether FOR UPDATE locks the rows of the mapped class: with OF, those of some tables only."""
    if of is None:
        return True
    tables = [getattr(one, "table", one) for one in of]
    parents: list[Any] = [getattr(one, "_annotations", {}).get("parententity") for one in of]
    return any(
        getattr(parent, "mapper", None) is not None
        and parent.mapper.base_mapper is mapper.base_mapper
        for parent in parents
    ) or any(table is one for table in tables for one in mapper.tables)
