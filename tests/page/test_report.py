"""Tests the report of a log: what it has, what it refuses, and that its memory is bounded."""

from __future__ import annotations

import io
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.orm import sessionmaker

from session_tracer import instrument
from session_tracer.cli import main
from session_tracer.page.log_document import LogSummary
from session_tracer.page.log_lines import Problems, read_lines
from session_tracer.page.report import report
from tests.library import Author, Base, authors
from tests.page.logs import START, closed, event, found, write

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]


def document_in(page: str) -> dict[str, Any]:
    """The document that a page shows."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    document: dict[str, Any] = json.loads(found[1])
    return document


def reported(tmp_path: Path, *lines: dict[str, Any] | str | bytes, **options: Any) -> Any:
    """The document of a report of these lines."""
    out = tmp_path / "out.html"
    assert report([write(tmp_path / "log.jsonl", *lines)], str(out), **options) == 0
    return document_in(out.read_text())


def test_what_an_application_logs_is_reported(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    Base.metadata.create_all(engine)
    factory = sessionmaker(engine)
    with factory() as session:
        session.add_all(authors(6, books_each=1))
        session.commit()
    log = tmp_path / "log.jsonl"
    with instrument(factory, name="shop", exporter="jsonl", jsonl_path=str(log)):
        for number in range(3):
            with factory() as session:
                for author in session.scalars(select(Author)):
                    len(author.books)
                author.name = f"another {number}"
                session.commit()
    engine.dispose()
    assert main(["report", str(log)]) == 0
    document = document_in((tmp_path / "log.html").read_text())
    (one,) = document["findings"]
    assert (one["finding_id"], one["count"]) == ("n-plus-one", 3)
    assert "selectinload" in one["remedy"]
    assert document["sessions"]["slowest"][0]["findings"] == ["n-plus-one"]
    assert sum(document["over_time"]["closed"]) == document["sessions"]["count"] == 3
    assert document["open"]["sessions"] == document["notes"] == []


def test_findings_are_grouped_by_line_and_counted_with_those_held_back(tmp_path: Path) -> None:
    document = reported(
        tmp_path,
        found(0),
        found(1, suppressed=4, work="GET /other"),
        found(2, site="app/views.py:40 in other()"),
        closed(
            3,
            findings=[
                {
                    "finding_id": "n-plus-one",
                    "site": "app/views.py:33 in totals()",
                    "entity": "Author",
                    "attribute": "books",
                    "total": 70,
                    "total_ms": 12.5,
                }
            ],
        ),
    )
    first, second = document["findings"]
    assert (first["site"], first["count"]) == ("app/views.py:33 in totals()", 6)
    assert first["works"] == [["GET /other", 5], ["GET /totals", 1]]
    assert (first["total"], first["total_ms"]) == (70, 12.5)
    assert (first["first_at"], first["last_at"]) == (START, START + 1)
    assert (second["site"], second["count"]) == ("app/views.py:40 in other()", 1)


def test_the_slowest_and_the_busiest_have_their_steps(tmp_path: Path) -> None:
    document = reported(
        tmp_path,
        event("flush.completed", 0.06, trigger="commit", duration_ms=10.0),
        event("transaction.ended", 0.09, outcome="committed", duration_ms=80.0),
        found(0.095),
        closed(0.1, duration_ms=100.0, statements=2, held_ms=80.0),
        *(closed(1 + n, session_id=f"b{n}", statements=n, duration_ms=1.0) for n in range(40)),
    )
    slowest = document["sessions"]["slowest"]
    assert [one["duration_ms"] for one in slowest] == [100.0, *[1.0] * 24]
    steps = [(one["verb"], one["subject"], one["at_ms"]) for one in slowest[0]["steps"]]
    assert steps == [
        ("transaction", "committed", pytest.approx(10, abs=0.01)),
        ("flush", "commit", pytest.approx(50, abs=0.01)),
        ("finding", "n-plus-one", pytest.approx(95, abs=0.01)),
    ]
    busiest = document["sessions"]["busiest"]
    assert [one["statements"] for one in busiest] == list(range(39, 14, -1))


def test_sessions_held_back_are_counted(tmp_path: Path) -> None:
    held_back = event("suppressed", 1, suppressed_event="session.closed", suppressed=9)
    other = event("suppressed", 1, suppressed_event="flush.failed", suppressed=5)
    document = reported(tmp_path, closed(0), held_back, other)
    assert document["sessions"]["count"] == 10
    assert sum(document["over_time"]["closed"]) == 10


def lasting(at: float, session: str, id_: str = "leaked-session") -> dict[str, Any]:
    return found(
        at, id_, session_id=session, age_ms=60_000.0, owner_state="ended", doing=["a.py:1"]
    )


def test_what_was_stuck_when_the_log_ended_is_listed(tmp_path: Path) -> None:
    document = reported(
        tmp_path,
        lasting(0, "closed"),
        lasting(1, "retracted"),
        lasting(2, "stuck"),
        lasting(3, "still"),
        event("finding.lasting", 4, session_id="still", finding_id="leaked-session", age_ms=9e4),
        event("finding.retracted", 5, session_id="retracted", finding_id="leaked-session"),
        closed(10, session_id="closed"),
    )
    stuck = document["open"]["sessions"]
    assert [(one["id"], one["age_seconds"]) for one in stuck] == [("still", 96.0), ("stuck", 68.0)]
    assert (stuck[0]["owner_state"], stuck[0]["owner_stack"]) == ("ended", ["a.py:1"])


def test_a_later_log_is_compared_with_an_earlier_one(tmp_path: Path) -> None:
    sessions = [closed(n, session_id=f"s{n}") for n in range(10)]
    before = write(
        tmp_path / "before.jsonl",
        *sessions,
        found(site="app/views.py:30 in totals()"),  # the same function, another line
        found(id_="large-flush"),
        found(id_="failed-flush", suppressed=1),
        found(id_="large-result", suppressed=1),
    )
    document = reported(
        tmp_path,
        *sessions,
        found(),
        found(id_="failed-flush", suppressed=9),
        found(id_="large-result", suppressed=3),  # more, but no more than three
        found(site="app/views.py:33 in another()"),
        found(work="GET /another"),
        compare=before,
    )
    difference = document["compared"]
    assert [(one["function"], one["work"]) for one in difference["new"]] == [
        ("another", "GET /totals"),
        ("totals", "GET /another"),
    ]
    assert [one["finding_id"] for one in difference["gone"]] == ["large-flush"]
    (grown,) = difference["grown"]
    assert (grown["finding_id"], grown["before"], grown["now"]) == ("failed-flush", 2, 10)
    assert (grown["before_rate"], grown["now_rate"]) == (200.0, 1000.0)
    assert difference["with"] == "before.jsonl"


def test_findings_are_compared_for_each_session(tmp_path: Path) -> None:
    before = write(tmp_path / "before.jsonl", closed(), found(suppressed=9))
    ten = [closed(n, session_id=f"s{n}") for n in range(10)]
    difference = reported(tmp_path, *ten, found(suppressed=99), compare=before)["compared"]
    assert difference["new"] == difference["grown"] == difference["gone"] == []


BAD_LINES: list[tuple[str | bytes, str]] = [
    ("no JSON at all\n", "no JSON"),
    (b"\xff\xfe\x00\n", "no JSON"),
    ("[" * 100_000 + "\n", "no JSON"),
    ('{"event": "finding", "count": ' + "9" * 5_000 + "}\n", "no JSON"),
    ("[1, 2]\n", "no log event of session_tracer"),
    ("17\n", "no log event of session_tracer"),
    ('{"message": "another program"}\n', "no log event of session_tracer"),
    ('{"event": "request", "status": 200}\n', "no log event of session_tracer"),
    ('{"event": ["finding"]}\n', "no log event of session_tracer"),
    ("x" * 3_000_000 + "\n", "longer than any log event"),
    (
        '{"event": "session.paused", "logger": "session_tracer"}\n',
        "the event 'session.paused' is not known to this version",
    ),
    (
        '{"event": "finding", "logger": "session_tracer"}\n',
        "finding without finding_id: of another version",
    ),
    (
        '{"event": "session.closed", "session_id": "a", "outcome": {"is": "new"}}\n',
        "session.closed without outcome: of another version",
    ),
]


@pytest.mark.parametrize(("line", "problem"), BAD_LINES, ids=[name for _, name in BAD_LINES])
def test_a_line_that_is_none_is_named_and_the_rest_is_read(
    line: str | bytes, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = reported(tmp_path, closed(), line, found())
    assert capsys.readouterr().err.splitlines()[0] == f"log.jsonl, line 2: {problem}"
    assert (document["sessions"]["count"], len(document["findings"])) == (1, 1)
    assert document["notes"][0] == f"log.jsonl, line 2: {problem}"


def test_half_a_line_at_the_end_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = json.dumps(closed())[:-20]
    assert reported(tmp_path, closed(), half)["sessions"]["count"] == 1
    assert "log.jsonl, line 2: half a line, the end is missing" in capsys.readouterr().err


def test_lines_with_the_same_problem_are_named_as_a_range(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reported(tmp_path, closed(), "a\n" * 5_000, closed(), "b\n")
    assert capsys.readouterr().err.splitlines()[:2] == [
        "log.jsonl, lines 2 to 5001: no JSON",
        "log.jsonl, line 5003: no JSON",
    ]


def test_lines_of_the_application_s_own_loggers_are_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"event": "paid", "logger": "app.payments"}
    assert reported(tmp_path, own, closed(), own, "\n")["notes"] == []
    assert capsys.readouterr().err.startswith("The report is in")


def test_a_line_without_a_time_is_read_as_of_the_line_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = reported(tmp_path, closed(5), {**closed(), "timestamp": "yesterday"})
    assert document["sessions"]["count"] == 2
    assert document["last_at"] == START + 5
    assert "line 2: without a timestamp" in capsys.readouterr().err


def test_values_of_other_types_are_no_failure(tmp_path: Path) -> None:
    odd: list[Any] = [None, True, -1, 1e400, "text", [1], {"a": 1}, "\ud800", [[{}]]]
    keys = [key for one in (closed(), found()) for key in one if key not in ("event", "logger")]
    keys += ["findings", "doing", "duration_ms", "statements", "suppressed", "age_ms", "total"]
    lines = [
        {**one, key: value}
        for one in (closed(), found(), lasting(0, "x"), event("suppressed", suppressed_event="x"))
        for key in keys
        for value in odd
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines).replace("Infinity", "1e400")
    assert reported(tmp_path, text, closed())["version"] == 1


@pytest.mark.parametrize("content", [b"", b"\n\n", b"no log\n", b"\x00" * 1_000])
def test_a_file_without_an_event_is_an_error(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(content)
    assert main(["report", str(log)]) == 1
    assert "no log event of session_tracer was read" in capsys.readouterr().err
    assert not (tmp_path / "log.html").exists()


def test_a_file_that_does_not_exist_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, missing = write(tmp_path / "log.jsonl", closed()), str(tmp_path / "missing.jsonl")
    assert main(["report", missing]) == 1
    assert f"cannot read {missing}: No such file or directory" in capsys.readouterr().err
    assert main(["report", log, missing]) == 0  # the other one is read
    assert main(["report", log, "--compare", missing]) == 1


def test_a_report_replaces_no_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write(tmp_path / "log.html", closed())
    assert main(["report", log]) == 2
    assert "is a log, and would be replaced" in capsys.readouterr().err
    assert Path(log).read_text().startswith("{")


def test_a_report_that_cannot_be_written_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = write(tmp_path / "log.jsonl", closed())
    assert main(["report", log, "-o", str(tmp_path / "missing" / "out.html")]) == 1
    assert "cannot write" in capsys.readouterr().err


def test_without_a_log_the_usage_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["report"])
    assert exit_.value.code == 2
    assert "usage: session-tracer report" in capsys.readouterr().err


def test_standard_input_is_reported_to_standard_output() -> None:
    log = "".join(json.dumps(one) + "\n" for one in (closed(), found()))
    done = subprocess.run(
        [sys.executable, "-m", "session_tracer", "report", "-"],
        input=log, capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    assert document_in(done.stdout)["files"] == ["standard input"]


def test_a_reader_that_leaves_is_no_traceback(tmp_path: Path) -> None:
    log = write(tmp_path / "log.jsonl", found(), *[closed()] * 5_000)
    command = f"{sys.executable} -m session_tracer report {log} -o - | head -c 10"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "<!doctype "
    assert "Traceback" not in done.stderr


def test_a_name_cannot_control_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "x\x1b[2J\n"
    reported(tmp_path, closed(), {"event": name, "logger": "session_tracer"})
    assert "\x1b" not in capsys.readouterr().err


def test_no_name_ends_the_script_of_the_page(tmp_path: Path) -> None:
    hostile = "</script><script>alert(1)</script><!-- \u2028 \ud800"
    out = tmp_path / "out.html"
    log = write(tmp_path / "log.jsonl", found(work=hostile, entity=hostile), closed(work=hostile))
    assert report([log], str(out)) == 0
    page = out.read_text()
    assert page.count("</script>") == 2
    assert document_in(page)["findings"][0]["entity"] == hostile


def test_the_periods_become_longer_with_the_log(tmp_path: Path) -> None:
    document = reported(tmp_path, *(closed(n * 60.0) for n in range(1_000)))
    over = document["over_time"]
    assert len(over["closed"]) <= 240
    assert sum(over["closed"]) == sum(over["opened"]) == 1_000
    assert over["start"] <= START
    assert over["start"] + over["seconds"] * len(over["closed"]) > START + 999 * 60


def test_the_documentation_names_each_key(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "live-page.md").read_text()
    document = reported(
        tmp_path, closed(), lasting(1, "b"), compare=write(tmp_path / "b", closed())
    )
    named = set(re.findall(r"`(\w+)`", page))
    assert set(document) | set(document["process"]) | set(document["compared"]) <= named


# A log of 40 MB; one of 1,000 MB needs as much, as docs/live-page.md has it.
LOG_MEGABYTES = 40
MOST_MEGABYTES = 110


@pytest.mark.skipif(sys.platform != "linux", reason="/proc has the peak of the memory there")
def test_the_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    rng = random.Random(7)
    path, size, number = tmp_path / "log.jsonl", 0, 0
    with path.open("w") as log:
        while size < LOG_MEGABYTES * 1_000_000:
            number += 1
            id_, work = f"{rng.getrandbits(64):x}", f"GET /{rng.randrange(300_000)}"
            site = f"app/views.py:{rng.randrange(100_000)} in view()"
            lines = [
                found(number, session_id=id_, work=work, site=site),
                event("flush.completed", number, session_id=f"{id_}x", trigger="commit"),
                closed(number, session_id=id_, work=work, duration_ms=rng.random() * 1e3),
            ]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            size += log.write(text)
    program = (
        "import re, sys\n"
        "from session_tracer.page.report import report\n"
        "code = report([sys.argv[1]])\n"
        "peak = re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())\n"
        "print(code, int(peak[1]) // 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    code, megabytes = done.stdout.split()
    assert code == "0"
    assert int(megabytes) < MOST_MEGABYTES
    document = document_in(path.with_suffix(".html").read_text())
    assert document["findings_left_out"] > 0


def test_a_large_file_shows_on_a_terminal_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for name, value in (("_LARGE_BYTES", 1_000), ("_LOOK_BYTES", 0), ("_REFRESH_SECONDS", 0)):
        monkeypatch.setattr(f"session_tracer.page.report.{name}", value)
    reported(tmp_path, *[closed()] * 100)
    assert "\rlog.jsonl: 0 of 0 MB" in terminal.getvalue()


def lines_in(raw: bytes, write: Callable[[str], object]) -> list[str]:
    problems = Problems("log", write)
    return [line.name for line in read_lines(io.BytesIO(raw), problems, lambda _: None)]


def test_any_cut_through_a_log_is_read() -> None:
    whole = b"".join(json.dumps(one).encode() + b"\n" for one in (closed(), found(), closed()))
    for start in range(0, len(whole), 7):
        summary = LogSummary()
        named: list[str] = []
        for line in read_lines(
            io.BytesIO(whole[start : start + 400]), Problems("log", named.append), lambda _: None
        ):
            summary.add(line)
        assert summary.lines + len(named) >= 1
    assert lines_in(whole, print) == ["session.closed", "finding", "session.closed"]
