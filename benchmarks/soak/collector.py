"""A real collector that can be frozen, stopped and started again on the same port."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import sysconfig
from collections import Counter
from pathlib import Path
from typing import TypeAlias

from tests.servers.lifeline import Lifeline, Server, ServerFailed, free_port

START_SECONDS = 20.0

# The attributes without the factory's name and the work, and the count of a histogram or the value
# of a counter.
Points: TypeAlias = "Counter[tuple[str, ...]]"


class FickleCollector:
    """rotel, a collector that writes the metrics that it receives to a file."""

    def __init__(self, line: Lifeline) -> None:
        self._line = line
        self._ports = free_port(), free_port()
        self._starts = 0
        self.start()

    def start(self) -> None:
        self._starts += 1
        self._folder = self._line.server_folder(f"fickle-{self._starts}")
        # Its parent is another process, so the process id that can be frozen is its own.
        shell = ("sh", "-c", 'echo $$ >pid && exec "$@"', "sh")
        self._server = Server(
            self._line,
            self._folder,
            [*shell, *_command(*self._ports)],
            environment={"LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR") or "")},
        )
        self._server.wait_until(self._listens, "the collector", START_SECONDS)

    def endpoint(self, protocol: str) -> str:
        return f"http://127.0.0.1:{self._ports[protocol != 'grpc']}"

    def freeze(self) -> None:
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        self._send(signal.SIGCONT)

    def stop(self) -> None:
        self._server.stop()

    def exports(self) -> int:
        """Number of exports of metrics that it has received since it was started."""
        return self._server.output().count("ResourceMetrics #0\n")

    def received(self) -> dict[str, Points]:
        """The points of each metric in the last export."""
        return points(self._server.output().rpartition("ResourceMetrics #0\n")[2])

    def _send(self, signal_: signal.Signals) -> None:
        os.kill(int((self._folder / "pid").read_text()), signal_)

    def _listens(self) -> bool | None:
        for port in self._ports:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) != 0:
                    return None
        return True


def _command(grpc_port: int, http_port: int) -> list[str | Path]:
    package = importlib.util.find_spec("rotel")
    if package is None or package.origin is None:
        raise ServerFailed(
            "no OpenTelemetry collector to soak with: install the dependency group `test`, "
            "which brings rotel for Python 3.11 to 3.13"
        )
    return [
        Path(package.origin).with_name("rotel-agent"),
        "start",
        f"--otlp-grpc-endpoint=127.0.0.1:{grpc_port}",
        f"--otlp-http-endpoint=127.0.0.1:{http_port}",
        "--exporter=blackhole",
        "--debug-log=metrics",
        "--debug-log-verbosity=detailed",
    ]


_METRIC = re.compile(r"^Metric #\d+\n", re.MULTILINE)
_POINT = re.compile(r"^(?:Histogram|Number)DataPoints #\d+\n", re.MULTILINE)
_NAME = re.compile(r"-> Name: (\S+)")
_ATTRIBUTE = re.compile(r"^     -> (\S+): Str\((.*)\)$", re.MULTILINE)
_NUMBER = re.compile(r"^(?:Count|Value): (-?[\d.]+)$", re.MULTILINE)
_SUM = re.compile(r"^Sum: ([\d.]+)$", re.MULTILINE)
# The attributes that distinguish factories and their work; their values are added up.
_LEFT_OUT = frozenset({"sqlalchemy.session.name", "sqlalchemy.session.work"})


def points(text: str) -> dict[str, Points]:
    """The points of each metric in an export as the collector writes it, sums as `name.sum`."""
    found: dict[str, Points] = {}
    for metric in _METRIC.split(text)[1:]:
        described, *of_metric = _POINT.split(metric)
        name = _match(_NAME, described)
        for point in of_metric:
            head = point.partition("Exemplars:")[0]
            key = tuple(
                value for label, value in sorted(_ATTRIBUTE.findall(head)) if label not in _LEFT_OUT
            )
            _add(found, name, key, _match(_NUMBER, head))
            if total := _SUM.search(head):
                _add(found, f"{name}.sum", key, total[1])
    return found


def _match(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    if found is None:
        raise ServerFailed(f"the collector wrote what cannot be read: {text[:400]}")
    return str(found[1])


def _add(found: dict[str, Points], name: str, key: tuple[str, ...], number: str) -> None:
    # Counts are whole numbers; only sums of durations and ages are not.
    found.setdefault(name, Counter())[key] += round(float(number))
