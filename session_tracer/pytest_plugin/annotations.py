"""Formats findings as workflow commands, which GitHub shows next to the lines of code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from session_tracer.pytest_plugin.run_findings import Entry

__all__ = ["below", "is_github_actions", "repository", "workflow_commands"]

_COMMANDS: Final = {"error": "error", "warning": "warning", "info": "notice"}


def is_github_actions(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether this process runs on GitHub Actions."""
    return environ.get("GITHUB_ACTIONS") == "true"


def workflow_commands(
    entries: Iterable[Entry], environ: Mapping[str, str] = os.environ
) -> Iterator[str]:
    """Yield a line for each finding: `::warning file=report.py,line=33,title=n-plus-one::...`."""
    root = repository(os.getcwd(), environ)
    for entry in entries:
        finding = entry.finding
        properties = {"title": finding.id}
        if finding.site is not None:
            file = below(finding.site.file, root)
            properties = {"file": file, "line": str(finding.site.line), **properties}
        listed = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
        message = _data(f"{entry.message}\n{finding.remedy}")
        yield f"::{_COMMANDS[finding.severity]} {listed}::{message}"


def repository(folder: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return the folder of the repository that contains this one, or this one if none does."""
    named = environ.get("GITHUB_WORKSPACE")
    around = (folder, *map(str, Path(folder).parents))
    has_git = (one for one in around if os.path.exists(os.path.join(one, ".git")))
    return named or next(has_git, folder)


def below(file: str, root: str) -> str:
    """Return the path relative to the repository, or the path as it is if it is outside."""
    real, home = os.path.realpath(file), os.path.realpath(root)
    if not real.startswith(home + os.sep):
        return file
    return os.path.relpath(real, home).replace(os.sep, "/")


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
