"""Suggests the known name that is most similar to a misspelt one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["did_you_mean"]


def did_you_mean(name: str, known: Collection[str], cutoff: float = 0.6) -> str:
    """Return a sentence such as " Did you mean 'console'?", to be appended to another sentence.

    Args:
        name: The misspelt name.
        known: The known names.
        cutoff: The least similarity as difflib measures it, from 0.0 (any name) to 1.0 (equal).

    Returns:
        The sentence with a leading space, or an empty string if no known name is similar enough.
    """
    from difflib import get_close_matches  # 0.6 ms of the import

    nearest = get_close_matches(name, known, n=1, cutoff=cutoff)
    return "".join(f" Did you mean {near!r}?" for near in nearest)
