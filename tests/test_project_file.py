"""Tests the settings of an application's pyproject.toml."""

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from session_tracer import Settings, instrument
from session_tracer.runtime import degraded
from session_tracer.runtime.project_file import read_table
from session_tracer.settings import Given, given_settings


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The pyproject.toml of an application, whose folder `src` is the working directory."""
    monkeypatch.setattr(degraded, "_WARNED", set())
    monkeypatch.delenv("SESSION_TRACER_EXPORTER", raising=False)
    (tmp_path / "src").mkdir()
    monkeypatch.chdir(tmp_path / "src")
    return tmp_path / "pyproject.toml"


def test_each_kind_of_setting_is_read(project: Path) -> None:
    project.write_text(
        """
        [tool.session_tracer]
        statement_spans = true
        max_works = 7
        slow_session_seconds = 2
        application_packages = ["shop", "shop_jobs"]
        ignore = ["n-plus-one@app/admin/*"]
        severities = { n-plus-one = "error" }
        jsonl_path = "events.jsonl"
        """
    )
    settings = Settings.from_env({})
    assert settings == Settings(
        statement_spans=True,
        max_works=7,
        slow_session_seconds=2,
        application_packages=("shop", "shop_jobs"),
        ignore={"n-plus-one@app/admin/*"},
        severities={"n-plus-one": "error"},
        jsonl_path="events.jsonl",
    )


def test_the_environment_takes_precedence_and_each_value_has_its_source(project: Path) -> None:
    project.write_text("[tool.session_tracer]\nmax_works = 7\nmax_entities = 8\n")
    assert given_settings(read_table(), {"SESSION_TRACER_MAX_WORKS": "9"}) == {
        "max_works": Given(9, "SESSION_TRACER_MAX_WORKS"),
        "max_entities": Given(8, str(project)),
    }


def test_a_keyword_takes_precedence_over_both(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write_text("[tool.session_tracer]\nmax_works = 7\n")
    monkeypatch.setenv("SESSION_TRACER_MAX_WORKS", "9")
    with instrument(sessionmaker(create_engine("sqlite://")), max_works=11) as instrumentation:
        assert instrumentation.settings.max_works == 11


def test_the_nearest_file_is_read_even_if_it_has_no_table(project: Path) -> None:
    project.write_text("[tool.session_tracer]\nmax_works = 7\n")
    nearer = project.parent / "src" / "pyproject.toml"
    nearer.write_text("[project]\nname = 'session_tracer'\n")
    assert given_settings(read_table(), {}) == {}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("max_works = 0", "Invalid max_works=0: expected a positive integer."),
        ("max_works = '7'", "Invalid max_works='7': expected a positive integer."),
        ("disabled = 'no'", "Invalid disabled='no': expected true or false."),
        ("max_workz = 7", "Unknown setting 'max_workz'. Did you mean 'max_works'? Available: "),
    ],
)
def test_an_invalid_table_is_refused_with_the_file_and_what_is_expected(
    project: Path, table: str, message: str
) -> None:
    project.write_text(f"[tool.session_tracer]\n{table}\n")
    with pytest.raises(ValueError, match=re.escape(f"In {project}: {message}")):
        instrument(sessionmaker())


def test_what_is_no_table_is_refused(project: Path) -> None:
    project.write_text("[tool]\nsession_tracer = 3\n")
    with pytest.raises(ValueError, match=r"Invalid tool.session_tracer=3: expected a table"):
        Settings.from_env({})


def test_a_file_that_is_not_toml_is_named_once_and_not_used(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    project.write_text("[tool.session_tracer\nmax_works = 7\n")
    with caplog.at_level(logging.WARNING, "session_tracer"):
        assert Settings.from_env({}) == Settings.from_env({}) == Settings()
    (message,) = caplog.messages
    assert message.startswith(f"session_tracer: {project} is not valid TOML, therefore it is not ")


def test_a_file_that_cannot_be_read_is_named_once_and_not_used(
    project: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write_text("[tool.session_tracer]\nmax_works = 7\n")

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with caplog.at_level(logging.WARNING, "session_tracer"):
        assert Settings.from_env({}) == Settings()
    (message,) = caplog.messages
    assert "pyproject.toml cannot be read, therefore it is not used: " in message


def test_the_exporter_is_read_too(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.parent)
    project.write_text(
        "[tool.session_tracer]\nexporter = 'jsonl'\njsonl_path = 'e.jsonl'\nlog_level = 'debug'\n"
    )
    with instrument(Session := sessionmaker(create_engine("sqlite://"))), Session() as session:
        session.connection()
    assert '"session.closed"' in Path("e.jsonl").read_text()


def test_the_file_is_read_once_for_the_settings_and_the_exporter(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write_text("[tool.session_tracer]\nexporter = 'none'\nmax_works = 7\n")
    read: list[Path] = []
    read_bytes = Path.read_bytes

    def noting(file: Path) -> bytes:
        read.append(file)
        return read_bytes(file)

    monkeypatch.setattr(Path, "read_bytes", noting)
    assert instrument(sessionmaker()).settings.max_works == 7
    assert read == [project]


def test_a_misspelt_exporter_is_refused_with_the_nearest(project: Path) -> None:
    project.write_text("[tool.session_tracer]\nexporter = 'consol'\n")
    with pytest.raises(ValueError, match=r"Unknown exporter 'consol'.*Did you mean 'console'"):
        instrument(sessionmaker())


def test_a_project_without_a_table_imports_no_toml_parser(project: Path) -> None:
    project.write_text("[project]\nname = 'shop'\n")
    code = (
        "import sys; from session_tracer import instrument, uninstrument; instrument(); "
        "uninstrument(); print('tomllib' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"
