"""How each kind of panel looks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import common as shared
from grafana_foundation_sdk.builders import dashboard as grafana
from grafana_foundation_sdk.builders import logs, loki, prometheus, stat, table, tempo, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common, units
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import prometheus as prometheus_model
from grafana_foundation_sdk.models import tempo as tempo_model
from promql import quantile

Panels = Sequence[Builder[model.Panel]]

PROMETHEUS = common.DataSourceRef("prometheus", "${prometheus_datasource}")
LOKI = common.DataSourceRef("loki", "${loki_datasource}")
TEMPO = common.DataSourceRef("tempo", "${tempo_datasource}")

SECONDS = units.Seconds
COUNT = units.Short
PER_SECOND = units.OpsPerSecond
SHARE = units.PercentUnit
TEXT = units.String

NO_COLOURS: Mapping[str, str] = {}
OUTCOMES = {
    "committed": "green",
    "rolled_back": "yellow",
    "closed": "blue",
    "failed": "red",
    "abandoned": "purple",
    "unused": "text",
}


@dataclass(frozen=True)
class Words:
    """What every panel has: a title, a description, the unit of its values."""

    title: str
    description: str
    unit: str


@dataclass(frozen=True)
class Lines:
    """One expression of a chart, and the legend of its lines."""

    expression: str
    legend: str


@dataclass(frozen=True)
class Matrix:
    """A label whose values become the rows of a table, and one whose values become its columns."""

    rows: str
    columns: str


@dataclass(frozen=True)
class Columns:
    """The headings of a table's columns by their original names; without one a column is hidden.

    It is sorted by one of the headings, downwards.
    """

    headings: Mapping[str, str | None]
    sorted_by: str
    matrix: Matrix | None = None


def yellow_from(value: float) -> model.Threshold:
    return model.Threshold(value, "yellow")


def red_from(value: float) -> model.Threshold:
    return model.Threshold(value, "red")


def quantiles(histogram: str) -> tuple[Lines, ...]:
    return tuple(
        Lines(quantile(rank, histogram), legend)
        for rank, legend in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
    )


def chart(
    words: Words, *lines: Lines, span: int = 8, colours: Mapping[str, str] = NO_COLOURS
) -> timeseries.Panel:
    """Lines over time."""
    panel = (
        timeseries.Panel()
        .title(words.title)
        .description(words.description)
        .unit(words.unit)
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
    )
    for ref_id, line in zip("ABCDEF", lines, strict=False):
        panel.with_target(_query(line.expression).legend_format(line.legend).range().ref_id(ref_id))
    for series, colour in colours.items():
        panel.override_by_name(
            series, [model.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": colour})]
        )
    return panel


def stacked(
    words: Words, *lines: Lines, span: int = 8, colours: Mapping[str, str] = NO_COLOURS
) -> timeseries.Panel:
    """Stacked lines, for values whose sum is meaningful."""
    return (
        chart(words, *lines, span=span, colours=colours)
        .stacking(shared.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
        .fill_opacity(40)
    )


def bars(
    words: Words, *lines: Lines, span: int = 8, colours: Mapping[str, str] = NO_COLOURS
) -> timeseries.Panel:
    """Counts of rare events, of which each single one must be visible."""
    return (
        stacked(words, *lines, span=span, colours=colours)
        .draw_style(common.GraphDrawStyle.BARS)
        .fill_opacity(80)
        .decimals(0)
    )


def number(words: Words, expression: str, *thresholds: model.Threshold) -> stat.Panel:
    """The current value; without colour if there is no threshold."""
    below = model.Threshold(None, "green" if thresholds else "text")
    return (
        stat.Panel()
        .title(words.title)
        .description(words.description)
        .unit(words.unit)
        .datasource(PROMETHEUS)
        .span(6)
        .height(4)
        .min(0)
        .no_value("–")
        .color_mode(common.BigValueColorMode.VALUE)
        .graph_mode(common.BigValueGraphMode.AREA)
        .reduce_options(shared.ReduceDataOptions().calcs(["lastNotNull"]))
        .color_scheme(grafana.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .thresholds(
            grafana.ThresholdsConfig()
            .mode(model.ThresholdsMode.ABSOLUTE)
            .steps([below, *thresholds])
        )
        .with_target(_query(expression).range().ref_id("A"))
    )


def rows_of(
    words: Words, expression: str, columns: Columns, *, span: int, height: int
) -> table.Panel:
    """A table over the whole time range; with a matrix, one label becomes the columns."""
    panel = (
        table.Panel()
        .title(words.title)
        .description(words.description)
        .unit(words.unit)
        .datasource(PROMETHEUS)
        .span(span)
        .height(height)
        .decimals(0)
        .with_target(
            _query(expression).instant().format(prometheus_model.PromQueryFormat.TABLE).ref_id("A")
        )
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
    return panel.with_transformation(
        model.DataTransformerConfig(
            "organize",
            options={
                "excludeByName": {name: True for name, to in columns.headings.items() if not to},
                "renameByName": {name: to for name, to in columns.headings.items() if to},
            },
        )
    ).sort_by([shared.TableSortByFieldState().display_name(columns.sorted_by).desc(True)])


def log_lines(words: Words, expression: str) -> logs.Panel:
    return (
        logs.Panel()
        .title(words.title)
        .description(words.description)
        .unit(words.unit)
        .datasource(LOKI)
        .span(12)
        .height(10)
        .show_time(True)
        .wrap_log_message(True)
        .enable_log_details(True)
        .sort_order(common.LogsSortOrder.DESCENDING)
        .with_target(loki.Dataquery().expr(expression).datasource(LOKI).ref_id("A"))
    )


def traces(words: Words, expression: str) -> table.Panel:
    return (
        table.Panel()
        .title(words.title)
        .description(words.description)
        .unit(words.unit)
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


def _query(expression: str) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery()
        .expr(expression)
        .datasource(PROMETHEUS)
        .editor_mode(prometheus_model.QueryEditorMode.CODE)
    )
