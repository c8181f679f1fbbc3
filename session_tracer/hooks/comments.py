"""Which statements are sent with a comment before them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from session_tracer.hooks import sql
from session_tracer.hooks.patching import as_sqlalchemys
from session_tracer.runtime.degraded import warn_once

if TYPE_CHECKING:
    from collections.abc import Callable

    from session_tracer.ledger.ledger import Ledger

__all__ = ["commenting"]

_DIALECTS: Final = ("mariadb", "mysql", "postgresql", "sqlite")
# The drivers for these recognise an INSERT of many rows by how the statement begins, and send each
# row by itself if it begins with a comment.
_MATCH_BATCHES: Final = frozenset({"mariadb", "mysql"})
# Definitions may be kept by the database with their comments.
_VERBS: Final = frozenset(
    {
        *("SELECT", "VALUES", "INSERT", "UPDATE", "DELETE", "MERGE", "REPLACE"),
        *("SAVEPOINT", "RELEASE", "ROLLBACK", "LOCK", "CALL"),
    }
)


def commenting(
    ledger: Ledger, execute: Callable[..., None], statement: str, dialect: Any, *, is_batch: bool
) -> Callable[..., None]:
    """Return what executes the statement with the comment of its session, if it can have one.

    Others see the statement without it: SQLAlchemy's log, its errors and its listeners, and
    session_tracer itself.
    """
    if dialect.name not in _DIALECTS:
        warn_once(
            "session_tracer: statement_comment has no effect with the dialect %s, therefore its "
            "statements are sent without a comment. Supported: %s.",
            str(dialect.name),
            ", ".join(_DIALECTS),
        )
        return execute
    if (
        (is_batch and dialect.name in _MATCH_BATCHES)
        or sql.shape(statement).operation not in _VERBS
        # A hint is read only in a statement's first comment.
        or "/*+" in statement
        or statement.lstrip().startswith(("/*", "--", "#"))
    ):
        return execute
    comments: Any = ledger.comments
    return partial(_execute, comments.before(ledger, statement), execute)


@as_sqlalchemys
def _execute(
    commented: str, execute: Any, cursor: Any, statement: str, parameters: Any, context: Any
) -> None:
    del statement
    execute(cursor, commented, parameters, context)
