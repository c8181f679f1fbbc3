"""Decides which findings are reported, how severe they are, and which are raised."""

from __future__ import annotations

import os
from dataclasses import replace
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Final, NamedTuple, get_args

from session_tracer.detectors import DEFAULT_DETECTORS
from session_tracer.model.findings import FINDING_IDS, LEFT_OPEN, Severity
from session_tracer.runtime.nearest import did_you_mean
from session_tracer.verdicts import baseline
from session_tracer.verdicts.silencing import silenced_now

if TYPE_CHECKING:
    from collections.abc import Iterable

    from session_tracer.detectors.protocol import Detector
    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding
    from session_tracer.settings import Settings
    from session_tracer.verdicts.baseline import Baseline
    from session_tracer.where.callsite import CallSite

__all__ = ["Policy"]

_SEVERITIES: Final = get_args(Severity)
# The severities that a finding of each has reached.
_REACHED: Final = {severity: _SEVERITIES[: rank + 1] for rank, severity in enumerate(_SEVERITIES)}
_ANY: Final = "*"


class Policy:
    """The rules of one tracer's settings about findings.

    Args:
        settings: The settings.
        detectors: The tracer's detectors. If one is not built in, any finding id is valid, because
            the ids that it reports are not known.

    Raises:
        ValueError: the settings name an unknown finding, or the baseline cannot be read.
    """

    def __init__(self, settings: Settings, detectors: Iterable[Detector]) -> None:
        self._ignored = tuple(_Ignored.parse(entry) for entry in settings.ignore)
        self._severities = dict(settings.severities)
        self._raise_on = frozenset(settings.raise_on)
        ours = {type(detector) for detector in DEFAULT_DETECTORS}
        if all(type(detector) in ours for detector in detectors):
            _check("ignore", [ignored.id for ignored in self._ignored], (_ANY,))
            _check("severities", self._severities)
            _check("raise_on", self._raise_on, _SEVERITIES)
        self._baseline = _known(settings.baseline_path)

    def rule(self, finding: Finding, report: Report) -> Finding | None:
        """Return the finding with its severity, or None if it is not to be reported.

        Args:
            finding: A detector's finding.
            report: The report of the scope that it is about.
        """
        if finding.id in silenced_now() or finding.id in report.silenced:
            return None
        if any(ignored.holds(finding) for ignored in self._ignored):
            return None
        return None if self._baseline.knows(finding) else self.as_reported(finding)

    def as_reported(self, finding: Finding) -> Finding:
        """Return the finding with the severity that the settings give it."""
        severity = self._severities.get(finding.id, finding.severity)
        return finding if severity == finding.severity else replace(finding, severity=severity)

    def raises(self, finding: Finding) -> bool:
        """Return whether `raise_on` selects the finding, by its id, its severity or a lower one."""
        return not self._raise_on.isdisjoint((finding.id, *_REACHED.get(finding.severity, ())))


class _Ignored(NamedTuple):
    """One entry of `Settings.ignore`: `id`, `id@glob`, `id:Entity` or `id:Entity.attribute`."""

    id: str
    glob: str = ""
    entity: str = ""
    attribute: str = ""

    @classmethod
    def parse(cls, entry: str) -> _Ignored:
        id_, at, glob = entry.partition("@")
        if at:
            return cls(id_, glob)
        id_, _, name = entry.partition(":")
        entity, _, attribute = name.partition(".")
        return cls(id_, "", entity, attribute)

    def holds(self, finding: Finding) -> bool:
        """Return whether the entry matches the finding."""
        return (
            self.id in (finding.id, _ANY)
            and (not self.glob or _lies_in(finding.site, self.glob))
            and self.entity in ("", finding.entity)
            and self.attribute in ("", finding.attribute)
        )


def _lies_in(site: CallSite | None, glob: str) -> bool:
    if site is None:
        return False
    return fnmatch(site.path, glob) or fnmatch(os.path.abspath(site.file), glob)


def _known(path: str) -> Baseline:
    if not path:
        return baseline.NOTHING_KNOWN
    try:
        return baseline.load(path)
    except ValueError as error:
        raise ValueError(f"Invalid baseline_path. {error}") from None


def _check(option: str, ids: Iterable[str], besides: tuple[str, ...] = ()) -> None:
    possible = (*besides, *FINDING_IDS, LEFT_OPEN)
    for id_ in sorted(ids):
        if id_ not in possible:
            raise ValueError(
                f"Invalid {option}={id_!r}: expected the id of a finding."
                f"{did_you_mean(id_, possible, cutoff=0.0)}"
            )
