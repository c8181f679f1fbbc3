"""A short day in the shop: each scene is one session with a title."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

from examples.bookshop import catalogue, views
from examples.bookshop.db import request_session


@dataclass(frozen=True, slots=True)
class Day:
    """What the scenes share: random numbers, the number of orders, the loop of the async views."""

    rng: random.Random
    orders: int
    loop: asyncio.Runner


@dataclass(frozen=True, slots=True)
class Scene:
    """What is about to be seen, and the code that does it and returns what the visitor saw.

    The title ends with the finding that is drawn, in parentheses.
    """

    title: str
    play: Callable[[Day], str]


BOOKS = len(list(catalogue.read_titles("books.csv")))


def some_basket(rng: random.Random) -> dict[int, int]:
    return dict.fromkeys(rng.sample(range(1, BOOKS + 1), 4), 1)


def some_email(rng: random.Random) -> str:
    return catalogue.email_of(rng.choice(catalogue.CUSTOMERS))


def open_shop(day: Day) -> str:
    with request_session() as session:
        return f"{catalogue.open_shop(session, day.rng)} books on the shelves"


def search(_: Day) -> str:
    return views.search_page("sea stories")


def order(day: Day) -> str:
    answer = "no order today"
    for _ in range(day.orders):
        answer = views.order_page(some_email(day.rng), some_basket(day.rng))
    return answer


def order_too_many(day: Day) -> str:
    return views.order_page(some_email(day.rng), dict.fromkeys(some_basket(day.rng), 100))


def accept_delivery(_: Day) -> str:
    return views.delivery_page("delivery.csv")


def report(_: Day) -> str:
    return views.report_page(authors=12)


def show_author(_: Day) -> str:
    return views.author_page("Jane Austen")


def restock(_: Day) -> str:
    return views.restock_page(titles=8)


def reprice(_: Day) -> str:
    return views.reprice_page("Adventure")


def search_async(day: Day) -> str:
    return day.loop.run(views.async_search_page("detective"))


def show_book_async(day: Day) -> str:
    return day.loop.run(views.async_book_page(day.rng.randint(1, BOOKS)))


def show_author_async(day: Day) -> str:
    return day.loop.run(views.async_author_page("Jules Verne"))


SCENES = (
    Scene(
        "The shop opens and loads its catalogue in one transaction (nothing wrong here)", open_shop
    ),
    Scene("A customer searches (nothing wrong here)", search),
    Scene("A customer orders four books: several entities, one commit (nothing wrong here)", order),
    Scene(
        "An order asks for more than the stock, fails and is rolled back (nothing wrong here)",
        order_too_many,
    ),
    Scene(
        "A delivery adds each title in a savepoint; two are known already (nothing wrong here)",
        accept_delivery,
    ),
    Scene("The monthly report reads author.books in a loop (n-plus-one)", report),
    Scene(
        "Shelves are filled, committed, then read: the commit expired them (reload-after-commit)",
        restock,
    ),
    Scene("Every price is set again to the same value (unchanged-dirty)", reprice),
    Scene(
        "A page renders an author after the session was closed (detached-lazy-load)", show_author
    ),
    Scene("The search again, awaited (nothing wrong here)", search_async),
    Scene(
        "An async page reads book.author and cannot await the load (implicit-async-io)",
        show_book_async,
    ),
    Scene(
        "An async page renders an author after its session was closed (detached-lazy-load)",
        show_author_async,
    ),
)
