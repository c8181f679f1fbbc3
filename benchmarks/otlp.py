"""The levels with real export: OTLP over HTTP, to a collector on this machine."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.measure import Plan
from benchmarks.variants import LEVELS, Factory, InForce, Level, Variant
from session_tracer import instrument
from tests.servers.collector import collector
from tests.servers.lifeline import lifeline

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# A block ends with a flush. It is long, so that one flush sends as much as in production.
QUICK = Plan(1, 2, 0.2, block_seconds=0.1, rounds_at_least=4)
FULL = Plan(5, 20, 1, block_seconds=0.3, rounds_at_least=12)


@dataclass(frozen=True, slots=True)
class Exported:
    """A level with the exporter `otlp`; the flush after a block is timed with the block."""

    level: Level
    endpoint: str

    @contextmanager
    def __call__(self, factory: Factory) -> Iterator[InForce]:
        os.environ |= {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint,
            "OTEL_TRACES_SAMPLER": "always_on" if self.level.recorded else "always_off",
            "OTEL_LOGS_EXPORTER": "otlp" if self.level.recorded else "none",
            # Otherwise metrics would be sent in the middle of another variant's block.
            "OTEL_METRIC_EXPORT_INTERVAL": "3600000",
            # Nothing must be dropped: dropping is cheap.
            "OTEL_BSP_MAX_QUEUE_SIZE": "1000000",
            "OTEL_BLRP_MAX_QUEUE_SIZE": "1000000",
        }
        with instrument(
            factory, exporter="otlp", statement_spans=self.level.statement_spans
        ) as instrumentation:
            # The proof is what the collector has received in the end.
            yield InForce(instrumentation.flush, instrumentation.flush)


@contextmanager
def collected(names: Sequence[str]) -> Iterator[list[Variant]]:
    """The levels, exporting to a collector. Fails at the end if it has not received each signal."""
    with lifeline() as line, collector(line, "benchmark", "basic") as receiver:
        levels = {name: LEVELS[name] for name in names}
        yield [
            Variant(name, variant.title, Exported(level, receiver.http_endpoint))
            for name, variant in levels.items()
            if isinstance(level := variant.applied, Level)
        ]
        for signal in ("metrics", *(("traces", "logs") if {"B", "C"} & set(names) else ())):
            receiver.wait_for(f"Received {signal}")
