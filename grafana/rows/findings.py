"""The row about findings over a longer time."""

from panels import NUMBER, TEXT, Columns, Panels, Words, rows_of, traces
from promql import happened, of

FINDINGS = of("sqlalchemy_findings_total")
FINDING = ("sqlalchemy_finding_id", "sqlalchemy_session_name")

PANELS: Panels = (
    rows_of(
        Words(
            "Top findings",
            "Which findings are most frequent in the time range? Each has its line and its remedy "
            "in the log.",
            NUMBER,
        ),
        [f"topk(20, {happened(FINDINGS, *FINDING, window='$__range')} > 0)"],
        Columns(
            headings={
                "Time": None,
                "sqlalchemy_finding_id": "Finding",
                "sqlalchemy_session_name": "Session",
                "Value": "Times",
            },
            sorted_by="Times",
        ),
        span=24,
        height=8,
    ),
    traces(
        Words(
            "Traces with a finding or a failure",
            "In which requests did a session fail, or was it abandoned, or does it have a finding? "
            "Needs the spans in Tempo.",
            TEXT,
        ),
        '{ instrumentation:name = "session_tracer" '
        '&& (status = error || event:name = "sqlalchemy.finding") }',
    ),
)
