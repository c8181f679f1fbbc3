"""Checks that user-visible text uses plain words: the documentation, messages and docstrings."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parent.parent

# Each pattern, and what to write instead.
AVOIDED: Final = {
    r"tells?|told|telling": "report, emit, publish, log, list",
    r"says?|said|saying": "report, emit, publish, log, list, name",
    r"speaks?|spoken": "report, emit, use",
    r"whoever|whosoever|nobody|somebody|those (?:who|that|there)": "the code that, no code, others",
    r"so many|so much": "a number, or 'at least N'",
    r"amid|amidst|within|beside|besides|amiss": "during, in, next to, in addition to, wrong",
    r"of (?:ours|theirs|somebody else's|its own kin)": "session_tracer's, the application's",
    r"mend(?:s|ed|ing)?": "fix",
    r"(?:is|are) not possible: it takes": "Invalid NAME=VALUE: expected ...",
    r"tak(?:e|es|en|ing) back|took back": "retract",
    r"does without": "degraded; 'X is missing, therefore Y is not reported'",
}
PATTERN: Final = re.compile(rf"\b(?:{'|'.join(AVOIDED)})\b", re.IGNORECASE)

PAGES: Final = sorted(
    str(path.relative_to(ROOT))
    for path in [
        *ROOT.glob("*.md"),
        *(ROOT / ".github").rglob("*.md"),
        *(ROOT / "docs").glob("*.md"),
    ]
)

MODULES: Final = ("exporters/*.py", "session_tracer/*.py", "session_tracer/[!e]*/*.py")
FILES: Final = sorted(
    str(path.relative_to(ROOT)) for pattern in MODULES for path in ROOT.glob(pattern)
)


def avoided_in(text: str) -> list[str]:
    """The avoided words in a text, each with the words around it."""
    line = " ".join(text.split())
    return [
        f"{found[0]!r} in {line[max(0, found.start() - 40) : found.end() + 40]!r}"
        for found in PATTERN.finditer(line)
    ]


def texts_in(source: str) -> Iterator[str]:
    """The string literals and docstrings of a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def prose_of(page: str) -> str:
    """A page without its code, and without what the benchmarks write into it."""
    page = re.sub(
        r"<!-- written by the benchmark -->.*?<!-- to here -->", "", page, flags=re.DOTALL
    )
    return re.sub(r"```.*?```|`[^`\n]*`", "", page, flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_uses_plain_words(page: str) -> None:
    assert avoided_in(prose_of((ROOT / page).read_text())) == []


@pytest.mark.parametrize("module", FILES)
def test_the_texts_of_a_module_use_plain_words(module: str) -> None:
    found = [one for text in texts_in((ROOT / module).read_text()) for one in avoided_in(text)]
    assert found == []


def test_each_pattern_of_modules_finds_one() -> None:
    assert [pattern for pattern in MODULES if not list(ROOT.glob(pattern))] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("What was said of a session, nobody knows.", ["said", "nobody"]),
        ("It tells\nwhoever asks.", ["tells", "whoever"]),
        ("A counted essay on tellers and amendments.", []),
        ("The finding is reported, then retracted.", []),
    ],
)
def test_words_are_found_as_words(text: str, words: list[str]) -> None:
    assert [one.split("'")[1] for one in avoided_in(text)] == words
