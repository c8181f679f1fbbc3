"""How each kind of panel looks."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import quote

from grafana_foundation_sdk.builders import common as shared
from grafana_foundation_sdk.builders import dashboard as grafana
from grafana_foundation_sdk.builders import logs, loki, prometheus, stat, table, tempo, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common, units
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import prometheus as prometheus_model
from grafana_foundation_sdk.models import tempo as tempo_model
from promql import mean, quantile

Panels = Sequence[Builder[model.Panel]]

PROMETHEUS = common.DataSourceRef("prometheus", "${prometheus_datasource}")
LOKI = common.DataSourceRef("loki", "${loki_datasource}")
TEMPO = common.DataSourceRef("tempo", "${tempo_datasource}")

SECONDS = units.Seconds
COUNT = units.Short
PER_SECOND = units.OpsPerSecond
SHARE = units.PercentUnit
TEXT = units.String
# Every digit of it.
NUMBER = units.LocaleFormat

# Each bar has to contain some looks at the counters (promql.py).
SHORTEST_BAR = "1m"

NO_COLOURS: Mapping[str, str] = {}
OUTCOMES = {
    "committed": "green",
    "rolled_back": "yellow",
    "closed": "blue",
    "failed": "red",
    "abandoned": "purple",
    "unused": "text",
}


# The log lines of session_tracer, and those of them that are findings.
LOGGED = '{service_name=~".+"} | scope_name="session_tracer"'
FINDINGS_LOGGED = f'{LOGGED} | finding_id!=""'


@dataclass(frozen=True)
class Words:
    """What every panel has: a title, a description, the unit of its values.

    `steps` is the section of docs/incident.md with the steps to take.
    """

    title: str
    description: str
    unit: str
    steps: str = ""


@dataclass(frozen=True)
class Lines:
    """One expression of a chart or of a table's column, and the legend of its lines.

    With exemplars, each point of a chart is linked to a trace.
    """

    expression: str
    legend: str
    exemplars: bool = False


@dataclass(frozen=True)
class Matrix:
    """A label whose values become the rows of a table, and one whose values become its columns."""

    rows: str
    columns: str


@dataclass(frozen=True)
class Columns:
    """The headings of a table's columns by their original names; without one a column is hidden.

    It is sorted by one of the headings, downwards. Columns may have a unit of their own, and
    fractions.
    """

    headings: Mapping[str, str | None]
    sorted_by: str
    matrix: Matrix | None = None
    units: Mapping[str, str] = field(default_factory=dict)
    fractions: Sequence[str] = ()


def value_of(label: str) -> str:
    """The value that a label of the line has that is clicked on."""
    return f"${{__field.labels.{label}:percentencode}}"


def yellow_from(value: float) -> model.Threshold:
    return model.Threshold(value, "yellow")


def orange_from(value: float) -> model.Threshold:
    return model.Threshold(value, "orange")


def red_from(value: float) -> model.Threshold:
    return model.Threshold(value, "red")


def distribution(histogram: str) -> tuple[Lines, ...]:
    """The percentiles and the mean: what is usual, what is rare, and what it costs in all."""
    return (
        *(
            Lines(quantile(rank, histogram), legend, exemplars=rank == 0.99)
            for rank, legend in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
        ),
        Lines(mean(histogram), "mean"),
    )


def chart(
    words: Words,
    *lines: Lines,
    span: int = 8,
    colours: Mapping[str, str] = NO_COLOURS,
    logged: str = FINDINGS_LOGGED,
) -> timeseries.Panel:
    """Lines over time; a click on one leads to the log lines of the time range."""
    panel = (
        _described(timeseries.Panel(), words)
        .datasource(PROMETHEUS)
        .span(span)
        .height(8)
        .min(0)
        .line_width(1)
        .fill_opacity(10)
        .show_points(common.VisibilityMode.NEVER)
        .legend(
            shared.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(
            shared.VizTooltipOptions()
            .mode(common.TooltipDisplayMode.MULTI)
            .sort(common.SortOrder.DESCENDING)
        )
        .data_links([_link("Log lines", _explored(logged))])
    )
    if words.unit == COUNT:
        # Else an axis for nothing but zeros ends at 100.
        panel.axis_soft_max(1)
    for ref_id, line in zip("ABCDEF", lines, strict=False):
        query = _query(line.expression).legend_format(line.legend).range().ref_id(ref_id)
        panel.with_target(query.exemplar(line.exemplars))
    for series, colour in colours.items():
        panel.override_by_name(
            series, [model.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": colour})]
        )
    return panel


def stacked(
    words: Words,
    *lines: Lines,
    span: int = 8,
    colours: Mapping[str, str] = NO_COLOURS,
    unstacked: Sequence[str] = (),
    logged: str = FINDINGS_LOGGED,
    empty: str = "No data",
    ranked: bool = False,
) -> timeseries.Panel:
    """Stacked lines, for values whose sum is meaningful, and lines to compare it with.

    With `ranked`, the legend is a table with the largest last value first.
    """
    panel = (
        chart(words, *lines, span=span, colours=colours, logged=logged)
        .stacking(shared.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
        .fill_opacity(40)
        .no_value(empty)
    )
    if ranked:
        panel.legend(
            shared.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.TABLE)
            .placement(common.LegendPlacement.RIGHT)
            .show_legend(True)
            .calcs(["last"])
            .sort_by("Last")
            .sort_desc(True)
        )
    for series in unstacked:
        panel.override_by_name(
            series,
            [
                model.DynamicConfigValue("custom.stacking", {"mode": "none", "group": "A"}),
                model.DynamicConfigValue("custom.fillOpacity", 0),
                model.DynamicConfigValue("custom.lineWidth", 2),
            ],
        )
    return panel


def bars(
    words: Words, *lines: Lines, span: int = 8, logged: str = FINDINGS_LOGGED
) -> timeseries.Panel:
    """How often rare events happened: each bar has those of its own time."""
    return (
        stacked(words, *lines, span=span, logged=logged, empty="None in this time range")
        .interval(SHORTEST_BAR)
        .draw_style(common.GraphDrawStyle.BARS)
        # The number of a bar is about the time before it.
        .bar_alignment(common.BarAlignment.BEFORE)
        .fill_opacity(80)
        .decimals(0)
    )


def number(words: Words, expression: str, *thresholds: model.Threshold) -> stat.Panel:
    """The value of this moment; none where it is gone, rather than the last that there was."""
    return (
        _described(stat.Panel(), words)
        .datasource(PROMETHEUS)
        .span(3)
        .height(4)
        .min(0)
        .no_value("–")
        .decimals(0)
        .color_mode(common.BigValueColorMode.VALUE)
        .graph_mode(common.BigValueGraphMode.NONE)
        .reduce_options(shared.ReduceDataOptions().calcs(["lastNotNull"]))
        .color_scheme(grafana.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .thresholds(
            grafana.ThresholdsConfig()
            .mode(model.ThresholdsMode.ABSOLUTE)
            .steps([model.Threshold(None, "green"), *thresholds])
        )
        .with_target(_query(expression).instant().ref_id("A"))
    )


def names(words: Words, expression: str, legend: str) -> stat.Panel:
    """The values that a label has at this moment."""
    panel = number(words, expression).text_mode(common.BigValueTextMode.NAME)
    return (
        panel.color_scheme(
            grafana.FieldColor().mode(model.FieldColorModeId.FIXED).fixed_color("text")
        )
        .orientation(common.VizOrientation.HORIZONTAL)
        .targets([_query(expression).legend_format(legend).instant().ref_id("A")])
    )


def rows_of(
    words: Words, expressions: Sequence[str], columns: Columns, *, span: int, height: int
) -> table.Panel:
    """A table over the whole time range; with a matrix, one label becomes the columns."""
    panel = (
        _described(table.Panel(), words)
        .datasource(PROMETHEUS)
        .span(span)
        .height(height)
        .no_value("–")
    )
    for ref_id, expression in zip("ABCDEF", expressions, strict=False):
        panel.with_target(
            _query(expression)
            .instant()
            .format(prometheus_model.PromQueryFormat.TABLE)
            .ref_id(ref_id)
        )
    if columns.matrix:
        panel.with_transformation(
            model.DataTransformerConfig(
                "groupingToMatrix",
                options={
                    "rowField": columns.matrix.rows,
                    "columnField": columns.matrix.columns,
                    "valueField": "Value",
                    "emptyValue": "zero",
                },
            )
        )
    if len(expressions) > 1:
        panel.with_transformation(model.DataTransformerConfig("merge", options={}))
    for heading, unit in columns.units.items():
        panel.override_by_name(heading, [model.DynamicConfigValue("unit", unit)])
    for heading in columns.fractions:
        panel.override_by_name(heading, [model.DynamicConfigValue("decimals", 1)])
    return (
        panel.decimals(0)
        .with_transformation(
            model.DataTransformerConfig(
                "organize",
                options={
                    "excludeByName": {
                        name: True for name, to in columns.headings.items() if not to
                    },
                    "renameByName": {name: to for name, to in columns.headings.items() if to},
                },
            )
        )
        .sort_by([shared.TableSortByFieldState().display_name(columns.sorted_by).desc(True)])
    )


def log_lines(words: Words, expression: str) -> logs.Panel:
    return (
        _described(logs.Panel(), words)
        .datasource(LOKI)
        .span(24)
        .height(8)
        .show_time(True)
        .wrap_log_message(True)
        .enable_log_details(True)
        .sort_order(common.LogsSortOrder.DESCENDING)
        .with_target(loki.Dataquery().expr(expression).datasource(LOKI).ref_id("A"))
    )


def traces(words: Words, expression: str) -> table.Panel:
    return (
        _described(table.Panel(), words)
        .datasource(TEMPO)
        .span(24)
        .height(8)
        .with_target(
            tempo.Dataquery()
            .query_type("traceql")
            .query(expression)
            .table_type(tempo_model.SearchTableType.TRACES)
            .limit(20)
            .datasource(TEMPO)
            .ref_id("A")
        )
    )


_Panel = TypeVar("_Panel", timeseries.Panel, stat.Panel, table.Panel, logs.Panel)


def _described(panel: _Panel, words: Words) -> _Panel:
    panel.title(words.title).description(words.description).unit(words.unit)
    if words.steps:
        panel.links([_link("What to do", f"${{docs:raw}}/incident.md#{words.steps}")])
    return panel


def _link(title: str, url: str) -> grafana.DashboardLink:
    return (
        grafana.DashboardLink(title).type(model.DashboardLinkType.LINK).url(url).target_blank(True)
    )


def _explored(expression: str) -> str:
    """The address at which Grafana shows the result of a LogQL expression."""
    loki_queries = {
        "datasource": "${loki_datasource}",
        "queries": [{"refId": "A", "expr": expression}],
        "range": {"from": "${__from}", "to": "${__to}"},
    }
    # Grafana replaces its variables before it opens the address.
    panes = quote(json.dumps({"logs": loki_queries}), safe="${}:,")
    return f"/explore?schemaVersion=1&panes={panes}"


def _query(expression: str) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery()
        .expr(expression)
        .datasource(PROMETHEUS)
        .editor_mode(prometheus_model.QueryEditorMode.CODE)
    )
