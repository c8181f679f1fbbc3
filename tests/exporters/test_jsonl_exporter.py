"""Tests of the lines of JSON."""

import json
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from session_tracer import instrument
from session_tracer.exporters.jsonl import line, open_exporter
from session_tracer.settings import Settings
from tests.fickle import Fickle

EVENT = {
    "outcome": "committed",
    "session_name": "orders-db",
    "timestamp": "2026-11-20T12:00:00.000001Z",
    "event": "session.closed",
    "duration_ms": 48.2,
    "session_id": "4f1c9a",
    "level": "info",
}


def read(path: Path) -> list[Any]:
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


def test_the_most_important_keys_come_first_and_the_rest_in_order() -> None:
    assert line(EVENT) == (
        '{"timestamp": "2026-11-20T12:00:00.000001Z", "level": "info", "event": "session.closed", '
        '"session_id": "4f1c9a", "session_name": "orders-db", "outcome": "committed", '
        '"duration_ms": 48.2}\n'
    )


class Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError


def test_what_json_does_not_know_becomes_text() -> None:
    values = {
        "time": datetime(2026, 11, 20, tzinfo=UTC),
        "numbers": (1, 2.5, None, True),
        "infinite": float("inf"),
        "nested": {1: {"a": Path("b")}},
        "unspeakable": Unspeakable(),
        "german": "Bücher",
    }
    assert json.loads(line(values), parse_constant=pytest.fail) == {
        "time": "2026-11-20 00:00:00+00:00",
        "numbers": [1, 2.5, None, True],
        "infinite": "inf",
        "nested": {"1": {"a": "b"}},
        "unspeakable": "<Unspeakable>",
        "german": "Bücher",
    }


def test_an_event_is_always_one_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    exporter = open_exporter(Settings(jsonl_path=str(path)))
    exporter.on_log({"event": "a\nb\u2028c\udc80"})
    exporter.close()
    assert path.read_bytes() == '{"event": "a\\nb\u2028c\\udc80"}\n'.encode()


def test_a_file_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "earlier"}\n')
    exporter = open_exporter(Settings(jsonl_path=str(path)))
    exporter.on_log(EVENT)
    exporter.flush()
    assert read(path) == [{"event": "earlier"}, EVENT]
    exporter.close()


def test_many_threads_and_processes_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    script = (
        "import sys, threading\n"
        "from session_tracer.exporters.jsonl import open_exporter\n"
        "from session_tracer.settings import Settings\n"
        f"exporter = open_exporter(Settings(jsonl_path={str(path)!r}))\n"
        "def work(t):\n"
        "    for n in range(200):\n"
        "        exporter.on_log({'event': f'{sys.argv[1]}-{t}-{n}', 'filler': 'x' * 5000})\n"
        "threads = [threading.Thread(target=work, args=(t,)) for t in range(4)]\n"
        "[thread.start() for thread in threads]\n"
        "[thread.join() for thread in threads]\n"
        "exporter.close()\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script, str(p)]) for p in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert sorted(event["event"] for event in read(path)) == sorted(
        f"{p}-{t}-{n}" for p in range(3) for t in range(4) for n in range(200)
    )


def test_a_finding_and_its_retraction_are_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    engine = create_engine("sqlite://")
    maker = sessionmaker(engine)
    with (
        instrument(maker, exporter="jsonl", jsonl_path=str(path), detectors=[Fickle()]),
        maker() as session,
    ):
        session.connection()
    engine.dispose()
    first, second = [event for event in read(path) if event["event"].startswith("finding")]
    assert (first["event"], first["level"], first["finding_id"]) == (
        "finding", "warning", "a-suspicion",
    )  # fmt: skip
    assert (second["event"], second["level"], second["finding_id"], second["explanation"]) == (
        "finding.retracted", "info", "a-suspicion", "the transaction ended after all",
    )  # fmt: skip
    assert first["session_id"] == second["session_id"]


def test_a_file_that_was_moved_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    exporter = open_exporter(Settings(jsonl_path=str(path)))
    exporter.on_log({"event": "first"})
    exporter.flush()
    path.rename(tmp_path / "log.jsonl.1")
    exporter.on_log({"event": "second"})
    exporter.close()
    assert read(tmp_path / "log.jsonl.1") == [{"event": "first"}]
    assert read(path) == [{"event": "second"}]


def test_a_relative_path_stays_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exporter = open_exporter(Settings(jsonl_path="log.jsonl"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    exporter.on_log(EVENT)
    exporter.close()
    assert read(tmp_path / "log.jsonl") == [EVENT]


def test_a_hyphen_is_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    exporter = open_exporter(Settings(jsonl_path="-"))
    exporter.on_log(EVENT)
    exporter.close()
    assert capsys.readouterr() == (line(EVENT), "")


def test_a_path_that_cannot_be_written_raises_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "log.jsonl"
    with pytest.raises(FileNotFoundError) as raised:
        open_exporter(Settings(jsonl_path=str(path)))
    assert raised.value.strerror == (
        f"The jsonl exporter cannot write to {str(path)!r}: No such file or directory. Name a file "
        "in a folder that exists and may be written (jsonl_path=..., or "
        "SESSION_TRACER_JSONL_PATH), or '-' for standard output."
    )


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="Name a file in a folder"):
        open_exporter(Settings(jsonl_path=str(tmp_path)))


def held_files() -> set[str]:
    descriptors = Path("/proc/self/fd")
    return {os.path.realpath(descriptors / number) for number in os.listdir(descriptors)}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="this system has no /proc")
def test_closing_gives_the_file_back(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    exporter = open_exporter(Settings(jsonl_path=str(path)))
    assert str(path.resolve()) in held_files()
    exporter.close()
    exporter.close()
    assert str(path.resolve()) not in held_files()


def test_what_was_dropped_is_a_line_too(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    exporter = open_exporter(Settings(jsonl_path=str(fifo)))
    larger_than_a_pipe = {"event": "flush.completed", "filler": "x" * 70_000}
    for _ in range(10_200):
        exporter.on_log(larger_than_a_pipe)
    received = bytearray()

    def read_on() -> None:
        os.set_blocking(reader, True)
        while part := os.read(reader, 1 << 20):
            received.extend(part[-200:])

    thread = threading.Thread(target=read_on)
    thread.start()
    exporter.flush()
    exporter.close()
    thread.join(30)
    os.close(reader)
    dropped = json.loads(received.splitlines()[-1])
    count, timestamp = dropped.pop("count"), dropped.pop("timestamp")
    assert dropped == {"level": "warning", "event": "session_tracer.dropped"}
    assert 100 <= count <= 200
    assert datetime.fromisoformat(timestamp).tzinfo == UTC
