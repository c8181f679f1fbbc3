"""Ties the servers of a test run to the life of the process that began it."""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

POLL_SECONDS = 0.02
STOP_SECONDS = 15.0

_KEEPER = Path(__file__).with_name("keeper.py")
_T = TypeVar("_T")


class ServerFailed(Exception):
    """A server did not start or did not answer; its own last words are in the message."""


@dataclass(frozen=True)
class Lifeline:
    """A folder whose servers run while the process that made it lives."""

    folder: Path

    @property
    def lock(self) -> Path:
        """Locked for as long as the servers may run."""
        return self.folder / "alive"

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """One process of the run at a time."""
        with (self.folder / f"{what}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def server_folder(self, name: str) -> Path:
        """A new folder for one server; it goes when the server stops."""
        folder = self.folder / "servers" / name
        folder.mkdir()
        return folder

    def wait_until_all_stopped(self) -> None:
        """Returns when the last server has removed its folder, or after 15 seconds."""
        deadline = time.monotonic() + STOP_SECONDS
        # The last server may take the whole folder with it; glob() finds nothing in what is gone.
        while any(self.folder.glob("servers/*")) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)


@contextmanager
def lifeline() -> Iterator[Lifeline]:
    """A new lifeline; leaving it stops its servers and waits for them."""
    line = Lifeline(Path(tempfile.mkdtemp(prefix="session-tracer-")))
    # PostgreSQL refuses to run as root; the account that it uses needs access.
    line.folder.chmod(0o711)
    (line.folder / "servers").mkdir(mode=0o711)
    try:
        # Nothing that is executed inherits the descriptor, so the lock falls with this process.
        with line.lock.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield line
        line.wait_until_all_stopped()
    finally:
        shutil.rmtree(line.folder, ignore_errors=True)


@dataclass(frozen=True)
class Account:
    """The user and group that a server runs as."""

    uid: int
    gid: int


class Server:
    """One command that runs in a folder of a lifeline, and its output."""

    def __init__(
        self,
        line: Lifeline,
        folder: Path,
        command: Sequence[str | Path],
        *,
        account: Account | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        environment: dict[str, str] | None = None,
    ) -> None:
        # Beside the server's folder: the last words of a server that fails outlive the folder.
        self._output = line.folder / f"{folder.name}.output"
        owner = [] if account is None else [f"--uid={account.uid}", f"--gid={account.gid}"]
        self._keeper = subprocess.Popen(
            [
                *(sys.executable, "-I", _KEEPER),
                *(f"--lock={line.lock}", f"--folder={folder}", f"--output={self._output}"),
                *(f"--stop-signal={stop_signal.value}", *owner, "--", *command),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # An interrupt from the keyboard is for the tests, not for the servers they still use.
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )

    def output(self) -> str:
        """The output of the server so far."""
        try:
            return self._output.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def wait_until(self, ready: Callable[[], _T | None], what: str, seconds: float) -> _T:
        """What `ready` returns once it is not None.

        Raises ServerFailed, with the server's last words, if the server ends or time runs out.
        """
        deadline = time.monotonic() + seconds
        while True:
            ended = self._keeper.poll() is not None
            if not ended and (found := ready()) is not None:
                return found
            if ended or time.monotonic() > deadline:
                why = "the server ended" if ended else f"not within {seconds:g} s"
                last_words = self.output()[-4000:] or "(nothing)"
                raise ServerFailed(f"{what}: {why}. Its last output:\n{last_words}")
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """Stops the server, waits until it has ended, and removes its folder."""
        self._keeper.terminate()
        self._keeper.wait()

    def let_go(self) -> None:
        """Leaves the server to its lifeline, which may outlive this process."""
        # Popen warns about a child that still runs when it is forgotten; this one is meant to.
        self._keeper.returncode = 0


def free_port() -> int:
    """A TCP port of the loopback interface on which no process listens now."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
