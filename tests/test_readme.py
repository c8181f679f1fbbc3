"""Checks the README and the pages of docs/: snippets run, tables and links match the code."""

from __future__ import annotations

import ast
import importlib
import re
from contextlib import nullcontext
from dataclasses import fields
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, select, text
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import StaticPool

from session_tracer import CallSite, SessionMisuse, Settings, uninstrument
from session_tracer.testing import capture
from session_tracer.where.expected import CLIENT_ERRORS
from tests.library import Author, Base, authors

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
# What the README used to contain, and the page that has it now.
PAGES = {name: (DOCS / name).read_text() for name in ("deployment.md", "exporters.md", "tuning.md")}
TESTING = (DOCS / "testing.md").read_text()
SNIPPETS = [
    snippet
    for page in (README, *PAGES.values(), TESTING)
    for snippet in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
]
DOCS_PAGES = [f"docs/{page.name}" for page in sorted(DOCS.glob("*.md"))]
EVERY_PAGE = [*(page.name for page in sorted(ROOT.glob("*.md"))), *DOCS_PAGES]


def snippet_with(words: str) -> str:
    """The one snippet of these pages that contains the words."""
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


def test_findings_are_ignored_as_the_tuning_page_shows(library: sessionmaker[Any]) -> None:
    run(snippet_with("ignore={"), SessionLocal=library)
    with library() as session:
        session.execute(text("SELECT 1"))
        (report,) = session.__dict__["_session_tracer"].reports
        rule = report.tracer.policy.rule

        def severity(id_: str, file: str, entity: str = "", attribute: str = "") -> str:
            site = CallSite(str(Path.cwd() / file), 7, "work")
            finding = report.finding(
                id_, "warning", "", "", site, entity=entity, attribute=attribute
            )
            ruled = rule(finding, report)
            return "" if ruled is None else ruled.severity

        assert severity("large-result", "shop/views.py") == ""
        assert severity("commit-in-loop", "jobs/nightly.py") == ""
        assert severity("commit-in-loop", "shop/jobs.py") == "warning"
        assert severity("n-plus-one", "shop/views.py", "Author", "books") == ""
        assert severity("n-plus-one", "shop/views.py", "Author", "letters") == "warning"
        assert severity("large-flush", "vendor/it.py") == ""
        assert severity("large-flush", "shop/vendor/it.py") == "warning"
        assert severity("split-writes", "shop/views.py") == "error"
    uninstrument(library)


def test_a_finding_is_silenced_around_code(library: sessionmaker[Any]) -> None:
    take_in = run(snippet_with("import silence"), SessionLocal=library)["take_in"]
    with capture(library) as captured:
        take_in(Author(name=f"newcomer {number}") for number in range(12))
    assert captured.findings == []
    loud = snippet_with("import silence").replace(', silence("commit-in-loop"', ', quiet("x"')
    given = {"SessionLocal": library, "quiet": lambda *_, reason: nullcontext()}
    with capture(library) as captured:
        run(loud, **given)["take_in"](Author(name=f"guest {number}") for number in range(12))
    assert [finding.id for finding in captured.findings] == ["commit-in-loop"]


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
        tracers = session.__dict__["_session_tracer"].tracers
        assert [tracer.name for tracer in tracers] == [name]
    uninstrument(factory)


def table_under(heading: str, page: str) -> list[list[str]]:
    """The rows of the first table below a heading of a page, without markup."""
    section = PAGES[page].partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_the_open_sessions_are_printed_as_the_deployment_page_shows(
    library: sessionmaker[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with capture(library, name="orders-db"):
        session = library()
        session.scalars(select(Author)).all()
        run(snippet_with("for session in live_sessions()"))
        (printed,) = capsys.readouterr().out.splitlines()
        session.close()
    shown = re.search(r"^orders-db 9b21e0: .*$", PAGES["deployment.md"], re.MULTILINE)
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
    for option, default, _ in table_under("Settings", "tuning.md"):
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
    if default == CLIENT_ERRORS:
        return "client errors of web frameworks"
    return "" if default in ((), {}, frozenset()) else str(default)


def test_the_exporters_table_has_every_exporter() -> None:
    told = [row[0].strip("`") for row in table_under("Exporters", "exporters.md")]
    installed = {
        entry.name
        for entry in entry_points(group="session_tracer_exporter")
        if entry.value.startswith("session_tracer.")
    }
    assert sorted(told) == sorted(installed)


@pytest.mark.parametrize("page", EVERY_PAGE)
def test_every_link_leads_to_a_file_and_a_heading(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", (ROOT / page).read_text())
    missing = []
    for file, anchor in links:
        path = (ROOT / page).parent / file if file else ROOT / page
        if not path.exists() or (anchor and anchor not in anchors_of(path)):
            missing.append(f"{file}#{anchor}")
    assert missing == []


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-") for title in headings}


def test_the_readme_links_every_page() -> None:
    assert [page for page in DOCS_PAGES if f"({page})" not in README] == []


@pytest.mark.parametrize("page", EVERY_PAGE)
def test_no_link_leads_to_an_address_that_stands_for_another(page: str) -> None:
    addresses = re.findall(r"https?://[^\s)>\"'`]+", (ROOT / page).read_text())
    assert [one for one in addresses if is_made_up(one)] == []


@pytest.mark.parametrize(
    "address",
    [
        "https://example.com/docs",
        "https://docs.example.org",
        "https://github.com/OWNER/session-tracer",
        "https://github.com/your-org/session-tracer",
        "https://github.com/<owner>/session-tracer",
        "https://session-tracer.example/findings",
    ],
)
def test_an_address_that_stands_for_another_is_seen(address: str) -> None:
    assert is_made_up(address)
    assert not is_made_up("https://keepachangelog.com/en/1.1.0/")


def is_made_up(address: str) -> bool:
    """Whether nothing can be at the address."""
    pattern = r"//([\w.-]+\.)?example(\.|/|$)|/(owner|user|org|todo)/|your[-_]|[<{]"
    return re.search(pattern, address, re.IGNORECASE) is not None


ARCHITECTURE = (DOCS / "architecture.md").read_text()


def test_the_architecture_page_names_every_module() -> None:
    package = ROOT / "session_tracer"
    rows = dict(re.findall(r"^\| `([\w/]+\.py)` \| (.+) \|$", ARCHITECTURE, re.MULTILINE))
    modules = {str(path.relative_to(package)) for path in package.rglob("*.py")}
    modules |= {f"exporters/{path.name}" for path in (ROOT / "exporters").glob("*.py")}
    modules = {module for module in modules if not module.endswith("__init__.py")}
    assert set(rows) == modules


def test_only_the_public_modules_are_imported_by_docs_and_examples() -> None:
    section = ARCHITECTURE.partition("\n## Public modules\n")[2].partition("\n## ")[0]
    public = set(re.findall(r"^\| `(session_tracer[\w.]*)` \|", section, re.MULTILINE))
    sources = [path.read_text() for path in (ROOT / "examples").rglob("*.py")]
    for page in [ROOT / "README.md", *DOCS.glob("*.md"), *(ROOT / "examples").rglob("*.md")]:
        sources += re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    imported = {name for source in sources for name in imported_by(source)}
    assert {name for name in imported if not is_in(name, public)} == set()
    for name in public:
        importlib.import_module(name)


def is_in(module: str, public: set[str]) -> bool:
    """Whether the module is public, or is one exporter's."""
    return module in public or module.startswith("session_tracer.exporters.")


def imported_by(source: str) -> set[str]:
    """The modules of session_tracer that a source imports from."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    names |= {each.name for node in nodes if isinstance(node, ast.Import) for each in node.names}
    return {name for name in names if name.partition(".")[0] == "session_tracer"}


def test_the_detector_of_the_architecture_page_works_as_described(
    library: sessionmaker[Any],
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", ARCHITECTURE, re.DOTALL)
    detector = run(example, SessionLocal=library)["SlowStatement"]
    uninstrument(library)
    with capture(library, detectors=[detector(seconds=0.0)]) as captured, library() as session:
        for _ in range(2):
            session.scalars(select(Author)).all()
    (finding,) = captured.findings
    assert (finding.id, finding.severity, finding.entity) == ("slow-statement", "info", "Author")
    assert re.fullmatch(r"SELECT authors took \d+\.\d s", finding.message)
    assert finding.evidence["statements"] == 1
    with (
        capture(library, detectors=[detector(seconds=0.0)], slow_session_seconds=1e-9) as captured,
        library() as session,
    ):
        session.scalars(select(Author)).all()
    assert [finding.severity for finding in captured.findings] == ["warning"]
    with capture(library, detectors=[detector(seconds=60.0)]) as captured, library() as session:
        session.scalars(select(Author)).all()
    assert captured.findings == []
