"""Tests what the source says of a line: which functions are called there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from session_tracer import CallSite
from session_tracer.where.source import calls_at

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = """
def load(session):
    query = select(Author).where(
        Author.id > 1,
        Author.name.in_(names()),
    )
    with session.begin() as begun:
        for author in session.scalars(query):
            print(author)
    return page
"""


@pytest.mark.parametrize(
    ("line", "calls"),
    [
        (3, {"select", "where", "in_", "names"}),
        (5, {"select", "where", "in_", "names"}),
        (7, {"begin"}),
        (8, {"scalars"}),
        (9, {"print"}),
        (10, set()),
        (99, set()),
    ],
)
def test_what_a_line_calls(tmp_path: Path, line: int, calls: set[str]) -> None:
    file = tmp_path / "app.py"
    file.write_text(SOURCE)
    assert set(calls_at(CallSite(str(file), line, "load")) or ()) == calls


def test_a_source_that_cannot_be_read(tmp_path: Path) -> None:
    assert calls_at(CallSite(str(tmp_path / "gone.py"), 1, "load")) is None
    (tmp_path / "template.html").write_text("{% for author in authors %}")
    assert calls_at(CallSite(str(tmp_path / "template.html"), 1, "page")) is None
