"""Tests that the public API type-checks strictly, as users write it.

Here pyright checks it; mypy does with everything else, in `python3 tasks.py lint`.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

from session_tracer import Settings
from session_tracer.settings import Overrides
from tests.typed.usage import EXAMPLES, main, test_of_an_application

ROOT = Path(__file__).parents[1]
TYPED = ROOT / "tests" / "typed"

__all__ = ["test_of_an_application"]  # pytest runs it here


def test_pyright_accepts_the_usage_and_refuses_what_is_to_be_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--project", TYPED, "--pythonpath", sys.executable],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_usage_runs() -> None:
    main()


def test_every_example_is_run() -> None:
    written = (TYPED / "usage.py").read_text()
    assert [name.__name__ for name in EXAMPLES] == [
        line.removeprefix("def ").partition("(")[0]
        for line in written.splitlines()
        if line.startswith("def ") and line.endswith("() -> None:") and "main" not in line
    ]


def test_the_keywords_of_instrument_are_the_fields_of_settings() -> None:
    assert {name: type_.__forward_arg__ for name, type_ in Overrides.__annotations__.items()} == {
        option.name: option.type for option in fields(Settings)
    }
    assert Overrides.__required_keys__ == frozenset()
