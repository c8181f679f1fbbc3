"""Stories of findings that still hold later, and of the sessions that are suspects meanwhile."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from session_tracer import DEFAULT_DETECTORS, Exporter, Lasting, Settings
from session_tracer.facts import TimePassed
from session_tracer.hooks.targets import resolve
from session_tracer.instrumentor import Instrumentor
from session_tracer.ledger import watchdog
from session_tracer.ledger.watchdog import Watch
from tests.library import Author
from tests.signals.telling import Measurements

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from session_tracer.ledger.report import Report, Verdict
    from tests.twins import Twin

MINUTE = 60.0
HOUR = 60 * MINUTE
# A little more than a moment.
BIT = 0.001


class Watching:
    """A watch whose clock is set by the story, and what is logged and measured meanwhile."""

    def __init__(self) -> None:
        self._ahead = 0
        self.watch = Watch(self.clock)
        self.logged: list[dict[str, Any]] = []
        self.measured = Measurements()

    def clock(self) -> int:
        return time.perf_counter_ns() + self._ahead

    def after(self, *seconds: float) -> None:
        """Look after each of these times, one after the other."""
        for one in seconds:
            self._ahead += int(one * 1e9)
            time.sleep(0.005)  # the log's own clock does not move with the story's
            self.watch.look()

    def events(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.logged if event["event"] == name]

    def lasting(self) -> list[tuple[str, int]]:
        """Which findings were logged as lasting, and after how many seconds."""
        found = self.events("finding.lasting")
        return [(one["finding_id"], round(one["lasting_ms"] / 1e3)) for one in found]

    def suspects(self) -> dict[str, int]:
        """The number of suspects by finding id, without zeros."""
        every = self.measured.totals("sqlalchemy.session.suspects")
        return {labels[1]: number for labels, number in every.items() if number}


@contextmanager
def watching(twin: Twin, *detectors: Any, **overrides: Any) -> Iterator[Watching]:
    seen = Watching()
    exporter = Exporter(on_log=seen.logged.append, meter_provider=seen.measured.provider)
    instrumentor = Instrumentor(seen.clock)
    instrumentation = instrumentor.add(
        resolve(twin.factory),
        "library",
        exporter,
        Settings().override(overrides),
        detectors or DEFAULT_DETECTORS,
        capture=True,
    )
    watchdog.stop()  # the story looks by itself
    try:
        yield seen
    finally:
        instrumentor.remove(instrumentation)


def test_a_leak_is_logged_again_while_it_holds(twin: Twin) -> None:
    async def story() -> None:
        with watching(twin, idle_in_transaction_seconds=9999, repeat_finding_seconds=0.001) as seen:
            async with twin.session() as session:
                await session.scalars(select(Author))
                seen.after(MINUTE + 1)
                assert seen.lasting() == []
                seen.after(MINUTE - 1, 2, 5 * MINUTE, 4 * MINUTE, HOUR - 10 * MINUTE, HOUR, HOUR)
            assert seen.lasting() == [
                ("leaked-session", 61),
                ("leaked-session", 10 * 60 + 1),
                ("leaked-session", 3601),
                ("leaked-session", 7201),
                ("leaked-session", 10801),
            ]
            (finding,) = seen.events("finding")
            first = seen.events("finding.lasting")[0]
            assert first["explanation"].startswith(
                f"session {finding['session_id'][:6]} (library) has done nothing for 2 min 2 s"
            )
            assert (first["level"], first["site"]) == (finding["level"], finding["site"])
            assert first["remedy"] == finding["remedy"]
            assert first["age_ms"] > 2 * MINUTE * 1e3
            (retracted,) = seen.events("finding.retracted")
            assert retracted["age_ms"] > 3 * HOUR * 1e3
            assert seen.logged.index(retracted) > seen.logged.index(first)

    twin.run(story)


def test_an_idle_and_a_long_transaction_are_logged_again_while_they_last(twin: Twin) -> None:
    async def story() -> None:
        with watching(twin, leak_after_seconds=99999) as seen:
            async with twin.session() as idle:
                await idle.scalars(select(Author))
                seen.after(6, MINUTE + BIT)
            seen.after(HOUR)
            assert seen.lasting() == [("idle-in-transaction", 60)]
            async with twin.session() as long:
                long.sync_session.begin()
                seen.after(31, MINUTE + BIT)
            assert seen.lasting() == [("idle-in-transaction", 60), ("long-transaction", 60)]
            retracted = seen.events("finding.retracted")
            assert [one["finding_id"] for one in retracted] == [
                "idle-in-transaction",
                "long-transaction",
            ]
            assert [one["transaction_ms"] > MINUTE * 1e3 for one in retracted] == [True, True]

    twin.run(story)


def test_what_holds_no_longer_is_not_logged_though_it_is_not_over(twin: Twin) -> None:
    async def story() -> None:
        with watching(twin, leak_after_seconds=99999) as seen:
            async with twin.session() as session:
                await session.scalars(select(Author))
                seen.after(6, MINUTE - 3)
                await session.scalars(select(Author))  # no longer idle, as the minute passes
                seen.after(4)
                assert seen.lasting() == []
                assert seen.suspects() == {"idle-in-transaction": 1}
            assert seen.suspects() == {}

    twin.run(story)


def test_a_transaction_that_ends_in_time_is_never_logged_again(twin: Twin) -> None:
    async def story() -> None:
        with watching(twin) as seen:
            async with twin.session() as session:
                await session.scalars(select(Author))
                seen.after(6)
                await session.commit()
                seen.after(MINUTE - 10, 5)
            assert [one["finding_id"] for one in seen.events("finding")] == ["idle-in-transaction"]
            assert seen.lasting() == []

    twin.run(story)


def test_sessions_are_suspects_by_their_latest_finding_until_it_is_retracted(twin: Twin) -> None:
    async def story() -> None:
        with watching(twin) as seen:
            assert seen.measured.totals("sqlalchemy.session.suspects") == {
                ("library", "leaked-session"): 0,
                ("library", "long-transaction"): 0,
                ("library", "idle-in-transaction"): 0,
            }
            first, second = twin.session(), twin.session()
            await first.scalars(select(Author))
            await second.scalars(select(Author))
            seen.after(6)
            assert seen.suspects() == {"idle-in-transaction": 2}
            await second.commit()
            assert seen.suspects() == {"idle-in-transaction": 1}
            seen.after(MINUTE)  # one suspicion has led to the next
            assert seen.suspects() == {"leaked-session": 2}
            await first.close()
            assert seen.suspects() == {"leaked-session": 1}
            await second.close()
            assert seen.suspects() == {}

    twin.run(story)


def test_an_ignored_finding_makes_no_suspect(twin: Twin) -> None:
    async def story() -> None:
        ignored = ("leaked-session", "idle-in-transaction", "long-transaction")
        with watching(twin, ignore=ignored) as seen:
            async with twin.session() as session:
                await session.scalars(select(Author))
                seen.after(6, MINUTE, HOUR)
                assert (seen.suspects(), seen.lasting()) == ({}, [])

    twin.run(story)


def test_many_that_last_at_one_line_are_one_line_of_the_log(twin: Twin) -> None:
    async def story() -> None:
        with watching(twin, leak_after_seconds=99999) as seen:
            sessions = [twin.session() for _ in range(10)]
            for session in sessions:
                await session.scalars(select(Author))
            seen.after(6, MINUTE + BIT)
            assert seen.lasting() == [("idle-in-transaction", 60)]
            for session in sessions:
                await session.close()
        # The number held back is logged in the end.
        (held,) = (
            one for one in seen.events("suppressed") if one["suppressed_event"] == "finding.lasting"
        )
        assert held["suppressed"] == 9
        retracted = Counter(one["finding_id"] for one in seen.events("finding.retracted"))
        assert retracted == {"idle-in-transaction": 10}

    twin.run(story)


class TooOld:
    """`too-old`: a session is older than a minute; the application's own detector."""

    facts = (TimePassed,)

    def memory(self) -> list[Any]:
        return []

    def judge(self, fact: TimePassed, report: Report, memory: list[Any]) -> Iterable[Verdict]:
        if not memory:
            memory.append(report.finding("too-old", "info", "it is old", "close it", None))
            yield memory[0]
        elif report.is_due(memory[0], fact.at):
            yield Lasting(finding=memory[0], message="it is still old")


def test_a_detector_of_the_application_says_that_its_finding_still_holds(twin: Twin) -> None:
    async def story() -> None:
        with watching(twin, TooOld()) as seen:
            async with twin.session() as session:
                await session.scalars(select(Author))
                seen.after(MINUTE + 1)
                assert seen.suspects() == {"too-old": 1}
                seen.after(MINUTE + 1, 1)
            (lasting,) = seen.events("finding.lasting")
            assert (lasting["explanation"], lasting["level"]) == ("it is still old", "info")
            assert seen.suspects() == {}

    twin.run(story)
