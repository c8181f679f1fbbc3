"""Draws docs/pictures: the dashboard in an incident, with Grafana's own charts."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
sys.path.insert(0, str(CHECKOUT))

from tests.prometheus_server import Course, Prometheus, missing_prometheus, prometheus  # noqa: E402 (above)
from tests.servers.lifeline import free_port, lifeline  # noqa: E402 (above)
from tests.servers.postgres import shared_postgres  # noqa: E402 (above)

DASHBOARD = CHECKOUT / "grafana" / "dashboards" / "session-tracer.json"
PICTURES = CHECKOUT / "docs" / "pictures"
SCRAPED_EVERY = 5
LARGEST_BYTES = 120_000

SESSIONS = "Is it the sessions?"
HOLDERS = "Who holds the connections?"
CHANGED = "What changed since the deployment?"

# No connection is free.
WAITING = "sum(db_client_connection_pending_requests) > 0"
# A leak is found, and a connection is free.
LEAKING = (
    'sum(sqlalchemy_session_suspects{sqlalchemy_finding_id="leaked-session"}) > 0 '
    'and sum(db_client_connection_count{db_client_connection_state="used"}) '
    "< sum(db_client_connection_max)"
)


@dataclass(frozen=True)
class Picture:
    """The rows of the dashboard at a moment of the incident, and for how long before it."""

    name: str
    at: float
    rows: tuple[str, ...]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=150, help="length of a part (default 150)")
    parser.add_argument(
        "--keep", type=Path, help="folder for the answers of Prometheus and the log"
    )
    parser.add_argument("--again", type=Path, help="draw what --keep has kept, and play nothing")
    options = parser.parse_args()
    if (lack := missing()) is not None:
        sys.exit(f"The pictures were not drawn: {lack}.")
    bundle()
    npm("run", "--silent", "check")
    if options.again is not None:
        for file in sorted(options.again.glob("*.json")):
            draw(file.stem, json.loads(file.read_text()))
        return 0
    for name, shown in played(options.seconds):
        if options.keep is not None:
            options.keep.mkdir(parents=True, exist_ok=True)
            (options.keep / f"{name}.json").write_text(json.dumps(shown))
        draw(name, shown)
    return 0


def missing() -> str | None:
    """What there is not on this machine, or None."""
    for program, package in (("node", "nodejs"), ("npm", "npm"), ("chromium", "chromium")):
        if shutil.which(program) is None:
            return f"there is no `{program}` on the PATH (Debian and Ubuntu: the package {package})"
    return missing_prometheus()


def bundle() -> None:
    """Build the page, with Grafana's packages from npm at the versions of package.json."""
    if not (HERE / "node_modules").exists():
        npm("install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts")
    npm("run", "--silent", "bundle")
    shutil.copy(HERE / "page.html", HERE / "build" / "page.html")


def npm(*arguments: str) -> None:
    subprocess.run(["npm", *arguments], cwd=HERE, check=True)


# The incident


def played(seconds: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Play the incident with a real PostgreSQL and a real Prometheus; what each picture shows."""
    metrics = free_port()
    with lifeline() as line, TemporaryDirectory() as folder:
        log = Path(folder) / "incident.jsonl"
        with (
            shared_postgres(line).database() as database,
            prometheus(line, metrics, job="shop", every=f"{SCRAPED_EVERY}s") as server,
        ):
            begun = load(seconds, log, database, metrics)
            for picture in pictures(begun, seconds, server):
                yield picture.name, Shown(server, log, picture, seconds * 2.5).as_json()


def load(seconds: float, log: Path, database: str, metrics: int) -> dict[int, float]:
    """Let examples/load.py play the incident; when each of its numbered parts began."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(CHECKOUT),
        "DATABASE_URL": database,
        "SESSION_TRACER_JSONL_PATH": str(log),
        "SESSION_TRACER_PROMETHEUS_PORT": str(metrics),
        # Not the default of a minute: a part of the incident is not much longer.
        "SESSION_TRACER_LEAK_AFTER_SECONDS": "10",
    }
    command = [
        sys.executable,
        "-m",
        "examples.load",
        "fastapi",
        "--incident",
        f"--seconds={seconds}",
    ]
    begun: dict[int, float] = {}
    with subprocess.Popen(
        command, cwd=CHECKOUT, env=environment, stderr=subprocess.PIPE, text=True
    ) as playing:
        assert playing.stderr is not None
        for written in playing.stderr:
            sys.stderr.write(written)
            if part := re.match(r"(\d)  ", written):
                begun[int(part[1])] = time.time()
    if playing.returncode != 0:
        sys.exit("The incident ended before its end; the reason is above.")
    return begun


def pictures(begun: Mapping[int, float], seconds: float, server: Prometheus) -> list[Picture]:
    """The moments that are drawn."""
    waiting = server.query_range(WAITING, begun[3], begun[4], 1)
    leaking = server.query_range(LEAKING, begun[3], begun[4], 1)
    return [
        Picture("quiet", begun[1] + seconds - SCRAPED_EVERY, (SESSIONS, HOLDERS)),
        Picture("deployment", begun[3] - SCRAPED_EVERY, (SESSIONS, CHANGED)),
        Picture("leak", last(leaking, "a leak was found"), (SESSIONS, HOLDERS)),
        Picture("pool-exhausted", last(waiting, "code waited"), (SESSIONS, HOLDERS)),
    ]


def last(courses: list[Course], what: str) -> float:
    """The last moment at which there is a value."""
    if not courses:
        sys.exit(
            f"The pictures were not drawn: Prometheus saw no moment at which {what}. "
            "A busy machine may have delayed the incident: play it again on a quiet one."
        )
    return courses[0].values[-1][0]


# What a picture shows


class Shown:
    """What Grafana would ask for at that moment, and what it is answered."""

    def __init__(self, server: Prometheus, log: Path, picture: Picture, seconds: float) -> None:
        self._server = server
        self._log = log
        self._picture = picture
        # A multiple of the interval, as Grafana has it.
        self._to = picture.at // 60 * 60 + (picture.at % 60) // SCRAPED_EVERY * SCRAPED_EVERY
        self._from = self._to - max(1, seconds // 60) * 60

    def as_json(self) -> dict[str, Any]:
        dashboard = json.loads(DASHBOARD.read_text())
        (annotation,) = dashboard["annotations"]["list"]
        return {
            "title": f"{dashboard['title']}   ·   job: shop   ·   {self._clock(self._from)} to "
            f"{self._clock(self._to)}",
            "from": self._from,
            "to": self._to,
            "marks": self._marks(annotation),
            "rows": [
                {"row": row, "panels": panels} for row, panels in self._rows(dashboard["panels"])
            ],
        }

    def _rows(self, placed: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], list[Any]]]:
        """The rows of the picture, the others left out, and their panels with their answers."""
        rows: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
        for one in placed:
            if one["type"] == "row":
                rows.append((one, []))
            else:
                rows[-1][1].append(one)
        bottom = 0
        for row, panels in rows:
            if row["title"] in self._picture.rows:
                up = row["gridPos"]["y"] - bottom
                for one in (row, *panels):
                    one["gridPos"]["y"] -= up
                    bottom = max(bottom, one["gridPos"]["y"] + one["gridPos"]["h"])
                yield row, [self._answered(panel) for panel in panels]

    def _answered(self, panel: dict[str, Any]) -> dict[str, Any]:
        step = 60 if panel.get("interval") == "1m" else SCRAPED_EVERY
        if panel["type"] == "logs":
            (target,) = panel["targets"]
            return {"panel": panel, "lines": list(self._lines(target["expr"]))}
        return {
            "panel": panel,
            "step": step,
            "answers": [
                {
                    "ref": target["refId"],
                    "legend": target.get("legendFormat"),
                    "series": self._asked(target, step),
                }
                for target in panel["targets"]
            ],
        }

    def _asked(self, target: dict[str, Any], step: int) -> list[dict[str, Any]]:
        expression = filled(target["expr"], step, self._to - self._from)
        if target["instant"]:
            series = self._server.query_range(expression, self._to, self._to, step)
        else:
            # Steps begin at multiples of the step.
            begin = self._from // step * step
            series = self._server.query_range(expression, begin, self._to, step)
        return [{"metric": one.labels, "values": one.values} for one in series]

    def _marks(self, annotation: dict[str, Any]) -> list[dict[str, Any]]:
        found = self._asked({"expr": annotation["expr"], "instant": False}, SCRAPED_EVERY)
        return [{"at": one["values"][0][0], **one["metric"]} for one in found]

    def _lines(self, expression: str) -> Iterator[dict[str, str]]:
        """The findings of the log in the panel's format, the newest first."""
        (template,) = re.findall(r'line_format "(.*)"', expression)
        events = [json.loads(line) for line in self._log.read_text().splitlines()]
        for event in reversed(events):
            at = datetime.fromisoformat(event["timestamp"]).timestamp()
            if event.get("finding_id") and self._from <= at <= self._to:
                text = formatted(template, event)
                yield {"at": self._clock(at), "level": event["level"], "text": text}

    @staticmethod
    def _clock(at: float) -> str:
        return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S")


def formatted(template: str, event: Mapping[str, Any]) -> str:
    """A line in Loki's format, of which this knows keys and what is only there with a key."""
    chosen = re.sub(
        r"\{\{if \.(\w+)\}\}(.*?)\{\{end\}\}",
        lambda part: part[2] if event.get(part[1]) else "",
        template,
    )
    return re.sub(r"\{\{\.(\w+)\}\}", lambda key: str(event.get(key[1], "")), chosen)


def filled(expression: str, step: int, length: float) -> str:
    """An expression with Grafana's variables replaced as Grafana replaces them, all chosen."""
    for variable, value in {
        "${__interval_ms}": f"{step * 1000}",
        "$__interval": f"{step}s",
        "$__rate_interval": f"{max(step + SCRAPED_EVERY, 4 * SCRAPED_EVERY)}s",
        "$__range": f"{length:.0f}s",
        "$job": ".+",
        "$instance": ".+",
        "$session": ".*",
    }.items():
        expression = expression.replace(variable, value)
    return expression


# The drawing


def draw(name: str, shown: dict[str, Any]) -> None:
    """Let a browser draw it, and write it with few colours."""
    page, picture = HERE / "build", PICTURES / f"{name}.png"
    PICTURES.mkdir(exist_ok=True)
    # "</" would end the script that it is in.
    escaped = json.dumps(shown).replace("</", "<\\/")
    (page / "picture.js").write_text(f"window.PICTURE = {escaped};")
    bottom = max(
        place["y"] + place["h"]
        for row in shown["rows"]
        for place in [drawn["panel"]["gridPos"] for drawn in row["panels"]]
    )
    with profile() as folder:
        subprocess.run(
            [
                *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *("--allow-file-access-from-files", f"--user-data-dir={folder}"),
                *(f"--window-size=1400,{bottom * 38 + 44}", "--virtual-time-budget=8000"),
                *(f"--screenshot={page / 'picture.png'}", f"file://{page / 'page.html'}"),
            ],
            check=True,
            timeout=120,
            stderr=subprocess.DEVNULL,
        )
    subprocess.run(
        ["node", HERE / "few_colours.js", page / "picture.png", picture], check=True, timeout=120
    )
    size = picture.stat().st_size
    sys.stderr.write(f"{picture.relative_to(CHECKOUT)}: {size:,} bytes\n")
    if size > LARGEST_BYTES:
        sys.exit(f"{picture.name} is larger than {LARGEST_BYTES:,} bytes")


@contextmanager
def profile() -> Iterator[str]:
    """A folder for the browser's own files."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield folder


if __name__ == "__main__":
    sys.exit(main())
