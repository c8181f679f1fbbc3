"""Writes the output of its examples into docs/findings.md: `python docs/findings.py`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.findings_page import PATH, as_it_is_said_now  # noqa: E402 - after the path is set

__session_tracer_hide__ = True


def main() -> None:
    """Run every example, and write the page if the output of one has changed."""
    with tempfile.TemporaryDirectory() as folder:
        page = as_it_is_said_now(Path(folder), print)
    result = "wrote" if page != PATH.read_text() else "unchanged:"
    PATH.write_text(page)
    print(f"{result} {PATH.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
