"""Writes the dashboard: `python grafana/build.py`; `--check` fails if the file is out of date."""

import argparse
import json
import sys
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard as grafana
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model
from panels import PROMETHEUS
from promql import PROCESS
from rows import findings, sessions, unit_of_work

OUTPUT = Path(__file__).parent / "dashboards" / "session-tracer.json"

ROWS = (
    ("Sessions", sessions.PANELS),
    ("The unit of work", unit_of_work.PANELS),
    ("Findings", findings.PANELS),
)


def build() -> model.Dashboard:
    dashboard = (
        grafana.Dashboard("SQLAlchemy sessions")
        .uid("session-tracer")
        .description(
            "What the sessions of an application do: how they live and end, what their units of "
            "work load and write, and what session_tracer concluded."
        )
        .tags(["sqlalchemy", "session_tracer", "opentelemetry"])
        .readonly()
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("30s")
        .with_variable(datasource("prometheus"))
        .with_variable(datasource("loki"))
        .with_variable(datasource("tempo"))
        .with_variable(choice("job", "Job", "label_values(sqlalchemy_session_open, job)", ".+"))
        .with_variable(
            choice(
                "instance",
                "Instance",
                'label_values(sqlalchemy_session_open{job=~"$job"}, instance)',
                ".+",
            )
        )
        .with_variable(
            choice(
                "session",
                "Session",
                f"label_values(sqlalchemy_session_open{{{PROCESS}}}, sqlalchemy_session_name)",
                ".*",
            )
        )
    )
    for title, panels in ROWS:
        dashboard.with_row(grafana.Row(title))
        for panel in panels:
            dashboard.with_panel(panel)
    built = dashboard.build()
    for identity, panel_or_row in enumerate(built.panels or (), start=1):
        panel_or_row.id_val = identity
    return built


def datasource(kind: str) -> grafana.DatasourceVariable:
    return (
        grafana.DatasourceVariable(f"{kind}_datasource")
        .label(f"{kind.title()} data source")
        .type(kind)
        .current(model.VariableOption(text=kind.title(), value=kind))
    )


def choice(name: str, title: str, query: str, everything: str) -> grafana.QueryVariable:
    """A variable with the values of a label, all of them at first."""
    return (
        grafana.QueryVariable(name)
        .label(title)
        .datasource(PROMETHEUS)
        .query(query)
        .definition(query)
        .multi(True)
        .include_all(True)
        .all_value(everything)
        .current(model.VariableOption(text=["All"], value=["$__all"]))
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if it differs")
    check: bool = parser.parse_args().check
    rendered = json.dumps(build(), cls=JSONEncoder, indent=2, ensure_ascii=False) + "\n"
    if not check:
        OUTPUT.write_text(rendered, encoding="utf-8")
        return 0
    if OUTPUT.read_text(encoding="utf-8") == rendered:
        return 0
    print(f"{OUTPUT.name} is not what grafana/build.py writes: run it and commit the result.")
    return 1


if __name__ == "__main__":
    sys.exit(main())
