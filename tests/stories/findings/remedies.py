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
    from tests.twins import Twin

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


def use(twin: Twin, maker: str) -> None:
    """Have the twin make its sessions as the finding says."""
    twin.factory = pasted(maker)
    twin.factory.configure(bind=twin.engine)


def unexpiring(twin: Twin) -> str:
    """What a finding tells to make sessions with, so that a commit expires nothing."""
    return f"{'async_' if twin.is_async else ''}sessionmaker(expire_on_commit=False)"
