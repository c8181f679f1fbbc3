"""Runs the examples of docs/findings.md: wrong code is told as the page says, right code not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy.orm
from sqlalchemy import create_engine, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import StaticPool

from session_tracer.exporters.finding_block import finding_block
from session_tracer.testing import capture
from tests.library import Author, Base, Book

if TYPE_CHECKING:
    from session_tracer.findings import Finding

PAGE = (Path(__file__).parent.parent / "docs" / "findings.md").read_text()


def section(finding_id: str) -> tuple[str, str, str]:
    """A finding's wrong code, what is said of it, and the right code."""
    body = PAGE.partition(f"## {finding_id}\n")[2].partition("\n## ")[0]
    wrong, right = re.findall(r"```python\n(.*?)```", body, re.DOTALL)[:2]
    (said,) = re.findall(r"```\n(✖.*?)```", body, re.DOTALL)
    return wrong, said, right


@pytest.fixture
def factory() -> Any:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    maker = sessionmaker(engine)
    with maker() as session:
        session.add(Author(name="Jane Austen", books=[Book(title="Emma")]))
        session.commit()
    return maker


def names(factory: Any) -> dict[str, Any]:
    """What the page's code finds around it."""
    return {
        "__name__": "app",
        "SessionLocal": factory,
        "Author": Author,
        "select": select,
        "selectinload": sqlalchemy.orm.selectinload,
    }


def test_the_detached_lazy_load_is_said_as_the_page_says_it(factory: Any) -> None:
    wrong, said, right = section("detached-lazy-load")
    application = names(factory)
    exec(compile(wrong, "app.py", "exec"), application)
    with capture(factory) as told:
        author = application["author"]("Jane Austen")
        with pytest.raises(SQLAlchemyError):
            application["render"](author)
    (finding,) = told.findings
    assert skeleton(printed(finding)) == skeleton(said)

    application = names(factory)
    exec(compile(right + wrong.partition("\n\n\n")[2], "app.py", "exec"), application)
    with capture(factory) as told:
        assert application["render"](application["author"]("Jane Austen")) == "Emma"
    assert told.findings == []


def printed(finding: Finding) -> str:
    return "\n".join(line.plain for line in finding_block(finding, 110))


def skeleton(block: str) -> list[str]:
    """The block without what depends on the run: the file's lines, the times, the session."""
    lines = []
    for line in block.splitlines():
        if "return" in line or line.strip().startswith("session "):
            continue  # the source of a file that does not exist, and a random id
        masked = re.sub(r"\S*app\S*\.py:\d+", "FILE", line)
        masked = re.sub(r"less than 1 ms|\d+(\.\d+)? ms", "TIME", masked)
        lines.append(" ".join(masked.split()))
    return lines
