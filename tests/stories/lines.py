"""Tells which line of a test a call site names."""

from __future__ import annotations

import inspect
import linecache
from typing import TYPE_CHECKING, Any

from session_tracer import CallSite

if TYPE_CHECKING:
    from collections.abc import Callable


def line(site: CallSite | None) -> str:
    """The line itself, as it is written."""
    return "" if site is None else linecache.getline(site.file, site.line).strip()


def marked(function: Callable[..., Any], mark: str) -> CallSite:
    """The site of the one line of `function` that bears the comment `# mark`."""
    lines, first = inspect.getsourcelines(function)
    (offset,) = (n for n, text in enumerate(lines) if f"# {mark}" in text)
    code = function.__code__
    name = code.co_qualname.rpartition(".<locals>.")[2]
    return CallSite(code.co_filename, first + offset, name)
