"""Tests that the page is used by keyboard alone, on a phone, and in the dark, in a real browser."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session, sessionmaker

from session_tracer import Exporter, instrument, work
from session_tracer.page.report import report
from tests.page.browser import Tab, needs_browser, tab
from tests.page.logs import closed, found, write
from tests.page.test_browser import HOSTILE, hostile_events

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = needs_browser

# The page's own timer, forty times as fast, and what it has done.
FAST: Final = """
const [every, ask] = [window.setInterval, window.fetch];
window.ticks = window.asked = 0;
window.setInterval = (refresh) => every(() => { window.ticks++; refresh(); }, 50);
window.fetch = (...all) => { window.asked++; return ask(...all); };
"""
CONTROLS: Final = (
    "[...document.querySelectorAll('a, button, summary, input, select, textarea, [tabindex]')]"
    ".filter((one) => one.checkVisibility())"
)
FOCUSED: Final = (
    "(document.activeElement.closest('details, button') || {}).key || document.activeElement.id"
)
OPENED: Final = "[...document.querySelectorAll('main details[open]')].map((one) => one.key)"
COUNT: Final = "document.querySelector('.tiles dd').textContent"
TOP: Final = "document.activeElement.getBoundingClientRect().top"


@pytest.fixture(scope="module")
def browser() -> Iterator[Tab]:
    with tab() as one:
        one.send("Page.addScriptToEvaluateOnNewDocument", source=FAST)
        yield one


class Shop:
    """Sessions that are open, by the order in which they were opened."""

    def __init__(self, factory: sessionmaker[Session], ends: ExitStack) -> None:
        self.open: list[Session] = []
        self._factory = factory
        self._ends = ends

    def session(self, name: str) -> None:
        with work(name):
            self.open.append(self._ends.enter_context(self._factory()))
            self.open[-1].execute(select(1))


@pytest.fixture
def shop(served: tuple[str, list[str]]) -> Iterator[Shop]:
    """Three sessions that have ended, and seventeen that are open, with their steps."""
    engine = create_engine("sqlite://")
    factory = sessionmaker(engine)
    with instrument(factory, name="shop", exporter=Exporter()), ExitStack() as ends:
        httpx.get(served[0], headers={"accept": "application/json"})  # steps are kept from now on
        shop = Shop(factory, ends)
        for name in ("one", "two", "three"):
            shop.session(name)
        while shop.open:
            shop.open.pop().close()
        for number in range(17):
            shop.session(f"GET /{number}")
        yield shop
    engine.dispose()


@pytest.fixture
def page(browser: Tab, served: tuple[str, list[str]], shop: Shop) -> Iterator[Tab]:
    browser.show()
    browser.visit(served[0])
    yield browser
    browser.send("Page.navigate", url="about:blank")  # asks the server no more, which ends


def go_to(page: Tab, key: str) -> None:
    """Press Tab until the control of that key has the focus."""
    for _ in range(page.value(f"{CONTROLS}.length")):
        page.press("Tab")
        if page.value(FOCUSED) == key:
            return
    raise AssertionError(f"Tab does not lead to {key}")


def steps_of(page: Tab, number: int) -> str:
    """The key of the steps of an open session on the page."""
    card = f"document.querySelectorAll('#open ~ .cards > li')[{number}]"
    return str(page.value(f"{card}.querySelector('details').key"))


def test_tab_goes_to_every_control_in_their_order_and_its_focus_is_seen(page: Tab) -> None:
    count = page.value(f"{CONTROLS}.length")
    # Pause, the steps of fifteen sessions and two more, three lists, three ended sessions.
    assert count == 1 + 15 + 1 + 3 + 3
    for number in range(count):
        page.press("Tab")
        assert page.value(f"{CONTROLS}.indexOf(document.activeElement)") == number
        outline = page.value(
            "(({outlineStyle, outlineWidth}) => [outlineStyle, outlineWidth])"
            "(getComputedStyle(document.activeElement))"
        )
        assert outline == ["solid", "3px"]
        assert 0 <= page.value(TOP) < 700
    page.press("Tab", shift=True)
    assert page.value(f"{CONTROLS}.indexOf(document.activeElement)") == count - 2


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_a_key_opens_and_closes_details_and_chooses_a_list(page: Tab, key: str) -> None:
    go_to(page, "more open")
    page.press(key)
    assert page.value(OPENED) == ["more open"]
    page.press("Tab")  # to the steps of the first session in it
    page.press(key)
    assert len(page.value(OPENED)) == 2
    page.press(key)
    assert page.value(OPENED) == ["more open"]
    go_to(page, "latest")
    page.press(key)
    pressed = "document.querySelector('[aria-pressed=true]').textContent"
    assert page.value(pressed) == "Latest"
    page.wait_for(f"ticks > {page.value('ticks') + 3}")
    assert page.value(pressed) == "Latest"


def test_a_refresh_keeps_focus_details_and_what_is_looked_at(page: Tab, shop: Shop) -> None:
    steps = steps_of(page, 7)
    go_to(page, steps)
    page.press("Enter")
    page.value("document.activeElement.scrollIntoView({block: 'center'})")
    top = page.value(TOP)
    shop.open[0].close()
    shop.open[3].close()
    shop.session("GET /new")
    page.wait_for(f"{COUNT} === '16'")
    assert steps_of(page, 5) == steps  # two before it are gone
    assert page.value(OPENED) == [steps]
    assert page.value(FOCUSED) == steps
    assert page.value(TOP) == pytest.approx(top, abs=1)


def test_the_focus_goes_to_a_neighbour_of_what_is_gone(page: Tab, shop: Shop) -> None:
    go_to(page, steps_of(page, 7))
    neighbour = steps_of(page, 8)
    shop.open[7].close()
    page.wait_for(f"{COUNT} === '16'")
    assert page.value(FOCUSED) == neighbour


def test_pause_stops_the_refresh_and_resume_starts_it(page: Tab, shop: Shop) -> None:
    page.wait_for("asked > 2")
    go_to(page, "pause")
    page.press("Enter")
    shown = "['pause', 'spoken'].map((id) => document.getElementById(id).textContent)"
    assert page.value(shown) == ["Resume", "Paused."]
    asked, ticks, text = page.value("[asked, ticks, document.body.textContent]")
    shop.session("GET /new")
    page.wait_for(f"ticks > {ticks + 5}")
    assert page.value("[asked, document.body.textContent]") == [asked, text]
    page.press("Space")
    page.wait_for(f"{COUNT} === '18'")
    assert page.value(FOCUSED) == "pause"
    assert page.value(shown) == ["Pause", "Refreshing again."]


def test_a_key_that_is_held_down_stays_on_what_it_is_pressed_on(page: Tab, shop: Shop) -> None:
    steps = steps_of(page, 7)
    go_to(page, steps)
    page.press_down("Space")
    shop.session("GET /new")
    page.wait_for(f"ticks > {page.value('ticks') + 5}")
    assert page.value(f"[{OPENED}.length, {COUNT}]") == [0, "17"]
    page.let_go("Space")
    assert page.value(OPENED) == [steps]
    page.wait_for(f"{COUNT} === '18'")


def test_text_that_is_selected_is_not_drawn_again(page: Tab, shop: Shop) -> None:
    page.value("getSelection().selectAllChildren(document.querySelector('main .line'))")
    selected, ticks = page.value("[getSelection().toString(), ticks]")
    assert "test_keyboard.py" in selected
    shop.session("GET /new")
    page.wait_for(f"ticks > {ticks + 5}")
    assert page.value(f"[getSelection().toString(), {COUNT}]") == [selected, "17"]
    assert page.value("document.querySelector('#state').textContent").startswith("waits while")
    page.value("getSelection().removeAllRanges()")
    page.wait_for(f"{COUNT} === '18'")


# Every text whose contrast to what is behind it is lower than WCAG asks for, and every box that
# is wider than the window.
FAINT: Final = """
(() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (text) => {
    const part = (one) => (one /= 255) <= .03928 ? one / 12.92 : ((one + .055) / 1.055) ** 2.4;
    const [red, green, blue] = rgb(text).map(part);
    return .2126 * red + .7152 * green + .0722 * blue;
  };
  const behind = (one) => {
    const color = getComputedStyle(one).backgroundColor;
    return (rgb(color)[3] ?? 1) > 0 ? color : behind(one.parentElement);
  };
  const has_text = (one) => [...one.childNodes].some((it) => it.nodeType === 3 && it.data.trim());
  return [...document.querySelectorAll("body *")]
    .filter((one) => one.checkVisibility() && !one.closest("svg, script, style") && has_text(one))
    .filter((one) => {
      const both = [getComputedStyle(one).color, behind(one)].map(light);
      return (Math.max(...both) + .05) / (Math.min(...both) + .05) < 4.5;
    })
    .map((one) => one.outerHTML.slice(0, 200));
})()
"""
WIDE: Final = """
[...document.querySelectorAll("body *")]
  .filter((one) => one.checkVisibility() && one.getBoundingClientRect().right > innerWidth + .5)
  .map((one) => one.outerHTML.slice(0, 200))
"""


@pytest.fixture(scope="module")
def hostile_report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a report with every kind of card, and hostile names in them."""
    folder: Path = tmp_path_factory.mktemp("report")
    events: list[dict[str, Any]] = [found(severity="info", finding_id="large-result")]
    for hostile in HOSTILE.values():
        events += hostile_events(hostile)
    log = write(folder / "log.jsonl", *events)
    page = folder / "page.html"
    assert report([log], str(page), write(folder / "before.jsonl", closed())) == 0
    return page.as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1_000])
def test_the_page_is_readable_on_a_phone_and_a_screen_in_the_light_and_in_the_dark(
    browser: Tab, hostile_report: str, width: int, scheme: str
) -> None:
    browser.show(width=width, scheme=scheme)
    browser.visit(hostile_report)
    browser.value("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    back = browser.value("getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(20, 23, 27)") is (scheme == "dark")
    assert browser.value(FAINT) == []
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value(WIDE) == []
