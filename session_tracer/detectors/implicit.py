"""Explains the load that could not be awaited."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from session_tracer.detectors.evidence import places
from session_tracer.detectors.missing import expired_by, expiry, reason
from session_tracer.detectors.said import Said
from session_tracer.detectors.wording import dotted, variable
from session_tracer.facts import ImplicitLoadFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from session_tracer.ledger.report import Report
    from session_tracer.model.findings import Finding

__all__ = ["ImplicitAsyncIO"]


class ImplicitAsyncIO:
    """`implicit-async-io`: under asyncio, reading an attribute needs a load."""

    facts: Final = ()
    candidates = (ImplicitLoadFailed,)

    def memory(self) -> Said:
        """Which attributes were refused at which lines."""
        return Said()

    def judge(self, fact: ImplicitLoadFailed, report: Report, memory: Said) -> Iterator[Finding]:
        """One finding for each attribute and line."""
        if not memory.first((fact.site, fact.entity, fact.attribute)):
            return
        remedy, *others = _remedies(fact)
        yield report.finding(
            "implicit-async-io",
            "error",
            _message(fact),
            remedy,
            fact.site,
            entity=fact.entity or None,
            attribute=fact.attribute or None,
            evidence=_evidence(fact, others),
        )


def _message(fact: ImplicitLoadFailed) -> str:
    name = dotted(fact.entity, fact.attribute)
    match fact.load:
        case "expired":
            what = expired_by(fact)
            expired = f"after {what} expired it" if what else "after it had expired"
            return f"{name} was read {expired}, and reading cannot await the reload"
        case "dynamic":
            return f"{name} runs a query when it is read, and reading cannot await the query"
        case _:
            return f"{name} was not loaded when it was read, and reading cannot await the load"


def _remedies(fact: ImplicitLoadFailed) -> Iterator[str]:
    """The change that mends the cause, then those that fit elsewhere."""
    one = variable(fact.entity)
    if fact.load == "dynamic":
        yield f"(await session.scalars({one}.{fact.attribute}.statement)).all()"
        yield f'lazy="write_only", and await session.scalars({one}.{fact.attribute}.select())'
        return
    yield from _expired(fact, one) if fact.load == "expired" else _never_loaded(fact, one)
    if fact.attribute:
        yield (
            f"await {one}.awaitable_attrs.{fact.attribute}, "
            f"with AsyncAttrs among the bases of {fact.entity}"
        )


def _expired(fact: ImplicitLoadFailed, one: str) -> Iterator[str]:
    if fact.expired_by == "commit":
        yield "async_sessionmaker(expire_on_commit=False)"
    if fact.expired_by == "flush":
        yield f'__mapper_args__ = {{"eager_defaults": True}}  # in {fact.entity}'
    # Every column of the object was expired, and one SELECT brings them back.
    yield f"await session.refresh({one})"


def _never_loaded(fact: ImplicitLoadFailed, one: str) -> Iterator[str]:
    select = f"select({fact.root or fact.entity}).options({fact.options})" if fact.options else ""
    refresh = f'await session.refresh({one}, ["{fact.attribute}"])'
    site = fact.root_site or fact.loaded_site
    if select and site is not None and not fact.expired_by:
        yield f"{select} at {site}"
        yield refresh
        return
    # What a commit expired, no option had kept; and what was added was never selected.
    yield refresh
    if select and fact.expired_by == "commit":
        yield f"{select}, and async_sessionmaker(expire_on_commit=False)"
    elif select and fact.expired_by:
        yield f"{select} after {expiry(fact)}"


def _evidence(fact: ImplicitLoadFailed, others: list[str]) -> dict[str, Any]:
    return {
        "why": reason(fact),
        **places(loaded_at=fact.loaded_site, expired_at=fact.expired_site),
        **({"identity": fact.identity} if fact.identity else {}),
        "alternatives": others,
    }
