"""Tests with promtool what the dashboard's expressions count, and what they do not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.test_alerts import needs_promtool, promtool
from tests.test_dashboard import DASHBOARD, PANELS, VARIABLES, questions

if TYPE_CHECKING:
    from pathlib import Path

    # Labels and value of each series of an answer.
    Samples = list[tuple[str, float]]

# One value every 15 s.
A_MINUTE = 4


def expression_of(panel: str) -> str:
    """The expression of a panel as Grafana sends it, with bars of one minute."""
    (asked,) = {question.expression for question in questions() if question.panel == panel}
    return filled(asked)


def filled(expression: str) -> str:
    for variable, value in {
        "${__interval_ms}": "60000",
        "$__interval": "1m",
        "$__rate_interval": "1m",
        **{f"${name}": VARIABLES[name].get("allValue", "") for name in VARIABLES},
    }.items():
        expression = expression.replace(variable, value)
    return expression


def check(folder: Path, series: dict[str, str], asked: dict[str, dict[int, Samples]]) -> None:
    """Let promtool compare what expressions return at some minutes: labels and values."""
    tests = [
        {
            "expr": expression,
            "eval_time": f"{minute}m",
            "exp_samples": [{"labels": labels, "value": value} for labels, value in samples],
        }
        for expression, at in asked.items()
        for minute, samples in at.items()
    ]
    inputs = [{"series": one, "values": values} for one, values in series.items()]
    test: dict[str, Any] = {
        "interval": "15s",
        "input_series": inputs,
        "promql_expr_test": tests,
    }
    whole = {"rule_files": [], "evaluation_interval": "15s", "tests": [test]}
    (folder / "test.yml").write_text(json.dumps(whole))  # which is YAML too
    assert "SUCCESS" in promtool("test", "rules", str(folder / "test.yml"))


def found(id_: str, instance: str = "1", more: str = "") -> str:
    names = f'job="shop",instance="{instance}",sqlalchemy_session_name="s"'
    return f'sqlalchemy_findings_total{{{names},sqlalchemy_finding_id="{id_}"{more}}}'


@needs_promtool
def test_each_bar_has_the_events_of_its_own_minute_and_the_first_one(tmp_path: Path) -> None:
    series = {
        # Each exists from the start, and has further labels from its first event on.
        found("n-plus-one"): "0x40",
        found("n-plus-one", more=',sqlalchemy_session_work="GET /"'): "_x17 1 1x22",
        # Five a minute, and all of it again after a restart.
        found("autoflush-storm"): "0+5x40",
    }
    of_a_minute = expression_of("Which findings began with it?")
    storm = ('{sqlalchemy_finding_id="autoflush-storm"}', 5 * A_MINUTE)
    check(
        tmp_path,
        series,
        {
            f"round({of_a_minute})": {
                4: [storm],
                5: [('{sqlalchemy_finding_id="n-plus-one"}', 1), storm],
                6: [storm],
            }
        },
    )


@needs_promtool
def test_no_bar_counts_what_a_process_had_before_a_gap_or_a_restart(tmp_path: Path) -> None:
    series = {
        # Not scraped for six minutes.
        found("pool-exhausted"): "1000x20 _x24 1000x40",
        # Begins again at 0, and has two at once.
        found("leaked-session"): "1000x20 0 2 2x60",
        # A process that was not there before, and has one at once.
        found("stale-lock", instance="2"): "_x21 0 1 1x60",
    }
    of_a_minute = f"round({expression_of('Which findings began with it?')})"
    expected: dict[int, Samples] = {minute: [] for minute in range(3, 20)}
    expected[6] = [
        ('{sqlalchemy_finding_id="leaked-session"}', 2),
        ('{sqlalchemy_finding_id="stale-lock"}', 1),
    ]
    check(tmp_path, series, {of_a_minute: expected})


@needs_promtool
def test_the_first_failure_of_session_tracer_is_a_bar(tmp_path: Path) -> None:
    failures = 'session_tracer_errors_total{job="shop",instance="1"%s}'
    series = {failures % "": "0x40", failures % ',where="statements"': "_x17 1x23"}
    of_a_minute = f"round({expression_of('Does session_tracer fail?')})"
    check(tmp_path, series, {of_a_minute: {4: [], 5: [('{instance="1"}', 1)], 6: []}})


@needs_promtool
def test_a_process_that_is_gone_leaves_no_number(tmp_path: Path) -> None:
    labels = 'job="shop",instance="1",sqlalchemy_session_name="s"'
    values = {
        f'db_client_connection_count{{{labels},db_client_connection_state="used"}}': "5",
        f"db_client_connection_max{{{labels}}}": "5",
        f"db_client_connection_pending_requests{{{labels}}}": "9",
        f"db_client_connection_timeouts_total{{{labels}}}": "7",
        f"sqlalchemy_transaction_oldest_age_seconds{{{labels}}}": "500",
        f'sqlalchemy_session_suspects{{{labels},sqlalchemy_finding_id="leaked-session"}}': "3",
        f"sqlalchemy_session_open{{{labels}}}": "9",
        'target_info{job="shop",instance="1",service_version="1.4.0"}': "1",
    }
    series = {one: f"{value}x20 stale" for one, value in values.items()}
    stats = {panel["title"] for panel in PANELS if panel["type"] == "stat"}
    zero: Samples = [("{}", 0)]
    asked: dict[str, dict[int, Samples]] = {expression_of(title): {15: []} for title in stats}
    asked[expression_of("Are we blind?")] = {4: [("{}", 1)], 15: zero}
    asked[expression_of("Is the pool full?")] = {4: [("{}", 1)], 15: []}
    check(tmp_path, series, asked)


@needs_promtool
def test_a_new_version_is_marked_and_a_restart_or_a_gap_is_not(tmp_path: Path) -> None:
    def runs(instance: str, version: str) -> str:
        return f'target_info{{job="shop",instance="{instance}",service_version="{version}"}}'

    (annotation,) = DASHBOARD["annotations"]["list"]
    series = {
        runs("1", "1.4.0"): "1x80 stale",
        # Two processes, one after the other.
        runs("1", "1.5.0"): "_x81 1x120",
        runs("2", "1.5.0"): "_x101 1x40 _x20 1x40",
    }
    new: Samples = [('{job="shop",service_version="1.5.0"}', 1)]
    expected: dict[int, Samples] = {minute: [] for minute in range(2, 50)}
    expected[21] = new
    check(
        tmp_path,
        series,
        {f"group by (job, service_version) ({filled(annotation['expr'])})": expected},
    )
