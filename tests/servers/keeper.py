"""Keeps one command running for as long as another process holds a lock; a script, run on its own.

It is the command's parent, in a session of its own: whether the holder of the lock ends well, is
interrupted or is killed, its lock falls, the command is stopped and its folder removed.
"""

import argparse
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

POLL_SECONDS = 0.1
STOP_SECONDS = 10.0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lock", type=Path, required=True, help="runs while this is locked")
    parser.add_argument("--folder", type=Path, required=True, help="removed after the command")
    parser.add_argument("--output", type=Path, required=True, help="the output of the command")
    parser.add_argument("--stop-signal", type=int, default=signal.SIGTERM)
    parser.add_argument("--uid", type=int)
    parser.add_argument("--gid", type=int)
    parser.add_argument("command", nargs="+")
    return parser.parse_args()


def _is_held(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _stop(command: subprocess.Popen[bytes], stop_signal: int) -> None:
    if command.poll() is not None:
        return
    command.send_signal(stop_signal)
    try:
        command.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        command.kill()
        command.wait()


def _remove_if_last(servers: Path, lock: int) -> None:
    """A killed run removes nothing itself: the last of its servers does."""
    if not _is_held(lock) and not any(servers.glob("*")):
        shutil.rmtree(servers.parent, ignore_errors=True)


def _asked_to_stop(signal_number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + signal_number)


def main() -> int:
    """Runs the command; its exit code, where it ends by itself."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, _asked_to_stop)
    lock = os.open(arguments.lock, os.O_RDONLY)
    try:
        with arguments.output.open("ab") as output:
            command = subprocess.Popen(
                arguments.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=arguments.folder,
                user=arguments.uid,
                group=arguments.gid,
                extra_groups=None if arguments.uid is None else [],
            )
        try:
            while command.poll() is None and _is_held(lock):
                time.sleep(POLL_SECONDS)
            return command.returncode or 0
        finally:
            _stop(command, arguments.stop_signal)
    finally:
        shutil.rmtree(arguments.folder, ignore_errors=True)
        _remove_if_last(arguments.folder.parent, lock)


if __name__ == "__main__":
    sys.exit(main())
