"""Runs docs/adopting.md on a small old project: each command, in the order of the page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from tests.test_forge import assert_valid

if TYPE_CHECKING:
    import pytest

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = (ROOT / "docs" / "adopting.md").read_text()
SHELL: Final = [block.splitlines() for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)]
(TOML,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
(WORKFLOW,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
BASELINE: Final = "session-findings.txt"

MODELS: Final = """
from sqlalchemy import ForeignKey, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, sessionmaker
from sqlalchemy.pool import StaticPool

class Base(DeclarativeBase):
    pass

class Author(Base):
    __tablename__ = "author"
    id: Mapped[int] = mapped_column(primary_key=True)
    books: Mapped[list["Book"]] = relationship()

class Book(Base):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"))

engine = create_engine("sqlite://", poolclass=StaticPool)
SessionLocal = sessionmaker(engine)
"""
WRONG: Final = """
from sqlalchemy import select
from sqlalchemy.orm import selectinload
from shop.models import Author, SessionLocal

def totals():
    with SessionLocal() as session:
        return [len(author.books) for author in session.scalars(select(Author)).all()]
"""
RIGHT: Final = WRONG.replace("select(Author)", "select(Author).options(selectinload(Author.books))")
ANOTHER: Final = """
def numbers():
    with SessionLocal() as session:
        return [session.get(Author, number).id for number in range(1, 5)]
"""
TESTS: Final = """
import pytest
from shop import reports
from shop.models import Author, Base, Book, SessionLocal, engine

@pytest.fixture(autouse=True, scope="module")
def shop():
    Base.metadata.create_all(engine)
    with SessionLocal() as session:
        session.add_all([Author(books=[Book()]) for _ in range(4)])
        session.commit()
    yield
    engine.dispose()

def test_totals():
    assert reports.totals() == [1, 1, 1, 1]

def test_numbers():
    assert not hasattr(reports, "numbers") or reports.numbers() == [1, 2, 3, 4]
"""


class Project:
    """An old code base in a repository of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = {"shop/__init__": "", "shop/models": MODELS, "tests/test_reports": TESTS}
        for name, source in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / f"{name}.py").write_text(source)
        self.reports(WRONG)
        self.run("git init --quiet")
        self.run("git add .")
        self.run('git commit --quiet -m "An old code base"')

    def reports(self, source: str) -> None:
        """Write the module with the mistakes."""
        (self.folder / "shop" / "reports.py").write_text(source)

    def run(self, command: str) -> tuple[int, str]:
        """The exit code of a command of the page, and what it prints."""
        plugins = "-p no:cacheprovider -p no:randomly -p no:asyncio -p no:hypothesispytest"
        python = f'"{sys.executable}" -B -m pytest {plugins}'
        who = {
            f"GIT_{role}_{what}": "somewhere@localhost"
            for role in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        }
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("GITHUB_", "PYTEST_"))}
        done = subprocess.run(
            re.sub(r"^pytest\b", lambda _: python, command),
            shell=True,
            cwd=self.folder,
            env={**clean, **who, "PYTHONPATH": f"{ROOT}{os.pathsep}{self.folder}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    def baseline(self) -> list[str]:
        """The entries of the baseline, without its comments."""
        lines = (self.folder / BASELINE).read_text().splitlines()
        return [line for line in lines if not line.startswith("#")]


def test_the_steps_of_the_page_end_with_an_empty_baseline(tmp_path: Path) -> None:
    project = Project(tmp_path)
    (install, look), (accept, *commit), (refuse,), shorten = SHELL
    assert install == "pip install session-tracer"

    code, printed = project.run(look)
    assert (code, "n-plus-one" in printed) == (0, True), printed

    (tmp_path / "pyproject.toml").write_text(TOML)
    code, printed = project.run(accept)
    assert (code, len(project.baseline())) == (0, 1), printed
    assert [project.run(command)[0] for command in commit] == [0, 0]

    code, printed = project.run(refuse)
    assert (code, "1 known (baseline)" in printed) == (0, True), printed
    assert [project.run(command)[0] for command in shorten] == [0, 0]
    project.reports(WRONG + ANOTHER)
    code, printed = project.run(refuse)
    assert (code, "get-in-loop" in printed) == (1, True), printed

    # What gets into the baseline is seen, too.
    assert [project.run(command)[0] for command in shorten] == [0, 1]
    project.reports(RIGHT)
    code, printed = project.run(shorten[0])
    assert (code, printed.count("removed from the baseline: ")) == (0, 2), printed
    assert project.run(shorten[1])[0] == 1
    project.run(f'git commit --quiet -m "Fix it" {BASELINE}')
    assert (project.run(shorten[1])[0], project.baseline()) == (0, [])
    project.reports(WRONG)
    assert project.run(refuse)[0] == 1


def test_the_workflow_follows_the_schema_and_its_commands_run(tmp_path: Path) -> None:
    file = tmp_path / "sessions.yml"
    file.write_text(WORKFLOW)
    assert_valid("vendor.github-workflows", file)
    jobs: dict[str, Any] = yaml.safe_load(WORKFLOW)["jobs"]
    commands = {
        name: [step["run"] for step in job["steps"] if "pip " not in step.get("run", "pip ")]
        for name, job in jobs.items()
    }
    (tmp_path / "old").mkdir()
    project = Project(tmp_path / "old")
    (project.folder / "pyproject.toml").write_text(TOML)
    assert project.run(SHELL[1][0])[0] == 0
    assert [project.run(command)[0] for command in SHELL[1][1:]] == [0, 0]

    (findings,) = commands["findings"]
    assert project.run(findings)[0] == 0
    project.reports(WRONG + ANOTHER)
    assert project.run(findings)[0] == 1
    upload = jobs["findings"]["steps"][-1]
    written = project.folder / upload["with"]["sarif_file"]
    assert '"get-in-loop"' in written.read_text()
    project.reports(WRONG)
    assert [project.run(command)[0] for command in commands["shorter"]] == [0, 0]
    project.reports(RIGHT)
    assert [project.run(command)[0] for command in commands["shorter"]] == [0, 1]


def test_an_application_reads_the_same_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (variable,) = re.findall(rf"`(SESSION_TRACER_\w+)={BASELINE}`", PAGE)
    project = Project(tmp_path)
    (tmp_path / "pyproject.toml").write_text(TOML)
    assert project.run(SHELL[1][0])[0] == 0
    (tmp_path / "main.py").write_text(
        "import session_tracer; from shop import reports; from shop.models import *\n"
        "Base.metadata.create_all(engine)\n"
        "with SessionLocal() as session:\n"
        "    session.add_all([Author(books=[Book()]) for _ in range(9)]); session.commit()\n"
        "session_tracer.instrument(SessionLocal, exporter='jsonl'); reports.totals()\n"
    )
    run = f'"{sys.executable}" main.py'
    assert '"n-plus-one"' in project.run(run)[1]
    monkeypatch.setenv(variable, BASELINE)
    assert '"n-plus-one"' not in project.run(run)[1]
