"""The errors that SQLAlchemy raises without an event, seen where they are made."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.orm import RelationshipProperty, attributes
from sqlalchemy.orm.exc import DetachedInstanceError

from session_tracer import facts, loads

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType

    from session_tracer.tracer import Tracer

__all__ = ["watch"]

# How far out from the error the attribute's own frame is looked for.
_NEAR: Final = 8


class Watch:
    """The seam: SQLAlchemy makes every `DetachedInstanceError` by calling its class.

    So the class's `__init__` sees each one, and in its caller's frame the object and the attribute
    it is about. It costs nothing until something is raised.
    """

    def __init__(self) -> None:
        self._watching = False
        self._before: Any = None
        self._wrapper: Any = None

    def start(self) -> None:
        """See the errors from now on."""
        if self._watching:
            return

        found: Any = DetachedInstanceError.__init__

        def __init__(self: Any, *arg: Any, **kw: Any) -> None:
            found(self, *arg, **kw)
            _detached(sys._getframe(1))

        self._before = DetachedInstanceError.__dict__.get("__init__")
        self._wrapper = __init__
        DetachedInstanceError.__init__ = __init__  # type: ignore[method-assign] # the seam
        self._watching = True

    def stop(self) -> None:
        """Leave the class as it was found; what somebody wrapped meanwhile stays within theirs."""
        if not self._watching:
            return
        if DetachedInstanceError.__dict__.get("__init__") is self._wrapper:
            if self._before is None:
                del DetachedInstanceError.__init__
            else:
                DetachedInstanceError.__init__ = self._before  # type: ignore[method-assign] # theirs
        self._watching = False


watch: Final = Watch()


def _detached(frame: FrameType) -> None:
    """Tell whoever traced the session that last held the object; never raises."""
    tracers: Iterable[tuple[Tracer, Any]] = ()
    try:
        state = _state(frame)
        if state is None:
            return
        mark = loads.mark_of(state)
        if mark is None:
            return
        tracers = mark.origin.scope.told()
        now = time.perf_counter_ns()
        epoch = time.time_ns() - now
    except Exception as error:
        for tracer, _ in tracers:
            tracer.failed("failures", error)
        return
    for tracer, span in tracers:
        try:
            if not tracer.closed:
                fact = _fact(frame, state, mark, now, tracer)
                tracer.begin_detached(mark.origin.scope, epoch, span).tell(fact)
        except Exception as error:
            tracer.failed("failures", error)


def _state(frame: FrameType) -> Any:
    state = frame.f_locals.get("state")
    if state is None:
        instance = getattr(frame.f_locals.get("self"), "instance", None)  # a dynamic collection
        state = None if instance is None else attributes.instance_state(instance)
    return state


def _fact(
    frame: FrameType, state: Any, mark: loads.Mark, now: int, tracer: Tracer
) -> facts.DetachedLoadFailed:
    mapper = state.manager.mapper
    origin = mark.origin
    fact = facts.DetachedLoadFailed(
        at=now,
        site=tracer.locator.locate(3),
        entity=state.class_.__name__,
        attribute="",
        load="expired",
        loaded_site=mark.site,
        departure=mark.departure or origin.departure or "collected",
        departed_at=mark.departed_at or origin.departed_at,
        departed_site=mark.departed_site or origin.departed_site,
    )
    fact.attribute, fact.load = _attribute(frame)
    # Whether a relationship had been loaded before its object was expired, nothing tells.
    if fact.load == "expired" or (state.expired and fact.load != "dynamic"):
        fact.expired_by = origin.scope.expired_by
        fact.expired_site = origin.scope.expired_site
    fact.loader = _loader(mapper, fact.attribute)
    if tracer.settings.record_identity and state.key is not None:
        fact.identity = ", ".join(str(part) for part in state.key[1])
    return fact


def _attribute(frame: FrameType) -> tuple[str, Any]:
    """The attribute that was read, and what kind of load it needed."""
    values = frame.f_locals
    owner = values.get("self")
    if "attribute_names" in values:
        return _expired_attribute(frame, values["attribute_names"]), "expired"
    attr = getattr(owner, "attr", None)
    if attr is not None:
        return str(attr.key), "dynamic"
    is_relationship = isinstance(getattr(owner, "parent_property", None), RelationshipProperty)
    return str(getattr(owner, "key", "")), "relationship" if is_relationship else "deferred"


def _expired_attribute(frame: FrameType, names: Any) -> str:
    """All that is expired is loaded at once: which of it was read, an outer frame knows."""
    outer = frame.f_back
    for _ in range(_NEAR):
        if outer is None:
            break
        key = getattr(outer.f_locals.get("self"), "key", None)
        if isinstance(key, str) and key in names:
            return key
        outer = outer.f_back
    return ""


def _loader(mapper: Any, attribute: str) -> str:
    """The loader option that brings the attribute with its object, as code."""
    prop = mapper.attrs.get(attribute) if attribute else None
    if prop is None:
        return ""
    name = f"{prop.parent.class_.__name__}.{attribute}"
    if isinstance(prop, RelationshipProperty):
        return f"selectinload({name})" if prop.uselist else f"joinedload({name})"
    group = getattr(prop, "group", None)
    return f'undefer_group("{group}")' if group else f"undefer({name})"
