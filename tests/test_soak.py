"""Tests a short form of the soak, and that it would notice what it is there to notice.

SESSION_TRACER_TEST_SOAK_MINUTES is how long the load lasts, by default six seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.soak.account import Account
from benchmarks.soak.checks import Check, Received, counters, steadiness
from benchmarks.soak.collector import points
from benchmarks.soak.latency import Latency, Window, surely_above
from benchmarks.soak.pulse import Pulse
from benchmarks.soak.report import verdict

ROOT = Path(__file__).parents[1]
MINUTES = os.environ.get("SESSION_TRACER_TEST_SOAK_MINUTES", "0.1")


@pytest.mark.timeout(300)  # gRPC may take its time to try a collector again
def test_a_short_soak_adds_up() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", f"--minutes={MINUTES}", "--control-minutes=0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "The collector was frozen 2 times and stopped 2 times.\nAll 32 hold.\n" in done.stdout


EXPORT = """\
ScopeMetrics #0
Metric #0
Descriptor:
     -> Name: sqlalchemy.session.duration
     -> DataType: Histogram
HistogramDataPoints #0
Data point attributes:
     -> sqlalchemy.session.name: Str(threads)
     -> sqlalchemy.session.outcome: Str(closed)
Count: 3
Sum: 0.75
Buckets #0, Count: 2
HistogramDataPoints #1
Data point attributes:
     -> sqlalchemy.session.name: Str(tasks)
     -> sqlalchemy.session.outcome: Str(closed)
Count: 2
Sum: 2.5
Exemplars:
Exemplar #0
     -> Trace ID: 7f6c026737a936f57e03821205f9fed1
     -> Value: 0.25
Metric #1
Descriptor:
     -> Name: sqlalchemy.session.objects
NumberDataPoints #0
Data point attributes:
     -> sqlalchemy.session.name: Str(threads)
     -> sqlalchemy.object.state: Str(new)
     -> sqlalchemy.entity: Str(Author)
Value: 7
"""


def test_the_points_of_an_export_are_added_up_over_the_factories() -> None:
    assert points(EXPORT) == {
        "sqlalchemy.session.duration": Counter({("closed",): 5}),
        "sqlalchemy.session.duration.sum": Counter({("closed",): 3}),
        "sqlalchemy.session.objects": Counter({("Author", "new"): 7}),
    }


def account(closed: int, new: int) -> Account:
    account = Account()
    account.add("opened", "", closed)
    account.add("sessions", "closed", closed)
    account.add("new", "Author", new)
    return account


def off(checks: list[Check]) -> list[str]:
    return [check.what for check in checks if not check.holds]


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        (account(closed=5, new=7), []),
        (account(closed=6, new=7), ["sessions, by outcome", "sessions, of those opened"]),
        (account(closed=5, new=8), ["objects new"]),
    ],
)
def test_a_session_or_an_object_too_few_is_off(kept: Account, told: list[str]) -> None:
    assert off(list(counters(kept, Received(points(EXPORT))))) == told


def test_a_failure_of_ours_is_off() -> None:
    received = Received({**points(EXPORT), "session_tracer.errors": Counter({("spans",): 1})})
    assert off(list(counters(account(closed=5, new=7), received))) == ["session_tracer.errors"]


def pulse(minute: int, **changed: float) -> Pulse:
    figures = {"works": minute, "rss_mib": 90.0, "threads": 23, "native": 30, "objects": 500}
    return Pulse(minutes=float(minute), live=3, **{**figures, **changed})  # type: ignore[arg-type]


def latency(frozen: float = 0.02) -> Latency:
    latency = Latency()
    for p50 in [0.02, 0.03, 0.02, 0.02] * 5:  # the machine has other work now and then
        latency.windows += [
            Window("well", 100, p50, 10 * p50),
            Window("frozen", 100, frozen * p50 / 0.02, 10 * p50),
            Window("stopped", 100, p50, 10 * p50),
        ]
    return latency


def test_a_steady_run_is_good() -> None:
    pulses = [pulse(minute, rss_mib=90 + minute % 2) for minute in range(20)]
    assert off(list(steadiness(pulses, latency()))) == []


@pytest.mark.parametrize(
    ("figure", "per_minute", "told"),
    [
        ("rss_mib", 0.6, "MiB a minute"),
        ("objects", 60, "objects of session_tracer a minute"),
        ("threads", 1, "threads"),
        ("native", 1, "native threads"),
    ],
)
def test_growth_is_off(figure: str, per_minute: float, told: str) -> None:
    pulses = [pulse(minute, **{figure: 100 + per_minute * minute}) for minute in range(20)]
    assert off(list(steadiness(pulses, latency()))) == [told]


def test_growth_while_it_warms_up_is_none() -> None:
    pulses = [pulse(minute, rss_mib=min(95, 90 + minute)) for minute in range(20)]
    assert off(list(steadiness(pulses, latency()))) == []


def test_a_median_is_surely_above_the_sixth_of_twenty() -> None:
    assert surely_above([float(number) for number in range(20)]) == 5.0
    assert surely_above([9.0, 8.0, 7.0, 6.0]) == 0.0


def test_a_slower_application_while_the_collector_is_frozen_is_off() -> None:
    pulses = [pulse(minute) for minute in range(20)]
    slower = list(steadiness(pulses, latency(frozen=0.024)))
    told = "p50 while frozen / while well, 1.20, surely above"
    assert off(slower) == [told]
    assert f"OFF {told}: 1.2, at most 1.15\n" in verdict(slower, latency(), [])
    assert "1 of 8 checks are off." in verdict(slower, latency(), [])
