"""That the findings of a run are written as JSON and as SARIF, also by workers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest
from sarif_kit.validate import validation_errors

from session_tracer.model.findings import FINDING_IDS
from session_tracer.pytest_plugin.sarif import meaning_of
from session_tracer.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.plugin.suites import Suites

LIBRARY: Final = """
@pytest.mark.parametrize("_", range(3))
def test_lazily(SessionLocal, _):
    with SessionLocal() as session:
        read_one_by_one(session, 3)

def test_late(SessionLocal):
    read_too_late(SessionLocal)

@pytest.mark.session_allow("n-plus-one", reason="of old")
def test_may(session):
    read_one_by_one(session, 3)
"""
MANY: Final = f"""{LIBRARY}
def test_asks(SessionLocal):
    request_finding(SessionLocal, "info")
"""
NAMES: Final = ("all.json", "new.sarif")
FILES: Final = ("--session-tracer-json=out/all.json", "--session-tracer-sarif=out/new.sarif")


def written(suites: Suites) -> tuple[dict[str, Any], dict[str, Any]]:
    """The JSON file and the SARIF file, which the schema allows."""
    both = [json.loads((suites.folder / "out" / name).read_text()) for name in NAMES]
    assert validation_errors(both[1]) == []
    return both[0], both[1]


def line_of(suites: Suites, words: str) -> int:
    return int(suites.at(words).partition(":")[2])


def test_json_has_every_finding(suites: Suites) -> None:
    suites.run_source(MANY, *FILES)
    report, _ = written(suites)
    findings = report.pop("findings")
    assert report == {"format": 1, "session_tracer": VERSION, "sessions": 7}
    late, *repeated, asked = findings
    # Of the two warnings, the one that took longer comes first.
    repeated.sort(key=lambda one: one["state"], reverse=True)
    lazily, allowed = repeated
    assert [
        (one["id"], one["state"], one.get("reason")) for one in (late, lazily, allowed, asked)
    ] == [
        ("detached-lazy-load", "new", None),
        ("n-plus-one", "new", None),
        ("n-plus-one", "allowed", "of old"),
        ("demo-info", "new", None),
    ]
    assert late["site"] == {
        "file": "test_library.py",
        "line": line_of(suites, "# reads too late"),
        "function": "read_too_late",
    }
    assert lazily["tests"] == [
        {"id": f"test_library.py::test_lazily[{number}]", "phase": "call"} for number in range(3)
    ]
    assert (lazily["severity"], lazily["entity"], lazily["attribute"]) == (
        "warning",
        "Author",
        "books",
    )
    assert lazily["allow"] == '@pytest.mark.session_allow("n-plus-one:Author.books", reason="...")'
    assert lazily["remedy"].startswith("select(Author).options(")
    assert "work" not in lazily
    # How often in the test in which it took longest, and of what.
    assert (lazily["count"], lazily["counted"]) == (3, "SELECT")
    assert 0 < lazily["total_ms"] < lazily["test_ms"]
    assert "3 SELECTs" in lazily["message"]


def test_sarif_has_new_findings_at_their_lines(suites: Suites) -> None:
    suites.run_source(MANY, *FILES)
    _, log = written(suites)
    (run,) = log["runs"]
    assert log["version"] == "2.1.0"
    driver = run["tool"]["driver"]
    assert (driver["name"], driver["version"]) == ("session_tracer", VERSION)
    assert [rule["id"] for rule in driver["rules"]] == [
        "detached-lazy-load",
        "n-plus-one",
        "demo-info",
    ]
    assert driver["rules"][1]["shortDescription"]["text"] == (
        "an attribute is lazily loaded for each of many objects."
    )
    late, lazily, asked = run["results"]
    assert [one["level"] for one in (late, lazily, asked)] == ["error", "warning", "note"]
    assert [driver["rules"][one["ruleIndex"]]["id"] for one in run["results"]] == [
        one["ruleId"] for one in run["results"]
    ]
    (place,) = late["locations"]
    assert place["physicalLocation"] == {
        "artifactLocation": {"uri": "test_library.py"},
        "region": {"startLine": line_of(suites, "# reads too late")},
    }
    assert late["message"]["text"].startswith("Author.books was read ")
    assert "\nselect(Author).options(" in late["message"]["text"]
    (opened,) = late["relatedLocations"]
    assert opened["physicalLocation"]["region"] == {"startLine": line_of(suites, "# opens")}
    assert "3 SELECTs" in lazily["message"]["text"]
    assert lazily["properties"]["tests"] == [
        f"test_library.py::test_lazily[{number}]" for number in range(3)
    ]


def fingerprints(log: dict[str, Any]) -> list[str]:
    return [one["partialFingerprints"]["sessionTracer/v1"] for one in log["runs"][0]["results"]]


def test_a_result_has_the_same_fingerprint_when_lines_move(suites: Suites) -> None:
    suites.run_source(MANY, *FILES)
    before = fingerprints(written(suites)[1])
    suites.run_source(f"\n\n{MANY}", *FILES)
    assert fingerprints(written(suites)[1]) == before
    assert len(set(before)) == len(before)


def test_two_lines_of_one_function_have_fingerprints_of_their_own(suites: Suites) -> None:
    suites.run_source(
        """
def test_twice(session):
    found = session.scalars(select(Author)).all()
    each(found, lambda author: author.books)
    session.expunge_all()
    found = session.scalars(select(Author)).all()
    each(found, lambda author: author.books)
""",
        *FILES,
    )
    found = fingerprints(written(suites)[1])
    assert len(found) == 2
    assert len(set(found)) == 2


def test_paths_are_relative_to_the_repository_on_github(
    suites: Suites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_WORKSPACE", str(suites.folder.parent))
    suites.run_source(MANY, *FILES)
    _, log = written(suites)
    (place,) = log["runs"][0]["results"][0]["locations"]
    uri = place["physicalLocation"]["artifactLocation"]["uri"]
    assert uri == f"{suites.folder.name}/test_library.py"


@pytest.fixture
def apart(suites: Suites) -> Suites:
    """An application next to its folder of tests, which has pytest's configuration file."""
    (suites.folder / "app.py").write_text(
        """
from sqlalchemy import select
from tests.library import Author
from tests.plugin.on_demand import each

def read_one_by_one(session):
    each(session.scalars(select(Author)).all(), lambda author: author.books)
"""
    )
    suites.write(
        """
from app import read_one_by_one

def test_reads(SessionLocal):
    with SessionLocal() as session:
        read_one_by_one(session)
"""
    )
    folder = suites.folder / "checks"
    folder.mkdir()
    for name in ("test_library.py", "conftest.py", "tox.ini"):
        (suites.folder / name).rename(folder / name)
    with (folder / "tox.ini").open("a") as configuration:
        configuration.write("\npythonpath = ..\n")
    return suites


def places_of(log: dict[str, Any]) -> list[str]:
    """The paths of the results and of what belongs to them."""
    return [
        place["physicalLocation"]["artifactLocation"]["uri"]
        for one in log["runs"][0]["results"]
        for place in (*one["locations"], *one["relatedLocations"])
    ]


def test_paths_and_tests_are_those_of_the_working_folder(apart: Suites) -> None:
    run = apart.run("checks", "--session-tracer", *FILES)
    report, log = written(apart)
    assert run.summary[0].endswith(" 1 test (checks/test_library.py::test_reads)")
    assert places_of(log) == ["app.py", "checks/test_library.py"]
    assert report["findings"][0]["site"]["file"] == "app.py"
    # The file has pytest's own id.
    assert report["findings"][0]["tests"][0]["id"] == "test_library.py::test_reads"
    again = apart.run("checks/test_library.py::test_reads", "--session-tracer")
    assert again.outcomes == {"test_reads": "passed"}


def test_paths_are_relative_to_the_repository_where_git_has_it(
    apart: Suites, monkeypatch: pytest.MonkeyPatch
) -> None:
    (apart.folder / ".git").write_text("gitdir: elsewhere")
    monkeypatch.chdir(apart.folder / "checks")
    monkeypatch.setattr(apart, "folder", apart.folder / "checks")
    run = apart.run("--session-tracer", *FILES)
    assert run.summary[0].endswith(" 1 test (test_library.py::test_reads)")
    assert places_of(written(apart)[1]) == ["app.py", "checks/test_library.py"]


def test_paths_are_relative_to_pytests_folder_if_the_working_folder_is_inside(
    suites: Suites, monkeypatch: pytest.MonkeyPatch
) -> None:
    suites.write(LIBRARY)
    (suites.folder / "part").mkdir()
    monkeypatch.chdir(suites.folder / "part")
    names = tuple(one.replace("=", f"={suites.folder}/") for one in FILES)
    run = suites.run("..", "--session-tracer", *names)
    assert " 1 test (../test_library.py::test_late)" in run.text
    assert set(places_of(written(suites)[1])) == {"test_library.py"}


def test_a_path_is_a_valid_uri(suites: Suites, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("else where") / "näme.py"
    elsewhere.write_text("def close(maker):\n    maker().close()\n")
    run = suites.run_source(
        f"""
import runpy

def test_asks(SessionLocal):
    with requesting("warning"):
        runpy.run_path({str(elsewhere)!r})["close"](SessionLocal)
""",
        *FILES,
    )
    assert run.outcomes == {"test_asks": "passed"}
    _, log = written(suites)
    (place,) = log["runs"][0]["results"][0]["locations"]
    assert place["physicalLocation"]["artifactLocation"]["uri"] == elsewhere.as_uri()


def test_a_run_without_findings_writes_valid_files(suites: Suites) -> None:
    suites.run_source("def test_nothing(): pass", *FILES)
    report, log = written(suites)
    assert report["findings"] == []
    assert log["runs"][0]["results"] == []


def test_json_has_the_exceeded_budgets(suites: Suites) -> None:
    source = f"""{LIBRARY}
@pytest.mark.session_budget(sessions=0)
def test_asks(SessionLocal):
    request_finding(SessionLocal, "info")

@pytest.mark.session_budget(sessions=1)
def test_keeps_to_it(SessionLocal):
    request_finding(SessionLocal, "info")
"""
    suites.run_source(source, *FILES)
    report, _ = written(suites)
    ((test, (exceeded,)),) = report["exceeded_budgets"].items()
    assert test == "test_library.py::test_asks"
    assert exceeded.startswith("sessions 1 > 0 (opened ")


def test_known_findings_are_in_the_json_file_alone(suites: Suites) -> None:
    suites.write(MANY)
    suites.run("--session-tracer-baseline=known", "--session-tracer-update-baseline")
    suites.run("--session-tracer-baseline=known", *FILES)
    report, log = written(suites)
    states = {one["id"]: one["state"] for one in report["findings"] if one["state"] != "allowed"}
    assert set(states.values()) == {"known"}
    assert log["runs"][0]["results"] == []


def test_workers_report_together(suites: Suites) -> None:
    suites.write(LIBRARY)
    suites.write(LIBRARY, "test_others")
    suites.run("-p", "no:randomly", *FILES)
    alone = written(suites)
    run = suites.run("-n2", *FILES, apart=True)
    assert run.has("passed")
    together = written(suites)
    assert steady(together[0]["findings"]) == steady(alone[0]["findings"])
    assert sorted(fingerprints(together[1])) == sorted(fingerprints(alone[1]))


def steady(findings: Sequence[dict[str, Any]]) -> list[Any]:
    """The findings without what differs from run to run."""
    return sorted(
        [one["id"], one["state"], one["site"]["file"], *(test["id"] for test in one["tests"])]
        for one in findings
    )


def test_a_collection_alone_leaves_the_files_as_they_are(suites: Suites) -> None:
    suites.run_source(MANY, *FILES)
    before = written(suites)
    suites.run("--collect-only", *FILES)
    assert written(suites) == before


@pytest.mark.parametrize(
    "option",
    ["--session-tracer-json", "--session-tracer-sarif", "--session-tracer-baseline"],
)
@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "workers"])
def test_a_file_that_cannot_be_written_is_refused_at_the_start(
    suites: Suites, option: str, workers: tuple[str, ...]
) -> None:
    suites.write("def test_never_begins(): pass")
    (suites.folder / "folder").mkdir()
    (suites.folder / "file").write_text("")
    update = ("--session-tracer-update-baseline",) if "baseline" in option else ()
    if update and workers:
        pytest.skip("it is refused like the others")
    for path, why in {"file/below": "is not a folder", "folder": "Is a directory"}.items():
        run = suites.run(f"{option}={path}", *update, *workers, apart=bool(workers))
        assert run.exit_code == pytest.ExitCode.USAGE_ERROR
        assert why in run.text
        assert f"{option}" in run.text
        assert "test_never_begins" not in run.text


def test_what_is_refused_is_not_created(suites: Suites) -> None:
    suites.write("def test_passes(): pass")
    run = suites.run("--session-tracer-json=new/all.json", "--session-tracer-sarif=.")
    assert run.exit_code == pytest.ExitCode.USAGE_ERROR
    assert run.has(f"session_tracer: Cannot write --session-tracer-sarif={str(suites.folder)!r}: ")
    assert not (suites.folder / "new" / "all.json").exists()


@pytest.mark.parametrize("id_", FINDING_IDS)
def test_code_scanning_has_ameaning_of_for_each_finding(id_: str) -> None:
    assert meaning_of(id_) not in ("", id_)


def test_nothing_is_written_unless_it_is_asked_for(suites: Suites) -> None:
    suites.run_source(MANY, "--session-tracer")
    assert not list(suites.folder.rglob("*.sarif"))
