"""That a baseline loses what no longer occurs, and nothing that a run could not see."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from tests.plugin.suites import Suites

SERVICE: Final = """
from sqlalchemy import select
from sqlalchemy.orm import selectinload
from tests.library import Author

def total(session):
    return sum(len(one.books) for one in session.scalars(select(Author)).all())

def titles(session):
    return [[book.title for book in one.books] for one in session.scalars(select(Author)).all()]
"""
CURED: Final = SERVICE.replace(
    "select(Author)", "select(Author).options(selectinload(Author.books))"
)
TOTAL: Final = "import service\n\ndef test_total(session): assert service.total(session)\n"
TITLES: Final = "import service\n\ndef test_titles(session): assert service.titles(session)\n"
BASELINE: Final = "--session-tracer-baseline=known.jsonl"
UPDATE: Final = (BASELINE, "--session-tracer-update-baseline")
KEPT: Final = (
    "did not occur and stayed in the baseline: not all tests that could have them ran to their end"
)


@pytest.fixture
def known(suites: Suites) -> Suites:
    """Suites with two known findings, and without their causes."""
    suites.configure("pythonpath = .")
    (suites.folder / "service.py").write_text(SERVICE)
    suites.write(TOTAL, "test_total")
    suites.write(TITLES, "test_titles")
    assert suites.run(*UPDATE).summary[-1] == "2 new, 0 known; updated known.jsonl"
    (suites.folder / "service.py").write_text(CURED)
    return suites


def entries(suites: Suites) -> list[dict[str, Any]]:
    lines = (suites.folder / "known.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if not line.startswith("#")]


def functions(suites: Suites) -> list[str]:
    return [entry["function"] for entry in entries(suites)]


def test_an_entry_has_the_function_the_attribute_and_the_files_of_the_tests(
    known: Suites,
) -> None:
    assert entries(known)[1] == {
        "id": "n-plus-one",
        "file": "service.py",
        "function": "total",
        "entity": "Author",
        "attribute": "books",
        "tests": ["test_total.py"],
    }


def test_a_new_line_of_a_known_finding_is_known(known: Suites) -> None:
    (known.folder / "service.py").write_text(f"\n\n\n{SERVICE}")
    known.write(f"\n\n{TOTAL}\n\ndef test_again(session): service.total(session)", "test_total")
    run = known.run("--session-tracer=info", BASELINE)
    assert set(run.outcomes.values()) == {"passed"}
    assert run.summary == ["0 new, 2 known (baseline)"]


def test_what_no_longer_occurs_is_removed(known: Suites) -> None:
    run = known.run(*UPDATE)
    assert run.has(
        "removed from the baseline: n-plus-one   service.py in titles()   Author.books",
        "removed from the baseline: n-plus-one   service.py in total()   Author.books",
        "0 new, 0 known, 2 removed; updated known.jsonl",
    )
    assert entries(known) == []


def test_only_an_update_removes(known: Suites) -> None:
    assert known.run(BASELINE).summary == []
    assert functions(known) == ["titles", "total"]


def test_what_occurs_still_stays(known: Suites) -> None:
    half = CURED.replace(".options(selectinload(Author.books))", "", 1)
    (known.folder / "service.py").write_text(half)
    run = known.run(*UPDATE)
    assert run.summary[-1] == "0 new, 1 known, 1 removed; updated known.jsonl"
    assert functions(known) == ["total"]


PARTS: Final = {
    "a file": ("test_total.py",),
    "a test": ("test_total.py::test_total", "test_titles.py"),
    "-k": ("-k", "total"),
    "-m": ("-m", "not slow"),
    "--deselect": ("--deselect", "test_titles.py"),
    "--ignore": ("--ignore=test_titles.py",),
    "--ignore-glob": ("--ignore-glob=*titles.py",),
    "-x": ("-x", "test_fails.py", "test_total.py", "test_titles.py"),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_run_of_a_part_removes_nothing(known: Suites, part: str) -> None:
    known.write("@pytest.mark.slow\ndef test_slow(): pass", "test_slow")
    known.configure("pythonpath = .\nmarkers = slow: is slow")
    if part == "-x":
        known.write("def test_fails(): assert False", "test_fails")
    run = known.run(*UPDATE, *PARTS[part])
    assert run.has(f"2 known findings {KEPT}", "0 new, 0 known; updated known.jsonl")
    assert functions(known) == ["titles", "total"]


@pytest.mark.parametrize(
    "source",
    {
        "fails": "def test_total(session): assert not service.total(session)",
        "is skipped": "@pytest.mark.skip\ndef test_total(): pass",
        "skips": "def test_total(): pytest.skip('not now')",
        "is not run": "@pytest.mark.xfail(run=False)\ndef test_total(): pass",
        "has a failing fixture": "@pytest.fixture\ndef bad(): 1 / 0\n\ndef test_total(bad): pass",
        "fails after it": ("@pytest.fixture\ndef bad(): yield; 1 / 0\n\ndef test_total(bad): pass"),
    }.values(),
)
def test_what_a_test_that_did_not_end_could_have_stays(known: Suites, source: str) -> None:
    known.write(f"import service\n\n{source}\n", "test_total")
    run = known.run(*UPDATE)
    assert run.has(f"1 known finding {KEPT}", "0 new, 0 known, 1 removed; updated known.jsonl")
    assert functions(known) == ["total"]


def test_what_a_file_that_is_skipped_could_have_stays(known: Suites) -> None:
    known.write("pytest.skip('not here', allow_module_level=True)", "test_total")
    known.run(*UPDATE)
    assert functions(known) == ["total"]


def test_a_run_that_could_not_collect_a_file_removes_nothing(known: Suites) -> None:
    known.write("import nothing_of_this_name", "test_total")
    known.run(*UPDATE, "--continue-on-collection-errors")
    assert functions(known) == ["titles", "total"]


def test_what_a_file_that_is_gone_had_is_removed(known: Suites) -> None:
    (known.folder / "test_total.py").unlink()
    known.run(*UPDATE)
    assert functions(known) == []


def test_a_test_that_is_known_to_fail_has_run_to_its_end(known: Suites) -> None:
    known.write(
        "import service\n\n@pytest.mark.xfail\ndef test_total(session):\n"
        "    assert not service.total(session)\n",
        "test_total",
    )
    known.run(*UPDATE)
    assert functions(known) == []


@pytest.mark.parametrize(
    ("testpaths", "given", "is_whole"),
    [
        ("", ("tests",), True),
        ("", (".",), True),
        ("", ("tests/unit",), False),
        ("", ("tests/unit", "tests/test_more.py"), True),
        ("testpaths = tests", (), True),
        ("testpaths = tests", ("tests/",), True),
        ("testpaths = tests", ("tests/unit",), False),
        ("testpaths = tests more*", ("tests",), False),
        ("testpaths = tests more*", ("more_tests", "tests"), True),
    ],
)
def test_folders_that_have_all_tests_are_all_tests(
    suites: Suites, testpaths: str, given: tuple[str, ...], is_whole: bool
) -> None:
    for folder in ("tests/unit", *(["more_tests"] if "more" in testpaths else [])):
        (suites.folder / folder).mkdir(parents=True)
        (suites.folder / folder / "test_one.py").write_text("def test_one(): pass\n")
    (suites.folder / "tests" / "test_more.py").write_text("def test_more(): pass\n")
    (suites.folder / "venv").mkdir()
    (suites.folder / "venv" / "pyvenv.cfg").touch()
    (suites.folder / "venv" / "test_of_a_package.py").write_text("def test_it(): pass\n")
    (suites.folder / "known.jsonl").write_text('{"id": "large-flush"}\n')
    suites.configure(f"consider_namespace_packages = true\n{testpaths}", "--import-mode=importlib")
    suites.run(*UPDATE, *given)
    assert (entries(suites) == []) is is_whole


def test_an_entry_of_an_older_form_is_removed_only_if_every_test_ran(known: Suites) -> None:
    path = known.folder / "known.jsonl"
    path.write_text('{"id": "large-flush", "file": "service.py"}\n')
    known.write("def test_skips(): pytest.skip('not now')", "test_other")
    known.run(*UPDATE)
    assert [entry["id"] for entry in entries(known)] == ["large-flush"]
    known.write("def test_skips(): pass", "test_other")
    known.run(*UPDATE)
    assert entries(known) == []


def test_what_a_marker_allows_now_is_known_no_longer(known: Suites) -> None:
    (known.folder / "service.py").write_text(SERVICE)
    known.write(
        'pytestmark = pytest.mark.session_allow("n-plus-one", reason="of old")\n' + TOTAL,
        "test_total",
    )
    run = known.run(*UPDATE)
    assert run.summary[-1] == "0 new, 1 known, 1 allowed, 1 removed; updated known.jsonl"
    assert functions(known) == ["titles"]


@pytest.mark.parametrize("options", [(), ("--dist=loadfile",)], ids=["load", "loadfile"])
def test_workers_remove_together(known: Suites, options: tuple[str, ...]) -> None:
    run = known.run("-n2", *options, *UPDATE, apart=True)
    assert run.has("0 new, 0 known, 2 removed; updated known.jsonl")
    assert functions(known) == []


@pytest.mark.parametrize("part", ["-k", "a test", "skips"])
def test_workers_keep_together_what_they_could_not_see(known: Suites, part: str) -> None:
    if part == "skips":
        known.write("def test_total(): pytest.skip('not now')", "test_total")
    run = known.run("-n2", *PARTS.get(part, ()), *UPDATE, apart=True)
    assert run.has(KEPT)
    assert functions(known) == (["total"] if part == "skips" else ["titles", "total"])


def test_a_collection_alone_leaves_the_file_as_it_is(known: Suites) -> None:
    before = (known.folder / "known.jsonl").read_text()
    known.run(*UPDATE, "--collect-only")
    assert (known.folder / "known.jsonl").read_text() == before
