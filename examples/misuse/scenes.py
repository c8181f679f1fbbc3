"""Which function causes which finding."""

import asyncio
import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy.exc import SQLAlchemyError

from examples.misuse import detached, endings, flushes, loading, sharing, transactions

# The code that runs a scene is not a line of the shop.
__session_tracer_hide__ = True


@dataclass(frozen=True, slots=True)
class Scene:
    """A finding, the function that makes the mistake, and smaller thresholds."""

    finding: str
    mistake: Callable[[], object]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The mistake, from the function's docstring."""
        return (inspect.getdoc(self.mistake) or "").partition("\n")[0]

    def play(self) -> None:
        """Make the mistake; SQLAlchemy's error is ignored."""
        with suppress(SQLAlchemyError):
            if inspect.iscoroutinefunction(self.mistake):
                asyncio.run(self.mistake())
            else:
                self.mistake()


SCENES: Final = (
    Scene("leaked-session", endings.send_catalogue, {"leak_after_seconds": 0.5}),
    Scene("abandoned-session", endings.forget_an_author),
    Scene("discarded-changes", endings.raise_price),
    Scene("reused-after-close", endings.count_twice),
    Scene("long-transaction", transactions.reprice_all, {"long_transaction_seconds": 0.5}),
    Scene("idle-in-transaction", transactions.pay, {"idle_in_transaction_seconds": 0.4}),
    Scene("commit-in-loop", transactions.import_authors),
    Scene("split-writes", transactions.order),
    Scene("nested-sessions", transactions.show_book),
    Scene("pool-exhausted", transactions.show_book_on_a_busy_day),
    Scene("savepoint-churn", transactions.import_authors_carefully),
    Scene("cancelled-transaction", transactions.order_within_a_moment),
    Scene("refused-transaction", transactions.rename_author),
    Scene("interrupted-stream", transactions.raise_prices),
    Scene("failed-flush", flushes.sell),
    # The failed flush is another finding.
    Scene("pending-rollback", flushes.sell_basket, {"ignore": {"failed-flush"}}),
    Scene("autoflush-storm", flushes.discount_while_dear),
    Scene("large-flush", flushes.import_authors),
    Scene("unchanged-dirty", flushes.tidy_names),
    Scene("row-by-row-writes", flushes.copy_authors),
    Scene("lost-link", flushes.change_author),
    Scene("n-plus-one", loading.count_books),
    Scene("get-in-loop", loading.total_of),
    Scene("query-in-loop", loading.count_orders),
    Scene("refresh-in-loop", loading.count_copies),
    Scene("session-per-item", loading.price_list),
    Scene("repeated-select", loading.label_books),
    Scene("reload-after-commit", loading.raise_prices),
    Scene("refresh-after-write", loading.take_orders),
    Scene("large-identity-map", loading.import_files, {"large_identity_map_objects": 1_000}),
    Scene("large-result", loading.dearest, {"large_result_objects": 20}),
    Scene("stale-lock", loading.sell_one),
    Scene("row-gone", loading.title_of_a_book_that_goes),
    Scene("detached-lazy-load", detached.author_page),
    Scene("implicit-async-io", detached.book_page),
    Scene("crossed-sessions", sharing.rename_and_log),
    Scene("concurrent-use", sharing.front_page),
    Scene("foreign-loop", sharing.count_on_two_loops),
    Scene("blocked-event-loop", sharing.serve_two_reports),
    Scene("shared-session", sharing.serve_from_one_session),
)
