"""Holds the README to its word: its snippets run, its tables and links are those of the code."""

from __future__ import annotations

import ast
import asyncio
import re
from contextlib import nullcontext
from dataclasses import fields
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import create_engine, select, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import StaticPool

from session_tracer import CallSite, SessionMisuse, Settings, uninstrument
from session_tracer.signals import names
from session_tracer.testing import capture
from tests.library import Author, Base, authors

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def snippet_with(words: str) -> str:
    """The README's one snippet that has these words."""
    (found,) = [snippet for snippet in SNIPPETS if words in snippet]
    return str(found)


def run(snippet: str, **given: Any) -> dict[str, Any]:
    """Run a snippet as a module of an application that has these names."""
    namespace = {"__name__": "application", **given}
    exec(compile(snippet, "application.py", "exec"), namespace)
    return namespace


@pytest.fixture(autouse=True)
def _on_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.setenv("SESSION_TRACER_EXPORTER", "jsonl")


@pytest.fixture
def factory() -> Iterator[sessionmaker[Any]]:
    engine = create_engine("sqlite://")
    yield sessionmaker(engine)
    engine.dispose()


def test_every_snippet_is_valid_python() -> None:
    for snippet in SNIPPETS:
        ast.parse(snippet)


def test_one_line_is_enough_for_plain_sqlalchemy(factory: sessionmaker[Any]) -> None:
    run(snippet_with('name="orders-db"'), SessionLocal=factory)
    assert_traced(factory, "orders-db")


def test_a_fastapi_dependency_needs_no_change(factory: sessionmaker[Any]) -> None:
    application = run(snippet_with("def get_db():\n    with"), SessionLocal=factory)
    assert_traced(factory, "default")
    for session in application["get_db"]():
        session.execute(text("SELECT 1"))


def test_an_async_fastapi_dependency_needs_no_change(tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'readme.db'}")
    factory = async_sessionmaker(engine)
    application = run(snippet_with("async def get_db():"), AsyncSessionLocal=factory)

    async def request() -> None:
        with capture(factory) as told:
            async for session in application["get_db"]():
                await session.execute(text("SELECT 1"))
        await engine.dispose()
        assert [summary.statements for summary in told.sessions] == [1]

    asyncio.run(request())


def test_a_flask_sqlalchemy_object_is_a_target() -> None:
    app = Flask("shop")
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    db = SQLAlchemy(app)
    run(snippet_with("instrument(db)"), app=app, db=db)
    with app.app_context(), capture(db) as told:
        db.session.execute(text("SELECT 1"))
        db.session.remove()
        db.engine.dispose()
    assert [summary.statements for summary in told.sessions] == [1]


def test_sqlmodels_session_is_a_target() -> None:
    application = run(snippet_with("from sqlmodel import Session"))
    session_class = application["Session"]
    engine = create_engine("sqlite://")
    with capture(session_class) as told, session_class(engine) as session:
        session.connection().execute(text("SELECT 1"))
    engine.dispose()
    assert [summary.statements for summary in told.sessions] == [1]


def test_celerys_factory_is_instrumented_where_it_is_made(factory: sessionmaker[Any]) -> None:
    run(snippet_with('name="worker"'), SessionLocal=factory)
    assert_traced(factory, "worker")


@pytest.fixture
def library() -> Iterator[sessionmaker[Any]]:
    """Makes sessions of a library of six authors."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    factory = sessionmaker(engine)
    with factory() as session:
        session.add_all(authors(6, books_each=1))
        session.commit()
    yield factory
    engine.dispose()


def test_findings_are_ignored_as_the_readme_says(library: sessionmaker[Any]) -> None:
    run(snippet_with("ignore={"), SessionLocal=library)
    with library() as session:
        (story,) = session.__dict__["_session_tracer"].stories
        rule, record = story.tracer.policy.rule, story.record

        def said(id_: str, file: str, entity: str = "", attribute: str = "") -> str:
            site = CallSite(str(Path.cwd() / file), 7, "work")
            finding = record.finding(
                id_, "warning", "", "", site, entity=entity, attribute=attribute
            )
            ruled = rule(finding, record)
            return "" if ruled is None else ruled.severity

        assert said("large-result", "shop/views.py") == ""
        assert said("commit-in-loop", "jobs/nightly.py") == ""
        assert said("commit-in-loop", "shop/jobs.py") == "warning"
        assert said("n-plus-one", "shop/views.py", "Author", "books") == ""
        assert said("n-plus-one", "shop/views.py", "Author", "letters") == "warning"
        assert said("large-flush", "vendor/it.py") == ""
        assert said("large-flush", "shop/vendor/it.py") == "warning"
        assert said("split-writes", "shop/views.py") == "error"
    uninstrument(library)


def test_a_finding_is_silenced_around_code(library: sessionmaker[Any]) -> None:
    take_in = run(snippet_with("import silence"), SessionLocal=library)["take_in"]
    with capture(library) as told:
        take_in(Author(name=f"newcomer {number}") for number in range(12))
    assert told.findings == []
    loud = snippet_with("import silence").replace(', silence("commit-in-loop"', ', quiet("x"')
    given = {"SessionLocal": library, "quiet": lambda *_, reason: nullcontext()}
    with capture(library) as told:
        run(loud, **given)["take_in"](Author(name=f"guest {number}") for number in range(12))
    assert [finding.id for finding in told.findings] == ["commit-in-loop"]


def test_a_finding_is_raised_in_a_test(library: sessionmaker[Any]) -> None:
    def totals() -> int:
        with library() as session:
            return sum(len(author.books) for author in session.scalars(select(Author)))

    application = run(
        snippet_with("raise_on="), SessionLocal=library, report=SimpleNamespace(totals=totals)
    )
    with pytest.raises(SessionMisuse, match="n-plus-one"):
        application["test_totals"]()
    assert totals() == 6


def assert_traced(factory: sessionmaker[Any], name: str) -> None:
    """The factory's sessions are traced, under that name, until the test ends."""
    with factory() as session:
        stories = session.__dict__["_session_tracer"].stories
        assert [story.record.name for story in stories] == [name]
    uninstrument(factory)


def table_under(heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, without markup."""
    section = README.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_the_open_sessions_are_printed_as_the_readme_shows(
    library: sessionmaker[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with capture(library, name="orders-db"):
        session = library()
        session.scalars(select(Author)).all()
        run(snippet_with("for session in live_sessions()"))
        (printed,) = capsys.readouterr().out.splitlines()
        session.close()
    shown = re.search(r"^orders-db 9b21e0: .*$", README, re.MULTILINE)
    assert shown is not None
    numbers = r"[0-9a-f]{6}(?=:)|\d+|None"
    told = printed.replace(session_site_of(printed), "SITE")
    expected = shown[0].replace(session_site_of(shown[0]), "SITE")
    mask = re.compile(rf'(?:{numbers})|"[^"]*"')
    assert mask.sub("#", told) == mask.sub("#", expected)


def session_site_of(line: str) -> str:
    """Where the session was opened, at the end of a printed line."""
    return line.partition("opened ")[2]


def test_the_settings_table_has_every_setting_and_its_default() -> None:
    told: dict[str, str] = {}
    for option, default, _ in table_under("Settings"):
        options = [one.strip(" `") for one in option.split(",")]
        defaults = [one.strip(" `") for one in default.split(",")]
        told.update(zip(options, defaults, strict=True))
    defaults_of = Settings()
    assert told == {
        field.name: in_a_table(getattr(defaults_of, field.name)) for field in fields(Settings)
    }


def in_a_table(default: object) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return "" if default in ((), {}, frozenset()) else str(default)


def test_the_exporters_table_has_every_exporter() -> None:
    told = [row[0].strip("`") for row in table_under("Where it goes")]
    installed = {
        entry.name
        for entry in entry_points(group="session_tracer_exporter")
        if entry.value.startswith("session_tracer.")
    }
    assert sorted(told) == sorted(installed)


def test_every_log_event_the_readme_names_is_one_and_none_is_missing() -> None:
    (told,) = re.findall(r"\*\*Logs\*\*.*?: (.*?)\. `session", README, re.DOTALL)
    said = set(re.findall(r"`([a-z.]+)`", told))
    assert said == {
        names.SESSION_OPENED,
        names.SESSION_CLOSED,
        names.TRANSACTION_ENDED,
        names.FLUSH_COMPLETED,
        names.FLUSH_FAILED,
        names.FINDING,
        names.FINDING_RETRACTED,
    }


@pytest.mark.parametrize(
    "page", ["README.md", "docs/findings.md", "docs/architecture.md", "docs/performance.md"]
)
def test_every_link_leads_to_a_file(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text())
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert missing == []


def test_the_architecture_page_names_every_module() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    modules = {path.name for path in (ROOT / "session_tracer").glob("[a-z]*.py")}
    # What is there by its name alone, or is public face.
    modules -= {"version.py", "settings.py", "findings.py", "testing.py"}
    assert sorted(module for module in modules if f"`{module}`" not in page) == []


def test_the_architecture_pages_detector_finds_what_it_says(library: sessionmaker[Any]) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    detector = run(example, SessionLocal=library)["SlowStatement"]
    uninstrument(library)
    with capture(library, detectors=[detector(seconds=0.0)]) as told, library() as session:
        for _ in range(2):
            session.scalars(select(Author)).all()
    (finding,) = told.findings
    assert (finding.id, finding.severity, finding.entity) == ("slow-statement", "warning", "Author")
    assert re.fullmatch(r"SELECT authors took \d+\.\d s", finding.message)
    with capture(library, detectors=[detector(seconds=60.0)]) as told, library() as session:
        session.scalars(select(Author)).all()
    assert told.findings == []
