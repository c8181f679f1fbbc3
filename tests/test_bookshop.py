"""Tests that each scene and mistake of the bookshop shows what its title and the README promise."""

import asyncio
import gc
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from examples.bookshop import catalogue, mistakes
from examples.bookshop.db import SessionLocal, async_engine, engine
from examples.bookshop.models import Model
from examples.bookshop.scenes import SCENES, Day
from examples.bookshop.views import respond
from session_tracer.testing import Captured, capture

README = (Path(__file__).parent.parent / "examples" / "bookshop" / "README.md").read_text()

# SQLAlchemy 2.1 drops a coroutine of aiosqlite where it raises MissingGreenlet.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine 'Connection.cursor' was never awaited")


@pytest.fixture
def loop() -> Iterator[asyncio.Runner]:
    """What runs the async views of an empty shop, which is closed afterwards."""
    Model.metadata.drop_all(engine)
    Model.metadata.create_all(engine)
    with asyncio.Runner() as runner:
        yield runner
        gc.collect()  # here, where the coroutine that is dropped may be
        runner.run(async_engine.dispose())
    engine.dispose()


def table(first: str) -> list[list[str]]:
    """The rows of the README's table whose first column has this heading."""
    (rows,) = re.findall(rf"^\| {first} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", README, re.MULTILINE)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.splitlines()]


def findings(captured: Captured) -> list[str]:
    """The ids of what was found, each once."""
    assert captured.sessions  # and with them, what the garbage collector took is captured
    return list(dict.fromkeys(finding.id for finding in captured.findings))


def test_each_scene_shows_what_its_title_and_the_readme_promise(loop: asyncio.Runner) -> None:
    day = Day(random.Random(1813), 1, loop)
    for scene, (*_, in_table) in zip(SCENES, table("scene"), strict=True):
        with capture() as captured:
            respond(lambda: scene.play(day))  # noqa: B023 - it is called at once
        (in_title,) = re.findall(r" \(([a-z -]+)\)$", scene.title)
        assert findings(captured) == ([] if in_title == "nothing wrong here" else [in_title])
        assert findings(captured) == re.findall(r"`(.+?)`", in_table)
        assert len(captured.sessions) == 1


PAGES: dict[str, Callable[[asyncio.Runner], str]] = {
    "empty_basket_page": lambda _: mistakes.empty_basket_page({}),
    "rename_page": lambda _: mistakes.rename_page("ada@example.org", "Somebody"),
    "preview_page": lambda _: mistakes.preview_page("Poetry"),
    "missing_book_page": lambda _: mistakes.missing_book_page(0),
    "sign_up_page": lambda _: mistakes.sign_up_page("ada@example.org"),
    "slow_payment_page": lambda _: mistakes.slow_payment_page("ada@example.org"),
    "forgotten_session_page": lambda _: mistakes.forgotten_session_page(),
    "blurbs_page": lambda _: mistakes.blurbs_page("Dickens"),
    "late_blurb_page": lambda _: mistakes.late_blurb_page("Dickens"),
    "clearance_page": lambda _: mistakes.clearance_page(range(1, 13)),
    "async_restock_page": lambda loop: loop.run(mistakes.async_restock_page(titles=8)),
}


def test_each_mistake_shows_what_the_readme_lists(loop: asyncio.Runner) -> None:
    with SessionLocal() as session:
        catalogue.open_shop(session, random.Random(1813))
    said = {view.strip("`"): (outcome, found) for view, _, outcome, found in table("view")}
    shown = {}
    for name, page in PAGES.items():
        with capture() as captured:
            respond(lambda: page(loop))  # noqa: B023 - it is called at once
        found = ", ".join(f"`{id_}`" for id_ in findings(captured))
        shown[name] = (f"`{captured.sessions[0].outcome}`", found)
    assert shown == said


def test_the_readme_names_every_mistake() -> None:
    views = {name for name in vars(mistakes) if name.endswith("_page")}
    assert views == set(PAGES)
