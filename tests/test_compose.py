"""Tests what grafana/compose.yaml starts, as far as possible without Docker."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml

from docs.signals import LOG_KEYS
from examples import load
from session_tracer import Settings

if TYPE_CHECKING:
    from tests.servers.collector import Collector

ROOT: Final = Path(__file__).parent.parent
GRAFANA: Final = ROOT / "grafana"
COMPOSE_FILE: Final = GRAFANA / "compose.yaml"
DOCKERFILE: Final = (ROOT / "examples" / "Dockerfile").read_text()


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((GRAFANA / name).read_text())
    return content


SERVICES: Final = read("compose.yaml")["services"]
SHOP: Final = SERVICES["shop"]
# Where a service finds each file or volume that it mounts.
MOUNTED: Final = {
    source: target
    for source, target, *_ in (mount.split(":") for mount in SERVICES["lgtm"]["volumes"])
}
COLLECTOR: Final = read("collector.yaml")
FILELOG: Final = COLLECTOR["receivers"]["filelog"]
# The components that the configuration uses, as otelcol-contrib 0.159 names them.
COMPONENTS: Final = {
    "receivers": {"otlp", "filelog"},
    "processors": {"batch"},
    "exporters": {"otlp_http"},
    "extensions": {"health_check"},
}


def test_it_is_a_compose_file() -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema=vendor.compose-spec"]
    done = subprocess.run([*check, COMPOSE_FILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_files_that_it_mounts_and_copies_exist() -> None:
    for source in MOUNTED:
        assert source == "log" or (GRAFANA / source).exists()
    assert (GRAFANA / SHOP["build"]["context"] / SHOP["build"]["dockerfile"]).is_file()
    for sources in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.M):
        for source in sources.split():
            assert (ROOT / source).exists()


def test_each_image_has_one_version() -> None:
    images = [service["image"] for service in SERVICES.values() if "image" in service]
    images += re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)
    for image in images:
        assert re.fullmatch(r"[\w/-]+:\d+(\.\d+)+(-[\w-]+)?", image)


def test_it_plays_the_incident(monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[tuple[str, float]] = []
    python, _, module, *arguments = SHOP["command"]
    assert (python, module) == ("python", "examples.load")
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    monkeypatch.setattr(load, "incident", lambda *arguments: played.append(arguments))
    assert load.main() == 0
    assert played == [("fastapi", 120.0)]


def test_its_variables_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SHOP["environment"].items():
        monkeypatch.setenv(name, value)
    settings = Settings.from_env()
    assert settings.connection_sites
    assert settings.jsonl_path == "/var/log/shop/incident.jsonl"
    ours = {name for name in SHOP["environment"] if name.startswith("SESSION_TRACER_")}
    fields = {f"SESSION_TRACER_{name.upper()}" for name in Settings.__dataclass_fields__}
    assert ours <= {*fields, "SESSION_TRACER_EXPORTER"}


def test_spans_and_metrics_go_to_the_collector_and_events_to_its_file(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, before = tmp_path / "incident.jsonl", len(collector.output())
    local = {
        "DATABASE_URL": "",
        "SESSION_TRACER_JSONL_PATH": str(log),
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.http_endpoint,
    }
    for name, value in {**SHOP["environment"], **local}.items():
        monkeypatch.setenv(name, value)
    with load.running("fastapi", "n-plus-one", "7.4.0") as url, load.client_of(url) as client:
        assert client.get("/authors").is_success
    for sent in ("session shop", "sqlalchemy.session.duration", "db.client.connection.max"):
        assert sent in collector.wait_for(sent)
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert "n-plus-one" in {event.get("finding_id") for event in events}
    assert {event["service_version"] for event in events} == {"7.4.0"}
    assert "LogRecord" not in collector.output()[before:]
    # Each event has what the collector reads of it without asking whether it is there.
    time = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?[+]00:00")
    for event in events:
        assert time.fullmatch(event["timestamp"])
        assert {"level", "logger", "event"} <= event.keys()


def test_the_collector_reads_the_keys_of_events() -> None:
    documented = {key for keys in LOG_KEYS.values() for key in keys}
    read_keys = set(re.findall(r"attributes\.(\w+)", (GRAFANA / "collector.yaml").read_text()))
    assert len(read_keys) > 5
    assert read_keys <= documented


def test_the_pipelines_use_each_component_that_is_defined() -> None:
    service = COLLECTOR["service"]
    for kind, known in COMPONENTS.items():
        defined = set(COLLECTOR[kind])
        used = (
            set(service["extensions"])
            if kind == "extensions"
            else {one for pipeline in service["pipelines"].values() for one in pipeline[kind]}
        )
        assert used == defined
        assert {name.partition("/")[0] for name in defined} == known
    assert set(service["pipelines"]) == {"traces", "metrics", "logs"}
    for signal, pipeline in service["pipelines"].items():
        assert pipeline["exporters"] == [f"otlp_http/{signal}"]


def test_what_one_service_writes_the_other_reads() -> None:
    environment = SHOP["environment"]
    ports = {
        protocol["endpoint"].rpartition(":")[2]
        for protocol in COLLECTOR["receivers"]["otlp"]["protocols"].values()
    }
    assert environment["OTEL_EXPORTER_OTLP_ENDPOINT"].rpartition(":")[2] in ports
    path = Path(environment["SESSION_TRACER_JSONL_PATH"])
    assert any(path.match(pattern) for pattern in FILELOG["include"])
    assert SHOP["volumes"] == [f"log:{path.parent}"]
    assert MOUNTED["log"] == str(path.parent)


def test_each_program_of_the_image_has_its_configuration() -> None:
    assert read("prometheus.yaml")["rule_files"] == [MOUNTED["./alerts/session-tracer.yml"]]
    assert MOUNTED["./prometheus.yaml"] == "/otel-lgtm/prometheus.yaml"
    assert MOUNTED["./collector.yaml"] == "/otel-lgtm/otelcol-config.yaml"
    assert "/grafana/conf/provisioning/" in MOUNTED["./provisioning/dashboards/session-tracer.yaml"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no `promtool` on the PATH")
def test_prometheus_understands_its_configuration() -> None:
    check = ["promtool", "check", "config", "--syntax-only"]
    done = subprocess.run(
        [*check, GRAFANA / "prometheus.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
