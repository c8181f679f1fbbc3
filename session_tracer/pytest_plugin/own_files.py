"""Which files hold tests, their fixtures and their helpers."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import CodeType, FrameType

__all__ = ["OwnFiles", "own_files_of"]

_FOLDERS: Final = frozenset({"test", "tests"})
_CONFTEST: Final = "conftest.py"
_MOST_FUNCTIONS: Final = 10_000


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
        self._has: dict[str, bool] = {}
        # What `begins` returns, with the code. By its id: to hash a code takes long.
        self._begins: dict[int, tuple[CodeType, bool | None]] = {}

    def has(self, file: str) -> bool:
        """Return whether the code of this file belongs to the tests."""
        known = self._has.get(file)
        if known is None:
            path = _resolved(file)
            known = self._has[file] = (
                path == self._path
                or path.name == _CONFTEST
                or (self._folder is not None and self._folder in path.parents)
            )
        return known

    def begins(self, frame: FrameType) -> bool | None:
        """Return whether the frame is of the tests, and None for pytest's, which called them."""
        code = frame.f_code
        known = self._begins.get(id(code))
        if known is None:
            if len(self._begins) >= _MOST_FUNCTIONS:
                self._begins.clear()
            is_pytests = frame.f_globals.get("__name__", "").startswith("_pytest.")
            known = code, None if is_pytests else self.has(code.co_filename)
            self._begins[id(code)] = known
        return known[1]


@functools.lru_cache(maxsize=1)
def own_files_of(path: Path, root: Path) -> OwnFiles:
    """Return the own files of a test: the tests of one file follow one another, and share them."""
    return OwnFiles(path, root)


@functools.lru_cache(maxsize=1_000)
def _resolved(file: str) -> Path:
    return Path(file).resolve()
