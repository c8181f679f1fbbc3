"""The printed report: a line for each minute, and a verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.soak.checks import Check
    from benchmarks.soak.latency import Latency, Window
    from benchmarks.soak.pulse import Pulse

HEADING = (
    f"{'p50 / p99 in ms while the collector is':>92}\n"
    "minute   works  per s    MiB  threads  objects  live "
    f"{'well':^14} {'frozen':^14} {'stopped':^14} exports"
)


def row(pulse: Pulse, before: Sequence[Pulse], latency: Latency, exports: int) -> str:
    """One cycle; `exports` is the number that the collector has received since its last start."""
    since = before[-1].minutes if before else 0.0
    works = pulse.works - (before[-1].works if before else 0)
    threads = f"{pulse.threads}/{pulse.native}"
    states = "".join(_figures(latency.last(state)) for state in ("well", "frozen", "stopped"))
    return (
        f"{pulse.minutes:6.1f} {works:7} {works / (pulse.minutes - since) / 60:6.0f} "
        f"{pulse.rss_mib:6.1f} {threads:>8} {pulse.objects:8} {pulse.live:5}{states} {exports:7}"
    )


def _figures(window: Window | None) -> str:
    if window is None:
        return f"{'-':>15}"
    return f"{window.p50 * 1e3:7.1f} /{window.p99 * 1e3:6.0f}"


def verdict(checks: Sequence[Check], latency: Latency, logged: Sequence[str]) -> str:
    """All checks, the windows that they use, and whether all of them passed."""
    lines = ["", f"OpenTelemetry's SDK logged {len(logged)} lines meanwhile.", ""]
    for check in checks:
        line = f"{'ok ' if check.holds else 'OFF'} {check.what}: {check.found}"
        if check.at_most:
            line += f", at most {check.expected}"
        elif not check.holds:
            line += f", expected {check.expected}"
        lines.append(line)
    off = sum(not check.holds for check in checks)
    frozen, stopped = (len(latency.ratios(state, "p50")) for state in ("frozen", "stopped"))
    lines += ["", f"The collector was frozen {frozen} times and stopped {stopped} times."]
    lines.append(f"{off} of {len(checks)} checks are off." if off else f"All {len(checks)} hold.")
    return "\n".join(lines)
