"""What the environment decides: the database, and which mistakes the application makes."""

import os

# Empty for an SQLite file in a temporary directory; "postgresql+asyncpg://..." for PostgreSQL.
DATABASE_URL = os.environ.get("DATABASE_URL", "")
# The mistakes that the application makes: names of `mistakes.MISTAKES`, separated by commas.
MISTAKES = [name for name in os.environ.get("SHOP_MISTAKES", "").split(",") if name]
# How long the other company takes to charge a customer.
PAYMENT_SECONDS = float(os.environ.get("SHOP_PAYMENT_SECONDS", "0.1"))
# How long a request waits for a connection.
POOL_SECONDS = float(os.environ.get("SHOP_POOL_SECONDS", "3"))
