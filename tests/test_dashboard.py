"""Tests the dashboard: its rules, its names, and each of its questions on a real Prometheus."""

import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import pytest
import yaml

from session_tracer.signals import names
from tests.prometheus_server import Prometheus, Sample, missing_prometheus, prometheus
from tests.servers.lifeline import Server, free_port, lifeline

CHECKOUT: Final = Path(__file__).parents[1]
GRAFANA: Final = CHECKOUT / "grafana"
LOAD_SECONDS: Final = 25

DASHBOARD: Final[dict[str, Any]] = json.loads(
    (GRAFANA / "dashboards" / "session-tracer.json").read_text()
)
# Each panel and each row, collapsed or not.
PLACED: Final = [
    placed for shown in DASHBOARD["panels"] for placed in (shown, *shown.get("panels", ()))
]
PANELS: Final = [panel for panel in PLACED if panel["type"] != "row"]
VARIABLES: Final = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}

# What Prometheus adds to each process by itself.
OF_THE_PROCESS: Final = {"target_info", "service_version"}
# The bookshop does not cause it; test_dashboard_expressions.py asks promtool.
DOES_NOT_HAPPEN: Final = {"Does session_tracer fail?"}
FINDING_LINE: Final = (
    "{{.finding_id}}{{if .site}} at {{.site}}{{end}}: {{.explanation}}"
    "{{if .remedy}} ▸ {{.remedy}}{{end}}"
)
PROMQL_FUNCTIONS: Final = {"histogram_quantile", "group_left", "label_replace"}


@dataclass(frozen=True)
class Question:
    """One PromQL expression of the dashboard, and the panel that asks it."""

    panel: str
    expression: str
    legend: str = ""

    @property
    def grouped_by(self) -> set[str]:
        """The labels that its answer is to have: those of its outermost aggregation."""
        outermost = (
            r"(?:\(|topk\(\d+, |label_replace\(|histogram_quantile\([\d.]+, )*\w+ by \(([^)]*)\)"
        )
        by = re.match(outermost, self.expression)
        return set(by[1].split(", ")) - {"le"} if by else set()

    def asked_now(self) -> str:
        """The expression as Grafana would send it, with everything chosen."""
        asked = self.expression
        for variable, value in {
            "$__rate_interval": "5s",
            "$__range:15s": "10s:1s",
            "$__range": "10s",
            "${__interval_ms}ms:15s": "5000ms:1s",
            "5m:15s": "10s:1s",
            **{f"${name}": VARIABLES[name].get("allValue", "") for name in VARIABLES},
        }.items():
            asked = asked.replace(variable, value)
        return asked

    def is_answered_by(self, samples: list[Sample]) -> bool:
        return any(sample.is_a_number for sample in samples) and all(
            {label for label, value in sample.labels.items() if value} == self.grouped_by
            for sample in samples
        )


def questions() -> list[Question]:
    return [
        Question(panel["title"], target["expr"], target.get("legendFormat", ""))
        for panel in PANELS
        for target in panel["targets"]
        if target["datasource"]["type"] == "prometheus"
    ]


def choices() -> list[Question]:
    """What fills the variables, as the expression that has the same labels."""
    parsed = {
        name: re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"])
        for name, variable in VARIABLES.items()
        if variable["type"] == "query"
    }
    return [
        Question(f"${name}", f"group by ({found[2]}) ({found[1]})")
        for name, found in parsed.items()
        if found
    ]


def selectors(expression: str) -> list[tuple[str, str]]:
    """The metrics of an expression, each with its matchers."""
    return re.findall(r"(\w+)\{([^}]*)\}", expression)


def metrics_of(question: Question) -> set[str]:
    return {metric for metric, _ in selectors(question.expression)}


def labels(question: Question) -> set[str]:
    """Every label that an expression or its legend names."""
    matched = {
        label
        for _, matchers in selectors(question.expression)
        for label in re.findall(r'(\w+)(?:=~|!~|!=|=)"', matchers)
    }
    grouped = {
        label
        for labels in re.findall(r"\b(?:by|on|group_left) \(([^)]*)\)", question.expression)
        for label in labels.split(", ")
    } - {"le"}
    return matched | grouped | set(re.findall(r"\{\{(\w+)\}\}", question.legend))


def series_of(metric: names.Metric) -> set[str]:
    """The names under which Prometheus has a metric of OpenTelemetry.

    OpenTelemetry, "Prometheus and OpenMetrics compatibility": dots become underscores, the unit
    follows in words unless it is an annotation in braces, and a counter ends in `_total`.
    """
    unit = {"s": "_seconds"}.get(metric.unit, "")
    name = metric.name.replace(".", "_") + unit
    if metric.instrument == "histogram":
        return {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
    return {f"{name}_total"} if metric.instrument == "counter" else {name}


def test_the_committed_dashboard_is_what_the_code_writes() -> None:
    check = subprocess.run(
        [sys.executable, GRAFANA / "build.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (check.returncode, check.stdout, check.stderr) == (0, "", "")


@pytest.mark.skipif(
    not (GRAFANA / "render" / "node_modules").exists(),
    reason="no Grafana packages of npm: `python3 tasks.py pictures` installs them",
)
def test_it_has_the_types_of_grafanas_schema_and_its_queries_their_grammar() -> None:
    checked = subprocess.run(
        ["node", GRAFANA / "render" / "check.js"], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, ""), checked.stdout


def test_the_pictures_are_small_and_shown() -> None:
    pictures = {file.name: file for file in (CHECKOUT / "docs" / "pictures").iterdir()}
    pages = [GRAFANA / "README.md", CHECKOUT / "docs" / "incident.md"]
    text = "".join(page.read_text() for page in pages)
    shown = re.findall(r"!\[[^]]+\]\(\S*?pictures/(\S+)\)", text)
    assert set(pictures) == set(shown)
    assert [name for name, file in pictures.items() if file.stat().st_size > 120_000] == []


def test_a_program_that_is_missing_to_draw_them_is_named(tmp_path: Path) -> None:
    drawn = subprocess.run(
        [sys.executable, GRAFANA / "render" / "pictures.py"],
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert drawn.returncode == 1
    assert drawn.stderr.startswith("The pictures were not drawn: there is no `node` on the PATH (")


def test_it_is_a_classic_dashboard_that_nobody_edits_in_the_browser() -> None:
    facts = {key: DASHBOARD[key] for key in ("schemaVersion", "editable", "uid")}
    assert facts == {"schemaVersion": 42, "editable": False, "uid": "session-tracer"}


def test_every_panel_has_a_title_a_description_and_a_unit() -> None:
    said = {
        panel["id"]: (
            panel.get("title"),
            panel.get("description"),
            panel["fieldConfig"]["defaults"].get("unit"),
        )
        for panel in PANELS
    }
    assert {panel: words for panel, words in said.items() if not all(words)} == {}


def test_every_panel_asks_a_question() -> None:
    said = {panel["title"]: panel["title"] + panel["description"] for panel in PANELS}
    assert [title for title, words in said.items() if "?" not in words] == []


def test_the_incident_is_open_and_comes_first() -> None:
    rows = {row["title"]: row["collapsed"] for row in DASHBOARD["panels"] if row["type"] == "row"}
    assert rows == {
        "Is it the sessions?": False,
        "Who holds the connections?": False,
        "What changed since the deployment?": False,
        "Are we blind?": False,
        "Sessions": True,
        "The unit of work": True,
        "Findings": True,
    }


def test_panel_ids_and_titles_are_unique() -> None:
    ids = [placed["id"] for placed in PLACED]
    titles = [panel["title"] for panel in PANELS]
    assert (len(set(ids)), len(set(titles))) == (len(ids), len(titles))


# What is seen at first, and what each collapsed row has below it.
GRIDS: Final = {
    "": DASHBOARD["panels"],
    **{row["title"]: row["panels"] for row in DASHBOARD["panels"] if row.get("panels")},
}


@pytest.mark.parametrize("grid", GRIDS)
def test_no_two_panels_overlap_and_none_leaves_the_grid(grid: str) -> None:
    def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
        place = panel["gridPos"]
        return set(
            itertools.product(
                range(place["x"], place["x"] + place["w"]),
                range(place["y"], place["y"] + place["h"]),
            )
        )

    panels = GRIDS[grid]
    assert [
        (one["title"], other["title"])
        for one, other in itertools.combinations(panels, 2)
        if cells(one) & cells(other)
    ] == []
    assert {x for panel in panels for x, _ in cells(panel)} == set(range(24))


@pytest.mark.parametrize("grid", GRIDS)
def test_every_row_is_filled_to_its_end(grid: str) -> None:
    """A panel lower than its neighbours would leave a hole that Grafana closes in its own way."""
    places = [panel["gridPos"] for panel in GRIDS[grid]]
    area = sum(place["w"] * place["h"] for place in places)
    top = min(place["y"] for place in places)
    bottom = max(place["y"] + place["h"] for place in places)
    assert area == 24 * (bottom - top)


def test_the_variables_are_those_that_the_dashboard_linter_asks_for() -> None:
    assert {
        name: (variable["type"], variable["label"], variable.get("allValue"))
        for name, variable in VARIABLES.items()
    } == {
        "prometheus_datasource": ("datasource", "Prometheus data source", None),
        "loki_datasource": ("datasource", "Loki data source", None),
        "tempo_datasource": ("datasource", "Tempo data source", None),
        "job": ("query", "Job", ".+"),
        "instance": ("query", "Instance", ".+"),
        "session": ("query", "Session", ".*"),
        "docs": ("textbox", "Documentation", None),
    }


def test_every_datasource_is_a_variable() -> None:
    asked = [*PANELS, *(target for panel in PANELS for target in panel["targets"])]
    assert {(one["datasource"]["type"], one["datasource"]["uid"]) for one in asked} == {
        ("prometheus", "${prometheus_datasource}"),
        ("loki", "${loki_datasource}"),
        ("tempo", "${tempo_datasource}"),
    }


def test_every_selector_is_narrowed_by_job_and_instance() -> None:
    asked = {selector for question in questions() for selector in selectors(question.expression)}
    assert {
        (metric, matchers)
        for metric, matchers in asked
        if not matchers.endswith(
            'job=~"$job", instance=~"$instance", sqlalchemy_session_name=~"$session"'
        )
    } == {
        ("session_tracer_errors_total", 'job=~"$job", instance=~"$instance"'),
        ("target_info", 'job=~"$job", instance=~"$instance"'),
    }


def test_every_rate_is_over_the_rate_interval() -> None:
    windows = {
        (function, window)
        for question in questions()
        for function, window in re.findall(
            r"(rate|increase)\(\w+\{[^}]*\}\[([^]]*)\]", question.expression
        )
    }
    assert windows == {("rate", "$__rate_interval"), ("increase", "$__range")}


def test_every_bar_counts_what_happened_in_its_own_time() -> None:
    drawn = {panel["title"]: panel for panel in PANELS if "BARS" in str(panel).upper()}
    assert set(drawn) == {"Which findings began with it?", "Does session_tracer fail?"}
    for panel in drawn.values():
        (target,) = panel["targets"]
        assert re.findall(r"\[(.*?)\]", target["expr"]) == ["1s${__interval_ms}ms:15s"]
        assert panel["interval"] == "1m"


def test_percentiles_stand_beside_the_mean_and_lead_to_traces() -> None:
    for panel in PANELS:
        targets = [target for target in panel["targets"] if "histogram_quantile" in str(target)]
        if targets:
            assert "mean" in str([target["legendFormat"] for target in panel["targets"]])
            assert any(target["exemplar"] for target in targets), panel["title"]


def test_every_number_is_the_one_of_this_moment() -> None:
    for panel in PANELS:
        if panel["type"] == "stat":
            assert [target["instant"] for target in panel["targets"]] == [True]


def test_every_link_to_the_documentation_leads_to_a_section() -> None:
    titles = re.findall(r"^## (.*)$", (CHECKOUT / "docs" / "incident.md").read_text(), re.M)
    links = {link["url"] for panel in PANELS for link in panel.get("links", ())}
    assert links <= {f"${{docs:raw}}/incident.md#{anchor_of(title)}" for title in titles}


def anchor_of(title: str) -> str:
    return title.lower().replace(" ", "-")


def test_a_click_on_a_line_asks_loki() -> None:
    for panel in PANELS:
        if panel["type"] == "timeseries":
            (link,) = panel["fieldConfig"]["defaults"]["links"]
            # Grafana puts values where these are.
            filled = re.sub(r"\$\{[\w.:]+\}", "1", unquote(link["url"]))
            (pane,) = json.loads(filled.partition("panes=")[2]).values()
            assert pane["queries"][0]["expr"].startswith(
                '{service_name=~".+"} | scope_name="session_tracer" | '
            )


def test_every_name_on_the_dashboard_is_one_that_is_emitted() -> None:
    metrics = {series for metric in names.METRICS for series in series_of(metric)}
    attributes = {
        value.replace(".", "_") for value in vars(names).values() if isinstance(value, str)
    }
    asked = [*questions(), *choices()]
    assert {metric for question in asked for metric in metrics_of(question)} - metrics == {
        "target_info"
    }
    assert {label for question in asked for label in labels(question)} - attributes == {
        "job",
        "instance",
        "service_version",
    }
    said = {name for one in asked for name in re.findall(r"\b[a-z]+_[a-z_]+\b", one.expression)}
    assert said - metrics - attributes - OF_THE_PROCESS == PROMQL_FUNCTIONS


def test_every_metric_that_is_emitted_is_on_the_dashboard() -> None:
    asked = {metric for question in questions() for metric in metrics_of(question)}
    assert [metric.name for metric in names.METRICS if not series_of(metric) & asked] == [
        # Only with statement_spans=True, where no other instrumentation has it.
        "db.client.operation.duration",
    ]


def test_the_logs_and_traces_asked_for_bear_the_names_that_are_emitted() -> None:
    asked = {
        panel["type"]: target.get("expr") or target["query"]
        for panel in PANELS
        for target in panel["targets"]
        if target["datasource"]["type"] != "prometheus"
    }
    assert {kind: re.findall(r'"([^"]*)"', query) for kind, query in asked.items()} == {
        "logs": [".+", names.SCOPE, "", "$session", FINDING_LINE],
        "table": [names.SCOPE, names.FINDING_EVENT],
    }


def test_the_provisioned_datasources_bear_the_uids_of_the_demo_stack() -> None:
    provisioned = provisioning("datasources")["datasources"]
    uids = {datasource["uid"]: datasource["type"] for datasource in provisioned}
    assert uids == {"prometheus": "prometheus", "tempo": "tempo", "loki": "loki"}
    # What links to another datasource finds it.
    assert set(re.findall(r"'datasourceUid': '(\w+)'", str(provisioned))) <= set(uids)
    # And the variables choose them first.
    assert {VARIABLES[f"{uid}_datasource"]["current"]["value"] for uid in uids} == set(uids)


def test_the_dashboards_are_provisioned_from_where_they_are_mounted() -> None:
    (provider,) = provisioning("dashboards")["providers"]
    path = provider["options"]["path"]
    assert (provider["type"], provider["allowUiUpdates"]) == ("file", False)
    assert f"./dashboards:{path}:ro" in (GRAFANA / "compose.yaml").read_text()
    assert f"`{path}`" in (GRAFANA / "README.md").read_text()


def provisioning(kind: str) -> Any:
    (file,) = (GRAFANA / "provisioning" / kind).glob("*.yaml")
    loaded = yaml.safe_load(file.read_text())
    assert loaded.pop("apiVersion") == 1
    return loaded


@pytest.fixture(scope="module")
def bookshop_under_load() -> Iterator[Prometheus]:
    """A Prometheus that scrapes the bookshop while it serves its customers."""
    if (reason := missing_prometheus()) is not None:
        pytest.skip(reason)
    port = free_port()
    with lifeline() as line:
        bookshop = Server(
            line,
            line.server_folder("bookshop"),
            [
                *(sys.executable, "-m", "examples.bookshop"),
                *("--exporter", "prometheus", "--load", str(LOAD_SECONDS)),
            ],
            environment={
                "OTEL_RESOURCE_ATTRIBUTES": "service.version=1.5.0",
                "SESSION_TRACER_CONNECTION_SITES": "true",
                "SESSION_TRACER_PROMETHEUS_PORT": str(port),
                "PYTHONPATH": os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")]),
            },
        )
        try:
            with prometheus(line, port) as server:
                bookshop.wait_until(
                    lambda: True if server.query("sqlalchemy_session_open") else None,
                    "the bookshop to be scraped",
                    seconds=20,
                )
                yield server
        finally:
            bookshop.stop()


def test_every_expression_returns_data_while_the_bookshop_is_busy(
    bookshop_under_load: Prometheus,
) -> None:
    unanswered = [
        *choices(),
        *(question for question in questions() if question.panel not in DOES_NOT_HAPPEN),
    ]
    deadline = time.monotonic() + LOAD_SECONDS
    while unanswered and time.monotonic() < deadline:
        time.sleep(1)
        unanswered = [
            question
            for question in unanswered
            if not question.is_answered_by(bookshop_under_load.query(question.asked_now()))
        ]
    assert [(question.panel, question.expression) for question in unanswered] == []
    errors = bookshop_under_load.query("session_tracer_errors_total")
    assert {sample.value for sample in errors} == {0.0}
    asked = {metric for question in questions() for metric in metrics_of(question)}
    assert asked - bookshop_under_load.metric_names() == set()
