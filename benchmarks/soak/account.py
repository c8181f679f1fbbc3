"""Counts what the load did, without session_tracer."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, event
from sqlalchemy.orm import Session, SessionTransaction

if TYPE_CHECKING:
    from collections.abc import Iterator

# The dialect events that run a statement instead of SQLAlchemy.
EXECUTIONS = ("do_execute", "do_executemany", "do_execute_no_params")


class Account:
    """Totals by action and by what it concerned: `("new", "Author")`."""

    def __init__(self) -> None:
        self.totals: Counter[tuple[str, str]] = Counter()
        self.surprises: list[str] = []
        # Reentrant: the garbage collector can return a lost connection to its pool at any point.
        self._lock = threading.RLock()

    def add(self, what: str, label: str = "", number: int = 1) -> None:
        with self._lock:
            self.totals[what, label] += number

    def surprise(self, error: BaseException, where: str) -> None:
        """Counts an unexpected error of the load."""
        with self._lock:
            if len(self.surprises) < 100:
                self.surprises.append(f"{type(error).__name__} in {where}: {error}")

    def total(self, what: str) -> int:
        with self._lock:
            return sum(number for key, number in self.totals.items() if key[0] == what)

    def by_label(self, what: str) -> dict[str, int]:
        with self._lock:
            found = {key[1]: number for key, number in self.totals.items() if key[0] == what}
        return dict(sorted(found.items()))


class SoakSession(Session):
    """The session class of the load; it counts its sessions."""

    account: Account

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.account.add("opened")


@contextmanager
def counted(account: Account, *engines: Engine) -> Iterator[None]:
    """Counts SQLAlchemy's events: transactions, connections and executed statements."""

    def began(_session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is None:
            account.add("transactions")

    def out(*_: object) -> None:
        account.add("checkouts")

    def executed(*_: object) -> None:
        account.add("statements")

    SoakSession.account = account
    for engine in engines:
        event.listen(engine, "checkout", out)
        for name in EXECUTIONS:
            # Registered first: a listener that executes the statement itself is the last called.
            event.listen(engine.dialect, name, executed)
    event.listen(SoakSession, "after_transaction_create", began)
    yield
    event.remove(SoakSession, "after_transaction_create", began)
