"""Tests the tracer without each private thing it relies on: it says less, once, and breaks nothing.

What is taken away is put out of its reach alone, for SQLAlchemy could not work without it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest
from sqlalchemy.engine.events import DialectEvents
from sqlalchemy.engine.util import TransactionalContext
from sqlalchemy.orm import Session, SessionTransaction, strategies

from session_tracer.hooks import (
    errors,
    flush_contents,
    load_reason,
    loader_options,
    session_events,
    statements,
)
from session_tracer.ledger import object_counter
from session_tracer.where import tasks
from tests.fallbacks.missing import call_otherwise, hide, rename, unfound
from tests.fallbacks.story import Story, differs, library, tell

if TYPE_CHECKING:
    from collections.abc import Callable

# Since 2.1 its name begins with an underscore.
LAZY_LOADER: Any = vars(strategies).get("_LazyLoader") or vars(strategies)["LazyLoader"]


@pytest.fixture
def normal() -> Story:
    """The story as it is told with everything there."""
    return told_anew()


def told_anew() -> Story:
    for factory in library():
        return tell(factory)
    raise AssertionError


class Missing(NamedTuple):
    """What is taken away, what is said of it, and what is told no longer, or told instead."""

    take: Callable[[pytest.MonkeyPatch], None]
    said: list[str]
    facts: tuple[dict[str, int], dict[str, int]] = ({}, {})
    findings: tuple[dict[str, int], dict[str, int]] = ({}, {})


def no_identity_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_counter, "IS_KNOWN", False)


def no_dialect_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(DialectEvents, "do_execute")
    unheard = tuple((call_otherwise(name), one) for name, one in statements._LISTENERS)
    monkeypatch.setattr(statements, "_LISTENERS", unheard)


def no_entities(monkeypatch: pytest.MonkeyPatch) -> None:
    unfound(monkeypatch, "sqlalchemy.sql.selectable:Select._propagate_attrs")
    hide(monkeypatch, load_reason.subject, "_propagate_attrs")


def no_load_options(monkeypatch: pytest.MonkeyPatch) -> None:
    unfound(monkeypatch, "sqlalchemy.orm.session:ORMExecuteState.load_options")
    hide(monkeypatch, load_reason.reason, "_sa_orm_load_options")


def other_load_options(monkeypatch: pytest.MonkeyPatch) -> None:
    for looks in (load_reason.reason, load_reason._relationship):
        hide(monkeypatch, looks, "is_root")


def no_before_attach(monkeypatch: pytest.MonkeyPatch) -> None:
    rename(monkeypatch, Session._before_attach)


def other_before_attach(monkeypatch: pytest.MonkeyPatch) -> None:
    code = Session._before_attach.__code__
    variables = tuple("one" if name == "state" else name for name in code.co_varnames)
    monkeypatch.setattr(Session._before_attach, "__code__", code.replace(co_varnames=variables))


def no_raise_load(monkeypatch: pytest.MonkeyPatch) -> None:
    rename(monkeypatch, LAZY_LOADER._invoke_raise_load)


def no_prerequisites(monkeypatch: pytest.MonkeyPatch) -> None:
    rename(monkeypatch, SessionTransaction._raise_for_prerequisite_state)


def no_context_check(monkeypatch: pytest.MonkeyPatch) -> None:
    check: Any = TransactionalContext._trans_ctx_check
    rename(monkeypatch, check.__func__)


def no_flush_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    rename(monkeypatch, Session._autoflush)
    for found in (SessionTransaction._prepare_impl, SessionTransaction._take_snapshot):
        rename(monkeypatch, getattr(found, "__wrapped__", found))


def no_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    unfound(monkeypatch, "sqlalchemy.orm.session:SessionTransaction.__init__")
    hide(monkeypatch, session_events._relation, "_connections")


def no_event_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, statements.hold, "_has_events")


def no_states(monkeypatch: pytest.MonkeyPatch) -> None:
    unfound(monkeypatch, "sqlalchemy.orm.unitofwork:UOWTransaction.__init__")
    for looks in (flush_contents.look, flush_contents.look_again):
        hide(monkeypatch, looks, "states")


def no_load_path(monkeypatch: pytest.MonkeyPatch) -> None:
    for looks in (loader_options.load_path, loader_options._route):
        hide(monkeypatch, looks, "load_path")


def no_mutable_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = tuple((UnicodeError, seen) for _, seen in errors._SEEN[:1])
    monkeypatch.setattr(errors, "_SEEN", compiled)


def no_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sys, "_current_frames")


def no_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    unfound(monkeypatch, "asyncio:Future._callbacks")
    hide(monkeypatch, tasks._awaiting_task, "_callbacks")


MISSING: Final = {
    "the identity map's own function": Missing(
        no_identity_map,
        ["IdentityMap._add_unpresent"],
        facts=(
            {
                "ObjectsLoaded {'Author': 1}": 3,
                "ObjectsLoaded {'Author': 2}": 1,
                "ObjectsLoaded {'Author': 3}": 1,
                "ObjectsLoaded {'Author': 4}": 1,
                "ObjectsLoaded {'Book': 1}": 6,
                "ObjectsLoaded {'Book': 2}": 2,
                "ObjectsLoaded {'Book': 4}": 1,
                "DetachedLoadFailed relationship Book author close": 1,
                "DetachedLoadFailed relationship Author books close by nested options": 1,
            },
            {},
        ),
        findings=({"detached-lazy-load": 2}, {}),
    ),
    "the dialect's events": Missing(
        no_dialect_events,
        ["DialectEvents.do_execute"],
        facts=(
            {
                "AttributeLoaded deferred Author biography": 1,
                "AttributeLoaded expired Author": 3,
                "AttributeLoaded relationship Author books": 3,
                "AttributeLoaded relationship Author books by nested options": 1,
                "AttributeLoaded relationship Book author": 2,
                "ObjectsLoaded {'Author': 1}": 2,
                "ObjectsLoaded {'Author': 2}": 1,
                "ObjectsLoaded {'Book': 1}": 6,
                "ObjectsLoaded {'Book': 4}": 1,
                "StatementExecuted DELETE Book": 1,
                "StatementExecuted INSERT Author": 5,
                "StatementExecuted RELEASE": 1,
                "StatementExecuted SAVEPOINT": 1,
                "StatementExecuted SELECT": 1,
                "StatementExecuted SELECT Author": 10,
                "StatementExecuted SELECT Book": 9,
                "StatementExecuted UPDATE Author": 1,
            },
            {
                "ObjectsLoaded {'Author': 2, 'Book': 2}": 1,
                "ObjectsLoaded {'Book': 1, 'Author': 1}": 1,
                "ObjectsLoaded {'Book': 2}": 1,
                "ObjectsLoaded {'Book': 5, 'Author': 1}": 1,
            },
        ),
    ),
    "entities": Missing(
        no_entities,
        ["Select._propagate_attrs"],
        facts=(
            {"StatementExecuted SELECT Author": 10, "StatementExecuted SELECT Book": 9},
            {"StatementExecuted SELECT": 19},
        ),
    ),
    "load options": Missing(
        no_load_options,
        ["_sa_orm_load_options"],
        facts=(
            {
                "AttributeLoaded relationship Author books": 3,
                "AttributeLoaded deferred Author biography": 1,
                "AttributeLoaded expired Author": 3,
                "AttributeLoaded relationship Book author": 2,
                "AttributeLoaded relationship Author books by nested options": 1,
            },
            {},
        ),
    ),
    "other load options": Missing(
        other_load_options,
        ["the options of SQLAlchemy's loaders"],
        facts=(
            {
                "AttributeLoaded relationship Author books": 3,
                "AttributeLoaded relationship Book author": 2,
                "AttributeLoaded relationship Author books by nested options": 1,
            },
            {},
        ),
    ),
    "before_attach": Missing(
        no_before_attach,
        ["Session._before_attach"],
        facts=({"ObjectCrossed Author": 1}, {}),
        findings=({"crossed-sessions": 1}, {}),
    ),
    "other before_attach": Missing(
        other_before_attach,
        ["Session._before_attach"],
        facts=({"ObjectCrossed Author": 1}, {}),
        findings=({"crossed-sessions": 1}, {}),
    ),
    "raise_load": Missing(
        no_raise_load,
        ["LazyLoader._invoke_raise_load"],
        facts=({"LoadRefused Author books": 1}, {}),
    ),
    "prerequisites": Missing(
        no_prerequisites, ["SessionTransaction._raise_for_prerequisite_state"]
    ),
    "context check": Missing(
        no_context_check,
        ["TransactionalContext._trans_ctx_check"],
        facts=({"RollbackPending": 1}, {}),
        # A flush that failed is reported as the session is used again.
        findings=({"failed-flush": 1, "pending-rollback": 1}, {}),
    ),
    "flush callers": Missing(no_flush_callers, []),
    "connections": Missing(
        no_connections,
        ["SessionTransaction._connections"],
        facts=(
            {"ConnectionAcquired": 11, "SessionClosed": 8},
            {"ConnectionAcquired joined": 11, "SessionClosed joined": 8},
        ),
    ),
    "event flags": Missing(no_event_flags, []),
    "states": Missing(
        no_states,
        ["UOWTransaction.states"],
        facts=(
            {
                "FlushCompleted autoflush {'Author': 1}": 1,
                "FlushCompleted savepoint {'Author': 1}": 1,
                "FlushFailed explicit {'Author': 1}": 2,
                "FlushCompleted explicit {'Author': 1}": 1,
            },
            {
                "FlushCompleted autoflush": 1,
                "FlushCompleted savepoint": 1,
                "FlushCompleted explicit": 1,
                "FlushFailed explicit": 2,
            },
        ),
    ),
    "load path": Missing(
        no_load_path,
        ["InstanceState.load_path"],
        facts=(
            {
                "AttributeLoaded relationship Author books by nested options": 1,
                "DetachedLoadFailed relationship Author books close by nested options": 1,
            },
            {
                "AttributeLoaded relationship Author books": 1,
                "DetachedLoadFailed relationship Author books close": 1,
            },
        ),
    ),
    "mutable errors": Missing(
        no_mutable_errors,
        ["UnicodeError.__init__"],
        facts=(
            {
                "DetachedLoadFailed relationship Book author close": 1,
                "DetachedLoadFailed relationship Book author expunge": 1,
                "DetachedLoadFailed relationship Author books close by nested options": 1,
                "RollbackPending": 2,
                "LoadRefused Author books": 1,
                "ObjectCrossed Author": 1,
            },
            {},
        ),
        findings=(
            {
                "detached-lazy-load": 3,
                "failed-flush": 2,
                "pending-rollback": 2,
                "crossed-sessions": 1,
            },
            {},
        ),
    ),
    "other threads": Missing(no_other_threads, ["sys._current_frames"]),
    "callbacks": Missing(no_callbacks, ["asyncio.Future._callbacks"]),
}


@pytest.mark.parametrize("missing", MISSING.values(), ids=MISSING)
def test_less_is_told(
    normal: Story,
    missing: Missing,
    said: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing.take(monkeypatch)
    told = told_anew()
    assert (told.seen, told.errors) == (normal.seen, 0)
    assert differs(normal.facts, told.facts) == missing.facts
    assert differs(normal.findings, told.findings) == missing.findings
    assert said() == missing.said
