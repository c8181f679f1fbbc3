"""Tests `sqlalchemy.connection.holders`: who holds connections now, by line."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics.export import NumberDataPoint
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker

from session_tracer import CallSite, Exporter, instrument
from session_tracer.signals.holders import HolderLines
from tests.signals.telling import Measurements
from tests.stories.lines import marked

if TYPE_CHECKING:
    from pathlib import Path

    from tests.twins import Twin

ONE = text("SELECT 1")
MOST = 20
Held = dict[tuple[str, int, str], int]


def read(measured: Measurements) -> Held:
    """The number of connections by file, line and function."""
    metric = measured.collect().get("sqlalchemy.connection.holders")
    found: Held = {}
    for point in [] if metric is None else metric.data.data_points:
        assert isinstance(point, NumberDataPoint)
        attributes: dict[str, Any] = dict(point.attributes or {})
        keys = ("code.file.path", "code.line.number", "code.function.name")
        line = tuple(attributes.pop(key) for key in keys)
        assert list(attributes) == ["sqlalchemy.session.name"]
        assert line not in found
        found[line] = int(point.value)
    return found


def at(site: CallSite) -> tuple[str, int, str]:
    return site.path, site.line, site.function


async def export(session: Any) -> None:
    await session.execute(ONE)  # <- exports


async def pay(session: Any) -> None:
    await session.execute(ONE)  # <- pays


def test_connections_that_sessions_hold_are_counted_by_the_line_of_first_use(twin: Twin) -> None:
    measured = Measurements()
    exports, pays = at(marked(export, "<- exports")), at(marked(pay, "<- pays"))

    async def story() -> None:
        exporter = Exporter(meter_provider=measured.provider)
        with instrument(twin.factory, exporter=exporter, connection_sites=True):
            async with twin.session() as one, twin.session() as two, twin.session() as three:
                assert read(measured) == {}
                await export(one)
                await export(two)
                await pay(three)
                await pay(one)  # it was first used at the other line
                assert read(measured) == {exports: 2, pays: 1}
                await two.commit()  # which gives the connection back
                assert read(measured) == {exports: 1, pays: 1}
            # Not gone: a backend may show the last value of a series that has ended.
            assert read(measured) == {exports: 0, pays: 0}

    twin.run(story)


def test_no_metric_has_lines_unless_asked(twin: Twin) -> None:
    measured = Measurements()

    async def story() -> None:
        with instrument(twin.factory, exporter=Exporter(meter_provider=measured.provider)):
            async with twin.session() as session:
                await export(session)
                keys = {
                    key
                    for metric in measured.collect().values()
                    for point in metric.data.data_points
                    for key in point.attributes or {}
                }
                assert not [key for key in keys if key.startswith("code.")]

    twin.run(story)


def test_sessions_bound_to_one_connection_are_not_counted_twice(tmp_path: Path) -> None:
    measured = Measurements()
    engine = create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    factory = sessionmaker(engine)
    exporter = Exporter(meter_provider=measured.provider)
    with instrument(factory, exporter=exporter, connection_sites=True):
        with factory() as outer:
            outer.execute(ONE)
            with factory(bind=outer.connection()) as inner:
                inner.execute(ONE)
                assert sum(read(measured).values()) == 1
        assert sum(read(measured).values()) == 0
    engine.dispose()


def test_sessions_of_one_name_are_counted_together(tmp_path: Path) -> None:
    measured = Measurements()
    engine = create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    exporter = Exporter(meter_provider=measured.provider)
    one, another = sessionmaker(engine), sessionmaker(engine)
    with (
        instrument(one, exporter=exporter, connection_sites=True),
        instrument(another, exporter=exporter, connection_sites=True),
    ):
        sessions = [one(), another()]
        for session in sessions:
            session.execute(ONE)
        assert list(read(measured).values()) == [2]
        for session in sessions:
            session.close()
    engine.dispose()


def site(number: int) -> CallSite:
    return CallSite("shop.py", number, "work")


def reported(lines: HolderLines, held: dict[CallSite | None, int]) -> dict[str | int, int]:
    """What is reported of lines, by their number; of the rest by its name."""
    found: dict[str | int, int] = {}
    for number, attributes in lines.observe(Counter(held)):
        path, line = attributes["code.file.path"], attributes["code.line.number"]
        found[line if path == "shop.py" else path] = number
    return found


def test_the_lines_that_hold_most_are_not_in_the_rest() -> None:
    lines = HolderLines()
    held: dict[CallSite | None, int] = {site(number): 1 for number in range(1, 31)}
    held[site(99)] = 5
    first = reported(lines, held)
    assert len(first) == MOST + 1
    assert (first[99], first["_other"]) == (5, 11)
    assert sum(first.values()) == 35


def test_a_line_makes_room_once_it_was_reported_to_hold_nothing() -> None:
    lines = HolderLines()
    held: dict[CallSite | None, int] = {site(number): 1 for number in range(MOST)}
    every: dict[str | int, int] = dict.fromkeys(range(MOST), 1)
    assert reported(lines, held) == every
    del held[site(3)]
    held[site(50)] = 2
    assert reported(lines, held) == {**every, 3: 0, "_other": 2}
    after = reported(lines, held)
    assert (after[50], after["_other"], 3 in after) == (2, 0, False)
    assert len(after) == MOST + 1


def test_a_session_without_a_line_is_in_the_rest() -> None:
    assert reported(HolderLines(), {None: 2}) == {"_other": 2}


def test_no_more_lines_are_kept_than_are_reported() -> None:
    lines = HolderLines()
    for number in range(1_000):
        assert len(reported(lines, {site(number): 1})) <= MOST + 1
