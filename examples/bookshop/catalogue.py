"""Fills an empty shop from books.csv, and reads what suppliers deliver."""

import csv
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from examples.bookshop.models import Author, Book, Customer, Stock, Subject

FOLDER = Path(__file__).parent
CUSTOMERS = ("Ada", "Bram", "Chiara", "Dilan", "Emeka")


@dataclass(frozen=True, slots=True)
class Title:
    """One line of a list of books."""

    author: str
    title: str
    year: int
    subjects: tuple[str, ...]


def read_titles(name: str) -> Iterator[Title]:
    with (FOLDER / name).open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            yield Title(
                row["author"], row["title"], int(row["year"]), tuple(row["subjects"].split("; "))
            )


def price_of(year: int) -> int:
    """The shop's price in pence: the older, the dearer."""
    return 1499 if year < 1700 else 1199 if year < 1800 else 899 if year < 1900 else 699


def email_of(name: str) -> str:
    return f"{name.lower()}@example.org"


def new_book(title: Title, author: Author, subjects: list[Subject], quantity: int) -> Book:
    return Book(
        author=author,
        title=title.title,
        year=title.year,
        price_pence=price_of(title.year),
        blurb=f"{title.title} by {title.author} was first published in {title.year}.",
        subjects=subjects,
        stock=Stock(quantity=quantity),
    )


def open_shop(session: Session, rng: random.Random) -> int:
    """Put every book of the list on the shelves in one transaction; return how many."""
    titles = list(read_titles("books.csv"))
    authors = {name: Author(name=name) for name in sorted({title.author for title in titles})}
    subjects = {
        name: Subject(name=name) for name in sorted({name for t in titles for name in t.subjects})
    }
    books = [
        new_book(
            title,
            authors[title.author],
            [subjects[name] for name in title.subjects],
            quantity=rng.randint(3, 12),
        )
        for title in titles
    ]
    session.add_all(books)
    session.add_all(Customer(name=name, email=email_of(name)) for name in CUSTOMERS)
    session.commit()
    return len(books)
