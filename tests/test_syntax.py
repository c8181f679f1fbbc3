"""Tests that a right source is parsed, whatever other threads do, and a wrong one does no harm."""

from __future__ import annotations

import ast
import gc
import threading
import time
from typing import TYPE_CHECKING

import pytest

from session_tracer.where.syntax import parsed, source_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SOURCE = "def one(session):\n" + "    session.commit(f(g(h(1))))\n" * 200


@pytest.fixture
def _switching_threads() -> Iterator[None]:
    """Let another thread run at each garbage collection, and collect often."""

    def let_run(phase: str, info: dict[str, int]) -> None:
        del phase, info
        time.sleep(0)

    often = gc.get_threshold()
    gc.callbacks.append(let_run)
    gc.set_threshold(20)
    yield
    gc.set_threshold(*often)
    gc.callbacks.remove(let_run)


@pytest.mark.usefixtures("_switching_threads")
def test_threads_that_parse_at_once_all_get_their_tree() -> None:
    trees: list[ast.Module | None] = []

    def parse() -> None:
        trees.extend(parsed(SOURCE) for _ in range(20))

    threads = [threading.Thread(target=parse) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(tree.body) if tree else None for tree in trees] == [1] * 60


def test_a_parse_that_another_one_disturbs_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    parse, disturbed = ast.parse, [SystemError("depth mismatch")] * 2

    def sometimes(source: str) -> ast.Module:
        if disturbed:
            raise disturbed.pop()
        return parse(source)

    monkeypatch.setattr(ast, "parse", sometimes)
    assert parsed("commit()") is not None


def test_a_parse_that_is_always_disturbed_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(source: str) -> ast.Module:
        raise SystemError(source)

    monkeypatch.setattr(ast, "parse", never)
    assert parsed("commit()") is None


@pytest.mark.parametrize("source", ["def :", "\0", "(" * 1000, "-" * 100_000 + "1"])
def test_what_cannot_be_parsed_is_no_tree(source: str) -> None:
    assert parsed(source) is None


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "app.py"
    assert source_of(str(file)) == ""
    file.write_text("one()\n")
    assert source_of(str(file)) == "one()\n"
    file.write_text("another()\n")
    assert source_of(str(file)) == "another()\n"
