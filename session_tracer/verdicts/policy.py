"""Decides which findings are reported, how severe they are, and which are raised."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, get_args

from session_tracer.detectors import DEFAULT_DETECTORS
from session_tracer.model.findings import Severity
from session_tracer.verdicts import baseline
from session_tracer.verdicts.ignoring import ANY, Ignored, check_ids
from session_tracer.verdicts.silencing import silenced_now

if TYPE_CHECKING:
    from collections.abc import Iterable

    from session_tracer.detectors.protocol import Detector
    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding
    from session_tracer.settings import Settings
    from session_tracer.verdicts.baseline import Baseline

__all__ = ["Policy"]

_SEVERITIES: Final = get_args(Severity)
# The severities that a finding of each has reached.
_REACHED: Final = {severity: _SEVERITIES[: rank + 1] for rank, severity in enumerate(_SEVERITIES)}


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
        self._ignored = tuple(Ignored.parse(entry) for entry in settings.ignore)
        self._severities = dict(settings.severities)
        self._raise_on = frozenset(settings.raise_on)
        ours = {type(detector) for detector in DEFAULT_DETECTORS}
        if all(type(detector) in ours for detector in detectors):
            check_ids("ignore", [ignored.id for ignored in self._ignored], (ANY,))
            check_ids("severities", self._severities)
            check_ids("raise_on", self._raise_on, _SEVERITIES)
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


def _known(path: str) -> Baseline:
    if not path:
        return baseline.NOTHING_KNOWN
    try:
        return baseline.load(path)
    except ValueError as error:
        raise ValueError(f"Invalid baseline_path. {error}") from None
