"""Tests that a right source is parsed, whatever other threads do, and a wrong one does no harm."""

from __future__ import annotations

import ast
import gc
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import StaticPool

from session_tracer.testing import capture
from session_tracer.where import blocks, except_finder, syntax
from session_tracer.where.syntax import function_at, parsed, source_of
from tests.library import Author, Base, Book, authors

if TYPE_CHECKING:
    from collections.abc import Iterator

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


def test_a_file_is_parsed_once_however_many_sessions_have_a_finding_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    factory = sessionmaker(engine)
    with factory.begin() as session:
        session.add_all(authors(8, books_each=1))
    parses: list[str] = []

    def counted(source: str) -> ast.Module | None:
        parses.append(source)
        return parsed(source)

    for module in (syntax, blocks, except_finder):
        monkeypatch.setattr(module, "parsed", counted)
    for findings in ({"n-plus-one", "repeated-select", "query-in-loop"}, None):
        with capture(factory) as captured:
            _read_one_by_one(factory)
        if findings:
            assert {one.id for one in captured.findings} == findings
            assert parses
            parses.clear()
    assert (len(captured.findings), parses) == (3, [])
    engine.dispose()


def test_of_a_large_file_only_the_functions_that_are_asked_for_are_parsed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "".join(f"def work_{number}():\n    load()\n" for number in range(100))
    parses: list[str] = []

    def counted(source: str) -> ast.Module | None:
        parses.append(source)
        return parsed(source)

    monkeypatch.setattr(syntax, "parsed", counted)
    for number in range(50):
        assert _name(function_at(text, 2 * number + 2)) == f"work_{number}"
    whole, *parts = parses
    assert whole == text
    assert parts == [f"def work_{number}():\n    load()" for number in range(50)]


# The lines that have the name of their function.
NESTED = '''\
x = "module"
class Order:
    @decorated(
        "module"
    )
    def total(self, key=lambda: 1):
        text = """
"total"
  "total" """
        def tax(
            of="total",
        ):
            return "tax"
        return "total"
    async def pay(self): await "pay"
def last(): return "last"; "last"
'''


def test_the_function_of_a_line_is_as_in_the_tree_of_the_whole_source() -> None:
    for number, line in enumerate(NESTED.splitlines(), 1):
        names = {name for name in ("module", "total", "tax", "pay", "last") if f'"{name}"' in line}
        if names:
            assert {_name(function_at(NESTED, number))} == names
    for source in (NESTED, *(Path(one).read_text() for one in (syntax.__file__, __file__))):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert _lines(function_at(source, node.body[0].lineno)) == _lines(node)


def _lines(node: ast.AST) -> list[tuple[str, object, object]]:
    return [
        (type(one).__name__, getattr(one, "lineno", None), getattr(one, "end_lineno", None))
        for one in ast.walk(node)
    ]


def _name(node: ast.AST) -> str:
    return getattr(node, "name", "module")


def _read_one_by_one(factory: sessionmaker[Session]) -> None:
    with factory() as session:
        for author in session.scalars(select(Author)).all():
            assert author.books
            _first_books(session, author)
        for key in range(12):
            session.scalars(select(Author).where(Author.id == key)).all()


def _first_books(session: Session, author: Author) -> None:
    assert author.name
    session.scalars(select(Book).where(Book.author_id == 1)).all()
