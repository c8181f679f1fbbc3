"""Tests the page in a real browser, with hostile names in it."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, select
from sqlalchemy.orm import sessionmaker

from session_tracer import Exporter, instrument, work
from session_tracer.page.report import report
from tests.page.browser import dom_of, needs_browser
from tests.page.logs import closed, event, found, write

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs_browser

HACK = "document.title='taken over'"
HOSTILE = {
    "end of the script": f'</script><img src=x onerror="{HACK}">',
    "markup": f"<svg onload=\"{HACK}\"><iframe srcdoc='<script>parent.{HACK}</script>'>",
    "attribute": f'" onmouseover="{HACK}" style="display:none',
    "comment": "<!--<script>",
    "template": "${document.title='taken over'}{{data}}{{nonce}}{{policy}}`",
    "right to left": "\u202eevil\u202c شركة עברית",
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈",
    "separators": "a\u2028b\u2029c\x00\x1b[31md",
    "lone surrogate": "a\ud800b",
    "long": "x" * 10_000,
    "prototype": "__proto__",
}


def body_of(dom: str) -> str:
    """The page's document without its script and its data."""
    assert "<title>taken over" not in dom
    return re.sub(r"<(script|style).*?</\1>", "", dom, flags=re.DOTALL)


def hostile_events(hostile: str) -> list[dict[str, Any]]:
    """Events that have the name wherever they have a text."""
    keys = ("work", "entity", "attribute", "session_site", "remedy", "explanation", "severity")
    fields: dict[str, Any] = dict.fromkeys((*keys, "thread", "service", "session_id"), hostile)
    fields["site"] = f"{hostile}.py:7 in {hostile}()"
    stuck = found(0, owner_state=hostile, doing=[hostile])
    return [
        event("flush.completed", trigger=hostile, **fields),
        closed(**fields | {"outcome": hostile, "error_type": hostile}),
        found(**fields | {"finding_id": hostile}),
        stuck | fields | {"finding_id": "leaked-session"},
    ]


def test_hostile_names_are_only_text(tmp_path: Path) -> None:
    events = [event for hostile in HOSTILE.values() for event in hostile_events(hostile)]
    log = write(tmp_path / "log.jsonl", *events)
    before = write(tmp_path / "before.jsonl", closed())
    page = tmp_path / "page.html"
    assert report([log], str(page), before) == 0
    body = body_of(dom_of(page.as_uri()))
    assert re.findall(r"<(?:img|iframe|object|embed|link|base|form)\b", body) == []
    assert re.findall(r"<[^>]*\s(?:on\w+|style|href|src)=", body) == []
    assert "Stuck when the log ended" in body
    text = html.unescape(body)
    for hostile in HOSTILE.values():
        first = hostile[:4].replace("\x00", "\ufffd").replace("\ud800", "\ufffd")
        assert first in text


def test_a_report_shows_what_is_in_its_log(tmp_path: Path) -> None:
    log = write(
        tmp_path / "log.jsonl",
        event("flush.completed", 0.05, trigger="commit", duration_ms=10.0),
        found(0.06, suppressed=2),
        closed(0.1, duration_ms=100.0, held_ms=80.0, sql_ms=20.0, statements=3, flushes=1),
    )
    page = tmp_path / "page.html"
    assert report([log], str(page)) == 0
    dom = dom_of(page.as_uri())
    body = html.unescape(body_of(dom))
    for words in (
        "1 line to look at, first n-plus-one.",
        "found 3 times",
        "select(Author).options(selectinload(Author.books))",
        "GET /totals (3)",
        "3 statements · 1 flush · held 80 ms, 20 ms of it in SQL",
        'aria-label="100 ms long, a connection held for 80 ms, 20 ms in SQL"',
    ):
        assert words in body
    assert len(re.findall(r'<rect class="flush"', body)) == 1
    assert '<button type="button" aria-pressed="true">' in body
    assert "<html lang=" in dom
    assert body.count("<h1") == body.count("<main") == 1


def test_the_live_page_shows_an_open_session_and_refreshes_itself(
    served: tuple[str, list[str]],
) -> None:
    address, accepts = served
    engine = create_engine("sqlite://")
    factory = sessionmaker(engine)
    with (
        instrument(factory, name="shop", exporter=Exporter()),
        work("GET /</script><img src=x onerror=alert(1)>"),
        factory() as session,
    ):
        session.execute(select(1))
        body = html.unescape(body_of(dom_of(address, milliseconds=5_000)))
    engine.dispose()
    assert "GET /</script><img src=x onerror=alert(1)>" in body
    assert "test_the_live_page_shows_an_open_session" in body  # its line
    assert "its code is running" in body
    assert ">Pause</button>" in body
    assert re.search(r"refreshed at \d\d:\d\d:\d\d", body)
    assert "text/html" in accepts[0]
    assert "application/json" in accepts
