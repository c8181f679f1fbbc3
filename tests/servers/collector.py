"""Starts a real OpenTelemetry collector that writes down all it receives."""

import importlib.util
import socket
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.servers.lifeline import Lifeline, Server, ServerFailed, free_port

START_SECONDS = 20.0
# Another process may take a free port before the collector does.
TRIES = 3


class Collector:
    """A collector that takes traces, metrics and logs by OTLP and keeps them as text."""

    def __init__(self, server: Server, grpc_port: int, http_port: int) -> None:
        self._server = server
        # What OTEL_EXPORTER_OTLP_ENDPOINT has to be for either protocol.
        self.grpc_endpoint = f"http://127.0.0.1:{grpc_port}"
        self.http_endpoint = f"http://127.0.0.1:{http_port}"

    def output(self) -> str:
        """All that was received so far, in the collector's words, since it began."""
        return self._server.output()

    def wait_for(self, text: str, timeout: float = 10.0) -> str:
        """The output, once it contains the text; ServerFailed if it does not in this time."""

        def found() -> str | None:
            output = self.output()
            return output if text in output else None

        return self._server.wait_until(found, f"the collector to receive {text!r}", timeout)


@contextmanager
def collector(line: Lifeline, name: str, verbosity: str = "detailed") -> Iterator[Collector]:
    """A collector of one's own for the length of the block; `basic`, it only counts."""
    for attempt in range(1, TRIES + 1):
        ports = free_port(), free_port()
        server = Server(
            line,
            line.server_folder(f"collector-{name}-{attempt}"),
            _command(*ports, verbosity),
            # The program is linked with Python's library, which the loader may not find by itself.
            environment={"LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR") or "")},
        )
        try:
            server.wait_until(
                partial(_all_listen, ports),
                f"the collector on ports {ports[0]} and {ports[1]}",
                START_SECONDS,
            )
        except ServerFailed:
            server.stop()
            if attempt == TRIES:
                raise
            continue
        try:
            yield Collector(server, *ports)
        finally:
            server.stop()
        return


def _command(grpc_port: int, http_port: int, verbosity: str) -> list[str | Path]:
    package = importlib.util.find_spec("rotel")
    if package is None or package.origin is None:
        raise ServerFailed(
            "no OpenTelemetry collector to test with: install the dependency group `test`, "
            "which brings rotel for Python 3.11 to 3.13"
        )
    return [
        Path(package.origin).with_name("rotel-agent"),
        "start",
        f"--otlp-grpc-endpoint=127.0.0.1:{grpc_port}",
        f"--otlp-http-endpoint=127.0.0.1:{http_port}",
        "--exporter=blackhole",
        *("--debug-log=traces", "--debug-log=metrics", "--debug-log=logs"),
        f"--debug-log-verbosity={verbosity}",
    ]


def _all_listen(ports: tuple[int, ...]) -> bool | None:
    return all(map(_listens, ports)) or None


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
