"""Names what a misspelt name was probably meant to be."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["did_you_mean"]


def did_you_mean(name: str, known: Collection[str], cutoff: float = 0.6) -> str:
    """A sentence with the known name that looks most like it, to be put after another one.

    Empty where none is alike enough: `cutoff` is difflib's, from 0.0 (any name) to 1.0 (the same).
    """
    from difflib import get_close_matches  # 0.6 ms of the import

    nearest = get_close_matches(name, known, n=1, cutoff=cutoff)
    return "".join(f" Did you mean {near!r}?" for near in nearest)
