"""Tests what the source says of a line: which functions are called there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from session_tracer import CallSite
from session_tracer.where.source import calls_at, is_for_any_class

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


GENERIC = """
def by_parameter(session, model, **filters):
    query = select(model).filter_by(**filters)
    return session.scalars(query).one()

def by_key(session, model, key):
    return session.get(model, key)

class Repository:
    model = Author

    def all(self):
        return self.session.query(self.model).all()

    async def one(self, *, key):
        return await self.session.get_one(self.model, key)
"""
OWN = """
def authors(session, name):
    return session.scalars(select(Author).where(Author.name == name)).all()

def cached(session, key):
    if key in CACHE:
        return CACHE.get(key)
    return session.get(Author, key)

def run(session, query):
    return session.scalars(query).all()

def outer(session, model):
    def inner():
        return session.query(models.Author).all()
    return inner()

session.query(model)
"""


@pytest.mark.parametrize(("source", "is_generic"), [(GENERIC, True), (OWN, False)])
def test_whether_a_function_selects_what_its_caller_names(
    tmp_path: Path, source: str, is_generic: bool
) -> None:
    file = tmp_path / "app.py"
    file.write_text(source)
    lines = [
        number
        for number, line in enumerate(source.splitlines(), 1)
        if any(call in line for call in (".scalars(", ".query(", ".get(", ".get_one("))
    ]
    found = [is_for_any_class(CallSite(str(file), line, "")) for line in lines]
    assert found == [is_generic] * len(found)
    assert not is_for_any_class(CallSite(str(tmp_path / "gone.py"), 1, ""))
