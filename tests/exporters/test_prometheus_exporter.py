"""Tests of what Prometheus scrapes."""

import logging
import os
import re
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from urllib.error import URLError

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest

from session_tracer.exporter import Exporter
from session_tracer.exporters import prometheus
from session_tracer.exporters.prometheus import open_exporter, prometheus_exporter
from session_tracer.settings import Settings
from session_tracer.signals import names


@pytest.fixture
def served(caplog: pytest.LogCaptureFixture) -> Iterator[tuple[Exporter, str]]:
    """The exporter on a free port, and the address it says."""
    with caplog.at_level(logging.INFO, logger="session_tracer"):
        exporter = open_exporter(Settings(prometheus_port=0))
    found = re.search(r"http://127\.0\.0\.1:\d+/metrics", caplog.text)
    assert found is not None
    yield exporter, found[0]
    exporter.close()


def scrape(address: str) -> list[str]:
    with urllib.request.urlopen(address, timeout=10) as response:
        return str(response.read().decode()).splitlines()


def measure(exporter: Exporter) -> None:
    """One value for each kind of instrument, under their real names."""
    meter = exporter.meter_provider.get_meter(names.SCOPE)
    attributes = {names.SESSION_NAME: "orders-db"}
    duration = names.SESSION_DURATION
    meter.create_histogram(
        duration.name,
        duration.unit,
        duration.description,
        explicit_bucket_boundaries_advisory=duration.boundaries,
    ).record(0.003, {**attributes, names.SESSION_OUTCOME: "committed"})
    findings, opened = names.FINDINGS, names.SESSIONS_OPEN
    meter.create_counter(findings.name, findings.unit, findings.description).add(3, attributes)
    meter.create_up_down_counter(opened.name, opened.unit, opened.description).add(2, attributes)


def sample(lines: list[str], name: str) -> str:
    """The value of the one sample that is called that."""
    (found,) = [line for line in lines if re.match(rf"{re.escape(name)}[{{ ]", line)]
    assert 'sqlalchemy_session_name="orders-db"' in found
    return found.rpartition(" ")[2]


def test_the_metrics_are_scraped_by_their_prometheus_names(served: tuple[Exporter, str]) -> None:
    exporter, address = served
    measure(exporter)
    lines = scrape(address)
    assert sample(lines, "sqlalchemy_session_duration_seconds_count") == "1.0"
    assert sample(lines, "sqlalchemy_session_duration_seconds_sum") == "0.003"
    assert sample(lines, "sqlalchemy_findings_total") == "3.0"
    assert sample(lines, "sqlalchemy_session_open") == "2.0"
    buckets = [line for line in lines if "duration_seconds_bucket{" in line]
    assert len(buckets) == len(names.SESSION_DURATION.boundaries) + 1


def test_the_endpoint_holds_our_metrics_alone(served: tuple[Exporter, str]) -> None:
    exporter, address = served
    measure(exporter)
    families = {line.split()[2] for line in scrape(address) if line.startswith("# TYPE")}
    assert families == {
        "target_info",
        "sqlalchemy_session_duration_seconds",
        "sqlalchemy_findings_total",
        "sqlalchemy_session_open",
    }


FORKED = """
import os, urllib.request
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from session_tracer import instrument

maker = sessionmaker(create_engine("sqlite://"))
instrument(maker, name="shop", exporter="prometheus", prometheus_port=PORT)
child = os.fork()
if child == 0:
    with maker() as session:
        session.begin()
    os._exit(0)
os.waitpid(child, 0)
"""


def forked(port: str) -> list[str]:
    """What is logged where a process instruments, forks, and its child opens a session."""
    done = subprocess.run(
        # From Python 3.12 on, Python warns of a fork where threads run.
        [sys.executable, "-Wignore:This process:DeprecationWarning",
         "-c", "import logging; logging.basicConfig(level='INFO')\n"
         + FORKED.replace("PORT", port)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stderr.splitlines()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_listens_for_itself_from_its_first_session_on() -> None:
    parents, childs = forked("0")
    assert "metrics are served on" in parents
    assert "metrics are served on" in childs
    assert parents != childs


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_says_once_that_its_parent_has_the_port() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    served, warning = forked(port)
    assert f"metrics are served on http://127.0.0.1:{port}/metrics" in served
    assert re.search(r"WARNING:session_tracer:The metrics of process \d+ are not served: ", warning)
    assert "Call instrument() in each worker" in warning


def serving() -> set[threading.Thread]:
    """The threads that serve HTTP; other libraries' threads come and go."""
    return {one for one in threading.enumerate() if "serve_forever" in one.name}


def test_closing_stops_the_endpoint_and_its_thread(served: tuple[Exporter, str]) -> None:
    exporter, address = served
    before = serving()
    exporter.close()
    assert len(before - serving()) == 1
    with pytest.raises(URLError):
        scrape(address)


def test_a_port_that_is_taken_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="Choose another port") as raised:
            open_exporter(Settings(prometheus_port=port))
    assert raised.value.strerror is not None
    assert raised.value.strerror.startswith(
        f"The prometheus exporter cannot listen on 127.0.0.1:{port}: Address already in use. "
    )


def test_a_host_that_is_none_says_what_to_do() -> None:
    with pytest.raises(OSError, match=r"cannot listen on no\.such\.host\.invalid:0"):
        open_exporter(Settings(prometheus_host="no.such.host.invalid", prometheus_port=0))


def test_the_metrics_may_live_in_the_applications_own_registry() -> None:
    registry = CollectorRegistry()
    exporter = prometheus_exporter(registry)
    measure(exporter)
    lines = generate_latest(registry).decode().splitlines()
    assert sample(lines, "sqlalchemy_findings_total") == "3.0"
    exporter.close()
    exporter.close()
    assert generate_latest(registry) == b""


def test_the_default_registry_is_left_alone(served: tuple[Exporter, str]) -> None:
    measure(served[0])
    assert b"sqlalchemy_" not in generate_latest(REGISTRY)


def test_an_older_exporter_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "PrometheusMetricReader", lambda: None)
    with pytest.raises(ImportError, match="needs a newer opentelemetry-exporter-prometheus"):
        prometheus_exporter(CollectorRegistry())
