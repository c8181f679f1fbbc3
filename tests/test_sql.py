"""Tests what a statement says of itself, and that it never says a value."""

from __future__ import annotations

import sqlite3
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import pytest
from sqlalchemy import make_url

from session_tracer.facts import Database
from session_tracer.hooks.sql import (
    Shape,
    database,
    fingerprint,
    reads,
    shape,
    status_code,
    without_values,
)

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("statement", "operation", "collection"),
    [
        ("SELECT books.id FROM books", "SELECT", "books"),
        ("select id\nfrom books\nwhere id = ?", "SELECT", "books"),
        ("SELECT 1", "SELECT", ""),
        ("  \n SELECT id FROM books", "SELECT", "books"),
        ("SELECT id FROM books AS b JOIN authors AS a ON a.id = b.author_id", "SELECT", "books"),
        ("SELECT id FROM ONLY books", "SELECT", "books"),
        ("SELECT id FROM books FOR UPDATE", "SELECT", "books"),
        ("(SELECT id FROM books) UNION (SELECT id FROM maps)", "SELECT", "books"),
        ("SELECT n FROM (SELECT count(*) AS n FROM books) AS anon_1", "SELECT", "books"),
        ("SELECT (SELECT count(*) FROM maps) AS n FROM books", "SELECT", "books"),
        ("SELECT EXTRACT(year FROM books.published) AS anon_1 FROM books", "SELECT", "books"),
        ("SELECT id FROM books WHERE id IN (SELECT id FROM maps)", "SELECT", "books"),
        ("SELECT a IS DISTINCT FROM b FROM books", "SELECT", "books"),
        ("SELECT id FROM books WHERE title LIKE '%(%'", "SELECT", "books"),
        ("INSERT INTO books (title) VALUES (?)", "INSERT", "books"),
        ("INSERT INTO books (title) VALUES (?) RETURNING id", "INSERT", "books"),
        ("INSERT INTO books (id) SELECT maps.id FROM maps", "INSERT", "books"),
        ("INSERT OR IGNORE INTO books (id) VALUES (?)", "INSERT", "books"),
        ("INSERT INTO books VALUES (?) ON CONFLICT (id) DO UPDATE SET id = ?", "INSERT", "books"),
        ("UPDATE books SET title=? WHERE books.id = ?", "UPDATE", "books"),
        ("UPDATE ONLY books SET title=?", "UPDATE", "books"),
        ("UPDATE books SET id=maps.id FROM maps RETURNING id", "UPDATE", "books"),
        ("DELETE FROM books WHERE books.id = ?", "DELETE", "books"),
        ("DELETE FROM books USING maps WHERE maps.id = books.id", "DELETE", "books"),
        ("REPLACE INTO books (id) VALUES (?)", "REPLACE", "books"),
        ("MERGE INTO books USING maps ON (maps.id = books.id)", "MERGE", "books"),
        ('SELECT id FROM "order items"', "SELECT", "order items"),
        ("SELECT id FROM `order`", "SELECT", "order"),
        ("SELECT id FROM [order items]", "SELECT", "order items"),
        ("SELECT id FROM shop.books", "SELECT", "shop.books"),
        ('SELECT id FROM "My Shop"."Books"', "SELECT", "My Shop.Books"),
        ("WITH best AS (SELECT id FROM maps) SELECT id FROM books", "SELECT", "books"),
        ("WITH RECURSIVE t(n) AS (SELECT 1) SELECT n FROM t", "SELECT", "t"),
        ("WITH old AS (SELECT id FROM maps) DELETE FROM books", "DELETE", "books"),
        ("WITH a AS (DELETE FROM maps RETURNING id) INSERT INTO books (id) SELECT id FROM a",
         "INSERT", "books"),
        ("WITH a AS (SELECT 1) UPDATE books SET id = 1", "UPDATE", "books"),
        ("/* by hand */ SELECT id FROM books", "SELECT", "books"),
        ("-- by hand\n-- twice\nSELECT id FROM books", "SELECT", "books"),
        ("/* one */ /* two */\nUPDATE books SET id = 1", "UPDATE", "books"),
        ("SAVEPOINT sa_savepoint_1", "SAVEPOINT", ""),
        ("RELEASE SAVEPOINT sa_savepoint_1", "RELEASE", ""),
        ("ROLLBACK TO SAVEPOINT sa_savepoint_1", "ROLLBACK", ""),
        ("CREATE TABLE books (id INTEGER)", "CREATE", ""),
        ("PRAGMA main.table_info(books)", "PRAGMA", ""),
        ("", "", ""),
        ("/* nothing */", "", ""),
        ("???", "", ""),
    ],
)  # fmt: skip
def test_a_statement_has_its_verb_and_its_first_table(
    statement: str, operation: str, collection: str
) -> None:
    summary = f"{operation} {collection}".strip()
    assert shape(statement) == Shape(operation, collection, summary)


def test_a_shape_is_worked_out_once() -> None:
    statement = "SELECT id FROM once"
    assert shape(statement) is shape(statement)


def test_statements_that_differ_each_time_do_not_pile_up() -> None:
    for number in range(2_001):
        assert shape(f"SELECT {number} FROM piled").collection == "piled"
    known = shape("SELECT 2000 FROM piled")
    shape("SELECT id FROM another")
    assert shape("SELECT 2000 FROM piled") is known


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("SELECT * FROM t WHERE a = 'secret'", "SELECT * FROM t WHERE a = ?"),
        ("SELECT * FROM t WHERE a = 'it''s secret'", "SELECT * FROM t WHERE a = ?"),
        ("SELECT * FROM t WHERE a = ''", "SELECT * FROM t WHERE a = ?"),
        ("SELECT * FROM t WHERE a = 'two\nlines'", "SELECT * FROM t WHERE a = ?"),
        ("SELECT * FROM t WHERE a IN ('secret', 'secrets')", "SELECT * FROM t WHERE a IN (?, ?)"),
        ("SELECT * FROM t WHERE a = N'secret'", "SELECT * FROM t WHERE a = N?"),
        ("SELECT * FROM t WHERE a = X'5EC2E7'", "SELECT * FROM t WHERE a = X?"),
        ("SELECT * FROM t WHERE a = 42", "SELECT * FROM t WHERE a = ?"),
        ("SELECT * FROM t WHERE a = -42", "SELECT * FROM t WHERE a = -?"),
        ("SELECT * FROM t WHERE a=42 LIMIT 10", "SELECT * FROM t WHERE a=? LIMIT ?"),
        ("SELECT * FROM t WHERE a > 4.2", "SELECT * FROM t WHERE a > ?"),
        ("SELECT * FROM t WHERE a > .42", "SELECT * FROM t WHERE a > ?"),
        ("SELECT * FROM t WHERE a > 4.2e-10", "SELECT * FROM t WHERE a > ?"),
        ("SELECT * FROM t WHERE a = 0x5EC2E7", "SELECT * FROM t WHERE a = ?"),
        ("SELECT * FROM t WHERE a = 42_000", "SELECT * FROM t WHERE a = ?"),
        ("SELECT a-42 FROM t", "SELECT a-? FROM t"),
        ("VALUES (1, 'secret'), (2, 'secret')", "VALUES (?, ?), (?, ?)"),
        ("SELECT 'open", "SELECT ?"),
    ],
)
@pytest.mark.parametrize("system", ["postgresql", "sqlite", "mysql", "mariadb", "oracle.db"])
def test_a_literal_is_never_shown(system: str, statement: str, shown: str) -> None:
    assert without_values(statement, system) == shown


@pytest.mark.parametrize(
    ("system", "statement", "shown"),
    [
        ("postgresql", "SELECT $$secret$$", "SELECT ?"),
        ("postgresql", "SELECT $q$it's $$ secret$q$, 1", "SELECT ?, ?"),
        ("postgresql", "SELECT a[1:2], a[:2]", "SELECT a[?:?], a[:?]"),
        ("postgresql", "SELECT $$two\nlines$$", "SELECT ?"),
        ("postgresql", r"SELECT E'it\'s secret', 1", "SELECT ?, ?"),
        ("postgresql", r"SELECT 'C:\', 'secret'", "SELECT ?, ?"),
        ("mysql", 'SELECT "secret"', "SELECT ?"),
        ("mariadb", 'SELECT "a ""secret"" of mine"', "SELECT ?"),
        ("mysql", r"SELECT 'it\'s secret', 1", "SELECT ?, ?"),
        ("mysql", r'SELECT "a \"secret\" of mine", 1', "SELECT ?, ?"),
        ("mysql", r"SELECT 'C:\\', 'secret'", "SELECT ?, ?"),
    ],
)
def test_a_database_has_literals_of_its_own(system: str, statement: str, shown: str) -> None:
    assert without_values(statement, system) == shown


@pytest.mark.parametrize(
    ("system", "statement", "shown"),
    [
        ("postgresql", """SELECT "o'brien", 'secret'""", """SELECT "o'brien", ?"""),
        ("sqlite", """SELECT "o'brien", 'secret'""", """SELECT "o'brien", ?"""),
        ("mysql", "SELECT `o'brien`, 'secret'", "SELECT `o'brien`, ?"),
        ("microsoft.sql_server", "SELECT [o'brien], 'secret'", "SELECT [o'brien], ?"),
        ("postgresql", 'SELECT "page 42" FROM "42"', 'SELECT "page 42" FROM "42"'),
        ("postgresql", "SELECT ARRAY['secret', 'more']", "SELECT ARRAY[?, ?]"),
    ],
)
def test_a_quoted_name_stays_as_it_is(system: str, statement: str, shown: str) -> None:
    assert without_values(statement, system) == shown


@pytest.mark.parametrize(
    ("system", "statement", "shown"),
    [
        ("postgresql", "/* don't tell */ SELECT 'secret'", "SELECT ?"),
        ("postgresql", "SELECT 1 -- don't tell\n, 'secret'", "SELECT ? \n, ?"),
        ("mysql", "SELECT 1 # don't tell\n, 'secret'", "SELECT ? \n, ?"),
        ("postgresql", "/* user secret */ SELECT a", "SELECT a"),
        ("postgresql", "SELECT '/* none', a, '*/'", "SELECT ?, a, ?"),
        ("postgresql", "SELECT a #> '{secret}'", "SELECT a #> ?"),
        ("oracle.db", "SELECT /*+ INDEX(t) */ a FROM t", "SELECT /*+ INDEX(t) */ a FROM t"),
    ],
)
def test_a_comment_hides_no_literal_and_shows_none(system: str, statement: str, shown: str) -> None:
    assert without_values(statement, system) == shown


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT t1.c2 FROM t1 WHERE t1.c2 = ? AND a = ?",
        "SELECT a FROM t WHERE a = $1 AND b = $12",
        "SELECT a FROM t WHERE a = $1::VARCHAR",
        "SELECT a FROM t WHERE a = %s",
        "SELECT a FROM t WHERE a = %(a_1)s AND b = %(param_1)s",
        "SELECT a FROM t WHERE a = :a_1 AND b = :1",
        "SELECT a FROM t WHERE a = ?1",
        "SELECT a FROM t WHERE a IS NOT NULL",
        "SELECT a AS anon_1 FROM t AS t_1",
    ],
)
@pytest.mark.parametrize("system", ["postgresql", "sqlite", "mysql", "oracle.db"])
def test_a_placeholder_stays_as_it_is(system: str, statement: str) -> None:
    assert without_values(statement, system) == statement


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "postgresql+psycopg://me:secret@db.example:5433/shop?password=secret",
            Database("postgresql", "shop", "db.example", 5433),
        ),
        ("postgresql+asyncpg://me@db.example/shop", Database("postgresql", "shop", "db.example")),
        ("mysql+pymysql://me:secret@db.example/shop", Database("mysql", "shop", "db.example")),
        ("mariadb+pymysql://db.example/shop", Database("mariadb", "shop", "db.example")),
        (
            "mssql+pyodbc://me:secret@db.example/shop",
            Database("microsoft.sql_server", "shop", "db.example"),
        ),
        ("oracle://me:secret@db.example", Database("oracle.db", "", "db.example")),
        ("cockroachdb://me@db.example/shop", Database("cockroachdb", "shop", "db.example")),
        ("sqlite:///shop.db", Database("sqlite", "shop.db")),
        ("sqlite+aiosqlite://", Database("sqlite")),
    ],
)
def test_a_url_gives_the_server_and_not_the_user(url: str, expected: Database) -> None:
    assert database(make_url(url)) == expected


def test_a_url_of_mysql_that_leads_to_a_mariadb() -> None:
    url = make_url("mysql+pymysql://me@db.example/shop")
    assert database(url, is_mariadb=True) == Database("mariadb", "shop", "db.example")


class OfMySQL(Exception):
    """As PyMySQL raises it: a number, then a text."""


OfMySQL.__module__ = "pymysql.err"


def unique_violation() -> sqlite3.IntegrityError:
    """SQLite's own error."""
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute("CREATE TABLE t (a UNIQUE)")
        connection.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(sqlite3.IntegrityError) as raised:
            connection.execute("INSERT INTO t VALUES (1)")
    finally:
        connection.close()
    return raised.value


def caused_by(cause: Exception) -> Exception:
    """As SQLAlchemy wraps what asyncpg raises."""
    error = Exception("a wrapper")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (psycopg.errors.UniqueViolation(), "23505"),
        (caused_by(asyncpg.UniqueViolationError("twice")), "23505"),
        (unique_violation(), "SQLITE_CONSTRAINT_UNIQUE"),
        (OfMySQL(1062, "Duplicate entry"), "1062"),
        (OfMySQL("no number"), ""),
        (OfMySQL(), ""),
        (psycopg.OperationalError("the server is gone"), ""),
        (ValueError(42), ""),
        (KeyboardInterrupt(), ""),
    ],
)
def test_an_error_has_the_databases_own_code(error: BaseException, code: str) -> None:
    assert status_code(error) == code


SELECT = "SELECT id FROM books WHERE price = ?"


@pytest.mark.parametrize("parameters", [(), (1,), ("a", None), {"price": 1}, [Decimal(1), b"a"]])
def test_the_same_parameters_have_one_fingerprint(parameters: Any) -> None:
    assert fingerprint(SELECT, parameters) == fingerprint(SELECT, parameters) != 0
    assert fingerprint(SELECT, parameters) != fingerprint(f"{SELECT} ", parameters)


@pytest.mark.parametrize(
    ("one", "other"),
    [((-1,), (-2,)), ((1,), (True,)), ((1,), (1.0,)), ((0,), ("",)), (("a", "b"), ("b", "a"))],
)
def test_other_parameters_have_another_fingerprint(one: Any, other: Any) -> None:
    assert fingerprint(SELECT, one) != fingerprint(SELECT, other)


@pytest.mark.parametrize("binary", [memoryview, bytearray, psycopg.Binary])
def test_a_binary_key_has_the_fingerprint_of_its_bytes(binary: Callable[[bytes], Any]) -> None:
    """So the drivers take what a `LargeBinary` has, such as a UUID of 16 bytes."""
    key, other = b"\x01" * 16, b"\x02" * 16
    assert fingerprint(SELECT, (binary(key), 1)) == fingerprint(SELECT, (key, 1)) != 0
    assert fingerprint(SELECT, (binary(key),)) != fingerprint(SELECT, (binary(other),))


def test_a_binary_content_is_not_compared() -> None:
    assert fingerprint(SELECT, (memoryview(bytes(65)),)) == 0


class Hostile(int):
    """Nobody may look at it."""

    def __repr__(self) -> str:
        raise AssertionError

    def __hash__(self) -> int:
        raise AssertionError


@pytest.mark.parametrize("kind", [Hostile, list, dict, object])
def test_what_may_be_the_applications_own_has_no_fingerprint(kind: type) -> None:
    assert fingerprint(SELECT, (1, kind())) == 0


@pytest.mark.parametrize(
    ("statement", "tables"),
    [
        ("SELECT a.id FROM a", {"a"}),
        (
            'SELECT x.id FROM shop."Orders" AS x, b WHERE x.id IN (SELECT id FROM c)',
            {"orders", "b", "c"},
        ),
        (
            "SELECT 1 FROM a JOIN (b JOIN c ON b.x = c.x) ON a.f(b.x, c.x), d ORDER BY e, f",
            {*"abcd"},
        ),
        ("WITH late AS (SELECT id, day FROM jobs) SELECT id FROM late", {"jobs", "late"}),
        ("SELECT (SELECT count(*) FROM lines) AS lines", {"lines"}),
        ("SELECT id FROM a WHERE text = 'FROM b, c'", {"a"}),
        ("SELECT updated_at, deleted FROM a", {"a"}),
        ("SELECT 1", set()),
        ("SELECT 1 FROM DUAL", set()),
        ("SELECT version()", set()),
        ("SELECT id FROM a FOR UPDATE SKIP LOCKED", set()),
        ("SELECT id FROM a FOR NO KEY UPDATE", set()),
        ("SELECT id FROM a LOCK IN SHARE MODE", set()),
        ("SELECT nextval('a_id') FROM a", set()),
        ("SELECT id FROM a WHERE due < now()", set()),
        ("SELECT id FROM a WHERE due < CURRENT_TIMESTAMP", set()),
        ("SELECT id FROM a ORDER BY random()", set()),
        ("SELECT pg_try_advisory_xact_lock(id) FROM a", set()),
        ("WITH next AS (UPDATE a SET taken = 1 RETURNING id) SELECT id FROM next", set()),
    ],
)
def test_the_tables_that_a_select_reads_if_it_can_be_repeated(
    statement: str, tables: set[str]
) -> None:
    assert reads(statement) == tables
