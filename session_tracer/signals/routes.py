"""Which method of a signal tells of which fact."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from session_tracer.ledger.record import SessionRecord

__all__ = ["Routes"]

# By the fact's type, a function of the signal's teller for the session, the fact and the record.
# A signal names only what it tells of: asking each one about every fact cost more than telling.
Routes: TypeAlias = Mapping[type, Callable[[Any, Any, SessionRecord], None]]
