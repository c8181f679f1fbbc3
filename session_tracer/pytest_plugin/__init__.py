"""The pytest plugin: traces the sessions of tests, and reports the findings.

pytest loads it wherever this package is installed. It therefore imports nothing but pytest until
`--session-tracer`, the fixture `session_trace` or the marker `session_budget` is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from session_tracer.pytest_plugin.allowances import ALLOW
from session_tracer.pytest_plugin.budgets import BUDGETS, MARKER
from session_tracer.pytest_plugin.limits import read_limits
from session_tracer.pytest_plugin.options import Options, add_options, read_options, separate_path
from session_tracer.pytest_plugin.trace import SessionTrace

if TYPE_CHECKING:
    from collections.abc import Generator

    from session_tracer.pytest_plugin.case import Case
    from session_tracer.pytest_plugin.run import Run

__all__ = ["SessionTrace"]

_OPTIONS: Final = pytest.StashKey[Options]()
_RUN: Final[pytest.StashKey[Run]] = pytest.StashKey()
_CASE: Final[pytest.StashKey[Case]] = pytest.StashKey()
_CALLED: Final = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    separate_path(early_config, args)


def pytest_configure(config: pytest.Config) -> None:
    budgets = ", ".join(f"{name}=..." for name in BUDGETS)
    config.addinivalue_line(
        "markers", f"{MARKER}({budgets}): limits of what the test's sessions do."
    )
    config.addinivalue_line(
        "markers", f"{ALLOW}(*ids, reason=...): findings that are not reported, and why."
    )
    options = config.stash[_OPTIONS] = read_options(config)
    if options.on:
        try:
            run = _run_of(config)
        except ValueError as error:
            raise pytest.UsageError(f"session_tracer: {error}") from None
        config.pluginmanager.register(run, "session_tracer_run")


def pytest_unconfigure(config: pytest.Config) -> None:
    run = config.stash.get(_RUN, None)
    if run is not None:
        run.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    try:
        read_limits(metafunc.definition, {})
    except ValueError as error:
        raise pytest.Collector.CollectError(f"{metafunc.definition.nodeid}: {error}") from None


@pytest.fixture
def session_trace(request: pytest.FixtureRequest) -> SessionTrace:
    """What the SQLAlchemy sessions of this test do: findings, sessions and counts."""
    stash = request.node.stash
    if _CASE not in stash:  # getfixturevalue() is called while the test runs
        error = _begin(request.node)
        if error:
            pytest.fail(error, pytrace=False)
        stash[_CASE].phase = "call" if stash[_CALLED] else "setup"
    return SessionTrace(stash[_CASE])


# Outermost, so that it surrounds the fixtures.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    item.stash[_CALLED] = False
    error = _begin(item) if _is_traced(item) else ""
    result = yield
    if error:  # after the setup of other plugins, because pytest calls their teardown
        pytest.fail(error, pytrace=False)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    run = request.config.stash.get(_RUN, None)
    if run is None or fixturedef.scope == "function":
        return (yield)
    with run.tracing.sharing():
        return (yield)


# Innermost, so that its exception is treated as if the test had raised it.
@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    item.stash[_CALLED] = True
    case = item.stash.get(_CASE, None)
    if case is not None:
        case.phase = "call"
    result = yield
    case = item.stash.get(_CASE, None)
    if case is not None:
        _run_of(item.config).judge(case, "call")
    return result


# Outermost, so that the fixtures have been torn down.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    case = item.stash.get(_CASE, None)
    if case is None:
        return (yield)
    run = _run_of(item.config)
    case.phase = "teardown"
    try:
        result = yield
    finally:
        run.end(case)
        item.user_properties.extend(case.properties())
    run.judge(case, "setup", "teardown")
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    case = item.stash.get(_CASE, None)
    if case is not None:
        _run_of(item.config).add_to_report(case, item, call, report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    try:
        return (yield)
    finally:
        if _CASE in item.stash:
            del item.stash[_CASE]


def _is_traced(item: pytest.Item) -> bool:
    return (
        item.config.stash[_OPTIONS].on
        or bool(item.config.stash[_OPTIONS].budgets)
        or item.get_closest_marker(MARKER) is not None
        or "session_trace" in getattr(item, "fixturenames", ())
    )


def _begin(item: pytest.Item) -> str:
    """Begin to trace the test, and return an error message or an empty string."""
    try:
        item.stash[_CASE] = _run_of(item.config).begin(item)
    except ValueError as error:  # in a setting, or in a marker that parametrize() sets
        return str(error)
    return ""


def _run_of(config: pytest.Config) -> Run:
    """Return the run, which is imported and created when it is first needed."""
    run = config.stash.get(_RUN, None)
    if run is None:
        from session_tracer.pytest_plugin.run import Run

        run = config.stash[_RUN] = Run(config, config.stash[_OPTIONS])
    return run
