"""Writes the reports of its examples into docs/findings.md: `python docs/findings.py`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.findings_page import PATH, with_reports  # noqa: E402 - after the path is set

__session_tracer_hide__ = True


def main() -> None:
    """Run every example, and write the page if a report has changed."""
    with tempfile.TemporaryDirectory() as folder:
        page = with_reports(Path(folder), print)
    is_changed = page != PATH.read_text()
    PATH.write_text(page)
    print(f"{'Wrote' if is_changed else 'No report has changed in'} {PATH.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
