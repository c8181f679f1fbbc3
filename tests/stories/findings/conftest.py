"""Gives the stories of findings what several of them need."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def collected() -> Iterator[None]:
    """Has what a story leaves behind complained of within its own test, where that is expected."""
    yield
    gc.collect()
