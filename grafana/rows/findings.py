"""The row about what the tracer concluded, and about the tracer's own faults."""

from panels import (
    COUNT,
    TEXT,
    Columns,
    Lines,
    Panels,
    Words,
    bars,
    log_lines,
    rows_of,
    traces,
)
from promql import PROCESS, counted, of, or_none

FINDINGS = of("sqlalchemy_findings_total")
# Not narrowed by the session name: a fault of the tracer is of interest whichever is chosen.
OWN_ERRORS = of("session_tracer_errors_total", scope=PROCESS)

SEVERITIES = {"error": "red", "warning": "orange", "info": "blue", "none": "text"}

BY_SEVERITY = counted(FINDINGS, "sqlalchemy_finding_severity")
BY_ID = counted(FINDINGS, "sqlalchemy_finding_id")
TOP = counted(
    FINDINGS,
    "sqlalchemy_finding_id",
    "sqlalchemy_finding_severity",
    "sqlalchemy_session_name",
    window="$__range",
)
PANELS: Panels = (
    bars(
        Words(
            "Findings, by severity",
            "What the tracer concluded, in one step of the chart. Errors are mistakes that "
            "lose work or hold connections now; warnings cost time; infos are advice.",
            COUNT,
        ),
        Lines(
            or_none(BY_SEVERITY, "sqlalchemy_finding_severity"),
            "{{sqlalchemy_finding_severity}}",
        ),
        colours=SEVERITIES,
    ),
    bars(
        Words(
            "Findings, by id",
            "Which mistake it is. One that begins with a deployment came with it.",
            COUNT,
        ),
        Lines(or_none(BY_ID, "sqlalchemy_finding_id"), "{{sqlalchemy_finding_id}}"),
        colours={"none": "text"},
    ),
    bars(
        Words(
            "The tracer's own errors",
            "Faults of session_tracer itself, in one step of the chart, by where they "
            "happened. They are swallowed and the application is unharmed, but that part of "
            "the story is missing. Healthy is none.",
            COUNT,
        ),
        Lines(or_none(counted(OWN_ERRORS, "where"), "where"), "{{where}}"),
        colours={"none": "text"},
    ),
    rows_of(
        Words(
            "Top findings",
            "The twenty most frequent findings of the time range. Each has its call site and "
            "its remedy in the log line beside this table.",
            COUNT,
        ),
        f"topk(20, {TOP})",
        Columns(
            headings={
                "Time": None,
                "sqlalchemy_finding_id": "Finding",
                "sqlalchemy_finding_severity": "Severity",
                "sqlalchemy_session_name": "Session",
                "Value": "Times",
            },
            sorted_by="Times",
        ),
        span=12,
        height=10,
    ),
    log_lines(
        Words(
            "Findings, as logged",
            "What, where and how often, with the line to look at first and what to write "
            "instead. A line without a remedy takes an earlier one back: what lasted has ended "
            "after all. Needs the logs in Loki, sent by OTLP.",
            TEXT,
        ),
        '{service_name=~".+"} | scope_name="session_tracer" '
        '| finding_id!="" | session_name=~"$session" '
        '| line_format "{{.finding_id}} at {{.site}}: {{.explanation}} {{.remedy}}"',
    ),
    traces(
        Words(
            "Traces with a finding or a failure",
            "Requests in which a session failed, was abandoned, or did something worth a "
            "finding. Needs the spans in Tempo.",
            TEXT,
        ),
        '{ instrumentation:name = "session_tracer" '
        '&& (status = error || event:name = "sqlalchemy.finding") }',
    ),
)
