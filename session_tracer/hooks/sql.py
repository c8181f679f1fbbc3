"""The operation, table and text of a statement, in OpenTelemetry's terms, without its values."""

from __future__ import annotations

import functools
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from session_tracer.facts import Database
from session_tracer.hooks.safe_types import PLAIN
from session_tracer.ledger.ledger import table_name

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

__all__ = [
    "SHAPES",
    "Shape",
    "database",
    "fingerprint",
    "reads",
    "shape",
    "shown",
    "status_code",
    "without_values",
]

_MOST_REMEMBERED: Final = 2_000


@dataclass(frozen=True, slots=True)
class Shape:
    """A statement's verb, the first table it names, and the two together."""

    operation: str
    collection: str
    summary: str


_NAME: Final = (
    r"""((?:[\w$]+|"[^"]+"|`[^`]+`|\[[^\]]+\])(?:\.(?:[\w$]+|"[^"]+"|`[^`]+`|\[[^\]]+\]))*)"""
)
_VERB: Final = r"\s*(?:/\*.*?\*/\s*|--[^\n]*\n\s*)*\(?\s*([A-Za-z]+)"
_TABLE: Final = {
    "SELECT": rf"(?<!\bDISTINCT )\bFROM\s+(?:ONLY\s+)?{_NAME}",
    "DELETE": rf"\bFROM\s+(?:ONLY\s+)?{_NAME}",
    "INSERT": rf"\bINTO\s+{_NAME}",
    "REPLACE": rf"\bINTO\s+{_NAME}",
    "MERGE": rf"\bINTO\s+{_NAME}",
    "UPDATE": rf"\bUPDATE\s+(?:ONLY\s+)?{_NAME}",
}
# The statement that a common table expression belongs to comes after the last closing bracket
# at the outermost level; its verb is the first at that level that is not WITH.
_WITH_VERB: Final = r"\b(SELECT|INSERT|UPDATE|DELETE|MERGE)\b"


@functools.cache
def _compiled(pattern: str, flags: re.RegexFlag) -> re.Pattern[str]:
    """Compiled as it is first needed: all of them together are 3 ms of the import."""
    return re.compile(pattern, flags)


# Of each text the shape that was worked out; emptied, never replaced.
SHAPES: Final[dict[str, Shape]] = {}


def shape(statement: str) -> Shape:
    """The statement's shape, worked out once for each text."""
    known = SHAPES.get(statement)
    if known is None:
        if len(SHAPES) >= _MOST_REMEMBERED:
            SHAPES.clear()
        known = SHAPES[statement] = _shape(statement)
    return known


def _shape(statement: str) -> Shape:
    match = _compiled(_VERB, re.DOTALL).match(statement)
    operation = match.group(1).upper() if match else ""
    body = _outermost(statement)
    if operation == "WITH":
        verb = _compiled(_WITH_VERB, re.IGNORECASE).search(body)
        operation = verb.group(1).upper() if verb else operation
    found = None
    if operation in _TABLE:
        table = _compiled(_TABLE[operation], re.IGNORECASE)
        # A bracket before the table may hold a FROM of its own; one in its place holds the table.
        found = table.search(body) or table.search(statement)
    collection = "" if found is None else re.sub(r'["`\[\]]', "", found.group(1))
    return Shape(operation, collection, f"{operation} {collection}".strip())


def _outermost(statement: str) -> str:
    """The text with nothing in its brackets."""
    depth = 0
    kept: list[str] = []
    for character in statement:
        if character == ")":
            depth -= 1
        if depth == 0:
            kept.append(character)
        if character == "(":
            depth += 1
    return "".join(kept)


# What makes a SELECT do something, or return something else each time: locks, functions of clocks,
# sequences and chance, and writes in common table expressions.
_VOLATILE: Final = r"""
    \b(?:FOR\s+(?:NO\s+KEY\s+)?UPDATE|FOR\s+(?:KEY\s+)?SHARE|LOCK\s+IN\s+SHARE\s+MODE|INSERT|UPDATE
        |DELETE|MERGE|NEXTVAL|CURRVAL|NEXT\s+VALUE\s+FOR|UPDLOCK|XLOCK|HOLDLOCK)\b
    |\b(?:CURRENT_TIMESTAMP|CURRENT_DATE|CURRENT_TIME|LOCALTIMESTAMP|LOCALTIME|SYSTIMESTAMP|SYSDATE
        |UTC_TIMESTAMP|UTC_DATE|UTC_TIME|ROWVERSION)\b
    |'now'|@@\w
    |\b(?:datetime|julianday|strftime)\s*\(
    |\b(?:pg_|dbms_|sp_)\w*\s*\(
    |\b(?:now|clock_timestamp|statement_timestamp|transaction_timestamp|timeofday|getdate|getutcdate
        |sysdatetime|sysutcdatetime|sysdatetimeoffset|curdate|curtime|unix_timestamp|unixepoch|today
        |setval|lastval|last_insert_id|last_insert_rowid|scope_identity|changes|total_changes
        |found_rows|row_count|rand|random|randomblob|dbms_random|newid|newsequentialid
        |uuid\w*|gen_random_\w+|generate_uuid\w*|sys_guid|gen_id
        |get_lock|release_lock|is_free_lock|is_used_lock|sleep|benchmark|txid_\w+|set_config)\s*\(
"""


@functools.lru_cache(maxsize=_MOST_REMEMBERED)
def reads(statement: str) -> frozenset[str]:
    """The tables that a SELECT reads, in lower case and without their schemas.

    Empty if the SELECT may have another result without a write to one of them, or an effect: it
    locks rows, writes in a common table expression, or calls a volatile function.
    """
    if _compiled(_VOLATILE, re.IGNORECASE | re.VERBOSE).search(statement) is not None:
        return frozenset()
    names: set[str] = set()
    depth, is_table = 0, False
    # The depths of brackets at which a FROM clause has begun and not ended.
    clauses: set[int] = set()
    for token in _compiled(_TOKEN, re.DOTALL).findall(statement):
        word = token.upper()
        if word in ("FROM", "JOIN"):
            clauses.add(depth)
            is_table = True
        elif token == "(":
            depth += 1
        elif token == ")":
            clauses.discard(depth)
            depth -= 1
            is_table = False
        elif token == ",":
            is_table = depth in clauses
        elif word in _AFTER_FROM:
            clauses.discard(depth)
        elif is_table and word not in ("ONLY", "LATERAL"):
            names.add(table_name(token))
            is_table = False
    return frozenset(names - _NO_TABLES)


_TOKEN: Final = rf"'(?:[^']|'')*'|{_NAME[1:-1]}|[(),]"
_AFTER_FROM: Final = frozenset(
    {"WHERE", "GROUP", "HAVING", "ORDER", "LIMIT", "OFFSET", "FETCH", "WINDOW", "UNION"}
    | {"INTERSECT", "EXCEPT", "SELECT"}
)
# Of Oracle and its kind: what a SELECT reads that reads no table.
_NO_TABLES: Final = frozenset({"dual", "sysdummy1", "rdb$database"})


# What is read as one piece: what stays, what is left out, and the values.
_NAMES: Final = r"`[^`]*`"
_QUOTED_NAMES: Final = rf'{_NAMES}|"(?:[^"]|"")*"'
_BRACKETED_NAMES: Final = rf"{_QUOTED_NAMES}|\[[^\]]*\]"
_PLACEHOLDER: Final = r"(?<![\w:\[\]]):\w+|\$\d+|\?\d+"
_HINT: Final = r"/\*\+.*?\*/"
_COMMENT: Final = r"/\*.*?(?:\*/|\Z)|--[^\n]*"
_DOLLAR_QUOTED: Final = r"\$(?P<tag>\w*)\$.*?(?:\$(?P=tag)\$|\Z)"
_ESCAPED: Final = r"'(?:[^'\\]|\\.|'')*(?:'|\Z)"
_STRING: Final = rf"(?<!\w)[eE]{_ESCAPED}|'(?:[^']|'')*(?:'|\Z)"
# MySQL reads double quotes as strings too, and a backslash in either.
_MYSQL_STRING: Final = _ESCAPED + "|" + _ESCAPED.replace("'", '"')
_NUMBER: Final = r"(?<![\w$])\.?\d[\w.]*(?:(?<=[eE])[+-]\d+)?"


def _pieces(names: str, comment: str, value: str) -> str:
    kept = f"(?P<kept>{names}|{_PLACEHOLDER}|{_HINT})"
    return f"{kept}|(?P<comment>{comment})|{value}|{_NUMBER}"


_PIECES: Final = _pieces(_QUOTED_NAMES, _COMMENT, f"{_DOLLAR_QUOTED}|{_STRING}")
_MYSQL_PIECES: Final = _pieces(_NAMES, rf"{_COMMENT}|\#[^\n]*", _MYSQL_STRING)
_PIECES_OF: Final = {
    "mysql": _MYSQL_PIECES,
    "mariadb": _MYSQL_PIECES,
    "microsoft.sql_server": _pieces(_BRACKETED_NAMES, _COMMENT, _STRING),
}


def without_values(statement: str, system: str) -> str:
    """The statement with every literal value replaced by `?`; placeholders stay as they are.

    Comments are left out: anything may stand in them. A hint to the optimizer stays.
    """
    pieces = _compiled(_PIECES_OF.get(system, _PIECES), re.DOTALL)
    return pieces.sub(_shown, statement).strip()


def _shown(piece: re.Match[str]) -> str:
    if piece.lastgroup == "kept":
        return piece[0]
    return "" if piece.lastgroup == "comment" else "?"


# Of the text of a statement in evidence: what it selects, and what it depends on.
_MOST_SHOWN: Final = 400
_BEGINNING: Final = 150


@functools.lru_cache(maxsize=_MOST_REMEMBERED)
def shown(statement: str, system: str) -> str:
    """The statement on one line, without its values, with at most 400 characters.

    Of a longer one, the beginning and the end are shown.
    """
    text = " ".join(without_values(statement, system).split())
    if len(text) <= _MOST_SHOWN:
        return text
    return f"{text[:_BEGINNING]} ... {text[_BEGINNING + 5 - _MOST_SHOWN :]}"


def fingerprint(statement: str, parameters: Any) -> int:
    """Equal for the same text with the same parameters; 0 where these cannot be compared."""
    held = parameters
    if type(held) is not tuple:
        held = tuple(parameters.values() if type(parameters) is dict else parameters)
    if not PLAIN.issuperset(map(type, held)):
        held = tuple(map(_unwrapped, held))
        if not PLAIN.issuperset(map(type, held)):
            return 0
    # As text, for the hashes of -1 and -2 are the same, and so are those of 1, 1.0 and True.
    return hash((statement, repr(held))) or 1


def _unwrapped(value: Any) -> Any:
    """What a driver's `Binary` has of a short value, such as a key; any other value as it is."""
    if type(value) is getattr(sys.modules.get("psycopg"), "Binary", None):
        value = value.obj
    if type(value) in _BINARY and memoryview(value).nbytes <= _LONGEST_KEY:
        return bytes(value)
    return value


_BINARY: Final = frozenset({bytearray, memoryview})
# Bytes: a content is not compared, it would be copied for each statement.
_LONGEST_KEY: Final = 64


_SYSTEMS: Final = {
    "mssql": "microsoft.sql_server",
    "oracle": "oracle.db",
    "cockroachdb": "cockroachdb",
}


def database(url: URL, *, is_mariadb: bool = False) -> Database:
    """Where an engine leads, by OpenTelemetry's names; never its user or password.

    A URL of MySQL may lead to a MariaDB, which the dialect knows once it is connected.
    """
    backend = "mariadb" if is_mariadb else url.get_backend_name()
    return Database(
        system=_SYSTEMS.get(backend, backend),
        namespace=url.database or "",
        address=url.host or "",
        port=url.port,
    )


def status_code(error: BaseException) -> str:
    """The database's own code for what went wrong; empty where the driver gives none."""
    for source in (error, error.__cause__):
        for attribute in ("sqlstate", "pgcode", "sqlite_errorname"):
            code: Any = getattr(source, attribute, None)
            if isinstance(code, str):
                return code
    arguments = error.args
    # MySQL's drivers put their number first.
    if type(error).__module__.startswith(("pymysql", "MySQLdb", "asyncmy")) and arguments:
        return str(arguments[0]) if isinstance(arguments[0], int) else ""
    return ""
