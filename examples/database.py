"""The database of the two web applications: what `DATABASE_URL` names, else an SQLite file."""

import atexit
import os
import shutil
import sys
import tempfile
from importlib.util import find_spec

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError


def database_url(sqlite_driver: str, postgresql_driver: str) -> URL:
    """The URL with the driver that the application needs, whichever `DATABASE_URL` names."""
    given = os.environ.get("DATABASE_URL")
    if not given:
        return URL.create(f"sqlite+{sqlite_driver}", database=f"{_directory()}/shop.sqlite")
    dialects = {
        "sqlite": ("sqlite", sqlite_driver),
        "postgresql": ("postgresql", postgresql_driver),
        "postgres": ("postgresql", postgresql_driver),  # as some hosting companies write it
    }
    try:
        url = make_url(given)
        dialect, driver = dialects[url.get_backend_name()]
    except (ArgumentError, KeyError, ValueError):
        # Without the value: it may contain a password.
        sys.exit("Invalid DATABASE_URL: expected postgresql://user:password@host:port/database")
    if dialect == "postgresql" and find_spec(driver) is None:
        sys.exit(f"This DATABASE_URL needs the package {driver}: pip install {driver}")
    return url.set(drivername=f"{dialect}+{driver}")


def _directory() -> str:
    directory = tempfile.mkdtemp(prefix="shop-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory
