"""The soak's command line: `python -m benchmarks.soak --help`."""

from __future__ import annotations

import argparse
import sys

from benchmarks.soak.soak import Plan, soak


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="of traced load (default: 20)")
    parser.add_argument("--protocol", choices=("grpc", "http/protobuf"), default="grpc")
    parser.add_argument(
        "--control-minutes", type=float, default=2.0, help="of the same load untraced, before it"
    )
    options = parser.parse_args()
    cycle = 60.0 if options.minutes >= 2 else options.minutes * 30
    plan = Plan(
        seconds=options.minutes * 60,
        control_seconds=options.control_minutes * 60,
        cycle_seconds=cycle,
        protocol=options.protocol,
    )
    return 0 if soak(plan) else 1


if __name__ == "__main__":
    sys.exit(main())
