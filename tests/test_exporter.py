"""Tests how an exporter is found by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from session_tracer.exporter import find_exporter
from session_tracer.exporters import console, jsonl

if TYPE_CHECKING:
    from pathlib import Path

JSONL = "session_tracer.exporters.jsonl:open_exporter"


def installed(folder: Path, name: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of another author that brings an exporter."""
    info = folder / "paper-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: paper\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[session_tracer_exporter]\n{name} = {found}\n")
    monkeypatch.syspath_prepend(folder)


def test_one_of_another_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, "paper", JSONL, monkeypatch)
    assert find_exporter("paper") is jsonl.open_exporter


def test_an_exporter_of_the_package_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, "console", JSONL, monkeypatch)
    assert find_exporter("console") is console.open_exporter


def test_an_unknown_name_is_refused_with_the_available_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, "paper", JSONL, monkeypatch)
    with pytest.raises(
        ValueError, match=r"Unknown exporter 'papre'\. Available: console, .*, paper, "
    ):
        find_exporter("papre")
