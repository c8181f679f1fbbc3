"""Plays the examples of misuse: each shows its own finding, and no other."""

import gc
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.misuse.db import close_shop, open_shop
from examples.misuse.scenes import SCENES, Scene
from session_tracer.model.findings import FINDING_IDS
from session_tracer.testing import capture

ROOT = Path(__file__).parent.parent

# SQLAlchemy 2.1 drops a coroutine of aiosqlite where it raises MissingGreenlet.
pytestmark = [
    pytest.mark.filterwarnings("ignore:coroutine 'Connection.cursor' was never awaited"),
    # What `lost-link` is about.
    pytest.mark.filterwarnings("default:Object of type <Author> not in session"),
]


@pytest.fixture(autouse=True)
def _shop() -> Iterator[None]:
    open_shop()
    yield
    gc.collect()  # here, where the coroutine that is dropped may be
    close_shop()


def test_there_is_a_scene_for_each_finding() -> None:
    assert tuple(scene.finding for scene in SCENES) == FINDING_IDS


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.finding)
def test_a_scene_shows_its_own_finding_and_no_other(scene: Scene) -> None:
    with capture(**scene.settings) as captured:
        scene.play()
    assert [finding.id for finding in captured.findings] == [scene.finding]


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.finding)
def test_a_scene_describes_the_mistake_in_one_line(scene: Scene) -> None:
    assert re.fullmatch(r"[A-Z].{10,90}\.", scene.title)


def test_a_finding_is_printed_below_what_its_function_does() -> None:
    said = run("commit-in-loop").stderr
    assert "\n 7 commit-in-loop: Commits after each author.\n\n▲ commit-in-loop  " in said
    assert "examples/misuse/transactions.py" in said
    assert "● session" not in said


def test_all_of_them_are_printed_one_after_the_other() -> None:
    played = run()
    assert played.returncode == 0
    assert tuple(re.findall(r"^[✖▲◆] ([a-z-]+)", played.stderr, re.MULTILINE)) == FINDING_IDS


def test_the_sessions_are_reported_as_well_where_an_exporter_is_named() -> None:
    assert "● session shop" in run("commit-in-loop", "--exporter", "console").stderr


def test_the_list_has_every_finding() -> None:
    listed = [line.split()[0] for line in run("--list").stdout.splitlines()]
    assert tuple(listed) == FINDING_IDS


def test_an_unknown_finding_is_refused_by_name() -> None:
    refused = run("n-plus-two")
    assert refused.returncode == 2
    assert "there is no finding n-plus-two; run with --list to see all" in refused.stderr


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "examples.misuse", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "COLUMNS": "100"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def test_the_readme_lists_which_file_shows_what() -> None:
    page = (ROOT / "examples" / "misuse" / "README.md").read_text()
    captured = {
        file: re.findall(r"`([a-z-]+)`", cell)
        for file, cell in re.findall(r"^\| `(\w+)\.py` \| (.*) \|$", page, re.MULTILINE)
    }
    played: dict[str, list[str]] = {}
    for scene in SCENES:
        file = scene.mistake.__module__.rpartition(".")[2]
        played.setdefault(file, []).append(scene.finding)
    assert captured == played
