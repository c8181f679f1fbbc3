"""Entries that name the findings which are not to be reported."""

from __future__ import annotations

import os
import re
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Final, NamedTuple

from session_tracer.model.findings import FINDING_IDS, LEFT_OPEN
from session_tracer.runtime.nearest import did_you_mean
from session_tracer.settings import IGNORED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from session_tracer.model.findings import Finding
    from session_tracer.where.callsite import CallSite

__all__ = ["ANY", "Ignored", "check_ids"]

ANY: Final = "*"


class Ignored(NamedTuple):
    """One entry of `Settings.ignore`: `id`, `id@glob`, `id:Entity` or `id:Entity.attribute`."""

    id: str
    glob: str = ""
    entity: str = ""
    attribute: str = ""

    @classmethod
    def parse(cls, entry: str) -> Ignored:
        """Return the entry that a text is."""
        id_, at, glob = entry.partition("@")
        if at:
            return cls(id_, glob)
        id_, _, name = entry.partition(":")
        entity, _, attribute = name.partition(".")
        return cls(id_, "", entity, attribute)

    @classmethod
    def of(cls, finding: Finding) -> Ignored:
        """Return the narrowest entry that matches the finding: by its entity, else by its file."""
        by_name = cls(finding.id, "", finding.entity or "", finding.attribute or "")
        if by_name.entity and re.fullmatch(IGNORED, str(by_name)):
            return by_name
        return cls(finding.id, "" if finding.site is None else _literal(finding.site.path))

    def __str__(self) -> str:
        if self.glob:
            return f"{self.id}@{self.glob}"
        name = ".".join(filter(None, [self.entity, self.attribute]))
        return f"{self.id}:{name}" if name else self.id

    def holds(self, finding: Finding) -> bool:
        """Return whether the entry matches the finding."""
        return (
            self.id in (finding.id, ANY)
            and (not self.glob or _lies_in(finding.site, self.glob))
            and self.entity in ("", finding.entity)
            and self.attribute in ("", finding.attribute)
        )


def _literal(path: str) -> str:
    """Return the glob that only this path matches."""
    return re.sub(r"[*?[]", r"[\g<0>]", path)


def _lies_in(site: CallSite | None, glob: str) -> bool:
    if site is None:
        return False
    return fnmatch(site.path, glob) or fnmatch(os.path.abspath(site.file), glob)


def check_ids(option: str, ids: Iterable[str], also: tuple[str, ...] = ()) -> None:
    """Refuse an id that is not a built-in finding and is not in `also`.

    Raises:
        ValueError: an id is unknown. The message names the option and the most similar id.
    """
    possible = (*also, *FINDING_IDS, LEFT_OPEN)
    for id_ in sorted(ids):
        if id_ not in possible:
            raise ValueError(
                f"Invalid {option}={id_!r}: expected the id of a finding."
                f"{did_you_mean(id_, possible, cutoff=0.0)}"
            )
