"""Tests that a known finding is known again, and that a file says what is wrong with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from session_tracer import CallSite, Finding
from session_tracer.verdicts import baseline as baselines
from session_tracer.verdicts.baseline import Baseline, empty, load

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

HEADING = """\
# Known findings, which are not reported. Line numbers do not matter.
# "tests" are the files of the tests that have a finding.
# pytest --session-tracer-update-baseline removes the ones that no longer occur.
"""


def write(path: Path, findings: Iterable[Finding], known: Baseline | None = None) -> None:
    """Write these findings, and the known ones, of which the run has seen nothing."""
    update = (known or empty(path)).updated(((one, ()) for one in findings), lambda _: False)
    baselines.write(path, update.baseline)


def found(id_: str, site: CallSite | None, **fields: Any) -> Finding:
    return Finding(
        **{
            "id": id_,
            "severity": "warning",
            "message": "it is so",
            "remedy": "leave it",
            "site": site,
            "session_id": "0123456789abcdef",
            "session_name": "default",
            "session_site": None,
            **fields,
        }
    )


def in_report(tmp_path: Path, line: int = 33) -> CallSite:
    return CallSite(str(tmp_path / "app" / "report.py"), line, "totals")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "known.jsonl"


def test_what_was_written_is_known_and_nothing_else(path: Path, tmp_path: Path) -> None:
    site = in_report(tmp_path)
    finding = found("n-plus-one", site, entity="Author", attribute="books")
    write(path, [finding])
    baseline = load(path)
    assert len(baseline) == 1
    assert baseline.knows(finding)
    others = [
        found("get-in-loop", site, entity="Author", attribute="books"),
        found("n-plus-one", site, entity="Author", attribute="letters"),
        found("n-plus-one", site, entity="Book", attribute="books"),
        found("n-plus-one", site, entity="Author"),
        found("n-plus-one", None, entity="Author", attribute="books"),
        found(
            "n-plus-one",
            CallSite(site.file, site.line, "subtotals"),
            entity="Author",
            attribute="books",
        ),
        found(
            "n-plus-one",
            CallSite(site.file + "x", site.line, site.function),
            entity="Author",
            attribute="books",
        ),
    ]
    assert [baseline.knows(other) for other in others] == [False] * len(others)


def test_an_edit_elsewhere_in_the_file_makes_nothing_new(path: Path, tmp_path: Path) -> None:
    write(path, [found("n-plus-one", in_report(tmp_path, line=33), count=12)])
    moved = found(
        "n-plus-one",
        in_report(tmp_path, line=34),
        message="it is so, 13 times",
        severity="error",
        session_id="fedcba9876543210",
        count=13,
    )
    assert load(path).knows(moved)


def test_the_file_is_sorted_and_names_each_finding_once(path: Path, tmp_path: Path) -> None:
    findings = [
        found("n-plus-one", in_report(tmp_path), entity="Author", attribute="books"),
        found("large-flush", CallSite(str(tmp_path / "jobs" / "zwölf monate.py"), 7, "<module>")),
        found("n-plus-one", in_report(tmp_path, line=40), entity="Author", attribute="books"),
        found("large-flush", None),
        found("large-flush", CallSite(str(tmp_path / "jobs" / "all.py"), 2, "Sync.run")),
    ]
    told = """\
{"id": "large-flush"}
{"id": "large-flush", "file": "jobs/all.py", "function": "Sync.run"}
{"id": "large-flush", "file": "jobs/zwölf monate.py", "function": "<module>"}
{"id": "n-plus-one", "file": "app/report.py", "function": "totals", "entity": "Author", \
"attribute": "books"}
"""
    write(path, findings)
    assert path.read_bytes() == (HEADING + told).encode()
    write(path, reversed(findings))
    assert path.read_bytes() == (HEADING + told).encode()
    assert all(load(path).knows(finding) for finding in findings)


def test_what_was_known_before_can_stay_known(path: Path, tmp_path: Path) -> None:
    old, new = found("large-flush", in_report(tmp_path)), found("n-plus-one", in_report(tmp_path))
    write(path, [old])
    write(path, [new, old], load(path))
    baseline = load(path)
    assert len(baseline) == 2
    assert baseline.knows(old)
    assert baseline.knows(new)


def test_files_are_named_from_the_baselines_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tests").mkdir()
    path = tmp_path / "tests" / "known.jsonl"
    finding = found("n-plus-one", in_report(tmp_path))
    write(path, [finding])
    assert '"file": "../app/report.py"' in path.read_text()
    monkeypatch.chdir(tmp_path / "tests")
    assert load("known.jsonl").knows(finding)
    monkeypatch.chdir(tmp_path)
    assert load("tests/known.jsonl").knows(finding)


@pytest.mark.parametrize(
    "file",
    [
        "project/.venv/lib/python3.11/site-packages/shop/orders/views.py",
        "usr/lib/python3.13/dist-packages/shop/orders/views.py",
        "elsewhere/shop/orders/views.py",
    ],
)
def test_a_file_outside_the_project_is_named_by_its_package(tmp_path: Path, file: str) -> None:
    project = tmp_path / "project"
    (project / "tests").mkdir(parents=True)
    (project / "pyproject.toml").touch()
    views = tmp_path / file
    views.parent.mkdir(parents=True)
    for package in (views.parent, views.parent.parent):
        (package / "__init__.py").touch()
    finding = found("n-plus-one", CallSite(str(views), 7, "index"))
    known = project / "tests" / "known.jsonl"
    write(known, [finding])
    assert '"file": "shop/orders/views.py"' in known.read_text()
    assert load(known).knows(finding)


def test_a_file_of_the_project_is_named_from_the_folder_of_a_baseline_below_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "pyproject.toml").touch()
    known = tmp_path / "tests" / "known.jsonl"
    write(known, [found("n-plus-one", in_report(tmp_path))])
    assert '"file": "../app/report.py"' in known.read_text()


def test_a_file_reached_by_a_link_is_the_same_file(path: Path, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "app")
    write(path, [found("n-plus-one", in_report(tmp_path))])
    linked = CallSite(str(tmp_path / "link" / "report.py"), 33, "totals")
    assert load(path).knows(found("n-plus-one", linked))


def test_comments_and_empty_lines_are_passed_over(path: Path) -> None:
    path.write_text('# why\n\n  # and why not\n{"id": "large-flush"}\r\n   \n')
    baseline = load(path)
    assert len(baseline) == 1
    assert baseline.knows(found("large-flush", None))


def test_an_empty_file_knows_nothing(path: Path) -> None:
    write(path, [])
    assert path.read_text() == HEADING
    baseline = load(path)
    assert len(baseline) == 0
    assert not baseline.knows(found("large-flush", None))


@pytest.mark.parametrize(
    "line",
    [
        "n-plus-one app/report.py",
        '{"id": "n-plus-one"',
        '["n-plus-one"]',
        '"n-plus-one"',
        "{}",
        '{"file": "app/report.py"}',
        '{"id": 7}',
        '{"id": "n-plus-one", "entity": null}',
        '{"id": "n-plus-one", "line": "33"}',
        '{"id": "n-plus-one", "tests": "tests/test_app.py"}',
        '{"id": "n-plus-one", "tests": [7]}',
    ],
)
def test_a_line_that_is_no_finding_is_named(path: Path, line: str) -> None:
    path.write_text(f'# known\n{{"id": "large-flush"}}\n{line}\n')
    with pytest.raises(ValueError, match="Invalid line") as refused:
        load(path)
    assert str(refused.value) == (
        f"Invalid line {path}:3: {line!r}. Expected a JSON object of strings with the key id and "
        "optionally file, function, entity, attribute, and a list of tests."
    )


def test_a_file_that_is_missing_is_named_with_what_to_do(path: Path) -> None:
    with pytest.raises(ValueError, match="Cannot read") as refused:
        load(path)
    assert str(refused.value) == (
        f"Cannot read {str(path)!r}: No such file or directory. Write it with pytest "
        "--session-tracer-baseline=FILE --session-tracer-update-baseline."
    )


def test_a_file_that_is_no_text_is_named(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="it is not UTF-8"):
        load(path)


def test_an_update_keeps_what_the_run_could_not_see(path: Path, tmp_path: Path) -> None:
    here, there, nowhere = (found(id_, in_report(tmp_path)) for id_ in ("here", "there", "nowhere"))
    first = empty(path).updated(
        [(here, {"test_a.py"}), (there, {"test_b.py"}), (nowhere, ())], lambda _: True
    )
    assert (first.removed, first.unseen) == ([], [])

    def has_seen(files: Collection[str]) -> bool:
        return set(files) == {"test_a.py"}

    second = first.baseline.updated([], has_seen)
    assert [known.id for known in second.removed] == ["here"]
    assert [known.id for known in second.unseen] == ["nowhere", "there"]
    baselines.write(path, second.baseline)
    assert [load(path).knows(one) for one in (here, there, nowhere)] == [False, True, True]


def test_an_update_brings_the_files_of_tests_up_to_date(path: Path, tmp_path: Path) -> None:
    one = found("n-plus-one", in_report(tmp_path), entity="Author")
    first = empty(path).updated([(one, {"test_a.py", "test_b.py"})], lambda _: True)
    after_all = first.baseline.updated([(one, {"test_c.py"})], lambda _: True)
    after_some = first.baseline.updated([(one, {"test_c.py"})], lambda _: False)
    assert [list(tests) for _, tests in after_all.baseline] == [["test_c.py"]]
    assert [sorted(tests) for _, tests in after_some.baseline] == [
        ["test_a.py", "test_b.py", "test_c.py"]
    ]
    baselines.write(path, after_some.baseline)
    assert '"tests": ["test_a.py", "test_b.py", "test_c.py"]}' in path.read_text()


@pytest.mark.parametrize("is_there", [True, False], ids=["installed", "elsewhere"])
@pytest.mark.parametrize(
    "file",
    [
        "../.venv/lib/python3.11/site-packages/shop/orders/views.py",
        "../../usr/lib/python3.13/dist-packages/shop/orders/views.py",
    ],
)
def test_an_older_file_is_read_and_written_in_the_new_form(
    tmp_path: Path, file: str, is_there: bool
) -> None:
    """It has paths of an environment, which may be another machine's, and no tests."""
    project = tmp_path / "project" / "tests"
    project.mkdir(parents=True)
    (project.parent / "pyproject.toml").touch()
    path = project / "known.jsonl"
    path.write_text(
        "# Findings that are known and are not said, wherever in the function they are.\n"
        f'{{"id": "n-plus-one", "file": "{file}", "function": "index"}}\n'
        '{"id": "large-flush", "file": "../app/report.py", "function": "totals"}\n'
    )
    views = (project / file).resolve()
    if is_there:
        views.parent.mkdir(parents=True)
        for package in (views.parent, views.parent.parent):
            (package / "__init__.py").touch()
        assert load(path).knows(found("n-plus-one", CallSite(str(views), 7, "index")))
    report = CallSite(str(project.parent / "app" / "report.py"), 33, "totals")
    assert load(path).knows(found("large-flush", report))
    baselines.write(path, load(path))
    assert path.read_text() == HEADING + (
        '{"id": "large-flush", "file": "../app/report.py", "function": "totals"}\n'
        '{"id": "n-plus-one", "file": "shop/orders/views.py", "function": "index"}\n'
    )


def test_a_folder_whose_name_ends_like_that_of_packages_is_no_environment(path: Path) -> None:
    path.write_text('{"id": "large-flush", "file": "my-packages/app.py"}\n')
    baselines.write(path, load(path))
    assert '"file": "my-packages/app.py"' in path.read_text()
