"""The command `session-tracer`: its subcommands and their arguments."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from session_tracer.cli.check import check
from session_tracer.cli.findings import show_finding, show_findings
from session_tracer.cli.run import NotRunnable, Tracing, run_module, run_script
from session_tracer.page.report import report
from session_tracer.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

_RUN = "run [--name NAME] [--exporter NAMES] [--set SETTING=VALUE] (-m MODULE | SCRIPT) ..."


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command, and return its exit code.

    Args:
        arguments: The arguments, by default those of the process.
    """
    parser, run_parser = _parsers()
    options = parser.parse_args(arguments)
    if options.command == "run":
        return _run(options, run_parser)
    if options.command == "findings":
        return show_findings() if options.id is None else show_finding(options.id)
    if options.command == "report":
        return report(options.logs, options.output, options.compare)
    return check()


def _parsers() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    parser = argparse.ArgumentParser(
        prog="session-tracer", description="Traces SQLAlchemy sessions, and explains findings."
    )
    parser.add_argument("--version", action="version", version=f"session-tracer {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="run a script or module with every session traced",
        description="Run a script or module as Python would, with every session traced.",
        usage=f"session-tracer {_RUN}",
    )
    run.add_argument("--name", help="name of the sessions in every signal (default: default)")
    run.add_argument("--exporter", help="exporters, separated by commas (default: console)")
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SETTING=VALUE",
        dest="settings",
        help="a setting, for example --set lazy_loads_from_one_site=3; can be repeated",
    )
    run.add_argument("-m", dest="module", action="store_true", help="run a module, as python -m")
    run.add_argument("program", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    findings = commands.add_parser(
        "findings",
        help="list the findings, or explain one",
        description="List the findings, or explain one with wrong and right code.",
    )
    findings.add_argument("id", nargs="?", help="a finding's id, for example n-plus-one")
    of_logs = commands.add_parser(
        "report",
        help="write a page about the sessions of a log",
        description="Write a page about the sessions of a log that the exporter jsonl wrote.",
    )
    of_logs.add_argument("logs", nargs="+", metavar="LOG", help="a log, or - for standard input")
    of_logs.add_argument(
        "-o",
        dest="output",
        metavar="FILE",
        help="the HTML file, or - for standard output (default: LOG with .html)",
    )
    of_logs.add_argument("--compare", metavar="LOG", help="an earlier log: show what is new since")
    commands.add_parser(
        "check",
        help="show what is installed, which settings apply, and what is degraded",
        description="Show what is installed, which settings apply, and what is degraded.",
    )
    return parser, run


def _run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    if options.program[:1] == ["--"]:
        del options.program[0]
    if not options.program:
        parser.error(f"expected {'a module after -m' if options.module else 'a script or -m'}")
    program, *arguments = options.program
    run = run_module if options.module else run_script
    try:
        run(program, arguments, Tracing(options.name, options.exporter, options.settings))
    except NotRunnable as error:
        parser.error(str(error))
    return 0
