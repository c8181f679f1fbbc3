"""Plays a short day in the bookshop, or keeps it busy, with its sessions traced."""

import argparse
import asyncio
import random
import sys

from examples.bookshop.db import AsyncSessionLocal, SessionLocal, async_engine, engine
from examples.bookshop.load import keep_busy
from examples.bookshop.models import Model
from examples.bookshop.scenes import SCENES, Day, Scene, open_shop
from examples.bookshop.views import respond
from session_tracer import Instrumentation, instrument


def main() -> int:
    options = _options()
    tracers = (
        instrument(SessionLocal, name="bookshop", exporter=options.exporter),
        instrument(AsyncSessionLocal, name="bookshop-async", exporter=options.exporter),
    )
    Model.metadata.create_all(engine)
    with asyncio.Runner() as loop:
        day = Day(random.Random(options.seed), options.orders, loop)
        try:
            if options.load is None:
                for number, scene in enumerate(SCENES, start=1):
                    _play(number, scene, day, tracers)
            else:
                open_shop(day)
                _say(keep_busy(options.load, loop, options.seed))
        finally:
            for tracer in tracers:
                tracer.flush()
                tracer.uninstrument()
            loop.run(async_engine.dispose())
            engine.dispose()
    return 0


def _play(number: int, scene: Scene, day: Day, tracers: tuple[Instrumentation, ...]) -> None:
    _say(f"\n{number:2} {scene.title}")
    answer = respond(lambda: scene.play(day))
    for tracer in tracers:
        tracer.flush()  # an exporter writes when it can: the story is to come before the answer
    _say(f"   → {answer}")


def _say(line: str) -> None:
    # Standard output may belong to the exporter: jsonl writes its objects there.
    # One write, or the exporter's thread could write before the end of the line.
    sys.stderr.write(f"{line}\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.bookshop", description=__doc__)
    parser.add_argument(
        "--exporter",
        choices=("console", "jsonl", "otlp", "prometheus"),
        default="console",
        help="where the sessions are shown or sent (default: %(default)s)",
    )
    parser.add_argument(
        "--orders", type=int, default=1, metavar="N", help="orders in the order scene (default: 1)"
    )
    parser.add_argument(
        "--load", type=float, metavar="SECONDS", help="keep the shop busy instead of the scenes"
    )
    parser.add_argument(
        "--seed", type=int, default=1813, help="for stock, baskets and load (default: %(default)s)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
