"""The attributes that SQLAlchemy loads, because the application reads them, by their frames."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Final

from session_tracer import facts
from session_tracer.hooks import error_frames, loader_options
from session_tracer.ledger import object_counter, use
from session_tracer.where.running import running_frame

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal

    from session_tracer.facts import Expiry, LoadKind, Missing
    from session_tracer.hooks.error_frames import Read
    from session_tracer.ledger.use import Use
    from session_tracer.where.callsite import CallSite
    from session_tracer.where.owner import Owner

__all__ = ["missing"]

_KINDS: Final[Mapping[Missing, LoadKind]] = {
    "relationship": "relationship",
    "dynamic": "relationship",
    "deferred": "deferred",
    "left_out": "deferred",
    "expired": "expired",
}


def missing(read: Read, ledger: Use) -> tuple[Missing, Expiry | Literal[""], CallSite | None]:
    """What the attribute needed, and what expired its object, and where."""
    state = read.state
    by, expired_site = object_counter.expiry_of(state, ledger.scope)
    load = read.load
    if load == "expired" and loader_options.column_kind(state, read.together) == "generated":
        by, expired_site = "flush", None
    if load == "expired" and by != "flush" and loader_options.is_left_out(state, (read.attribute,)):
        load = "left_out"
    return load, by, expired_site


def _read_by(ledger: Use, user: Owner) -> facts.AttributeLoaded | None:
    """The attribute that a thread or task reads now; None if it does something else."""
    if user.is_current():
        read = error_frames.attribute_read(error_frames.outwards(running_frame(1)))
    else:
        threads = () if user.is_task else user.frames_of_thread()
        read = error_frames.attribute_read(chain(user.frames_of_greenlet(), threads))
    if read is None:
        return None
    state, attribute = read.state, read.attribute
    load, by, expired_site = missing(read, ledger)
    selected = loader_options.selection(state, attribute)
    return facts.AttributeLoaded(
        at=ledger.clock(),
        site=None,
        kind=_KINDS[load],
        entity=loader_options.owner(state.manager.mapper, attribute),
        attribute=attribute,
        root=selected.root,
        options="" if load == "expired" else selected.options,
        loaded_site=loader_options.loaded_at(state),
        expired_by=by,
        expired_site=expired_site,
        root_site=selected.site,
        through=selected.through,
        replacement=selected.replacement,
    )


use.READS[:] = [_read_by]
