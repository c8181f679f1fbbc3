"""What the environment decides: the database, and which mistakes the application makes."""

import atexit
import os
import shutil
import tempfile

# The mistakes that the application makes: names of `mistakes.MISTAKES`, separated by commas.
MISTAKES = [name for name in os.environ.get("SHOP_MISTAKES", "").split(",") if name]
# How long the other company takes to charge a customer.
PAYMENT_SECONDS = float(os.environ.get("SHOP_PAYMENT_SECONDS", "0.1"))


def _in_a_temporary_directory() -> str:
    directory = tempfile.mkdtemp(prefix="flask-app-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return f"sqlite:///{directory}/shop.sqlite"


# "postgresql+psycopg://..." for PostgreSQL.
SQLALCHEMY_DATABASE_URI = os.environ.get("DATABASE_URL") or _in_a_temporary_directory()
SQLALCHEMY_ENGINE_OPTIONS = {
    "pool_size": 5,
    "max_overflow": 0,
    # How long a request waits for a connection.
    "pool_timeout": float(os.environ.get("SHOP_POOL_SECONDS", "3")),
}
