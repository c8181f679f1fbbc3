"""Reads what a finding tells to write, and makes code of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy
from sqlalchemy import orm
from sqlalchemy.ext import asyncio as ext_asyncio

from tests import library
from tests.stories.findings import mappings

if TYPE_CHECKING:
    from session_tracer import Finding

_IN_SCOPE = {
    **vars(sqlalchemy),
    **vars(orm),
    **vars(ext_asyncio),
    **vars(library),
    **vars(mappings),
}


def to_write(finding: Finding) -> str:
    """The code of a remedy, without the line where it belongs."""
    return finding.remedy.partition(" at ")[0]


def pasted(code: str, **names: Any) -> Any:
    """What the code makes where the mapped classes and these names are in scope."""
    return eval(code, {**_IN_SCOPE, **names})
