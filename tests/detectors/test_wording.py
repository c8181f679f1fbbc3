"""The words that findings share."""

import pytest

from session_tracer.detectors.wording import counted, dotted, duration, objects, variable

MS = 1_000_000
SECOND = 1_000 * MS


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (-5, "less than 1 ms"),
        (999_999, "less than 1 ms"),
        (MS, "1 ms"),
        (35 * MS, "35 ms"),
        (999 * MS, "999 ms"),
        (999 * MS + 600_000, "1.0 s"),
        (4_200 * MS, "4.2 s"),
        (59_949 * MS, "59.9 s"),
        (59_950 * MS, "1 min 0 s"),
        (252 * SECOND, "4 min 12 s"),
        (3_599 * SECOND, "59 min 59 s"),
        (7_500 * SECOND, "2 h 5 min"),
    ],
)
def test_how_long_something_lasted(nanoseconds: int, text: str) -> None:
    assert duration(nanoseconds) == text


def test_counts_come_with_the_most_frequent_first() -> None:
    assert counted({}) == ""
    assert counted({"Author": 2, "Stock": 0, "Book": 300}) == "300 Book, 2 Author"


def test_objects_of_one_class_are_called_objects() -> None:
    assert objects({"Author": 2}) == "2 Author objects"
    assert objects({"Author": 1, "Book": 0}) == "1 Author object"
    assert objects({"Author": 1, "Book": 2}) == "2 Book, 1 Author"
    assert objects({}) == ""


def test_an_attribute_is_named_as_in_code() -> None:
    assert (dotted("Author", "books"), dotted("Author", "")) == ("Author.books", "Author")


@pytest.mark.parametrize(
    ("entity", "called"),
    [
        ("Author", "author"),
        ("OrderLine", "order_line"),
        ("HTTPLog", "http_log"),
        ("Sha256Sum", "sha256_sum"),
        ("Import", "import_"),
        ("Session", "session_"),
        ("author", "author"),
    ],
)
def test_an_object_has_the_name_that_code_would_give_it(entity: str, called: str) -> None:
    assert variable(entity) == called
