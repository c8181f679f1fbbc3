"""Runs a script or module as Python would, with every session traced."""

from __future__ import annotations

import builtins
import importlib.machinery
import importlib.util
import io
import os
import sys
from dataclasses import fields
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from session_tracer.exporter_choice import names_in
from session_tracer.instrumentor import Instrumentation, instrument
from session_tracer.runtime.project_file import read_table
from session_tracer.settings import Settings, read_setting

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import TracebackType

__all__ = ["NotRunnable", "Tracing", "run_module", "run_script"]

_MAIN: Final = "__main__"


class NotRunnable(Exception):
    """The program cannot be started as it was written. The message has the reason."""


class Tracing(NamedTuple):
    """How the sessions of a program are traced.

    Attributes:
        name: Their name in every signal.
        exporter: The names of exporters; by default those of the environment or `pyproject.toml`,
            else the console.
        settings: Settings in the form `name=value`.
    """

    name: str | None
    exporter: str | None
    settings: Sequence[str]


def run_script(script: str, arguments: Sequence[str], tracing: Tracing) -> None:
    """Run a script.

    Args:
        script: Its path.
        arguments: Its arguments.
        tracing: How its sessions are traced.

    Raises:
        NotRunnable: it cannot be read, or a setting is invalid.
        BaseException: what the script raises.
    """
    path = os.path.abspath(script)
    try:
        with io.open_code(path) as file:
            source = file.read()
    except OSError as error:
        raise NotRunnable(f"cannot open {script!r}: {error.strerror}") from None
    traced = _trace(tracing)
    loader = importlib.machinery.SourceFileLoader(_MAIN, path)
    if not sys.flags.safe_path:
        sys.path[0] = os.path.dirname(os.path.realpath(script))
    sys.argv[:] = [script, *arguments]
    _as_main(traced, source, {"__file__": path, "__loader__": loader, "__spec__": None})


def run_module(name: str, arguments: Sequence[str], tracing: Tracing) -> None:
    """Run a module, or a package's `__main__`.

    Args:
        name: Its name.
        arguments: Its arguments.
        tracing: How its sessions are traced.

    Raises:
        NotRunnable: there is no such module, or a setting is invalid.
        BaseException: what the module raises.
    """
    if not sys.flags.safe_path:
        sys.path[0] = os.getcwd()
    traced = _trace(tracing, package=name.partition(".")[0])  # before its package is imported
    try:
        spec, code = _found(name)
    except _ImportFailed as failed:
        raise NotRunnable(str(failed)) from None
    sys.argv[:] = [str(spec.origin), *arguments]
    _as_main(
        traced,
        code,
        {
            "__file__": spec.origin,
            "__cached__": spec.cached,
            "__loader__": spec.loader,
            "__package__": spec.parent,
            "__spec__": spec,
        },
    )


class _ImportFailed(Exception):
    pass


def _found(name: str) -> tuple[ModuleSpec, CodeType]:
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        raise _ImportFailed(f"no module named {error.name!r}") from None
    except ValueError:
        spec = None
    if spec is None:
        raise _ImportFailed(f"no module named {name!r}")
    if spec.submodule_search_locations is not None:
        return _found(f"{name}.{_MAIN}")
    code = getattr(spec.loader, "get_code", lambda _: None)(name)
    if code is None:
        raise _ImportFailed(f"{name!r} is no Python module")
    return spec, code


def _trace(tracing: Tracing, package: str = "") -> Instrumentation:
    """Trace every session of the process. Lines of the package are the application's."""
    try:
        given = dict(map(_setting, tracing.settings))
        if package:
            known = given.get("application_packages", Settings.from_env().application_packages)
            given["application_packages"] = (*known, package)
        exporter = tracing.exporter or ",".join(names_in(None, read_table())) or "console"
        return instrument(name=tracing.name, exporter=exporter, **given)
    except (ValueError, TypeError, OSError) as error:
        raise NotRunnable(str(error)) from None


def _setting(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign:
        raise NotRunnable(f"Invalid --set {text}: expected SETTING=VALUE.")
    if name in {option.name for option in fields(Settings)}:
        try:
            return name, read_setting(name, value)
        except ValueError as error:
            raise NotRunnable(f"Invalid --set {text}: expected {error}.") from None
    return name, value  # `instrument()` refuses it, and has the nearest match


def _as_main(traced: Instrumentation, program: bytes | CodeType, variables: dict[str, Any]) -> None:
    """Run a program as `__main__`. Its tracebacks begin with its own lines."""
    module = ModuleType(_MAIN)
    vars(module).update(variables, __builtins__=builtins)
    sys.modules[_MAIN] = module
    try:
        code = (
            program
            if isinstance(program, CodeType)
            else compile(program, variables["__file__"], "exec", dont_inherit=True)
        )
        exec(code, vars(module))
    except SystemExit:
        raise
    except BaseException:
        # Python prints the error, and exits as if it had started the program itself.
        _leave_out_own_frames(traced)
        raise


def _leave_out_own_frames(traced: Instrumentation) -> None:
    hook = sys.excepthook

    def print_error(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        while traceback is not None:
            is_own, traceback = traceback.tb_frame.f_code is _as_main.__code__, traceback.tb_next
            if is_own:
                break
        traced.flush()  # or its lines and those of the traceback would be mixed
        hook(kind, error.with_traceback(traceback), traceback)

    sys.excepthook = print_error
