"""Tests what `tasks.py` decides: when to install, what to sum up, when to refuse."""

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from zipfile import ZipFile

import pytest

import tasks
from tasks import Step, StepFailed


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The quiet commands that would have run, in a checkout that is not this one."""
    ran: list[str] = []

    def run_quietly(command: Sequence[str | Path], cwd: Path = tmp_path) -> str:
        ran.append(" ".join(map(str, command)).replace(str(tmp_path), ""))
        if "venv" in command:
            Path(command[-1]).mkdir(exist_ok=True)
        return ""

    (tmp_path / "pyproject.toml").write_text("first")
    (tmp_path / "constraints").mkdir()
    (tmp_path / "constraints" / "sqlalchemy-2.1.txt").write_text("a==1")
    monkeypatch.setattr(tasks, "ROOT", tmp_path)
    monkeypatch.setattr(tasks, "run_quietly", run_quietly)
    monkeypatch.setattr(tasks, "is_of_this_version", lambda python: "made" in ran)
    return ran


PYTHON = f"/venv/{tasks.PROGRAM}"
MAKE = f"{sys.executable} -m venv --clear /venv"
INSTALL = f"{PYTHON} -m pip install --quiet --no-input"
UPGRADE = f"{INSTALL} --upgrade pip>=25.3"
CONSTRAINT = "--constraint=/constraints/sqlalchemy-2.1.txt"
BUILD_CONSTRAINT = "--build-constraint=/constraints/sqlalchemy-2.1.txt"


def test_a_missing_environment_is_made(commands: list[str], tmp_path: Path) -> None:
    tasks.environment(tmp_path / "venv", ["a", "b"])
    assert commands == [MAKE, UPGRADE, f"{INSTALL} a b"]
    assert (tmp_path / "venv" / ".gitignore").read_text() == "*\n"


def test_an_environment_is_installed_into_once(commands: list[str], tmp_path: Path) -> None:
    tasks.environment(tmp_path / "venv", ["a"])
    commands[:] = ["made"]
    assert tasks.environment(tmp_path / "venv", ["a"]) == tmp_path / "venv" / tasks.PROGRAM
    assert commands == ["made"]


def test_other_requirements_are_installed_too(commands: list[str], tmp_path: Path) -> None:
    tasks.environment(tmp_path / "venv", ["a"])
    commands[:] = ["made"]
    for wanted in ("b", "a", "b"):
        tasks.environment(tmp_path / "venv", [wanted])
    assert commands == ["made", f"{INSTALL} b"]


def test_a_changed_project_is_installed_anew(commands: list[str], tmp_path: Path) -> None:
    tasks.environment(tmp_path / "venv", ["a"])
    tasks.environment(tmp_path / "venv", ["b"])
    commands[:] = ["made"]
    for text in ("second", "first"):
        (tmp_path / "pyproject.toml").write_text(text)
        tasks.environment(tmp_path / "venv", ["a"])
    assert commands == ["made", f"{INSTALL} a", f"{INSTALL} a"]


def test_constraints_hold_pip_and_what_it_installs_and_builds_with(
    commands: list[str], tmp_path: Path
) -> None:
    tasks.environment(tmp_path / "venv", ["a"], tasks.constraints_of("2.1"))
    assert commands == [
        MAKE,
        f"{UPGRADE} {CONSTRAINT}",
        f"{INSTALL} a {CONSTRAINT} {BUILD_CONSTRAINT}",
    ]


def test_an_environment_is_installed_anew_when_a_constraint_changes(
    commands: list[str], tmp_path: Path
) -> None:
    pins = tasks.constraints_of("2.1")
    tasks.environment(tmp_path / "venv", ["a"], pins)
    commands[:] = ["made"]
    for text in ("a==2", "a==2", "a==1"):
        pins.write_text(text)
        tasks.environment(tmp_path / "venv", ["a"], pins)
    assert commands == ["made", *[f"{INSTALL} a {CONSTRAINT} {BUILD_CONSTRAINT}"] * 2]


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (tasks.examples, "2.1"),
        (tasks.development, "2.1"),
        (tasks.neighbours, "2.1"),
        (tasks.sqlalchemy_2_0, "2.0"),
        *((partial(tasks.suites_of, line), line) for line in tasks.LINES),
        *((partial(tasks.benchmark_of, line), line) for line in tasks.LINES),
    ],
)
def test_every_environment_gets_the_versions_of_its_line(
    make: Callable[[], Path], line: str, commands: list[str]
) -> None:
    make()
    assert f" --constraint=/constraints/sqlalchemy-{line}.txt " in commands[-1]


def test_one_release_of_sqlalchemy_is_installed_over_the_one_of_its_line(
    commands: list[str], tmp_path: Path
) -> None:
    commands[:] = ["made"]
    (tmp_path / ".venv-suites-2.0.41").mkdir()
    tasks.suites_of("2.0.41")
    line, release = commands[1:]
    assert "--constraint=/constraints/sqlalchemy-2.0.txt" in line
    assert line.partition("--no-input ")[2].startswith(" ".join(tasks.SUITES))
    assert release.partition("--no-input ")[2] == "sqlalchemy[asyncio]==2.0.41"


def test_the_newest_releases_are_looked_for_each_time(commands: list[str]) -> None:
    tasks.newest_releases()
    commands[:] = ["made"]
    tasks.newest_releases()
    (again,) = commands[1:]
    assert " --upgrade " in again
    assert "constraint" not in again


def test_a_failed_installation_is_not_taken_for_a_good_one(
    commands: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(command: Sequence[str | Path], cwd: Path = tmp_path) -> str:
        raise StepFailed("exit code 1")

    tasks.environment(tmp_path / "venv", ["a"])
    commands[:] = ["made"]
    with monkeypatch.context() as failing:
        failing.setattr(tasks, "run_quietly", fail)
        with pytest.raises(StepFailed):
            tasks.environment(tmp_path / "venv", ["b"])
    tasks.environment(tmp_path / "venv", ["a"])
    assert commands == ["made", f"{INSTALL} a"]


def test_this_python_is_of_this_version() -> None:
    assert tasks.is_of_this_version(Path(sys.executable))


def test_a_missing_python_is_not(tmp_path: Path) -> None:
    assert not tasks.is_of_this_version(tmp_path / "python")


def test_a_failing_command_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StepFailed, match="exit code 3"):
        tasks.run_quietly([sys.executable, "-c", "print('why'); exit(3)"])
    assert "why" in capfd.readouterr().err


def test_a_good_command_is_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    assert tasks.run_quietly([sys.executable, "-c", "print('well')"]).strip() == "well"
    assert capfd.readouterr() == ("", "")


def test_commands_stay_in_their_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.setenv("KEPT", "yes")
    show = "import os; print(os.environ.get('PYTHONPATH'), os.environ.get('KEPT'))"
    assert tasks.run_quietly([sys.executable, "-c", show]).split() == ["None", "yes"]


def test_the_tests_find_the_other_tracers_and_print_the_slowest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[tuple[Sequence[str | Path], dict[str, str | Path]]] = []

    def run(command: Sequence[str | Path], **variables: str | Path) -> None:
        ran.append((command, variables))

    monkeypatch.setattr(tasks, "run", run)
    monkeypatch.setattr(tasks, "development", lambda: Path("python"))
    monkeypatch.setattr(tasks, "neighbours", lambda: Path("neighbours/python"))
    tasks.tests_on_2_1(["-x"])
    ((command, variables),) = ran
    assert command[1:3] == ["-m", "pytest"]
    assert command[4:] == ["-n", "3", "--dist=worksteal", "--durations=25", "-x"]
    assert variables == {"SESSION_TRACER_TEST_NEIGHBOURS": Path("neighbours/python")}


def test_the_summary_names_the_tests_that_failed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    program = tmp_path / "test_of_three.py"
    program.write_text(
        "import pytest\n"
        "def test_right(): pass\n"
        "@pytest.mark.parametrize('number', [1])\n"
        "def test_wrong(number): assert number == 2, 'no two'\n"
        "@pytest.fixture\n"
        "def broken(): raise ValueError('not there')\n"
        "def test_without_its_fixture(broken): pass\n"
    )
    options = ("-n", "0", "-p", "no:cacheprovider", "-p", "no:asyncio", "-c", os.devnull)
    arguments = [*options, f"--rootdir={tmp_path}", str(program)]
    step = Step("three", lambda: tasks.tests(Path(sys.executable), arguments))
    assert tasks.carry_out([step]) == 1
    told = _told(capsys)
    assert told[told.index("==> Summary") + 1 : -1] == [
        "FAILED three 0.0 s (exit code 1)",
        'test_of_three::test_without_its_fixture: failed on setup with "ValueError: not there"',
        "test_of_three::test_wrong[1]: AssertionError: no two",
    ]


def test_tests_that_could_not_begin_fail_without_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(StepFailed, match="exit code") as raised:
        tasks.tests(Path(sys.executable), ["--an-option-that-does-not-exist"])
    assert raised.value.details == ()


def test_a_command_gets_the_variables_it_is_given(capfd: pytest.CaptureFixture[str]) -> None:
    show = "import os; print(os.environ['OF_A_TEST'])"
    tasks.run([sys.executable, "-c", show], OF_A_TEST=Path("there"))
    assert capfd.readouterr().out.strip() == "there"


def test_the_summary_names_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    code = tasks.carry_out([Step("one", lambda: None), Step("two", _fail), Step("three", int)])
    assert code == 1
    assert _told(capsys) == [
        "==> one",
        "==> two",
        "==> three",
        "==> Summary",
        "passed one 0.0 s",
        "FAILED two 0.0 s (exit code 1)",
        "passed three 0.0 s",
        "Something failed, in 0 s.",
    ]


def test_nothing_runs_without_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    code = tasks.carry_out([Step("one", _fail, needed_by_the_rest=True), Step("two", _fail)])
    assert code == 1
    assert _told(capsys) == [
        "==> one",
        "==> Summary",
        "FAILED one 0.0 s (exit code 1)",
        "not run two",
        "Something failed, in 0 s.",
    ]


def test_all_passed_is_exit_code_zero(capsys: pytest.CaptureFixture[str]) -> None:
    assert tasks.carry_out([Step("one", lambda: None)]) == 0
    assert _told(capsys)[-1] == "Everything passed, in 0 s."


def _fail() -> None:
    raise StepFailed("exit code 1")


def _told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    lines = [" ".join(line.split()) for line in capsys.readouterr().err.splitlines()]
    return [re.sub(r"\d+\.\d s", "0.0 s", line) for line in lines if line]


@pytest.mark.parametrize(
    ("held", "complaint"),
    [
        (["a/__init__.py", "a/b.py", "a-1.dist-info/METADATA"], ""),
        (["a/__init__.py", "a-1.dist-info/METADATA"], r"lacks \['a/b.py'\]"),
        (["a/__init__.py", "a/b.py", "tests/c.py"], r"should not have \['tests/c.py'\]"),
    ],
)
def test_a_wheel_has_the_modules_of_the_checkout(
    held: list[str], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "src").mkdir()
    for module in ("__init__.py", "b.py"):
        (tmp_path / "src" / module).touch()
    with ZipFile(tmp_path / "a.whl", "w") as archive:
        for name in held:
            archive.writestr(name, "")
    monkeypatch.setattr(tasks, "PACKAGES", (("a", tmp_path / "src"),))
    if not complaint:
        tasks.refuse_incomplete(tmp_path / "a.whl")
        return
    with pytest.raises(StepFailed, match=complaint):
        tasks.refuse_incomplete(tmp_path / "a.whl")


@pytest.mark.parametrize(
    ("shown", "dead"),
    [
        ("[Docs](https://example.org/docs) and `f(x)`", ""),
        ("[Docs](docs/index.md)", r"\['docs/index.md'\]"),
        ("![A picture](docs/a.svg) [below](#below)", r"\['docs/a.svg', '#below'\]"),
    ],
)
def test_a_wheel_shows_no_dead_link_on_the_package_index(
    shown: str, dead: str, tmp_path: Path
) -> None:
    with ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr("a-1.dist-info/METADATA", f"Name: a\n\n{shown}")
    with pytest.raises(StepFailed, match=dead) if dead else nullcontext():
        tasks.refuse_dead_links(tmp_path / "a.whl")


def test_an_old_python_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 4, "final", 0))
    monkeypatch.setattr(sys, "argv", ["tasks.py", "bookshop"])
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or newer.*tasks\.py bookshop"):
        runpy.run_path(str(Path(tasks.__file__)))


@pytest.mark.parametrize("arguments", [[], ["nonsense"]])
def test_without_a_task_the_tasks_are_listed(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tasks.main(arguments) == 2
    told = capsys.readouterr().err
    assert [task.name for task in tasks.TASKS if task.does not in told] == []


def test_help_is_no_mistake() -> None:
    assert tasks.main(["--help"]) == 0


def test_a_task_without_arguments_refuses_them() -> None:
    with pytest.raises(SystemExit, match="takes no arguments, but got: --all"):
        tasks.main(["clean", "--all"])


def test_what_the_long_task_sets_is_read_by_its_tests() -> None:
    root = Path(tasks.__file__).parent
    files = [file for name in tasks.SAMPLED for file in [root / name, *(root / name).glob("*.py")]]
    read = "".join(file.read_text() for file in files if file.is_file())
    assert [name for name in tasks.WHOLE if f'os.environ.get("{name}"' not in read] == []


def test_what_pip_freezes_becomes_constraints() -> None:
    assert tasks.constraints_text("Zope.Interface==8.7\nb_c==0.63b1\n") == (
        "# Written by: python3 tasks.py constraints\nb-c==0.63b1\nzope-interface==8.7\n"
    )


@pytest.mark.parametrize(
    "line",
    ["torch==2.9.1+cpu", "a @ file:///somewhere/a.whl", "-e .", "WARNING: something happened"],
)
def test_what_is_not_a_released_version_is_no_constraint(line: str) -> None:
    with pytest.raises(StepFailed, match="expected name==version"):
        tasks.constraints_text(f"b==1\n{line}\n")


@pytest.mark.parametrize("task", ["constraints", "oldest"])
def test_a_newer_python_is_refused_where_the_oldest_is_needed(
    task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 13, 0, "final", 0))
    with pytest.raises(SystemExit, match=rf"Run: python3\.11 tasks\.py {task}"):
        tasks.main([task])


def test_the_lower_bounds_become_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tasks, "ROOT", tmp_path)
    (tmp_path / "pyproject.toml").write_text(
        """
        [project]
        dependencies = ["a>=2.0.30,<2.2", "b>=1"]
        [project.optional-dependencies]
        extra = ["c[d]>=0.63b0; python_version < '3.14'", "f>=5", "h>=10"]
        all = ["project[extra]"]
        [dependency-groups]
        more = ["e>=5"]
        test = [{ include-group = "more" }, "f==6", "g"]
        lint = ["b>=1", "h>=8"]
        other = ["i>=9"]
        """
    )
    assert tasks.lower_bounds() == ["a==2.0.30", "b==1", "c[d]==0.63b0", "e==5", "f==6", "h==10"]


def test_the_smoke_tests_are_there() -> None:
    chosen = (*tasks.SMOKE, *tasks.WITHOUT_EXTRAS)
    assert [path for path in chosen if not (tasks.ROOT / path).exists()] == []


def test_the_tests_that_the_oldest_releases_do_not_run_are_there() -> None:
    for test in tasks.NOT_ON_THE_OLDEST:
        path, _, name = test.partition("::")
        assert f"def {name}(" in (tasks.ROOT / path).read_text()


def test_the_newest_releases_are_smoke_tested_when_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Sequence[str]] = []

    def on_releases(
        which: str, install: object, typed: object, arguments: Sequence[str]
    ) -> list[Step]:
        asked.append(arguments)
        return []

    monkeypatch.setattr(tasks, "on_releases", on_releases)
    for arguments in (["--smoke", "-x"], ["-x"]):
        assert tasks.main(["newest", *arguments]) == 0
    assert asked == [[*tasks.SMOKE, "-x"], ["-x"]]


@pytest.mark.skipif(os.name == "nt", reason=".ci/run is a shell script")
def test_ci_runs_the_command_of_the_readme() -> None:
    script = Path(tasks.__file__).parent / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    assert [line for line in script.read_text().splitlines() if "tasks.py" in line] == [
        "python3 tasks.py test",
        "python3 tasks.py newest --smoke",
    ]


def test_what_a_page_loads_from_elsewhere_is_seen() -> None:
    page = (
        '<script src="assets/a.js"></script><a href="https://semver.org"></a><img src=a.svg>'
        '<link rel=stylesheet href="https://fonts.googleapis.com/css"><script src=//unpkg.com/m.js>'
    )
    assert tasks.assets_from_elsewhere(page) == [
        "https://fonts.googleapis.com/css",
        "//unpkg.com/m.js",
    ]
