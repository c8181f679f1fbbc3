"""Tests the comparison with other tools: what docs/accuracy.md says, and how it is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import tasks
from benchmarks.accuracy import __main__ as command
from benchmarks.accuracy import page
from benchmarks.accuracy.programs import Programs
from benchmarks.accuracy.reasons import REASONS
from benchmarks.accuracy.results import Results, load
from benchmarks.accuracy.tools import LOWER, NO_TOOL, OWN, RunFailed, Tool, outcomes
from tasks import StepFailed, StepNotRun

if TYPE_CHECKING:
    from pathlib import Path

SAVED = load()


def test_the_page_has_the_saved_results() -> None:
    assert page.text_of(SAVED) in page.PAGE.read_text(encoding="utf-8")


def test_each_program_that_is_judged_otherwise_has_its_reason() -> None:
    assert set(REASONS) == set(SAVED.wrong(OWN.name))


def programs(source: str) -> Programs:
    """Tests that are written here."""

    def prepare(folder: Path) -> Path:
        file = folder / "test_here.py"
        file.write_text(source, encoding="utf-8")
        return file

    return Programs("corpus", prepare, {})


HERE = """
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

@pytest.mark.parametrize("name", ["bug_lost", "bug_missed", "clean_closed", "clean_noisy"])
def test_scenario(name):
    session = Session(create_engine("sqlite://"))
    session.connection()
    if name not in ("bug_lost", "clean_noisy"):
        session.close()

@pytest.mark.parametrize("name", ["bug_broken", "clean_skipped"])
def test_scene(name):
    if name == "clean_skipped":
        pytest.skip("no driver")
    raise ValueError
"""


def test_what_fails_with_a_tool_alone_is_reported() -> None:
    alone = outcomes(NO_TOOL, programs(HERE))
    assert alone == {
        "bug_lost": True,
        "bug_missed": True,
        "clean_closed": True,
        "clean_noisy": True,
        "bug_broken": False,
    }
    assert outcomes(OWN, programs(HERE)) == {**alone, "bug_lost": False, "clean_noisy": False}


def test_a_run_that_pytest_refuses_is_an_error_that_has_its_output() -> None:
    tool = Tool("wrong", "", "session_tracer", ("--session-tracer=severe",))
    with pytest.raises(RunFailed, match=r"wrong on corpus:\n(.|\n)*severe"):
        outcomes(tool, programs(HERE))


@pytest.fixture
def _saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier run of four programs, of which it judged one wrong bug and one right program."""
    names = ["bug_lost", "bug_missed", "clean_closed", "clean_noisy", "clean_gone"]
    alike = ["bug_lost", "clean_noisy"]
    reported = {"corpus": {OWN.name: ["bug_missed"], LOWER.name: alike}}
    saved = Results({}, {"corpus": names}, reported)
    monkeypatch.setattr(command, "load", lambda: saved)


@pytest.mark.usefixtures("_saved")
def test_the_check_names_each_program_that_is_judged_otherwise(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command.check(programs(HERE)) == 1
    assert capsys.readouterr().out.splitlines() == [
        "bug_missed: session_tracer: no longer reported, though wrong",
        "clean_noisy: session_tracer: reported now, though right",
        "bug_lost: session_tracer: judged as its author does now; run with --write",
        "clean_gone: fails without a tool, or is missing",
    ]


def test_the_check_passes_if_nothing_has_changed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["bug_lost", "bug_missed", "clean_closed", "clean_noisy"]
    alike = ["bug_lost", "clean_noisy"]
    reported = {"corpus": {OWN.name: alike, LOWER.name: alike}}
    monkeypatch.setattr(command, "load", lambda: Results({}, {"corpus": names}, reported))
    assert command.check(programs(HERE)) == 0
    assert capsys.readouterr().out == "as saved: 4 programs\n"


def test_a_corpus_that_cannot_be_fetched_is_a_step_that_is_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> str:
        raise StepFailed("exit code 1")

    monkeypatch.setattr(tasks, "development", lambda: tmp_path / "venv" / "bin" / "python")
    monkeypatch.setattr(tasks, "run_quietly", refuse)
    with pytest.raises(StepNotRun, match="could not be fetched: exit code 1"):
        tasks.accuracy_as_published()
