"""The comment before a statement, by which the database shows which session runs it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from opentelemetry import trace

if TYPE_CHECKING:
    from session_tracer.ledger.ledger import Ledger
    from session_tracer.ledger.report import Report, Tracer

__all__ = ["Comments"]

# Number of different comments with which one statement is sent. Databases and drivers keep prepared
# statements by their text, and each comment makes another text of it.
_MOST_COMMENTS: Final = 20
_MOST_STATEMENTS: Final = 2_000
# PostgreSQL shows the first 1,023 bytes of a statement: the comment has to leave room for it.
_LONGEST_NAME: Final = 150
_LONGEST_SITE: Final = 250
# What neither ends a comment or a quoted text, nor is a parameter to any driver, and is ASCII: a
# connection may have another encoding. Each other character becomes an underscore.
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9 _.,:/(){}\[\]<>@=+~-]|-(?=-)")


class Comments:
    """The comments of one tracer's sessions: `/*first_used_site='...',session_name='...'*/`.

    The keys are those of the log events, and sorted. Nothing in a comment differs from one use of
    an endpoint to the next, except the trace, which is in it only if the settings ask for that.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._with_trace = tracer.settings.statement_comment_trace
        # By the hash of a statement, the comments with which it was sent; emptied, never replaced.
        self._sent: dict[int, set[str]] = {}

    def before(self, ledger: Ledger, statement: str) -> str:
        """Return the statement with the comment of the session before it.

        It is returned as it is once it was sent with `_MOST_COMMENTS` other comments.
        """
        site, comment = ledger.first_used_site or ledger.opened_site, ledger.comment
        if comment is None or comment[0] is not site:
            comment = ledger.comment = self._comment(ledger)
        _, text, whole = comment
        if not text or self._tracer.closed or not self._is_one_of_few(hash(statement), text):
            return statement
        return whole + statement

    def _is_one_of_few(self, statement: int, text: str) -> bool:
        known = self._sent.get(statement)
        if known is None:
            if len(self._sent) >= _MOST_STATEMENTS:
                self._sent.clear()
            known = self._sent[statement] = set()
        if text not in known:
            if len(known) >= _MOST_COMMENTS:
                return False
            known.add(text)
        return True

    def _comment(self, ledger: Ledger) -> tuple[object, str, str]:
        site = ledger.first_used_site or ledger.opened_site
        fields = {"session_name": self._tracer.name[:_LONGEST_NAME]}
        if site is not None:
            fields["first_used_site"] = str(site)[-_LONGEST_SITE:]
        if work := ledger.work[:_LONGEST_NAME]:
            fields["work"] = work
        text = whole = _written(fields)
        if self._with_trace:
            for report in ledger.reports:
                if report.tracer is self._tracer and (traced := _traceparent(report)):
                    whole = _written({**fields, "traceparent": traced})
        return site, text, whole


def _written(fields: dict[str, str]) -> str:
    values = (f"{key}='{_UNSAFE.sub('_', fields[key])}'" for key in sorted(fields))
    return f"/*{','.join(values)}*/ "


def _traceparent(report: Report) -> str:
    """The innermost span of the session, or the caller's, as W3C's `traceparent` has it."""
    if report.span_context:
        trace_id, span_id, is_sampled = *report.span_context[:2], True
    else:
        context = trace.get_current_span(report.ledger.context).get_span_context()
        trace_id, span_id = context.trace_id, context.span_id
        is_sampled = context.trace_flags.sampled
    return f"00-{trace_id:032x}-{span_id:016x}-{is_sampled:02x}" if trace_id and span_id else ""
