"""The version, which pyproject.toml has too: a test compares them."""

from typing import Final

# Not asked of the installed package: that reads its whole README, 3 ms of the import.
VERSION: Final = "0.1.0"
