"""Tests which values of a SELECT choose a part of its rows, in the SQL of each database."""

from __future__ import annotations

from typing import Any

import pytest

from session_tracer.hooks.parts import query


def asked(statement: str, parameters: Any) -> tuple[int, str]:
    return query(statement).part(parameters)


@pytest.mark.parametrize(
    ("statement", "one", "another", "part"),
    [
        ("SELECT id FROM a LIMIT ? OFFSET ?", (4, 4), (4, 8), "page"),
        ("SELECT id FROM a LIMIT 4 OFFSET ?", (4,), (8,), "page"),
        ("SELECT id FROM a LIMIT $1::INTEGER OFFSET $2::INTEGER", (4, 4), (4, 8), "page"),
        ("SELECT id FROM a LIMIT %s, %s", (4, 4), (8, 4), "page"),
        (
            "SELECT id FROM a OFFSET ? ROWS FETCH NEXT ? ROWS ONLY",
            (4, 4),
            (8, 4),
            "page",
        ),
        (
            "SELECT id FROM a OFFSET (%(o)s) ROWS FETCH FIRST (%(l)s) ROWS ONLY",
            {"o": 4, "l": 4},
            {"o": 8, "l": 4},
            "page",
        ),
        ("SELECT id FROM (SELECT id FROM a LIMIT ? OFFSET ?) AS b", (4, 4), (4, 8), "page"),
        ("SELECT id FROM a WHERE id > ? ORDER BY id LIMIT ?", (1, 4), (9, 4), "next"),
        ("SELECT TOP 4 id FROM a WHERE id > ? ORDER BY id", (1,), (9,), "next"),
        ("SELECT id FROM a WHERE ? < id ORDER BY id LIMIT 4", (1,), (9,), "next"),
        ("SELECT id FROM a WHERE (b, id) > (?, ?) LIMIT 4", (1, 2), (3, 4), "next"),
        (
            "SELECT id FROM a WHERE b > ? OR b = ? AND id > ? LIMIT 4",
            (1, 1, 2),
            (3, 3, 4),
            "next",
        ),
        ("SELECT id FROM a WHERE b >= ? AND b < ?", (1, 3), (3, 5), "window"),
        ("SELECT id FROM a WHERE b BETWEEN ? AND ?", (1, 3), (4, 6), "window"),
        ("SELECT id FROM a WHERE date(b) >= date(?)", ("x",), ("y",), "window"),
        ("SELECT id FROM a WHERE id IN (?, ?)", (1, 2), (3, 4), "list"),
        ("SELECT id FROM a WHERE (b, id) IN ((?, ?), (?, ?))", (1, 2, 3, 4), (5, 6, 7, 8), "list"),
        (
            "SELECT id FROM a WHERE (b, id) IN (VALUES (?, ?), (?, ?))",
            (1, 2, 3, 4),
            (5,) * 4,
            "list",
        ),
    ],
)
def test_the_parts_of_one_result(statement: str, one: Any, another: Any, part: str) -> None:
    assert asked(statement, one) == asked(statement, another)
    assert asked(statement, one)[1] == part


@pytest.mark.parametrize(
    ("statement", "one", "another"),
    [
        ("SELECT id FROM a WHERE id = ?", (1,), (2,)),
        ("SELECT id FROM a WHERE id = %(id_1)s::INTEGER", {"id_1": 1}, {"id_1": 2}),
        ("SELECT id FROM a WHERE id IN (?)", (1,), (2,)),
        ("SELECT id FROM a WHERE (b, id) IN ((?, ?))", (1, 2), (1, 3)),
        ("SELECT id FROM a WHERE b IN (?, ?) AND c = ?", (1, 2, 3), (1, 2, 4)),
        ("SELECT id FROM a WHERE id IN (SELECT b FROM c WHERE d = ?)", (1,), (2,)),
        ("SELECT id FROM a LIMIT ? OFFSET ?", (1, 4), (1, 5)),
        ("SELECT id FROM a LIMIT ? OFFSET ?", (3, 4), (3, 5)),
        ("SELECT id FROM a WHERE c = ? LIMIT ? OFFSET ?", (1, 4, 4), (2, 4, 4)),
        ("SELECT id FROM a WHERE b > ? ORDER BY b LIMIT ?", (1, 1), (2, 1)),
        ("SELECT id FROM a WHERE b > ? AND c = ?", (1, 1), (1, 2)),
        ("SELECT id FROM a WHERE b ->> ? = 'x'", ("k",), ("l",)),
        ("SELECT id FROM a WHERE b @> ?", ("k",), ("l",)),
    ],
)
def test_other_results(statement: str, one: Any, another: Any) -> None:
    assert asked(statement, one)[0] != asked(statement, another)[0]


def test_values_in_the_text_count_like_parameters() -> None:
    named, other = (
        "SELECT id FROM a WHERE b = 'it''s' AND c > 1",
        "SELECT id FROM a WHERE b = 'x' AND c > 20",
    )
    assert query(named).id == query(other).id
    assert asked(named, ())[0] != asked(other, ())[0]
    assert asked(named, ())[0] == asked(named.replace("c > 1", "c > 3"), ())[0]


def test_a_list_is_the_same_whatever_its_length() -> None:
    ids = {query(f"SELECT id FROM a WHERE id IN ({', '.join('?' * n)})").id for n in (1, 2, 500)}
    assert len(ids) == 1


def test_comments_and_casts_are_no_part_of_the_query() -> None:
    plain = query("SELECT id FROM a WHERE id = $1")
    assert query("/* traceparent=1 */ SELECT id FROM a WHERE id = $1::UUID -- 2").id == plain.id


@pytest.mark.parametrize("parameters", [(), None, {}])
def test_what_cannot_be_known_of_a_part(parameters: Any) -> None:
    assert asked("SELECT id FROM a LIMIT ? OFFSET ?", parameters) == (0, "unknown")


@pytest.mark.parametrize(
    ("statement", "parameters", "read"),
    [
        ("SELECT id FROM a WHERE b = ?", (1,), "rows"),
        ("SELECT id FROM a WHERE b = ? LIMIT ?", (1, 1), "rows"),
        ("SELECT EXISTS (SELECT id FROM a WHERE b = ?) AS x", (1,), "rows"),
        ("SELECT a.id, (SELECT max(c.d) FROM c WHERE c.a = a.id) FROM a WHERE b = ?", (1,), "rows"),
        ("SELECT id, count(*) OVER () FROM a WHERE b = ?", (1,), "rows"),
        ("SELECT id FROM a WHERE b = ? AND c IN (SELECT d FROM e LIMIT ?)", (1, 4), "rows"),
        ("SELECT count(*) AS n FROM a WHERE b = ?", (1,), "aggregate"),
        ("SELECT coalesce(sum(a.c), ?) AS n FROM a WHERE b = ?", (0, 1), "aggregate"),
        ("SELECT count(*) FROM (SELECT id FROM a WHERE b = ?) AS c", (1,), "aggregate"),
        ("SELECT id FROM a WHERE b = ? LIMIT 3", (1,), "first"),
        ("SELECT id FROM a WHERE b = ? ORDER BY c LIMIT ?", (1, 1), "one"),
        ("SELECT TOP 1 id FROM a WHERE b = ? ORDER BY c", (1,), "one"),
        ("SELECT x.id FROM (SELECT id FROM a WHERE b = ? LIMIT ?) AS x", (1, 4), "first"),
        ("SELECT id FROM a ORDER BY id LIMIT ? OFFSET ?", (1, 3), "offset"),
        ("SELECT id FROM a WHERE b > ? ORDER BY b LIMIT ?", (1, 1), "next"),
        ("SELECT id FROM a LIMIT ?", (), "rows"),
    ],
)
def test_what_is_read_of_the_rows_of_one_key(statement: str, parameters: Any, read: str) -> None:
    assert query(statement).of_key(parameters) == read


@pytest.mark.parametrize(
    ("statement", "one", "another"),
    [
        ("SELECT id FROM a WHERE b LIKE ?", ("x",), ("y",)),
        ("SELECT id FROM a WHERE b LIKE ? || '%%'", ("x",), ("y",)),
        ("SELECT id FROM a WHERE c = ? AND b ILIKE %(b)s", {"b": "x"}, {"b": "y"}),
        ("SELECT id FROM a WHERE b + ? <= c", (1,), (2,)),
        ("SELECT id FROM a WHERE ? %% b = 0", (1,), (2,)),
        ("SELECT id FROM a WHERE b @> ?", (1,), (2,)),
        ("SELECT id FROM a WHERE c = (SELECT d FROM e WHERE f LIKE ?)", (1,), (2,)),
    ],
)
def test_values_that_no_list_can_have(statement: str, one: Any, another: Any) -> None:
    assert query(statement).group(one) != query(statement).group(another)


@pytest.mark.parametrize(
    ("statement", "one", "another"),
    [
        ("SELECT id FROM a WHERE b = ?", (1,), (2,)),
        ("SELECT id FROM a WHERE ? = b", (1,), (2,)),
        ("SELECT id FROM a WHERE b IN (?)", (1,), (2,)),
        ("SELECT id FROM a WHERE (b, c) = (?, ?)", (1, 2), (2, 3)),
        ("SELECT id FROM a WHERE lower(b) = lower(?)", ("x",), ("y",)),
        ("SELECT id FROM a WHERE b = CAST($1 AS INTEGER)", (1,), (2,)),
        ("SELECT id FROM a WHERE b = ? AND c <> ?", (1, 2), (2, 3)),
        ("SELECT id FROM a WHERE b = ? AND c > ?", (1, 2), (2, 3)),
        ("SELECT coalesce(sum(c), ?) FROM a WHERE b = ?", (0, 1), (1, 2)),
    ],
)
def test_values_that_a_list_can_have(statement: str, one: Any, another: Any) -> None:
    assert query(statement).group(one) == query(statement).group(another)


@pytest.mark.parametrize(
    ("statement", "one", "another"),
    [
        ("SELECT id FROM a WHERE b <> ?", (1,), (2,)),
        ("SELECT id, sum(a.c %% ?) FROM a WHERE b = 1", (1,), (2,)),
        ("SELECT id FROM a WHERE b != %(b)s", {"b": 1}, {"b": 2}),
        ("SELECT id FROM a WHERE b = ANY ($1)", ([1, 2],), ([3, 4],)),
    ],
)
def test_values_that_are_not_another_key(statement: str, one: Any, another: Any) -> None:
    assert asked(statement, one)[0] == asked(statement, another)[0] != 0
