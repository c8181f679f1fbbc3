"""Tests docs/findings.md: its examples run, and are reported as the page shows."""

from __future__ import annotations

import ast
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from session_tracer import DEFAULT_DETECTORS, Settings, silence
from session_tracer import settings as settings_module
from session_tracer.model.findings import FINDING_IDS
from tests.detectors.feeding import bare_finding
from tests.findings_page import Section, found_in, printed, read, skeleton

__session_tracer_hide__ = True

ROOT = Path(__file__).parent.parent
HEAD, SECTIONS = read()

# SQLAlchemy 2.1 drops a coroutine of aiosqlite where it raises MissingGreenlet.
pytestmark = [
    pytest.mark.filterwarnings("ignore:coroutine 'Connection.cursor' was never awaited"),
    # What `lost-link` is about.
    pytest.mark.filterwarnings("default:Object of type <Author> not in session"),
]


def settings_of(finding: str) -> list[str]:
    """The settings whose description names the finding."""
    body = ast.parse(Path(settings_module.__file__).read_text()).body
    (fields,) = [
        node.body for node in body if isinstance(node, ast.ClassDef) and node.name == "Settings"
    ]
    return [
        field.target.id
        for field, description in pairwise(fields)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and f"(`{finding}`)" in ast.unparse(description)
    ]


each_section = pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.finding)


def test_every_finding_has_its_anchor_and_every_anchor_its_finding() -> None:
    assert tuple(section.finding for section in SECTIONS) == FINDING_IDS


def test_every_detector_names_its_finding() -> None:
    heads = [(type(detector).__doc__ or "").partition(": ")[0] for detector in DEFAULT_DETECTORS]
    assert {id_ for names in heads for id_ in re.findall(r"`([a-z-]+)`", names)} == set(FINDING_IDS)


@each_section
def test_the_help_of_a_finding_leads_to_its_section(section: Section) -> None:
    assert bare_finding(section.finding).help == f"session-tracer findings {section.finding}"


def test_the_list_above_the_findings_has_each_of_them() -> None:
    assert tuple(re.findall(r"\[([a-z-]+)\]\(#\1\)", HEAD)) == FINDING_IDS


def test_the_readme_lists_each_finding_as_its_section_begins() -> None:
    table = (ROOT / "README.md").read_text().partition("\n## Findings\n")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| [")]
    assert rows == [
        f"| [{section.finding}](docs/findings.md#{section.finding}) "
        f"| {section.severity} | {section.meaning} |"
        for section in SECTIONS
    ]


def test_the_classes_that_are_shown_are_those_of_the_examples() -> None:
    (classes,) = re.findall(r"^```python\n(class .*?)^```$", HEAD, re.MULTILINE | re.DOTALL)
    assert (ROOT / "examples" / "misuse" / "models.py").read_text().endswith(classes)


@each_section
def test_the_wrong_code_is_reported_as_on_the_page(section: Section, tmp_path: Path) -> None:
    (finding,) = found_in(section.wrong, tmp_path, **section.run_with)
    assert (finding.id, finding.severity) == (section.finding, section.severity)
    assert skeleton(printed(finding)) == skeleton(section.report), (
        "the page is stale: run `python3 tasks.py findings`"
    )


@each_section
def test_nothing_is_reported_about_the_right_code(section: Section, tmp_path: Path) -> None:
    assert found_in(section.right, tmp_path, **section.run_with) == []


@each_section
def test_the_page_shows_how_to_silence_it(section: Section, tmp_path: Path) -> None:
    (ignore, id_) = re.findall(
        r'^- Silence: `ignore=(.*)`, or `with session_tracer.silence\("(.*)", reason="..."\):`.$',
        section.text,
        re.MULTILINE,
    )[0]
    ignored = {*section.run_with.get("ignore", ()), *ast.literal_eval(ignore)}
    assert found_in(section.wrong, tmp_path, **{**section.run_with, "ignore": ignored}) == []
    with silence(id_, reason="the page shows it"):
        assert found_in(section.wrong, tmp_path, **section.run_with) == []


@each_section
def test_the_page_names_the_settings_that_tune_it(section: Section) -> None:
    lines = re.findall(r"^- Tune: (.*)\.$", section.text, re.MULTILINE)
    shown = [re.fullmatch(r"`(\w+)=(.*)`, `(\w+)`", line) for line in lines]
    wanted = settings_of(section.finding)
    if not wanted:
        assert lines == ["it has no threshold"]
        return
    settings = {one[1]: (ast.literal_eval(one[2]), one[3]) for one in shown if one is not None}
    defaults = {name: getattr(Settings(), name) for name in wanted}
    assert {name: default for name, (default, _) in settings.items()} == defaults
    for name, (default, variable) in settings.items():
        assert getattr(Settings.from_env({variable: str(default + 1)}), name) == default + 1


# The threshold of a failed flush is for those that the application handles.
TUNED = [
    section
    for section in SECTIONS
    if settings_of(section.finding) and section.finding != "failed-flush"
]


@pytest.mark.parametrize("section", TUNED, ids=lambda section: section.finding)
def test_a_higher_threshold_prevents_the_finding(section: Section, tmp_path: Path) -> None:
    threshold = settings_of(section.finding)[0]
    higher: dict[str, Any] = {threshold: getattr(Settings(), threshold) * 1_000}
    assert found_in(section.wrong, tmp_path, **{**section.run_with, **higher}) == []
