"""What is to become of the rows that refer to an object which is deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.orm.interfaces import RelationshipDirection

if TYPE_CHECKING:
    from sqlalchemy.orm import Mapper

    from session_tracer.facts import OnDelete

__all__ = ["on_delete", "refers_here"]

# What a foreign key without an action of its own may say; the database then refuses.
_REFUSING: Final = frozenset({None, "NO ACTION", "RESTRICT"})


def refers_here(mapper: Mapper[Any], attribute: str) -> bool:
    """Whether the rows that the relationship loads refer to those of the mapper."""
    prop: Any = mapper.attrs.get(attribute)
    return prop is not None and prop.direction is not RelationshipDirection.MANYTOONE


def on_delete(mapper: Mapper[Any], attribute: str) -> OnDelete:
    """What the database can do with the rows by itself, if it does what the session does now.

    The session deletes them with their parent, or sets their keys to NULL. It deletes the rows of
    a secondary table. What refers to the parent without a foreign key stays as it is.
    """
    prop: Any = mapper.attrs[attribute]
    is_secondary = prop.secondary is not None
    if is_secondary and prop.cascade.delete:
        return ""  # the rows at its other end are deleted, too
    wanted: OnDelete = "CASCADE" if is_secondary or prop.cascade.delete else "SET NULL"
    actions = {_action(parent, child) for parent, child in prop.synchronize_pairs}
    if actions == {wanted}:
        return "declared"
    return wanted if actions and actions <= _REFUSING else ""


def _action(parent: Any, child: Any) -> str | None:
    """The `ondelete` of the foreign key from one column to another; empty if there is none."""
    for key in child.foreign_keys:
        if key.references(parent.table):
            action = key.ondelete or (key.constraint is not None and key.constraint.ondelete)
            return action.upper() if action else None
    return ""
