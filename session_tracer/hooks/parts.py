"""Which of a SELECT's values choose a page, a window or a chunk of a list, and which are keys."""

from __future__ import annotations

import functools
import re
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from session_tracer.facts import OfKey, Part

__all__ = ["WHOLE", "Query", "query"]

_MOST_REMEMBERED: Final = 2_000
# What reads no part of a larger result.
WHOLE: Final[Part] = ""

_NAME: Final = r'(?:[A-Za-z_][\w$]*|"[^"]+"|`[^`]+`|\[[^\]]+\])'
# `?`, `%s`, `%(name)s`, `$1` and `:name`, which is no cast.
_PLACEHOLDER: Final = r"\?|%s|%\((?P<key>\w+)\)s|\$(?P<number>\d+)|(?<!:):(?P<name>\w+)"
_TOKEN: Final = rf"""
    (?P<left_out>--[^\n]*|/\*.*?\*/|::{_NAME})
    |(?P<placeholder>{_PLACEHOLDER})
    |(?P<literal>'(?:[^']|'')*'|\d[\w.]*)
    |(?P<word>{_NAME}(?:\.{_NAME})*)
    |(?P<sign>->>?|\#>>?|@>|<@|<<|>>|<=|>=|<>|!=|[(),<>=])
"""
_RANGES: Final = ("<", ">", "<=", ">=")
_BOUNDED: Final = (*_RANGES, "BETWEEN")
_LIMITS: Final = frozenset({"LIMIT", "TOP", "FIRST", "NEXT"})
# What is before a comparison.
_BEGINNINGS: Final = ("WHERE", "AND", "OR", "NOT", "ON", "HAVING", "WHEN", "(")
_DIFFERS: Final = ("<>", "!=")
_LIST_FUNCTIONS: Final = ("ANY", "SOME")
_AGGREGATES: Final = frozenset(
    {"ARRAY_AGG", "AVG", "COUNT", "GROUP_CONCAT", "MAX", "MIN", "STRING_AGG", "SUM", "TOTAL"}
)


class _Value(NamedTuple):
    """A value in the text: a literal, or the key of a parameter."""

    literal: str
    key: int | str

    def of(self, parameters: Any) -> Any:
        return self.literal or parameters[self.key]


class Query(NamedTuple):
    """A SELECT without its values.

    Attributes:
        id: Equal for two SELECTs that differ in their values only: in parameters, literals, and the
            number of values in a list.
        chosen: The values that choose the rows, apart from `listed`, `ranged`, `ignored`.
        fixed: Those of them that are not compared by `=`, such as a pattern of LIKE:
            one SELECT cannot ask for a list of such values.
        listed: The values of lists with more than one.
        ranged: The values that a column is compared with as the bound of a range.
        ignored: The values of what is returned, and the values that a column must not have.
        offset: The value of OFFSET.
        limit: The value of LIMIT.
        simple_part: What is read of a result if there are no parts: `one` where one of the chosen
            values is alone in a list.
        is_limited: Whether LIMIT is that of the result, and not of another SELECT in the text.
        is_ordered: Whether the rows are in an order.
        is_aggregate: Whether it returns no rows, but what is counted or added up of them.
    """

    id: int
    chosen: tuple[_Value, ...]
    fixed: tuple[_Value, ...]
    listed: tuple[_Value, ...]
    ranged: tuple[_Value, ...]
    ignored: tuple[_Value, ...]
    offset: _Value | None
    limit: _Value | None
    simple_part: Part
    is_limited: bool
    is_ordered: bool
    is_aggregate: bool

    @property
    def has_parts(self) -> bool:
        """Whether it is not enough to compare all values of two such SELECTs."""
        return bool(self.listed or self.ranged or self.offset or self.fixed or self.ignored)

    def group(self, parameters: Any) -> int:
        """Return a hash that is equal for SELECTs which one SELECT for all keys can replace."""
        return _hash_of(self.fixed, parameters)

    def same_ignored(self, parameters: Any) -> int:
        """Return a hash that is equal for SELECTs whose values that choose no rows are the same."""
        return _hash_of(self.ignored, parameters)

    def of_key(self, parameters: Any) -> OfKey:
        """Return what it reads of the rows of one key."""
        if self.is_aggregate:
            return "aggregate"
        try:
            limit, offset = _whole(self.limit, parameters), _whole(self.offset, parameters)
        except (LookupError, TypeError):
            return "rows"
        if limit and offset and (limit == 1 or offset % limit):
            return "offset"
        if limit is None or not self.is_limited:
            return "rows"
        if self.ranged:
            return "next"
        if limit > 1:
            return "first"
        return "one" if self.is_ordered else "rows"

    def part(self, parameters: Any) -> tuple[int, Part]:
        """Return a hash that is equal for the parts of one result, and what kind of part is read.

        A SELECT that reads one row reads no part. Nor does one whose OFFSET is no multiple of its
        LIMIT: pages do not overlap. The hash is 0 if these are not the parameters of the text.
        """
        try:
            return self._part(parameters)
        except (LookupError, TypeError):
            return 0, WHOLE if self.listed or self.ranged else "unknown"

    def _part(self, parameters: Any) -> tuple[int, Part]:
        limit, offset = _whole(self.limit, parameters), _whole(self.offset, parameters)
        chosen = list(self.chosen)
        part = self.simple_part
        if limit == 1:
            chosen += self.ranged
        elif self.ranged:
            part = "window" if limit is None else "next"
        if offset:
            if limit == 1 or (limit and offset % limit):
                chosen.append(_Value(str(offset), 0))
            else:
                part = "page"
        if self.listed:
            part = "list"
        return hash((self.id, repr([value.of(parameters) for value in chosen]))) or 1, part


def _hash_of(values: Sequence[_Value], parameters: Any) -> int:
    try:
        return hash(repr([value.of(parameters) for value in values]))
    except (LookupError, TypeError):
        return 0


def _whole(value: _Value | None, parameters: Any) -> int | None:
    """Return the number of a LIMIT or an OFFSET; None if there is none. SQLite has -1 for none."""
    found = None if value is None else value.of(parameters)
    if isinstance(found, str) and found.isdecimal():
        return int(found)
    return found if type(found) is int and found >= 0 else None


@functools.lru_cache(maxsize=_MOST_REMEMBERED)
def query(statement: str) -> Query:
    """Return the SELECT of a text, worked out once for each text."""
    return _Reader(statement).read()


class _Bracket:
    """An open bracket: whether a list of IN is in it, and what that has so far."""

    __slots__ = ("is_key", "is_list", "is_range", "is_table", "size", "values")

    def __init__(self, *, is_list: bool, is_range: bool, is_key: bool, is_table: bool) -> None:
        self.is_list = is_list
        self.is_range = is_range
        self.is_key = is_key
        self.is_table = is_table
        self.size = 1
        self.values: list[_Value] = []


class _Reader:
    """Reads a text once."""

    def __init__(self, statement: str) -> None:
        self._pieces = list(_pieces(statement))
        self._first_from = self._number_of_from()
        self._brackets: list[_Bracket] = []
        # The text without its values, and the values with the columns they are compared with.
        self._frame: list[str] = []
        self._chosen: list[tuple[_Value, str]] = []
        self._fixed: list[_Value] = []
        self._listed: list[_Value] = []
        self._ranged: list[_Value] = []
        self._ignored: list[_Value] = []
        self._simple_part: Part = WHOLE
        self._columns: set[str] = set()
        self._limit: _Value | None = None
        self._offset: _Value | None = None
        self._is_limited = False

    def read(self) -> Query:
        """Return what was read."""
        for number, piece in enumerate(self._pieces):
            if isinstance(piece, _Value):
                self._value(piece, number)
            elif piece == "(":
                self._open(number)
            elif piece == ")":
                self._close()
            elif piece == "," and self._list is not None:
                self._list.size += self._brackets[-1] is self._list
            else:
                self._keep(piece)
        chosen = [value for value, column in self._chosen if column not in self._columns]
        # Keyset pages of several columns: `a > 1 OR (a = 1 AND b > 2)`.
        equal = [value for value, column in self._chosen if column in self._columns]
        return Query(
            id=hash(tuple(self._frame)) or 1,
            chosen=tuple(chosen),
            fixed=tuple(self._fixed),
            listed=tuple(self._listed),
            ranged=(*self._ranged, *equal),
            ignored=tuple(self._ignored),
            offset=self._offset,
            limit=self._limit,
            simple_part=self._simple_part,
            is_limited=self._is_limited,
            is_ordered="ORDER" in map(self._word, range(len(self._pieces))),
            is_aggregate=self._is_aggregate(),
        )

    def _is_aggregate(self) -> bool:
        head = [self._word(number) for number in range(self._first_from)]
        if head.count("SELECT") != 1 or "OVER" in head:
            return False
        return any(word in _AGGREGATES and then == "(" for word, then in pairwise(head))

    def _number_of_from(self) -> int:
        """Return the number of the piece that ends what the outermost SELECT returns."""
        depth = 0
        for number, piece in enumerate(self._pieces):
            depth += (piece == "(") - (piece == ")")
            if depth == 0 and self._word(number) == "FROM":
                return number
        return 0

    @property
    def _list(self) -> _Bracket | None:
        """The list of IN that is being read."""
        return next((one for one in self._brackets if one.is_list), None)

    def _keep(self, piece: str) -> None:
        if self._list is None:
            self._frame.append(piece)

    def _word(self, number: int) -> str:
        """Return the piece of that number in capitals if it is text."""
        piece = self._pieces[number] if 0 <= number < len(self._pieces) else ""
        return piece.upper() if isinstance(piece, str) else ""

    def _open(self, number: int) -> None:
        self._keep("(")
        before = self._word(number - 1)
        is_query = self._word(number + 1) in _QUERIES
        is_list = before == "IN" and not is_query
        is_key = not is_query and "=" in (before, self._word(number - 2))
        # A bound may be a row of several values, or the result of a function.
        is_range = before in _RANGES or self._word(number - 2) in _RANGES
        self._brackets.append(
            _Bracket(
                is_list=is_list,
                is_range=is_range,
                is_key=is_key,
                is_table=before == "FROM",
            )
        )

    def _close(self) -> None:
        bracket = self._brackets.pop() if self._brackets else None
        self._keep(")")
        if bracket is None or not bracket.is_list:
            return
        if bracket.size > 1:
            self._listed += bracket.values
        else:
            self._chosen += [(value, "") for value in bracket.values]
            self._simple_part = "one"

    def _value(self, value: _Value, number: int) -> None:
        self._keep("?")
        if self._list is not None:
            self._list.values.append(value)
            return
        # SQL Server and FETCH FIRST have it in brackets.
        at = number - 2 if self._word(number - 1) == "(" else number - 1
        before, column = self._word(at), self._word(at - 1)
        if before == "OFFSET":
            self._offset = value
        elif before in _LIMITS:
            self._limit = value
            # That of a subquery which is compared with a column is another one's.
            self._is_limited = all(bracket.is_table for bracket in self._brackets)
        elif before in _DIFFERS or number < self._first_from:
            self._ignored.append(value)
        elif before in _LIST_FUNCTIONS:
            self._listed.append(value)
        elif before == "," and self._word(number - 3) == "LIMIT":
            self._offset, self._limit = self._limit, value  # MySQL: LIMIT offset, limit
        elif before in _BOUNDED or (self._brackets and self._brackets[-1].is_range):
            self._bound(value, column)
        elif before == "AND" and self._word(number - 3) == "BETWEEN":
            self._bound(value, self._word(number - 4))
        elif self._follows(number) in _RANGES:
            self._bound(value, self._word(number + 2))
        else:
            self._chosen.append((value, column if before == "=" else ""))
            is_key = "=" in (before, self._follows(number)) or (
                self._brackets and self._brackets[-1].is_key
            )
            if not is_key:
                self._fixed.append(value)

    def _follows(self, number: int) -> str:
        """Return the sign that compares the value, and no sum of it and others, with the next."""
        return self._word(number + 1) if self._word(number - 1) in _BEGINNINGS else ""

    def _bound(self, value: _Value, column: str) -> None:
        self._ranged.append(value)
        self._columns.add(column)
        self._columns.discard("")


_QUERIES: Final = frozenset({"SELECT", "WITH"})


def _pieces(statement: str) -> Iterator[str | _Value]:
    """Yield the words, signs and values of a text, without its comments and casts."""
    placeholders = 0
    for found in _compiled().finditer(statement):
        kind = found.lastgroup
        if found["placeholder"] is not None:
            key = found["key"] or found["name"] or found["number"] or ""
            if found["number"]:
                yield _Value("", int(key) - 1)
            else:
                yield _Value("", key or placeholders)
                placeholders += not key
        elif kind == "literal":
            yield _Value(found[0], 0)
        elif kind != "left_out":
            yield found[0]


@functools.cache
def _compiled() -> re.Pattern[str]:
    return re.compile(_TOKEN, re.DOTALL | re.VERBOSE)
