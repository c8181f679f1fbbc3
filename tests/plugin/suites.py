"""Runs small test suites under the plugin, and keeps what came of each of their tests."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

# A suite runs in this process, and what it is the first to import is imported for it alone.
import aiosqlite
import pytest
import sqlalchemy.dialects.sqlite.aiosqlite

import session_tracer.pytest_plugin.run
import tests.library

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[2]
IMPORTED: Final = (aiosqlite, sqlalchemy, session_tracer, tests)

CONFIGURATION: Final = """
[pytest]
addopts = --strict-markers --strict-config
filterwarnings = error
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
"""

FIXTURES: Final = """
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from tests.library import Base, authors

@pytest.fixture(scope="session")
def SessionLocal(tmp_path_factory):
    engine = create_engine(f"sqlite:///{tmp_path_factory.mktemp('library') / 'library.db'}")
    Base.metadata.create_all(engine)
    maker = sessionmaker(engine)
    with maker() as session:
        session.add_all(authors(12, books_each=2))
        session.commit()
    yield maker
    engine.dispose()

@pytest.fixture
def session(SessionLocal):
    with SessionLocal() as session:
        yield session

@pytest.fixture(scope="module")
def shared_session(SessionLocal):
    with SessionLocal() as session:
        yield session
"""

# Tests run in order; the others are slow to begin with.
_WITHOUT: Final = tuple(
    option
    for plugin in ("randomly", "cacheprovider", "hypothesispytest")
    for option in ("-p", f"no:{plugin}")
)

HEADING: Final = """
import asyncio
import unittest
from uuid import uuid4

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm.exc import DetachedInstanceError
from tests.library import Author, Book
from tests.plugin.on_demand import each, requesting

def request_finding(SessionLocal, severity):
    with requesting(severity):
        SessionLocal().close()  # requests

def first(SessionLocal):
    with SessionLocal() as opened:  # opens
        return opened.scalars(select(Author).order_by(Author.id)).first()  # selects

def read_too_late(SessionLocal):
    author = first(SessionLocal)
    with pytest.raises(DetachedInstanceError):
        author.books  # reads too late

def read_one_by_one(session, count):
    authors = select(Author).order_by(Author.id).limit(count)
    found = session.scalars(authors).all()  # selects some
    each(found, lambda author: author.books)  # reads lazily

def commit(session):
    session.execute(text("SELECT 1"))
    session.commit()  # commits

def flush(session):
    session.add(Author(name=str(uuid4())))
    session.flush()  # flushes
"""


@dataclass(frozen=True)
class Run:
    """The result of a run of a suite: `passed`, `failed` or so by test, and what was printed.

    What did not happen in a test's call has its phase: `teardown error`.
    """

    exit_code: int
    outcomes: dict[str, str]
    text: str
    reports: dict[str, dict[str, Any]]

    def has(self, *lines: str) -> bool:
        """Whether these lines, or parts of lines, were printed in this order."""
        rest = self.text
        for line in lines:
            before, found, rest = rest.partition(line)
            assert found, f"{line!r} is not in\n{before}"
        return True

    @property
    def summary(self) -> list[str]:
        """The section about findings, line by line, without pytest's own last lines."""
        lines = self.text.splitlines()
        begin = next(
            (i + 1 for i, line in enumerate(lines) if "= session findings =" in line), len(lines)
        )
        end = next(
            (i for i, line in enumerate(lines) if i >= begin and line.startswith("===")), len(lines)
        )
        return lines[begin:end]


class Suites:
    """Writes suites and runs them, in this process unless the caller asks for another."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.folder = pytester.path
        self._pytester = pytester
        pytester.makeini(CONFIGURATION)
        pytester.makeconftest(FIXTURES)

    def configure(self, line: str, addopts: str = "") -> None:
        """Add a line, and options, to the configuration file."""
        configuration = CONFIGURATION.replace("addopts =", f"addopts = {addopts}")
        self._pytester.makeini(f"{configuration}{line}\n")

    def write(self, source: str, name: str = "test_library") -> None:
        """Write a file of tests."""
        self._pytester.makepyfile(**{name: HEADING + source})

    def run(self, *options: str, apart: bool = False) -> Run:
        """Run what was written, in order."""
        given = (*_WITHOUT, *options)
        if apart:
            result = self._pytester.runpytest_subprocess(*given)
            return Run(int(result.ret), {}, "\n".join(result.outlines + result.errlines), {})
        result = self._pytester.runpytest_inprocess(*given)
        reports: dict[str, dict[str, Any]] = {}
        if result.ret != pytest.ExitCode.USAGE_ERROR:
            recorded: Any = result.reprec  # type: ignore[attr-defined] # only in this process
            for report in recorded.getreports("pytest_runtest_logreport"):
                name = report.nodeid.partition("::")[2]
                reports.setdefault(name, {})[report.when] = report
        text = "\n".join(result.outlines + result.errlines)
        outcomes = {name: _outcome(phases) for name, phases in reports.items()}
        return Run(int(result.ret), outcomes, text, reports)

    def run_source(self, source: str, *options: str) -> Run:
        """Write one file of tests and run it."""
        self.write(source)
        return self.run(*options)

    def at(self, words: str, name: str = "test_library") -> str:
        """Where the one line is that ends in these words: `test_library.py:17`."""
        lines = (self.folder / f"{name}.py").read_text().splitlines()
        (number,) = [i for i, line in enumerate(lines, 1) if line.endswith(words)]
        return f"{name}.py:{number}"


def _outcome(phases: dict[str, Any]) -> str:
    return ", ".join(_outcomes(phases)) or "passed"


def _outcomes(phases: dict[str, Any]) -> Iterator[str]:
    for when, report in phases.items():
        if when != "call" and report.failed:
            yield f"{when} error"
        elif hasattr(report, "wasxfail"):
            yield "xfailed" if report.skipped else "xpassed"
        elif not report.passed:
            yield report.outcome


def steady(text: str) -> str:
    """The text without what differs from run to run: times, sessions' ids and the slowest test."""
    text = re.sub(r"(less than )?\d+(\.\d+)? m?s\b", "TIME", text)
    text = re.sub(r"\b(default) [0-9a-f]{6}\b", r"\1 ID", text)
    text = re.sub(r"( tests) \(\S+, …\)", r"\1", text)
    text = re.sub(r"(under )?\d+ %", "PERCENT", text)
    text = re.sub(r"^ {4,}\d+\.\d ", "TIME ", text, flags=re.MULTILINE)
    return re.sub(r"[ ]+", " ", text)
