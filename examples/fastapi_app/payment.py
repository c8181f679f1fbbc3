"""Charges a customer, by a request to another company that takes its time."""

import asyncio

from examples.fastapi_app.config import PAYMENT_SECONDS


async def charge(order_id: int) -> None:
    """Wait for the answer of the other company."""
    assert order_id
    await asyncio.sleep(PAYMENT_SECONDS)
