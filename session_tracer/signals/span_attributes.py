"""The attributes of spans and of their events, as both kinds of spans have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from session_tracer.signals import names

if TYPE_CHECKING:
    from session_tracer.facts import Database, StatementStarted
    from session_tracer.model.findings import Finding, Retraction
    from session_tracer.where.callsite import CallSite

    # OpenTelemetry's own alias differs from release to release, and 1.45.0's is no valid type.
    Attributes = dict[str, str | bool | int | float]

__all__ = [
    "DETACHED_LOAD_ERROR",
    "add_database",
    "add_site",
    "of_finding",
    "of_retraction",
    "of_statement",
    "statement_name",
]

DETACHED_LOAD_ERROR: Final = "sqlalchemy.orm.exc.DetachedInstanceError"


def add_site(attributes: Attributes, site: CallSite | None) -> None:
    """Add the application's line, where it is known."""
    if site is None:
        return
    attributes[names.CODE_FUNCTION_NAME] = site.function
    attributes[names.CODE_FILE_PATH] = site.file
    attributes[names.CODE_LINE_NUMBER] = site.line
    if site.callers:
        attributes[names.CODE_STACKTRACE] = "\n".join(str(one) for one in (site, *site.callers))


def add_database(attributes: Attributes, database: Database) -> None:
    """Add the database that the connection leads to."""
    if database.system:
        attributes[names.DB_SYSTEM_NAME] = database.system
    if database.namespace:
        attributes[names.DB_NAMESPACE] = database.namespace
    if database.address:
        attributes[names.SERVER_ADDRESS] = database.address
        if database.port is not None:
            attributes[names.SERVER_PORT] = database.port


def of_finding(finding: Finding) -> Attributes:
    """The attributes of the event that reports a finding."""
    attributes: Attributes = {
        names.FINDING_ID: finding.id,
        names.FINDING_SEVERITY: finding.severity,
        names.FINDING_MESSAGE: finding.message,
        names.FINDING_REMEDY: finding.remedy,
    }
    add_site(attributes, finding.site)
    if finding.entity is not None:
        attributes[names.ENTITY] = finding.entity
    if finding.attribute is not None:
        attributes[names.ATTRIBUTE] = finding.attribute
    return attributes


def of_retraction(retraction: Retraction) -> Attributes:
    """The attributes of the event that reports the retraction of a finding."""
    return {
        names.FINDING_ID: retraction.finding.id,
        names.FINDING_MESSAGE: retraction.message,
    }


def statement_name(fact: StatementStarted) -> str:
    """The name of a statement's span."""
    batch = names.BATCH if fact.batch_size > 1 else ""
    return batch + fact.summary or fact.database.system


def of_statement(fact: StatementStarted) -> Attributes:
    """The attributes of a statement's span, as far as they are known before it is executed."""
    batch = names.BATCH if fact.batch_size > 1 else ""
    attributes: Attributes = {
        names.DB_QUERY_TEXT: fact.text,
        names.DB_QUERY_SUMMARY: batch + fact.summary,
        names.DB_OPERATION_NAME: batch + fact.operation,
    }
    if fact.collection:
        attributes[names.DB_COLLECTION_NAME] = fact.collection
    if fact.batch_size > 1:
        attributes[names.DB_OPERATION_BATCH_SIZE] = fact.batch_size
    add_database(attributes, fact.database)
    return attributes
