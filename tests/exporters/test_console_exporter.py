"""Tests of what the console shows, line by line."""

import io
import os
import pty
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len

from session_tracer.exporters.console import console_exporter
from session_tracer.model.findings import Finding, Retraction
from session_tracer.model.summary import SessionSummary
from session_tracer.settings import Settings
from tests.exporters import samples

Item = SessionSummary | Finding | Retraction


@pytest.fixture(autouse=True)
def application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The application's sources, below the working directory."""
    monkeypatch.chdir(tmp_path)
    for variable in ("COLUMNS", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    samples.write_sources(tmp_path)


def shown(
    *items: Item,
    width: int | None = 100,
    colour: bool | None = None,
    settings: Settings | None = None,
) -> str:
    """What the console shows of all this."""
    stream = io.StringIO()
    exporter = console_exporter(stream, width, colour, settings)
    for one in items:
        if isinstance(one, Finding):
            exporter.on_finding(one)
        elif isinstance(one, Retraction):
            exporter.on_retraction(one)
        else:
            exporter.on_session(one)
    exporter.close()
    return stream.getvalue()


def test_a_quiet_session_is_two_lines() -> None:
    assert (
        shown(samples.quiet_session())
        == """\
● session orders-db a1b2c3 · closed · 3.1 ms · connection held 2.0 ms, 70 % of it in SQL
  opened app/db.py:12 in get_db() · 1 statement · 12 Author loaded · identity map peak 12
"""
    )


def test_a_session_that_repeats_itself_is_not_quiet() -> None:
    repeated = samples.step(
        0.6, "lazy", "Author.books", 2, site=samples.site("app/report.py", 33, "totals"), count=5
    )
    assert (
        shown(samples.quiet_session(timeline=(repeated,)))
        == """\
● session orders-db a1b2c3 · closed · 3.1 ms · connection held 2.0 ms, 70 % of it in SQL
  opened app/db.py:12 in get_db() · 1 statement · identity map peak 12
    0.6  lazy Author.books ×5  2.0 ms  app/report.py:33 in totals()
"""
    )


def test_quiet_sessions_stand_close_together() -> None:
    unused = samples.quiet_session(
        outcome="unused", held_ms=0, statements=0, loaded={}, identity_map_peak=0, duration_ms=0.04
    )
    assert (
        shown(unused, unused)
        == """\
● session orders-db a1b2c3 · unused · 0.04 ms
  opened app/db.py:12 in get_db()
● session orders-db a1b2c3 · unused · 0.04 ms
  opened app/db.py:12 in get_db()
"""
    )


def test_a_session_is_its_head_its_timeline_and_its_findings() -> None:
    assert (
        shown(samples.busy_session())
        == """\
● session orders-db 4f1c9a · committed · 48.2 ms · connection held 41.0 ms, 30 % of it in SQL
  opened app/db.py:12 in get_db() · 15 statements · identity map peak 312
     0.4  begin
     0.6  select Author            12 loaded          1.1 ms  app/repo.py:18 in authors()
     2.0  lazy   Author.books ×12  300 loaded         8.9 ms  app/report.py:33 in totals()
    21.7  flush  autoflush         +2 Order ~1 Stock  0.9 ms  app/shop.py:77 in reserve()
    44.1  flush  commit                               1.4 ms  app/shop.py:92 in place_order()
                 +40 OrderLine ~11 Stock (4 unchanged) −1 Cart
    46.1  commit                                      1.7 ms  app/shop.py:92 in place_order()
    48.2  close                                               app/db.py:15 in get_db()

  ▲ n-plus-one  Author.books was lazily loaded for 12 authors, one SELECT each
      app/report.py:33 in totals()  total += sum(b.price for b in author.books)
      loaded at                     app/repo.py:18 in authors()
      write                         select(Author).options(selectinload(Author.books))
"""
    )


def test_a_narrow_terminal_gets_the_same_in_fewer_columns() -> None:
    assert (
        shown(samples.busy_session(), width=80)
        == """\
● session orders-db 4f1c9a · committed · 48.2 ms · held 41.0 ms, 30 % in SQL
  opened app/db.py:12 in get_db() · 15 statements · identity map peak 312
     0.4  begin
     0.6  select Author            12 loaded          1.1 ms  app/repo.py:18
     2.0  lazy   Author.books ×12  300 loaded         8.9 ms  app/report.py:33
    21.7  flush  autoflush         +2 Order ~1 Stock  0.9 ms  app/shop.py:77
    44.1  flush  commit                               1.4 ms  app/shop.py:92
                 +40 OrderLine ~11 Stock (4 unchanged) −1 Cart
    46.1  commit                                      1.7 ms  app/shop.py:92
    48.2  close                                               app/db.py:15

  ▲ n-plus-one  Author.books was lazily loaded for 12 authors, one SELECT each
      app/report.py:33 in totals()
          total += sum(b.price for b in author.books)
      loaded at  app/repo.py:18 in authors()
      write      select(Author).options(selectinload(Author.books))
"""
    )


def test_a_wide_terminal_gets_every_step_on_one_line() -> None:
    timeline = shown(samples.busy_session(), width=200).splitlines()[2:9]
    assert timeline[4] == (
        "    44.1  flush  commit            +40 OrderLine ~11 Stock (4 unchanged) −1 Cart  1.4 ms"
        "  app/shop.py:92 in place_order()"
    )
    assert len(timeline) == 7


def test_a_failed_session_shows_the_error_and_what_was_lost() -> None:
    assert (
        shown(samples.failed_session())
        == """\
● session orders-db bad00b · failed with IntegrityError · 312 ms · held 300 ms, 1 % in SQL
  opened app/db.py:12 in get_db() · 2 statements · 3 objects added and never flushed
      0.4  begin
      2.0  flush commit  IntegrityError +1 Order  120 ms  app/shop.py:92 in place_order()
    122.0  rollback                                       app/shop.py:92 in place_order()
    312.0  close         IntegrityError                   app/db.py:15 in get_db()
"""
    )


def test_an_abandoned_session_shows_who_ended_it() -> None:
    abandoned = samples.quiet_session(
        outcome="abandoned",
        ending="collected",
        closed_site=None,
        timeline=(samples.step(0.4, "begin"), samples.step(3.1, "collected")),
    )
    assert (
        shown(abandoned)
        == """\
● session orders-db a1b2c3 · abandoned · 3.1 ms · connection held 2.0 ms, 70 % of it in SQL
  opened app/db.py:12 in get_db() · 1 statement · identity map peak 12
    0.4  begin
    3.1  collected by the garbage collector
"""
    )


@pytest.mark.parametrize("width", [50, 80, 100, 120, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    long = samples.site(
        "services/reporting/monthly/aggregation.py", 1234, "MonthlyReport.collect_customer_totals"
    )
    steps = tuple(
        samples.step(
            at * 1000,
            "lazy",
            "CustomerAccount.préférences_de_livraison" if at % 2 else "注文.明細",
            7 * at,
            site=long,
            count=at + 1,
            loaded={"Delivery": at, "Preference": 3},
        )
        for at in range(60)
    )
    finding = samples.n_plus_one(
        site=long, message="It was read again and again. " * 9, remedy="do_it(" + "argument, " * 30
    )
    text = shown(
        samples.busy_session(
            name="a-rather-long-name-for-a-session-factory-of-one-application",
            duration_ms=60_000,
            timeline=steps,
            findings=(finding,),
        ),
        samples.detached_lazy_load(site=long, session_site=long),
        samples.quiet_session(opened_site=long),
        width=width,
    )
    assert [line for line in text.splitlines() if cell_len(line) > width] == []


def test_a_long_session_fits_a_screen_and_keeps_what_stands_out() -> None:
    steps = [
        samples.step(at, "select", "Book", 1, site=samples.site("a.py", at, "f"))
        for at in range(60)
    ]
    steps[40] = replace(steps[40], error="OperationalError")
    long = samples.busy_session(timeline=tuple(steps), timeline_left_out=461, findings=())
    lines = [line.split()[0] for line in shown(long).splitlines()[2:]]
    gaps = [line.strip() for line in shown(long).splitlines() if "more" in line]
    assert lines[:10] == [f"{at}.0" for at in range(10)]
    assert lines[-8:] == [f"{at}.0" for at in range(52, 60)]
    assert "40.0" in lines
    assert len(lines) <= 30
    assert sum(int(gap.split()[1]) for gap in gaps) + len(lines) - len(gaps) == 60 + 461


def test_the_gap_of_a_short_timeline_is_in_its_middle() -> None:
    steps = tuple(samples.step(at, "select", "Book") for at in range(5))
    text = shown(samples.busy_session(timeline=steps, timeline_left_out=461, findings=()))
    assert text.splitlines()[2:] == [
        "    0.0  select Book",
        "    1.0  select Book",
        "    2.0  select Book",
        "         … 461 steps more",
        "    3.0  select Book",
        "    4.0  select Book",
    ]


def test_a_finding_about_a_session_that_ended_is_a_block_of_its_own() -> None:
    assert (
        shown(samples.detached_lazy_load())
        == """\
✖ detached-lazy-load  Author.books was read 35 ms after its session was closed
    app/views.py:42 in render()  {% for b in author.books %}
    why                          the relationship was never loaded
    loaded at                    app/repo.py:18 in author()
    session closed at            app/db.py:15 in get_db(), 35.2 ms before
    session                      orders-db 7f3a2b, opened app/db.py:12 in get_db()
    write                        select(Author).options(selectinload(Author.books))
"""
    )


def test_a_session_that_leaks_shows_its_owner_and_what_it_does() -> None:
    assert (
        shown(samples.leaked_session())
        == """\
✖ leaked-session  session 9b21e0 (orders-db) has been open for 4 min 12 s and holds a connection
    (PostgreSQL process 31877)
    app/db.py:12 in get_db()  with SessionLocal() as session:
    owner                     thread "export-3"
    now at                    app/jobs/upload.py:120 in upload()  client.put(url, content=chunk)
    called from               app/jobs/export.py:71 in run_export()  upload(session, chunk)
                              app/jobs/gone.py:3 in main()
    transaction open for      4 min 11 s
    connection held           4 min 10 s, server process 31877
    in SQL                    812 ms, 31 statements
    not flushed               412 Invoice added, 2 modified
    last statement            4 min 10 s ago at app/jobs/export.py:71 in run_export()
    reported before           idle-in-transaction
    do                        commit before the wait at app/jobs/upload.py:120 in upload(), or open
                              the session after it
"""
    )


def test_it_does_so_on_a_narrow_terminal_too() -> None:
    assert (
        shown(samples.leaked_session(), width=80)
        == """\
✖ leaked-session  session 9b21e0 (orders-db) has been open for 4 min 12 s and
    holds a connection (PostgreSQL process 31877)
    app/db.py:12 in get_db()  with SessionLocal() as session:
    owner                     thread "export-3"
    now at                    app/jobs/upload.py:120 in upload()
                                client.put(url, content=chunk)
    called from               app/jobs/export.py:71 in run_export()
                                upload(session, chunk)
                              app/jobs/gone.py:3 in main()
    transaction open for      4 min 11 s
    connection held           4 min 10 s, server process 31877
    in SQL                    812 ms, 31 statements
    not flushed               412 Invoice added, 2 modified
    last statement            4 min 10 s ago at app/jobs/export.py:71 in
                              run_export()
    reported before           idle-in-transaction
    do                        commit before the wait at app/jobs/upload.py:120
                              in upload(), or open the session after it
"""
    )


def test_code_that_is_too_long_is_broken_where_a_reader_would() -> None:
    remedy = (
        "select(Author).options(selectinload(Author.books).selectinload(Book.reviews)) "
        "at app/repo.py:18 in authors()"
    )
    text = shown(samples.n_plus_one(remedy=remedy, evidence={}, site=None), width=80)
    assert text.splitlines()[-4:] == [
        "    write",
        "        select(Author).options(selectinload(Author.books)",
        "            .selectinload(Book.reviews))",
        "        at app/repo.py:18 in authors()",
    ]


def test_a_comment_on_code_goes_below_where_there_is_no_room_on_its_line() -> None:
    remedy = "with SessionLocal.begin() as session:  # one session for all of it"
    lines = shown(samples.n_plus_one(remedy=remedy, evidence={}, site=None)).splitlines()
    assert lines[-1] == f"    write    {remedy}"
    finding = samples.n_plus_one(remedy=remedy, evidence={"began_at": "app/db.py:12"}, site=None)
    assert shown(finding, width=80).splitlines()[-2:] == [
        "    write                 with SessionLocal.begin() as session:",
        "                          # one session for all of it",
    ]


def test_code_to_write_at_a_place_is_code() -> None:
    remedy = "select(Author).options(selectinload(Author.books)) at app/repo.py:18 in author()"
    text = shown(samples.n_plus_one(remedy=remedy, evidence={}, site=None), width=120)
    assert text.splitlines()[-1] == f"    write    {remedy}"


def test_a_remedy_in_words_is_something_to_do() -> None:
    text = shown(samples.n_plus_one(remedy="commit before the upload", evidence={}, site=None))
    assert (
        text
        == """\
▲ n-plus-one  Author.books was lazily loaded for 12 authors, one SELECT each
    session  orders-db 4f1c9a, opened app/db.py:12 in get_db()
    do       commit before the upload
"""
    )


def test_a_remedy_of_several_lines_keeps_its_shape() -> None:
    remedy = "with SessionLocal() as session:\n    session.add(order)"
    text = shown(samples.n_plus_one(remedy=remedy, evidence={}, site=None, session_site=None))
    assert text.splitlines()[1:] == [
        "    session  orders-db 4f1c9a",
        "    write    with SessionLocal() as session:",
        "                 session.add(order)",
    ]


def test_a_finding_is_shown_once_if_its_session_ends_in_a_moment() -> None:
    session = samples.busy_session()
    assert shown(*session.findings, session) == shown(session)


def test_a_finding_of_an_open_session_is_shown_at_once_and_its_session_refers_to_it() -> None:
    stream = io.StringIO()
    exporter = console_exporter(stream, 100)
    exporter.on_finding(samples.n_plus_one())
    for _ in range(100):
        if stream.getvalue():
            break
        time.sleep(0.05)
    assert (
        stream.getvalue()
        == """\
▲ n-plus-one  Author.books was lazily loaded for 12 authors, one SELECT each
    app/report.py:33 in totals()  total += sum(b.price for b in author.books)
    loaded at                     app/repo.py:18 in authors()
    session                       orders-db 4f1c9a, opened app/db.py:12 in get_db()
    write                         select(Author).options(selectinload(Author.books))
"""
    )
    exporter.on_session(samples.busy_session())
    exporter.close()
    assert stream.getvalue().splitlines()[-3:] == [
        "",
        "  ▲ n-plus-one  Author.books was lazily loaded for 12 authors, one SELECT each",
        "      app/report.py:33 in totals() · shown in full above",
    ]


def test_a_finding_shown_for_one_session_is_shown_in_short_for_the_next() -> None:
    again = samples.n_plus_one(session_id="feedbeefcafe")
    text = shown(samples.busy_session(), samples.busy_session(id="feedbeefcafe", findings=(again,)))
    assert text.splitlines()[-2:] == [
        "  ▲ n-plus-one  Author.books was lazily loaded for 12 authors, one SELECT each",
        "      app/report.py:33 in totals() · shown in full above, session 4f1c9a",
    ]


def test_a_finding_at_another_line_is_shown_in_full() -> None:
    other = samples.n_plus_one(site=samples.site("app/other.py", 7, "other"))
    text = shown(samples.busy_session(), samples.busy_session(findings=(other,)))
    assert text.count("selectinload") == 2


def test_the_same_line_with_another_remedy_is_shown_in_full() -> None:
    other = samples.detached_lazy_load(remedy="select(Book).options(selectinload(Book.author))")
    assert shown(samples.detached_lazy_load(), other).count("selectinload") == 2


def test_repeats_of_a_finding_are_counted() -> None:
    text = shown(*[samples.detached_lazy_load(session_id=f"{n:012}") for n in range(42)])
    assert text.count("selectinload") == 1
    assert text.endswith("… detached-lazy-load 41 more times at app/views.py:42 in render()\n")


def test_repeats_are_shown_again_when_their_time_has_passed() -> None:
    settings = Settings(repeat_finding_seconds=1e-6)
    text = shown(*[samples.detached_lazy_load() for _ in range(3)], settings=settings)
    assert text.count("selectinload") == 3


def test_repeats_in_a_session_are_shown_once_and_counted() -> None:
    findings = [samples.n_plus_one(count=5 * n) for n in range(1, 43)]
    lines = shown(samples.busy_session(findings=tuple(findings))).splitlines()
    assert lines[-2:] == [
        "      write                         select(Author).options(selectinload(Author.books))",
        "      … 41 more times in this session",
    ]
    assert "\n".join(lines).count("n-plus-one") == 1


def test_a_finding_that_is_retracted_is_so_in_a_block_of_its_own() -> None:
    blocks = shown(samples.leaked_session(), samples.retraction()).split("\n\n")
    assert blocks[1:] == [
        """\
● leaked-session retracted  the session was closed after 4 min 31 s
    session  orders-db 9b21e0, opened app/db.py:12 in get_db()
"""
    ]


def test_a_retraction_shows_its_evidence() -> None:
    retraction = samples.retraction(evidence={"closed_at": "app/jobs/export.py:90 in run_export()"})
    assert shown(samples.leaked_session(), retraction).splitlines()[-3:] == [
        "● leaked-session retracted  the session was closed after 4 min 31 s",
        "    closed at  app/jobs/export.py:90 in run_export()",
        "    session    orders-db 9b21e0, opened app/db.py:12 in get_db()",
    ]


def test_a_finding_that_is_retracted_as_its_session_ends_is_shown_there() -> None:
    finding = samples.leaked_session()
    session = samples.busy_session(id=finding.session_id, findings=(finding,))
    retraction = samples.retraction()
    text = shown(finding, retraction, session)
    assert text == shown(finding, session) + (
        "      ● retracted  the session was closed after 4 min 31 s\n"
    )


def test_what_was_never_shown_in_full_is_not_retracted() -> None:
    first, second = (samples.leaked_session(session_id=f"{n:012}") for n in range(2))
    retractions = [samples.retraction(finding=one) for one in (first, second)]
    alone = shown(first, retractions[0])
    assert shown(retractions[0]) == ""
    assert shown(first, second, *retractions) == alone + (
        "\n… leaked-session once more at app/db.py:12 in get_db()\n"
    )
    assert shown(first, retractions[0], retractions[0]) == alone


def test_each_finding_that_was_shown_in_full_is_retracted() -> None:
    findings = [samples.leaked_session(session_id=f"{n:012}") for n in range(2)]
    retractions = [samples.retraction(finding=one) for one in findings]
    settings = Settings(repeat_finding_seconds=1e-6)
    assert (
        shown(*findings, *retractions, settings=settings).count("● leaked-session retracted") == 2
    )


def test_a_thousand_sessions_do_not_drown_a_finding() -> None:
    many = [samples.quiet_session(id=f"{n:012}", duration_ms=n / 10) for n in range(1, 401)]
    lines = shown(*many, samples.busy_session(), *many).splitlines()
    assert len(lines) < 200
    assert re.fullmatch(
        r"… \d+ more like it: session orders-db · closed · [\d.]+ ms to 40\.0 ms"
        r" · opened app/db\.py:12 in get_db\(\)",
        lines[-1],
    )


def test_what_the_terminal_could_not_take_is_counted() -> None:
    stopped, entered = threading.Event(), threading.Event()

    class Still(io.StringIO):
        def write(self, text: str) -> int:
            entered.set()
            stopped.wait(10)
            return super().write(text)

    stream = Still()
    exporter = console_exporter(stream, 100)
    exporter.on_session(samples.quiet_session())
    assert entered.wait(10)
    began = time.monotonic()
    for _ in range(1100):
        exporter.on_session(samples.quiet_session())
    assert time.monotonic() - began < 5
    stopped.set()
    exporter.close()
    assert "… 100 sessions and findings not shown" in stream.getvalue()


def test_blocks_of_many_threads_never_interleave(tmp_path: Path) -> None:
    path = tmp_path / "output"
    with path.open("w", encoding="utf-8") as stream:
        exporter = console_exporter(stream, 100)

        def work(thread: int) -> None:
            for number in range(10):
                name = f"db-{thread}-{number}"
                exporter.on_session(samples.busy_session(name=name, findings=()))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        exporter.close()
    blocks = path.read_text(encoding="utf-8").rstrip("\n").split("\n\n")
    names = [block.split()[2] for block in blocks]
    alone = shown(samples.busy_session(name="NAME", findings=())).rstrip("\n")
    assert sorted(names) == sorted(f"db-{t}-{n}" for t in range(8) for n in range(10))
    assert blocks == [alone.replace("NAME", name) for name in names]


def test_words_of_the_application_are_no_markup() -> None:
    text = shown(
        samples.busy_session(
            name="[bold red]db[/]",
            findings=(samples.n_plus_one(message="[link=http://x]:smile: [/link]"),),
        ),
        colour=True,
    )
    assert "[bold red]db[/]" in text
    assert "[link=http://x]:smile: [/link]" in text


def test_a_hostile_line_of_source_reaches_no_terminal(tmp_path: Path) -> None:
    hostile = "x = 1 # \x1b]0;owned\x07\x1b[2J\u202eevil\u2028\x9b31m"
    (tmp_path / "app/report.py").write_text("\n" * 32 + hostile + "\n")
    text = shown(samples.n_plus_one(message="m\x1b[31m\r\nn", entity="\x1b[1m"))
    assert [c for c in text if not c.isprintable() and c != "\n"] == []
    assert r"x = 1 # \x1b]0;owned\x07\x1b[2J\u202eevil" in text
    assert text.startswith("▲ n-plus-one  m\\x1b[31m  n\n")


def test_a_source_that_is_gone_leaves_the_site() -> None:
    text = shown(samples.n_plus_one(site=samples.site("app/gone.py", 3, "f"), evidence={}))
    assert text.splitlines()[1] == "    app/gone.py:3 in f()"


def test_colour_marks_what_deserves_the_eye() -> None:
    red, yellow, bold = "\x1b[1;31m", "\x1b[1;33m", "\x1b[1m"
    failed = shown(samples.failed_session(), colour=True)
    assert f"{red}failed with IntegrityError\x1b[0m" in failed
    busy = shown(samples.busy_session(), colour=True)
    assert f"{yellow}▲ n-plus-one\x1b[0m" in busy
    assert f"{yellow}lazy   Author.books ×12\x1b[0m" in busy
    assert f"{bold}select(Author).options(selectinload(Author.books))\x1b[0m" in busy
    quiet = shown(samples.quiet_session(), colour=True)
    assert set(re.findall("\x1b\\[[0-9;]*m", quiet)) == {"\x1b[1m", "\x1b[2m", "\x1b[0m"}


def test_colours_change_no_letter() -> None:
    coloured = shown(samples.busy_session(), samples.failed_session(), colour=True)
    plain = shown(samples.busy_session(), samples.failed_session(), colour=False)
    assert re.sub("\x1b\\[[0-9;]*m", "", coloured) == plain


def test_what_is_no_terminal_gets_no_escapes_and_100_columns() -> None:
    text = shown(samples.busy_session(), width=None)
    assert text == shown(samples.busy_session(), width=100)
    assert "\x1b" not in text


def test_what_is_no_terminal_is_as_wide_as_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert shown(samples.busy_session(), width=None) == shown(samples.busy_session(), width=80)


SCRIPT = """
from session_tracer.exporters.console import open_exporter
from session_tracer.settings import Settings
from tests.exporters import samples
exporter = open_exporter(Settings())
exporter.on_session(samples.busy_session())
"""


def on_a_terminal(columns: int, **variables: str) -> str:
    """What a process writes to standard error, where that is a terminal so wide."""
    import fcntl
    import struct
    import termios

    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", **variables}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stderr=terminal, stdin=subprocess.DEVNULL, env=environment
    )
    os.close(terminal)
    output = b""
    while True:
        try:
            output += os.read(main, 65536)
        except OSError:  # the process has ended
            break
        if process.poll() is not None and not output:
            break
    os.close(main)
    assert process.wait(30) == 0
    return output.decode().replace("\r\n", "\n")


def test_a_terminal_gets_colours_and_its_width_and_all_of_it_before_the_process_ends() -> None:
    assert on_a_terminal(80) == shown(samples.busy_session(), width=80, colour=True)


def test_no_color_means_no_escapes_at_all() -> None:
    assert on_a_terminal(120, NO_COLOR="1") == shown(samples.busy_session(), width=120)


def test_a_terminal_without_the_signs_gets_plainer_ones() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    exporter = console_exporter(stream, 100)
    exporter.on_session(samples.quiet_session(name="büch"))
    exporter.close()
    assert raw.getvalue().decode("ascii") == (
        "* session b\\xfcch a1b2c3 - closed - 3.1 ms - connection held 2.0 ms, 70 % of it in SQL\n"
        "  opened app/db.py:12 in get_db() - 1 statement - 12 Author loaded - "
        "identity map peak 12\n"
    )


def test_a_stream_that_was_closed_disturbs_nothing() -> None:
    stream = io.StringIO()
    exporter = console_exporter(stream, 100)
    stream.close()
    exporter.on_session(samples.quiet_session())
    exporter.flush()
    exporter.close()


def test_standard_error_is_looked_up_when_it_is_written_to(
    capsys: pytest.CaptureFixture[str],
) -> None:
    exporter = console_exporter(width=100)
    exporter.on_session(samples.quiet_session())
    exporter.close()
    assert capsys.readouterr() == ("", shown(samples.quiet_session()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_what_waits_is_printed_by_the_parent_only(tmp_path: Path) -> None:
    path = tmp_path / "output"
    with path.open("w", encoding="utf-8") as stream:
        exporter = console_exporter(stream, 100)
        exporter.on_finding(samples.n_plus_one())
        time.sleep(0.05)  # the thread has it, and holds it back
        child = os.fork()
        if child == 0:
            exporter.on_session(samples.quiet_session(id="chi1dchi1d"))
            exporter.flush()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        exporter.close()
    text = path.read_text(encoding="utf-8")
    assert text.count("n-plus-one") == 1
    assert text.count("chi1dc") == 1
