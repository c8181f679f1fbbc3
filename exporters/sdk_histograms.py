"""Gives session_tracer's histograms to readers and exporters of OpenTelemetry's SDK, as its data.

The SDK has no public way to add a histogram that was counted elsewhere to what a reader collects.
It has public classes for the data itself, and an exporter gets that data to send.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
)

from session_tracer import __version__
from session_tracer.signals import names
from session_tracer.signals.histograms import Histograms

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

    from session_tracer.signals.histograms import Point

__all__ = ["AddsHistograms", "collect", "new_histograms", "reserve_place"]

_EXEMPLAR_FILTER: Final = "OTEL_METRICS_EXEMPLAR_FILTER"

# The histogram of the SDK's own in whose place ours are exported.
_PLACE: Final = "session_tracer.histograms"


def new_histograms() -> Histograms | None:
    """The histograms of one reader; None where only the SDK's own do what the environment asks.

    Exemplars are those of sampled spans unless `OTEL_METRICS_EXEMPLAR_FILTER` is set.
    """
    kept = os.environ.get(_EXEMPLAR_FILTER, "trace_based")
    return None if kept == "always_on" else Histograms(exemplars=kept != "always_off")


def collect(histograms: Histograms, temporality: AggregationTemporality) -> list[Metric]:
    """The histograms that have values, as the SDK's own would be collected."""
    delta = temporality is AggregationTemporality.DELTA
    return [
        Metric(
            name=metric.name,
            description=metric.description,
            unit=metric.unit,
            data=Histogram(
                data_points=[_data_point(metric.boundaries, point) for point in points],
                aggregation_temporality=temporality,
            ),
        )
        for metric, points in histograms.collect(delta=delta).items()
    ]


def _data_point(boundaries: tuple[float, ...], point: Point) -> HistogramDataPoint:
    return HistogramDataPoint(
        attributes=point.attributes,
        start_time_unix_nano=point.start_unix_ns,
        time_unix_nano=point.time_unix_ns,
        count=sum(point.counts),
        sum=point.sum,
        bucket_counts=point.counts,
        explicit_bounds=boundaries,
        min=point.min,
        max=point.max,
        exemplars=[
            Exemplar(
                filtered_attributes={},
                value=exemplar.value,
                time_unix_nano=exemplar.time_unix_ns,
                span_id=exemplar.span_id,
                trace_id=exemplar.trace_id,
            )
            for exemplar in point.exemplars
        ],
    )


def reserve_place(provider: MeterProvider) -> None:
    """Have each collection of the provider contain a histogram, which `AddsHistograms` replaces.

    A reader calls its exporter only if it has collected something, and only a histogram in what it
    has collected shows which temporality the reader has for histograms.
    """
    meter = provider.get_meter(names.SCOPE, __version__)
    place = meter.create_histogram(_PLACE)

    def record(_: CallbackOptions) -> tuple[Observation, ...]:
        place.record(0)
        return ()

    meter.create_observable_gauge(f"{_PLACE}.place", [record])


class AddsHistograms(MetricExporter):
    """Comes before a metric exporter among the bases of a class, and adds histograms to its data.

    The provider must have a reserved place for them.
    """

    histograms: Histograms

    def export(
        self, metrics_data: MetricsData, timeout_millis: float | None = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        """Export the data with the histograms."""
        data = _with_histograms(metrics_data, self.histograms)
        # The next base is an exporter that exports.
        return super().export(data, timeout_millis, **kwargs)  # type: ignore[arg-type, safe-super]


def _with_histograms(data: MetricsData, histograms: Histograms) -> MetricsData:
    return replace(
        data,
        resource_metrics=[
            replace(
                of_resource,
                scope_metrics=[
                    replace(of_scope, metrics=metrics)
                    for of_scope in of_resource.scope_metrics
                    if (metrics := list(_replaced(of_scope.metrics, histograms)))
                ],
            )
            for of_resource in data.resource_metrics
        ],
    )


def _replaced(metrics: Any, histograms: Histograms) -> Iterator[Metric]:
    for metric in metrics:
        if metric.name == _PLACE:
            yield from collect(histograms, metric.data.aggregation_temporality)
        else:
            yield metric
