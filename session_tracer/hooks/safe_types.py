"""The types of values that can be compared, hashed and shown without running anybody's code."""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
from typing import Final

__all__ = ["PLAIN"]

PLAIN: Final = frozenset(
    {
        bool, bytes, dt.date, dt.datetime, dt.time, dt.timedelta,
        decimal.Decimal, float, int, str, type(None), uuid.UUID,
    }
)  # fmt: skip
