"""Tests that docs/signals.md lists what is emitted, and the type of each attribute."""

from __future__ import annotations

import gc
import warnings
from typing import TYPE_CHECKING, Any, Final

import pytest

from docs import signals as page
from examples.misuse.db import close_shop, open_shop
from examples.misuse.scenes import SCENES
from session_tracer import work
from session_tracer.signals import names
from session_tracer.testing import capture

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.sdk.trace import ReadableSpan

# The names that are no attributes.
OTHER_NAMES: Final = {
    names.SCOPE,
    names.TRANSACTION_SPAN,
    names.SAVEPOINT_SPAN,
    names.FLUSH_SPAN,
    names.DETACHED_LOAD_SPAN,
    names.FINDING_EVENT,
    names.FINDING_RETRACTED_EVENT,
    names.EXCEPTION_EVENT,
    names.SESSION_OPENED,
    names.SESSION_CLOSED,
    names.TRANSACTION_ENDED,
    names.FLUSH_COMPLETED,
    names.FLUSH_FAILED,
    names.FINDING,
    names.FINDING_LASTING,
    names.FINDING_RETRACTED,
    names.SUPPRESSED,
    names.BATCH,
    names.OTHER,
}


class Emitted:
    """What all examples of misuse emitted: spans, and the points of each metric."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []
        self.points: list[tuple[str, Mapping[str, Any]]] = []

    def take(self, settings: Mapping[str, Any], play: Any) -> None:
        """Play one example."""
        open_shop()
        more = {"statement_spans": True, "connection_sites": True, "site_frames": 3}
        with capture(**{**settings, **more}) as captured, work("GET /orders/{id}"):
            play()
            metrics = captured.metrics
        self.spans += captured.spans
        self.points += [(name, one.attributes) for name, every in metrics.items() for one in every]
        gc.collect()
        close_shop()


@pytest.fixture(scope="module")
def emitted() -> Emitted:
    every = Emitted()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some examples are about a warning
        for scene in SCENES:
            every.take(scene.settings, scene.play)
    return every


def row_of(span: ReadableSpan) -> str:
    """The name of the span's row on the page."""
    if span.kind.name == "CLIENT":
        return "{summary}"
    return "session {name}" if span.name.startswith("session ") else span.name


def wrong_types(attributes: Mapping[str, Any]) -> dict[str, object]:
    """The attributes whose value is not of the type on the page."""
    types = {name: one.type.partition(",")[0] for name, one in page.ATTRIBUTES.items()}
    return {
        name: value
        for name, value in attributes.items()
        if type(value) is not page.PYTHON_TYPES[types[name]]
    }


def test_the_page_is_what_the_names_give() -> None:
    stale = "the page is stale: run `python3 tasks.py signals`"
    assert page.PATH.read_text() == page.page(), stale


def test_each_name_of_an_attribute_is_on_the_page() -> None:
    constants = {name: value for name, value in vars(names).items() if name.isupper()}
    named = {value for value in constants.values() if isinstance(value, str)}
    assert set(page.ATTRIBUTES) == named - OTHER_NAMES


def test_only_metrics_that_exist_have_attributes() -> None:
    assert set(page.OF_METRICS) <= set(names.METRICS)


def test_each_attribute_belongs_to_a_row() -> None:
    rows = [has for _, has in (*page.SPANS.values(), *page.EVENTS.values())]
    rows += page.OF_METRICS.values()
    assert {name for has in rows for name in has} == set(page.ATTRIBUTES)


def test_each_span_has_attributes_of_its_row_with_their_types(emitted: Emitted) -> None:
    unlisted: set[tuple[str, str]] = set()
    wrong: dict[str, object] = {}
    for span in emitted.spans:
        _, listed = page.SPANS[row_of(span)]
        attributes = span.attributes or {}
        unlisted |= {(row_of(span), name) for name in attributes.keys() - set(listed)}
        wrong |= wrong_types(attributes)
    assert (unlisted, wrong) == (set(), {})


def test_each_event_has_attributes_of_its_row_with_their_types(emitted: Emitted) -> None:
    unlisted: set[tuple[str, str]] = set()
    wrong: dict[str, object] = {}
    for event in (event for span in emitted.spans for event in span.events):
        _, listed = page.EVENTS[event.name]
        attributes = event.attributes or {}
        unlisted |= {(event.name, name) for name in attributes.keys() - set(listed)}
        wrong |= wrong_types(attributes)
    assert (unlisted, wrong) == (set(), {})


def test_each_metric_has_attributes_of_its_row_with_their_types(emitted: Emitted) -> None:
    of_metrics = {metric.name: has for metric, has in page.OF_METRICS.items()}
    unlisted: set[tuple[str, str]] = set()
    wrong: dict[str, object] = {}
    for name, attributes in emitted.points:
        listed = {names.SESSION_NAME, *of_metrics.get(name, ())}
        unlisted |= {(name, one) for one in attributes.keys() - listed}
        wrong |= wrong_types(attributes)
    assert (unlisted, wrong) == (set(), {})


def test_the_examples_emit_every_span_every_event_and_most_metrics(emitted: Emitted) -> None:
    assert {row_of(span) for span in emitted.spans} == set(page.SPANS)
    assert {event.name for span in emitted.spans for event in span.events} == set(page.EVENTS)
    measured = {name for name, _ in emitted.points}
    assert len(measured) > len(names.METRICS) * 0.8


def test_an_attribute_of_another_type_is_seen() -> None:
    assert wrong_types({names.SERVER_PORT: "5432", names.ENTITY: "Author"}) == {
        names.SERVER_PORT: "5432"
    }
    assert wrong_types({names.FLUSH_NEW: True}) == {names.FLUSH_NEW: True}
