"""Puts a document into the page's template."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Page", "as_json", "page"]

# In a <script> these would end it, or begin a comment.
_ESCAPED: Final = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&"}


class Page(NamedTuple):
    """The page, and the content security policy with which it works."""

    html: str
    policy: str


def as_json(document: Mapping[str, Any]) -> str:
    """Return the document as JSON in ASCII: a lone surrogate has no other form."""
    return json.dumps(document, default=str, separators=(",", ":"))


def page(document: Mapping[str, Any]) -> Page:
    """Return the page with the document in it. It asks for nothing from elsewhere."""
    from secrets import token_urlsafe  # with the first page

    nonce = token_urlsafe(16)
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'"
    )
    head, tail = _template().replace("{{nonce}}", nonce).split("{{data}}")
    html = head.replace("{{policy}}", policy) + as_json(document).translate(_ESCAPED) + tail
    # A page's own element cannot forbid that another page frames it.
    return Page(html, f"{policy}; frame-ancestors 'none'")


@cache
def _template() -> str:
    return files("session_tracer.page").joinpath("page.html").read_text("utf-8")
