"""What the environment decides: the database, and which mistakes the application makes."""

import os

from examples.database import database_url

SQLALCHEMY_DATABASE_URI = database_url(sqlite_driver="pysqlite", postgresql_driver="psycopg")
# The mistakes that the application makes: names of `mistakes.MISTAKES`, separated by commas.
MISTAKES = [name for name in os.environ.get("SHOP_MISTAKES", "").split(",") if name]
# How long the other company takes to charge a customer.
PAYMENT_SECONDS = float(os.environ.get("SHOP_PAYMENT_SECONDS", "0.1"))
SQLALCHEMY_ENGINE_OPTIONS = {
    "pool_size": 5,
    "max_overflow": 0,
    # How long a request waits for a connection.
    "pool_timeout": float(os.environ.get("SHOP_POOL_SECONDS", "3")),
}
