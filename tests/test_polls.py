"""Tests what is read of a loop in its source: whether it waits for the answer of a query."""

from __future__ import annotations

from textwrap import indent
from typing import TYPE_CHECKING

import pytest

from session_tracer import CallSite
from session_tracer.where.polls import is_poll, is_retry

if TYPE_CHECKING:
    from pathlib import Path

# The line that asks has `ask(`.
POLLS = """
for _ in range(6):
    status = ask()
    if status == 'done':
        break

for _ in range(6):
    if ask() == 'done':
        break
    sleep(1)

for _ in range(6):
    if ask() != 'done':
        sleep(1)
        continue
    break

for _ in range(6):
    with scope() as s:
        if not ask(s):
            continue
        break

for _ in range(6):
    if ask():
        pass
    else:
        break

while True:
    row = ask()
    if row.failed:
        raise Failed(row)
    sleep(1)

while True:
    row = ask()
    state = row.state
    if state == 'done':
        break

while True:
    match ask():
        case 'done':
            break

while ask() != 'done':
    sleep(1)

while not (job := ask()):
    sleep(1)

while time() < end and not ask():
    sleep(1)

status = ''
while status != 'done':
    sleep(1)
    status = ask()

done = False
while not done:
    row = ask()
    if row.state == 'done':
        done = True

while not self.state:
    self.state = ask()

found = []
while len(found) < 3:
    row = ask()
    found.append(row)

while True:
    for row in ask():
        return row

while True:
    for row in ask():
        if row.done:
            break
    else:
        return row

for status in iter(lambda: ask(), 'done'):
    sleep(1)

any(ask() == 'done' for _ in range(6))

# Between the attempts a time passes, which is no item to be worked at.
for delay in delays():
    if ask() == 'done':
        break
    sleep(delay)

for delay in delays:
    status = ask()
    if status == 'done':
        break
    log.info('still %s', status)
    sleep(delay)

for item in items:
    if ask() == 'cancelled':
        break
    work(item)

async def f():
    while True:
        status = await ask()
        if status == 'done':
            return
        await sleep(1)
"""
NO_POLLS = """
for item in items:
    rate = ask()
    totals.append(item.price * rate)

for _ in range(6):
    print(ask())

# What the answer decides is what is done with the item.
for item in items:
    if not ask():
        continue
    work(item)

for item in items:
    if ask():
        work(item)
    else:
        skip(item)

# The setting is checked, and used.
for item in items:
    rate = ask()
    if rate is None:
        raise NoRate
    total += item.price * rate

for item in items:
    rate = ask()
    if rate is None:
        return None
    item.price = rate

for item in items:
    limit = ask()
    if item.price > limit:
        raise TooDear

for n in range(len(items)):
    rate = ask()
    if not rate:
        break
    total += items[n].price * rate

for item in items:
    rate = ask()
    if not rate:
        raise NoRate
    with open(item) as file:
        file.write(rate)

for item in items:
    rate = ask()
    if not rate:
        raise NoRate
    try:
        work(item)
    except ValueError:
        work(rate)

all(ask() == item.rate for item in items)

[ask() for _ in range(6)]

# The loop ends for another reason, or only an inner one does.
for item in items:
    rate = ask()
    if item.last:
        break

while rows:
    rate = ask()
    row = rows.pop()
    row.rate = rate

for item in items:
    rate = ask()
    for one in item:
        if one == rate:
            break

while True:
    def inner():
        if ask():
            return
    inner()

for row in ask():
    if row.done:
        break

if ask():
    raise Failed
"""


def lines(folder: Path, *sources: str) -> list[CallSite]:
    """The line of each source that has `ask(`."""
    sites = []
    for number, source in enumerate(sources):
        file = folder / f"app_{number}.py"
        file.write_text(source)
        (line,) = (n for n, text in enumerate(source.splitlines(), 1) if "ask(" in text)
        function = "f.<locals>.<lambda>" if "lambda s:" in source else "f"
        sites.append(CallSite(str(file), line, function))
    return sites


@pytest.mark.parametrize("source", POLLS.split("\n\n"))
def test_a_loop_that_waits_for_the_answer(tmp_path: Path, source: str) -> None:
    assert is_poll(lines(tmp_path, source))


@pytest.mark.parametrize("source", NO_POLLS.split("\n\n"))
def test_a_loop_that_does_not(tmp_path: Path, source: str) -> None:
    assert not is_poll(lines(tmp_path, source))


HELPERS = {
    "def f(s):\n    return ask(s)": True,
    "def f(s):\n    row = ask(s)\n    return row is not None and row.state == 'done'": True,
    "def f(s):\n    if ask(s):\n        return True\n    return False": True,
    "def f(s):\n    row = ask(s)\n    if row.state == 'failed':\n        raise Failed": True,
    "f = lambda s: ask(s)": True,
    "def f(s, item):\n    rate = ask(s)\n    item.price = rate\n    return True": False,
    "def f(s, item):\n    ask(s)\n    return True": False,
}


@pytest.mark.parametrize("source", HELPERS)
def test_a_loop_whose_helper_asks(tmp_path: Path, source: str) -> None:
    loop = "while not ask(session):\n    sleep(1)"
    assert is_poll(lines(tmp_path, source, loop)) is HELPERS[source]
    between = "def g(s):\n    return ask(s)"
    assert is_poll(lines(tmp_path, source, between, loop)) is HELPERS[source]


def test_a_loop_that_is_left_unless_an_exception_is_raised(tmp_path: Path) -> None:
    attempt = "try:\n    row = ask()\nexcept Missing:\n    sleep(1)\nelse:\n    found = row"
    loop = f"for _ in range(6):\n{indent(attempt, '    ')}\n        break"
    once, retry = lines(tmp_path, attempt, loop)
    assert is_retry(retry)
    assert not is_retry(once)


def test_nothing_is_known_without_the_source() -> None:
    gone = CallSite("/gone.py", 1, "f")
    assert not is_poll([gone])
    assert not is_poll([gone, gone])
    assert not is_retry(gone)
