"""Writes the dashboard: `python grafana/build.py`; `--check` fails if the file is out of date."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard as grafana
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model
from panels import PROMETHEUS
from promql import PROCESS, new_versions
from rows import findings, incident, sessions, unit_of_work

OUTPUT = Path(__file__).parent / "dashboards" / "session-tracer.json"

INCIDENT = (
    ("Is it the sessions?", incident.IS_IT_THE_SESSIONS),
    ("Who holds the connections?", incident.WHO_HOLDS_THE_CONNECTIONS),
    ("What changed since the deployment?", incident.WHAT_CHANGED),
    ("Are we blind?", incident.ARE_WE_BLIND),
)
# Collapsed.
DETAILS = (
    ("Sessions", sessions.PANELS),
    ("The unit of work", unit_of_work.PANELS),
    ("Findings", findings.PANELS),
)


def build() -> model.Dashboard:
    dashboard = (
        grafana.Dashboard("SQLAlchemy sessions")
        .uid("session-tracer")
        .description(
            "Open rows: is it the sessions, who holds the connections, what changed since the "
            "deployment, and are we blind? Collapsed rows: how sessions live and end, what their "
            "units of work load and write, and what session_tracer has found."
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
        .with_variable(
            grafana.TextBoxVariable("docs")
            .label("Documentation")
            .description("The address of your copy of the documentation, for the links to it")
            .default_value("docs")
        )
        .annotation(
            grafana.AnnotationQuery()
            .name("New version")
            .datasource(PROMETHEUS)
            .icon_color("blue")
            .expr(new_versions())
            .step("15s")
            .title_format("{{job}} {{service_version}}")
        )
    )
    for title, panels in INCIDENT:
        dashboard.with_row(grafana.Row(title))
        for panel in panels:
            dashboard.with_panel(panel)
    for title, panels in DETAILS:
        row = grafana.Row(title)
        for panel in panels:
            row.with_panel(panel)
        dashboard.with_row(row)
    built = dashboard.build()
    fold(built)
    for identity, panel_or_row in enumerate(every(built), start=1):
        panel_or_row.id_val = identity
    return built


def fold(built: model.Dashboard) -> None:
    """Place the collapsed rows one below the other: what is in them takes no place."""
    hidden = 0
    for row in built.panels or ():
        if row.grid_pos is not None and isinstance(row, model.RowPanel):
            inside = {panel.grid_pos.y: panel.grid_pos.h for panel in row.panels if panel.grid_pos}
            row.grid_pos.y -= hidden
            hidden += sum(inside.values())


def every(built: model.Dashboard) -> Iterator[model.Panel | model.RowPanel]:
    """Each panel and each row, collapsed or not."""
    for panel_or_row in built.panels or ():
        yield panel_or_row
        if isinstance(panel_or_row, model.RowPanel):
            yield from panel_or_row.panels


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
