"""Gives the package index a README whose links work there; pyproject.toml has everything else."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Final

from setuptools import setup

ROOT: Final = Path(__file__).resolve().parent
# Links and pictures, but for those that have an address.
_RELATIVE: Final = re.compile(r"(!?)\[([^][]*)\]\((?!\w+:)([^)\s]+)\)")


def description(readme: str, project: dict[str, Any]) -> str:
    """The README with links to the files of this release, at the address `Source`.

    As long as `[project.urls]` has none, a link is only its text, and a picture is left out.
    """
    source = project.get("urls", {}).get("Source", "").rstrip("/")

    def with_address(link: re.Match[str]) -> str:
        picture, text, target = link.groups()
        if not source:
            return "" if picture else text
        kind = "raw" if picture else "blob"
        return f"{picture}[{text}]({source}/{kind}/v{project['version']}/{target})"

    return _RELATIVE.sub(with_address, readme)


if __name__ == "__main__":
    setup(
        long_description=description(
            (ROOT / "README.md").read_text(encoding="utf-8"),
            tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"],
        ),
        long_description_content_type="text/markdown",
    )
