"""Charges a customer, by a request to another company that takes its time."""

import time

from examples.flask_app.config import PAYMENT_SECONDS


def charge(order_id: int) -> None:
    """Wait for the answer of the other company."""
    assert order_id
    time.sleep(PAYMENT_SECONDS)
