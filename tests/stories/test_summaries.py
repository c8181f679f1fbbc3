"""The story of a scope as one value."""

from sqlalchemy import select

from session_tracer.facts import Database
from session_tracer.model.summary import SessionSummary
from session_tracer.testing import capture
from tests.library import Author, Book, authors, keep
from tests.twins import Twin, on_each_database


@on_each_database
def test_the_summary_of_a_scope_reports_everything(twin: Twin) -> None:
    async def story() -> None:
        await keep(twin, *authors(3, books_each=1))
        with capture(twin.factory, name="orders-db") as captured:
            async with twin.session() as session:
                first, second, third = await session.scalars(select(Author).order_by(Author.id))
                first.name = "somebody"
                second.name = str(second.name)
                await session.delete(third)
                async with session.begin_nested():
                    session.add(Book(title="a new one", author_id=first.id))
                await session.commit()
                await session.refresh(first)
                session.add(Author(name="too late"))
        (summary,) = captured.sessions
        assert summary == SessionSummary(
            id=summary.id,
            name="orders-db",
            is_async=twin.is_async,
            outcome="committed",
            opened_unix_ns=summary.opened_unix_ns,
            opened_site=summary.opened_site,
            closed_site=summary.closed_site,
            ending="close",
            error="",
            database=Database(
                system=twin.database,
                namespace=str(twin.url.database),
                address=twin.url.host or "",
                port=twin.url.port,
            ),
            duration_ms=summary.duration_ms,
            held_ms=summary.held_ms,
            sql_ms=summary.sql_ms,
            statements=summary.statements,
            transactions=2,
            savepoints=1,
            commits=1,
            rollbacks=0,
            flushes=3,
            failed_flushes=0,
            loaded={"Author": 3, "Book": 1},
            new={"Book": 1},
            dirty={"Author": 1},
            unchanged={"Author": 1},
            deleted={"Author": 1, "Book": 1},
            lazy_loads={"relationship": 1, "refresh": 1},
            pending=1,
            transitions={
                "loaded_as_persistent": 4,
                "transient_to_pending": 2,
                "pending_to_persistent": 1,
                "persistent_to_deleted": 2,
                "deleted_to_detached": 2,
                "persistent_to_detached": 2,
                "pending_to_transient": 1,
            },
            identity_map_size=2,
            identity_map_peak=4,
            timeline=summary.timeline,
            findings=tuple(captured.findings),
        )
        assert [finding.id for finding in captured.findings] == ["discarded-changes"]
        assert 0 < summary.sql_ms < summary.held_ms < summary.duration_ms
        assert summary.statements >= 9

    twin.run(story)
