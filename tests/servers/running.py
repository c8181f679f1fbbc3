"""Runs an application's server for the length of a block."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

# How long a server may take to start, to answer or to end.
SECONDS = 60.0


@contextmanager
def running(
    command: Sequence[str], *, folder: Path, environment: Mapping[str, str], output: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A server, asked to end after the block; it has to end by itself."""
    with output.open("wb") as stream:
        server = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield server
        server.send_signal(signal.SIGTERM)
        server.wait(SECONDS)
    except BaseException:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        raise
    finally:
        print(output.read_text())
