"""Finds what the statement that autoflushes now has in common with what is flushed for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from session_tracer.where.callsite import task_stack
from session_tracer.where.running import is_sqlalchemys

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

__all__ = ["Asking", "asking_now"]

_WRITES: Final = frozenset({"INSERT", "UPDATE", "DELETE"})


@dataclass(frozen=True, slots=True)
class Asking:
    """A statement that flushes before it is executed.

    Attributes:
        verb: INSERT, UPDATE or DELETE; empty for what reads.
        entity: The mapped class whose rows it reads; empty if it reads what is made of rows.
        needs: The flushed classes without whose rows it would do something else. None if that is
            not known.
    """

    verb: str = ""
    entity: str = ""
    needs: tuple[str, ...] | None = None


def asking_now(changed: Collection[str], others: Collection[str]) -> Asking:
    """Return what autoflushes now.

    Args:
        changed: The names of the mapped classes whose objects were changed.
        others: The same of those whose objects are new or deleted.
    """
    mappers: Iterable[Any] = ()
    for frame in task_stack():
        name = frame.f_code.co_name
        if name not in ("_flush", "_autoflush") or not is_sqlalchemys(frame):
            continue
        if name == "_flush":
            mappers = getattr(frame.f_locals.get("flush_context"), "mappers", mappers)
        elif frame.f_back is not None and is_sqlalchemys(frame.f_back):
            statement: Any = frame.f_back.f_locals.get("statement")
            verb = _verb(statement)
            needs = _needs(statement, mappers, {*changed, *others}, others if verb else ())
            return Asking(verb, "" if verb else _entity(statement), needs)
    return Asking()


def _verb(statement: Any) -> str:
    words = [getattr(statement, "__visit_name__", "")]
    if words == ["textclause"]:
        words = str(statement.text).split(maxsplit=1)
    verb = words[0].upper() if words else ""
    return verb if verb in _WRITES else ""


def _entity(statement: Any) -> str:
    columns = getattr(statement, "column_descriptions", ())
    if any("function" in map(_kind, _parts(column["expr"])) for column in columns):
        return ""
    return next((getattr(one.get("entity"), "__name__", "") for one in columns), "")


def _needs(
    statement: Any, mappers: Iterable[Any], flushed: Collection[str], linked: Collection[str]
) -> tuple[str, ...] | None:
    """Return the flushed classes whose tables it names, or links to if they are `linked`."""
    parts = _parts(statement)
    asked = {part.fullname: part for part in parts if _kind(part) == "table"}
    if not asked or "textclause" in map(_kind, parts):
        return None
    needs: dict[str, None] = {}
    # What the same line has flushed before is not among the mappers of this flush.
    for mapper in {other for one in mappers for other in one.registry.mappers}:
        entity = mapper.class_.__name__
        if entity in flushed:
            tables = {table.fullname: table for table in _tables(mapper)}
            is_linked = entity in linked and (
                _targets(asked.values()) & tables.keys() or _targets(tables.values()) & asked.keys()
            )
            if is_linked or asked.keys() & tables.keys():
                needs[entity] = None
    return tuple(sorted(needs))


def _tables(mapper: Any) -> list[Any]:
    """The tables that objects of a class have rows in, those of many-to-many links included."""
    links = [one.secondary for one in mapper.relationships if one.secondary is not None]
    return [table for table in (*mapper.tables, *links) if _kind(table) == "table"]


def _targets(tables: Iterable[Any]) -> set[str]:
    """The tables that these refer to."""
    keys = [key for table in tables for key in getattr(table, "foreign_keys", ())]
    return {key.target_fullname.rpartition(".")[0] for key in keys}


def _kind(part: Any) -> str:
    return getattr(part, "__visit_name__", "")


def _parts(statement: Any) -> list[Any]:
    """A statement and all that it is made of, with the tables of its columns."""
    parts, found = [statement], {id(statement)}
    for part in parts:
        try:
            inner = [*part.get_children(), getattr(part, "table", None)]
        except AttributeError:  # a mapped class, of which its column has the table
            continue
        for one in inner:
            if one is not None and id(one) not in found:
                found.add(id(one))
                parts.append(one)
    return parts
