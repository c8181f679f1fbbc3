"""The code that loads an attribute together with its object."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from session_tracer.detectors.wording import awaited, expiry
from session_tracer.where.source import calls_at, is_for_any_class

if TYPE_CHECKING:
    from session_tracer.facts import AttributeLoaded
    from session_tracer.ledger.report import Report
    from session_tracer.where.callsite import CallSite

__all__ = ["selecting", "selecting_with"]

# What is called where a statement is written or executed.
_SELECTS: Final = frozenset(
    {"select", "query", "scalars", "scalar", "execute", "stream", "stream_scalars", "exec"}
    | {"all", "first", "one", "one_or_none", "filter", "filter_by", "paginate"}
)
_GETS: Final = frozenset({"get", "get_one"})


def selecting(
    root: str,
    options: str,
    site: CallSite | None,
    report: Report,
    through: str = "",
    replacement: str = "",
) -> str:
    """Return the statement that loads more, and the line if such a statement is there.

    A line that calls a function of a library, which runs the statement, has none to be changed. Nor
    has a line of a test, if code of the application reads the object, or of a function that selects
    whatever class its caller names: the option would be wrong for the others. Where there is no
    line, what was to be loaded `through` a relationship can still be loaded before that is read.
    With a `replacement`, the statement has an option already that is to be replaced.
    """
    if site is not None and (report.is_left_out(site) or is_for_any_class(site)):
        site = None
    if replacement:
        return f"replace {replacement} in the SELECT{'' if site is None else f' at {site}'}"
    select = f"select({root}).options({options})"
    alone = f"{select} before {through} is read" if through else select
    calls = None if site is None else calls_at(site)
    if site is None or calls is None:
        return alone if site is None else f"{select} at {site}"
    if not calls.isdisjoint(_SELECTS):
        return f"{select} at {site}"
    if not calls.isdisjoint(_GETS):
        got = next(iter(calls & _GETS))
        return f"{awaited(report)}session.{got}({root}, key, options=[{options}]) at {site}"
    return alone


def selecting_with(root: str, options: str, fact: AttributeLoaded, report: Report) -> str:
    """Return the SELECT that brought the object, so that it loads more, and its line if known.

    Of an object that was expired since, it is one that follows.
    """
    if fact.expired_by:
        return f"{selecting(root, options, None, report)} after {expiry(fact)}"
    site, replacement = fact.root_site or fact.loaded_site, fact.replacement
    if site in report.ledger.locked_at:
        # The join would be an outer one, whose rows PostgreSQL refuses to lock.
        options, replacement = (
            _JOINED.sub(r"\1selectinload(", one) for one in (options, replacement)
        )
    return selecting(root, options, site, report, fact.through, replacement)


_JOINED: Final = re.compile(r"(^|, | by )joinedload\(")
