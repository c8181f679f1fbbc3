"""A real browser: Chromium without a window, if this machine has one."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from typing import Final

import pytest

CHROMIUM: Final = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")


def dom_of(address: str, *, milliseconds: int = 1_000) -> str:
    """The page's document after that much of the page's own time, as HTML."""
    return _run(address, "--dump-dom", f"--virtual-time-budget={milliseconds}")


def _run(address: str, *options: str) -> str:
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [
                *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu"),
                *("--no-first-run", f"--user-data-dir={profile}", "--enable-logging=stderr"),
                *(*options, address),
            ],
            capture_output=True,
            timeout=100,  # on a busy machine
            check=True,
        )
    output = done.stderr.decode(errors="replace")
    violations = [line for line in output.splitlines() if "CONSOLE" in line]
    assert violations == [], "the page has complained"
    return done.stdout.decode()
