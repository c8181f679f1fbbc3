"""Checks that the plugin does what docs/testing.md shows."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from session_tracer.pytest_plugin.configured import SMALL
from tests.plugin.suites import ROOT

if TYPE_CHECKING:
    import pytest

    from tests.plugin.suites import Suites

PAGE: Final = (ROOT / "docs" / "testing.md").read_text()
SECTION: Final = PAGE.partition("## The pytest plugin\n")[2].partition("\n## ")[0]
OPTIONS, SUMMARY, BUDGETS, FAILED, TRACE, ALLOW, *_ = re.findall(
    r"```(?:python)?\n(.*?)```", SECTION, re.DOTALL
)

APP: Final = {
    "db": """
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import StaticPool
from tests.library import Base, authors

engine = create_engine("sqlite://", poolclass=StaticPool)
Base.metadata.create_all(engine)
SessionLocal = sessionmaker(engine)
with SessionLocal() as session:
    session.add_all(authors(12, books_each=2))
    session.commit()
""",
    "repo": """
from sqlalchemy import select
from app.db import SessionLocal
from tests.library import Author

def author():
    with SessionLocal() as session:
        return session.scalars(select(Author).limit(1)).one()
""",
    "report": """
from sqlalchemy import select
from sqlalchemy.orm import selectinload
from app.db import SessionLocal
from tests.library import Author

def totals():
    with SessionLocal() as session:
        return sum(len(author.books) for author in session.scalars(select(Author)).all())

def totals_at_once():
    every = select(Author).options(selectinload(Author.books))
    with SessionLocal() as session:
        return sum(len(author.books) for author in session.scalars(every).all())
""",
    "views": """
def render(author):
    return str(author.books)
""",
}

TESTS: Final = f"""
import pytest
from app import repo, report, views

def test_render():
    with pytest.raises(Exception, match="not bound to a Session"):
        views.render(repo.author())

def test_report():
    report.totals()

{BUDGETS}
{TRACE}

{ALLOW}
"""


def test_the_plugin_does_what_the_page_shows(
    suites: Suites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    for folder, files in {"app": APP, "tests": {"test_app": TESTS}}.items():
        (suites.folder / folder).mkdir()
        for name, source in files.items():
            (suites.folder / folder / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(suites.folder)
    (option, failing) = re.findall(r"^pytest (\S+)", OPTIONS, re.MULTILINE)

    run = suites.run(option, "tests")
    assert run.outcomes == {
        "test_render": "passed",
        "test_report": "passed",
        "test_totals": "failed",
        "test_totals_are_read_at_once": "passed",
        "test_totals_of_all": "passed",
    }, run.text
    assert [steady(line) for line in run.summary] == [
        steady(line) for line in SUMMARY.splitlines()[1:]
    ]
    assert steady(FAILED.replace("\n", " ")) in steady(run.text)

    run = suites.run(failing, "tests")
    assert run.outcomes["test_render"] == "failed"


def test_the_page_lists_the_thresholds_for_tests() -> None:
    listed = re.findall(r"^\| `session_tracer_(\w+)` \| `(\d+)` \|$", SECTION, re.MULTILINE)
    assert {name: int(number) for name, number in listed} == SMALL


def steady(text: str) -> str:
    """The text without the numbers of lines, times, the slowest test, and what aligns it."""
    text = re.sub(r"( tests) \(\S+, …\)", r"\1", text)
    text = re.sub(r"\d+(\.\d+)? m?s\b", "TIME", re.sub(r"\.py:\d+", ".py:1", text))
    return re.sub(r" +", " ", text).strip()
