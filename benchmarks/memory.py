"""Measures memory, the watch, `live_sessions()` and the import.

Times are CPU times: nothing here waits, and other programs on the machine must not count.
"""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple, ParamSpec, TypeVar

from sqlalchemy import insert, select

from benchmarks.benches import OnSyncEngine
from benchmarks.count import imported
from benchmarks.databases import SQLite
from benchmarks.results import Figure
from benchmarks.variants import BARE, LEVELS, Variant
from benchmarks.works import Author, Sale, change_one
from session_tracer import live_sessions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy.orm import Session, sessionmaker

P = ParamSpec("P")
T = TypeVar("T")

LIVE = 10_000
# Few enough that all are opened, which takes long while memory is traced, before the first is
# reported as idle: that takes memory of its own.
HELD = 2_000
ENDED = 50_000
UNTRACED = 20_000
LOADED = 100_000
# Sessions become idle in a transaction (5 s), long in a transaction (30 s), and leaked (60 s).
WATCHED_SECONDS, WATCHED_SECONDS_QUICK = 70.0, 8.0
IMPORTS, IMPORTS_QUICK = 31, 9

A, B = LEVELS["A"], LEVELS["B"]


def figures(*, quick: bool, ended: int | None = None) -> list[Figure]:
    """All figures, each measured in its own process."""
    return [
        live_scope(A),
        live_scope(B),
        growth(B, ended or ENDED),
        *identity_map(LOADED, repeats=3),
        *standing(WATCHED_SECONDS_QUICK if quick else WATCHED_SECONDS),
        import_time(IMPORTS_QUICK if quick else IMPORTS),
    ]


def alone(run: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    with ProcessPoolExecutor(1, mp_context=imported()) as process:
        return process.submit(run, *arguments, **named).result()


# A live scope


def live_scope(variant: Variant) -> Figure:
    traced, untraced = alone(bytes_of_live, variant), alone(bytes_of_live, BARE)
    each = (traced - untraced) / HELD
    return Figure(
        f"bytes of a live scope that has read, of {HELD:,}, level {variant.name}",
        f"{each:,.0f}",
        "under 4,096",
        each < 4096,
    )


def bytes_of_live(variant: Variant) -> int:
    """Bytes that HELD used sessions hold, wherever they are kept."""
    with OnSyncEngine(SQLite()) as bench, variant.applied(bench.factory):
        # Afterwards everything that is made once exists.
        change_one(bench.factory)
        gc.collect()
        tracemalloc.start()
        sessions = opened(bench.factory, HELD)
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        closed(sessions)
        return held


def opened(factory: sessionmaker[Session], number: int) -> list[Session]:
    sessions = [factory() for _ in range(number)]
    for session in sessions:
        session.get_one(Author, 1)
    return sessions


def closed(sessions: Sequence[Session]) -> None:
    for session in sessions:
        session.close()


# Scopes that have ended


def growth(variant: Variant, scopes: int) -> Figure:
    blocks, kibibytes = alone(grown, variant, scopes)
    untraced, _ = alone(grown, BARE, min(scopes, UNTRACED))
    return Figure(
        f"growth over {scopes:,} scopes that have ended, level {variant.name}",
        f"{blocks:,} blocks of memory (untraced: {untraced:,}), {kibibytes:,} KiB resident",
        "none",
        # The interpreter and SQLAlchemy keep some too, as the untraced figure shows.
        blocks < 1_000,
    )


def grown(variant: Variant, scopes: int) -> tuple[int, int]:
    """Blocks of memory, and KiB resident, from the first tenth of the scopes to the last."""
    with OnSyncEngine(SQLite()) as bench, variant.applied(bench.factory):
        for _ in range(scopes // 10):
            change_one(bench.factory)
        gc.collect()
        blocks, resident = sys.getallocatedblocks(), peak_kibibytes()
        for _ in range(scopes - scopes // 10):
            change_one(bench.factory)
        gc.collect()
        return sys.getallocatedblocks() - blocks, peak_kibibytes() - resident


def peak_kibibytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak


# A large identity map


class Load(NamedTuple):
    kibibytes: int
    seconds: float


def identity_map(objects: int, repeats: int) -> list[Figure]:
    loads = [(alone(load, A, objects), alone(load, BARE, objects)) for _ in range(repeats)]
    each = median(traced.kibibytes - bare.kibibytes for traced, bare in loads) * 1024 / objects
    ratio = median(traced.seconds / bare.seconds for traced, bare in loads)
    return [
        Figure(
            f"bytes more for each of {objects:,} objects in one identity map",
            f"{each:.1f}",
            "none",
            # Resident memory is counted in pages, and allocators keep some in reserve.
            each < 8,
        ),
        Figure(f"time to load these {objects:,}", f"{ratio:.2f}", "1.05", ratio < 1.055),
    ]


def load(variant: Variant, objects: int) -> Load:
    with OnSyncEngine(SQLite()) as bench, variant.applied(bench.factory):
        with bench.factory() as session:
            present = len(session.scalars(select(Sale.id)).all())
            missing = range(present, objects)
            session.execute(
                insert(Sale),
                [{"title": "more", "pieces": n % 7, "cents": n} for n in missing],
            )
            session.commit()
        gc.collect()
        gc.freeze()
        with bench.factory() as session:
            before, began = peak_kibibytes(), time.process_time()
            sales = session.scalars(select(Sale)).all()
            seconds = time.process_time() - began
            assert len(sales) == objects
            return Load(peak_kibibytes() - before, seconds)


# Ten thousand live sessions


def standing(seconds: float) -> list[Figure]:
    listing, share = alone(stand, seconds)
    return [
        Figure(
            f"live_sessions() of {LIVE:,}", f"{listing * 1e3:.0f} ms", "under 50 ms", listing < 0.05
        ),
        Figure(
            f"the watch of {LIVE:,} sessions, of a core", f"{share:.2%}", "under 1 %", share < 0.01
        ),
    ]


def stand(seconds: float) -> tuple[float, float]:
    """Seconds of one live_sessions(), and the watchdog thread's share of a core."""
    with OnSyncEngine(SQLite()) as bench, A.applied(bench.factory):
        change_one(bench.factory)  # the watchdog's thread starts with the first session
        # Measured from then on: looks at all sessions are rare and come at any time.
        (thread,) = (one for one in threading.enumerate() if one.name == "session_tracer")
        assert thread.ident is not None
        watch = time.pthread_getcpuclockid(thread.ident)
        since, used = time.perf_counter(), time.clock_gettime(watch)
        sessions = opened(bench.factory, LIVE)
        gc.collect()
        gc.freeze()
        listing: list[float] = []
        for _ in range(9):
            began = time.thread_time()
            found = live_sessions()
            listing.append(time.thread_time() - began)
            assert len(found) == LIVE
            del found
        time.sleep(seconds)
        share = (time.clock_gettime(watch) - used) / (time.perf_counter() - since)
        closed(sessions)
        return median(listing), share


# The import

IMPORT = """
import time
import sqlalchemy.ext.asyncio, sqlalchemy.orm
began = time.process_time()
from session_tracer import Settings, instrument, live_sessions
print(time.process_time() - began)
"""


def import_time(times: int) -> Figure:
    with TemporaryDirectory() as bytecode:
        # Compiled before, as an installed package is; otherwise half of the time is compiling.
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        import_once(environment)
        seconds = median(import_once(environment) for _ in range(times))
    return Figure(
        "import, beyond SQLAlchemy's own", f"{seconds * 1e3:.0f} ms", "under 60 ms", seconds < 0.06
    )


def import_once(environment: Mapping[str, str]) -> float:
    """The seconds that a fresh interpreter takes."""
    command = [sys.executable, "-c", IMPORT]
    return float(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
