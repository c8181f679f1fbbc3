"""Checks what a forge reads: workflows, issue forms, hooks of pre-commit, and the changelog."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

import tasks

ROOT: Final = Path(__file__).parent.parent
FORGE: Final = ROOT / ".github"
WORKFLOWS: Final = sorted((FORGE / "workflows").glob("*.yml"))
FORMS: Final = sorted((FORGE / "ISSUE_TEMPLATE").glob("*.yml"))
CLASSIFIERS: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
# What Keep a Changelog allows.
KINDS: Final = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}

each_workflow = pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)


def read(file: Path) -> dict[str, Any]:
    """What the YAML file holds; YAML 1.1 reads `on` as true."""
    return dict(yaml.safe_load(file.read_text()))


def assert_valid(schema: str, *files: Path) -> None:
    """The files follow this schema, which is installed with check-jsonschema."""
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *map(str, files)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_workflows_follow_their_schema() -> None:
    assert_valid("vendor.github-workflows", *WORKFLOWS)


def test_the_issue_forms_follow_their_schema() -> None:
    forms = [form for form in FORMS if form.stem != "config"]
    assert_valid("vendor.github-issue-forms", *forms)
    assert_valid("vendor.github-issue-config", FORGE / "ISSUE_TEMPLATE" / "config.yml")


def test_a_workflow_that_does_not_follow_the_schema_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yml"
    wrong.write_text("on: push\njobs:\n  a:\n    run-on: ubuntu-latest\n")
    with pytest.raises(AssertionError, match="run-on"):
        assert_valid("vendor.github-workflows", wrong)


@each_workflow
def test_a_workflow_may_only_read_unless_a_job_needs_more(file: Path) -> None:
    assert read(file)["permissions"] == {"contents": "read"}


@each_workflow
def test_an_action_is_of_one_major_version(file: Path) -> None:
    used = re.findall(r"uses: (\S+)", file.read_text())
    assert used
    assert [one for one in used if not re.fullmatch(r"[\w/-]+@(release/)?v\d+", one)] == []


@each_workflow
def test_a_workflow_runs_tasks_that_exist(file: Path) -> None:
    names = {task.name for task in tasks.TASKS}
    workflow = read(file)
    run = set(re.findall(r"python tasks\.py ([\w-]+)", file.read_text()))
    for job in workflow["jobs"].values():
        for row in job.get("strategy", {}).get("matrix", {}).get("include", ()):
            run.add(row["releases"])
    assert run - names == set()


def test_the_tests_run_on_each_python_of_the_classifiers_and_on_the_next() -> None:
    (job,) = read(FORGE / "workflows" / "tests.yml")["jobs"].values()
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(CLASSIFIERS))
    *tested, following = job["strategy"]["matrix"]["python"]
    assert tested == named
    assert job["continue-on-error"] == f"${{{{ matrix.python == '{following}' }}}}"


def test_the_tests_run_on_the_systems_of_the_classifiers() -> None:
    systems = {one.rpartition(" :: ")[2] for one in CLASSIFIERS if one.startswith("Operating")}
    (job,) = read(FORGE / "workflows" / "tests.yml")["jobs"].values()
    assert (systems, job["runs-on"]) == ({"Linux"}, "ubuntu-latest")


def test_the_hooks_run_the_tools_of_the_lint_task() -> None:
    (local,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local"
    entries = [hook["entry"].split()[:4] for hook in local["hooks"]]
    python = [".venv/bin/python", "-m"]
    assert entries == [
        [*python, "ruff", "check"],
        [*python, "ruff", "format"],
        [*python, "mypy"],
    ]


def test_the_changelog_begins_with_what_is_not_released() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    releases = re.findall(r"^## (.*)$", changelog, re.MULTILINE)
    assert releases[0] == "Unreleased"
    form = r"\d+\.\d+\.\d+ - \d{4}-\d{2}-\d{2}"
    assert [one for one in releases[1:] if not re.fullmatch(form, one)] == []


def test_the_changelog_has_the_kinds_of_changes_of_keep_a_changelog() -> None:
    kinds = re.findall(r"^### (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert set(kinds) <= KINDS
    assert kinds


def test_contributing_names_tasks_that_exist() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"python3 tasks\.py ([a-z]+)", page))
    assert named - {task.name for task in tasks.TASKS} == set()
