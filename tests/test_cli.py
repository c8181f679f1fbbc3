"""Tests the command `session-tracer`, as a person types it."""

import os
import re
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from session_tracer import Settings
from session_tracer.cli import main
from session_tracer.cli.findings import read_page
from session_tracer.hooks import private_api
from session_tracer.model.findings import FINDING_IDS, documentation
from session_tracer.version import VERSION
from tests.detectors.feeding import bare_finding

PROGRAM = """
import sys
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

class Base(DeclarativeBase):
    pass

class Book(Base):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)

engine = create_engine("sqlite://")
Base.metadata.create_all(engine)
SessionLocal = sessionmaker(engine)

def add_books():
    with SessionLocal() as session:
        for _ in range(12):
            session.add(Book())
            session.commit()

def fail():
    raise LookupError("no such book")
"""

MAIN = """
if __name__ == "__main__":
    import os, pickle, signal
    add_books()
    pickle.loads(pickle.dumps(Book))
    print(sys.argv[1:], __file__, sys.path[0], __package__, __spec__ and __spec__.name)
    match sys.argv[1:]:
        case ["fail"]:
            fail()
        case ["exit"]:
            sys.exit(7)
        case ["interrupt"]:
            # A run of the tests in the background may ignore it.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.raise_signal(signal.SIGINT)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a script, and a package that can be run."""
    (tmp_path / "app.py").write_text(PROGRAM + MAIN)
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").write_text(PROGRAM)
    (tmp_path / "shop" / "__main__.py").write_text(
        f"import sys\nfrom shop import Book, add_books, fail\n{MAIN}"
    )
    return tmp_path


def python(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the folder, with our package and nothing of the environment's settings."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SESSION_TRACER_", "OTEL_"))
    }
    paths = [str(Path(__file__).parents[1])]
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=60,
        env={**environment, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "100", **variables},
    )


def rows_of(checked: str) -> dict[str, str]:
    """The names and values that `check` has printed."""
    return dict(re.findall(r"^  (\S+(?: \S+)*) {2,}(.*?) *$", checked, re.MULTILINE))


def traced(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return python(folder, "-m", "session_tracer", "run", *arguments, **variables)


@pytest.mark.parametrize("program", [["app.py"], ["-m", "shop"], ["-m", "app"]], ids=" ".join)
@pytest.mark.parametrize("argument", ["--help", "fail", "exit", "interrupt"])
def test_a_program_runs_as_python_runs_it(folder: Path, program: list[str], argument: str) -> None:
    bare = python(folder, *program, argument)
    run = traced(folder, *program, argument)
    assert (run.returncode, run.stdout) == (bare.returncode, bare.stdout)
    assert run.returncode == {"fail": 1, "exit": 7, "interrupt": -signal.SIGINT}.get(argument, 0)
    assert traceback_in(run.stderr) == traceback_in(bare.stderr)


def test_two_dashes_may_precede_the_program(folder: Path) -> None:
    bare, run = python(folder, "app.py", "--", "a"), traced(folder, "--", "app.py", "--", "a")
    assert (run.returncode, run.stdout) == (bare.returncode, bare.stdout)
    assert run.stdout.startswith("['--', 'a'] ")


def traceback_in(text: str) -> str:
    """The traceback without the frames of `runpy`, which runs a module for Python too."""
    found = re.search(r"^Traceback .*?^\w[^\n]*$", text, re.MULTILINE | re.DOTALL)
    return "" if found is None else re.sub(r'  File "<frozen runpy>"[^\n]*\n', "", found[0])


def test_the_sessions_and_findings_of_a_program_are_on_standard_error(folder: Path) -> None:
    run = traced(folder, "--name", "shop-db", "app.py")
    assert re.search(r"^● session shop-db [0-9a-f]{6} · committed", run.stderr, re.MULTILINE)
    assert "▲ commit-in-loop " in run.stderr
    assert "app.py:21 in add_books()" in run.stderr
    assert "session_tracer/" not in run.stderr


def test_a_setting_and_an_exporter_can_be_given(folder: Path) -> None:
    options = ["--set", "commits_from_one_site=20", "--set", "jsonl_path=events.jsonl"]
    run = traced(folder, "--exporter", "jsonl", *options, "app.py")
    assert run.returncode == 0
    events = (folder / "events.jsonl").read_text()
    assert '"event":"session.closed"' in events.replace('": "', '":"')
    assert "commit-in-loop" not in events


def test_an_exporter_of_the_environment_is_used(folder: Path) -> None:
    run = traced(folder, "app.py", SESSION_TRACER_EXPORTER="none")
    assert run.stderr == ""


def test_an_installed_package_that_is_run_is_the_application(folder: Path) -> None:
    installed = folder / "lib" / "site-packages"
    installed.mkdir(parents=True)
    (folder / "shop").rename(installed / "shop")
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(installed)])
    run = traced(folder, "-m", "shop", PYTHONPATH=paths)
    assert "shop/__init__.py:21 in add_books()" in run.stderr


def test_a_syntax_error_is_printed_as_python_prints_it(folder: Path) -> None:
    (folder / "wrong.py").write_text("def (\n")
    bare, run = python(folder, "wrong.py"), traced(folder, "wrong.py")
    assert (run.returncode, run.stderr) == (bare.returncode, bare.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected a script or -m"),
        (["-m"], "expected a module after -m"),
        (["none.py"], "cannot open 'none.py': No such file or directory"),
        (["shop"], "cannot open 'shop': Is a directory"),
        (["-m", "none.such"], "no module named 'none'"),
        (["-m", "shop.none"], "no module named 'shop.none'"),
        (["--set", "max_works", "app.py"], "Invalid --set max_works: expected SETTING=VALUE."),
        (["--set", "max_works=0", "app.py"], "Invalid --set max_works=0: expected a positive int"),
        (["--set", "max_workz=1", "app.py"], "Unknown setting 'max_workz'. Did you mean 'max_w"),
        (["--exporter", "consol", "app.py"], "Unknown exporter 'consol'. Available: console, "),
    ],
    ids=" ".join,
)
def test_what_cannot_be_run_is_a_usage_error(
    folder: Path, arguments: list[str], message: str
) -> None:
    run = traced(folder, *arguments)
    assert run.returncode == 2
    usage, *_, last = run.stderr.splitlines()
    assert usage.startswith("usage: session-tracer run [--name NAME] ")
    assert last.startswith(f"session-tracer run: error: {message}")


def test_the_findings_are_listed_with_their_thresholds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["findings"]) == 0
    printed = capsys.readouterr().out
    listed = re.findall(r"^([a-z][a-z-]+) +(?:info|warning|error)\b", printed, re.MULTILINE)
    assert tuple(listed) == FINDING_IDS
    assert re.search(r"^n-plus-one +warning +lazy_loads_from_one_site=5$", printed, re.MULTILINE)


def test_the_thresholds_of_the_findings_are_the_defaults() -> None:
    defaults = {option.name: getattr(Settings(), option.name) for option in fields(Settings)}
    for section in read_page()[1]:
        for one in section.settings:
            name, _, value = one.partition("=")
            assert float(value) == defaults[name]


@pytest.mark.parametrize("finding", FINDING_IDS)
def test_a_finding_is_explained_with_wrong_and_right_code(
    finding: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["findings", finding]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^Wrong:.*^Report:.*^Right:", printed, re.MULTILINE | re.DOTALL)
    assert "](" not in printed


def test_a_misspelt_finding_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["findings", "n-plus-on"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("Unknown finding 'n-plus-on'. Did you mean 'n-plus-one'? ")


def test_what_is_installed_is_shown(folder: Path) -> None:
    checked = python(folder, "-m", "session_tracer", "check")
    assert checked.returncode == 0
    rows = rows_of(checked.stdout)
    assert rows["session_tracer"] == VERSION
    assert rows["SQLAlchemy"].startswith("2.")
    assert rows["console"] == rows["otlp"] == "available"
    assert rows["in use"].startswith("logging, without a terminal;")
    assert rows["max_works"] == "100  default"
    assert "Degraded\n  nothing" in checked.stdout


def test_each_setting_is_shown_with_where_it_comes_from(folder: Path) -> None:
    file = folder / "pyproject.toml"
    file.write_text(
        '[tool.session_tracer]\nexporter = "jsonl"\nmax_works = 7\nignore = ["large-flush"]\n'
        'severities = { n-plus-one = "error" }\n'
    )
    checked = python(folder, "-m", "session_tracer", "check", SESSION_TRACER_MAX_WORKS="9")
    rows = rows_of(checked.stdout)
    assert rows["max_works"] == "9  from SESSION_TRACER_MAX_WORKS"
    assert rows["ignore"] == f"large-flush  from {file}"
    assert rows["severities"] == f"n-plus-one=error  from {file}"
    assert rows["in use"] == "jsonl"


@pytest.mark.parametrize(
    ("variable", "value", "shown"),
    [
        ("SESSION_TRACER_MAX_WORKS", "0", "Invalid SESSION_TRACER_MAX_WORKS='0'"),
        ("SESSION_TRACER_EXPORTER", "consol", "Unknown exporter 'consol'"),
        ("OTEL_SDK_DISABLED", "true", "nothing is traced OTEL_SDK_DISABLED is true"),
    ],
)
def test_what_needs_attention_is_shown_and_is_the_exit_code(
    folder: Path, variable: str, value: str, shown: str
) -> None:
    checked = python(folder, "-m", "session_tracer", "check", **{variable: value})
    assert checked.returncode == 1
    assert shown in " ".join(checked.stdout.split())


def test_what_is_degraded_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = private_api.Reliance("Session._gone", lambda: False, "nothing of it is reported")
    monkeypatch.setattr(private_api, "RELIANCES", (gone,))
    assert main(["check"]) == 1
    assert "  Session._gone  is missing or has changed, therefore nothing of it" in (
        capsys.readouterr().out
    )


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"session-tracer {VERSION}\n"


def test_the_help_of_a_finding_is_the_documentation_once_it_has_an_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import importlib.metadata
    from email.message import Message

    finding = bare_finding("n-plus-one")
    assert finding.help == "session-tracer findings n-plus-one"
    published = Message()
    published["Project-URL"] = "Source, https://example.org/source"
    published["Project-URL"] = "Documentation, https://example.org/docs/"
    monkeypatch.setattr(importlib.metadata, "metadata", lambda _: published)
    documentation.cache_clear()
    try:
        assert finding.help == "https://example.org/docs/findings/#n-plus-one"
    finally:
        documentation.cache_clear()
