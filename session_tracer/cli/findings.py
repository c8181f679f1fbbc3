"""Explains the findings in the terminal, from the page docs/findings.md that is installed too."""

from __future__ import annotations

import re
import sys
from importlib.resources import files
from typing import Final, NamedTuple

from rich.console import Console
from rich.markdown import Markdown
from rich.padding import Padding
from rich.text import Text

from session_tracer.runtime.nearest import did_you_mean

__all__ = ["Section", "read_page", "show_finding", "show_findings"]

_WIDEST: Final = 100


class Section(NamedTuple):
    """The section of one finding: its id, and its text as Markdown."""

    finding: str
    text: str

    @property
    def severity(self) -> str:
        """Its severity on the page."""
        return self.only(r"^\*\*(\w+)\.\*\* ")

    @property
    def meaning(self) -> str:
        """Its first sentence."""
        return " ".join(self.only(r"^\*\*\w+\.\*\* (.*?\.)\s").split())

    @property
    def settings(self) -> list[str]:
        """Its thresholds and their defaults, for example `lazy_loads_from_one_site=5`."""
        tune = re.findall(r"^- Tune: (.*?)(?=^- |\Z)", self.text, re.MULTILINE | re.DOTALL)
        return re.findall(r"`([a-z_]+=[^`]+)`", " ".join(tune))

    def only(self, pattern: str) -> str:
        """Return what the pattern finds, which is there once."""
        (found,) = re.findall(pattern, self.text, re.MULTILINE | re.DOTALL)
        return str(found)


def read_page() -> tuple[str, list[Section]]:
    """Return what stands above the first finding, and the findings."""
    page = files("session_tracer").joinpath("findings.md").read_text("utf-8")
    head, *bodies = re.split(r"^## ", page, flags=re.MULTILINE)
    sections = [body.partition("\n") for body in bodies]
    return head, [Section(finding, text) for finding, _, text in sections]


def show_findings() -> int:
    """Print a line for each finding, and return the exit code."""
    console = _console()
    sections = read_page()[1]
    widest = max(len(section.finding) for section in sections)
    for section in sections:
        head = f"{section.finding:{widest}}  {section.severity:7}  {', '.join(section.settings)}"
        console.print(Text(head.rstrip(), "bold"))
        console.print(Padding(_plain(section.meaning), (0, 0, 0, 4)))
    console.print("\nsession-tracer findings ID explains one, with wrong and right code.")
    return 0


def show_finding(finding: str) -> int:
    """Print the section of one finding, and return the exit code."""
    sections = {section.finding: section for section in read_page()[1]}
    section = sections.get(finding)
    if section is None:
        near = did_you_mean(finding, sections)
        print(
            f"Unknown finding {finding!r}.{near} Available: {', '.join(sections)}.",
            file=sys.stderr,
        )
        return 2
    _console().print(Markdown(f"# {finding}\n{_plain(section.text)}", hyperlinks=False))
    return 0


def _console() -> Console:
    console = Console(highlight=False)
    console.width = min(console.width, _WIDEST) if console.is_terminal else _WIDEST
    return console


def _plain(text: str) -> str:
    """Return the text without links: their targets are sections of the page."""
    return re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text)
