"""That a difference between two worlds is found: each saboteur does one thing a tracer must not."""

from __future__ import annotations

import contextvars
import warnings
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from sqlalchemy import event, exc, text
from sqlalchemy.orm import Session, attributes

from tests.differential.mapped import Author, Tag
from tests.differential.programs import Program, Step, difference, programs, run, untraced
from tests.differential.world import Setup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.differential.world import World

# Everything that the saboteurs below meddle with.
PROGRAM: Final = Program(
    Setup(before=("session",)),
    (
        Step("get", b=0, c=0),
        Step("change", b=0, c=1),
        Step("commit"),
        Step("read_all"),
        Step("expire"),
        Step("drop_objects"),
        Step("select_entities", b=2),
        Step("commit"),
        Step("bulk_insert_refused"),
        Step("rollback"),
        Step("add", b=2),
        Step("flush"),
        Step("rollback"),
        Step("close"),
        Step("read", b=0, c=1),
    ),
)


def _listening(target: Any, name: str, listener: Callable[..., Any]) -> Callable[[World], Any]:
    @contextmanager
    def listening(world: World) -> Iterator[None]:
        event.listen(target, name, listener)
        try:
            yield
        finally:
            event.remove(target, name, listener)

    return listening


def _replacing(owner: Any, name: str, make: Callable[[Any], Any]) -> Callable[[World], Any]:
    @contextmanager
    def replacing(world: World) -> Iterator[None]:
        found = getattr(owner, name)
        setattr(owner, name, make(found))
        try:
            yield
        finally:
            setattr(owner, name, found)

    return replacing


_KEPT: Final[list[object]] = []
_LEFT: Final = contextvars.ContextVar("left", default=0)


@contextmanager
def keeps_an_object(world: World) -> Iterator[None]:
    def keep(session: Session, instance: object) -> None:
        _KEPT.append(instance)

    with _listening(Session, "loaded_as_persistent", keep)(world):
        yield
    _KEPT.clear()


@contextmanager
def keeps_a_session(world: World) -> Iterator[None]:
    def keep(session: Session, transaction: object) -> None:
        _KEPT.append(session)

    with _listening(Session, "after_transaction_create", keep)(world):
        yield
    _KEPT.clear()


def _make_a_cycle(session: Session, instance: Any) -> None:
    # What only the garbage collector can find has outlived its time.
    state: Any = attributes.instance_state(instance)
    state.kept = [instance]


def _select(session: Session) -> None:
    session.execute(text("SELECT 1"))


def _flush(session: Session, instance: object) -> None:
    session.flush()


def _load_an_attribute(session: Session) -> None:
    for instance in session:
        if isinstance(instance, Author):
            len(instance.biography)


def _compare(session: Session) -> None:
    for instance in session:
        if isinstance(instance, Author):
            _ = instance == instance


def _show(session: Session) -> None:
    for instance in session:
        repr(instance)


def _warn(session: Session) -> None:
    warnings.warn("a commit is coming", stacklevel=2)


def _leave_a_context(session: Session) -> None:
    _LEFT.set(_LEFT.get() + 1)


def _change_a_value(session: Session) -> None:
    for instance in session:
        if isinstance(instance, Tag):
            instance.slug = "changed"


def _change_the_info(session: Session) -> None:
    session.info["traced"] = True


def _swallowing(flush: Any) -> Any:
    def swallow(self: Session, objects: Any = None) -> None:
        with suppress(exc.IntegrityError):
            flush(self, objects)

    return swallow


def _rewording(init: Any) -> Any:
    def reword(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.args = ("it was refused",)

    return reword


def _noting(init: Any) -> Any:
    def note(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.add_note("seen")

    return note


def _wrapping(flush: Any) -> Any:
    def wrap(self: Session, objects: Any = None) -> None:
        try:
            flush(self, objects)
        except exc.IntegrityError as error:
            raise error from RuntimeError("seen")

    return wrap


def _being_seen(flush: Any) -> Any:
    def frame(self: Session, objects: Any = None) -> None:
        flush(self, objects)

    return frame


def _fetching(method: Any) -> Any:
    def fetch(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(self, *args, **kwargs)
        return result.freeze()() if hasattr(result, "freeze") else result

    return fetch


SABOTEURS: Final[dict[str, Callable[[World], Any]]] = {
    "keeps an object": keeps_an_object,
    "keeps a session": keeps_a_session,
    "makes a cycle": _listening(Session, "loaded_as_persistent", _make_a_cycle),
    "selects": _listening(Session, "before_commit", _select),
    "flushes": _listening(Session, "after_attach", _flush),
    "loads an attribute": _listening(Session, "before_commit", _load_an_attribute),
    "compares": _listening(Session, "before_commit", _compare),
    "shows": _listening(Session, "before_commit", _show),
    "warns": _listening(Session, "before_commit", _warn),
    "leaves a context": _listening(Session, "before_commit", _leave_a_context),
    "changes a value": _listening(Session, "before_commit", _change_a_value),
    "changes the info": _listening(Session, "before_commit", _change_the_info),
    "swallows": _replacing(Session, "flush", _swallowing),
    "rewords": _replacing(exc.IntegrityError, "__init__", _rewording),
    "notes": _replacing(exc.IntegrityError, "__init__", _noting),
    "wraps": _replacing(Session, "flush", _wrapping),
    "is in the traceback": _replacing(Session, "flush", _being_seen),
    "fetches": _replacing(Session, "execute", _fetching),
}


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("saboteur", SABOTEURS)
def test_a_saboteur_is_found(saboteur: str) -> None:
    bare = run(PROGRAM, untraced)
    assert difference(PROGRAM, bare, run(PROGRAM, untraced)) == ""
    assert difference(PROGRAM, bare, run(PROGRAM, SABOTEURS[saboteur])) != ""


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("saboteur", ["keeps an object", "selects", "leaves a context"])
def test_random_programs_find_a_saboteur_too(saboteur: str) -> None:
    found = ""

    @seed(1)
    @settings(
        max_examples=30,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(program=programs(is_async=False))
    def is_the_same(program: Program) -> None:
        nonlocal found
        if not found:
            bare = run(program, untraced)
            found = difference(program, bare, run(program, SABOTEURS[saboteur]))

    is_the_same()
    assert found
