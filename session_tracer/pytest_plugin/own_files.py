"""Which files hold tests, their fixtures and their helpers."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["OwnFiles"]

_FOLDERS: Final = frozenset({"test", "tests"})
_CONFTEST: Final = "conftest.py"


class OwnFiles:
    """The file of a test, every conftest.py, and what is in the folder `tests` or `test`.

    A test next to the application's modules has no such folder: these are the application's.

    Args:
        path: The test's file.
        root: pytest's root folder, above which no folder is looked at.
    """

    def __init__(self, path: Path, root: Path) -> None:
        self._path = path.resolve()
        root = root.resolve()
        outside = {root, *root.parents}
        folders = [one for one in self._path.parents if one not in outside and one.name in _FOLDERS]
        self._folder = folders[-1] if folders else None

    def has(self, file: str) -> bool:
        """Return whether the code of this file belongs to the tests."""
        path = _resolved(file)
        return (
            path == self._path
            or path.name == _CONFTEST
            or (self._folder is not None and self._folder in path.parents)
        )

    def begins(self, frame: FrameType) -> bool | None:
        """Return whether the frame is of the tests, and None for pytest's, which called them."""
        if frame.f_globals.get("__name__", "").startswith("_pytest."):
            return None
        return self.has(frame.f_code.co_filename)


@functools.lru_cache(maxsize=1_000)
def _resolved(file: str) -> Path:
    return Path(file).resolve()
