"""What the environment decides: the database, and which mistakes the application makes."""

import os

from examples.database import database_url

DATABASE_URL = database_url(sqlite_driver="aiosqlite", postgresql_driver="asyncpg")
# The mistakes that the application makes: names of `mistakes.MISTAKES`, separated by commas.
MISTAKES = [name for name in os.environ.get("SHOP_MISTAKES", "").split(",") if name]
# How long the other company takes to charge a customer.
PAYMENT_SECONDS = float(os.environ.get("SHOP_PAYMENT_SECONDS", "0.1"))
# How long a request waits for a connection.
POOL_SECONDS = float(os.environ.get("SHOP_POOL_SECONDS", "3"))
