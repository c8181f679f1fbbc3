"""Patches threads with gevent or eventlet at some moment, and works with sessions; a script."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from typing import Any

LIBRARY, ORDER, EXPORTER, LOG = sys.argv[1:]


def patch() -> None:
    if LIBRARY == "eventlet":
        warnings.simplefilter("ignore", DeprecationWarning)
        import eventlet

        eventlet.monkey_patch()
    else:
        from gevent import monkey

        monkey.patch_all()


if ORDER == "patched before the import":
    patch()

from sqlalchemy import create_engine, text  # noqa: E402 - the order is what is tried
from sqlalchemy.orm import sessionmaker  # noqa: E402
from sqlalchemy.pool import NullPool  # noqa: E402

from session_tracer import instrument  # noqa: E402
from session_tracer.runtime import threads  # noqa: E402

if ORDER == "patched before instrument()":
    patch()

SessionLocal = sessionmaker(create_engine("sqlite://", poolclass=NullPool))
tracing = instrument(
    SessionLocal,
    exporter=EXPORTER,
    jsonl_path=LOG,
    idle_in_transaction_seconds=0.05,
    log_level="debug",  # each session is logged
)


def work() -> None:
    """Four sessions at a time, each of which waits with its transaction open."""

    def one() -> None:
        with SessionLocal() as session:
            session.execute(text("SELECT 1"))
            time.sleep(0.3)

    workers: list[Any] = [threading.Thread(target=one) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


work()
if ORDER in ("patched later", "patched later, then forked"):
    patch()
    work()
if ORDER == "patched later, then forked":
    child = os.fork()
    if child == 0:
        work()
        tracing.flush()
        os._exit(0)
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        time.sleep(0.05)
assert threads.is_patched()
tracing.uninstrument()
work()
print("done", flush=True)
