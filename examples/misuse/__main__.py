"""Makes all mistakes, or those that are named, and prints the findings."""

import argparse
import gc
import sys

from examples.misuse.db import close_shop, open_shop
from examples.misuse.scenes import SCENES, Scene
from session_tracer import Exporter, instrument
from session_tracer.exporters.console import console_exporter

__session_tracer_hide__ = True


def main() -> int:
    options = _options()
    for number, scene in enumerate(SCENES, start=1):
        if options.list:
            print(f"{scene.finding:<22} {scene.title}")
        elif not options.findings or scene.finding in options.findings:
            sys.stderr.write(f"\n{number:2} {scene.finding}: {scene.title}\n\n")
            _play(scene, options.exporter)
    return 0


def _play(scene: Scene, exporter: str | None) -> None:
    open_shop()
    with instrument(
        name="shop", exporter=exporter or _findings_alone(), **scene.settings
    ) as tracing:
        scene.play()
        tracing.flush()
    # A connection that the mistake has lost, perhaps in a cycle, would lock the database.
    gc.collect()
    close_shop()


def _findings_alone() -> Exporter:
    """The console, without the sessions."""
    console = console_exporter()
    return Exporter(on_finding=console.on_finding, flush=console.flush, close=console.close)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.misuse", description=__doc__)
    parser.add_argument("findings", nargs="*", metavar="FINDING", help="what to show (all of it)")
    parser.add_argument("--list", action="store_true", help="list the findings")
    parser.add_argument(
        "--exporter",
        choices=("console", "jsonl", "otlp", "prometheus"),
        help="show or send the sessions as well (without it, findings alone, on the console)",
    )
    options = parser.parse_args()
    unknown = sorted(set(options.findings) - {scene.finding for scene in SCENES})
    if unknown:
        parser.error(f"there is no finding {', '.join(unknown)}; run with --list to see all")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
