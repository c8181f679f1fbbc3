"""SQLAlchemy's own tests: where they come from, and how they are run."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tasks import unpack
from tests.suites.outcomes import Outcomes
from tests.suites.tracing import Account

__all__ = ["Run", "SuiteFailed", "run", "source"]

_CHECKOUT: Final = Path(__file__).parents[2]
_ALL_RAN: Final = (0, 1)
_LAST_LINES: Final = 40

_ARGUMENTS: Final = (
    # By name, whatever else is installed; SQLAlchemy's own comes with its conftest.py.
    *("-p", "xdist", "-p", "pytest_timeout", "-p", "tests.suites.outcomes"),
    *("-p", "no:cacheprovider", "-n", "2", "--timeout", "300"),
    # SQLAlchemy's configuration stops after 250 failures; to compare, all must run.
    "--maxfail=1000000",
    # Those of the mypy plugin open no session, and need a mypy of their own.
    *("-m", "not mypy"),
)


class SuiteFailed(Exception):
    """Why the tests could not be run; its message is for people."""


class Run(NamedTuple):
    """What one run of a suite came to; `account` is None where nothing was traced."""

    outcomes: Outcomes
    account: Account | None
    seconds: float


def source(version: str, folder: Path) -> Path:
    """The unpacked source distribution of SQLAlchemy, which carries its tests; got once."""
    tree = folder / f"sqlalchemy-{version}"
    if not tree.exists():
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            archive = _download(f"sqlalchemy=={version}", Path(temporary))
            unpack(archive, Path(temporary))
            # Only what is complete gets the name.
            (Path(temporary) / tree.name).rename(tree)
    return tree


def _download(requirement: str, folder: Path) -> Path:
    options = ("--quiet", "--no-deps", "--no-binary", "sqlalchemy", "--dest", str(folder))
    command = [sys.executable, "-m", "pip", "download", *options, requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = list(folder.glob("*.tar.gz"))
    if done.returncode != 0 or len(found) != 1:
        raise SuiteFailed(f"{' '.join(command)} got no source distribution:\n{done.stderr}")
    return found[0]


def run(tree: Path, arguments: Sequence[str], *, traced: bool) -> Run:
    """Run the tests of a source tree; `SuiteFailed` where they could not be run."""
    with tempfile.TemporaryDirectory() as temporary:
        outcomes, account = Path(temporary) / "outcomes.json", Path(temporary) / "account.json"
        tracing = ("-p", "tests.suites.tracing", "--account-to", account) if traced else ()
        command = (sys.executable, "-m", "pytest", *_ARGUMENTS, *tracing, "--outcomes-to", outcomes)
        begun = time.monotonic()
        done = subprocess.run(
            (*command, *arguments),
            cwd=tree,
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        seconds = time.monotonic() - begun
        if done.returncode not in _ALL_RAN:
            said = "\n".join(done.stdout.splitlines()[-_LAST_LINES:])
            raise SuiteFailed(f"{said}\npytest ended with exit code {done.returncode} in {tree}")
        told = Account.read(account) if traced else None
        return Run(Outcomes.read(outcomes), told, seconds)


def _environment() -> dict[str, str]:
    return {
        **os.environ,
        # Its conftest.py prefers the source tree, which is not compiled, but where this is set.
        "PYTHONNOUSERSITE": "1",
        "PYTHONPATH": str(_CHECKOUT),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
