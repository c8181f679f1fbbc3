"""Formats findings as SARIF 2.1.0, which code scanning services read."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from session_tracer import detectors
from session_tracer.model.findings import LEFT_OPEN
from session_tracer.pytest_plugin.annotations import below
from session_tracer.verdicts.baseline import Known
from session_tracer.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from session_tracer.model.findings import Finding
    from session_tracer.pytest_plugin.run_findings import Entry
    from session_tracer.where.callsite import CallSite

__all__ = ["meaning_of", "sarif_log"]

_SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVELS: Final = {"error": "error", "warning": "warning", "info": "note"}
_LEFT_OPEN: Final = "a session is still open, in a transaction, after its test."


def sarif_log(entries: Sequence[Entry], root: Path) -> dict[str, Any]:
    """Return the log of one run.

    Args:
        entries: The findings, each once.
        root: The folder to which paths are relative.
    """
    rules = list(dict.fromkeys(entry.finding.id for entry in entries))
    seen: Counter[str] = Counter()
    results = []
    for entry in entries:
        result = _result(entry, rules.index(entry.finding.id), root)
        identity = _fingerprint(entry.finding, root)
        seen[identity] += 1
        result["partialFingerprints"] = {"sessionTracer/v1": f"{identity}:{seen[identity]}"}
        results.append(result)
    driver = {
        "name": "session_tracer",
        "version": VERSION,
        "rules": [_rule(id_, entries) for id_ in rules],
    }
    return {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": results}],
    }


def _rule(id_: str, entries: Iterable[Entry]) -> dict[str, Any]:
    finding = next(entry.finding for entry in entries if entry.finding.id == id_)
    meaning = meaning_of(id_)
    return {
        "id": id_,
        "shortDescription": {"text": meaning},
        "fullDescription": {"text": meaning},
        "help": {"text": finding.help},
        "defaultConfiguration": {"level": _LEVELS[finding.severity]},
    }


def meaning_of(id_: str) -> str:
    """Return what the finding means, from its detector's docstring: "`id`: meaning"."""
    if id_ == LEFT_OPEN:
        return _LEFT_OPEN
    for detector in detectors.DEFAULT_DETECTORS:
        ids, colon, meaning = (type(detector).__doc__ or "").partition("\n")[0].partition(": ")
        if colon and f"`{id_}`" in ids:
            return meaning
    return id_


def _result(entry: Entry, rule: int, root: Path) -> dict[str, Any]:
    finding = entry.finding
    work = f"{finding.work}: " if finding.work else ""
    result: dict[str, Any] = {
        "ruleId": finding.id,
        "ruleIndex": rule,
        "level": _LEVELS[finding.severity],
        "message": {"text": f"{work}{entry.message}\n{finding.remedy}".strip()},
        "properties": {"count": entry.count, "tests": sorted(entry.tests)},
    }
    if finding.site is not None:
        result["locations"] = [_location(finding.site, root)]
    if finding.session_site not in (None, finding.site):
        opened = _location(finding.session_site, root)
        result["relatedLocations"] = [
            {**opened, "message": {"text": "the session was opened here"}}
        ]
    return result


def _location(site: CallSite, root: Path) -> dict[str, Any]:
    path = below(site.file, os.fspath(root))
    uri = Path(path).as_uri() if os.path.isabs(path) else quote(path)
    return {
        "physicalLocation": {
            "artifactLocation": {"uri": uri},
            "region": {"startLine": site.line},
        },
        "logicalLocations": [{"fullyQualifiedName": site.function, "kind": "function"}],
    }


def _fingerprint(finding: Finding, root: Path) -> str:
    """Return what stays the same when lines move."""
    known = Known.of(finding, os.path.realpath(root))
    return hashlib.sha256("\0".join(known).encode()).hexdigest()[:16]
