"""Why a statement runs: the attribute it loads, the entity it is for.

SQLAlchemy's loaders leave it in the statement's and the execution's options, where
`ORMExecuteState` reads it too. Asking there costs nothing, while a `do_orm_execute` listener has
every statement prepared twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

from session_tracer import facts
from session_tracer.hooks import loader_options
from session_tracer.ledger import object_counter
from session_tracer.runtime.degraded import without

if TYPE_CHECKING:
    from session_tracer.facts import LoadKind
    from session_tracer.ledger.origin import Route
    from session_tracer.ledger.probe import Probe
    from session_tracer.where.callsite import CallSite

__all__ = ["LOADS", "Reason", "entity", "is_by_key", "key_of", "reason"]

# The execution option that SQLAlchemy's loaders leave theirs in.
LOADS: Final = "_sa_orm_load_options"
_EMPTY: Final[dict[str, Any]] = {}
_REFRESH: Final = frozenset({"refresh"})
# immediateload() asks the lazy loader for each object as the objects are loaded.
_IMMEDIATE: Final = frozenset({"_load_for_path"})
# What the mapper calls the parameter of its own SELECT by primary key.
_KEY: Final = "pk_1"


# What one object's attribute is loaded by the statement, its entity, its eager loader, and how the
# objects come that it brings, where they come by a relationship of one object.
Reason: TypeAlias = "tuple[facts.AttributeLoaded | None, str, str, Route | None]"

_NONE: Final = (None, "", "", None)


def reason(context: Any, probe: Probe, at: int, site: CallSite | None) -> Reason:
    """Why the statement runs; none where it is not said in the way that is known."""
    try:
        statement = context.invoked_statement
        if statement is None:
            return _NONE
        try:
            mapper = statement._propagate_attrs.get("plugin_subject")
        except AttributeError:  # of no ORM
            mapper = None
        entity = "" if mapper is None else mapper.class_.__name__
        options = context.execution_options.get("_sa_orm_load_options")
        if options is None:
            return None, entity, "", None
        compile_options = getattr(statement, "_compile_options", None)
        path = getattr(compile_options, "_current_path", None)
        parent = getattr(options, "_lazy_loaded_from", None)
        if parent is not None:
            return _relationship(entity, path, parent, probe, at, site)
        state = getattr(options, "_refresh_state", None)
        if state is not None and getattr(compile_options, "_for_refresh_state", False):
            wanted = getattr(compile_options, "_only_load_props", None)
            # Without the option, whoever runs between here and the application tells.
            is_refresh = getattr(options, "_is_user_refresh", None)
            if is_refresh is None:
                is_refresh = probe.tracers[0].locator.called_by(_REFRESH)
            if wanted is None or is_refresh:
                return _load("refresh", state, "", probe, at, site), entity, "", None
            return _column_load(state, wanted, probe, at, site), entity, "", None
        if path is not None and not path.is_root:
            prop = path.prop
            return None, entity, f"{prop.parent.class_.__name__}.{prop.key}", None
        return None, entity, "", None
    except Exception:
        without("the options of SQLAlchemy's loaders", "why some statements run is not told")
        return _NONE


def _relationship(
    entity: str, path: Any, parent: Any, probe: Probe, at: int, site: CallSite | None
) -> Reason:
    prop = path.prop if path is not None and not path.is_root else None
    attribute = "" if prop is None else prop.key
    route = None if prop is None else loader_options.route_to(parent, prop)
    if probe.tracers[0].locator.called_by(_IMMEDIATE):
        eager = f"{loader_options.owner(parent.manager.mapper, attribute)}.{attribute}"
        return None, entity, eager, route
    return _load("relationship", parent, attribute, probe, at, site), entity, "", route


def entity(context: Any) -> str:
    """The mapped class that the statement is for; empty where it is for none."""
    try:
        mapper = context.invoked_statement._propagate_attrs.get("plugin_subject")
    except AttributeError:  # of no ORM
        return ""
    return "" if mapper is None else mapper.class_.__name__


def _column_load(
    state: Any, wanted: Any, probe: Probe, at: int, site: CallSite | None
) -> facts.AttributeLoaded:
    if not state.expired_attributes.intersection(wanted):
        return _load("deferred", state, ", ".join(sorted(wanted)), probe, at, site)
    # SQLAlchemy calls expired what a SELECT of the base class has not brought, too.
    if (
        loader_options.is_left_out(state, wanted)
        and not object_counter.expiry_of(state, probe.scope)[0]
    ):
        load = _load("deferred", state, ", ".join(sorted(wanted)), probe, at, site)
        load.left_out = True
        return load
    load = _load("expired", state, "", probe, at, site)
    if loader_options.are_generated(state, wanted):
        load.expired_by, load.expired_site = "flush", None
    return load


def _load(
    kind: LoadKind, state: Any, attribute: str, probe: Probe, at: int, site: CallSite | None
) -> facts.AttributeLoaded:
    mark = object_counter.mark_of(state)
    by, expired_site = (
        object_counter.expiry_of(state, probe.scope) if kind != "refresh" else ("", None)
    )
    root, options, root_site = (
        loader_options.selection(state, attribute) if attribute else ("", "", None)
    )
    return facts.AttributeLoaded(
        at,
        site,
        kind,
        loader_options.owner(state.manager.mapper, attribute),
        attribute,
        id(state) if state.key is None else hash(state.key),
        root,
        options,
        None if mark is None else mark.site,
        by,
        expired_site,
        root_site,
    )


def is_by_key(context: Any) -> bool:
    """Whether the statement is the mapper's own SELECT by primary key: `get()`, `merge()`."""
    try:
        parameters = context.compiled_parameters
    except AttributeError:
        return False
    return bool(parameters) and len(parameters) == 1 and _KEY in parameters[0]


def key_of(context: Any) -> str:
    """The attribute that is the primary key of the entity; empty where there is none."""
    statement = getattr(context, "invoked_statement", None)
    selected = getattr(statement, "_propagate_attrs", _EMPTY).get("plugin_subject")
    return "" if selected is None else loader_options.primary_key(selected.mapper)
