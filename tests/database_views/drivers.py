"""The drivers, and what their servers answer about a connection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from tests.twins import Twin


@dataclass(frozen=True)
class Driver:
    """A driver by its name, the module that it is, and SQLAlchemy's name for it."""

    name: str
    module: str
    dialect: str

    @property
    def is_async(self) -> bool:
        return self.name.startswith("async")

    @property
    def is_for_postgresql(self) -> bool:
        return self.dialect.startswith("postgresql")

    @property
    def server(self) -> str:
        """The fixture that has the URL of a database."""
        return "postgres_url" if self.is_for_postgresql else "mariadb_url"

    @property
    def database(self) -> str:
        """The database, as messages name it."""
        return "PostgreSQL" if self.is_for_postgresql else "MariaDB"

    @property
    def own_number(self) -> str:
        """A SELECT that returns the number that the server gives the connection."""
        return f"SELECT {'pg_backend_pid' if self.is_for_postgresql else 'connection_id'}()"

    @property
    def own_text(self) -> str:
        """An expression that is the text of the statement that it stands in."""
        if self.is_for_postgresql:
            return "current_query()"
        return "(SELECT info FROM information_schema.processlist WHERE id = connection_id())"


DRIVERS = (
    Driver("psycopg", "psycopg", "postgresql+psycopg"),
    Driver("asyncpg", "asyncpg", "postgresql+asyncpg"),
    Driver("pymysql", "pymysql", "mysql+pymysql"),
    Driver("mysqlclient", "MySQLdb", "mysql+mysqldb"),
    Driver("asyncmy", "asyncmy", "mysql+asyncmy"),
)


def run(twin: Twin, story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a story that needs no tables, or makes its own."""

    async def and_dispose() -> None:
        try:
            await story()
        finally:
            await twin.dispose()

    twin.drive(and_dispose())
