"""The page docs/findings.md: its sections, and what is found as their examples run."""

from __future__ import annotations

import gc
import re
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.exc import SQLAlchemyError

from examples.misuse.db import close_shop, open_shop
from session_tracer.cli import findings as cli_findings
from session_tracer.exporters.finding_block import finding_block
from session_tracer.testing import capture

if TYPE_CHECKING:
    from collections.abc import Callable

    from session_tracer.model.findings import Finding

# Who runs an example is no line of it.
__session_tracer_hide__ = True

PATH: Final = Path(__file__).parent.parent / "docs" / "findings.md"
WIDTH: Final = 96


class Section(cli_findings.Section):
    """The section of one finding, and its examples."""

    @property
    def run_with(self) -> dict[str, Any]:
        """What the examples run with."""
        found = re.search(r"^Run with `(.*?)`[.:]", self.text, re.MULTILINE)
        return {} if found is None else eval(f"dict({found[1]})")

    @property
    def wrong(self) -> str:
        """The code with the mistake."""
        return self.only(r"^Wrong:\n\n```python\n(.*?)^```$")

    @property
    def report(self) -> str:
        """What session_tracer reports when the wrong code runs."""
        return self.only(r"^Report:\n\n```\n(.*?)^```$")

    @property
    def right(self) -> str:
        """The code without it."""
        return self.only(r"^Right:[^\n]*\n\n```python\n(.*?)^```$")


def read() -> tuple[str, list[Section]]:
    """What stands above the first finding, and the findings."""
    head, sections = cli_findings.read_page()
    return head, [Section(*section) for section in sections]


def found_in(code: str, folder: Path, **settings: Any) -> list[Finding]:
    """What is found as the code runs, as the file `app.py` of an application in that folder.

    A comment names the error that the code raises. Any other error, or none, is raised to the
    caller.
    """
    head, _ = read()
    (names,) = re.findall(r"^```python\n(import .*?)^```$", head, re.MULTILINE | re.DOTALL)
    application: dict[str, Any] = {"__name__": "app"}
    exec(names, application)
    file = folder / "app.py"
    file.write_text(code)
    open_shop()
    with chdir(folder), capture(name="shop", **settings) as captured:
        _run(compile(code, str(file), "exec"), application, re.findall(r"# raises (\w+)$", code))
        application.clear()
        gc.collect()
        captured.sessions  # noqa: B018 - waits until collected sessions are reported
    close_shop()
    return captured.findings


def _run(code: Any, application: dict[str, Any], raises: list[str]) -> None:
    try:
        exec(code, application)
    except SQLAlchemyError as error:
        # SQLAlchemy 2.1 wraps some in an error of its own.
        raised = {type(error).__name__, type(getattr(error, "orig", None)).__name__}
        if raised.isdisjoint(raises):
            raise
    else:
        assert not raises, f"{raises} was not raised"


def printed(finding: Finding) -> str:
    """The finding as the console shows it."""
    return "".join(f"{line.plain.rstrip()}\n" for line in finding_block(finding, WIDTH))


# What depends on the run, and what stands in for it.
_MASKS: Final = (
    (r"less than 1 ms|\b\d+(\.\d+)? (ms|s|min|h)\b( \d+ (s|min)\b)?", "TIME"),
    (r"\b(session|shop) [0-9a-f]{6}\b", r"\1 ID"),
    (r'\btask "Task-\d+"', "TASK"),
    (r'\bthread "[^"]*"', "THREAD"),
    # Below the example, in a worker of pytest-xdist; Python 3.13 and newer keep the line's text.
    (r"<string>:\d+ in <module> (import sys;exec\(eval\(sys\.stdin\.readline\(\)\)\) )?", ""),
)


def skeleton(block: str) -> str:
    """The block without what depends on the run: times, ids of sessions, tasks, threads.

    A longer time may break a line elsewhere, so lines do not count.
    """
    line = " ".join(block.split())
    for pattern, mask in _MASKS:
        line = re.sub(pattern, mask, line)
    return line


def with_reports(folder: Path, each: Callable[[str], None]) -> str:
    """The page with the reports of a run. Those that only differ in times and ids are kept."""
    page = PATH.read_text()
    _, sections = read()
    for section in sections:
        each(section.finding)
        # Python reads the source of a file once.
        own = folder / section.finding
        own.mkdir()
        findings = found_in(section.wrong, own, **section.run_with)
        report = "".join(map(printed, findings))
        if skeleton(report) != skeleton(section.report):
            text = section.text.replace(f"```\n{section.report}```", f"```\n{report}```")
            page = page.replace(section.text, text)
    return page
