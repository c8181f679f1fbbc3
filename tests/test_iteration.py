"""Tests what is read of a loop in its source."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from session_tracer import CallSite
from session_tracer.where.iteration import (
    asks_by_item,
    goes_over,
    goes_over_chunks,
    goes_turn_by_turn,
    is_around_block,
    is_over_items,
    takes_messages,
)

if TYPE_CHECKING:
    from pathlib import Path

LOOPS = {
    "for row in rows:\n    ask(row)": "items",
    "for row in rows:\n    ask(1)": "",
    "for row in rows:\n    row = ask(1)": "",
    "for _, row in enumerate(rows):\n    ask(row)": "items",
    "for key, rows in groups.items():\n    ask(rows)": "groups",
    "for key, rows in groupby(all_rows):\n    ask(rows)": "groups",
    "for number in range(10):\n    ask(number)": "",
    "for number in itertools.count():\n    ask(number)": "",
    "while rows:\n    ask(rows)": "",
    "for row in rows:\n    while True:\n        ask(row)": "",
    "while True:\n    for row in rows:\n        ask(row)": "items",
    "[ask(row) for row in rows]": "items",
    "{key: ask(rows) for key, rows in groups.items()}": "groups",
    "[ask(1) for row in rows]": "",
    "ask(1)": "",
    "for row in ask(rows):\n    pass": "",
}


@pytest.mark.parametrize("source", LOOPS)
def test_what_the_innermost_loop_goes_over(tmp_path: Path, source: str) -> None:
    file = tmp_path / "app.py"
    file.write_text(source)
    (line,) = [n for n, text in enumerate(source.splitlines(), 1) if "ask(" in text]
    assert goes_over(CallSite(str(file), line, "<module>")) == LOOPS[source]


def test_the_loop_of_another_function_is_none(tmp_path: Path) -> None:
    file = tmp_path / "app.py"
    file.write_text("for row in rows:\n    def f():\n        ask(row)\n")
    assert goes_over(CallSite(str(file), 3, "f")) == ""


SCOPE = frozenset({"scope"})
BLOCKS = {
    "for x in xs:\n    with scope() as s:\n        ask(s)": True,
    "for x in xs:\n    with db.scope() as s, other():\n        ask(s)": True,
    "with scope() as s:\n    for x in xs:\n        ask(s)": False,
    "for x in xs:\n    with other() as s:\n        ask(s)": False,
    "for x in xs:\n    ask(s)": False,
}


@pytest.mark.parametrize("source", BLOCKS)
def test_whether_a_loop_is_around_a_block(tmp_path: Path, source: str) -> None:
    file = tmp_path / "app.py"
    file.write_text(source)
    line = len(source.splitlines())
    assert is_around_block(CallSite(str(file), line, "<module>"), SCOPE) is BLOCKS[source]


def test_nothing_is_known_without_the_source() -> None:
    assert goes_over(CallSite("/gone.py", 1, "f")) == ""
    assert not is_around_block(CallSite("/gone.py", 1, "f"), SCOPE)
    assert not is_over_items(CallSite("/gone.py", 1, "f"))


OVER_ITEMS = {
    "for row in rows:\n    ask(row)": True,
    "for number in range(9):\n    ask(number)": True,
    "for group in groups:\n    for row in group:\n        ask(row)": True,
    "for row in iter(rows):\n    ask(row)": True,
    "for job in self.jobs():\n    ask(job)": True,
    "[ask(row) for row in rows]": True,
    "while rows:\n    ask(rows)": False,
    "while True:\n    for row in rows():\n        ask(row)": False,
    "for row in rows:\n    while row:\n        ask(row)": False,
    "for number in itertools.count():\n    ask(number)": False,
    "for job in iter(next_job, None):\n    ask(job)": False,
    "for job in self.job_queue:\n    ask(job)": False,
    "for message in client.pubsub().listen():\n    ask(message)": False,
    "for method, _, body in channel.consume('jobs'):\n    ask(body)": False,
    "async def f():\n    async for message in stream:\n        ask(message)": False,
    "async def f():\n    return [ask(one) async for one in stream]": False,
    "ask(1)": False,
}


@pytest.mark.parametrize("source", OVER_ITEMS)
def test_whether_loops_go_over_items(tmp_path: Path, source: str) -> None:
    file = tmp_path / "app.py"
    file.write_text(source)
    (line,) = [n for n, text in enumerate(source.splitlines(), 1) if "ask(" in text]
    assert is_over_items(CallSite(str(file), line, "<module>")) is OVER_ITEMS[source]


TURN_BY_TURN = {
    "while rows:\n    rows = ask(rows)": True,
    "while True:\n    rows = ask([row.id for row in rows])": True,
    "while True:\n    found += [ask(row) for row in rows]": False,
    "while at < len(rows):\n    ask(rows[at])": False,
    "while True:\n    for row in rows:\n        ask(row)": False,
    "for row in rows:\n    while row:\n        row = ask(row)": True,
    "ask(rows)": False,
}


@pytest.mark.parametrize("source", TURN_BY_TURN)
def test_whether_a_loop_knows_its_next_turn_only_then(tmp_path: Path, source: str) -> None:
    file = tmp_path / "app.py"
    file.write_text(source)
    line = len(source.splitlines())
    assert goes_turn_by_turn(CallSite(str(file), line, "<module>")) is TURN_BY_TURN[source]


MESSAGES = {
    "while (job := jobs.get()) is not None:\n    ask(job)": True,
    "while True:\n    job = await jobs.get()\n    ask(job)": True,
    "while True:\n    job = jobs.get(block=True, timeout=5)\n    ask(job)": True,
    "while True:\n    ask(consumer.poll(1.0))": True,
    "while True:\n    ask(jobs.get_nowait())": True,
    "while True:\n    ask(socket.receive_text())": True,
    "async for message in pubsub.listen():\n    ask(message)": True,
    "for job in iter(jobs.get, None):\n    ask(job)": True,
    "while rows:\n    ask(rows.pop())": False,
    "while number < 10:\n    ask(found.get(number))": False,
    "while True:\n    ask(session.get(Author, 1))": False,
    "while line := file.readline():\n    ask(line)": False,
    "for row in rows:\n    ask(row.get())": False,
    "async for row in result:\n    ask(row)": False,
    "[ask(jobs.get()) for _ in rows]": False,
    "ask(jobs.get())": False,
}


@pytest.mark.parametrize("source", MESSAGES)
def test_whether_a_loop_takes_the_messages_of_a_queue(tmp_path: Path, source: str) -> None:
    body = "".join(f"    {line}\n" for line in source.splitlines())
    file = tmp_path / "views.py"
    file.write_text(f"async def work(rows):\n{body}")
    line = next(n for n, text in enumerate(file.read_text().splitlines(), 1) if "ask(" in text)
    assert takes_messages(CallSite(str(file), line, "work")) is MESSAGES[source]


IN_CHUNKS = {
    "for at in range(0, len(rows), 10):\n    ask(rows[at : at + 10])": True,
    "[ask(rows[at : at + 10]) for at in range(0, 100, 10)]": True,
    "for chunk in batched(rows, 10):\n    ask(chunk)": True,
    "for row in row_chunks:\n    ask(row)": True,
    "for number in range(10):\n    ask(number)": False,
    "for row in rows:\n    ask(row)": False,
    "for key in keys(range(0, 9, 3)):\n    ask(key)": True,
    "while rows:\n    ask(rows)": False,
    "ask(rows)": False,
}


@pytest.mark.parametrize("source", IN_CHUNKS)
def test_whether_a_loop_goes_over_chunks(tmp_path: Path, source: str) -> None:
    file = tmp_path / "app.py"
    file.write_text(source)
    line = len(source.splitlines())
    assert goes_over_chunks(CallSite(str(file), line, "<module>")) is IN_CHUNKS[source]


# The loop, and the body of the `ask()` that it calls; the loop asks by itself where there is none.
ASKING = "def ask(session, key, name='x', *, of=None):\n    {}\n"
BY_ITEM = {
    ("for row in rows:\n    ask(s, row.key)", "s.scalar(select(A).where(A.id == key))"): True,
    ("for row in rows:\n    ask(s, 1, of=row)", "s.get(A, of)"): True,
    ("[ask(s, row) for row in rows]", "s.get(A, key)"): True,
    ("for row in rows:\n    x = row.y\n    ask(s, x)", "s.get(A, key)"): True,
    ("for row in rows:\n    ask(s, row)", "q = select(A)\n    q = q.where(key)\n    s.x(q)"): True,
    ("for row in rows:\n    ask(s, row)", "s.scalars(select(A)).all()"): False,
    ("for row in rows:\n    ask(s, row)", "log(key)\n    s.get(A, 1)"): False,
    ("for row in rows:\n    ask(s, 1)", "s.get(A, key)"): False,
    ("for row in rows:\n    x = 1\n    ask(s, x)", "s.get(A, key)"): False,
    ("for row in rows:\n    ask(s, 1, row)", "s.get(A, key)"): False,
    ("for row in rows:\n    ask(s, 1, row)", "s.get(A, name)"): True,
    ("for row in rows:\n    ask(s, *row)", "s.get(A, key)"): False,
    ("for row in rows:\n    ask(**row)", "s.get(A, key)"): False,
    ("for row in rows:\n    how[ask](s, row)", "s.get(A, key)"): True,
    ("for row in rows:\n    how[ask](s, chosen(row))", "s.get(A, key)"): False,
    ("while row := rows.pop():\n    ask(s, row)", "s.get(A, key)"): False,
    ("for row in rows:\n    s.ask(row)", ""): True,
    ("for row in rows:\n    s.ask(1)", ""): False,
    ("for row in rows:\n    self.row = row\n    s.ask(self.one)", ""): False,
}


@pytest.mark.parametrize(("source", "asks"), BY_ITEM)
def test_whether_an_item_decides_what_is_asked(tmp_path: Path, source: str, asks: str) -> None:
    file = tmp_path / "app.py"
    asking = ASKING.format(asks) if asks else ""
    file.write_text(asking + source)
    lines = (asking + source).splitlines()
    (line,) = [
        n for n, text in enumerate(lines, 1) if re.search(r"ask[(\]]", text) and "def" not in text
    ]
    loop = CallSite(str(file), line, "<module>")
    inside = [CallSite(str(file), len(asking.splitlines()), "ask")] if asks else []
    assert asks_by_item([*inside, loop]) is BY_ITEM[source, asks]
    gone = CallSite("/gone.py", 1, "f")
    assert not asks_by_item([*inside, gone])
    if asks:
        assert not asks_by_item([gone, loop])


def test_an_item_is_followed_through_each_call(tmp_path: Path) -> None:
    file = tmp_path / "app.py"
    file.write_text(
        "class Repository:\n"
        "    def one(self, key, shown):\n"
        "        return self.session.get(A, key)\n"
        "    def first(self, where, key):\n"
        "        return self.one(where, key)\n"
        "    def second(self, where, key):\n"
        "        return self.one(key, where)\n"
        "def show(repository, rows):\n"
        "    for row in rows:\n"
        "        repository.first(1, row)\n"
        "    for row in rows:\n"
        "        repository.second(1, key=row)\n"
    )

    def at(line: int) -> CallSite:
        return CallSite(str(file), line, "any")

    assert not asks_by_item([at(3), at(5), at(10)])
    assert asks_by_item([at(3), at(7), at(12)])


WALKS = {
    "for _ in range(9):\n    found = ask(keys)\n    keys = [one.id for one in found]": True,
    "for _ in range(9):\n    for one in ask(keys):\n        keys.append(one.id)": True,
    "async for _ in count():\n    keys = await ask(keys)": True,
    "for key in range(9):\n    found = ask(key)": False,
    "for _ in range(9):\n    key = chosen()\n    found = ask(key)": False,
    "for key in keys:\n    found = ask(found)": False,
    "while keys:\n    keys = ask(keys)": True,
    "while number < len(keys):\n    keys = ask(keys)": False,
}


@pytest.mark.parametrize("source", WALKS)
def test_whether_a_turn_finds_what_the_next_one_asks_for(tmp_path: Path, source: str) -> None:
    file = tmp_path / "app.py"
    file.write_text(source)
    (line,) = [n for n, text in enumerate(source.splitlines(), 1) if "ask(" in text]
    assert goes_turn_by_turn(CallSite(str(file), line, "<module>")) is WALKS[source]
