"""The loader options that bring an attribute with its object, as code to paste."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from sqlalchemy.orm import ColumnProperty, RelationshipProperty
from sqlalchemy.orm.interfaces import MapperProperty

from session_tracer.ledger import object_counter
from session_tracer.ledger.ledger import new_tuple
from session_tracer.ledger.origin import Route
from session_tracer.runtime.degraded import without

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.orm import InstanceState, Mapper

    from session_tracer.ledger.origin import OriginRef
    from session_tracer.where.callsite import CallSite

__all__ = [
    "Selection",
    "add_loaders",
    "brought_by",
    "column_kind",
    "is_left_out",
    "key_and_tree",
    "load_path",
    "loaded_at",
    "loader",
    "owner",
    "primary_key",
    "refreshing",
    "route_to",
    "selection",
]

# What is known of each mapper, worked out once.
_KNOWN: Final[weakref.WeakKeyDictionary[Mapper[Any], _Known]] = weakref.WeakKeyDictionary()
# More options than this are not nested in one another.
_DEEPEST: Final = 5


class _Known:
    """What is known of a mapper; it must not hold the mapper."""

    __slots__ = ("columns", "generated", "is_tree", "options", "primary_key")

    def __init__(self, mapper: Mapper[Any]) -> None:
        props: list[Any] = [prop for prop in mapper.column_attrs if not prop.deferred]
        # The attributes of columns that are not deferred, and that the database fills in.
        self.columns = frozenset([prop.key for prop in props])
        self.generated = frozenset([prop.key for prop in props if _is_generated(prop)])
        self.is_tree = any(map(_is_of_own_table, mapper.columns))
        self.primary_key: str | None = None
        # By attribute: the option, and the class that the attribute is mapped on.
        self.options: dict[str, tuple[str, str]] = {}


def _known(mapper: Mapper[Any]) -> _Known:
    known = _KNOWN.get(mapper)
    if known is None:
        known = _KNOWN[mapper] = _Known(mapper)
    return known


def loader(mapper: Mapper[Any], attribute: str) -> str:
    """The option that brings the attribute with an object of the mapper: `selectinload(...)`.

    Columns that are loaded together, `notes, text`, are one attribute here.
    """
    return _option(mapper, attribute)[0]


def add_loaders(mapper: Mapper[Any], attributes: dict[tuple[str, str], tuple[str, str]]) -> None:
    """Add the class to select and the option, for each attribute of the mapper or its registry.

    The class is the mapper's own for attributes that are mapped on a base of it.
    """
    named = {one.class_.__name__: one for one in mapper.registry.mappers}
    named |= {one.class_.__name__: one for one in mapper.iterate_to_root()}
    for entity, attribute in attributes:
        of = named.get(entity)
        if of is not None:
            root = mapper if mapper.isa(of) else of
            attributes[entity, attribute] = (root.class_.__name__, loader(of, attribute))


def owner(mapper: Mapper[Any], attribute: str) -> str:
    """The class that the attribute is mapped on: the mapper's, or a base of it."""
    return _option(mapper, attribute)[1]


def _option(mapper: Mapper[Any], attribute: str) -> tuple[str, str]:
    options = (_KNOWN.get(mapper) or _known(mapper)).options
    option = options.get(attribute)
    if option is None:
        properties = _properties(mapper, attribute)
        named = _owner(mapper, properties).class_.__name__
        option = options[attribute] = (_loader(properties), named)
    return option


def _owner(mapper: Mapper[Any], properties: list[Any]) -> Mapper[Any]:
    parents: set[Mapper[Any]] = {prop.parent for prop in properties}
    return parents.pop() if len(parents) == 1 else mapper


def _properties(mapper: Mapper[Any], attribute: str) -> list[Any]:
    found = [mapper.attrs.get(name) for name in attribute.split(", ")] if attribute else []
    return [] if None in found else found


def _loader(properties: list[Any]) -> str:
    if not properties:
        return ""
    first = properties[0]
    if not isinstance(first, RelationshipProperty):
        return ", ".join(_undeferred(properties))
    if first.lazy in ("dynamic", "write_only"):
        return ""
    # A join for each row of a collection would multiply its parents.
    return f"{'selectinload' if first.uselist else 'joinedload'}({_name(first)})"


def _undeferred(columns: list[Any]) -> list[str]:
    group = getattr(columns[0], "group", None)
    return [f'undefer_group("{group}")'] if group else _undeferred_each(columns)


def _undeferred_each(columns: list[Any]) -> list[str]:
    return [f"undefer({_name(column)})" for column in columns]


def _name(prop: Any) -> str:
    return f"{prop.parent.class_.__name__}.{prop.key}"


class Selection(NamedTuple):
    """The class to select, the options to select it with, and the line where it was selected.

    `through` is the relationship of that class by which the object came, if it was not selected.
    `replacement` is what there is to replace, if an option of that line has left the attribute out:
    `lazyload(Author.books) by selectinload(Author.books)`. SQLAlchemy refuses both together.
    """

    root: str
    options: str
    site: CallSite | None = None
    through: str = ""
    replacement: str = ""


def selection(state: InstanceState[Any], attribute: str) -> Selection:
    """What to select so that the attribute is there.

    Where the object was itself loaded through relationships, by a lazy load or an eager one, the
    options are nested, from the class that was selected first. They are empty where none would do.
    """
    mapper = state.manager.mapper
    mark = object_counter.mark_of(state)
    alone = Selection(mapper.class_.__name__, loader(mapper, attribute), loaded_at(state))
    try:
        route, selected = _route(state, mark), alone
        if route.root is not mapper or route.steps:
            selected = _along(route, mapper, attribute) or alone
        if getattr(state, "load_options", ()):
            replacement = _replacement(state, route.steps, attribute)
            selected = selected._replace(replacement=replacement)
        return selected
    except Exception:  # the path is SQLAlchemy's own business: without it, what is certain
        _without_path()
        return alone


# How SQLAlchemy names the options that leave a relationship or a column out.
_LAZY: Final = (("lazy", "select"),)
_DEFERRED: Final = (("deferred", True), ("instrument", True))


def _replacement(state: InstanceState[Any], steps: tuple[Any, ...], attribute: str) -> str:
    """The option by which a SELECT has left the attribute out, or a step to it; and a better one.

    One that is not for an attribute by its name, `lazyload("*")`, can stay.
    """
    mapper = state.manager.mapper
    left_out = {
        tuple([step for step in element.path.path if isinstance(step, MapperProperty)])
        for option in state.load_options
        for element in getattr(option, "context", ())
        if element.strategy in (_LAZY, _DEFERRED)
    }
    properties = _properties(mapper, attribute)
    columns = properties
    if properties and isinstance(properties[0], RelationshipProperty):
        steps, columns = (*steps, properties[0]), []
    for number, step in enumerate(steps):
        if steps[: number + 1] in left_out:
            further = _options(step.parent, steps[number:], _owner(mapper, properties), columns)
            return f"lazyload({_name(step)}) by {', '.join(further)}"
    deferred = [f"defer({_name(one)})" for one in columns if (*steps, one) in left_out]
    undeferred = ", ".join(_undeferred_each(columns))
    return f"{', '.join(deferred)} by {undeferred}" if deferred else ""


class Refreshing(NamedTuple):
    """What `refresh()` loads of an object that not every SELECT of its class does.

    `attribute` has the relationships and deferred columns that it was called with. `selection` is
    what to select so that they are there; its root is empty where the object is to be read again.
    `is_more` is whether there are any, with or without a name.
    """

    attribute: str
    selection: Selection
    is_more: bool


def refreshing(
    state: InstanceState[Any], names: Iterable[str] | None, *, is_current: bool
) -> Refreshing:
    """What `refresh()` loads: all of the object, or the attributes with these names.

    With `is_current`, what the object's SELECT has read is still there, and has not changed since.
    """
    mapper = state.manager.mapper
    columns, named, is_more = _known(mapper).columns, [], False
    known: list[Any] = [
        prop
        for prop in _came_with(state)
        if prop.key not in columns and mapper.attrs.get(prop.key) is prop
    ]
    if names is None:
        is_more = bool(known) or any(map(_is_eager, mapper.relationships))
    else:
        found = [mapper.attrs.get(name) for name in sorted(names) if name not in columns]
        named = [prop for prop in found if isinstance(prop, _PROPERTIES)]
        keys = {mapper.get_property_by_column(column).key for column in mapper.primary_key}
        is_loaded = any(prop in known or _is_eager(prop) for prop in named)
        is_current = is_current and not is_loaded and columns.isdisjoint({*names} - keys)
    selection = _with_select(state, named) if named and is_current else None
    if selection is None:
        own = dict.fromkeys(_loader([prop]) for prop in (*named, *known))
        selection = Selection("", ", ".join(filter(None, own)))
    return Refreshing(", ".join([prop.key for prop in named]), selection, is_more or bool(named))


def _with_select(state: InstanceState[Any], properties: list[Any]) -> Selection | None:
    """What to select so that several attributes are there, if the object was selected."""
    found = [selection(state, prop.key) for prop in properties]
    if not load_path(state) or not all(one.options for one in found):
        return None
    if len(found) == 1:
        return found[0]
    options = ", ".join(dict.fromkeys(one.options for one in found))
    return found[0]._replace(options=options, replacement="")


def _is_eager(prop: Any) -> bool:
    return getattr(prop, "lazy", None) in _EAGER


def _came_with(state: InstanceState[Any]) -> list[Any]:
    """The relationships and deferred columns that options of its SELECT loaded with an object."""
    found: list[Any] = []
    try:
        options: Any = state.load_options
        for part in [part for one in options for part in getattr(one, "context", ())]:
            strategy = dict(part.strategy or ())
            if strategy.get("lazy") in _EAGER or strategy.get("deferred") is False:
                found += [step for step in part.path.path if isinstance(step, _PROPERTIES)][-1:]
    except Exception:  # the shape of an option is SQLAlchemy's own business
        without("InstanceState.load_options", "the options of an object's SELECT are not advised")
    return found


_PROPERTIES: Final = (ColumnProperty, RelationshipProperty)
# What a relationship that is loaded with its object is mapped or selected with.
_EAGER: Final = frozenset({"joined", "selectin", "subquery", "immediate", False})


def loaded_at(state: InstanceState[Any]) -> CallSite | None:
    """The line that loaded the object. An object that was added has none: it came by an INSERT."""
    mark = object_counter.mark_of(state)
    return mark.site if mark is not None and load_path(state) else None


def brought_by(state: InstanceState[Any]) -> int | None:
    """A number that is equal for objects that came by the same SELECT; None for an added one.

    Of objects that came by lazy loads it is the SELECT from which these began. If they began with
    an added object, it is that of the lazy load.
    """
    mark = object_counter.mark_of(state)
    if mark is not None and mark.route is not None and mark.route.select is not None:
        return mark.route.select
    return object_counter.brought_by(state)


def route_to(parent: InstanceState[Any], prop: Any) -> Route | None:
    """How the objects come that a lazy load of the parent's relationship is about to bring."""
    try:
        route = _route(parent, object_counter.mark_of(parent))
        # Of a relationship to itself, that it is followed more than once is all that counts.
        steps = route.steps
        if steps[-2:] != (prop, prop):
            steps = (*steps, prop)
    except Exception:  # as above
        _without_path()
        return None
    if len(steps) > _DEEPEST:
        return None
    longer: Route = new_tuple(Route, (route.root, steps, route.site, route.select))
    return longer


def _route(state: InstanceState[Any], mark: object_counter.Mark | OriginRef | None) -> Route:
    """How the object came, as far as that is known.

    Its load path begins anew with each lazy load; what came before, its mark knows.
    """
    path: Any = state.load_path.path
    steps: tuple[Any, ...] = ()
    if len(path) > 1:
        steps = tuple(step for step in path if isinstance(step, RelationshipProperty))
    root = path[0].mapper if path else state.manager.mapper
    before = None if mark is None else mark.route
    select = None if before is None else before.select
    if before is not None and steps:
        if steps[: len(before.steps)] == before.steps:
            return Route(root, steps, before.site, select)
        if steps[0] is before.steps[-1]:
            return Route(before.root, before.steps + steps[1:], before.site, select)
    site = mark.site if mark is not None and path else None
    if select is None:
        select = object_counter.brought_by(state)
    route: Route = new_tuple(Route, (root, steps, site, select))
    return route


def _along(route: Route, mapper: Mapper[Any], attribute: str) -> Selection | None:
    properties = _properties(mapper, attribute)
    if not properties or len(route.steps) > _DEEPEST:
        return None
    last, columns = _owner(mapper, properties), properties
    steps = route.steps
    if isinstance(properties[0], RelationshipProperty):
        steps, columns = (*route.steps, properties[0]), []
    if not all(_loader([step]) for step in steps):
        return None
    options = ", ".join(_options(route.root, steps, last, columns))
    through = _name(route.steps[0]) if route.steps else ""
    return Selection(route.root.class_.__name__, options, route.site, through)


def _options(
    entity: Any, steps: tuple[Any, ...], last: Mapper[Any], columns: list[Any]
) -> list[str]:
    """The options from the entity on, along the steps, to the columns of the last one's."""
    of = steps[0].parent if steps else last
    # A SELECT of a base class leaves out what is its subclasses' own.
    is_own = of is not entity and of.isa(entity)
    if steps:
        option, further = _step(steps)
        rest = _options(steps[0].mapper, further, last, columns) if further or columns else []
        options = [option + _within(rest)]
    elif is_own:
        # undefer_group() reaches the base's columns alone.
        options = _undeferred_each([column for column in columns if column.deferred])
    else:
        options = _undeferred(columns)
    if is_own:
        options.insert(0, f"{_OWN}{entity.class_.__name__}, [{of.class_.__name__}])")
    return options


_OWN: Final = "selectin_polymorphic("


def _within(options: list[str]) -> str:
    """What follows an option, where these are to hold for what it brings."""
    if not options:
        return ""
    if len(options) == 1 and not options[0].startswith(_OWN):
        return f".{options[0]}"
    return f".options({', '.join(options)})"


def _step(steps: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
    """The option for the first step, and the steps that it leaves."""
    first = steps[0]
    again = next((n for n, step in enumerate(steps) if step is not first), len(steps))
    if again == 1:
        return _loader([first]), steps[1:]
    return f"selectinload({_name(first)}, recursion_depth=-1)", steps[again:]


def load_path(state: InstanceState[Any]) -> Any:
    """How the object was selected: the entity, and what led from there; empty where it was not."""
    try:
        return state.load_path.path
    except AttributeError:
        _without_path()
        return ()


def _without_path() -> None:
    without(
        "InstanceState.load_path",
        "the options that findings advise are those for an object that was selected by itself",
    )


def is_left_out(state: InstanceState[Any], names: Any) -> bool:
    """Whether these are columns of a subclass, and the object was selected by its base class."""
    mapper = state.manager.mapper
    if mapper.inherits is None:
        return False
    path = load_path(state)
    entity = path[-1].mapper if path else mapper
    return entity is not mapper and not any(entity.has_property(name) for name in names)


def column_kind(
    state: InstanceState[Any], names: Iterable[str]
) -> Literal["deferred", "generated", ""]:
    """Whether these are deferred, or columns that the database gives a value as it is written.

    A flush expires what is generated. A commit expires all columns, and SQLAlchemy continues to
    list deferred columns and relationships as expired.
    """
    known = _known(state.manager.mapper)
    columns = known.columns.intersection(names)
    if not columns:
        return "deferred"
    return "generated" if columns <= known.generated else ""


def _is_generated(prop: Any) -> bool:
    return any(
        getattr(column, name, None) is not None
        for column in prop.columns
        for name in ("computed", "onupdate", "server_default", "server_onupdate")
    )


def _is_of_own_table(column: Any) -> bool:
    table = getattr(getattr(column, "table", None), "fullname", None)
    keys = getattr(column, "foreign_keys", ())
    return any(key.target_fullname.rpartition(".")[0] == table for key in keys)


def primary_key(mapper: Mapper[Any]) -> str:
    """The attribute that is the primary key; empty where several are."""
    return key_and_tree(mapper)[0]


def key_and_tree(mapper: Mapper[Any]) -> tuple[str, bool]:
    """The primary key, and whether rows of the table refer to other rows of it, as in a tree."""
    known = _known(mapper)
    if known.primary_key is None:
        columns = mapper.primary_key
        is_one = len(columns) == 1
        known.primary_key = mapper.get_property_by_column(columns[0]).key if is_one else ""
    return known.primary_key, known.is_tree
