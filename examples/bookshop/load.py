"""Keeps the shop busy with a mix of good and bad requests, from two threads and an event loop."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from examples.bookshop import mistakes, views
from examples.bookshop.scenes import BOOKS, some_basket, some_email

THREADS = 2
TASKS = 3

View = Callable[[random.Random], str]
AsyncView = Callable[[random.Random], Awaitable[str]]

# How often, and what.
REQUESTS: tuple[tuple[int, View], ...] = (
    (12, lambda _: views.search_page("sea stories")),
    (12, lambda rng: views.order_page(some_email(rng), some_basket(rng))),
    (6, lambda _: views.restock_page(titles=8)),
    (3, lambda rng: views.order_page(some_email(rng), dict.fromkeys(some_basket(rng), 100))),
    (3, lambda _: views.report_page(authors=12)),
    (3, lambda _: views.author_page("Jane Austen")),
    (2, lambda _: views.delivery_page("delivery.csv")),
    (2, lambda _: views.reprice_page("Adventure")),
    (3, lambda _: mistakes.empty_basket_page({})),
    (2, lambda rng: mistakes.rename_page(some_email(rng), "Somebody")),
    (2, lambda _: mistakes.preview_page("Poetry")),
    (2, lambda _: mistakes.missing_book_page(0)),
    (2, lambda rng: mistakes.sign_up_page(some_email(rng))),
    (3, lambda rng: mistakes.slow_payment_page(some_email(rng))),
    (1, lambda _: mistakes.forgotten_session_page()),
    (2, lambda _: mistakes.blurbs_page("Dickens")),
    (2, lambda _: mistakes.late_blurb_page("Dickens")),
    (1, lambda rng: mistakes.clearance_page(_shelf_of(12, rng))),
)
ASYNC_REQUESTS: tuple[tuple[int, AsyncView], ...] = (
    (6, lambda _: views.async_search_page("detective")),
    (2, lambda _: views.async_report_page(authors=12)),
    (2, lambda _: views.async_author_page("Jules Verne")),
    (2, lambda rng: views.async_book_page(rng.randint(1, BOOKS))),
    (3, lambda rng: views.async_order_page(some_email(rng), some_basket(rng))),
    (1, lambda _: mistakes.async_restock_page(titles=8)),
)


def keep_busy(seconds: float, loop: asyncio.Runner, seed: int) -> str:
    """Ask for pages until the time is over; return how often each kind of answer was given."""
    end = time.monotonic() + seconds
    answers: Counter[str] = Counter()
    with ThreadPoolExecutor(THREADS) as threads:
        busy = [threads.submit(_ask, end, random.Random(seed + n)) for n in range(THREADS)]
        answers.update(loop.run(_ask_together(end, seed + THREADS)))
        for thread in busy:
            answers.update(thread.result())
    return "\n".join(f"{count:6} × {answer}" for answer, count in answers.most_common())


def _ask(end: float, rng: random.Random) -> Counter[str]:
    weights, requests = zip(*REQUESTS, strict=True)
    answers: Counter[str] = Counter()
    while time.monotonic() < end:
        [view] = rng.choices(requests, weights)
        answers[_kind(views.respond(partial(view, rng)))] += 1
        time.sleep(rng.uniform(0, 0.02))
    return answers


async def _ask_together(end: float, seed: int) -> Counter[str]:
    tasks = [_ask_async(end, random.Random(seed + n)) for n in range(TASKS)]
    return sum(await asyncio.gather(*tasks), Counter[str]())


async def _ask_async(end: float, rng: random.Random) -> Counter[str]:
    weights, requests = zip(*ASYNC_REQUESTS, strict=True)
    answers: Counter[str] = Counter()
    while time.monotonic() < end:
        [view] = rng.choices(requests, weights)
        answers[_kind(await views.respond_async(view(rng)))] += 1
        await asyncio.sleep(rng.uniform(0, 0.03))
    return answers


def _kind(answer: str) -> str:
    return answer if answer.startswith(("409 ", "500 ")) else "200 OK"


def _shelf_of(books: int, rng: random.Random) -> range:
    first = rng.randint(1, BOOKS - books)
    return range(first, first + books)
