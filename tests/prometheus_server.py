"""Starts a real Prometheus that scrapes one endpoint, and asks it."""

import json
import math
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.servers.lifeline import Lifeline, Server, free_port

START_SECONDS = 20.0
JOB = "bookshop"

# Another road than the rules for outgoing traffic: a proxy knows nothing of the loopback interface.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def missing_prometheus() -> str | None:
    """Why there is no Prometheus to test with, or None if there is one."""
    if shutil.which("prometheus") is None:
        return "no `prometheus` on the PATH; Debian and Ubuntu have it as the package `prometheus`"
    return None


class RefusedQuery(Exception):
    """Prometheus could not make sense of an expression; its own words are in the message."""


@dataclass(frozen=True)
class Sample:
    """One series of an answer: its labels, and its value now."""

    labels: Mapping[str, str]
    value: float

    @property
    def is_a_number(self) -> bool:
        """A quantile of nothing is NaN."""
        return not math.isnan(self.value)


@dataclass(frozen=True)
class Course:
    """One series of an answer over time: its labels, and its values with their seconds."""

    labels: Mapping[str, str]
    values: list[tuple[float, str]]


class Prometheus:
    """A Prometheus that runs."""

    def __init__(self, port: int) -> None:
        self._address = f"http://127.0.0.1:{port}"

    def is_ready(self) -> bool:
        try:
            with _OPENER.open(f"{self._address}/-/ready", timeout=5):
                return True
        except OSError:
            return False

    def query(self, expression: str) -> list[Sample]:
        """What an expression says now. RefusedQuery if it is not PromQL."""
        answer = self._get("/api/v1/query", {"query": expression})
        return [Sample(series["metric"], float(series["value"][1])) for series in answer["result"]]

    def query_range(self, expression: str, begin: float, end: float, step: float) -> list[Course]:
        """What an expression returns from one time to another. RefusedQuery if it is not PromQL."""
        asked = {"query": expression, "start": f"{begin}", "end": f"{end}", "step": f"{step}"}
        answer = self._get("/api/v1/query_range", asked)
        return [Course(series["metric"], series["values"]) for series in answer["result"]]

    def metric_names(self) -> set[str]:
        """The names of all series it has ever scraped."""
        return set(self._get("/api/v1/label/__name__/values", {}))

    def _get(self, path: str, parameters: Mapping[str, str]) -> Any:
        url = f"{self._address}{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with _OPENER.open(url, timeout=10) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise RefusedQuery(json.load(error)["error"]) from None


@contextmanager
def prometheus(
    line: Lifeline, scraped_port: int, *, job: str = JOB, every: str = "1s"
) -> Iterator[Prometheus]:
    """A Prometheus that scrapes a port of this machine, for the block."""
    port = free_port()
    folder = line.server_folder("prometheus")
    (folder / "prometheus.yml").write_text(
        json.dumps(  # which is YAML too
            {
                "global": {"scrape_interval": every, "scrape_timeout": "1s"},
                "scrape_configs": [
                    {
                        "job_name": job,
                        "static_configs": [{"targets": [f"127.0.0.1:{scraped_port}"]}],
                    }
                ],
            }
        )
    )
    server = Server(
        line,
        folder,
        [
            "prometheus",
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=data",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ],
    )
    try:
        started = Prometheus(port)
        server.wait_until(
            lambda: True if started.is_ready() else None,
            f"Prometheus on port {port}",
            START_SECONDS,
        )
        yield started
    finally:
        server.stop()
