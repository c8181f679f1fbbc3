"""The row about findings, and about session_tracer's own errors."""

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

# Each id exists from the start, at 0, and has no severity until it is found.
FINDINGS = of("sqlalchemy_findings_total", 'sqlalchemy_finding_severity!=""')
# Not filtered by session name: an error of session_tracer matters for every session.
OWN_ERRORS = of("session_tracer_errors_total", 'where!=""', scope=PROCESS)

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
            "Number of findings in one step of the chart. Errors lose work or hold connections; "
            "warnings cost time; infos are advice.",
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
            "Number of findings by id. If an id first appears after a deployment, the deployment "
            "is the cause.",
            COUNT,
        ),
        Lines(or_none(BY_ID, "sqlalchemy_finding_id"), "{{sqlalchemy_finding_id}}"),
        colours={"none": "text"},
    ),
    bars(
        Words(
            "session_tracer's own errors",
            "Failures of session_tracer itself in one step of the chart, by where they happened. "
            "The application is not affected, but some sessions are not reported completely. "
            "There should be none.",
            COUNT,
        ),
        Lines(or_none(counted(OWN_ERRORS, "where"), "where"), "{{where}}"),
        colours={"none": "text"},
    ),
    rows_of(
        Words(
            "Top findings",
            "The twenty most frequent findings of the time range. Each has its call site and "
            "its remedy in the log lines next to this table.",
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
            "What happened, where and how often, with the line to look at first and what to write "
            "instead. A line without a remedy retracts an earlier finding about something that "
            "lasted and has ended. Needs the logs in Loki, sent by OTLP.",
            TEXT,
        ),
        '{service_name=~".+"} | scope_name="session_tracer" '
        '| finding_id!="" | session_name=~"$session" '
        '| line_format "{{.finding_id}} at {{.site}}: {{.explanation}} {{.remedy}}"',
    ),
    traces(
        Words(
            "Traces with a finding or a failure",
            "Requests in which a session failed, was abandoned or has a finding. Needs the spans "
            "in Tempo.",
            TEXT,
        ),
        '{ instrumentation:name = "session_tracer" '
        '&& (status = error || event:name = "sqlalchemy.finding") }',
    ),
)
