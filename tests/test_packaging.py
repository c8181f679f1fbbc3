"""Tests that what pyproject.toml says of the package is what the folders hold."""

import inspect
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest

import tasks
from session_tracer.version import VERSION

CHECKOUT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
ENTRY_POINTS = [
    EntryPoint(name, value, group)
    for group, entries in PROJECT["project"]["entry-points"].items()
    for name, value in entries.items()
]


def test_the_symlink_shows_type_checkers_the_exporters() -> None:
    link = CHECKOUT / "session_tracer" / "exporters"
    assert link.is_symlink()
    assert os.readlink(link) == "../exporters"
    assert PROJECT["tool"]["setuptools"]["package-dir"] == {
        "session_tracer.exporters": os.readlink(link).removeprefix("../")
    }


README = (CHECKOUT / "README.md").read_text()
URLS = """
[project.urls]
Source = "https://example.org/tracer/"

[dependency-groups]"""
LINK = re.compile(r"(!?)\[([^][]*)\]\(([^)]*)\)")


def shown_on_the_index(folder: Path, urls: str) -> str:
    """The README in the metadata that is built of the package, with these URLs."""
    for name in ("LICENSE", "README.md", "session_tracer", "exporters"):
        (folder / name).symlink_to(CHECKOUT / name)
    shutil.copy(CHECKOUT / "setup.py", folder)
    described = (CHECKOUT / "pyproject.toml").read_text()
    (folder / "pyproject.toml").write_text(described.replace("\n[dependency-groups]", urls))
    build = "import setuptools.build_meta as backend; backend.prepare_metadata_for_build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=folder, check=True, capture_output=True)
    (metadata,) = folder.glob("*.dist-info/METADATA")
    return metadata.read_text().partition("\n\n")[2]


def test_without_an_address_links_are_their_text_on_the_package_index(tmp_path: Path) -> None:
    shown = shown_on_the_index(tmp_path, "\n[dependency-groups]")
    plain = LINK.sub(lambda link: "" if link[1] else link[2], README)
    assert shown.strip() == plain.strip()
    assert "| leaked-session | error | " in shown


def test_with_an_address_links_and_pictures_have_it_on_the_package_index(tmp_path: Path) -> None:
    shown = shown_on_the_index(tmp_path, URLS)
    files = f"https://example.org/tracer/{{}}/v{VERSION}/"
    links = [
        (picture, text, files.format("raw" if picture else "blob") + target)
        for picture, text, target in LINK.findall(README)
    ]
    assert LINK.findall(shown) == links
    assert ("", "leaked-session", files.format("blob") + "docs/findings.md#leaked-session") in links
    assert [target for picture, _, target in links if picture] == [
        files.format("raw") + "docs/console.svg"
    ]


def test_the_version_is_one() -> None:
    assert PROJECT["project"]["version"] == VERSION


def test_every_folder_with_modules_is_a_package_that_is_installed() -> None:
    folders = {
        ".".join((*package.split("/"), *file.parent.relative_to(home).parts))
        for package, home in tasks.PACKAGES
        for file in home.rglob("*.py")
    }
    packages = PROJECT["tool"]["setuptools"]["packages"]
    assert sorted(packages) == sorted(folders)


def test_every_package_has_its_init() -> None:
    packages = [name.replace(".", "/") for name in PROJECT["tool"]["setuptools"]["packages"]]
    assert [name for name in packages if not (CHECKOUT / name / "__init__.py").exists()] == []


def test_the_types_are_published() -> None:
    assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"]["session_tracer"]
    assert (CHECKOUT / "session_tracer" / "py.typed").exists()


def test_the_template_of_the_page_is_installed() -> None:
    assert PROJECT["tool"]["setuptools"]["package-data"]["session_tracer.page"] == ["page.html"]


def test_the_page_of_the_findings_is_installed_for_the_command_that_prints_it() -> None:
    assert "findings.md" in PROJECT["tool"]["setuptools"]["package-data"]["session_tracer"]
    page = CHECKOUT / "session_tracer" / "findings.md"
    assert os.readlink(page) == "../docs/findings.md"
    assert page.read_text() == (CHECKOUT / "docs" / "findings.md").read_text()


def test_the_command_leads_to_something() -> None:
    (script,) = PROJECT["project"]["scripts"].items()
    assert script == ("session-tracer", "session_tracer.cli:main")
    assert callable(EntryPoint(script[0], script[1], "console_scripts").load())


@pytest.mark.parametrize("entry_point", ENTRY_POINTS, ids=[entry.name for entry in ENTRY_POINTS])
def test_an_entry_point_leads_to_something(entry_point: EntryPoint) -> None:
    found = entry_point.load()
    assert inspect.ismodule(found) if entry_point.group == "pytest11" else callable(found)


def test_the_exporters_are_found_by_these_names() -> None:
    exporters = PROJECT["project"]["entry-points"]["session_tracer_exporter"]
    assert sorted(exporters) == [
        "console",
        "jsonl",
        "logging",
        "none",
        "otlp",
        "prometheus",
        "providers",
    ]


def test_what_is_installed_is_what_the_checkout_describes() -> None:
    try:
        installed = distribution("session-tracer")
    except PackageNotFoundError:
        pytest.skip("session-tracer is not installed in this environment")
    entries = [entry for entry in installed.entry_points if entry.group in _groups()]
    assert sorted(map(str, entries)) == sorted(map(str, ENTRY_POINTS))
    assert installed.version == PROJECT["project"]["version"]


def _groups() -> set[str]:
    return {entry.group for entry in ENTRY_POINTS}


def test_one_oldest_python_everywhere() -> None:
    oldest = ".".join(map(str, tasks.OLDEST))
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["project"]["classifiers"]))
    assert PROJECT["project"]["requires-python"] == f">={oldest}"
    assert named[0] == oldest


CONSTRAINTS = [tasks.documentation_constraints(), *map(tasks.constraints_of, tasks.LINES)]


@pytest.mark.parametrize("file", CONSTRAINTS, ids=lambda file: file.stem)
def test_the_constraints_are_names_and_versions_and_nothing_else(file: Path) -> None:
    header, *pins = file.read_text().splitlines()
    assert header == "# Written by: python3 tasks.py constraints"
    assert [pin for pin in pins if not re.fullmatch(r"[a-z0-9-]+==[a-z0-9.]+", pin)] == []
    assert pins == sorted(pins)


@pytest.mark.parametrize("line", tasks.LINES)
def test_the_constraints_of_a_line_have_its_sqlalchemy(line: str) -> None:
    assert f"\nsqlalchemy=={line}." in tasks.constraints_of(line).read_text()


@pytest.mark.parametrize("line", tasks.LINES)
def test_every_named_requirement_is_constrained(line: str) -> None:
    project, groups = PROJECT["project"], dict(PROJECT["dependency-groups"])
    del groups["docs"]
    named = [*PROJECT["build-system"]["requires"], *project["dependencies"]]
    for requirements in (*project["optional-dependencies"].values(), *groups.values()):
        named += [one for one in requirements if isinstance(one, str)]
    assert names_of(named) - pinned_in(tasks.constraints_of(line)) == {"session-tracer"}


def test_what_builds_the_documentation_site_is_constrained() -> None:
    named = PROJECT["dependency-groups"]["docs"]
    assert names_of(named) - pinned_in(tasks.documentation_constraints()) == set()


def names_of(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w.-]", one)[0].lower().replace(".", "-") for one in requirements}


def pinned_in(constraints: Path) -> set[str]:
    return {pin.partition("==")[0] for pin in constraints.read_text().splitlines()[1:]}


def test_every_extra_is_in_all() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    named = re.fullmatch(r"session-tracer\[(.*)\]", extras["all"][0])
    assert named is not None
    assert set(named[1].split(",")) == set(extras) - {"all"}
