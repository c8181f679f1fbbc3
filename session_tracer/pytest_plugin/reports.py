"""Writes the findings of a run to files, as JSON and as SARIF."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final

from session_tracer.pytest_plugin.annotations import below
from session_tracer.pytest_plugin.sarif import sarif_log
from session_tracer.pytest_plugin.summary import allowing
from session_tracer.version import VERSION

if TYPE_CHECKING:
    from pathlib import Path

    from session_tracer.pytest_plugin.run_findings import Entry, RunFindings
    from session_tracer.where.callsite import CallSite

__all__ = ["check_writable", "write_json", "write_sarif"]

# Changes if a key is renamed or removed.
_FORMAT: Final = 1


def check_writable(option: str, path: Path) -> None:
    """Refuse a path that cannot be written, before tests run. Missing folders are created.

    Raises:
        ValueError: the message names the option and the path.
    """
    is_new = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
        if is_new:
            path.unlink()
    except OSError as error:
        why = error.strerror
        if not path.parent.is_dir():
            why = f"{os.fspath(path.parent)!r} is not a folder"
        raise ValueError(f"Cannot write {option}={os.fspath(path)!r}: {why}.") from None


def write_json(path: Path, found: RunFindings, root: Path) -> None:
    """Write every finding: new, known and allowed ones; and the budgets that were exceeded."""
    findings = [_finding(entry, root) for entry in found.all]
    report: dict[str, Any] = {
        "format": _FORMAT,
        "session_tracer": VERSION,
        "sessions": found.sessions,
        "findings": findings,
    }
    if found.exceeded:
        report["exceeded_budgets"] = dict(sorted(found.exceeded.items()))
    _write(path, report)


def write_sarif(path: Path, found: RunFindings, root: Path) -> None:
    """Write the new findings as SARIF 2.1.0, for code scanning."""
    _write(path, sarif_log(found.new, root))


def _write(path: Path, report: dict[str, Any]) -> None:
    text = json.dumps(report, indent=2, ensure_ascii=False, default=str)
    path.write_text(f"{text}\n", encoding="utf-8", newline="\n")


def _finding(entry: Entry, root: Path) -> dict[str, Any]:
    finding = entry.finding
    values = {
        "id": finding.id,
        "severity": finding.severity,
        "state": entry.state,
        "reason": entry.reason,
        "message": entry.message,
        "remedy": finding.remedy,
        "help": finding.help,
        "site": _site(finding.site, root),
        "session_site": _site(finding.session_site, root),
        "entity": finding.entity,
        "attribute": finding.attribute,
        "count": entry.count,
        "counted": entry.cost.noun,
        "total_ms": entry.cost.ms,
        "test_ms": entry.cost.of_ms,
        "work": finding.work,
        "tests": [{"id": nodeid, "phase": phase} for nodeid, phase in sorted(entry.tests.items())],
        "allow": allowing([finding], in_tests=bool(entry.tests)),
        "evidence": dict(finding.evidence),
    }
    return {name: value for name, value in values.items() if value not in (None, "", [], {}, 0.0)}


def _site(site: CallSite | None, root: Path) -> dict[str, Any] | None:
    if site is None:
        return None
    return {
        "file": below(site.file, os.fspath(root)),
        "line": site.line,
        "function": site.function,
    }
